//! A sidecar in Kubernetes mode follows the documents of the operator, here a double of it.

use std::sync::Arc;
use std::time::Duration;

use mecha_proto::operator as wire;
use mecha_proto::operator::ResourceEventType;
use mecha_proto::operator::operator_server::{Operator, OperatorServer};
use mecha_tests::{Answer as Reply, Authority, HttpApp, Sidecar, Signal, eventually};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{BroadcastStream, TcpListenerStream};
use tonic::{Request, Response, Status};

use crate::load::{Ask, Load, To};
use crate::support::LIMIT;

type Answer<T> = Result<Response<T>, Status>;
type Events<T> = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

/// What the cluster holds of a kind, and who follows it.
#[derive(Clone)]
struct Kind<E> {
    all: Arc<Mutex<Vec<Value>>>,
    events: broadcast::Sender<E>,
}

#[derive(Clone)]
struct Double {
    components: Kind<wire::ComponentUpdateEvent>,
    subscriptions: Kind<wire::SubscriptionUpdateEvent>,
    endpoints: Kind<wire::HttpEndpointUpdateEvent>,
    resiliencies: Kind<wire::ResiliencyUpdateEvent>,
    configurations: Kind<wire::ConfigurationUpdateEvent>,
    /// Cuts every stream off.
    cut: watch::Sender<u32>,
}

impl<E: Clone + Send + 'static> Kind<E> {
    fn of(all: Vec<Value>) -> Self {
        Self { all: Arc::new(Mutex::new(all)), events: broadcast::Sender::new(64) }
    }

    fn list<B: From<String>>(&self) -> Vec<B> {
        self.all.lock().iter().map(|c| c.to_string().into()).collect()
    }

    fn follow(&self, cut: &watch::Sender<u32>) -> Answer<Events<E>> {
        let events = BroadcastStream::new(self.events.subscribe()).filter_map(|e| e.ok().map(Ok));
        let mut cut = cut.subscribe();
        let now = *cut.borrow_and_update();
        let end = async move { cut.wait_for(|n| *n > now).await.map(drop) };
        Ok(Response::new(Box::pin(futures_util::StreamExt::take_until(events, Box::pin(end)))))
    }
}

fn unknown<T>() -> Answer<T> {
    Err(Status::unimplemented("not in this cluster"))
}

#[tonic::async_trait]
impl Operator for Double {
    type ComponentUpdateStream = Events<wire::ComponentUpdateEvent>;
    type SubscriptionUpdateStream = Events<wire::SubscriptionUpdateEvent>;
    type HTTPEndpointUpdateStream = Events<wire::HttpEndpointUpdateEvent>;
    type MCPServerUpdateStream = Events<wire::McpServerUpdateEvent>;
    type ConfigurationUpdateStream = Events<wire::ConfigurationUpdateEvent>;
    type ResiliencyUpdateStream = Events<wire::ResiliencyUpdateEvent>;
    type WorkflowAccessPolicyUpdateStream = Events<wire::WorkflowAccessPolicyUpdateEvent>;

    async fn component_update(&self, _: Request<wire::ComponentUpdateRequest>) -> Answer<Self::ComponentUpdateStream> {
        self.components.follow(&self.cut)
    }

    async fn list_components(&self, _: Request<wire::ListComponentsRequest>) -> Answer<wire::ListComponentResponse> {
        Ok(Response::new(wire::ListComponentResponse { components: self.components.list() }))
    }

    async fn get_configuration(
        &self,
        request: Request<wire::GetConfigurationRequest>,
    ) -> Answer<wire::GetConfigurationResponse> {
        let all = self.configurations.all.lock();
        let found = all.iter().find(|c| c["metadata"]["name"] == *request.get_ref().name);
        let found = found.ok_or_else(|| Status::not_found("no such configuration"))?;
        Ok(Response::new(wire::GetConfigurationResponse { configuration: found.to_string().into() }))
    }

    async fn list_subscriptions(&self, _: Request<()>) -> Answer<wire::ListSubscriptionsResponse> {
        unknown()
    }

