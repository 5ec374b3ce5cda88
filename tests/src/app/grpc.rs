use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use mecha_proto::common::{InvokeRequest, InvokeResponse};
use mecha_proto::runtime::app_callback_health_check_server::{AppCallbackHealthCheck, AppCallbackHealthCheckServer};
use mecha_proto::runtime::app_callback_server::{AppCallback, AppCallbackServer};
use mecha_proto::runtime::{
    BindingEventRequest, BindingEventResponse, HealthCheckResponse, JobEventRequest, JobEventResponse,
    ListInputBindingsResponse, ListTopicSubscriptionsResponse, TopicEventBulkRequest, TopicEventBulkResponse,
    TopicEventRequest, TopicEventResponse, TopicRoutes, TopicSubscription,
};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};

use super::echo::Echo;
use crate::ports::{free_port, listen};
use crate::wait::{DEADLINE, wait_until};

/// An event the app got, and the metadata of its call.
#[derive(Clone, Debug)]
pub struct TopicCall {
    /// The event.
    pub event: TopicEventRequest,
    /// Metadata of the call.
    pub metadata: MetadataMap,
}

/// An app on gRPC that answers by script and remembers every call; it also has the service [`crate::ECHO`].
#[derive(Debug)]
pub struct GrpcApp {
    port: u16,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

/// An app to be started. What is not said here answers `Unimplemented`, as the app of an SDK that uses
/// only a part of the callbacks.
#[must_use]
#[derive(Default)]
pub struct GrpcAppBuilder {
    port: Option<u16>,
    script: Script,
}

type Handler<Q, A> = Arc<dyn Fn(Q, MetadataMap) -> BoxFuture<'static, Result<A, Status>> + Send + Sync>;

#[derive(Default)]
struct Script {
    subscriptions: Option<Vec<TopicSubscription>>,
    bindings: Option<Vec<String>>,
    topic: Option<Handler<TopicEventRequest, TopicEventResponse>>,
    bulk: Option<Handler<TopicEventBulkRequest, TopicEventBulkResponse>>,
    binding: Option<Handler<BindingEventRequest, BindingEventResponse>>,
    invoke: Option<Handler<InvokeRequest, InvokeResponse>>,
    health: bool,
}

struct Shared {
    script: Script,
    topics: Mutex<Vec<TopicCall>>,
    bulks: Mutex<Vec<TopicEventBulkRequest>>,
    bindings: Mutex<Vec<BindingEventRequest>>,
    invocations: Mutex<Vec<(InvokeRequest, MetadataMap)>>,
    probes: AtomicU64,
}

impl GrpcAppBuilder {
    /// On a port chosen before.
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// One topic it wants, delivered with `path`.
    pub fn topic(self, pubsub: &str, topic: &str, path: &str) -> Self {
        self.subscription(TopicSubscription {
            pubsub_name: pubsub.to_owned(),
            topic: topic.to_owned(),
            routes: Some(TopicRoutes { rules: Vec::new(), default: path.to_owned() }),
            ..TopicSubscription::default()
        })
    }

    /// One subscription in full.
    pub fn subscription(mut self, subscription: TopicSubscription) -> Self {
        self.script.subscriptions.get_or_insert_default().push(subscription);
        self.script.topic.get_or_insert_with(|| Arc::new(|_, _| async { Ok(TopicEventResponse::default()) }.boxed()));
        self
    }

    /// What it says to an event.
    pub fn on_topic<F>(mut self, answer: F) -> Self
    where
        F: Fn(&TopicEventRequest) -> Result<i32, Status> + Send + Sync + 'static,
    {
        self.script.topic = Some(Arc::new(move |event, _| {
            let answer = answer(&event).map(|status| TopicEventResponse { status });
            async { answer }.boxed()
        }));
        self
    }

    /// What it says to many events at once.
    pub fn on_bulk<F>(mut self, answer: F) -> Self
    where
        F: Fn(&TopicEventBulkRequest) -> Result<TopicEventBulkResponse, Status> + Send + Sync + 'static,
    {
        self.script.bulk = Some(Arc::new(move |events, _| {
            let answer = answer(&events);
            async { answer }.boxed()
        }));
        self
    }

    /// Input bindings it wants, and what it says to their events.
    pub fn on_binding<F>(mut self, names: &[&str], answer: F) -> Self
    where
        F: Fn(&BindingEventRequest) -> Result<BindingEventResponse, Status> + Send + Sync + 'static,
    {
        self.script.bindings = Some(names.iter().map(|name| (*name).to_owned()).collect());
        self.script.binding = Some(Arc::new(move |event, _| {
            let answer = answer(&event);
            async { answer }.boxed()
        }));
        self
    }

    /// What it says to an invocation.
    pub fn on_invoke<F>(mut self, answer: F) -> Self
    where
        F: Fn(&InvokeRequest) -> Result<InvokeResponse, Status> + Send + Sync + 'static,
    {
        self.script.invoke = Some(Arc::new(move |request, _| {
            let answer = answer(&request);
            async { answer }.boxed()
        }));
        self
    }

    /// It answers health probes.
    pub fn healthy(mut self) -> Self {
        self.script.health = true;
        self
    }

