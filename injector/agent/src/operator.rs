//! Dapr's own protocol: lists of what there is, and streams of what changes.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use mecha_proto::operator::operator_server::Operator;
use mecha_proto::operator::{
    ComponentUpdateEvent, ComponentUpdateRequest, ConfigurationUpdateEvent, ConfigurationUpdateRequest,
    GetConfigurationRequest, GetConfigurationResponse, GetResiliencyRequest, GetResiliencyResponse,
    HttpEndpointUpdateEvent, HttpEndpointUpdateRequest, ListComponentResponse, ListComponentsRequest,
    ListHttpEndpointsRequest, ListHttpEndpointsResponse, ListMcpServersRequest, ListMcpServersResponse,
    ListResiliencyRequest, ListResiliencyResponse, ListSubscriptionsRequest, ListSubscriptionsResponse,
    ListWorkflowAccessPolicyRequest, ListWorkflowAccessPolicyResponse, McpServerUpdateEvent, McpServerUpdateRequest,
    ResiliencyUpdateEvent, ResiliencyUpdateRequest, ResourceEventType, SubscriptionUpdateEvent,
    SubscriptionUpdateRequest, WorkflowAccessPolicyUpdateEvent, WorkflowAccessPolicyUpdateRequest,
};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use crate::desk::{Caller, Desk};
use crate::document::{Document, Kind};
use crate::metrics::{Protocol, Refusal};
use crate::serve::{Served, caller};

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves `dapr.proto.operator.v1.Operator`.
#[derive(Clone)]
pub(crate) struct Documents {
    served: Arc<Served>,
}

impl Documents {
    pub(crate) fn new(served: Arc<Served>) -> Self {
        Self { served }
    }

    /// Who asks, if for its own namespace. A client that names none means its own.
    fn admit<T>(&self, request: &Request<T>, namespace: &str) -> Result<Caller, Status> {
        let caller = caller(request)?;
        if !namespace.is_empty() && namespace != caller.namespace {
            self.served.metrics.refused(Refusal::Namespace);
            return Err(Status::permission_denied(format!(
                "the certificate is for namespace {}, the request for {namespace}; a sidecar reads its own only",
                caller.namespace
            )));
        }
        Ok(caller)
    }

    fn desk(&self, caller: Caller) -> Desk {
        Desk::new(self.served.world.enter(&caller.namespace), caller)
    }

    /// Everything of a kind. As with Dapr's operator, it fails as long as the value of a secret is missing: a list
    /// that leaves a document out would have it closed.
    async fn list(&self, caller: Caller, kind: Kind) -> Result<Vec<Bytes>, Status> {
        let mut desk = self.desk(caller);
        let published = desk.look();
        let documents = desk.select_kind(&published, kind);
        desk.hold(documents.iter().map(|d| d.owner())).await;
        documents.iter().map(|document| filled(&desk, document)).collect()
    }

    async fn get(&self, caller: Caller, kind: Kind, name: &str) -> Result<Bytes, Status> {
        let mut desk = self.desk(caller);
        let published = desk.look();
        let namespace = &desk.caller().namespace;
        let found = published.view.get(kind, name).filter(|document| document.concerns(&desk.caller().app_id));
        let document = found
            .cloned()
            .ok_or_else(|| Status::not_found(format!("there is no {} {name} in namespace {namespace}", kind.name())))?;
        desk.hold([document.owner()]).await;
        filled(&desk, &document)
    }

    /// Tells of every change of a kind from now on.
    async fn follow<T: Send + 'static>(
        &self,
        caller: Caller,
        kind: Kind,
        event: fn(Bytes, ResourceEventType) -> T,
    ) -> Result<Response<Events<T>>, Status> {
        // Components are what every stock sidecar follows, on one stream each.
        let counted = match kind {
            Kind::Component => Some(self.served.sidecars.stock(&caller).map_err(|full| {
                self.served.metrics.refused(Refusal::Limit);
                Status::resource_exhausted(full.to_string())
            })?),
            _ => None,
        };
        let gauge = self.served.metrics.stream(Protocol::Dapr);
        let (sender, receiver) = mpsc::channel(1);
        let mut desk = self.desk(caller);
        // Before the answer leaves: a list that is asked for after it has all that is not told from here on.
        let told = documents(&mut desk, kind, &BTreeMap::new()).await;
        let stop = self.served.stop.clone();
        self.served.tasks.spawn("operator stream", async move {
            let _held = (counted, gauge);
            tokio::select! {
                () = tell(&mut desk, kind, told, event, &sender) => {}
                () = sender.closed() => {}
                () = stop.cancelled() => {
                    let _ = sender.try_send(Err(Status::unavailable("the agent stops; connect again")));
                }
            }
        });
        Ok(Response::new(Box::pin(receiver_stream(receiver))))
    }
}

