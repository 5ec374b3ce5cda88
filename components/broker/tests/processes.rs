//! Several real processes on one broker, some of which are killed or frozen.
//!
//! The test binary starts itself: `child` does nothing unless `BROKER_ROLE` says what to be.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking, like tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mecha_components_api::{
    BuildCx, Bytes, CancellationToken, Deliver, Delivery, Metadata, PubSub, Publish, Registry, Subscribe, Verdict,
    async_trait,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(60);
/// In-flight limit of the subscribers.
const W: usize = 8;
const CALLERS: usize = 4;

async fn broker(home: &Path, app: &str, pairs: &[(&str, &str)]) -> Arc<dyn PubSub> {
    let mut registry = Registry::new();
    mecha_broker::register(&mut registry);
    let metadata: Metadata = pairs.iter().copied().collect();
    let prepared = (registry.pubsub[0].prepare)(&metadata, "v1").unwrap();
    prepared.build(&BuildCx::for_app(app, "pubsub", home)).await.unwrap()
}

/// Lines that survive the death of whoever wrote them.
#[derive(Clone)]
struct Ledger(PathBuf);

impl Ledger {
    fn open(&self) -> File {
        OpenOptions::new().create(true).append(true).open(&self.0).unwrap()
    }

    /// Complete lines so far.
    fn lines(&self) -> Vec<String> {
        let mut text = String::new();
        if let Ok(mut file) = File::open(&self.0) {
            file.read_to_string(&mut text).unwrap();
        }
        let whole = text.rfind('\n').map_or(0, |i| i + 1);
        text[..whole].lines().map(str::to_owned).collect()
    }

    async fn until(&self, what: &str, done: impl Fn(&[String]) -> bool) {
        let since = Instant::now();
        loop {
            let lines = self.lines();
            if done(&lines) {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "{what}: {} lines", lines.len());
            sleep(Duration::from_millis(5)).await;
        }
    }
}

