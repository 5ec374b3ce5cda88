//! All API logic of the daemon. The fronts (HTTP, gRPC) decode, call this crate and
//! encode; components implement `mecha_components_api`. There is no hyper, tonic or
//! axum in here: peers and the app are reached through traits this crate owns.

pub mod api_rules;
pub mod app;
pub mod bindings;
pub mod codes;
pub mod configuration;
mod core;
mod cx;
mod error;
pub mod etag;
pub mod health;
mod identity;
pub mod invoke;
pub mod keys;
pub mod loader;
pub mod lock;
pub mod metadata;
pub mod metrics;
pub mod ops;
pub mod policies;
pub mod pubsub;
pub mod secrets;
pub mod sides;
pub mod state;
pub mod store;
pub mod swap;
mod tasks;
pub mod unbuilt;

pub use core::{Core, CoreParts, ShutdownRequest};
pub use cx::{Cx, Front, TraceHeaders};
pub use error::{ApiError, Detail, Shape};
pub use identity::Identity;
pub use mecha_trace as trace;
pub use tasks::Tasks;