    async fn get_resiliency(&self, _: Request<wire::GetResiliencyRequest>) -> Answer<wire::GetResiliencyResponse> {
        unknown()
    }

    async fn list_resiliency(&self, _: Request<wire::ListResiliencyRequest>) -> Answer<wire::ListResiliencyResponse> {
        Ok(Response::new(wire::ListResiliencyResponse { resiliencies: self.resiliencies.list() }))
    }

    async fn list_subscriptions_v2(
        &self,
        _: Request<wire::ListSubscriptionsRequest>,
    ) -> Answer<wire::ListSubscriptionsResponse> {
        Ok(Response::new(wire::ListSubscriptionsResponse { subscriptions: self.subscriptions.list() }))
    }

    async fn subscription_update(
        &self,
        _: Request<wire::SubscriptionUpdateRequest>,
    ) -> Answer<Self::SubscriptionUpdateStream> {
        self.subscriptions.follow(&self.cut)
    }

    async fn list_http_endpoints(
        &self,
        _: Request<wire::ListHttpEndpointsRequest>,
    ) -> Answer<wire::ListHttpEndpointsResponse> {
        Ok(Response::new(wire::ListHttpEndpointsResponse { http_endpoints: self.endpoints.list() }))
    }

    async fn http_endpoint_update(
        &self,
        _: Request<wire::HttpEndpointUpdateRequest>,
    ) -> Answer<Self::HTTPEndpointUpdateStream> {
        self.endpoints.follow(&self.cut)
    }

    async fn list_mcp_servers(&self, _: Request<wire::ListMcpServersRequest>) -> Answer<wire::ListMcpServersResponse> {
        unknown()
    }

    async fn mcp_server_update(&self, _: Request<wire::McpServerUpdateRequest>) -> Answer<Self::MCPServerUpdateStream> {
        unknown()
    }

    async fn configuration_update(
        &self,
        _: Request<wire::ConfigurationUpdateRequest>,
    ) -> Answer<Self::ConfigurationUpdateStream> {
        self.configurations.follow(&self.cut)
    }

    async fn resiliency_update(
        &self,
        _: Request<wire::ResiliencyUpdateRequest>,
    ) -> Answer<Self::ResiliencyUpdateStream> {
        self.resiliencies.follow(&self.cut)
    }

    async fn list_workflow_access_policy(
        &self,
        _: Request<wire::ListWorkflowAccessPolicyRequest>,
    ) -> Answer<wire::ListWorkflowAccessPolicyResponse> {
        unknown()
    }

    async fn workflow_access_policy_update(
        &self,
        _: Request<wire::WorkflowAccessPolicyUpdateRequest>,
    ) -> Answer<Self::WorkflowAccessPolicyUpdateStream> {
        unknown()
    }
}

impl Double {
    fn new(components: Vec<Value>) -> Self {
        Self {
            components: Kind::of(components),
            subscriptions: Kind::of(Vec::new()),
            endpoints: Kind::of(Vec::new()),
            resiliencies: Kind::of(Vec::new()),
            configurations: Kind::of(Vec::new()),
            cut: watch::Sender::new(0),
        }
    }

    async fn start(components: Vec<Value>) -> (Self, u16) {
        let double = Self::new(components);
        let port = double.serve().await;
        (double, port)
    }

    async fn serve(&self) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let service = OperatorServer::new(self.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        port
    }

    fn tell(&self, component: &Value, change: ResourceEventType) {
        let event = wire::ComponentUpdateEvent { component: component.to_string().into(), r#type: change.into() };
        self.components.events.send(event).unwrap();
    }
}

/// A component as the operator writes it: Go's members, no kind.
fn memory(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "creationTimestamp": null},
        "spec": {"type": "state.in-memory", "version": "v1", "ignoreErrors": false, "initTimeout": "", "metadata": []},
        "auth": {"secretStore": ""},
    })
}

