//! The daemon as a user meets it: the real binary, its real sockets, and apps and clients that share
//! no code with it. A case that both fronts have runs over both.

mod bindings;
mod health;
mod invoke;
mod metadata;
mod pubsub;
mod secrets;
mod state;
mod state_errors;
mod support;
