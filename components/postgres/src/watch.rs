//! Changes of the configuration table, without a gap.
//!
//! A connection of its own listens; its driver future is polled by the watch itself. Reading
//! the table comes after LISTEN took effect, so every change is either in what was read or
//! announced afterwards. After a lost connection the same is done again and the difference
//! is sent.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use mecha_components_api::{Changes, ConfigItem, Result};
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_postgres::{AsyncMessage, Connection, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::client::{Client, jitter};
use crate::config::PgConfig;
use crate::configuration::{Reader, metadata, numeric, plain};
use crate::error::Fault;
use crate::sql::quote_name;
use crate::tls;

/// First and longest pause between two connections.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// A connection on which nothing was heard for this long is asked whether it lives.
const QUIET: Duration = Duration::from_secs(8);
/// How long it may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

pub(crate) struct Watch<'a> {
    server: &'a PgConfig,
    tls: Option<MakeRustlsConnect>,
    client: &'a Client,
    reader: &'a Reader,
    listen: String,
    keys: Vec<String>,
}

/// What was sent last, or was there at the start.
#[derive(Debug, Default)]
struct Known(Option<BTreeMap<String, ConfigItem>>);

/// What a notification calls for.
#[derive(Debug, PartialEq)]
enum Next {
    Nothing,
    Send(Changes),
    /// The key, and whether a row of it was deleted.
    ReadAgain(String, bool),
}

impl<'a> Watch<'a> {
    pub(crate) fn new(
        server: &'a PgConfig,
        client: &'a Client,
        reader: &'a Reader,
        channel: &str,
        keys: Vec<String>,
    ) -> Result<Self> {
        let plain = channel.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        // A plain name is folded to lower case, as it is where Dapr sends it without quotes.
        let channel = if plain { channel.to_ascii_lowercase() } else { channel.to_owned() };
        let tls = server.tls.as_ref().map(tls::connector).transpose()?;
        Ok(Self { server, tls, client, reader, listen: format!("LISTEN {}", quote_name(&channel)), keys })
    }

    /// Ends only when nobody receives any more.
    pub(crate) async fn run(&self, out: mpsc::Sender<Changes>) -> Result<()> {
        let mut known = Known::default();
        let mut pause = BACKOFF.0;
        loop {
            let started = Instant::now();
            match self.session(&mut known, &out).await {
                Ok(()) => return Ok(()),
                Err(fault) => {
                    tracing::warn!(error = %fault.error, "lost the connection that listens for changes; connecting again");
                }
            }
            if started.elapsed() > BACKOFF.1 {
                pause = BACKOFF.0;
            }
            tokio::select! {
                () = sleep(jitter(pause)) => {}
                () = out.closed() => return Ok(()),
            }
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    async fn session(&self, known: &mut Known, out: &mpsc::Sender<Changes>) -> std::result::Result<(), Fault> {
        let by = Instant::now() + self.server.timeout;
        let connect = &self.server.connect;
        match &self.tls {
            None => {
                let (client, connection) = within(by, connect.connect(NoTls)).await?;
                self.listen(client, connection, by, known, out).await
            }
            Some(tls) => {
                let (client, connection) = within(by, connect.connect(tls.clone())).await?;
                self.listen(client, connection, by, known, out).await
            }
        }
    }

    async fn listen<S, T>(
        &self,
        client: tokio_postgres::Client,
        mut connection: Connection<S, T>,
        by: Instant,
        known: &mut Known,
        out: &mpsc::Sender<Changes>,
    ) -> std::result::Result<(), Fault>
    where
        S: AsyncRead + AsyncWrite + Unpin,
        T: AsyncRead + AsyncWrite + Unpin,
    {
        // Notifications that come while an answer is awaited.
        let mut early = Vec::new();
        let listening = client.batch_execute(&self.listen);
        match timeout_at(by, drive(&mut connection, listening, &mut early)).await {
            Ok(outcome) => outcome?,
            Err(_) => return Err(Fault::no_answer()),
        }
        let names: Vec<&str> = self.keys.iter().map(String::as_str).collect();
        let now = self.reader.read(self.client, &names).await.map_err(Fault::refused)?;
        if !send(out, known.differs(now)).await {
            return Ok(());
        }
        loop {
            for payload in std::mem::take(&mut early) {
                if !self.settle(&payload, known, out).await? {
                    return Ok(());
                }
            }
            let message = tokio::select! {
                () = out.closed() => return Ok(()),
                message = timeout(QUIET, poll_fn(|cx| connection.poll_message(cx))) => message,
            };
            match message {
                Ok(Some(Ok(AsyncMessage::Notification(n)))) => early.push(n.payload().to_owned()),
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(e))) => return Err(Fault::of(&e)),
                Ok(None) => return Err(Fault::no_answer()),
                // A peer that is gone without a word is found by asking.
                Err(_) => {
                    match timeout(ANSWER_LIMIT, drive(&mut connection, client.check_connection(), &mut early)).await {
                        Ok(outcome) => outcome?,
                        Err(_) => return Err(Fault::no_answer()),
                    }
                }
            }
        }
    }

