//! The components against a real server, which each test starts for itself.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod binding;
mod configuration;
mod faults;
mod layout;
mod state;
mod support;
mod tls;
