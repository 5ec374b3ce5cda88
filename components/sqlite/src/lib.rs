//! SQLite as a component: `state.sqlite` and `nameresolution.sqlite`.
//!
//! Table layouts are those of Dapr 1.18, so a file made by either daemon opens in the
//! other, and several processes may share one file.
//!
//! `client.rs` owns threads, connections and transactions; the blocks only hold SQL.

mod client;
mod config;
mod error;
mod queue;
mod resolver;
mod schema;
mod stamp;
mod state;

use mecha_components_api::Registry;

/// Makes the components of this crate known.
pub fn register(registry: &mut Registry) {
    registry.state.push(state::registration());
    registry.resolvers.push(resolver::registration());
}