    /// Sends what a notification says. False when nobody receives any more.
    async fn settle(
        &self,
        payload: &str,
        known: &mut Known,
        out: &mpsc::Sender<Changes>,
    ) -> std::result::Result<bool, Fault> {
        let changes = match known.next(payload, &self.keys) {
            Next::Nothing => return Ok(true),
            Next::Send(changes) => changes,
            Next::ReadAgain(key, deleted) => {
                let now = self.reader.read(self.client, &[&key]).await.map_err(Fault::refused)?;
                known.one_differs(&key, now, deleted)
            }
        };
        Ok(send(out, changes).await)
    }
}

async fn send(out: &mpsc::Sender<Changes>, changes: Changes) -> bool {
    changes.is_empty() || out.send(changes).await.is_ok()
}

async fn within<T>(
    by: Instant,
    connecting: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>,
) -> std::result::Result<T, Fault> {
    match timeout_at(by, connecting).await {
        Ok(Ok(made)) => Ok(made),
        Ok(Err(e)) => Err(Fault::on_connect(&e)),
        Err(_) => Err(Fault::no_answer()),
    }
}

/// Moves the connection's bytes until `work` is done.
async fn drive<S, T>(
    connection: &mut Connection<S, T>,
    work: impl Future<Output = std::result::Result<(), tokio_postgres::Error>>,
    early: &mut Vec<String>,
) -> std::result::Result<(), Fault>
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut work = std::pin::pin!(work);
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(outcome) = work.as_mut().poll(cx) {
                return Poll::Ready(outcome.map_err(|e| Fault::of(&e)));
            }
            match connection.poll_message(cx) {
                Poll::Ready(Some(Ok(AsyncMessage::Notification(n)))) => early.push(n.payload().to_owned()),
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(e))) => return Poll::Ready(Err(Fault::of(&e))),
                Poll::Ready(None) => return Poll::Ready(Err(Fault::no_answer())),
                // The answer may have been handed to `work` just now; it wakes us then.
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}

impl Known {
    /// Takes over what the table holds and gives the difference; the first time there is none.
    fn differs(&mut self, now: Changes) -> Changes {
        let Some(before) = &mut self.0 else {
            self.0 = Some(now);
            return Changes::new();
        };
        let mut changes = Changes::new();
        for key in before.keys().filter(|k| !now.contains_key(*k)) {
            changes.insert(key.clone(), ConfigItem::default());
        }
        before.retain(|key, _| now.contains_key(key));
        for (key, item) in now {
            if before.get(&key).is_none_or(|old| *old != item && !backwards(old, &item)) {
                before.insert(key.clone(), item.clone());
                changes.insert(key, item);
            }
        }
        changes
    }

    /// The same for one key. After a deletion versions may begin anew.
    fn one_differs(&mut self, key: &str, mut now: Changes, deleted: bool) -> Changes {
        let before = self.0.get_or_insert_default();
        let mut changes = Changes::new();
        match (now.remove(key), before.get(key)) {
            (Some(item), old) if old.is_none_or(|old| *old != item && (deleted || !backwards(old, &item))) => {
                before.insert(key.to_owned(), item.clone());
                changes.insert(key.to_owned(), item);
            }
            (None, Some(_)) => {
                before.remove(key);
                changes.insert(key.to_owned(), ConfigItem::default());
            }
            _ => {}
        }
        changes
    }

    /// Reads a payload: `{"action": …, "data": {"key", "value", "version", "metadata"}}`.
    fn next(&mut self, payload: &str, keys: &[String]) -> Next {
        let Some((key, item, deleted)) = parse(payload) else {
            tracing::warn!(
                "a notification was not understood: expected {{\"data\":{{\"key\",\"value\",\"version\",\"metadata\"}}}}"
            );
            return Next::Nothing;
        };
        if !keys.is_empty() && !keys.contains(&key) {
            return Next::Nothing;
        }
        // What the row said before it was deleted is no news, and another row may hold the key.
        let Some(item) = item.filter(|_| !deleted) else { return Next::ReadAgain(key, deleted) };
        let before = self.0.get_or_insert_default();
        let new = numeric(&item.version);
        match before.get(&key).map(|old| (numeric(&old.version), old == &item)) {
            Some((_, true)) => Next::Nothing,
            Some((old, _)) if new >= 0 && new < old => Next::Nothing,
            // Only a number tells which of two is the later one.
            Some((old, _)) if new < 0 || new == old => Next::ReadAgain(key, false),
            _ => {
                before.insert(key.clone(), item.clone());
                Next::Send([(key, item)].into_iter().collect())
            }
        }
    }
}

/// Versions never go back.
fn backwards(old: &ConfigItem, new: &ConfigItem) -> bool {
    numeric(&new.version) >= 0 && numeric(&new.version) < numeric(&old.version)
}

