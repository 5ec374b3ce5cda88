//! Service invocation: one app calls another through both sidecars.

mod http;
mod paths;
mod service;
mod streaming;
mod targets;
