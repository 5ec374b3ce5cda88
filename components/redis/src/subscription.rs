//! One subscription: reads what handlers are free for, acknowledges what they settled, and
//! takes over what others left behind.

use std::collections::{HashSet, VecDeque};
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use mecha_components_api::{CancellationToken, Deliver, Delivery, Verdict};
use redis::{Cmd, Value};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, warn};
use uuid::Uuid;

use crate::client::{Client, Trouble};
use crate::config::LONGEST_SILENCE;
use crate::connect::Wire;
use crate::error::{Fault, is, is_unknown_command};
use crate::script::{Script, script};
use crate::stream::{self, Claimed, Entry};

/// Longest time one read waits at the server.
const BLOCK: Duration = Duration::from_secs(3);
/// Pauses after a failed request to the server.
const TROUBLE_FIRST: Duration = Duration::from_millis(50);
const TROUBLE_LONGEST: Duration = Duration::from_secs(2);
/// How long a verdict is offered to a failing server once the subscription stops.
const SETTLE_AT_STOP: Duration = Duration::from_secs(5);
/// Pause after the app gave a message back, before more are read.
const RELEASE_PAUSE: Duration = Duration::from_millis(100);
/// Time for the server to end a read that blocks.
const UNBLOCK: Duration = Duration::from_secs(1);
/// How often that is asked for: the read may not have begun when it was first.
const UNBLOCK_EVERY: Duration = Duration::from_millis(50);
/// Consumers of ours that are gone and hold nothing are removed after this time.
const CONSUMER_LIFE: Duration = Duration::from_secs(86_400);
/// The beginning and the end of the pending entries.
const FIRST: &str = "0-0";

/// Lets the next claim take an entry at once, unless another consumer has it by now.
/// KEYS: the stream. ARGV: group, consumer, id, idle time in ms.
static RELEASE: Script = script!(
    "local mine = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
     if #mine == 0 then return 0 end
     redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'IDLE', ARGV[4], 'JUSTID')
     return 1"
);

/// Removes this consumer if it holds nothing, for what it holds would be lost with it, and
/// others of ours that have been gone for long. Their names begin with the prefix and have
/// the length of ours. KEYS: the stream. ARGV: group, consumer, prefix, idle time in ms.
static LEAVE: Script = script!(
    "local gone = 0
     for _, facts in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
       local c = {}
       for i = 1, #facts, 2 do c[facts[i]] = facts[i + 1] end
       local ours = #c.name == #ARGV[2] and string.sub(c.name, 1, #ARGV[3]) == ARGV[3]
       if c.pending == 0 and (c.name == ARGV[2] or (ours and c.idle > tonumber(ARGV[4]))) then
         redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], c.name)
         gone = gone + 1
       end
     end
     return gone"
);

/// How messages are taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Consume {
    /// How often, and after which idle time, messages are delivered again.
    pub(crate) redeliver: Option<(Duration, Duration)>,
    /// Most messages at the handlers.
    pub(crate) concurrency: usize,
    /// Most messages in one read.
    pub(crate) depth: usize,
}

/// One subscription.
pub(crate) struct Subscription<'a> {
    client: &'a Client,
    topic: Arc<str>,
    group: &'a str,
    /// Unlike any other of the group, or two replicas would take each other's messages.
    consumer: String,
    consume: Consume,
    to: Arc<dyn Deliver>,
    stop: CancellationToken,
    /// The connection that blocks, as the server numbers it; 0 for none.
    reader_id: AtomicI64,
}

/// A connection that reads, if there is one.
#[derive(Default)]
struct Reader {
    wire: Option<Wire>,
    /// The group was found or made since the connection was.
    grouped: bool,
}

/// An entry that is held and waits for a handler.
struct Waiting {
    entry: Entry,
    since: Instant,
}

type Read = (Reader, Result<Vec<Entry>, Fault>);
type Slot<'a, T> = Option<Pin<Box<dyn Future<Output = T> + Send + 'a>>>;

impl<'a> Subscription<'a> {
    pub(crate) fn new(
        client: &'a Client,
        topic: Arc<str>,
        group: &'a str,
        consume: Consume,
        to: Arc<dyn Deliver>,
        stop: CancellationToken,
    ) -> Self {
        let consumer = format!("{group}-{}", Uuid::new_v4().simple());
        Self { client, topic, group, consumer, consume, to, stop, reader_id: AtomicI64::new(0) }
    }

