//! Sidecar to sidecar: the protocol `internals.v1.ServiceInvocation` over HTTP/2, both
//! sides, and the calls to HTTP servers outside.
//!
//! Messages are framed and encoded here rather than by generated code: a body goes from
//! socket to socket as the slices it came in.

mod chunks;
mod client;
mod endpoint;
mod framing;
#[doc(hidden)]
pub mod fuzzing;
mod pool;
mod server;
mod spans;
pub(crate) mod status;
mod wire;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use client::Client;
pub use pool::{Dial, Dialled, Io, Pool, PoolSettings, TcpDial};
pub(crate) use pool::{Lease, Place};
pub use server::{Connected, PeerServer};

/// Path prefix of the service.
const SERVICE: &str = "/dapr.proto.internals.v1.ServiceInvocation/";
const CALL_LOCAL: &str = "/dapr.proto.internals.v1.ServiceInvocation/CallLocal";
const CALL_LOCAL_STREAM: &str = "/dapr.proto.internals.v1.ServiceInvocation/CallLocalStream";
