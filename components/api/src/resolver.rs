use std::sync::Arc;

use async_trait::async_trait;

use crate::{CancellationToken, Component, Result};

/// Who is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// App id.
    pub app_id: &'a str,
    /// Namespace, empty when none is known.
    pub namespace: &'a str,
}

/// This sidecar, as others should find it.
#[derive(Clone, Debug)]
pub struct Instance {
    /// App id.
    pub app_id: String,
    /// Namespace, empty when none is set.
    pub namespace: String,
    /// Address that peers dial, without port.
    pub host: String,
    /// Peer port.
    pub port: u16,
    /// Unique per process life.
    pub instance_id: String,
}

/// Finds the peer addresses of an app.
#[async_trait]
pub trait NameResolver: Component {
    /// Addresses as `host:port` (IPv6 in brackets), all instances that are alive.
    /// An app nobody knows is `NotFound`.
    async fn resolve(&self, target: Target<'_>) -> Result<Vec<Arc<str>>>;

    /// Makes this sidecar known and keeps it known until `stop` fires, then withdraws it.
    /// `up` is called once others can find it. A resolver that needs no announcement just waits for `stop`.
    async fn announce(&self, me: Instance, up: Box<dyn FnOnce() + Send>, stop: CancellationToken) -> Result<()>;
}
