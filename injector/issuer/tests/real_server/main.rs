//! The issuer on a real API server, with the rights it has when installed and no others.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

mod cluster;
mod requests;
mod rotation;
mod trust;
