//! The hub role on a real API server, with the rights that it has in a cluster and no more.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

mod bind;
mod faults;
mod harness;
mod lifecycle;
mod swap;
mod watches;
