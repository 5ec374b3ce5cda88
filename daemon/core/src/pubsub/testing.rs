//! Doubles for tests: a broker that is told what to deliver, and an app that answers as told.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use mecha_components_api::{
    BindingEvent, BulkPublish, BulkReply, CancellationToken, Component, ConfigItem, Deliver, Delivery, Error,
    ErrorKind, FailedEntry, Metadata, PubSub, PubSubCaps, Publish, Subscribe, Verdict,
};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::PubSubApi;
use crate::app::{
    AppChannel, AppConfig, AppError, AppProtocol, AppSubscription, AppVerdict, BindingReply, Body, BulkTopicEvent,
    TopicEvent,
};
use crate::cx::TraceHeaders;
use crate::identity::Identity;
use crate::metrics::{Metrics, MetricsConfig};
use crate::ops::Ops;
use crate::policies::{ComponentKind, Guarded, Policies};
use crate::pubsub::scopes::TopicScopes;
use crate::store::{Handle, Info, PubSubHandle, Store, TopicRules};
use crate::tasks::Tasks;
use crate::trace::Tracer;

/// A message as the broker got it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sent {
    pub topic: String,
    pub data: Bytes,
    pub content_type: Option<String>,
    pub metadata: Metadata,
}

/// How the broker answers a publish.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Publishing {
    #[default]
    Works,
    Fails(ErrorKind),
    Hangs,
}

type Subscriber = (Subscribe, Arc<dyn Deliver>);

pub(super) struct FakeBroker {
    pub caps: PubSubCaps,
    pub publishing: Mutex<Publishing>,
    pub sent: Mutex<Vec<Sent>>,
    /// Topics whose publish fails.
    pub bad_payload: Mutex<Option<Bytes>>,
    /// Starts that fail before one works; a panic when negative is not needed.
    pub start_failures: AtomicUsize,
    pub panics: AtomicUsize,
    /// Attaches only when told to.
    pub slow_start: watch::Sender<bool>,
    /// Keeps what is published until then.
    pub secures: AtomicBool,
    subscribers: watch::Sender<Vec<Subscriber>>,
    in_flight: watch::Sender<usize>,
    pub most_publishing: AtomicUsize,
    publishing_now: AtomicUsize,
}

impl fmt::Debug for FakeBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeBroker")
    }
}

impl FakeBroker {
    pub(super) fn new(caps: PubSubCaps) -> Arc<Self> {
        Arc::new(Self {
            caps,
            publishing: Mutex::default(),
            sent: Mutex::default(),
            bad_payload: Mutex::default(),
            start_failures: AtomicUsize::new(0),
            panics: AtomicUsize::new(0),
            slow_start: watch::Sender::new(true),
            secures: AtomicBool::new(false),
            subscribers: watch::Sender::new(Vec::new()),
            in_flight: watch::Sender::new(0),
            most_publishing: AtomicUsize::new(0),
            publishing_now: AtomicUsize::new(0),
        })
    }

    pub(super) fn topics(&self) -> Vec<String> {
        self.subscribers.borrow().iter().map(|(s, _)| s.topic.clone()).collect()
    }

    pub(super) fn requests(&self) -> Vec<Subscribe> {
        self.subscribers.borrow().iter().map(|(s, _)| s.clone()).collect()
    }

    /// Waits until `n` subscriptions are there.
    pub(super) async fn wait_for_subscribers(&self, n: usize) {
        let mut watch = self.subscribers.subscribe();
        let done = watch.wait_for(|list| list.len() == n);
        tokio::time::timeout(Duration::from_secs(120), done).await.expect("subscribers in time").unwrap();
    }

    /// Hands a message to the only subscriber of its topic.
    pub(super) async fn deliver(&self, topic: &str, data: &[u8]) -> Verdict {
        self.hand(message(topic, data)).await
    }

    pub(super) async fn hand(&self, msg: Delivery) -> Verdict {
        let to = {
            let list = self.subscribers.borrow();
            let found: Vec<_> = list.iter().filter(|(s, _)| s.topic == *msg.topic || s.topic == "*").collect();
            assert_eq!(found.len(), 1, "subscribers of {}", msg.topic);
            found[0].1.clone()
        };
        self.hand_to(to, msg).await
    }

    /// Hands a message to the `at`th subscriber.
    pub(super) async fn hand_nth(&self, at: usize, msg: Delivery) -> Verdict {
        let to = self.subscribers.borrow()[at].1.clone();
        self.hand_to(to, msg).await
    }