/// A receiver as a stream.
pub(crate) fn receiver_stream<T: Send + 'static>(receiver: mpsc::Receiver<T>) -> impl Stream<Item = T> + Send {
    futures_util::stream::unfold(receiver, |mut receiver| async move {
        let item = receiver.recv().await?;
        Some((item, receiver))
    })
}

fn filled(desk: &Desk, document: &Arc<Document>) -> Result<Bytes, Status> {
    let filled = desk.fill_owner(document);
    if !filled.missing.is_empty() {
        let (kind, name) = (document.kind.name(), &document.name);
        return Err(Status::unavailable(format!("{kind} {name} waits for a secret: {}", filled.missing)));
    }
    Ok(filled.text.into())
}

/// The documents of a kind by name. One that waits for a secret stays as it was in `told`.
async fn documents(desk: &mut Desk, kind: Kind, told: &BTreeMap<String, Bytes>) -> BTreeMap<String, Bytes> {
    let published = desk.look();
    let documents = desk.select_kind(&published, kind);
    desk.hold(documents.iter().map(|d| d.owner())).await;
    let text = |document: &Arc<Document>| {
        let filled = desk.fill_owner(document);
        let ready = filled.missing.is_empty().then(|| Bytes::from(filled.text));
        Some((document.name.clone(), ready.or_else(|| told.get(&document.name).cloned())?))
    };
    documents.iter().filter_map(text).collect()
}

/// Sends what changes against `told`, until nobody listens. Only the latest state waits to be sent.
async fn tell<T>(
    desk: &mut Desk,
    kind: Kind,
    mut told: BTreeMap<String, Bytes>,
    event: fn(Bytes, ResourceEventType) -> T,
    to: &mpsc::Sender<Result<T, Status>>,
) {
    loop {
        desk.changed().await;
        let now = documents(desk, kind, &told).await;
        let deleted = told.keys().filter(|name| !now.contains_key(*name));
        let deleted = deleted.map(|name| event(gone(kind, name, desk.caller()), ResourceEventType::Deleted));
        let changed = now.iter().filter_map(|(name, text)| match told.get(name) {
            Some(same) if same == text => None,
            Some(_) => Some(event(text.clone(), ResourceEventType::Updated)),
            None => Some(event(text.clone(), ResourceEventType::Created)),
        });
        for event in deleted.chain(changed) {
            if to.send(Ok(event)).await.is_err() {
                return;
            }
        }
        told = now;
    }
}

/// A document that is no more: its name is what counts, and its secrets are nobody's business.
fn gone(kind: Kind, name: &str, caller: &Caller) -> Bytes {
    serde_json::json!({
        "apiVersion": kind.api_version(),
        "kind": kind.name(),
        "metadata": {"name": name, "namespace": caller.namespace},
    })
    .to_string()
    .into()
}

#[tonic::async_trait]
impl Operator for Documents {
    type ComponentUpdateStream = Events<ComponentUpdateEvent>;
    type SubscriptionUpdateStream = Events<SubscriptionUpdateEvent>;
    type HTTPEndpointUpdateStream = Events<HttpEndpointUpdateEvent>;
    type MCPServerUpdateStream = Events<McpServerUpdateEvent>;
    type ConfigurationUpdateStream = Events<ConfigurationUpdateEvent>;
    type ResiliencyUpdateStream = Events<ResiliencyUpdateEvent>;
    type WorkflowAccessPolicyUpdateStream = Events<WorkflowAccessPolicyUpdateEvent>;

    async fn component_update(
        &self,
        request: Request<ComponentUpdateRequest>,
    ) -> Result<Response<Self::ComponentUpdateStream>, Status> {
        let caller = self.admit(&request, &request.get_ref().namespace)?;
        self.follow(caller, Kind::Component, |component, change| ComponentUpdateEvent {
            component,
            r#type: change.into(),
        })
        .await
    }

    async fn list_components(
        &self,
        request: Request<ListComponentsRequest>,
    ) -> Result<Response<ListComponentResponse>, Status> {
        let caller = self.admit(&request, &request.get_ref().namespace)?;
        let components = self.list(caller, Kind::Component).await?;
        Ok(Response::new(ListComponentResponse { components }))
    }

    async fn get_configuration(
        &self,
        request: Request<GetConfigurationRequest>,
    ) -> Result<Response<GetConfigurationResponse>, Status> {
        let caller = self.admit(&request, &request.get_ref().namespace)?;
        let configuration = self.get(caller, Kind::Configuration, &request.get_ref().name).await?;
        Ok(Response::new(GetConfigurationResponse { configuration }))
    }

    async fn list_subscriptions(&self, request: Request<()>) -> Result<Response<ListSubscriptionsResponse>, Status> {
        let caller = self.admit(&request, "")?;
        let subscriptions = self.list(caller, Kind::Subscription).await?;
        Ok(Response::new(ListSubscriptionsResponse { subscriptions }))
    }

