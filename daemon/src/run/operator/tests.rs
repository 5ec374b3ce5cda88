//! Against a double of the operator, over a real connection.

use std::sync::Arc;
use std::time::Duration;

use mecha_proto::operator::operator_server::{Operator as Service, OperatorServer};
use mecha_proto::operator::*;
use mecha_resources::Resource as _;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{BroadcastStream, TcpListenerStream};
use tonic::{Request, Response, Status};

use super::super::source::{Depth, Source};
use super::link::Settings;
use super::{Operator, documents};
use crate::identity::ControlPlane;

const LIMIT: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Cluster {
    components: Mutex<Vec<Value>>,
    configurations: Mutex<Vec<Value>>,
}

#[derive(Clone)]
struct Double {
    cluster: Arc<Cluster>,
    components: broadcast::Sender<ComponentUpdateEvent>,
    configurations: broadcast::Sender<ConfigurationUpdateEvent>,
}

type Updates<T> = std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<T, Status>> + Send>>;

fn updates<T: Clone + Send + 'static>(from: &broadcast::Sender<T>) -> Result<Response<Updates<T>>, Status> {
    let events = BroadcastStream::new(from.subscribe()).filter_map(|e| e.ok().map(Ok));
    Ok(Response::new(Box::pin(events)))
}

fn bytes(values: &[Value]) -> Vec<bytes::Bytes> {
    values.iter().map(|v| v.to_string().into()).collect()
}

#[tonic::async_trait]
impl Service for Double {
    type ComponentUpdateStream = Updates<ComponentUpdateEvent>;
    type SubscriptionUpdateStream = Updates<SubscriptionUpdateEvent>;
    type HTTPEndpointUpdateStream = Updates<HttpEndpointUpdateEvent>;
    type MCPServerUpdateStream = Updates<McpServerUpdateEvent>;
    type ConfigurationUpdateStream = Updates<ConfigurationUpdateEvent>;
    type ResiliencyUpdateStream = Updates<ResiliencyUpdateEvent>;
    type WorkflowAccessPolicyUpdateStream = Updates<WorkflowAccessPolicyUpdateEvent>;

    async fn component_update(
        &self,
        _: Request<ComponentUpdateRequest>,
    ) -> Result<Response<Self::ComponentUpdateStream>, Status> {
        updates(&self.components)
    }

    async fn list_components(
        &self,
        request: Request<ListComponentsRequest>,
    ) -> Result<Response<ListComponentResponse>, Status> {
        assert_eq!(request.get_ref().namespace, "shop");
        Ok(Response::new(ListComponentResponse { components: bytes(&self.cluster.components.lock()) }))
    }

    async fn get_configuration(
        &self,
        request: Request<GetConfigurationRequest>,
    ) -> Result<Response<GetConfigurationResponse>, Status> {
        let name = &request.get_ref().name;
        let all = self.cluster.configurations.lock();
        let found = all.iter().find(|c| c["metadata"]["name"] == **name);
        let found = found.ok_or_else(|| Status::not_found("no such configuration"))?;
        Ok(Response::new(GetConfigurationResponse { configuration: found.to_string().into() }))
    }

    async fn list_subscriptions(&self, _: Request<()>) -> Result<Response<ListSubscriptionsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_resiliency(
        &self,
        _: Request<GetResiliencyRequest>,
    ) -> Result<Response<GetResiliencyResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_resiliency(
        &self,
        _: Request<ListResiliencyRequest>,
    ) -> Result<Response<ListResiliencyResponse>, Status> {
        Ok(Response::new(ListResiliencyResponse { resiliencies: Vec::new() }))
    }

    async fn list_subscriptions_v2(
        &self,
        _: Request<ListSubscriptionsRequest>,
    ) -> Result<Response<ListSubscriptionsResponse>, Status> {
        let subscription = json!({
            "metadata": {"name": "orders", "namespace": "shop", "creationTimestamp": null},
            "spec": {"pubsubname": "events", "topic": "orders", "routes": {"default": "/orders"}},
            "scopes": null,
        });
        Ok(Response::new(ListSubscriptionsResponse { subscriptions: bytes(&[subscription]) }))
    }

    async fn subscription_update(
        &self,
        _: Request<SubscriptionUpdateRequest>,
    ) -> Result<Response<Self::SubscriptionUpdateStream>, Status> {
        Ok(Response::new(Box::pin(futures_util::stream::pending())))
    }