    async fn hand_to(&self, to: Arc<dyn Deliver>, msg: Delivery) -> Verdict {
        self.in_flight.send_modify(|n| *n += 1);
        let verdict = to.deliver(msg).await;
        self.in_flight.send_modify(|n| *n -= 1);
        verdict
    }

    async fn take(&self, msg: &Publish<'_>) -> Result<(), Error> {
        let now = self.publishing_now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_publishing.fetch_max(now, Ordering::SeqCst);
        tokio::task::yield_now().await;
        self.publishing_now.fetch_sub(1, Ordering::SeqCst);
        let publishing = *self.publishing.lock();
        match publishing {
            Publishing::Works => {}
            Publishing::Fails(kind) => return Err(Error::new(kind, "broker down")),
            Publishing::Hangs => std::future::pending().await,
        }
        if self.bad_payload.lock().as_ref().is_some_and(|bad| memmem(&msg.data, bad)) {
            return Err(Error::invalid("broker refused"));
        }
        self.sent.lock().push(Sent {
            topic: msg.topic.to_owned(),
            data: msg.data.clone(),
            content_type: msg.content_type.map(str::to_owned),
            metadata: msg.metadata.clone(),
        });
        Ok(())
    }
}

fn memmem(data: &[u8], part: &[u8]) -> bool {
    data.windows(part.len()).any(|w| w == part)
}

pub(super) fn message(topic: &str, data: &[u8]) -> Delivery {
    Delivery { topic: topic.into(), data: Bytes::copy_from_slice(data), metadata: Metadata::new(), content_type: None }
}

#[async_trait]
impl Component for FakeBroker {}

#[async_trait]
impl PubSub for FakeBroker {
    fn caps(&self) -> PubSubCaps {
        self.caps
    }

    async fn publish(&self, msg: Publish<'_>) -> Result<(), Error> {
        self.take(&msg).await
    }

    async fn subscribe(&self, sub: Subscribe, to: Arc<dyn Deliver>, stop: CancellationToken) -> Result<(), Error> {
        let fail = |counter: &AtomicUsize| {
            counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
        };
        if fail(&self.start_failures) {
            return Err(Error::unavailable("broker not there yet"));
        }
        assert!(!fail(&self.panics), "this panic is part of the test");
        if self.secures.load(Ordering::SeqCst) {
            to.secured();
        }
        let mut slow = self.slow_start.subscribe();
        tokio::select! {
            go = slow.wait_for(|go| *go) => drop(go),
            () = stop.cancelled() => return Ok(()),
        }
        self.subscribers.send_modify(|list| list.push((sub, to.clone())));
        to.attached();
        stop.cancelled().await;
        self.subscribers.send_modify(|list| list.retain(|(_, other)| !Arc::ptr_eq(other, &to)));
        let mut in_flight = self.in_flight.subscribe();
        let _ = in_flight.wait_for(|n| *n == 0).await;
        Ok(())
    }

    fn bulk(&self) -> Option<&dyn BulkPublish> {
        if self.caps.bulk { Some(self) } else { None }
    }
}

#[async_trait]
impl BulkPublish for FakeBroker {
    async fn publish_many(&self, batch: Vec<Publish<'_>>) -> Result<BulkReply, Error> {
        let publishing = *self.publishing.lock();
        if let Publishing::Fails(kind) = publishing {
            return Err(Error::new(kind, "broker down"));
        }
        let mut failed = Vec::new();
        for (index, msg) in batch.iter().enumerate() {
            if let Err(error) = self.take(msg).await {
                failed.push(FailedEntry { index, error });
            }
        }
        Ok(failed)
    }
}

pub(super) type Answer = Result<AppVerdict, AppError>;
type Handler = dyn Fn(TopicEvent) -> BoxFuture<'static, Answer> + Send + Sync;
type BulkHandler = dyn Fn(BulkTopicEvent) -> BoxFuture<'static, Result<Vec<AppVerdict>, AppError>> + Send + Sync;

pub(super) struct FakeApp {
    protocol: AppProtocol,
    pub seen: Mutex<Vec<TopicEvent>>,
    pub bulks: Mutex<Vec<BulkTopicEvent>>,
    handler: Mutex<Arc<Handler>>,
    bulk_handler: Mutex<Arc<BulkHandler>>,
    pub lists: Mutex<Vec<Result<Option<Vec<AppSubscription>>, AppError>>>,
    calls: watch::Sender<usize>,
}

impl fmt::Debug for FakeApp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeApp")
    }
}

