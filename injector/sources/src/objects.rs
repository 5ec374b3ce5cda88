//! Objects of any kind that are known by name, each kept current.
//!
//! Every object in use has a watch of its own, by its name: neither the right to list Secrets nor the other Secrets
//! of a namespace come into it. What was not asked for in a round is forgotten.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, WatchEvent, WatchParams};
use kube::discovery::{Scope, pinned_kind};
use kube::{Api, Client};
use mecha_apiserver::{Failure, FailureKind, Tasks, call};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Objects in use at once; each is a connection to the API server.
const MAX_OBJECTS: usize = 2048;
/// First and longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Seconds after which the API server ends a watch.
const WATCH_SECONDS: u32 = 270;

/// An object's kind and place.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Reference {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    /// Empty for cluster-wide kinds.
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Reference {
    pub(crate) fn secret(namespace: &str, name: &str) -> Self {
        Self {
            api_version: "v1".to_owned(),
            kind: "Secret".to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    pub(crate) fn gvk(&self) -> GroupVersionKind {
        let (group, version) = self.api_version.split_once('/').unwrap_or(("", &self.api_version));
        GroupVersionKind::gvk(group, version, &self.kind)
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// What is known of an object. It may be a Secret: never shown.
#[derive(Clone)]
pub(crate) enum Seen {
    /// Nothing yet.
    Unread,
    /// It is not there.
    Missing,
    /// It cannot be read, and never could.
    Unreadable(String),
    /// As it was last seen.
    There(Arc<DynamicObject>),
}

/// Where sources look things up.
pub(crate) trait Look {
    /// What is known of `reference` now.
    fn see(&self, reference: &Reference) -> Seen;
}

/// Objects in use.
pub(crate) struct Objects {
    client: Client,
    tasks: Tasks,
    known: Mutex<HashMap<Reference, Known>>,
    changes: watch::Sender<u64>,
}

struct Known {
    seen: Arc<Mutex<Seen>>,
    used: bool,
    _stop: DropGuard,
}

impl Objects {
    pub(crate) fn new(client: Client, tasks: Tasks) -> Self {
        Self { client, tasks, known: Mutex::default(), changes: watch::Sender::new(0) }
    }

    /// Changes when any object in use may have.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Ends a round: what nobody has looked at since the last one is forgotten.
    pub(crate) fn end_round(&self) {
        self.known.lock().retain(|_, known| std::mem::take(&mut known.used));
    }
}

impl Look for Objects {
    fn see(&self, reference: &Reference) -> Seen {
        let mut known = self.known.lock();
        if let Some(known) = known.get_mut(reference) {
            known.used = true;
            return known.seen.lock().clone();
        }
        if known.len() >= MAX_OBJECTS {
            return Seen::Unreadable(format!("more than {MAX_OBJECTS} objects are in use as sources"));
        }
        let stop = CancellationToken::new();
        let seen = Arc::new(Mutex::new(Seen::Unread));
        let follower = Follower {
            client: self.client.clone(),
            reference: reference.clone(),
            seen: seen.clone(),
            changes: self.changes.clone(),
        };
        let stopped = stop.clone();
        self.tasks.run("source", async move {
            let _ = stopped.run_until_cancelled(follower.run()).await;
        });
        known.insert(reference.clone(), Known { seen, used: true, _stop: stop.drop_guard() });
        Seen::Unread
    }
}

struct Follower {
    client: Client,
    reference: Reference,
    seen: Arc<Mutex<Seen>>,
    changes: watch::Sender<u64>,
}

impl Follower {
    async fn run(self) {
        let mut pause = PAUSE.0;
        loop {
            match self.turn().await {
                Ok(()) => pause = PAUSE.0,
                Err(failure) => {
                    self.note(&failure);
                    pause = (2 * pause).min(PAUSE.1);
                }
            }
            sleep(pause).await;
        }
    }

    /// Reads the object, then follows it until the watch ends.
    async fn turn(&self) -> Result<(), Failure> {
        let api = self.api().await?;
        let found = call(api.get_opt(&self.reference.name)).await?;
        let version = found.as_ref().and_then(|object| object.metadata.resource_version.clone());
        self.set(found.map_or(Seen::Missing, |object| Seen::There(Arc::new(object))));
        let only = format!("metadata.name={}", self.reference.name);
        let params = WatchParams::default().fields(&only).timeout(WATCH_SECONDS);
        // Without the object there is no version to begin at: "0" begins at what the server has at hand, which may be
        // a moment old and is corrected by the events that follow.
        let mut events = std::pin::pin!(call(api.watch(&params, version.as_deref().unwrap_or("0"))).await?);
        while let Some(event) = events.try_next().await? {
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => self.set(Seen::There(Arc::new(object))),
                WatchEvent::Deleted(_) => self.set(Seen::Missing),
                WatchEvent::Bookmark(_) => {}
                // The place in the server's history is gone: read again.
                WatchEvent::Error(_) => return Ok(()),
            }
        }
        Ok(())
    }

    async fn api(&self) -> Result<Api<DynamicObject>, Failure> {
        let Reference { namespace, kind, .. } = &self.reference;
        if kind == "Secret" && self.reference.api_version == "v1" {
            let resource = ApiResource::erase::<k8s_openapi::api::core::v1::Secret>(&());
            return Ok(Api::namespaced_with(self.client.clone(), namespace, &resource));
        }
        let (resource, capabilities) = call(pinned_kind(&self.client, &self.reference.gvk())).await?;
        Ok(match capabilities.scope {
            Scope::Namespaced => Api::namespaced_with(self.client.clone(), namespace, &resource),
            Scope::Cluster => Api::all_with(self.client.clone(), &resource),
        })
    }

    fn set(&self, now: Seen) {
        let mut seen = self.seen.lock();
        let same = match (&*seen, &now) {
            (Seen::There(a), Seen::There(b)) => {
                a.metadata.resource_version == b.metadata.resource_version && a.metadata.uid == b.metadata.uid
            }
            (Seen::Missing, Seen::Missing) => true,
            (Seen::Unreadable(a), Seen::Unreadable(b)) => a == b,
            _ => false,
        };
        *seen = now;
        drop(seen);
        if !same {
            self.changes.send_modify(|version| *version += 1);
        }
    }

    /// A failure says nothing about what was read before.
    fn note(&self, failure: &Failure) {
        if matches!(*self.seen.lock(), Seen::There(_) | Seen::Missing) {
            return;
        }
        let reference = &self.reference;
        let why = match failure.kind {
            FailureKind::Forbidden => format!(
                "{reference} may not be read; grant get, list and watch in a ClusterRole with the label \
                 mecha.dev/aggregate-to-agent: \"true\""
            ),
            FailureKind::NotFound => {
                format!("the API server does not know kind {} of {}", reference.kind, reference.api_version)
            }
            _ => format!("{reference} cannot be read: {failure}"),
        };
        self.set(Seen::Unreadable(why));
    }
}