    /// Runs until it is stopped or the component is closed; trouble is waited out.
    pub(crate) async fn run(self) {
        let max = self.consume.concurrency;
        let mut flight = FuturesUnordered::new();
        let mut backlog: VecDeque<Waiting> = VecDeque::new();
        let mut held: HashSet<String> = HashSet::new();
        let mut reader = Some(Reader::default());
        let mut reading: Slot<'_, Read> = None;
        let mut claiming: Slot<'_, Result<Claimed, Fault>> = None;
        let mut cursor = FIRST.to_owned();
        let mut trouble = Trouble::new(TROUBLE_FIRST, TROUBLE_LONGEST);
        let mut not_before = Instant::now();
        // At once: what a former life of this app left behind may be ready.
        let mut claim_at = Instant::now();

        loop {
            while flight.len() < max
                && let Some(waiting) = backlog.pop_front()
            {
                if self.has_lost(&waiting) {
                    held.remove(&waiting.entry.id);
                    continue;
                }
                flight.push(self.handle(waiting.entry));
            }
            let now = Instant::now();
            let free = max.saturating_sub(flight.len() + backlog.len());
            if free > 0
                && now >= not_before
                && let Some(reader) = reader.take()
            {
                reading = Some(Box::pin(self.read(reader, free.min(self.consume.depth))));
            }
            tokio::select! {
                biased;
                () = self.stopping() => break,
                Some((id, verdict)) = flight.next(), if !flight.is_empty() => {
                    held.remove(&id);
                    if verdict == Verdict::Release {
                        not_before = Instant::now() + RELEASE_PAUSE;
                    }
                }
                (back, outcome) = wait(&mut reading) => {
                    match outcome {
                        Ok(entries) => {
                            trouble.over();
                            keep(entries, &mut held, &mut backlog);
                        }
                        Err(fault) => {
                            let pause = trouble.pause();
                            if trouble.is_news() {
                                self.report("read", fault);
                            }
                            not_before = Instant::now() + pause;
                        }
                    }
                    reader = Some(back);
                }
                outcome = wait(&mut claiming) => match outcome {
                    Ok(claimed) => {
                        cursor = claimed.next;
                        if cursor != FIRST {
                            // There may be more.
                            claim_at = Instant::now();
                        }
                        keep(claimed.entries, &mut held, &mut backlog);
                    }
                    Err(fault) => {
                        cursor = FIRST.to_owned();
                        self.report_claim(fault);
                    }
                },
                () = self.claim_time(claim_at), if claiming.is_none() && free > 0 => {
                    let Some((every, after)) = self.consume.redeliver else { continue };
                    claim_at = Instant::now() + every;
                    claiming = Some(Box::pin(self.claim(std::mem::take(&mut cursor), free, after)));
                }
                () = sleep_until(not_before), if reader.is_some() && free > 0 => {}
            }
        }

        // What no handler has goes back; what handlers have is finished.
        let give_back = async {
            if let Some(reading) = reading {
                backlog.extend(self.end_read(reading).await.into_iter().map(Waiting::new));
            }
            if let Some(claiming) = claiming
                && let Ok(Ok(claimed)) = timeout(UNBLOCK, claiming).await
            {
                let new = claimed.entries.into_iter().filter(|e| !held.contains(&e.id));
                backlog.extend(new.map(Waiting::new));
            }
            for waiting in &backlog {
                self.release(&waiting.entry.id).await;
            }
        };
        let finish = async { while flight.next().await.is_some() {} };
        tokio::join!(give_back, finish);
        self.leave().await;
    }

