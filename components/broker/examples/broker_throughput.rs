//! Figures of the broker on this machine's disk:
//! `cargo run --release -p mecha-broker --example broker_throughput [folder]`

use std::error::Error;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mecha_components_api::{
    BuildCx, Bytes, CancellationToken, Deliver, Delivery, Metadata, PubSub, Publish, Registry, Subscribe, Verdict,
    async_trait,
};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

type Failure = Box<dyn Error + Send + Sync>;

const MESSAGE_BYTES: usize = 1024;
const SAMPLES: usize = 1000;

fn main() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("--listen") => runtime.block_on(listen(Path::new(&args[2]))),
        Some(folder) => runtime.block_on(measure(Path::new(folder))),
        None => {
            let dir = std::env::temp_dir().join(format!("mecha-broker-{}", std::process::id()));
            let outcome = runtime.block_on(measure(&dir));
            std::fs::remove_dir_all(&dir)?;
            outcome
        }
    }
}

async fn broker(home: &Path, app: &str, pairs: &[(&str, &str)]) -> Result<Arc<dyn PubSub>, Failure> {
    let mut registry = Registry::new();
    mecha_broker::register(&mut registry);
    let metadata: Metadata = pairs.iter().copied().collect();
    let prepared = (registry.pubsub[0].prepare)(&metadata, "v1")?;
    Ok(prepared.build(&BuildCx::for_app(app, "pubsub", home)).await?)
}

async fn measure(home: &Path) -> Result<(), Failure> {
    let broker = broker(home, "bench", &[("maxInFlight", "64")]).await?;
    for callers in [1, 16, 64] {
        publish(&broker, callers).await?;
    }
    bulk(&broker).await?;
    deliver(&broker).await?;
    latency(home, &broker).await?;
    idle(&broker).await?;
    broker.close().await;
    Ok(())
}

async fn publish(broker: &Arc<dyn PubSub>, callers: usize) -> Result<(), Failure> {
    let until = Instant::now() + Duration::from_secs(3);
    let mut tasks = Vec::new();
    for _ in 0..callers {
        let broker = broker.clone();
        tasks.push(tokio::spawn(async move {
            let (metadata, data) = (Metadata::new(), Bytes::from(vec![7; MESSAGE_BYTES]));
            let mut took = Vec::new();
            while Instant::now() < until {
                let since = Instant::now();
                let data = data.clone();
                broker.publish(Publish { topic: "bench", data, content_type: None, metadata: &metadata }).await?;
                took.push(since.elapsed());
            }
            Ok::<_, Failure>(took)
        }));
    }
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await??);
    }
    report(&format!("publish, {callers} callers, 1 KiB, fsync"), took.len() as f64 / 3.0, took);
    Ok(())
}

async fn bulk(broker: &Arc<dyn PubSub>) -> Result<(), Failure> {
    let Some(bulk) = broker.bulk() else { return Ok(()) };
    let (metadata, data) = (Metadata::new(), Bytes::from(vec![7; MESSAGE_BYTES]));
    let one = Publish { topic: "bench", data, content_type: None, metadata: &metadata };
    let since = Instant::now();
    let mut took = Vec::new();
    while since.elapsed() < Duration::from_secs(1) {
        let begun = Instant::now();
        bulk.publish_many(vec![one.clone(); 100]).await?;
        took.push(begun.elapsed());
    }
    report("bulk publish of 100", took.len() as f64 * 100.0 / since.elapsed().as_secs_f64(), took);
    Ok(())
}

#[derive(Default)]
struct Count {
    seen: AtomicUsize,
    news: Notify,
}

#[async_trait]
impl Deliver for Count {
    async fn deliver(&self, _msg: Delivery) -> Verdict {
        self.seen.fetch_add(1, Ordering::Relaxed);
        self.news.notify_one();
        Verdict::Ack
    }
}

/// Starts a subscription and returns what stops it.
fn subscribe(broker: &Arc<dyn PubSub>, topic: &str, pairs: &[(&str, &str)], to: Arc<dyn Deliver>) -> CancellationToken {
    let stop = CancellationToken::new();
    let sub = Subscribe { topic: topic.into(), metadata: pairs.iter().copied().collect(), bulk: None };
    let (broker, token) = (broker.clone(), stop.clone());
    tokio::spawn(async move { broker.subscribe(sub, to, token).await });
    stop
}

