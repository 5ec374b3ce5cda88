//! What one sidecar gets: the documents in its scope, with the values of their secrets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::document::{Body, Document, Kind};
use crate::secrets::Secret;
use crate::world::{Published, Space};

/// Longest wait for Secrets that have not been read yet.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// Who is connected, as the client's certificate says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Caller {
    pub(crate) namespace: String,
    pub(crate) app_id: String,
}

/// A document with the values of its secrets. It is not shown by `Debug`.
pub(crate) struct Filled {
    pub(crate) document: Arc<Document>,
    pub(crate) text: String,
    /// The old side, while the claim moves.
    pub(crate) previous: Option<String>,
    /// What is missing, in words; empty when nothing is.
    pub(crate) missing: String,
}

/// Serves one sidecar: follows the documents of its namespace and holds the Secrets that they name.
pub(crate) struct Desk {
    space: Arc<Space>,
    caller: Caller,
    published: watch::Receiver<Published>,
    secrets_changed: watch::Receiver<u64>,
    held: BTreeMap<String, Option<Arc<Secret>>>,
}

impl Desk {
    pub(crate) fn new(space: Arc<Space>, caller: Caller) -> Self {
        let (published, secrets_changed) = (space.published(), space.secrets.changes());
        Self { space, caller, published, secrets_changed, held: BTreeMap::new() }
    }

    /// Returns when something may have changed.
    pub(crate) async fn changed(&mut self) {
        tokio::select! {
            Ok(()) = self.published.changed() => {}
            Ok(()) = self.secrets_changed.changed() => {}
            else => std::future::pending().await,
        }
    }

    /// The documents now, and since when they are so. What is asked for is taken as seen.
    pub(crate) fn look(&mut self) -> Published {
        self.secrets_changed.borrow_and_update();
        self.published.borrow_and_update().clone()
    }

    /// The documents of all kinds for this sidecar; Configurations only those of these names, in their order.
    pub(crate) fn select(&self, view: &Published, configurations: &[String]) -> Vec<Arc<Document>> {
        let mut documents: Vec<_> = view.view.concerning(&self.caller.app_id).cloned().collect();
        let named: BTreeSet<_> = configurations.iter().collect();
        documents.extend(named.into_iter().filter_map(|name| view.view.get(Kind::Configuration, name)).cloned());
        documents
    }

    /// The documents of one kind for this sidecar.
    pub(crate) fn select_kind(&self, view: &Published, kind: Kind) -> Vec<Arc<Document>> {
        view.view.of(kind).filter(|document| document.concerns(&self.caller.app_id)).cloned().collect()
    }

    /// Holds the Secrets that `bodies` name, and no others, and waits until they have been read, within a limit.
    pub(crate) async fn hold<'b>(&mut self, bodies: impl IntoIterator<Item = &'b Body>) {
        let names: BTreeSet<&str> = bodies.into_iter().flat_map(Body::secret_names).collect();
        self.held.retain(|name, secret| secret.is_some() && names.contains(name.as_str()));
        for name in names {
            if !self.held.contains_key(name) {
                self.held.insert(name.to_owned(), self.space.secrets.hold(name));
            }
        }
        let limit = Instant::now() + READ_LIMIT;
        let mut changes = self.space.secrets.changes();
        loop {
            changes.borrow_and_update();
            let unread = self.held.values().flatten().any(|secret| secret.is_unread());
            if !unread || !matches!(timeout_at(limit, changes.changed()).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// A document with both of its sides.
    pub(crate) fn fill(&self, document: &Arc<Document>) -> Filled {
        let (text, mut missing) = self.fill_body(document.kind, &document.body);
        let previous = document.moving.as_ref().map(|(_, old)| {
            let (text, more) = self.fill_body(document.kind, old);
            missing.extend(more);
            text
        });
        missing.dedup();
        Filled { document: document.clone(), text, previous, missing: missing.join("; ") }
    }

    /// A document with the side that owns it alone.
    pub(crate) fn fill_owner(&self, document: &Arc<Document>) -> Filled {
        let (text, missing) = self.fill_body(document.kind, document.owner());
        Filled { document: document.clone(), text, previous: None, missing: missing.join("; ") }
    }

    fn fill_body(&self, kind: Kind, body: &Body) -> (String, Vec<String>) {
        body.fill(kind, |wanted| match self.held.get(&wanted.name) {
            Some(Some(secret)) => secret.value(self.space.secrets.namespace(), wanted),
            _ => Err(self.space.secrets.too_many()),
        })
    }

    /// `text` without any value that this sidecar was given.
    pub(crate) fn scrub(&self, text: &mut String) {
        for secret in self.held.values().flatten() {
            secret.scrub(text);
        }
    }

    /// Tells people what this sidecar has waited for in vain, unless another one's wait has told them.
    pub(crate) fn complain(&self, waiting: &[String]) {
        for why in waiting.iter().filter(|why| self.space.said.is_news((*why).clone(), Instant::now())) {
            tracing::warn!(
                namespace = self.caller.namespace,
                app_id = self.caller.app_id,
                why,
                "a document still waits for a secret; sidecars keep what they have. Secrets called mecha-* are written \
                 from the source of a backend: its condition Ready says what is lacking. Others are yours to create"
            );
        }
    }

    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }
}
