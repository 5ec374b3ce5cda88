//! All API logic of the daemon. The fronts (HTTP, gRPC) decode, call this crate and
//! encode; components implement `mecha_components_api`. There is no hyper, tonic or
//! axum in here: peers and the app are reached through traits this crate owns.

pub mod app;
pub mod codes;
mod cx;
mod error;
mod identity;
mod tasks;
pub mod bindings;
pub mod configuration;
pub mod health;
pub mod lock;
pub mod secrets;
pub mod keys;
pub mod ops;
pub mod pubsub;
pub mod state;
pub mod store;

pub use cx::{Cx, Front, TraceHeaders};
pub use error::{ApiError, Detail, Shape};
pub use identity::Identity;
pub use tasks::Tasks;
