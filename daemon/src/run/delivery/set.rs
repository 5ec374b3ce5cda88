//! Complete sets as the agent sends them, and the documents and moves that they are.

use std::collections::BTreeMap;
use std::time::SystemTime;

use bytes::Bytes;
use mecha_core::loader::Moving;
use mecha_core::trace::TraceContext;
use mecha_proto::delivery as wire;
use mecha_resources::kinds::SwapPhase;
use mecha_resources::{Component, Loaded};

use super::super::operator::documents::{Item, Kind, Mirror};
use super::super::source::DocumentSet;
use crate::phases::from_wire;

/// A set, and how it came here.
#[derive(Clone, Debug)]
pub(in crate::run) struct Received {
    pub(super) digest: String,
    pub(super) documents: Vec<wire::Document>,
    /// When the agent gave it out, as far as is known here.
    pub(super) at: SystemTime,
    /// It was read from the snapshot, and the agent has not spoken yet.
    pub(super) restored: bool,
    /// What every document of the set is to report on.
    pub(super) entries: Vec<Named>,
    /// The trace of the change that it was sent for.
    pub(super) cause: Option<TraceContext>,
}

/// What a report says about one document besides how it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) revision: i64,
    /// Why it cannot be used as it came; what ran before goes on.
    pub(super) unusable: String,
}

impl Received {
    /// A set after another one: a document whose secrets are missing keeps the content that it had.
    pub(super) fn new(
        digest: String,
        documents: Vec<wire::Document>,
        at: SystemTime,
        before: Option<&Self>,
        namespace: &str,
    ) -> Self {
        let (mut kept, mut entries) = (Vec::with_capacity(documents.len()), Vec::with_capacity(documents.len()));
        for document in documents {
            let read = read(&document.kind, &document.resource, namespace);
            let name = match &read {
                Ok(Some((_, item))) => item.name.clone(),
                // Not ours, or nobody can tell what it is.
                Ok(None) => continue,
                Err(e) => {
                    tracing::error!(
                        target: "dapr.runtime.loader",
                        "a {} from the agent is left out: {e}", document.kind
                    );
                    continue;
                }
            };
            let named = |unusable: &str| Named {
                kind: document.kind.clone(),
                name: name.clone(),
                revision: document.revision,
                unusable: unusable.to_owned(),
            };
            entries.push(named(&document.unresolved));
            if document.unresolved.is_empty() {
                kept.push(document);
                continue;
            }
            let same =
                |d: &&wire::Document| d.kind == document.kind && read_name(d, namespace).as_deref() == Some(&*name);
            kept.extend(before.and_then(|b| b.documents.iter().find(same)).cloned());
        }
        Self { digest, documents: kept, at, restored: false, entries, cause: None }
    }

    /// The documents, and the moves by name of their component.
    pub(super) fn read(&self, namespace: &str, configurations: &[String]) -> DocumentSet {
        let (mut mirror, mut moves) = (Mirror::default(), BTreeMap::new());
        for document in &self.documents {
            let Ok(Some((kind, item))) = read(&document.kind, &document.resource, namespace) else { continue };
            let moving = document.r#move.as_ref().and_then(|m| Some((m, from_wire(m.phase)?)));
            let Some((record, phase)) = moving else {
                mirror.set(kind, item);
                continue;
            };
            let previous = match read(&document.kind, &record.previous, namespace) {
                Ok(Some((_, previous))) if previous.name == item.name => previous,
                _ => {
                    tracing::error!(
                        target: "dapr.runtime.loader",
                        "{} {} moves from {} to {}, and what it was before cannot be read; \
                         it is used as if it did not move",
                        document.kind, item.name, record.from, record.to
                    );
                    mirror.set(kind, item);
                    continue;
                }
            };
            if kind != Kind::Component {
                // Nothing of it is open, so it changes hands with the work.
                let old = mecha_core::sides::Target::of(phase).owner == mecha_core::sides::Side::Old;
                mirror.set(kind, if old { previous } else { item });
                continue;
            }
            if let Some(previous) = component(previous) {
                let (from, to) = (record.from.clone(), record.to.clone());
                moves.insert(item.name.clone(), Moving { from, to, phase, previous });
            }
            mirror.set(kind, item);
        }
        DocumentSet { moves, ..mirror.read(configurations) }
    }

    /// How many components are in each phase.
    pub(super) fn phases(&self) -> BTreeMap<&'static str, u64> {
        let mut phases: BTreeMap<&'static str, u64> = SwapPhase::ALL.iter().map(|p| (p.as_str(), 0)).collect();
        for phase in self.documents.iter().filter_map(|d| from_wire(d.r#move.as_ref()?.phase)) {
            *phases.entry(phase.as_str()).or_default() += 1;
        }
        phases
    }
}

fn component(item: Item) -> Option<Component> {
    let mut loaded = Loaded::default();
    loaded.read_json(&format!("agent: previous Component/{}", item.name), &item.value);
    for finding in &loaded.diagnostics {
        tracing::error!(target: "dapr.runtime.loader", "{finding}");
    }
    Some(loaded.components.into_iter().next()?.value)
}

fn read(kind: &str, resource: &Bytes, namespace: &str) -> Result<Option<(Kind, Item)>, String> {
    let known = [Kind::Component, Kind::Subscription, Kind::HttpEndpoint, Kind::Resiliency, Kind::Configuration];
    let Some(kind) = known.into_iter().find(|k| k.name() == kind) else {
        // From a newer agent, about something that does not exist here.
        return Ok(None);
    };
    Ok(Item::read(kind, resource, namespace)?.map(|item| (kind, item)))
}

fn read_name(document: &wire::Document, namespace: &str) -> Option<String> {
    Some(read(&document.kind, &document.resource, namespace).ok()??.1.name)
}