/// Reads what the publishers left, with durable acknowledgements.
async fn deliver(broker: &Arc<dyn PubSub>) -> Result<(), Failure> {
    const MESSAGES: usize = 40_000;
    for (in_flight, messages) in [("64", MESSAGES), ("16", MESSAGES), ("1", MESSAGES / 10)] {
        let count = Arc::new(Count::default());
        let since = Instant::now();
        let stop = subscribe(broker, "bench", &[("maxInFlight", in_flight)], count.clone());
        while count.seen.load(Ordering::Relaxed) < messages {
            timeout(Duration::from_secs(60), count.news.notified()).await?;
        }
        let rate = messages as f64 / since.elapsed().as_secs_f64();
        stop.cancel();
        println!("{:<40} {rate:>9.0}/s", format!("deliver and ack, {in_flight} in flight"));
        // Let it give back what is in flight before the next one starts.
        sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

struct Clocked {
    waits: parking_lot::Mutex<Vec<Duration>>,
    done: CancellationToken,
}

#[async_trait]
impl Deliver for Clocked {
    async fn deliver(&self, msg: Delivery) -> Verdict {
        let now = nanos();
        let sent = <[u8; 8]>::try_from(&msg.data[..]).map_or(now, u64::from_le_bytes);
        let mut waits = self.waits.lock();
        waits.push(Duration::from_nanos(now.saturating_sub(sent)));
        if waits.len() == SAMPLES {
            self.done.cancel();
        }
        Verdict::Ack
    }
}

/// The subscriber of [`latency`], in a process of its own.
async fn listen(home: &Path) -> Result<(), Failure> {
    let broker = broker(home, "listener", &[]).await?;
    let clocked = Arc::new(Clocked { waits: parking_lot::Mutex::default(), done: CancellationToken::new() });
    let stop = clocked.done.clone();
    let sub = Subscribe { topic: "latency".into(), metadata: Metadata::new(), bulk: None };
    timeout(Duration::from_secs(60), broker.subscribe(sub, clocked.clone(), stop)).await??;
    report("from publish to handler, two processes", f64::NAN, clocked.waits.lock().clone());
    broker.close().await;
    Ok(())
}

async fn latency(home: &Path, broker: &Arc<dyn PubSub>) -> Result<(), Failure> {
    let mut listener = Command::new(std::env::current_exe()?);
    let mut listener = listener.arg("--listen").arg(home).stdout(Stdio::inherit()).spawn()?;
    // Let it subscribe, or the first samples measure its start.
    sleep(Duration::from_millis(500)).await;
    let metadata = Metadata::new();
    let mut beat = interval(Duration::from_millis(5));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for _ in 0..SAMPLES {
        beat.tick().await;
        let data = Bytes::copy_from_slice(&nanos().to_le_bytes());
        broker.publish(Publish { topic: "latency", data, content_type: None, metadata: &metadata }).await?;
    }
    tokio::task::spawn_blocking(move || listener.wait()).await??;
    Ok(())
}

async fn idle(broker: &Arc<dyn PubSub>) -> Result<(), Failure> {
    let count = Arc::new(Count::default());
    let stops: Vec<_> = (0..4).map(|n| subscribe(broker, &format!("idle{n}"), &[], count.clone())).collect();
    sleep(Duration::from_secs(1)).await;
    let (cpu, since) = (cpu_nanos(), Instant::now());
    sleep(Duration::from_secs(10)).await;
    let share = (cpu_nanos() - cpu) as f64 / since.elapsed().as_nanos() as f64;
    println!("{:<40} {:>9.3} % of a core", "idle, 4 subscriptions", share * 100.0);
    stops.into_iter().for_each(|s| s.cancel());
    Ok(())
}

fn report(what: &str, rate: f64, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at = |q: f64| took.get((took.len() as f64 * q) as usize).copied().unwrap_or_default();
    let rate = if rate.is_nan() { " ".repeat(11) } else { format!("{rate:>9.0}/s") };
    println!("{what:<40} {rate}  p50 {:?}  p99 {:?}  max {:?}", at(0.5), at(0.99), at(0.999_999));
}

fn nanos() -> u64 {
    let t = clock_gettime(ClockId::Monotonic);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

fn cpu_nanos() -> u64 {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}
