//! The daemon as a user meets it: the real binary, its real sockets, and apps and clients that share
//! no code with it. A case that both fronts have runs over both.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

mod bad_input;
mod bindings;
mod documents;
mod durability;
mod framing;
mod health;
mod identity;
mod invoke;
mod limits;
mod logs;
mod mecha;
mod metadata;
mod metrics;
mod probe;
mod process;
mod proxy;
mod pubsub;
mod resiliency;
mod secrets;
mod security;
mod shutdown;
mod state;
mod state_errors;
mod stored;
mod support;
mod tracing;
