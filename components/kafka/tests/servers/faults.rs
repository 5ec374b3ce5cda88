//! The broker dies, freezes, is away at the start, or the connection to it is cut.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mecha_components_api::{ErrorKind, Retry};
use mecha_testkit::servers::{Kafka, KafkaOptions, free_port};
use mecha_testkit::{Inbox, fresh_name};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::support::{PATIENCE, Running, attached, publish, pubsub, until};

/// What a call may take beyond its deadline on a busy machine.
const SLACK: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_wait_for_a_dead_or_frozen_broker_as_long_as_they_may() {
    let Some(mut kafka) = Kafka::start() else { return };
    let address = kafka.address();
    let broker = pubsub("app", &[("brokers", &address), ("mecha.publishTimeout", "700ms")]).await.unwrap();
    // The first word to a broker that has just started may take longer than these callers have.
    until("publishing works", async || publish(&*broker, "t", "before").await.is_ok()).await;
    let inbox = Arc::new(Inbox::new());
    let running = Running::start(&broker, "t", inbox.clone());
    attached(&inbox, 1).await;

    kafka.freeze();
    let before = Instant::now();
    let e = publish(&*broker, "t", "frozen").await.unwrap_err();
    assert!(matches!(e.kind(), ErrorKind::Timeout | ErrorKind::Unavailable), "{:?}: {e}", e.kind());
    assert_eq!(e.retry(), Retry::IfIdempotent, "{e}");
    assert!(before.elapsed() < Duration::from_millis(700) + SLACK, "it took {:?}", before.elapsed());
    kafka.thaw();
    until("publishing works again", async || publish(&*broker, "t", "thawed").await.is_ok()).await;
    until("delivery goes on", async || inbox.texts().contains(&"thawed".to_owned())).await;

    kafka.kill();
    let before = Instant::now();
    let e = publish(&*broker, "t", "dead").await.unwrap_err();
    assert!(matches!(e.kind(), ErrorKind::Timeout | ErrorKind::Unavailable), "{:?}: {e}", e.kind());
    assert!(before.elapsed() < Duration::from_millis(700) + SLACK, "it took {:?}", before.elapsed());
    until("the reason is told", async || {
        publish(&*broker, "t", "dead")
            .await
            .is_err_and(|e| e.kind() == ErrorKind::Unavailable && e.to_string().contains("refused"))
    })
    .await;
    assert_eq!(broker.ping().await.unwrap_err().kind(), ErrorKind::Unavailable);
    kafka.restart();
    until("publishing works again", async || publish(&*broker, "t", "alive").await.is_ok()).await;
    until("delivery goes on", async || inbox.texts().contains(&"alive".to_owned())).await;
    broker.ping().await.unwrap();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_is_not_built_without_its_broker() {
    if Kafka::missing().is_some() {
        return;
    }
    let address = format!("127.0.0.1:{}", free_port());
    let before = Instant::now();
    let e = pubsub("app", &[("brokers", &address)]).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
    assert!(e.to_string().contains(&address) && e.to_string().contains("refused"), "{e}");
    assert!(before.elapsed() < Duration::from_secs(5) + SLACK, "it took {:?}", before.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_stops_while_the_broker_is_frozen() {
    let Some(kafka) = Kafka::start() else { return };
    let broker = pubsub("app", &[("brokers", &kafka.address())]).await.unwrap();
    let inbox = Arc::new(Inbox::new());
    let running = Running::start(&broker, "t", inbox.clone());
    attached(&inbox, 1).await;
    kafka.freeze();
    let before = Instant::now();
    running.stop().await;
    assert!(before.elapsed() < Duration::from_secs(5) + SLACK, "it took {:?}", before.elapsed());
    kafka.thaw();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_nobody_makes_is_told_and_waited_for() {
    let Some(kafka) = KafkaOptions::new().set("auto.create.topics.enable", "false").start() else { return };
    let address = kafka.address();
    let broker = pubsub("app", &[("brokers", &address), ("initialOffset", "oldest")]).await.unwrap();
    let e = publish(&*broker, "t", "x").await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
    let inbox = Arc::new(Inbox::new());
    let running = Running::start(&broker, "t", inbox.clone());
    crate::support::make_topic(&address, "t", 1).await;
    until("publishing works", async || publish(&*broker, "t", "x").await.is_ok()).await;
    inbox.wait_for(1, PATIENCE).await.unwrap();
    running.stop().await;
}

/// Connects everybody who comes to `port` to the broker, until it is cut.
struct Line {
    accept: JoinHandle<()>,
}

impl Line {
    async fn new(port: u16, to: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let accept = tokio::spawn(async move {
            // Dropped with the task, which cuts them all.
            let mut lines = JoinSet::new();
            while let Ok((mut here, _)) = listener.accept().await {
                lines.spawn(async move {
                    if let Ok(mut there) = TcpStream::connect(("127.0.0.1", to)).await {
                        let _ = copy_bidirectional(&mut here, &mut there).await;
                    }
                });
            }
        });
        Self { accept }
    }

    async fn cut(self) {
        self.accept.abort();
        let _ = self.accept.await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_under_way_when_the_connection_was_cut_is_stored_once() {
    let port = free_port();
    let Some(kafka) = KafkaOptions::new().advertise(port).start() else { return };
    let mut line = Line::new(port, kafka.port()).await;
    let topic = fresh_name();
    let address = format!("127.0.0.1:{port}");
    let broker = pubsub("app", &[("brokers", &address), ("mecha.publishTimeout", "60s")]).await.unwrap();
    let inbox = Arc::new(Inbox::new());
    let running = Running::start(&broker, &topic, inbox.clone());
    attached(&inbox, 1).await;
    let publishing = tokio::spawn({
        let (broker, topic) = (Arc::clone(&broker), topic.clone());
        async move {
            for i in 0..600 {
                publish(&*broker, &topic, &i.to_string()).await.unwrap();
            }
        }
    });
    for at in [100, 250, 400] {
        inbox.wait_for(at, PATIENCE).await.unwrap();
        line.cut().await;
        line = Line::new(port, kafka.port()).await;
    }
    publishing.await.unwrap();
    until("the last one is delivered", async || inbox.texts().contains(&"599".to_owned())).await;
    running.stop().await;
    let offsets = inbox.seen().iter().filter_map(|d| d.metadata.get("__offset")?.parse::<u32>().ok()).max();
    assert_eq!(offsets, Some(599), "a record that was sent again was stored again");
    line.cut().await;
}