async fn until(sidecar: &Sidecar, wanted: &[&str]) {
    eventually(&format!("components {wanted:?}"), || async {
        let document = sidecar.metadata().await;
        let mut names: Vec<_> =
            document["components"].as_array()?.iter().filter_map(|c| c["name"].as_str().map(str::to_owned)).collect();
        names.sort();
        (names == wanted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn documents_of_the_operator_are_followed_and_survive_its_absence() {
    let (double, port) = Double::start(vec![memory("first")]).await;
    let sidecar = Sidecar::builder()
        .app_id("me")
        .without("resources-path")
        .flag("mode", "kubernetes")
        .switch("enable-mtls=false")
        .flag("control-plane-address", format!("127.0.0.1:{port}"))
        .env("NAMESPACE", "shop")
        .start()
        .await;
    until(&sidecar, &["first"]).await;
    let mut load = Load::default();
    let ask = Ask::get("/v1.0/state/first/none", 204);
    load.keep_alive("kept", To::Tcp(sidecar.http_port()), Duration::from_millis(5), vec![ask]);
    double.tell(&memory("second"), ResourceEventType::Created);
    until(&sidecar, &["first", "second"]).await;
    double.tell(&memory("second"), ResourceEventType::Deleted);
    until(&sidecar, &["first"]).await;
    // What happens while nobody follows is found by listing again.
    double.components.all.lock().push(memory("third"));
    double.cut.send_modify(|n| *n += 1);
    sidecar.wait_log("the last documents stay in use").await;
    until(&sidecar, &["first", "third"]).await;
    load.progress(20).await;
    load.finish().await;
    sidecar.signal(Signal::Term);
    let ended = sidecar.ended(LIMIT).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
}

/// A document as the operator writes it.
fn document(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "creationTimestamp": null}, "spec": spec})
}

/// Waits for the receipt of a change after `generation`, and returns its number.
async fn applied(sidecar: &Sidecar, generation: u64, kind: &str, name: &str) -> u64 {
    eventually(&format!("a change of {kind} {name} after generation {generation}"), || async {
        let all = sidecar.http().get("/v1.0-mecha/swaps").send().await.expect(200).json();
        let mine = |r: &&Value| r["generation"].as_u64() > Some(generation) && r["kind"] == kind && r["name"] == name;
        let receipt = all["swaps"].as_array()?.iter().find(mine)?.clone();
        assert_eq!(receipt["outcome"], "applied", "{receipt}");
        receipt["generation"].as_u64()
    })
    .await
}

#[tokio::test]
async fn every_kind_of_document_follows_the_streams_of_the_operator() {
    let app = HttpApp::builder()
        .on("/orders", Reply::status(200))
        .on("/who", Reply::text("outside"))
        .on("/slow", Reply::status(500))
        .start()
        .await;
    let mut bus = memory("bus");
    bus["spec"]["type"] = "pubsub.in-memory".into();
    let double = Double::new(vec![memory("first"), bus]);
    let configuration = |spec: Value| document("main", spec);
    *double.configurations.all.lock() = vec![configuration(json!({"features": []}))];
    let port = double.serve().await;
    let sidecar = Sidecar::builder()
        .app_id("me")
        .app(&app)
        .without("resources-path")
        .flag("mode", "kubernetes")
        .flag("config", "main")
        .switch("enable-mtls=false")
        .switch("mecha-strict")
        .flag("control-plane-address", format!("127.0.0.1:{port}"))
        .env("NAMESPACE", "shop")
        .start()
        .await;
    until(&sidecar, &["bus", "first"]).await;
    let http = sidecar.http();
    let mut load = Load::default();
    let ask = Ask::get("/v1.0/state/first/none", 204);
    load.keep_alive("kept", To::Tcp(sidecar.http_port()), Duration::from_millis(5), vec![ask]);
    let (created, updated) = (ResourceEventType::Created.into(), ResourceEventType::Updated.into());

    let orders = document("orders", json!({"pubsubname": "bus", "topic": "orders", "routes": {"default": "/orders"}}));
    let event = wire::SubscriptionUpdateEvent { subscription: orders.to_string().into(), r#type: created };
    double.subscriptions.events.send(event).unwrap();
    let generation = applied(&sidecar, 0, "Subscription", "orders").await;
    eventually("an event of the subscription", || async {
        http.post("/v1.0/publish/bus/orders", "{}").send().await.expect(204);
        (!app.calls("POST /orders").is_empty()).then_some(())
    })
    .await;

    let outside = document("outside", json!({"baseUrl": format!("http://127.0.0.1:{}", app.port())}));
    let event = wire::HttpEndpointUpdateEvent { http_endpoints: outside.to_string().into(), r#type: created };
    double.endpoints.events.send(event).unwrap();
    let generation = applied(&sidecar, generation, "HTTPEndpoint", "outside").await;
    assert_eq!(http.get("/v1.0/invoke/outside/method/who").send().await.expect(200).text(), "outside");

    let policy = json!({"policy": "constant", "duration": "1ms", "maxRetries": 2});
    let policies = document(
        "policies",
        json!({"policies": {"retries": {"some": policy}}, "targets": {"apps": {"outside": {"retry": "some"}}}}),
    );
    let event = wire::ResiliencyUpdateEvent { resiliency: policies.to_string().into(), r#type: created };
    double.resiliencies.events.send(event).unwrap();
    let generation = applied(&sidecar, generation, "Resiliency", "policies").await;
    http.get("/v1.0/invoke/outside/method/slow").send().await.expect(500);
    assert_eq!(app.calls("/slow").len(), 3);

    let tell = |spec: Value| {
        let configuration = configuration(spec).to_string().into();
        let event = wire::ConfigurationUpdateEvent { configuration, r#type: updated };
        double.configurations.events.send(event).unwrap();
    };
    tell(json!({"metrics": {"http": {"excludeVerbs": true}}}));
    let generation = applied(&sidecar, generation, "Configuration", "main").await;
    assert!(!sidecar.metrics().await.contains("method=\"GET\""));
    // The same again is no change: the next one is the next number.
    tell(json!({"metrics": {"http": {"excludeVerbs": true}}}));
    double.tell(&memory("second"), ResourceEventType::Created);
    assert_eq!(applied(&sidecar, generation, "Component", "second").await, generation + 1);

    // One that cannot be used leaves the one of before, and not the defaults.
    tell(json!({"metrics": {"http": {"excludeVerbs": "now and then"}}}));
    let reason = eventually("the Configuration to be refused", || async {
        let phase = http.get("/v1.0-mecha/phase").send().await.expect(200).json();
        let refused = phase["refused"].as_array().unwrap().iter().find(|r| r["kind"] == "Configuration")?.clone();
        (refused["name"] == "main").then(|| refused["reason"].as_str().unwrap().to_owned())
    })
    .await;
    assert!(reason.contains("excludeVerbs"), "{reason}");
    http.get("/v1.0/state/first/none").send().await.expect(204);
    assert!(!sidecar.metrics().await.contains("method=\"GET\""));

    load.progress(20).await;
    load.finish().await;
    sidecar.signal(Signal::Term);
    let ended = sidecar.ended(LIMIT).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
}

#[tokio::test]
async fn the_operator_is_met_over_mtls_and_has_to_be_itself() {
    let authority = Authority::start().await;
    let service = || OperatorServer::new(Double::new(vec![memory("first")]));
    let (right, _right) = authority.serve_part("dapr-operator", service()).await;
    let (wrong, _wrong) = authority.serve_part("dapr-placement", service()).await;
    let builder = |port: u16| {
        let builder = Sidecar::builder().app_id("me").without("resources-path").flag("mode", "kubernetes");
        let builder = builder.flag("control-plane-address", format!("127.0.0.1:{port}")).env("NAMESPACE", "shop");
        authority.secure(builder)
    };
    let sidecar = builder(right).start().await;
    until(&sidecar, &["first"]).await;
    let deceived = builder(wrong).spawn();
    deceived
        .wait_log(
            "the peer is spiffe://cluster.local/ns/mecha-system/dapr-placement, expected was \
             spiffe://cluster.local/ns/mecha-system/dapr-operator",
        )
        .await;
}
