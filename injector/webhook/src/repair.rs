//! Pods that should have a sidecar and have none: reported, and after a while evicted so that their owner makes
//! them anew. Only where a new one would be injected, within limits, and never against a disruption budget.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::{Request, header};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, DynamicObject};
use kube::{Api, Client};
use mecha_apiserver::{Events, Failure, FailureKind, Followed, Leadership, Role, Selection, Term, call, follow};
use mecha_patch::{Config, inject};
use serde_json::{Value, json};

use crate::canary::Canary;
use crate::metrics::{Eviction, Metrics};
use crate::options::{Options, RepairOptions};
use crate::pods::{Seen, is_bare};
use crate::registration::{OLD_LABEL, by_expression, is_sent};

/// Time between two looks while a pod is bare.
const LOOK: Duration = Duration::from_secs(2);
/// Time in which tries of one owner count together.
const TRIES_WINDOW: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);
/// Longest wait for leave to evict: other pods wait meanwhile.
const EVICTION_LIMIT: Duration = Duration::from_secs(5);
/// Pause for a pod that could not be evicted.
const AGAIN: Duration = Duration::from_secs(30);

pub(crate) struct Repair {
    options: Options,
    own_namespace: String,
    client: Client,
    pods: Followed<Seen>,
    config: Arc<ArcSwap<Config>>,
    minor: Arc<AtomicU32>,
    canary: Canary,
    events: Events,
    metrics: Metrics,
}

/// What is known of the pods that are bare now, and of what was done.
#[derive(Default)]
struct Memory {
    /// By UID: since when, and not before when it is tried.
    bare: BTreeMap<String, (Instant, Instant)>,
    limits: Limits,
    /// It was said that nothing is evicted while pods are not injected.
    waiting: bool,
}

/// Holds evictions back.
#[derive(Default)]
struct Limits {
    /// Evictions of the last minute.
    recent: VecDeque<Instant>,
    /// By UID of the owner, evictions of the last hour.
    owners: BTreeMap<String, VecDeque<Instant>>,
}

/// What holds an eviction back.
#[derive(Debug, PartialEq, Eq)]
enum Held {
    /// For a moment, for all pods.
    Rate,
    /// Its owner's pods were evicted often enough.
    Tries,
}

impl Limits {
    fn may(&mut self, options: &RepairOptions, owner: &str, now: Instant) -> Result<(), Held> {
        let fresh = |at: &Instant, window: Duration| now.duration_since(*at) < window;
        self.recent.retain(|at| fresh(at, MINUTE));
        self.owners.retain(|_, tries| {
            tries.retain(|at| fresh(at, TRIES_WINDOW));
            !tries.is_empty()
        });
        if self.owners.get(owner).is_some_and(|tries| tries.len() >= options.tries as usize) {
            return Err(Held::Tries);
        }
        if self.recent.len() >= options.per_minute as usize { Err(Held::Rate) } else { Ok(()) }
    }

    fn count(&mut self, owner: &str, now: Instant) {
        self.recent.push_back(now);
        self.owners.entry(owner.to_owned()).or_default().push_back(now);
    }
}

impl Repair {
    pub(crate) fn new(
        options: &Options,
        role: &Role,
        (config, minor): (Arc<ArcSwap<Config>>, Arc<AtomicU32>),
        canary: Canary,
        events: Events,
        metrics: Metrics,
    ) -> Self {
        Self {
            options: options.clone(),
            own_namespace: role.namespace.clone(),
            client: role.client.clone(),
            pods: follow(role.client.clone(), &Selection::default(), &role.tasks),
            config,
            minor,
            canary,
            events,
            metrics,
        }
    }

    /// Looks after pods while this replica leads, until it is dropped.
    pub(crate) async fn run(self, mut leadership: Leadership) {
        self.pods.listed().await;
        loop {
            let term = leadership.elected().await;
            tokio::select! {
                () = self.lead(&term) => {}
                () = leadership.deposed(&term) => {}
            }
            self.metrics.bare.set(0);
        }
    }

