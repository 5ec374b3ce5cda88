//! `grpc.health.v1.Health`, as the sidecar's own readiness says.

use std::sync::Arc;

use futures_util::stream;
use mecha_core::Core;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::api::{SERVICE, Stream};

/// Health of the server as a whole, and of its API.
#[derive(Debug)]
pub(super) struct HealthApi(pub(super) Arc<Core>);

impl HealthApi {
    fn serving(core: &Core) -> ServingStatus {
        if core.health.ready(None).is_ok() { ServingStatus::Serving } else { ServingStatus::NotServing }
    }
}

fn known(service: &str) -> bool {
    service.is_empty() || service == SERVICE
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status as i32 }
}

#[tonic::async_trait]
impl Health for HealthApi {
    type WatchStream = Stream<HealthCheckResponse>;

    async fn check(&self, req: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if !known(&req.get_ref().service) {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(answer(Self::serving(&self.0))))
    }

    async fn watch(&self, req: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let known = known(&req.get_ref().service);
        let (core, phases) = (self.0.clone(), self.0.health.watch());
        let updates = stream::unfold((core, phases, None), move |(core, mut phases, last)| async move {
            loop {
                let now = if known { Self::serving(&core) } else { ServingStatus::ServiceUnknown };
                phases.mark_unchanged();
                if last != Some(now) {
                    return Some((Ok(answer(now)), (core, phases, Some(now))));
                }
                tokio::select! {
                    // Without phases the runtime is gone.
                    changed = phases.changed() => changed.ok()?,
                    () = core.tasks.stopping().cancelled() => return None,
                }
            }
        });
        Ok(Response::new(Box::pin(updates)))
    }
}