    /// Starts to listen.
    pub async fn start(self) -> GrpcApp {
        let port = self.port.unwrap_or_else(free_port);
        let listener = listen(port).await;
        let shared = Arc::new(Shared {
            script: self.script,
            topics: Mutex::default(),
            bulks: Mutex::default(),
            bindings: Mutex::default(),
            invocations: Mutex::default(),
            probes: AtomicU64::default(),
        });
        let server = Server::builder()
            .add_service(AppCallbackServer::from_arc(Arc::clone(&shared)))
            .add_service(AppCallbackHealthCheckServer::from_arc(Arc::clone(&shared)))
            .add_service(Echo);
        let server = tokio::spawn(async move {
            let _ = server.serve_with_incoming(TcpListenerStream::new(listener)).await;
        });
        GrpcApp { port, shared, server }
    }
}

impl GrpcApp {
    /// Describes an app.
    pub fn builder() -> GrpcAppBuilder {
        GrpcAppBuilder::default()
    }

    /// The port it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Events so far.
    #[must_use]
    pub fn topics(&self) -> Vec<TopicCall> {
        self.shared.topics.lock().clone()
    }

    /// Waits until at least `count` events came in, and returns all of them.
    pub async fn wait_topics(&self, count: usize) -> Vec<TopicCall> {
        wait_until(DEADLINE, &format!("{count} events"), || async { self.topics().len() >= count }).await;
        self.topics()
    }

    /// Bulk deliveries so far.
    #[must_use]
    pub fn bulks(&self) -> Vec<TopicEventBulkRequest> {
        self.shared.bulks.lock().clone()
    }

    /// Events of input bindings so far.
    #[must_use]
    pub fn binding_events(&self) -> Vec<BindingEventRequest> {
        self.shared.bindings.lock().clone()
    }

    /// Invocations so far.
    #[must_use]
    pub fn invocations(&self) -> Vec<(InvokeRequest, MetadataMap)> {
        self.shared.invocations.lock().clone()
    }

    /// Health probes so far.
    #[must_use]
    pub fn probes(&self) -> u64 {
        self.shared.probes.load(Ordering::SeqCst)
    }
}

impl Drop for GrpcApp {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("topics", &self.topics).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for GrpcAppBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrpcAppBuilder").field("port", &self.port).finish_non_exhaustive()
    }
}

/// Also what the servers of SDKs say.
fn unimplemented(what: &str) -> Status {
    Status::new(Code::Unimplemented, format!("{what} is not part of this app"))
}

async fn play<Q, A>(
    handler: Option<&Handler<Q, A>>,
    what: &str,
    message: Q,
    metadata: MetadataMap,
) -> Result<Response<A>, Status> {
    match handler {
        Some(handler) => handler(message, metadata).await.map(Response::new),
        None => Err(unimplemented(what)),
    }
}

#[async_trait::async_trait]
impl AppCallback for Shared {
    async fn on_invoke(&self, request: Request<InvokeRequest>) -> Result<Response<InvokeResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        self.invocations.lock().push((message.clone(), metadata.clone()));
        play(self.script.invoke.as_ref(), "OnInvoke", message, metadata).await
    }

    async fn list_topic_subscriptions(
        &self,
        _request: Request<()>,
    ) -> Result<Response<ListTopicSubscriptionsResponse>, Status> {
        let Some(subscriptions) = self.script.subscriptions.clone() else {
            return Err(unimplemented("ListTopicSubscriptions"));
        };
        Ok(Response::new(ListTopicSubscriptionsResponse { subscriptions }))
    }

    async fn on_topic_event(
        &self,
        request: Request<TopicEventRequest>,
    ) -> Result<Response<TopicEventResponse>, Status> {
        let (metadata, _, event) = request.into_parts();
        self.topics.lock().push(TopicCall { event: event.clone(), metadata: metadata.clone() });
        play(self.script.topic.as_ref(), "OnTopicEvent", event, metadata).await
    }

    async fn list_input_bindings(&self, _request: Request<()>) -> Result<Response<ListInputBindingsResponse>, Status> {
        let Some(bindings) = self.script.bindings.clone() else { return Err(unimplemented("ListInputBindings")) };
        Ok(Response::new(ListInputBindingsResponse { bindings }))
    }

    async fn on_binding_event(
        &self,
        request: Request<BindingEventRequest>,
    ) -> Result<Response<BindingEventResponse>, Status> {
        let (metadata, _, event) = request.into_parts();
        self.bindings.lock().push(event.clone());
        play(self.script.binding.as_ref(), "OnBindingEvent", event, metadata).await
    }

    async fn on_bulk_topic_event(
        &self,
        request: Request<TopicEventBulkRequest>,
    ) -> Result<Response<TopicEventBulkResponse>, Status> {
        let (metadata, _, events) = request.into_parts();
        self.bulks.lock().push(events.clone());
        play(self.script.bulk.as_ref(), "OnBulkTopicEvent", events, metadata).await
    }

    async fn on_job_event(&self, _request: Request<JobEventRequest>) -> Result<Response<JobEventResponse>, Status> {
        Err(unimplemented("OnJobEvent"))
    }
}

#[async_trait::async_trait]
impl AppCallbackHealthCheck for Shared {
    async fn health_check(&self, _request: Request<()>) -> Result<Response<HealthCheckResponse>, Status> {
        self.probes.fetch_add(1, Ordering::SeqCst);
        if self.script.health { Ok(Response::new(HealthCheckResponse {})) } else { Err(unimplemented("HealthCheck")) }
    }
}
