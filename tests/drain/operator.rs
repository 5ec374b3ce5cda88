//! A sidecar in Kubernetes mode follows the documents of the operator, here a double of it.

use std::sync::Arc;
use std::time::Duration;

use mecha_proto::operator as wire;
use mecha_proto::operator::ResourceEventType;
use mecha_proto::operator::operator_server::{Operator, OperatorServer};
use mecha_tests::{Authority, Sidecar, Signal, eventually};
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

/// What the cluster holds, and who follows it.
#[derive(Clone)]
struct Double {
    components: Arc<Mutex<Vec<Value>>>,
    events: broadcast::Sender<wire::ComponentUpdateEvent>,
    /// Cuts every stream off.
    cut: watch::Sender<u32>,
}

fn never<T>() -> Answer<Events<T>>
where
    T: Send + 'static,
{
    Ok(Response::new(Box::pin(tokio_stream::pending())))
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
        let events = BroadcastStream::new(self.events.subscribe()).filter_map(|e| e.ok().map(Ok));
        let mut cut = self.cut.subscribe();
        let now = *cut.borrow_and_update();
        let end = async move { cut.wait_for(|n| *n > now).await.map(drop) };
        Ok(Response::new(Box::pin(futures_util::StreamExt::take_until(events, Box::pin(end)))))
    }

    async fn list_components(&self, _: Request<wire::ListComponentsRequest>) -> Answer<wire::ListComponentResponse> {
        let components = self.components.lock().iter().map(|c| c.to_string().into()).collect();
        Ok(Response::new(wire::ListComponentResponse { components }))
    }

    async fn get_configuration(
        &self,
        _: Request<wire::GetConfigurationRequest>,
    ) -> Answer<wire::GetConfigurationResponse> {
        unknown()
    }

    async fn list_subscriptions(&self, _: Request<()>) -> Answer<wire::ListSubscriptionsResponse> {
        unknown()
    }

    async fn get_resiliency(&self, _: Request<wire::GetResiliencyRequest>) -> Answer<wire::GetResiliencyResponse> {
        unknown()
    }

    async fn list_resiliency(&self, _: Request<wire::ListResiliencyRequest>) -> Answer<wire::ListResiliencyResponse> {
        Ok(Response::new(Default::default()))
    }

    async fn list_subscriptions_v2(
        &self,
        _: Request<wire::ListSubscriptionsRequest>,
    ) -> Answer<wire::ListSubscriptionsResponse> {
        Ok(Response::new(Default::default()))
    }

    async fn subscription_update(
        &self,
        _: Request<wire::SubscriptionUpdateRequest>,
    ) -> Answer<Self::SubscriptionUpdateStream> {
        never()
    }

    async fn list_http_endpoints(
        &self,
        _: Request<wire::ListHttpEndpointsRequest>,
    ) -> Answer<wire::ListHttpEndpointsResponse> {
        Ok(Response::new(Default::default()))
    }

    async fn http_endpoint_update(
        &self,
        _: Request<wire::HttpEndpointUpdateRequest>,
    ) -> Answer<Self::HTTPEndpointUpdateStream> {
        never()
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
        never()
    }

    async fn resiliency_update(
        &self,
        _: Request<wire::ResiliencyUpdateRequest>,
    ) -> Answer<Self::ResiliencyUpdateStream> {
        never()
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
            components: Arc::new(Mutex::new(components)),
            events: broadcast::Sender::new(64),
            cut: watch::Sender::new(0),
        }
    }

    async fn start(components: Vec<Value>) -> (Self, u16) {
        let double = Self::new(components);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let service = OperatorServer::new(double.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (double, port)
    }

    fn tell(&self, component: &Value, change: ResourceEventType) {
        let event = wire::ComponentUpdateEvent { component: component.to_string().into(), r#type: change.into() };
        self.events.send(event).unwrap();
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
    double.components.lock().push(memory("third"));
    double.cut.send_modify(|n| *n += 1);
    sidecar.wait_log("the last documents stay in use").await;
    until(&sidecar, &["first", "third"]).await;
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