    async fn list_http_endpoints(
        &self,
        _: Request<ListHttpEndpointsRequest>,
    ) -> Result<Response<ListHttpEndpointsResponse>, Status> {
        let endpoint = json!({
            "kind": "HTTPEndpoint", "apiVersion": "dapr.io/v1alpha1",
            "metadata": {"name": "bank", "namespace": "shop"},
            "spec": {"baseUrl": "https://bank.example", "headers": [
                {"name": "key", "value": "czNjcmV0", "secretKeyRef": {"name": "bank", "key": "key"}},
            ]},
            "auth": {"secretStore": "kubernetes"},
        });
        Ok(Response::new(ListHttpEndpointsResponse { http_endpoints: bytes(&[endpoint]) }))
    }

    async fn http_endpoint_update(
        &self,
        _: Request<HttpEndpointUpdateRequest>,
    ) -> Result<Response<Self::HTTPEndpointUpdateStream>, Status> {
        Ok(Response::new(Box::pin(futures_util::stream::pending())))
    }

    async fn list_mcp_servers(
        &self,
        _: Request<ListMcpServersRequest>,
    ) -> Result<Response<ListMcpServersResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn mcp_server_update(
        &self,
        _: Request<McpServerUpdateRequest>,
    ) -> Result<Response<Self::MCPServerUpdateStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn configuration_update(
        &self,
        _: Request<ConfigurationUpdateRequest>,
    ) -> Result<Response<Self::ConfigurationUpdateStream>, Status> {
        updates(&self.configurations)
    }

    // As an operator that is too old for it.
    async fn resiliency_update(
        &self,
        _: Request<ResiliencyUpdateRequest>,
    ) -> Result<Response<Self::ResiliencyUpdateStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_workflow_access_policy(
        &self,
        _: Request<ListWorkflowAccessPolicyRequest>,
    ) -> Result<Response<ListWorkflowAccessPolicyResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn workflow_access_policy_update(
        &self,
        _: Request<WorkflowAccessPolicyUpdateRequest>,
    ) -> Result<Response<Self::WorkflowAccessPolicyUpdateStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

impl Double {
    fn new() -> Self {
        let cluster = Arc::new(Cluster::default());
        Self { cluster, components: broadcast::Sender::new(64), configurations: broadcast::Sender::new(64) }
    }

