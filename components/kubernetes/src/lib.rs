//! Kubernetes as a secret store, without a general client: the two calls that are needed, over HTTP/1.1 and rustls.

mod files;
#[doc(hidden)]
pub mod fuzzing;
mod kubeconfig;
mod secrets;
mod server;

use mecha_components_api::Registry;

/// Registers every component of this crate.
pub fn register(registry: &mut Registry) {
    registry.secrets.push(secrets::registration());
}
