//! Watching keys: the server's keyspace events say that something changed, reading says what.
//!
//! Events are lost with the connection, so after each connect everything is read again and
//! compared with what was known. Where the server's events cannot be switched on, it is read
//! again and again instead.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::time::Duration;

use futures_util::stream::StreamExt;
use mecha_components_api::{CancellationToken, Changes, ConfigItem, Error, Result};
use redis::aio::{PubSubSink, PubSubStream};
use redis::{Msg, Value};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::warn;

use crate::client::{Client, Trouble};
use crate::configuration::{for_all, item, texts};
use crate::error::Fault;

/// Pauses between two tries to connect.
const TROUBLE_FIRST: Duration = Duration::from_millis(50);
const TROUBLE_LONGEST: Duration = Duration::from_secs(2);
/// How often a silent connection is asked whether it is alive.
const PING_EVERY: Duration = Duration::from_secs(5);
/// How often everything is read where there are no events.
const POLL_EVERY: Duration = Duration::from_secs(5);
/// Changed keys that wait while the receiver is slow; above it everything is read again.
const MOST_CHANGED: usize = 10_000;
/// Keys in one message to the receiver.
const CHUNK: usize = 256;

/// One watch.
pub(crate) struct Watch<'a> {
    client: &'a Client,
    /// Sorted; empty for all.
    keys: Vec<String>,
    out: mpsc::Sender<Changes>,
    stop: CancellationToken,
    /// A hash of the text of each key that has one: what the receiver knows.
    known: HashMap<String, u64>,
    /// The first reading is behind us.
    begun: bool,
}

/// What has to be read again.
#[derive(Default)]
struct Changed {
    keys: BTreeSet<String>,
    all: bool,
}

/// Why a session ended.
enum Ended {
    /// For good.
    Stopped,
    /// The connection is gone.
    Lost(Error),
}

impl<'a> Watch<'a> {
    pub(crate) fn new(
        client: &'a Client,
        mut keys: Vec<String>,
        out: mpsc::Sender<Changes>,
        stop: CancellationToken,
    ) -> Self {
        keys.sort_unstable();
        keys.dedup();
        Self { client, keys, out, stop, known: HashMap::new(), begun: false }
    }

    /// Runs until it is stopped, the receiver is gone or the component is closed.
    pub(crate) async fn run(mut self) {
        let mut trouble = Trouble::new(TROUBLE_FIRST, TROUBLE_LONGEST);
        let (stop, closed, out) = (self.stop.clone(), self.client.closed().clone(), self.out.clone());
        let ended = async {
            tokio::select! {
                () = stop.cancelled() => {}
                () = closed.cancelled() => {}
                () = out.closed() => {}
            }
        };
        let work = async {
            loop {
                match self.session(&mut trouble).await {
                    Ended::Stopped => return,
                    Ended::Lost(e) => {
                        let pause = trouble.pause();
                        if trouble.is_news() {
                            warn!(target: "dapr.contrib", "watching configuration: {e}; trying again");
                        }
                        sleep(pause).await;
                    }
                }
            }
        };
        tokio::select! {
            () = ended => {}
            () = work => {}
        }
    }

    async fn session(&mut self, trouble: &mut Trouble) -> Ended {
        match self.try_session(trouble).await {
            Ok(()) => Ended::Stopped,
            Err(e) => Ended::Lost(e),
        }
    }

