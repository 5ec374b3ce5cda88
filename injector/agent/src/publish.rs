//! Writes what sidecars report into the status of bindings.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Api;
use mecha_apiserver::{CapabilityBinding, Events, FailureKind, Leadership, Role, Timing, apply_status};
use mecha_resources::kinds::CapabilityBindingStatus;
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::sidecars::Sidecars;
use crate::status::{Concern, Fleet, assess};
use crate::world::{World, any};

/// Owner of the fields that are written here.
const MANAGER: &str = "mecha-agent";
/// The lease of the one that writes.
const LEASE: &str = "mecha-agent";
/// Between two writes of one binding: the phases of a move wait for them, one after the other.
const EVERY: Duration = Duration::from_millis(250);
/// Reports that come together are written together.
const SETTLE: Duration = Duration::from_millis(50);
/// All is looked at again after so long, since sidecars are forgotten by time.
const LOOK: Duration = Duration::from_secs(5);

/// Name and uid of a binding: one that was made anew has no status yet.
type Key = (String, Option<String>);

pub(crate) struct Publisher {
    pub(crate) world: Arc<World>,
    pub(crate) sidecars: Arc<Sidecars>,
    pub(crate) peers: Peers,
    pub(crate) metrics: Metrics,
    /// Nothing is written for so long after this replica has begun to lead: sidecars come back first.
    pub(crate) patience: Duration,
}

impl Publisher {
    /// Writes for as long as the role runs.
    pub(crate) async fn run(self, role: Role) {
        let leadership = Leadership::campaign(&role, LEASE, Timing::default());
        let events = Events::new(&role, MANAGER);
        // The term that this replica leads in, and since when.
        let mut leading: Option<(i64, Instant)> = None;
        let mut changes = [
            self.world.bindings.changes(),
            self.world.pods.changes(),
            self.world.composed(),
            self.sidecars.changes(),
            self.peers.changes(),
        ];
        let mut written: BTreeMap<Key, CapabilityBindingStatus> = BTreeMap::new();
        loop {
            let next = Instant::now() + EVERY;
            changes.iter_mut().for_each(|change| drop(change.borrow_and_update()));
            match leadership.term().map(|term| term.epoch()) {
                Some(epoch) => {
                    let since = match leading {
                        Some((known, since)) if known == epoch => since,
                        _ => next - EVERY,
                    };
                    leading = Some((epoch, since));
                    self.peers.retract().await;
                    if since.elapsed() >= self.patience && self.peers.listen().await {
                        self.pass(&role, &leadership, &events, &mut written).await;
                    }
                }
                None => {
                    // What another one writes is known by our watch when it is our turn.
                    leading = None;
                    written.clear();
                    self.peers.tell().await;
                }
            }
            sleep_until(next).await;
            if timeout(LOOK, any(&mut changes)).await.is_ok() {
                sleep(SETTLE).await;
            }
        }
    }

    async fn pass(
        &self,
        role: &Role,
        leadership: &Leadership,
        events: &Events,
        written: &mut BTreeMap<Key, CapabilityBindingStatus>,
    ) {
        let bindings = self.world.bindings.all();
        // Whole seconds, as Kubernetes writes them.
        let now = format!("{:.0}", Timestamp::now());
        let mut seen = BTreeMap::new();
        for binding in bindings {
            let key: Key = (binding.metadata.name.clone().unwrap_or_default(), binding.metadata.uid.clone());
            let fleet = self.fleet(&binding.spec.namespace);
            let view = self.world.view(&binding.spec.namespace);
            let troubles = view
                .troubles
                .iter()
                .filter(|((name, _), _)| *name == key.0)
                .map(|((_, claim), why)| (claim.as_str(), why))
                .collect();
            let before = written.remove(&key).or_else(|| binding.status.clone());
            let (status, concerns) = assess(&binding, &fleet, &troubles, before.as_ref(), &now);
            if before.as_ref() == Some(&status) {
                seen.insert(key, status);
                continue;
            }
            // Whoever was frozen and wakes up writes nothing.
            if leadership.term().is_none() {
                break;
            }
            if self.write(role, &binding, &status).await {
                tell(events, &binding, before.as_ref(), &status, &concerns);
                seen.insert(key, status);
            }
        }
        *written = seen;
    }

    /// All sidecars of a namespace, those of other replicas too.
    fn fleet(&self, namespace: &str) -> Fleet {
        let (mut sidecars, mut stock) = self.sidecars.within(namespace);
        self.peers.add(namespace, &mut sidecars, &mut stock);
        let pods = self.world.pods.within(namespace);
        let pods = pods
            .iter()
            .filter_map(|pod| Some((pod.app_id()?.to_owned(), kube::Resource::meta(&**pod).name.clone()?)))
            .collect();
        Fleet { sidecars, stock, pods }
    }

    async fn write(&self, role: &Role, binding: &CapabilityBinding, status: &CapabilityBindingStatus) -> bool {
        let name = binding.metadata.name.as_deref().unwrap_or_default();
        let namespace = binding.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<CapabilityBinding> = Api::namespaced(role.client.clone(), namespace);
        match apply_status(&api, name, MANAGER, &json!(status)).await {
            Ok(_) => {
                self.metrics.status_written();
                true
            }
            Err(failure) if failure.kind == FailureKind::NotFound => false,
            Err(error) => {
                tracing::warn!(namespace, name, %error, "the status of a binding could not be written; it is tried again");
                false
            }
        }
    }
}

/// Tells people what has become wrong.
fn tell(
    events: &Events,
    binding: &CapabilityBinding,
    before: Option<&CapabilityBindingStatus>,
    now: &CapabilityBindingStatus,
    concerns: &[Concern],
) {
    for (entry, concern) in now.entries.iter().zip(concerns) {
        let Some(reason) = concern.reason() else { continue };
        let known = before.and_then(|before| before.entries.iter().find(|known| known.claim == entry.claim));
        if known.is_none_or(|known| known.message != entry.message) {
            events.warning(binding, reason, "Deliver", &format!("{}: {}", entry.claim, entry.message));
        }
    }
}
