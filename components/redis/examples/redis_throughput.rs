//! What the components cost beside the bare client, on one server, in one run.
//!
//! `cargo run --release -p mecha-redis --example redis_throughput`

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mecha_components_api::{
    BuildCx, Concurrency, Consistency, GetState, Lookup, Metadata, PubSub, Publish, Registration, Registry, SetState,
    StateStore, Value,
};
use mecha_testkit::servers::Redis;
use redis::aio::MultiplexedConnection;

/// Size of a value.
const BYTES: usize = 1024;
/// Keys in use.
const KEYS: usize = 1000;
/// Callers at once, for latency and for throughput.
const CALLERS: [usize; 2] = [1, 64];
/// Length of one measurement.
const SPAN: Duration = Duration::from_secs(2);
/// Measurements of each kind, of which the best counts; they take turns.
const ROUNDS: usize = 3;

/// Calls a second, and the median in microseconds.
#[derive(Clone, Copy, Default)]
struct Figures {
    rate: f64,
    median: f64,
}

#[derive(Clone)]
struct Bench {
    direct: MultiplexedConnection,
    state: Arc<dyn StateStore>,
    broker: Arc<dyn PubSub>,
    value: Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Get,
    Set,
    Publish,
}

impl Bench {
    async fn direct(&mut self, work: Work, key: &str) {
        let mut cmd = redis::Cmd::new();
        match work {
            Work::Get => cmd.arg("GET").arg(key),
            Work::Set => cmd.arg("SET").arg(key).arg(&self.value[..]),
            Work::Publish => {
                cmd.arg("XADD").arg("direct").arg("MAXLEN").arg("~").arg(KEYS).arg("*").arg("data").arg(&self.value[..])
            }
        };
        cmd.exec_async(&mut self.direct).await.unwrap_or_else(|e| panic!("direct: {e}"));
    }

    async fn component(&self, work: Work, key: &str) {
        let md = Metadata::new();
        let done = match work {
            Work::Get => {
                self.state.get(GetState { key, consistency: Consistency::Eventual, metadata: &md }).await.map(drop)
            }
            Work::Set => {
                let set = SetState {
                    key,
                    value: Value::Json(self.value.clone()),
                    etag: None,
                    concurrency: Concurrency::LastWrite,
                    consistency: Consistency::Eventual,
                    ttl: None,
                    content_type: None,
                    metadata: &md,
                };
                self.state.set(set).await
            }
            Work::Publish => {
                let msg = Publish { topic: "topic", data: self.value.clone(), content_type: None, metadata: &md };
                self.broker.publish(msg).await
            }
        };
        done.unwrap_or_else(|e| panic!("component: {e}"));
    }

    async fn measure(&self, work: Work, direct: bool, callers: usize) -> Figures {
        let until = Instant::now() + SPAN;
        let mut tasks = tokio::task::JoinSet::new();
        for caller in 0..callers {
            let mut bench = self.clone();
            tasks.spawn(async move {
                let mut times = Vec::new();
                let mut at = caller;
                while Instant::now() < until {
                    let key = format!("{}{}", if direct { "d" } else { "s" }, at % KEYS);
                    at += 1;
                    let before = Instant::now();
                    if direct {
                        bench.direct(work, &key).await;
                    } else {
                        bench.component(work, &key).await;
                    }
                    times.push(before.elapsed());
                }
                times
            });
        }
        let mut times: Vec<Duration> = tasks.join_all().await.into_iter().flatten().collect();
        times.sort_unstable();
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        Figures { rate: times.len() as f64 / SPAN.as_secs_f64(), median: median.as_secs_f64() * 1e6 }
    }
}

async fn build<C: ?Sized + 'static>(list: &[Registration<C>], kind: &str, address: &str) -> Arc<C> {
    let md: Metadata = [("redisHost", address), ("maxLenApprox", "1000")].into_iter().collect();
    let Lookup::Found(registration) = Registry::find(list, kind, "v1") else { panic!("{kind} is not registered") };
    let prepared = (registration.prepare)(&md, "v1").unwrap_or_else(|e| panic!("{e}"));
    prepared.build(&BuildCx::for_app("app", "bench", "/nonexistent")).await.unwrap_or_else(|e| panic!("{e}"))
}

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() {
    let Some(server) = Redis::start() else { return };
    let address = server.address();
    let client = redis::Client::open(format!("redis://{address}")).unwrap_or_else(|e| panic!("{e}"));
    let direct = client.get_multiplexed_async_connection().await.unwrap_or_else(|e| panic!("{e}"));
    let mut registry = Registry::new();
    mecha_redis::register(&mut registry);
    let bench = Bench {
        direct,
        state: build(&registry.state, "state.redis", &address).await,
        broker: build(&registry.pubsub, "pubsub.redis", &address).await,
        value: Bytes::from(format!("\"{}\"", "x".repeat(BYTES - 2))),
    };
    println!(
        "{:8} {:>7} {:>12} {:>12} {:>6} {:>10} {:>10} {:>6}",
        "", "callers", "direct/s", "component/s", "ratio", "direct us", "comp. us", "ratio"
    );
    for (work, name) in [(Work::Set, "set"), (Work::Get, "get"), (Work::Publish, "publish")] {
        for callers in CALLERS {
            let (mut plain, mut ours) = (Figures::default(), Figures::default());
            for _ in 0..ROUNDS {
                let one = bench.measure(work, true, callers).await;
                let other = bench.measure(work, false, callers).await;
                plain = if one.rate > plain.rate { one } else { plain };
                ours = if other.rate > ours.rate { other } else { ours };
            }
            println!(
                "{name:8} {callers:>7} {:>12.0} {:>12.0} {:>6.2} {:>10.1} {:>10.1} {:>6.2}",
                plain.rate,
                ours.rate,
                ours.rate / plain.rate,
                plain.median,
                ours.median,
                ours.median / plain.median
            );
        }
    }
}
