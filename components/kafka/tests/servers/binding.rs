use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use mecha_components_api::{
    BindingEvent, CancellationToken, Error, ErrorKind, Invoke, Metadata, OnBindingEvent, Result,
};
use mecha_testkit::fresh_name;
use mecha_testkit::servers::Kafka;
use parking_lot::Mutex;

use crate::support::{PATIENCE, input, output, until};

/// An app that fails each event once.
#[derive(Default)]
pub(crate) struct App {
    attached: AtomicUsize,
    calls: AtomicUsize,
    pub(crate) seen: Mutex<Vec<BindingEvent>>,
}

#[async_trait]
impl OnBindingEvent for App {
    fn attached(&self) {
        self.attached.fetch_add(1, Ordering::SeqCst);
    }

    async fn event(&self, event: BindingEvent) -> Result<Option<Bytes>> {
        if self.calls.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            return Err(Error::unavailable("not now"));
        }
        self.seen.lock().push(event);
        Ok(None)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_created_arrives_and_comes_again_until_it_is_processed() {
    let Some(kafka) = Kafka::shared() else { return };
    let (address, topic, other) = (kafka.address(), fresh_name(), fresh_name());
    let topics = format!("{topic},{other}");
    let source = input(&topic, &[("brokers", &address), ("topics", &topics)]).await.unwrap();
    let (app, stop) = (Arc::new(App::default()), CancellationToken::new());
    let reading = tokio::spawn({
        let (source, app, stop) = (Arc::clone(&source), Arc::clone(&app), stop.clone());
        async move { source.read(app, stop).await }
    });
    until("it reads", async || app.attached.load(Ordering::SeqCst) > 0).await;
    for (topic, text) in [(&topic, "one"), (&other, "two")] {
        let sink = output(&[("brokers", &address), ("publishTopic", topic)]).await.unwrap();
        let md: Metadata = [("partitionKey", "k")].into_iter().collect();
        let data = Bytes::copy_from_slice(text.as_bytes());
        sink.invoke(Invoke { operation: "create", data, metadata: &md }).await.unwrap();
        until("the event arrives", async || app.seen.lock().iter().any(|e| e.data == text)).await;
    }
    stop.cancel();
    tokio::time::timeout(PATIENCE, reading).await.unwrap().unwrap().unwrap();
    let seen = app.seen.lock();
    assert_eq!((seen.len(), app.calls.load(Ordering::SeqCst)), (2, 4));
    assert_eq!(seen[0].metadata.get("__key"), Some("k"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_binding_without_topics_says_so() {
    let Some(kafka) = Kafka::shared() else { return };
    let address = kafka.address();
    let sink = output(&[("brokers", &address)]).await.unwrap();
    let md = Metadata::new();
    let e = sink.invoke(Invoke { operation: "create", data: Bytes::new(), metadata: &md }).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::FailedPrecondition, "{e}");
    assert!(e.to_string().contains("publishTopic"), "{e}");

    let source = input("app", &[("brokers", &address)]).await.unwrap();
    let stop = CancellationToken::new();
    stop.cancel();
    source.read(Arc::new(App::default()), stop).await.unwrap();
}