    async fn try_session(&mut self, trouble: &mut Trouble) -> Result<()> {
        if !self.begun {
            // Before the channels are there, so that nothing changes unseen in between.
            self.compare().await?;
            self.begun = true;
        }
        let lost = |fault: Fault| self.client.error(self.client.read("watch configuration"), fault);
        let (mut sink, mut stream) = self.client.channels().await.map_err(lost)?.split();
        self.subscribe(&mut sink).await.map_err(lost)?;
        let has_events = self.switch_events_on().await;
        self.send_differences().await?;
        trouble.over();

        let mut changed = Changed::default();
        let every = if has_events { PING_EVERY } else { POLL_EVERY };
        let mut look_at = Instant::now() + every;
        loop {
            let out = self.out.clone();
            tokio::select! {
                message = stream.next() => {
                    let message = message.ok_or_else(|| Error::unavailable("the connection for events was lost"))?;
                    self.note(&message, &mut changed);
                    self.note_ready(&mut stream, &mut changed);
                }
                () = sleep_until(look_at) => {
                    look_at = Instant::now() + every;
                    if !has_events {
                        changed.all = true;
                    }
                    let limit = self.client.config().read;
                    match timeout(limit, sink.ping::<Value>()).await {
                        Ok(Ok(_)) => {}
                        Ok(Err(e)) => return Err(lost_connection(self.client, Fault::Sent(e))),
                        Err(_) => return Err(lost_connection(self.client, Fault::Silent)),
                    }
                }
                // Events are taken meanwhile, so a slow receiver holds nothing up.
                permit = out.reserve(), if !changed.is_empty() => {
                    let Ok(permit) = permit else { return Ok(()) };
                    let changes = self.read(&mut changed).await?;
                    if !changes.is_empty() {
                        permit.send(changes);
                    }
                }
            }
        }
    }

    fn prefix(&self) -> String {
        format!("__keyspace@{}__:", self.client.config().db)
    }

    async fn subscribe(&self, sink: &mut PubSubSink) -> Result<(), Fault> {
        let prefix = self.prefix();
        let subscribed = async {
            if self.keys.is_empty() {
                return sink.psubscribe(format!("{prefix}*")).await;
            }
            let channels: Vec<String> = self.keys.iter().map(|key| format!("{prefix}{key}")).collect();
            for chunk in channels.chunks(CHUNK) {
                sink.subscribe(chunk).await?;
            }
            Ok(())
        };
        match timeout(self.client.config().read, subscribed).await {
            Ok(outcome) => outcome.map_err(Fault::Sent),
            Err(_) => Err(Fault::Silent),
        }
    }

    /// Switches the events on that we need, beside those that are on. False when that is not
    /// allowed and they are off.
    async fn switch_events_on(&self) -> bool {
        let op = self.client.read("read notify-keyspace-events");
        let mut get = redis::cmd("CONFIG");
        get.arg("GET").arg("notify-keyspace-events");
        let flags = match self.client.try_call(op, &get).await {
            Ok(Value::Array(pair)) => pair.into_iter().nth(1),
            Ok(Value::Map(pairs)) => pairs.into_iter().next().map(|(_, flags)| flags),
            _ => None,
        };
        let flags = match flags {
            Some(Value::BulkString(flags)) => String::from_utf8_lossy(&flags).into_owned(),
            _ => String::new(),
        };
        let Some(wanted) = wanted(&flags) else { return true };
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg("notify-keyspace-events").arg(wanted);
        match self.client.try_call(self.client.repeatable_write("set notify-keyspace-events"), &set).await {
            Ok(_) => true,
            Err(fault) => {
                let error = self.client.error(op, fault);
                warn!(
                    target: "dapr.contrib",
                    "keyspace events cannot be switched on ({error}); reading every {} s instead. \
                     Set notify-keyspace-events to Kg$xe on the server", POLL_EVERY.as_secs()
                );
                false
            }
        }
    }

    fn note(&self, message: &Msg, changed: &mut Changed) {
        if let Some(key) = message.get_channel_name().strip_prefix(&self.prefix()) {
            changed.add(key);
        }
    }

    /// Takes what else came already: one reading tells it all.
    fn note_ready(&self, stream: &mut PubSubStream, changed: &mut Changed) {
        use futures_util::FutureExt;
        while let Some(Some(message)) = stream.next().now_or_never() {
            self.note(&message, changed);
        }
    }

