//! The Rust SDK, unmodified, against real sidecars. Where its client lacks a call, the client that it generates from
//! the protocol and offers beside its own is used.

mod app;
mod calls;
mod embedded;
mod pubsub;
mod runtime;
mod servers;
mod stage;
mod state;
