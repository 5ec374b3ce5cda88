//! The injector role on a real API server, with the rights that it has in a cluster and no more.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

mod admission;
mod certificates;
mod direct;
mod harness;
mod ignored;
mod others;
mod repair;
mod services;
mod settings;
