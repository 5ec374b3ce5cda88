//! Components that need no backend of their own: `state.in-memory`,
//! `pubsub.in-memory`, `bindings.cron`, `bindings.http`,
//! `bindings.localstorage`, `secretstores.local.env`,
//! `secretstores.local.file` and `nameresolution.kubernetes`.

mod confined;
mod cron;
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod http_target;
mod http_tls;
mod localstorage;
mod names_kubernetes;
mod pubsub;
mod quiet;
mod schedule;
mod secrets_env;
mod secrets_file;
mod state;

use mecha_components_api::Registry;

/// Makes every component of this crate known.
pub fn register(registry: &mut Registry) {
    registry.state.push(state::registration());
    registry.pubsub.push(pubsub::registration());
    registry.input.push(cron::registration());
    registry.output.push(http::registration());
    registry.output.push(localstorage::registration());
    registry.secrets.push(secrets_env::registration());
    registry.secrets.push(secrets_file::registration());
    registry.resolvers.push(names_kubernetes::registration());
}
