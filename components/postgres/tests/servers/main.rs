//! The components against a real server, which each test starts for itself.

mod binding;
mod configuration;
mod faults;
mod layout;
mod state;
mod support;
mod tls;
