//! Redis as a component: `state.redis`, `pubsub.redis`, `lock.redis`, `configuration.redis`
//! and `bindings.redis`.
//!
//! What is stored looks as Dapr 1.18 stores it, so both can share one server.
//!
//! `client.rs` owns the connections: one multiplexed connection carries all calls of a
//! component, what blocks gets a connection of its own. `connect.rs` knows nodes, clusters,
//! sentinels and TLS; `error.rs` is the one table of what the server's errors mean.

mod binding;
mod client;
mod config;
mod configuration;
mod connect;
mod error;
mod keyspace;
mod lock;
mod pubsub;
mod script;
mod state;
mod stream;
mod subscription;
mod watch;

use mecha_components_api::Registry;

/// Makes the components of this crate known.
pub fn register(registry: &mut Registry) {
    registry.state.push(state::registration());
    registry.pubsub.push(pubsub::registration());
    registry.lock.push(lock::registration());
    registry.configuration.push(configuration::registration());
    registry.output.push(binding::registration());
}
