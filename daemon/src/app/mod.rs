//! Calls to the app: one implementation of core's `AppChannel` for HTTP apps, one for gRPC apps.

mod answers;
mod dial;
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod grpc;
mod health;
mod http;
mod insecure_tls;
mod kept;

use std::num::NonZeroUsize;
use std::sync::Arc;

use mecha_core::app::{AppChannel, AppProtocol};
use mecha_core::metrics::Metrics;

pub use dial::dial;
pub use gate::Gate;
pub use health::{AppHealth, HealthEvent, HealthSettings};

/// How the app is reached.
#[derive(Clone, Debug)]
pub struct AppTarget {
    /// Protocol.
    pub protocol: AppProtocol,
    /// Host.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Calls in flight at most.
    pub max_concurrency: Option<NonZeroUsize>,
    /// Token sent with every call.
    pub token: Option<String>,
    /// Largest answer that is read as a whole, in bytes.
    pub max_body: u64,
    /// App id of this sidecar.
    pub app_id: String,
}

impl AppTarget {
    /// `host:port`, IPv6 in brackets.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') && !self.host.starts_with('[') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Makes the channel for an app. Nothing is dialled yet.
///
/// # Errors
/// The target makes no address, or the token no header.
pub fn channel(target: &AppTarget, gate: Arc<Gate>, metrics: Arc<Metrics>) -> Result<Arc<dyn AppChannel>, String> {
    if target.protocol.is_grpc() {
        Ok(Arc::new(grpc::GrpcApp::new(target, gate, metrics)?))
    } else {
        Ok(Arc::new(http::HttpApp::new(target, gate, metrics)?))
    }
}