    async fn lead(&self, term: &Term) {
        let mut memory = Memory::default();
        let mut changes = self.pods.changes();
        loop {
            self.look(&mut memory, term).await;
            let quiet = memory.bare.is_empty();
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK), if !quiet => {}
            }
            // Changes of pods come in bursts; one look serves them all.
            tokio::time::sleep(LOOK / 10).await;
        }
    }

    async fn look(&self, memory: &mut Memory, term: &Term) {
        let now = Instant::now();
        let bare: Vec<Arc<Seen>> = self.pods.all().into_iter().filter(|pod| self.concerns(pod)).collect();
        self.metrics.bare.set(i64::try_from(bare.len()).unwrap_or(i64::MAX));
        let uids: BTreeSet<&str> = bare.iter().map(|pod| pod.uid()).collect();
        memory.bare.retain(|uid, _| uids.contains(uid.as_str()));
        let mut due = Vec::new();
        for pod in &bare {
            let (since, not_before) = *memory.bare.entry(pod.uid().to_owned()).or_insert_with(|| {
                self.report(pod);
                (now, now)
            });
            let waited = now.duration_since(since) >= self.options.repair.after && now >= not_before;
            if waited && pod.controller().is_some() {
                due.push(pod.clone());
            }
        }
        if due.is_empty() || !self.options.repair.evict {
            return;
        }
        // A new pod that would be refused, or be bare again, helps nobody.
        if let Err(error) = self.canary.check().await {
            if !std::mem::replace(&mut memory.waiting, true) {
                tracing::warn!(%error, bare = due.len(), "no pod is evicted while pods are not injected");
            }
            self.put_off(memory, &due, now);
            return;
        }
        memory.waiting = false;
        for pod in due {
            if !term.holds() {
                return;
            }
            let Some(owner) = pod.controller() else { continue };
            match memory.limits.may(&self.options.repair, &owner.uid, now) {
                Ok(()) => {}
                Err(Held::Rate) => return,
                Err(Held::Tries) => {
                    let note = format!(
                        "Pods of {} {} were evicted {} times within an hour and still have no sidecar; look at the \
                         events of the new ones.",
                        owner.kind, owner.name, self.options.repair.tries
                    );
                    self.events.warning(&*pod, "RepairGivenUp", "Evict", &note);
                    if let Some((_, not_before)) = memory.bare.get_mut(pod.uid()) {
                        *not_before = now + TRIES_WINDOW;
                    }
                    continue;
                }
            }
            match self.evict(&pod).await {
                Eviction::Evicted => memory.limits.count(&owner.uid, now),
                Eviction::Gone => {}
                Eviction::Held | Eviction::Failed => self.put_off(memory, std::slice::from_ref(&pod), now),
            }
        }
    }

    fn put_off(&self, memory: &mut Memory, pods: &[Arc<Seen>], now: Instant) {
        for pod in pods {
            if let Some((_, not_before)) = memory.bare.get_mut(pod.uid()) {
                *not_before = now + AGAIN.min(self.options.repair.after.max(LOOK));
            }
        }
    }

    fn concerns(&self, pod: &Seen) -> bool {
        pod.bare && !self.options.skips(&self.own_namespace, pod.namespace())
    }

    fn report(&self, pod: &Seen) {
        let repair = &self.options.repair;
        let next = if !by_expression(self.minor.load(Ordering::Relaxed)) {
            "This API server is older than 1.30 and injects only pods with the label mecha.dev/enabled: \"true\"."
        } else if !repair.evict {
            "Delete it, so that its owner makes it anew."
        } else if pod.controller().is_none() {
            "Nothing would make it anew: create it again yourself."
        } else {
            "It will be evicted, so that its owner makes it anew."
        };
        tracing::warn!(namespace = pod.namespace(), pod = pod.name(), "a pod asks for a sidecar and has none");
        let note = format!("The pod asks for a sidecar and has none; it was created while it was not injected. {next}");
        self.events.warning(pod, "SidecarMissing", "Inject", &note);
    }

    /// Evicts a pod after a last look at it.
    async fn evict(&self, pod: &Seen) -> Eviction {
        let result = self.try_evict(pod).await;
        self.metrics.eviction(result);
        result
    }

    async fn try_evict(&self, pod: &Seen) -> Eviction {
        let (namespace, name) = (pod.namespace(), pod.name());
        let resource = ApiResource::erase::<Pod>(&());
        let dynamic: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        let stored = match call(dynamic.get_opt(name)).await {
            Ok(Some(stored)) if stored.metadata.uid.as_deref() == Some(pod.uid()) => stored,
            Ok(_) => return Eviction::Gone,
            Err(error) => {
                tracing::warn!(namespace, pod = name, %error, "a bare pod cannot be read");
                return Eviction::Failed;
            }
        };
        let stored = serde_json::to_value(&stored).unwrap_or_default();
        if !is_bare(&stored) {
            return Eviction::Gone;
        }
        if let Err(why) = self.would_be_injected(&stored) {
            self.events.warning(pod, "RepairRefused", "Evict", &format!("It is not evicted: {why}"));
            return Eviction::Failed;
        }
        let evicting = tokio::time::timeout(EVICTION_LIMIT, self.post_eviction(namespace, name, pod.uid()));
        let held = match evicting.await {
            Ok(Ok(())) => {
                tracing::info!(namespace, pod = name, "a pod without its sidecar was evicted");
                self.events.normal(pod, "Evicted", "Evict", "Evicted, so that its owner makes it anew with a sidecar.");
                return Eviction::Evicted;
            }
            Ok(Err(error)) => match error.kind {
                FailureKind::NotFound | FailureKind::Conflict => return Eviction::Gone,
                FailureKind::Busy => error.to_string(),
                _ => {
                    tracing::warn!(namespace, pod = name, %error, "a pod without its sidecar cannot be evicted");
                    return Eviction::Failed;
                }
            },
            // The client asks again for as long as a budget says no.
            Err(_) => format!("no leave within {EVICTION_LIMIT:?}"),
        };
        let note = format!("It cannot be evicted now; a disruption budget holds it, or the API server is busy: {held}");
        self.events.normal(pod, "EvictionHeld", "Evict", &note);
        Eviction::Held
    }

    /// Asks for the eviction of exactly this pod, whatever has its name by then. `Api::evict` would not: it does not
    /// send its options under the name that the API server reads.
    async fn post_eviction(&self, namespace: &str, name: &str, uid: &str) -> Result<(), Failure> {
        let body = json!({
            "apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"namespace": namespace, "name": name},
            "deleteOptions": {"preconditions": {"uid": uid}},
        });
        let request = Request::post(format!("/api/v1/namespaces/{namespace}/pods/{name}/eviction"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(body.to_string().into_bytes())
            .map_err(|e| kube::Error::BuildRequest(kube::core::request::Error::BuildRequest(e)))?;
        call(self.client.request::<Value>(request)).await.map(|_| ())
    }

    /// Whether a pod like this one would come back with a sidecar.
    fn would_be_injected(&self, pod: &Value) -> Result<(), String> {
        let minor = self.minor.load(Ordering::Relaxed);
        if !is_sent(pod, minor) && !by_expression(minor) {
            let (key, value) = OLD_LABEL;
            return Err(format!("this API server is older than 1.30 and needs the label {key}: \"{value}\" on it"));
        }
        let namespace = pod.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
        inject(pod, namespace, &self.config.load()).map(|_| ()).map_err(|denied| denied.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evictions_are_limited_per_owner_and_per_minute() {
        let options = RepairOptions { per_minute: 5, tries: 3, ..RepairOptions::default() };
        let mut limits = Limits::default();
        let start = Instant::now();
        for _ in 0..3 {
            assert_eq!(limits.may(&options, "a", start), Ok(()));
            limits.count("a", start);
        }
        assert_eq!(limits.may(&options, "a", start), Err(Held::Tries));
        for owner in ["b", "c"] {
            assert_eq!(limits.may(&options, owner, start), Ok(()));
            limits.count(owner, start);
        }
        assert_eq!(limits.may(&options, "d", start), Err(Held::Rate));
        assert_eq!(limits.may(&options, "d", start + MINUTE), Ok(()));
        assert_eq!(limits.may(&options, "a", start + MINUTE), Err(Held::Tries));
        assert_eq!(limits.may(&options, "a", start + TRIES_WINDOW), Ok(()));
        assert!(limits.owners.is_empty(), "what is over is forgotten");
    }
}