    async fn get_resiliency(
        &self,
        request: Request<GetResiliencyRequest>,
    ) -> Result<Response<GetResiliencyResponse>, Status> {
        let caller = self.admit(&request, &request.get_ref().namespace)?;
        let resiliency = self.get(caller, Kind::Resiliency, &request.get_ref().name).await?;
        Ok(Response::new(GetResiliencyResponse { resiliency }))
    }

    async fn list_resiliency(
        &self,
        request: Request<ListResiliencyRequest>,
    ) -> Result<Response<ListResiliencyResponse>, Status> {
        let caller = self.admit(&request, &request.get_ref().namespace)?;
        let resiliencies = self.list(caller, Kind::Resiliency).await?;
        Ok(Response::new(ListResiliencyResponse { resiliencies }))
    }

    async fn list_subscriptions_v2(
        &self,
        request: Request<ListSubscriptionsRequest>,
    ) -> Result<Response<ListSubscriptionsResponse>, Status> {
        let caller = self.admit(&request, &request.get_ref().namespace)?;
        let subscriptions = self.list(caller, Kind::Subscription).await?;
        Ok(Response::new(ListSubscriptionsResponse { subscriptions }))
    }

    async fn subscription_update(
        &self,
        request: Request<SubscriptionUpdateRequest>,
    ) -> Result<Response<Self::SubscriptionUpdateStream>, Status> {
        let caller = self.admit(&request, &request.get_ref().namespace)?;
        self.follow(caller, Kind::Subscription, |subscription, change| SubscriptionUpdateEvent {
            subscription,
            r#type: change.into(),
        })
        .await
    }

    async fn list_http_endpoints(
        &self,
        request: Request<ListHttpEndpointsRequest>,
    ) -> Result<Response<ListHttpEndpointsResponse>, Status> {
        let caller = self.admit(&request, &request.get_ref().namespace)?;
        let http_endpoints = self.list(caller, Kind::HttpEndpoint).await?;
        Ok(Response::new(ListHttpEndpointsResponse { http_endpoints }))
    }

    async fn http_endpoint_update(
        &self,
        request: Request<HttpEndpointUpdateRequest>,
    ) -> Result<Response<Self::HTTPEndpointUpdateStream>, Status> {
        let caller = self.admit(&request, &request.get_ref().namespace)?;
        self.follow(caller, Kind::HttpEndpoint, |http_endpoints, change| HttpEndpointUpdateEvent {
            http_endpoints,
            r#type: change.into(),
        })
        .await
    }

    async fn list_mcp_servers(
        &self,
        request: Request<ListMcpServersRequest>,
    ) -> Result<Response<ListMcpServersResponse>, Status> {
        self.admit(&request, &request.get_ref().namespace)?;
        Ok(Response::new(ListMcpServersResponse { mcp_servers: Vec::new() }))
    }

    async fn mcp_server_update(
        &self,
        request: Request<McpServerUpdateRequest>,
    ) -> Result<Response<Self::MCPServerUpdateStream>, Status> {
        self.admit(&request, &request.get_ref().namespace)?;
        Err(Status::unimplemented("MCPServers are not delivered by this version; their list is empty"))
    }

    async fn configuration_update(
        &self,
        request: Request<ConfigurationUpdateRequest>,
    ) -> Result<Response<Self::ConfigurationUpdateStream>, Status> {
        let caller = self.admit(&request, &request.get_ref().namespace)?;
        self.follow(caller, Kind::Configuration, |configuration, change| ConfigurationUpdateEvent {
            configuration,
            r#type: change.into(),
        })
        .await
    }

    async fn resiliency_update(
        &self,
        request: Request<ResiliencyUpdateRequest>,
    ) -> Result<Response<Self::ResiliencyUpdateStream>, Status> {
        let caller = self.admit(&request, &request.get_ref().namespace)?;
        self.follow(caller, Kind::Resiliency, |resiliency, change| ResiliencyUpdateEvent {
            resiliency,
            r#type: change.into(),
        })
        .await
    }

    async fn list_workflow_access_policy(
        &self,
        request: Request<ListWorkflowAccessPolicyRequest>,
    ) -> Result<Response<ListWorkflowAccessPolicyResponse>, Status> {
        self.admit(&request, &request.get_ref().namespace)?;
        Ok(Response::new(ListWorkflowAccessPolicyResponse { policies: Vec::new() }))
    }

    async fn workflow_access_policy_update(
        &self,
        request: Request<WorkflowAccessPolicyUpdateRequest>,
    ) -> Result<Response<Self::WorkflowAccessPolicyUpdateStream>, Status> {
        self.admit(&request, &request.get_ref().namespace)?;
        Err(Status::unimplemented("WorkflowAccessPolicies are not delivered by this version; their list is empty"))
    }
}
