//! Complete sets of documents as messages, and what a sidecar may start from without us.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::SystemTime;

use mecha_identity::Live;
use mecha_proto::delivery as wire;
use mecha_resources::kinds::SwapPhase;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use crate::desk::{Caller, Filled};
use crate::document::Kind;

/// Largest set; with its snapshot it is twice that, which sidecars still take.
const MAX_SET: usize = 24 << 20;

/// A complete set.
pub(crate) struct Set {
    pub(crate) documents: Vec<wire::Document>,
    pub(crate) digest: String,
    /// What is missing, by name of the component.
    pub(crate) missing: BTreeMap<String, String>,
    /// Documents that wait for a secret, with what they wait for.
    pub(crate) waiting: Vec<String>,
    bytes: usize,
}

impl Set {
    pub(crate) fn new(filled: Vec<Filled>) -> Result<Self, String> {
        let (mut missing, mut waiting) = (BTreeMap::new(), Vec::new());
        let mut hasher = Sha256::new();
        let (mut documents, mut bytes) = (Vec::with_capacity(filled.len()), 0);
        for filled in filled {
            let document = &filled.document;
            if !filled.missing.is_empty() {
                waiting.push(format!("{} {}: {}", document.kind.name(), document.name, filled.missing));
            }
            if document.kind == Kind::Component && !filled.missing.is_empty() {
                missing.insert(document.name.clone(), filled.missing.clone());
            }
            let moving = document.moving.as_ref().map(|(record, _)| wire::Move {
                from: record.from.clone(),
                to: record.to.clone(),
                phase: phase_to_wire(record.phase).into(),
                previous: filled.previous.unwrap_or_default().into(),
                deadline: record.deadline.as_deref().and_then(timestamp),
            });
            let document = wire::Document {
                resource: filled.text.into(),
                kind: document.kind.name().to_owned(),
                revision: document.origin.as_ref().map_or(0, |origin| origin.revision),
                r#move: moving,
                unresolved: filled.missing,
            };
            let encoded = document.encode_length_delimited_to_vec();
            bytes += encoded.len();
            if bytes > MAX_SET {
                return Err(format!("the documents for this sidecar take more than {MAX_SET} bytes"));
            }
            hasher.update(&encoded);
            documents.push(document);
        }
        let mut digest = "sha256:".to_owned();
        for byte in hasher.finalize() {
            // Writing to text cannot fail.
            let _ = write!(digest, "{byte:02x}");
        }
        Ok(Self { documents, digest, missing, waiting, bytes })
    }

    /// Its size in bytes, without the snapshot.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What `caller` may start from while the agent is away; `None` while something is missing or nothing can be
    /// signed.
    pub(crate) fn snapshot(&self, caller: &Caller, live: &Live) -> Option<wire::SignedSnapshot> {
        if self.documents.iter().any(|document| !document.unresolved.is_empty()) {
            return None;
        }
        let identity = live.identity()?;
        let payload = wire::Snapshot {
            namespace: caller.namespace.clone(),
            app_id: caller.app_id.clone(),
            issued_at: Some(SystemTime::now().into()),
            digest: self.digest.clone(),
            documents: self.documents.clone(),
        }
        .encode_to_vec();
        match identity.sign(&payload) {
            Ok(signature) => Some(wire::SignedSnapshot {
                payload: payload.into(),
                signature: signature.into(),
                chain: identity.chain_pem().into(),
            }),
            Err(error) => {
                tracing::warn!(%error, "sidecars get no snapshot to restart from");
                None
            }
        }
    }
}

const fn phase_to_wire(phase: SwapPhase) -> wire::Phase {
    match phase {
        SwapPhase::Prepare => wire::Phase::Prepare,
        SwapPhase::Switch => wire::Phase::Switch,
        SwapPhase::Drain => wire::Phase::Drain,
        SwapPhase::Paused => wire::Phase::Paused,
        SwapPhase::Finalize => wire::Phase::Finalize,
        SwapPhase::RollBack => wire::Phase::RollBack,
    }
}

pub(crate) fn phase_from_wire(phase: i32) -> Option<SwapPhase> {
    match wire::Phase::try_from(phase).ok()? {
        wire::Phase::Unspecified => None,
        wire::Phase::Prepare => Some(SwapPhase::Prepare),
        wire::Phase::Switch => Some(SwapPhase::Switch),
        wire::Phase::Drain => Some(SwapPhase::Drain),
        wire::Phase::Paused => Some(SwapPhase::Paused),
        wire::Phase::Finalize => Some(SwapPhase::Finalize),
        wire::Phase::RollBack => Some(SwapPhase::RollBack),
    }
}

fn timestamp(text: &str) -> Option<prost_types::Timestamp> {
    let at: jiff::Timestamp = text.parse().ok()?;
    Some(prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() })
}
