//! Sources of backends on a real API server, with the rights that they have when installed and no others.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

mod cluster;
mod found;
mod probed;
mod stamped;
mod written;