impl FakeApp {
    pub(super) fn new(protocol: AppProtocol) -> Arc<Self> {
        Arc::new(Self {
            protocol,
            seen: Mutex::default(),
            bulks: Mutex::default(),
            handler: Mutex::new(Arc::new(|_| async { Ok(AppVerdict::Success) }.boxed())),
            bulk_handler: Mutex::new(Arc::new(|e| {
                async move { Ok(vec![AppVerdict::Success; e.entries.len()]) }.boxed()
            })),
            lists: Mutex::default(),
            calls: watch::Sender::new(0),
        })
    }

    pub(super) fn on_event<F>(&self, handler: impl Fn(TopicEvent) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        *self.handler.lock() = Arc::new(move |e| handler(e).boxed());
    }

    /// The same answer to every event.
    pub(super) fn always(&self, answer: impl Fn() -> Answer + Send + Sync + 'static) {
        self.on_event(move |_| std::future::ready(answer()));
    }

    pub(super) fn on_bulk(
        &self,
        handler: impl Fn(BulkTopicEvent) -> Result<Vec<AppVerdict>, AppError> + Send + Sync + 'static,
    ) {
        *self.bulk_handler.lock() = Arc::new(move |e| std::future::ready(handler(e)).boxed());
    }

    /// Waits until the app was called `n` times.
    pub(super) async fn wait_for_calls(&self, n: usize) {
        let mut calls = self.calls.subscribe();
        let done = calls.wait_for(|seen| *seen >= n);
        tokio::time::timeout(Duration::from_secs(120), done).await.expect("calls in time").unwrap();
    }

    pub(super) fn calls(&self) -> usize {
        *self.calls.borrow()
    }
}

pub(super) fn http_error(status: u16) -> AppError {
    AppError {
        error: Error::internal(format!("the app answered {status}")),
        http_status: Some(status),
        grpc_code: None,
    }
}

#[async_trait]
impl AppChannel for FakeApp {
    fn protocol(&self) -> AppProtocol {
        self.protocol
    }
    async fn config(&self) -> Result<Option<AppConfig>, AppError> {
        Ok(None)
    }
    async fn subscriptions(&self) -> Result<Option<Vec<AppSubscription>>, AppError> {
        let mut lists = self.lists.lock();
        if lists.is_empty() { Ok(None) } else { lists.remove(0) }
    }
    async fn topic_event(&self, event: &TopicEvent) -> Answer {
        self.seen.lock().push(event.clone());
        self.calls.send_modify(|n| *n += 1);
        let handler = self.handler.lock().clone();
        handler(event.clone()).await
    }
    async fn bulk_topic_event(&self, event: &BulkTopicEvent) -> Result<Vec<AppVerdict>, AppError> {
        self.bulks.lock().push(event.clone());
        self.calls.send_modify(|n| *n += 1);
        let handler = self.bulk_handler.lock().clone();
        handler(event.clone()).await
    }
    async fn takes_binding(&self, _: &str, _: &str, _: Duration) -> Result<bool, AppError> {
        Ok(false)
    }
    async fn binding_event(
        &self,
        _: &str,
        _: &str,
        _: &BindingEvent,
        _: &TraceHeaders,
    ) -> Result<BindingReply, AppError> {
        Ok(BindingReply::default())
    }
    async fn configuration_event(
        &self,
        _: &str,
        _: &str,
        _: &str,
        _: &BTreeMap<String, ConfigItem>,
    ) -> Result<(), AppError> {
        Ok(())
    }
    async fn probe(&self, _: &str, _: Duration) -> Result<(), AppError> {
        Ok(())
    }
    async fn invoke(&self, _: http::Request<Body>) -> Result<http::Response<Body>, AppError> {
        Err(AppError::transport(Error::unsupported("not here")))
    }
}

/// What a test may want to be different.
pub(super) struct Setup {
    pub caps: PubSubCaps,
    pub protocol: AppProtocol,
    pub prefix: Option<&'static str>,
    pub scopes: Vec<(&'static str, &'static str)>,
    /// YAML of the Resiliency spec's `policies`; a retry named `r` becomes the inbound one.
    pub policies: Option<&'static str>,
    pub tracer: Tracer,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            caps: PubSubCaps::default(),
            protocol: AppProtocol::Http,
            prefix: None,
            scopes: Vec::new(),
            policies: None,
            tracer: Tracer::pass_through(),
        }
    }
}

/// A sidecar's pub/sub part with one broker named `bus` and app `shop`.
pub(super) struct Rig {
    pub api: PubSubApi,
    pub broker: Arc<FakeBroker>,
    pub app: Arc<FakeApp>,
    pub store: Arc<Store>,
    pub metrics: Arc<Metrics>,
    pub tasks: Tasks,
    setup: Setup,
}

