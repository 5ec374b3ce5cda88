//! PostgreSQL as a component: `state.postgresql` v1 and v2, `configuration.postgresql` and
//! `bindings.postgresql`.
//!
//! Table layouts are those of Dapr 1.18, so tables made by either daemon serve the other.
//!
//! `client.rs` owns connections, deadlines and retries, `error.rs` decides what may be
//! repeated, `config.rs` reads the keys that all have in common; the blocks only hold SQL.

mod binding;
mod client;
mod config;
mod configuration;
mod dsn;
mod error;
mod migrations;
mod query;
mod sql;
mod state;
mod state_v1;
mod state_v2;
mod tls;
mod value;
mod watch;

use mecha_components_api::Registry;

/// Makes the components of this crate known.
pub fn register(registry: &mut Registry) {
    // The first version that is registered is the default.
    registry.state.push(state_v1::registration());
    registry.state.push(state_v2::registration());
    registry.configuration.push(configuration::registration());
    registry.output.push(binding::registration());
}
