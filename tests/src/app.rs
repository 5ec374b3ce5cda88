//! Apps that only pretend.

pub(crate) mod echo;
pub(crate) mod grpc;
pub(crate) mod http;
