//! The components on real servers: faults, layouts, logins and topologies.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod configuration;
mod faults;
mod keys;
mod layout;
mod ledger;
mod logins;
mod pubsub;
mod replicas;
mod support;
mod topologies;
