//! The daemon: a binary and the library it is made of. Process edge (flags, logs, ports,
//! telemetry), the fronts (HTTP, gRPC), the way to the app and to peers, and the life of a run.

pub mod app;
pub mod body;
pub mod cli;
pub mod edge;
mod events;
#[doc(hidden)]
pub mod fuzzing;
pub mod grpc;
pub mod handover;
pub mod http;
pub mod identity;
pub mod logging;
pub mod peer;
mod phases;
mod plain;
pub mod ports;
pub mod probe;
pub mod proxy;
pub mod run;
pub mod serve;
pub mod telemetry;
pub mod timestamps;
pub mod token;
pub mod wire;
