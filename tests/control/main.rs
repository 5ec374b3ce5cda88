//! The control part on a real API server.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

mod injection;
mod kinds;
