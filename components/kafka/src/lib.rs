//! Apache Kafka as a component: `pubsub.kafka` and `bindings.kafka`.
//!
//! What is written looks as Dapr 1.18 writes it, and a consumer group may be shared with it.
//!
//! `producer.rs` owns the one idempotent producer of a component. A subscription has a consumer
//! of its own: `subscription.rs` follows the group's assignment, `position.rs` decides where a
//! partition begins, and `partition.rs` takes one partition's records in their order. `error.rs`
//! is the one table of what Kafka's errors mean. `tokens.rs` keeps tokens to log in with, `oidc.rs` fetches them from an
//! identity provider and `aws.rs` makes them. `schemas.rs` turns JSON into Avro and back (`avro.rs`) by the schemas of a
//! registry.

mod avro;
mod aws;
mod binding;
mod config;
mod context;
mod error;
mod http;
mod oidc;
mod partition;
mod position;
mod producer;
mod pubsub;
mod record;
mod schemas;
mod sigv4;
mod subscription;
mod tokens;
mod trial;
mod unverified;

use mecha_components_api::Registry;

/// Makes the components of this crate known.
pub fn register(registry: &mut Registry) {
    registry.pubsub.push(pubsub::registration());
    registry.input.push(binding::input());
    registry.output.push(binding::output());
}