    /// Everything that differs from what the receiver knows.
    async fn send_differences(&mut self) -> Result<()> {
        let changes = self.compare().await?;
        let mut part = Changes::new();
        for (key, item) in changes {
            part.insert(key, item);
            if part.len() == CHUNK {
                self.send(std::mem::take(&mut part)).await;
            }
        }
        if !part.is_empty() {
            self.send(part).await;
        }
        Ok(())
    }

    async fn send(&self, changes: Changes) {
        // A receiver that is gone ends the watch elsewhere.
        let _ = self.out.send(changes).await;
    }

    /// Reads what changed and gives what differs.
    async fn read(&mut self, changed: &mut Changed) -> Result<Changes> {
        let Changed { keys, all } = std::mem::take(changed);
        if all {
            return self.compare().await;
        }
        let keys: Vec<String> = keys.into_iter().collect();
        let texts = texts(self.client, &keys).await?;
        Ok(texts.into_iter().filter_map(|(key, text)| self.learn(key, text)).collect())
    }

    /// Reads everything and gives what differs. What is known then is what is there.
    async fn compare(&mut self) -> Result<Changes> {
        let mut there = HashMap::new();
        if self.keys.is_empty() {
            for_all(self.client, |key, text| {
                there.insert(key, text);
            })
            .await?;
        } else {
            let texts = texts(self.client, &self.keys).await?;
            there.extend(texts.into_iter().filter_map(|(key, text)| Some((key, text?))));
        }
        let gone: Vec<String> = self.known.keys().filter(|key| !there.contains_key(*key)).cloned().collect();
        let gone = gone.into_iter().map(|key| (key, None));
        let now = gone.chain(there.into_iter().map(|(key, text)| (key, Some(text))));
        Ok(now.collect::<Vec<_>>().into_iter().filter_map(|(key, text)| self.learn(key, text)).collect())
    }

    /// Remembers the text of a key; the item for the receiver, if it does not know it yet.
    fn learn(&mut self, key: String, text: Option<String>) -> Option<(String, ConfigItem)> {
        match text {
            Some(text) => {
                let mut hasher = DefaultHasher::new();
                text.hash(&mut hasher);
                let hash = hasher.finish();
                let before = self.known.insert(key.clone(), hash);
                (before != Some(hash)).then(|| (key, item(&text)))
            }
            None => self.known.remove(&key).map(|_| (key, ConfigItem::default())),
        }
    }
}

impl Changed {
    fn is_empty(&self) -> bool {
        !self.all && self.keys.is_empty()
    }

    fn add(&mut self, key: &str) {
        if self.all || self.keys.contains(key) {
            return;
        }
        if self.keys.len() == MOST_CHANGED {
            self.keys.clear();
            self.all = true;
        } else {
            self.keys.insert(key.to_owned());
        }
    }
}

fn lost_connection(client: &Client, fault: Fault) -> Error {
    client.error(client.read("watch configuration"), fault)
}

/// The flags to set so that keyspace events of texts, deletions and expiries come; `None`
/// when they do.
fn wanted(flags: &str) -> Option<String> {
    // A stands for all classes of events.
    let missing: String =
        "Kg$xe".chars().filter(|c| !flags.contains(*c) && (*c == 'K' || !flags.contains('A'))).collect();
    (!missing.is_empty()).then(|| format!("{flags}{missing}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_added_to_those_that_are_set() {
        assert_eq!(wanted(""), Some("Kg$xe".to_owned()));
        assert_eq!(wanted("Ex"), Some("ExKg$e".to_owned()));
        assert_eq!(wanted("AE"), Some("AEK".to_owned()));
        assert_eq!(wanted("AKE"), None);
        assert_eq!(wanted("$gxeK"), None);
    }

    #[test]
    fn too_many_changed_keys_are_all_keys() {
        let mut changed = Changed::default();
        for i in 0..MOST_CHANGED {
            changed.add(&i.to_string());
        }
        assert!(!changed.all);
        changed.add("one more");
        assert!(changed.all && changed.keys.is_empty() && !changed.is_empty());
    }
}