fn note(file: &File, line: &str) {
    let mut file = file;
    // One write call: whole lines even when the process dies.
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// A child that does not outlive the test.
struct Process(Child);

impl Process {
    fn start(role: &str, home: &Path, ledger: &Ledger, name: &str) -> Self {
        Self::start_with(role, home, ledger, name, "30s")
    }

    fn start_with(role: &str, home: &Path, ledger: &Ledger, name: &str, ack_wait: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
        command.env("BROKER_ROLE", role).env("BROKER_HOME", home).env("BROKER_NAME", name);
        command
            .env("BROKER_LEDGER", &ledger.0)
            .env("BROKER_ACK_WAIT", ack_wait)
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        Self(command.spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn child() {
    let Ok(role) = std::env::var("BROKER_ROLE") else { return };
    let home = PathBuf::from(std::env::var("BROKER_HOME").unwrap());
    let name = std::env::var("BROKER_NAME").unwrap();
    let ledger = Ledger(std::env::var("BROKER_LEDGER").unwrap().into());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        match role.as_str() {
            "publisher" => publisher(&home, &name, &ledger).await,
            "subscriber" => subscriber(&home, &ledger, None).await,
            "stuck" => subscriber(&home, &ledger, Some(home.join("go"))).await,
            other => panic!("no such role: {other}"),
        }
    });
}

/// Publishes without end: `try` before, `ack` after each.
async fn publisher(home: &Path, name: &str, ledger: &Ledger) {
    let broker = broker(home, "publisher", &[]).await;
    let file = Arc::new(ledger.open());
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (broker, file, name) = (broker.clone(), file.clone(), name.to_owned());
            tokio::spawn(async move {
                for n in 0.. {
                    let id = format!("{name}.{caller}.{n}");
                    note(&file, &format!("try {id}"));
                    let metadata = Metadata::new();
                    let data = Bytes::from(id.clone());
                    let publish = Publish { topic: "t", data, content_type: None, metadata: &metadata };
                    if broker.publish(publish).await.is_ok() {
                        note(&file, &format!("ack {id}"));
                    }
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
}

struct Noting {
    file: File,
    /// Wait for this file before the verdict, then stop.
    gate: Option<PathBuf>,
    stop: CancellationToken,
}

#[async_trait]
impl Deliver for Noting {
    async fn deliver(&self, msg: Delivery) -> Verdict {
        note(&self.file, &format!("got {}", String::from_utf8_lossy(&msg.data)));
        if let Some(gate) = &self.gate {
            while !gate.exists() {
                sleep(Duration::from_millis(10)).await;
            }
            self.stop.cancel();
        }
        Verdict::Ack
    }
}

async fn subscriber(home: &Path, ledger: &Ledger, gate: Option<PathBuf>) {
    let (w, ack_wait) = (W.to_string(), std::env::var("BROKER_ACK_WAIT").unwrap());
    let broker = broker(home, "subscriber", &[("maxInFlight", &w), ("ackWait", &ack_wait)]).await;
    let stop = CancellationToken::new();
    let to = Arc::new(Noting { file: ledger.open(), gate, stop: stop.clone() });
    let sub = Subscribe { topic: "t".into(), metadata: Metadata::new(), bulk: None };
    broker.subscribe(sub, to, stop).await.unwrap();
    note(&ledger.open(), "end");
}

/// Kills in a round: publishers and subscribers in turn, each after some progress.
fn kills() -> usize {
    if std::env::var_os("MECHA_TEST_LONG").is_some() { 1000 } else { 20 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acked_is_lost_when_publishers_and_subscribers_are_killed() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path();
    let published = Ledger(home.join("published"));
    let delivered = Ledger(home.join("delivered"));
    let publisher = |n: usize| Process::start("publisher", home, &published, &format!("p{n}"));
    let subscriber = |n: usize| Process::start("subscriber", home, &delivered, &format!("s{n}"));
    let mut publishers = vec![publisher(0), publisher(1)];
    let mut subscribers = vec![subscriber(0), subscriber(1)];
    let mut subscriber_kills = 0;
    for n in 0..kills() {
        // Uneven progress, so that deaths fall into every phase.
        let more = 1 + (n * 37) % 90;
        let (p, d) = (published.lines().len(), delivered.lines().len());
        published.until("publishing goes on", |l| l.len() >= p + more).await;
        delivered.until("delivery goes on", |l| l.len() >= d + more).await;
        if n % 2 == 0 {
            publishers.remove(0).kill();
            publishers.push(publisher(n + 2));
        } else {
            subscribers.remove(0).kill();
            subscriber_kills += 1;
            subscribers.push(subscriber(n + 2));
        }
    }
    publishers.into_iter().for_each(Process::kill);
    let lines = published.lines();
    let ids = |verb: &str| -> BTreeSet<String> {
        lines.iter().filter_map(|l| l.strip_prefix(verb)).map(|id| id.trim().to_owned()).collect()
    };
    let (tried, acked) = (ids("try "), ids("ack "));
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let since = Instant::now();
    loop {
        seen.clear();
        for id in delivered.lines().iter().filter_map(|l| l.strip_prefix("got ")) {
            *seen.entry(id.to_owned()).or_default() += 1;
        }
        let lost = acked.iter().filter(|id| !seen.contains_key(*id)).count();
        if lost == 0 {
            break;
        }
        assert!(since.elapsed() < PATIENCE, "{lost} of {} acked messages are lost", acked.len());
        sleep(Duration::from_millis(20)).await;
    }
    assert!(seen.keys().all(|id| tried.contains(id)), "something was delivered that nobody published");
    let duplicates: usize = seen.values().map(|n| n - 1).sum();
    assert!(duplicates <= subscriber_kills * W, "{duplicates} duplicates after {subscriber_kills} kills");
    println!("acked {}, delivered {}, duplicates {duplicates}", acked.len(), seen.len());
}

/// A subscriber in this process.
struct Local {
    got: parking_lot::Mutex<Vec<(String, Instant)>>,
    changed: Notify,
    /// What the first delivery waits for before it says Retry; the others are acknowledged.
    first: Option<Arc<Notify>>,
}

impl Local {
    fn new(first: Option<Arc<Notify>>) -> Arc<Self> {
        Arc::new(Self { got: parking_lot::Mutex::default(), changed: Notify::new(), first })
    }

    async fn until(&self, n: usize) -> Instant {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if let Some((_, at)) = self.got.lock().get(n - 1) {
                    return *at;
                }
                changed.await;
            }
        };
        timeout(PATIENCE, wait).await.expect("a delivery")
    }
}

#[async_trait]
impl Deliver for Local {
    async fn deliver(&self, msg: Delivery) -> Verdict {
        let n = {
            let mut got = self.got.lock();
            got.push((String::from_utf8_lossy(&msg.data).into_owned(), Instant::now()));
            got.len()
        };
        self.changed.notify_waiters();
        match (&self.first, n) {
            (Some(gate), 1) => {
                gate.notified().await;
                Verdict::Retry
            }
            _ => Verdict::Ack,
        }
    }
}

async fn publish(broker: &Arc<dyn PubSub>, text: &str) {
    let metadata = Metadata::new();
    let data = Bytes::copy_from_slice(text.as_bytes());
    broker.publish(Publish { topic: "t", data, content_type: None, metadata: &metadata }).await.unwrap();
}

fn subscribe(broker: &Arc<dyn PubSub>, to: &Arc<Local>) -> CancellationToken {
    let stop = CancellationToken::new();
    let sub = Subscribe { topic: "t".into(), metadata: Metadata::new(), bulk: None };
    let (broker, to, token) = (broker.clone(), to.clone(), stop.clone());
    tokio::spawn(async move { broker.subscribe(sub, to, token).await });
    stop
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sibling_takes_over_soon_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger(dir.path().join("ledger"));
    let broker = broker(dir.path(), "subscriber", &[]).await;
    let victim = Process::start("stuck", dir.path(), &ledger, "victim");
    publish(&broker, "x").await;
    ledger.until("the victim has it", |l| l == ["got x"]).await;
    let local = Local::new(None);
    let stop = subscribe(&broker, &local);
    victim.kill();
    let killed = Instant::now();
    let took = local.until(1).await.duration_since(killed);
    stop.cancel();
    println!("take-over after {took:?}");
    // Without notice of the death it would take the 30 s after which a message is given to somebody else.
    assert!(took < Duration::from_secs(15), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_process_cannot_acknowledge_what_was_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger(dir.path().join("ledger"));
    let broker = broker(dir.path(), "subscriber", &[("ackWait", "2s")]).await;
    let sleeper = Process::start_with("stuck", dir.path(), &ledger, "sleeper", "2s");
    publish(&broker, "x").await;
    ledger.until("the sleeper has it", |l| l == ["got x"]).await;
    sleeper.signal(Signal::STOP);
    let gate = Arc::new(Notify::new());
    let local = Local::new(Some(gate.clone()));
    let stop = subscribe(&broker, &local);
    local.until(1).await;
    // Awake again, the other one says Ack and leaves.
    fs::write(dir.path().join("go"), "").unwrap();
    sleeper.signal(Signal::CONT);
    ledger.until("the sleeper is done", |l| l.last().is_some_and(|l| l == "end")).await;
    // Had it counted, the message would not come again.
    gate.notify_one();
    local.until(2).await;
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_in_one_group_share_without_duplicates() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger(dir.path().join("ledger"));
    let broker = broker(dir.path(), "somebody", &[]).await;
    let members = [0, 1].map(|n| Process::start("subscriber", dir.path(), &ledger, &format!("s{n}")));
    let want: Vec<String> = (0..500).map(|n| format!("got {n:04}")).collect();
    for n in 0..500 {
        publish(&broker, &format!("{n:04}")).await;
    }
    ledger.until("all", |l| l.len() >= 500).await;
    let since = Instant::now();
    while mecha_broker::stats(&dir.path().join("data/broker")).unwrap().topics[0].groups[0].lag > 0 {
        assert!(since.elapsed() < PATIENCE);
        sleep(Duration::from_millis(10)).await;
    }
    drop(members);
    let mut lines = ledger.lines();
    lines.sort();
    assert_eq!(lines, want);
}

/// A file system of its own, so small that it fills up.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Result<Self, String> {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs"]).arg(at);
        match command.output() {
            Ok(out) if out.status.success() => Ok(Self(at.to_owned())),
            Ok(out) => Err(String::from_utf8_lossy(&out.stderr).trim().to_owned()),
            Err(e) => Err(e.to_string()),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_messages_loses_none_and_heals() {
    let dir = tempfile::tempdir().unwrap();
    let disk = match SmallDisk::mount(dir.path()) {
        Ok(disk) => disk,
        Err(why) => {
            eprintln!("NOT RUN: a full disk needs the right to mount a tmpfs: {why}");
            return;
        }
    };
    let broker = broker(dir.path(), "subscriber", &[]).await;
    let ballast = disk.0.join("ballast");
    fs::write(&ballast, vec![0; 2 << 20]).unwrap();
    let metadata = Metadata::new();
    let mut acked = Vec::new();
    let failure = loop {
        let text = format!("{:06}{}", acked.len(), "x".repeat(20_000));
        let data = Bytes::from(text.clone());
        match broker.publish(Publish { topic: "t", data, content_type: None, metadata: &metadata }).await {
            Ok(()) => acked.push(text),
            Err(e) => break e,
        }
        assert!(acked.len() < 1000, "the disk never filled up");
    };
    println!("after {} messages: {failure}", acked.len());
    assert_eq!(failure.kind(), mecha_components_api::ErrorKind::Unavailable);
    // While it is full, a subscription neither ends nor loses anything.
    let local = Local::new(None);
    let stop = subscribe(&broker, &local);
    assert!(broker.ping().await.is_ok(), "reading goes on");
    fs::remove_file(&ballast).unwrap();
    local.until(acked.len()).await;
    publish(&broker, "after").await;
    local.until(acked.len() + 1).await;
    stop.cancel();
    let mut got: Vec<String> = local.got.lock().iter().map(|(text, _)| text.clone()).collect();
    got.sort();
    acked.push("after".to_owned());
    assert_eq!(got, acked, "each once");
    broker.close().await;
}