    /// Serves at `port`, or any; the task ends all connections when it is aborted.
    async fn serve(&self, port: u16) -> (u16, tokio::task::JoinHandle<()>) {
        let listener = loop {
            match TcpListener::bind(("127.0.0.1", port)).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let port = listener.local_addr().unwrap().port();
        let service = OperatorServer::new(self.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        let task = tokio::spawn(async move {
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        (port, task)
    }

    fn tell(&self, component: &Value, change: ResourceEventType) {
        let event = ComponentUpdateEvent { component: component.to_string().into(), r#type: change.into() };
        self.components.send(event).unwrap();
    }
}

fn component(name: &str, value: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"type": "state.in-memory", "version": "v1", "ignoreErrors": false, "initTimeout": "", "metadata": [
            {"name": "plain", "value": value, "secretKeyRef": {"name": "", "key": ""}},
        ]},
        "auth": {"secretStore": ""},
    })
}

fn source(port: u16, configurations: &[&str]) -> Operator {
    Operator::with(Settings {
        plane: ControlPlane::new(&format!("127.0.0.1:{port}"), "dapr-operator", None).unwrap(),
        namespace: "shop".into(),
        configurations: configurations.iter().map(|c| (*c).to_owned()).collect(),
        relist_every: Duration::from_secs(60),
    })
}

async fn names(source: &Operator) -> Vec<String> {
    let set = source.list(Depth::Watched).await.unwrap();
    assert!(!set.loaded.has_errors(), "{:?}", set.loaded.diagnostics);
    set.loaded.components.iter().map(|c| c.value.name().to_owned()).collect()
}

async fn changed(source: &Operator) {
    tokio::time::timeout(LIMIT, source.changed()).await.expect("a change is noticed");
}

async fn until(source: &Operator, wanted: &[&str]) {
    while names(source).await != wanted {
        changed(source).await;
    }
}

#[tokio::test]
async fn a_listing_gives_all_kinds_and_events_change_it() {
    let double = Double::new();
    *double.cluster.components.lock() = vec![component("a", "1")];
    *double.cluster.configurations.lock() = vec![json!({
        "metadata": {"name": "main", "namespace": "shop"},
        "spec": {"tracing": {"samplingRate": "0.5"}},
    })];
    let (port, server) = double.serve(0).await;
    let source = source(port, &["main"]);
    let set = source.list(Depth::Everything).await.unwrap();
    assert!(!set.loaded.has_errors(), "{:?}", set.loaded.diagnostics);
    assert!(set.configuration.tracing.is_some());
    assert_eq!(set.loaded.components.len(), 1);
    assert_eq!(set.loaded.subscriptions.len(), 1);
    let endpoint = &set.loaded.http_endpoints[0].value;
    let header = &endpoint.headers[0].value;
    assert!(matches!(header, mecha_resources::ValueSource::Plain(v) if v.expose() == "s3cret"), "{header:?}");

    double.tell(&component("b", "1"), ResourceEventType::Created);
    until(&source, &["a", "b"]).await;
    // Another namespace's is none of ours.
    let mut foreign = component("c", "1");
    foreign["metadata"]["namespace"] = "other".into();
    double.tell(&foreign, ResourceEventType::Created);
    double.tell(&component("a", "2"), ResourceEventType::Deleted);
    until(&source, &["b"]).await;
    // The same again is no change.
    double.tell(&component("b", "1"), ResourceEventType::Updated);
    let same = tokio::time::timeout(Duration::from_millis(200), source.changed()).await;
    assert!(same.is_err(), "a resource that stays the same is no change");
    // A Configuration that is not in use counts for nothing; the one in use does.
    for (name, rate) in [("other", "1"), ("main", "0.25")] {
        let document = json!({
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"tracing": {"samplingRate": rate}},
        });
        let event = ConfigurationUpdateEvent {
            configuration: document.to_string().into(),
            r#type: ResourceEventType::Updated.into(),
        };
        double.configurations.send(event).unwrap();
    }
    changed(&source).await;
    let set = source.list(Depth::Watched).await.unwrap();
    assert_eq!(set.loaded.configurations.len(), 1);
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_lost_connection_everything_is_listed_anew_and_the_last_set_stays_till_then() {
    let double = Double::new();
    *double.cluster.components.lock() = vec![component("a", "1")];
    // A runtime of its own, so that ending it ends its connections.
    let serve = |port: u16| {
        let double = double.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (port, _) =
            std::thread::scope(|scope| scope.spawn(|| runtime.block_on(double.serve(port))).join().unwrap());
        (port, runtime)
    };
    let (port, first) = serve(0);
    let source = source(port, &[]);
    assert_eq!(names(&source).await, ["a"]);
    first.shutdown_background();
    *double.cluster.components.lock() = vec![component("a", "1"), component("b", "1")];
    assert_eq!(names(&source).await, ["a"], "what is known stays in use");
    let (_, second) = serve(port);
    until(&source, &["a", "b"]).await;
    second.shutdown_background();
}

#[tokio::test]
async fn a_start_waits_for_its_configuration() {
    let double = Double::new();
    let (port, server) = double.serve(0).await;
    let source = Arc::new(source(port, &["late"]));
    let listing = tokio::spawn({
        let source = source.clone();
        async move { source.list(Depth::Everything).await.map(|set| set.configuration) }
    });
    assert!(!listing.is_finished());
    double.cluster.configurations.lock().push(json!({
        "metadata": {"name": "late", "namespace": "shop"}, "spec": {"tracing": {"samplingRate": "1"}},
    }));
    let configuration = tokio::time::timeout(LIMIT, listing).await.unwrap().unwrap().unwrap();
    assert!(configuration.tracing.is_some());
    server.abort();
}

#[test]
fn a_resource_that_cannot_be_read_is_named_without_its_content() {
    let secret = json!({
        "metadata": {"name": "db"},
        "spec": {"metadata": [{"name": "password", "value": "%%hunter2", "secretKeyRef": {"name": "s", "key": "k"}}]},
    });
    let read = |v: Value| documents::Item::read(documents::Kind::Component, &v.to_string().into(), "shop");
    let error = read(secret).unwrap_err();
    assert!(error.contains("db") && error.contains("password") && !error.contains("hunter2"), "{error}");
    assert!(read(json!([])).is_err());
    assert!(read(json!({"metadata": {}})).is_err());
    // A store of the sidecar's own: the reference stays, and it reads the secret.
    let own = json!({
        "metadata": {"name": "db"},
        "spec": {"type": "state.redis", "version": "v1",
                 "metadata": [{"name": "password", "value": "", "secretKeyRef": {"name": "s", "key": "k"}}]},
        "auth": {"secretStore": "vault"},
    });
    let item = read(own).unwrap().unwrap();
    assert_eq!(item.value["spec"]["metadata"][0]["secretKeyRef"]["name"], "s");
}