    async fn stopping(&self) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = self.client.closed().cancelled() => {}
        }
    }

    fn is_stopping(&self) -> bool {
        self.stop.is_cancelled() || self.client.closed().is_cancelled()
    }

    /// Waited so long for a handler that another consumer may have taken it.
    fn has_lost(&self, waiting: &Waiting) -> bool {
        self.consume.redeliver.is_some_and(|(_, after)| waiting.since.elapsed() >= after)
    }

    async fn claim_time(&self, at: Instant) {
        match self.consume.redeliver {
            Some(_) => sleep_until(at).await,
            None => pending().await,
        }
    }

    /// Connects if need be, and reads up to `count` entries that nobody got yet.
    async fn read(&self, mut reader: Reader, count: usize) -> Read {
        match self.try_read(&mut reader, count).await {
            Ok(entries) => (reader, Ok(entries)),
            // The group is gone, with the stream or alone: it is made again.
            Err(Fault::Sent(e)) if is(&e, "NOGROUP") => {
                if reader.grouped {
                    warn!(
                        target: "dapr.contrib",
                        topic = &*self.topic, group = self.group,
                        "the consumer group is gone; making it again from the beginning of the stream"
                    );
                }
                reader.grouped = false;
                match self.try_read(&mut reader, count).await {
                    Ok(entries) => (reader, Ok(entries)),
                    Err(fault) => (Reader::default(), Err(fault)),
                }
            }
            // Whatever else it was: a new connection is the way out.
            Err(fault) => {
                self.reader_id.store(0, Ordering::Relaxed);
                (Reader::default(), Err(fault))
            }
        }
    }

    async fn try_read(&self, reader: &mut Reader, count: usize) -> Result<Vec<Entry>, Fault> {
        let mut wire = match reader.wire.take() {
            Some(wire) => wire,
            None => self.connect().await?,
        };
        if !reader.grouped {
            self.make_group().await?;
            reader.grouped = true;
            self.to.attached();
        }
        let block = self.block();
        let mut cmd = redis::cmd("XREADGROUP");
        cmd.arg("GROUP").arg(self.group).arg(&self.consumer).arg("COUNT").arg(count);
        cmd.arg("BLOCK").arg(millis(block)).arg("STREAMS").arg(&*self.topic).arg(">");
        let value = ask(&mut wire, &cmd, self.answer()).await?;
        reader.wire = Some(wire);
        stream::read(value).ok_or_else(|| Fault::Sent(strange()))
    }

    async fn connect(&self) -> Result<Wire, Fault> {
        let mut wire = self.client.dedicated(self.answer()).await?;
        if matches!(wire, Wire::Node(_)) {
            let mut cmd = redis::cmd("CLIENT");
            cmd.arg("ID");
            // Without it a stopping subscription waits for its last read.
            if let Ok(Value::Int(id)) = ask(&mut wire, &cmd, self.client.config().read).await {
                self.reader_id.store(id, Ordering::Relaxed);
            }
        }
        Ok(wire)
    }

    fn block(&self) -> Duration {
        BLOCK.min(self.client.config().read)
    }

    /// Longer than the server may block: silence beyond is a dead connection.
    fn answer(&self) -> Duration {
        self.block() + self.client.config().read.min(LONGEST_SILENCE)
    }

    async fn make_group(&self) -> Result<(), Fault> {
        let mut cmd = redis::cmd("XGROUP");
        cmd.arg("CREATE").arg(&*self.topic).arg(self.group).arg("0").arg("MKSTREAM");
        match self.client.try_call(self.client.repeatable_write("make the consumer group"), &cmd).await {
            Err(Fault::Sent(e)) if is(&e, "BUSYGROUP") => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    /// Takes over entries that were without a verdict for `after`, our own among them: for
    /// those that a handler still has, that only renews the time.
    async fn claim(&self, cursor: String, count: usize, after: Duration) -> Result<Claimed, Fault> {
        let cursor = if cursor.is_empty() { FIRST } else { &cursor };
        let mut cmd = redis::cmd("XAUTOCLAIM");
        cmd.arg(&*self.topic).arg(self.group).arg(&self.consumer).arg(millis(after)).arg(cursor);
        cmd.arg("COUNT").arg(count);
        let value = self.client.try_call(self.client.write("claim"), &cmd).await?;
        stream::claimed(value).ok_or_else(|| Fault::Sent(strange()))
    }

    /// Delivers one entry and stores its verdict.
    async fn handle(&self, entry: Entry) -> (String, Verdict) {
        let Entry { id, data, metadata } = entry;
        let delivery = Delivery { topic: Arc::clone(&self.topic), data, metadata, content_type: None };
        let verdict = self.to.deliver(delivery).await;
        match verdict {
            Verdict::Ack => self.acknowledge(&id).await,
            // It stays pending, and its time runs since it was read.
            Verdict::Retry => {}
            Verdict::Release => self.release(&id).await,
        }
        (id, verdict)
    }

    /// Offers the acknowledgement until the server took it.
    async fn acknowledge(&self, id: &str) {
        let mut cmd = redis::cmd("XACK");
        cmd.arg(&*self.topic).arg(self.group).arg(id);
        let op = self.client.repeatable_write("acknowledge");
        let mut trouble = Trouble::new(TROUBLE_FIRST, TROUBLE_LONGEST);
        let mut stopped_at = None;
        while let Err(fault) = self.client.try_call(op, &cmd).await {
            if matches!(fault, Fault::Closed) {
                return;
            }
            if self.is_stopping() && stopped_at.get_or_insert_with(Instant::now).elapsed() > SETTLE_AT_STOP {
                warn!(target: "dapr.contrib", topic = &*self.topic, id, "gave an acknowledgement up; the message is delivered again");
                return;
            }
            let pause = trouble.pause();
            if trouble.is_news() {
                self.report("acknowledge", fault);
            }
            sleep(pause).await;
        }
    }

    /// Gives an entry back, best effort: its time runs out in any case.
    async fn release(&self, id: &str) {
        let Some((_, after)) = self.consume.redeliver else { return };
        let op = self.client.repeatable_write("release");
        let idle = millis(after).to_string();
        let run = RELEASE.run().key(&self.topic).arg(self.group).arg(&self.consumer).arg(id).arg(&idle);
        if let Err(fault) = run.on(self.client, op).await {
            debug!(target: "dapr.contrib", topic = &*self.topic, id, "{}", self.client.error(op, fault));
        }
    }

    /// Ends a read that may block, and gives what it still got.
    async fn end_read(&self, mut reading: Pin<Box<dyn Future<Output = Read> + Send + '_>>) -> Vec<Entry> {
        let id = self.reader_id.load(Ordering::Relaxed);
        let until = Instant::now() + UNBLOCK;
        let mut cmd = redis::cmd("CLIENT");
        cmd.arg("UNBLOCK").arg(id);
        while id != 0 && Instant::now() < until && !self.client.closed().is_cancelled() {
            // The read ends by itself, too, when the server is not there.
            let unblocked = self.client.try_call(self.client.read("end the read"), &cmd);
            if timeout(UNBLOCK, unblocked).await.is_err() {
                break;
            }
            if let Ok((_, outcome)) = timeout(UNBLOCK_EVERY, &mut reading).await {
                return outcome.unwrap_or_default();
            }
        }
        Vec::new()
    }

    /// Removes this consumer and old ones from the group, best effort.
    async fn leave(&self) {
        let op = self.client.repeatable_write("leave the group");
        let (prefix, idle) = (format!("{}-", self.group), millis(CONSUMER_LIFE).to_string());
        let run = LEAVE.run().key(&self.topic).arg(self.group).arg(&self.consumer).arg(&prefix).arg(&idle);
        if let Ok(Err(fault)) = timeout(UNBLOCK, run.on(self.client, op)).await {
            debug!(target: "dapr.contrib", topic = &*self.topic, "{}", self.client.error(op, fault));
        }
    }

    fn report(&self, what: &'static str, fault: Fault) {
        let error = self.client.error(self.client.read(what), fault);
        warn!(target: "dapr.contrib", topic = &*self.topic, group = self.group, "{error}; trying again");
    }

    fn report_claim(&self, fault: Fault) {
        match &fault {
            // The read makes it again.
            Fault::Sent(e) if is(e, "NOGROUP") => {}
            Fault::Sent(e) if is_unknown_command(e) => warn!(
                target: "dapr.contrib",
                topic = &*self.topic,
                "messages are not delivered again: that needs XAUTOCLAIM, which came with Redis 6.2"
            ),
            _ => self.report("claim", fault),
        }
    }
}

impl Waiting {
    fn new(entry: Entry) -> Self {
        Self { entry, since: Instant::now() }
    }
}

/// Queues entries that are not held already.
fn keep(entries: Vec<Entry>, held: &mut HashSet<String>, backlog: &mut VecDeque<Waiting>) {
    for entry in entries {
        if held.insert(entry.id.clone()) {
            backlog.push_back(Waiting::new(entry));
        }
    }
}

/// One command on a connection of our own.
async fn ask(wire: &mut Wire, cmd: &Cmd, limit: Duration) -> Result<Value, Fault> {
    match timeout(limit, cmd.query_async(wire)).await {
        Ok(outcome) => outcome.map_err(Fault::Sent),
        Err(_) => Err(Fault::Silent),
    }
}

/// The outcome of `slot`, which is emptied; never, while it is empty.
async fn wait<T>(slot: &mut Slot<'_, T>) -> T {
    match slot {
        Some(future) => {
            let outcome = future.await;
            *slot = None;
            outcome
        }
        None => pending().await,
    }
}

fn strange() -> redis::RedisError {
    redis::RedisError::from((redis::ErrorKind::UnexpectedReturnType, "the answer has another form than expected"))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
