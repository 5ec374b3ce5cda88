//! See [`crate::fuzzing`].

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use mecha_identity::{Bundle, SpiffeId};
use mecha_proto::delivery as wire;
use mecha_proto::delivery::from_agent;
use prost::Message as _;

use super::set::Received;
use super::snapshot::{Terms, check};

/// App and namespace that everything is read for.
pub const WORKLOAD: (&str, &str) = ("orders", "shop");

/// What a set comes to; documents are called `KIND/NAME`.
#[derive(Debug, PartialEq, Eq)]
pub struct Set {
    /// Documents that are put into effect.
    pub used: BTreeSet<String>,
    /// Names of components that move.
    pub moving: BTreeSet<String>,
    /// What is reported on, and whether it can be used as it came.
    pub reported: BTreeSet<(String, bool)>,
}

/// A message of the agent, if it is a set: what it comes to when it is the first, and when it comes again.
#[must_use]
pub fn set(bytes: Bytes) -> Option<(Set, Set)> {
    let from_agent::Message::Set(set) = wire::FromAgent::decode(bytes).ok()?.message? else { return None };
    let received = |before: Option<&Received>| {
        Received::new(set.digest.clone(), set.documents.clone(), SystemTime::UNIX_EPOCH, before, WORKLOAD.1)
    };
    let first = received(None);
    let again = received(Some(&first));
    Some((summary(&first), summary(&again)))
}

fn summary(received: &Received) -> Set {
    let reported = received.entries.iter().map(|e| (format!("{}/{}", e.kind, e.name), e.unusable.is_empty())).collect();
    let _ = received.phases();
    let read = received.read(WORKLOAD.1, &["config".to_owned()]);
    let loaded = &read.loaded;
    let components = loaded.components.iter().map(|d| format!("Component/{}", d.value.meta.name));
    let subscriptions = loaded.subscriptions.iter().map(|d| format!("Subscription/{}", d.value.meta.name));
    let endpoints = loaded.http_endpoints.iter().map(|d| format!("HTTPEndpoint/{}", d.value.meta.name));
    let policies = loaded.resiliencies.iter().map(|d| format!("Resiliency/{}", d.value.meta.name));
    Set {
        used: components.chain(subscriptions).chain(endpoints).chain(policies).collect(),
        moving: read.moves.into_keys().collect(),
        reported,
    }
}

/// How many documents a start would take from a snapshot that lies on disk in these bytes.
///
/// # Errors
/// Why it does not count.
pub fn snapshot(bytes: &[u8], anchors: &Bundle, signer: &SpiffeId) -> Result<usize, String> {
    let signed = wire::SignedSnapshot::decode(bytes).map_err(|e| e.to_string())?;
    let terms = Terms {
        app_id: WORKLOAD.0.to_owned(),
        namespace: WORKLOAD.1.to_owned(),
        signers: vec![signer.clone()],
        max_age: Duration::from_secs(3600),
    };
    check(&signed, &terms, anchors, SystemTime::now()).map(|good| good.documents.len())
}
