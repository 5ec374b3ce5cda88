//! How many records a second the component publishes, next to a bare producer of librdkafka
//! with the same settings, on a broker of its own.
//!
//! `cargo run --release -p mecha-kafka --example kafka_throughput [SECONDS]`

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mecha_components_api::{BuildCx, Metadata, Publish, Registry};
use mecha_testkit::servers::Kafka;
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::task::JoinSet;

/// Callers that each wait for the acknowledgement before they publish again.
const CALLERS: usize = 64;
const PAYLOAD: usize = 1024;
const ROUNDS: usize = 3;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs `publish` from all callers for a while; gives records a second and the median wait.
async fn measure<F>(
    length: Duration,
    publish: impl Fn() -> F + Clone + Send + 'static,
) -> Result<(f64, Duration), Failure>
where
    F: Future<Output = Result<(), Failure>> + Send,
{
    let (count, end) = (Arc::new(AtomicU64::new(0)), Instant::now() + length);
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (count, publish) = (Arc::clone(&count), publish.clone());
        callers.spawn(async move {
            let mut waits = Vec::new();
            while Instant::now() < end {
                let before = Instant::now();
                publish().await?;
                waits.push(before.elapsed());
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, Failure>(waits)
        });
    }
    let mut waits = Vec::new();
    while let Some(caller) = callers.join_next().await {
        waits.extend(caller??);
    }
    waits.sort_unstable();
    let median = waits.get(waits.len() / 2).copied().unwrap_or_default();
    Ok((count.load(Ordering::Relaxed) as f64 / length.as_secs_f64(), median))
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let seconds = std::env::args().nth(1).map_or(Ok(3), |text| text.parse())?;
    let length = Duration::from_secs(seconds);
    let kafka = Kafka::start().ok_or("Apache Kafka is not installed; run: bash tests/install-servers.sh")?;
    let (address, payload) = (kafka.address(), Bytes::from(vec![b'x'; PAYLOAD]));

    let mut registry = Registry::new();
    mecha_kafka::register(&mut registry);
    let md: Metadata = [("brokers", address.as_str()), ("authType", "none")].into_iter().collect();
    let registration = registry.pubsub.first().ok_or("pubsub.kafka is not registered")?;
    let broker = (registration.prepare)(&md, "v1")?.build(&BuildCx::for_app("app", "bench", "/nonexistent")).await?;

    let bare: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", &address)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "0")
        .set("socket.nagle.disable", "true")
        .set("socket.keepalive.enable", "true")
        .set("message.timeout.ms", "10000")
        .set("request.timeout.ms", "10000")
        .set("queue.buffering.max.messages", "20000")
        .set("partitioner", "fnv1a_random")
        .create()?;

    let ours = {
        let (broker, payload) = (Arc::clone(&broker), payload.clone());
        move || {
            let (broker, data) = (Arc::clone(&broker), payload.clone());
            async move {
                let metadata = Metadata::new();
                Ok(broker.publish(Publish { topic: "ours", data, content_type: None, metadata: &metadata }).await?)
            }
        }
    };
    let theirs = move || {
        let (bare, data) = (bare.clone(), payload.clone());
        async move {
            let record: FutureRecord<'_, str, [u8]> = FutureRecord::to("bare").payload(&data);
            bare.send(record, Duration::from_secs(1)).await.map_err(|(e, _)| e)?;
            Ok(())
        }
    };
    // Topics are made, connections warm.
    measure(Duration::from_millis(500), ours.clone()).await?;
    measure(Duration::from_millis(500), theirs.clone()).await?;
    for round in 1..=ROUNDS {
        let (our_rate, our_wait) = measure(length, ours.clone()).await?;
        let (bare_rate, bare_wait) = measure(length, theirs.clone()).await?;
        println!(
            "round {round}: component {our_rate:.0}/s, p50 {our_wait:?}; bare {bare_rate:.0}/s, p50 {bare_wait:?}; ratio {:.2}",
            our_rate / bare_rate
        );
    }
    broker.close().await;
    Ok(())
}
