//! What a sidecar takes over: sets of the agent, the snapshot on disk, the sockets of the daemon before it.

use std::sync::LazyLock;
use std::time::SystemTime;

use bytes::Bytes;
use mecha_identity::testing::Ca;
use mecha_identity::{Bundle, Identity, SpiffeId};
use mecha_proto::delivery as wire;
use mechad::fuzzing::delivery::WORKLOAD;
use mechad::fuzzing::{delivery, handover};
use prost::Message as _;

use crate::engine::{Checked, Target};

const DOCUMENT: &[&str] = &[
    "\u{1a}\u{9}Component",
    "\u{1a}\u{c}Subscription",
    "\u{1a}\u{a}Resiliency",
    "\u{22}\u{4}\u{18}\u{2}",
    "\u{2a}\u{1}s",
    "\"metadata\":{\"name\":\"a\"},",
    "\"namespace\":\"shop\",",
    "\"spec\":{\"type\":\"state.in-memory\",\"version\":\"v1\"}",
    "\"secretKeyRef\":{\"name\":\"s\",\"key\":\"k\"}",
    "\"value\":\"czNjcmV0\"",
    "{}",
    "null",
];

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "delivery-set", words: DOCUMENT, check: set },
    Target { name: "delivery-snapshot", words: DOCUMENT, check: snapshot },
    Target {
        name: "handover-message",
        words: &["\"message\":\"offer\"", "\"sockets\":[", "\"role\":\"http\"", "\"path\":null", "\"protocol\":1,"],
        check: message,
    },
];

/// What lacks its secrets is not put into effect, and a set that comes again changes
/// nothing.
fn set(bytes: &[u8]) -> Checked {
    let Some((first, again)) = delivery::set(Bytes::copy_from_slice(bytes)) else { return Ok(false) };
    if first != again {
        return Err(format!("a set that comes again is another: {first:?}, {again:?}"));
    }
    if let Some(document) = first.used.iter().find(|d| !first.reported.contains(&((*d).clone(), true))) {
        return Err(format!("{document} is in use although its secrets are missing"));
    }
    Ok(!first.used.is_empty())
}

/// What a start without the agent trusts.
struct Signer {
    id: SpiffeId,
    anchors: Bundle,
    identity: Identity,
}

static SIGNER: LazyLock<Signer> = LazyLock::new(|| {
    let ca = Ca::new("root");
    let id = SpiffeId::parse("spiffe://cluster.local/ns/mecha-system/dapr-operator").expect("an id");
    let anchors = Bundle::from_pem(&ca.root_pem()).expect("a bundle");
    Signer { identity: ca.identity(id.as_str()), id, anchors }
});

/// Of snapshots only those count that the agent has signed, for this app, at a time that is not long ago.
fn snapshot(bytes: &[u8]) -> Checked {
    let read = |signed: &[u8]| delivery::snapshot(signed, &SIGNER.anchors, &SIGNER.id);
    let chain = SIGNER.identity.chain_pem();
    let signed = |payload: &[u8], by: &[u8]| {
        let signature = SIGNER.identity.sign(by).map_err(|e| e.to_string())?;
        let signed = wire::SignedSnapshot {
            payload: payload.to_vec().into(),
            signature: signature.into(),
            chain: chain.clone().into(),
        };
        Ok::<_, String>(signed.encode_to_vec())
    };
    if read(bytes).is_ok() {
        return Err("a snapshot counts that nobody has signed".to_owned());
    }
    let _ = read(&signed(bytes, bytes)?);
    let Ok(mut snapshot) = wire::Snapshot::decode(bytes) else { return Ok(false) };
    snapshot.issued_at = Some(SystemTime::now().into());
    let payload = snapshot.encode_to_vec();
    if read(&signed(&payload, bytes)?).is_ok() {
        return Err("a snapshot counts with the signature of another".to_owned());
    }
    let ours = (&*snapshot.app_id, &*snapshot.namespace) == WORKLOAD;
    match read(&signed(&payload, &payload)?) {
        Ok(documents) if ours && documents == snapshot.documents.len() => Ok(true),
        Err(_) if !ours => Ok(false),
        other => Err(format!("a snapshot for {} in {}: {other:?}", snapshot.app_id, snapshot.namespace)),
    }
}

fn message(bytes: &[u8]) -> Checked {
    let Some(written) = handover::message(bytes) else { return Ok(false) };
    if handover::message(&written).as_ref() != Some(&written) {
        return Err("a message that was read and written is another".to_owned());
    }
    Ok(true)
}