/// Key, item if the payload has a value, and whether the row was deleted.
fn parse(payload: &str) -> Option<(String, Option<ConfigItem>, bool)> {
    let members: BTreeMap<String, &RawValue> = serde_json::from_str(payload).ok()?;
    let deleted = members.get("action").is_some_and(|action| plain(action).eq_ignore_ascii_case("DELETE"));
    let data: BTreeMap<String, &RawValue> = serde_json::from_str(members.get("data")?.get()).ok()?;
    let mut key = None;
    let (mut item, mut complete) = (ConfigItem::default(), false);
    for (name, value) in data {
        match name.to_ascii_lowercase().as_str() {
            "key" => key = serde_json::from_str::<String>(value.get()).ok(),
            "value" => (item.value, complete) = (plain(value), true),
            "version" => item.version = plain(value),
            "metadata" => item.metadata = metadata(value.get()),
            _ => {}
        }
    }
    Some((key?, complete.then_some(item), deleted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(value: &str, version: &str) -> ConfigItem {
        ConfigItem { value: value.into(), version: version.into(), ..ConfigItem::default() }
    }

    fn changes(items: &[(&str, ConfigItem)]) -> Changes {
        items.iter().map(|(k, i)| ((*k).to_owned(), i.clone())).collect()
    }

    fn payload(key: &str, value: &str, version: &str) -> String {
        serde_json::json!({"table": "t", "action": "UPDATE", "data": {"key": key, "value": value, "version": version, "metadata": null}})
            .to_string()
    }

    #[test]
    fn a_reconnect_sends_what_was_missed_once() {
        let mut known = Known::default();
        assert!(known.differs(changes(&[("a", item("1", "1")), ("b", item("1", "1"))])).is_empty(), "no snapshot");
        let now = changes(&[("a", item("2", "2")), ("c", item("1", "1"))]);
        let missed = known.differs(now.clone());
        assert_eq!(missed, changes(&[("a", item("2", "2")), ("b", ConfigItem::default()), ("c", item("1", "1"))]));
        assert!(known.differs(now).is_empty());
        assert_eq!(known.next(&payload("a", "2", "2"), &[]), Next::Nothing, "announced late, known already");
    }

    #[test]
    fn versions_do_not_go_back() {
        let mut known = Known::default();
        known.differs(changes(&[("a", item("5", "5"))]));
        assert_eq!(known.next(&payload("a", "4", "4"), &[]), Next::Nothing);
        assert_eq!(known.next(&payload("a", "6", "6"), &[]), Next::Send(changes(&[("a", item("6", "6"))])));
        assert_eq!(known.next(&payload("a", "other", "6"), &[]), Next::ReadAgain("a".into(), false));
        assert_eq!(known.next(&payload("a", "x", "no number"), &[]), Next::ReadAgain("a".into(), false));
        assert!(known.differs(changes(&[("a", item("3", "3"))])).is_empty());
    }

    #[test]
    fn a_deleted_key_is_an_empty_item() {
        let mut known = Known::default();
        known.differs(changes(&[("a", item("1", "1"))]));
        let delete = r#"{"action":"DELETE","data":{"key":"a","value":"1","version":"1"}}"#;
        assert_eq!(known.next(delete, &[]), Next::ReadAgain("a".into(), true));
        assert_eq!(known.one_differs("a", Changes::new(), true), changes(&[("a", ConfigItem::default())]));
        assert!(known.one_differs("a", Changes::new(), true).is_empty());
        // Written again, it may begin with a low version.
        assert_eq!(known.next(&payload("a", "1", "1"), &[]), Next::Send(changes(&[("a", item("1", "1"))])));
    }

    #[test]
    fn numbers_keep_their_digits() {
        let payload = r#"{"data":{"key":"a","value":0.10,"version":3,
            "metadata":{"n":5.0142262577893e-311,"big":123456789012345678901,"s":"x","none":null}}}"#;
        let (_, item, _) = parse(payload).unwrap();
        let metadata = [("big", "123456789012345678901"), ("n", "5.0142262577893e-311"), ("none", ""), ("s", "x")];
        let metadata = metadata.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        assert_eq!(item, Some(ConfigItem { value: "0.10".into(), version: "3".into(), metadata }));
    }

    #[test]
    fn only_the_keys_asked_for() {
        let mut known = Known::default();
        known.differs(Changes::new());
        assert_eq!(known.next(&payload("b", "1", "1"), &["a".into()]), Next::Nothing);
        assert_ne!(known.next(&payload("a", "1", "1"), &["a".into()]), Next::Nothing);
        for odd in ["", "{}", "[]", r#"{"data":1}"#, r#"{"data":{"value":"x"}}"#] {
            assert_eq!(known.next(odd, &[]), Next::Nothing, "{odd}");
        }
        assert_eq!(known.next(r#"{"data":{"key":"a"}}"#, &[]), Next::ReadAgain("a".into(), false), "no value in it");
    }
}
