//! The components on a real broker: order, groups, faults, ledger and logins.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod awsiam;
mod binding;
mod faults;
mod groups;
mod ledger;
mod logins;
mod pubsub;
mod schemas;
mod support;