impl Rig {
    pub(super) async fn new(setup: Setup) -> Self {
        let metrics = Arc::new(Metrics::new(MetricsConfig::new("shop", "ns")).unwrap());
        let me = Arc::new(Identity { app_id: "shop".into(), namespace: "ns".into(), pod_name: "".into() });
        let (store, tasks) = (Arc::new(Store::default()), Tasks::new());
        let app = FakeApp::new(setup.protocol);
        let channel: Arc<dyn AppChannel> = app.clone();
        let api = PubSubApi::new(store.clone(), me, metrics.clone(), setup.tracer.clone(), tasks.clone());
        let broker = FakeBroker::new(setup.caps);
        let rig = Self { api: api.with_app(Some(channel)), broker, app, store, metrics, tasks, setup };
        rig.install(rig.broker.clone()).await;
        rig
    }

    /// A handle as the loader makes it.
    pub(super) fn handle(&self, broker: Arc<FakeBroker>) -> Arc<PubSubHandle> {
        let inbound = match self.setup.policies {
            None => Guarded::none(),
            Some(policies) => {
                let yaml = format!(
                    "apiVersion: dapr.io/v1alpha1\nkind: Resiliency\nmetadata: {{name: r}}\nspec:\n  policies: \
                     {policies}\n  targets:\n    components:\n      bus: {{inbound: {{retry: r, timeout: t}}}}\n"
                );
                let mut loaded = mecha_resources::Loaded::default();
                loaded.read_text("test.yaml", &yaml);
                let docs: Vec<_> = loaded.resiliencies.into_iter().map(|d| d.value).collect();
                assert_eq!(docs.len(), 1, "{:?}", loaded.diagnostics);
                Policies::compile(&docs, self.metrics.clone()).0.inbound(ComponentKind::Pubsub, "bus")
            }
        };
        let scopes: Metadata = self.setup.scopes.iter().copied().collect();
        Arc::new(Handle {
            info: Info { name: "bus".into(), kind: "pubsub.fake".into(), version: "v1".into(), capabilities: vec![] },
            ops: Ops::new(&self.metrics, None, "bus", Guarded::none(), inbound),
            extra: TopicRules {
                scopes: TopicScopes::from_metadata(&scopes, "shop"),
                namespace_prefix: self.setup.prefix.map(Into::into),
            },
            inner: broker,
        })
    }

    pub(super) async fn install(&self, broker: Arc<FakeBroker>) {
        let handle = self.handle(broker);
        self.store.edit(|s| s.pubsub.insert("bus".into(), handle)).await;
    }

    /// Subscribes `orders` at path `/orders`, changed by `edit`.
    pub(super) async fn subscribe(&self, edit: impl FnOnce(&mut AppSubscription)) {
        let mut sub = orders();
        edit(&mut sub);
        self.api.manager().start(Vec::new(), vec![sub]).await;
    }

    /// Lines of one metric as (labels of interest, value).
    pub(super) fn ingress(&self) -> Vec<String> {
        let prefix = "dapr_component_pubsub_ingress_count{";
        let text = self.metrics.encode();
        let label = |line: &str, name: &str| {
            let start = line.find(&format!("{name}=\"")).map(|at| at + name.len() + 2).unwrap();
            line[start..].split('"').next().unwrap().to_owned()
        };
        let mut lines: Vec<_> = text
            .lines()
            .filter(|l| l.starts_with(prefix))
            .map(|l| {
                let value = l.rsplit(' ').next().unwrap();
                format!("{}/{} {value}", label(l, "process_status"), label(&l.replace("process_status", "_"), "status"))
            })
            .collect();
        lines.sort();
        lines
    }

    /// The value of a series by the start of its name and a label text it holds; 0 when absent.
    pub(super) fn value(&self, name: &str, label: &str) -> u64 {
        let text = self.metrics.encode();
        let line = text.lines().find(|l| l.starts_with(&format!("{name}{{")) && l.contains(label));
        line.and_then(|l| l.rsplit(' ').next()?.parse().ok()).unwrap_or_default()
    }

    pub(super) fn sent(&self) -> Vec<Sent> {
        self.broker.sent.lock().clone()
    }
}

pub(super) fn orders() -> AppSubscription {
    AppSubscription {
        pubsub: "bus".into(),
        topic: "orders".into(),
        default_route: Some("/orders".into()),
        ..AppSubscription::default()
    }
}

/// Polls `done` until it is true.
pub(super) async fn eventually(what: &str, done: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(120);
    while !done() {
        assert!(tokio::time::Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
