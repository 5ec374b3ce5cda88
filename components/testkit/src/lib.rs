//! What every component of a building block must do, as cases that any of them can be put through.
//!
//! Each block has one table, `CASES`. A case gets an instance, works in a key space or
//! topic of its own, asserts what a user would notice and never retries a call. Which cases
//! apply is decided by what the component declares, and the runner first checks that
//! declaration against the component itself.
//!
//! Beside the tables: [`Inbox`], a receiver that follows a script, [`FaultyState`], a store
//! between the caller and the real one that drops, delays and refuses calls, and [`wait_until`].

mod bindings;
mod case;
mod configuration;
mod faults;
mod inbox;
mod lock;
mod pubsub;
mod resolvers;
mod secrets;
pub mod servers;
mod state;

pub use bindings::{BindingBench, CASES as BINDING_CASES};
pub use case::{BoxFuture, Case, Failure, Outcome, fresh_name, wait_until};
pub use configuration::{CASES as CONFIGURATION_CASES, ConfigurationBench, ConfigurationProfile};
pub use faults::{Faults, FaultyState};
pub use inbox::Inbox;
pub use lock::{CASES as LOCK_CASES, LockProfile};
pub use pubsub::{CASES as PUBSUB_CASES, PubSubBench, PubSubProfile};
pub use resolvers::{CASES as RESOLVER_CASES, ResolverBench, ResolverProfile};
pub use secrets::{CASES as SECRET_CASES, SecretBench};
pub use state::{CASES as STATE_CASES, StateProfile};
