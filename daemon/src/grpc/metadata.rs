//! Metadata and shutdown.

use mecha_components_api::parse_bool;
use mecha_core::app::AppSubscription;
use mecha_core::metadata::{AppConnection, Document};
use mecha_core::pubsub::Source;
use mecha_core::{ApiError, Core, Cx};
use mecha_proto::runtime::actor_runtime::ActorRuntimeStatus;
use mecha_proto::runtime::{
    ActorRuntime, AppConnectionHealthProperties, AppConnectionProperties, GetMetadataRequest, GetMetadataResponse,
    MetadataHttpEndpoint, MetadataResiliency, PubsubSubscription, PubsubSubscriptionRule, PubsubSubscriptionRules,
    PubsubSubscriptionType, RegisteredComponents, SetMetadataRequest, ShutdownRequest,
};
use tonic::{Request, Response, Status};

use super::GrpcApi;
use crate::events;

pub(super) async fn get(core: &Core, _: &Cx, _: GetMetadataRequest) -> Result<GetMetadataResponse, ApiError> {
    Ok(encode(core.document()))
}

pub(super) async fn set(core: &Core, _: &Cx, req: SetMetadataRequest) -> Result<(), ApiError> {
    if core.metadata.set(req.key, req.value) {
        return Ok(());
    }
    Err(ApiError::malformed("the extended metadata has too many entries; reuse one of its keys"))
}

pub(super) async fn shutdown(api: &GrpcApi, req: Request<ShutdownRequest>) -> Result<Response<()>, Status> {
    let forced = req.metadata().get("dapr-force-shutdown").and_then(|v| v.to_str().ok()).is_some_and(parse_bool);
    api.core.request_shutdown(forced);
    Ok(Response::new(()))
}

fn encode(doc: Document) -> GetMetadataResponse {
    let fixed = doc.fixed;
    let component = |c: mecha_core::store::Info| RegisteredComponents {
        name: c.name.as_ref().to_owned(),
        r#type: c.kind.as_ref().to_owned(),
        version: c.version.as_ref().to_owned(),
        capabilities: c.capabilities.iter().map(|c| (*c).to_owned()).collect(),
    };
    GetMetadataResponse {
        id: doc.id,
        runtime_version: doc.runtime_version.to_owned(),
        enabled_features: fixed.features,
        registered_components: doc.components.into_iter().map(component).collect(),
        extended_metadata: doc.extended,
        subscriptions: doc.subscriptions.into_iter().map(subscription).collect(),
        http_endpoints: fixed.http_endpoints.into_iter().map(|name| MetadataHttpEndpoint { name }).collect(),
        app_connection_properties: fixed.app.map(app),
        actor_runtime: Some(ActorRuntime {
            runtime_status: ActorRuntimeStatus::Disabled as i32,
            ..ActorRuntime::default()
        }),
        resiliencies: fixed.resiliencies.into_iter().map(|name| MetadataResiliency { name }).collect(),
        ..GetMetadataResponse::default()
    }
}

fn app(app: AppConnection) -> AppConnectionProperties {
    AppConnectionProperties {
        port: i32::from(app.port),
        protocol: app.protocol,
        channel_address: app.channel_address,
        max_concurrency: i32::try_from(app.max_concurrency).unwrap_or(i32::MAX),
        health: app.health.map(|h| AppConnectionHealthProperties {
            health_check_path: h.path,
            health_probe_interval: h.interval,
            health_probe_timeout: h.timeout,
            health_threshold: i32::try_from(h.threshold).unwrap_or(i32::MAX),
        }),
    }
}

fn subscription((sub, source): (AppSubscription, Source)) -> PubsubSubscription {
    let default = sub.default_route.map(|path| PubsubSubscriptionRule { r#match: String::new(), path });
    let rules = sub.rules.into_iter().map(|r| PubsubSubscriptionRule { r#match: r.matches, path: r.path });
    let kind = match source {
        Source::Declarative => PubsubSubscriptionType::Declarative,
        Source::Programmatic => PubsubSubscriptionType::Programmatic,
        Source::Streaming => PubsubSubscriptionType::Streaming,
    };
    PubsubSubscription {
        pubsub_name: sub.pubsub,
        topic: sub.topic,
        metadata: events::map(&sub.metadata),
        rules: Some(PubsubSubscriptionRules { rules: rules.chain(default).collect() }),
        dead_letter_topic: sub.dead_letter_topic.unwrap_or_default(),
        r#type: kind as i32,
    }
}
