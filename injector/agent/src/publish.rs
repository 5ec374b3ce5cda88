//! Writes what sidecars report into the status of bindings.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Api;
use mecha_apiserver::{CapabilityBinding, Events, FailureKind, Leadership, Role, Timing, apply_status};
use mecha_resources::kinds::{BindingEntryStatus, CapabilityBindingStatus};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout_at};

use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::sidecars::Sidecars;
use crate::status::{Concern, Fleet, assess};
use crate::world::{World, any};

/// Owner of the fields that are written here.
const MANAGER: &str = "mecha-agent";
/// The lease of the one that writes.
const LEASE: &str = "mecha-agent";
/// Between two writes of one binding that nobody waits for, and longest wait for more of what a phase of a move still
/// lacks. Between two times that this replica tells another what it hears.
const EVERY: Duration = Duration::from_millis(250);
/// The same for what a move goes on by: the phases wait for it, one after the other.
const QUICK: Duration = Duration::from_millis(20);
/// Reports that come together are written together.
const SETTLE: Duration = Duration::from_millis(50);
/// Reports that come together are looked at together; longer where a look takes longer.
const TOGETHER: Duration = Duration::from_millis(5);
/// All is looked at again after so long, since sidecars are forgotten by time.
const LOOK: Duration = Duration::from_secs(5);

/// Name and uid of a binding: one that was made anew has no status yet.
type Key = (String, Option<String>);

/// What was written about a binding, and what is about to be.
#[derive(Default)]
struct Known {
    status: Option<CapabilityBindingStatus>,
    written: Option<Instant>,
    /// Since when there is something else to say.
    news: Option<Instant>,
}

impl Known {
    /// When `status` is to be written, which says something else than what is known.
    fn due(&mut self, before: Option<&CapabilityBindingStatus>, status: &CapabilityBindingStatus) -> Instant {
        let news = *self.news.get_or_insert_with(Instant::now);
        let (pause, gather) = match urgency(before, status) {
            Urgency::Decides => (QUICK, Duration::ZERO),
            Urgency::Lacks => (EVERY, EVERY),
            Urgency::Tells => (EVERY, SETTLE),
        };
        let paused = self.written.map_or(news, |written| written + pause);
        paused.max(news + gather)
    }
}

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
        let mut known: BTreeMap<Key, Known> = BTreeMap::new();
        loop {
            let began = Instant::now();
            let mut next = began + LOOK;
            let mut pause = TOGETHER;
            changes.iter_mut().for_each(|change| drop(change.borrow_and_update()));
            match leadership.term().map(|term| term.epoch()) {
                Some(epoch) => {
                    let since = match leading {
                        Some((known, since)) if known == epoch => since,
                        _ => began,
                    };
                    leading = Some((epoch, since));
                    self.peers.retract().await;
                    let listens = self.peers.listen().await;
                    if since.elapsed() < self.patience {
                        next = next.min(since + self.patience);
                    } else if listens {
                        next = next.min(self.pass(&role, &leadership, &events, &mut known).await);
                        pause = began.elapsed().clamp(TOGETHER, EVERY);
                    }
                }
                None => {
                    // What another one writes is known by our watch when it is our turn.
                    leading = None;
                    known.clear();
                    self.peers.tell().await;
                    pause = EVERY;
                }
            }
            // Whatever comes first; a look that finds nothing to say costs no request.
            let _ = timeout_at(next, any(&mut changes)).await;
            sleep(pause).await;
        }
    }

    /// Writes what is due, and says when the next is.
    async fn pass(
        &self,
        role: &Role,
        leadership: &Leadership,
        events: &Events,
        known: &mut BTreeMap<Key, Known>,
    ) -> Instant {
        let bindings = self.world.bindings.all();
        // Whole seconds, as Kubernetes writes them.
        let now = format!("{:.0}", Timestamp::now());
        let mut seen = BTreeMap::new();
        let mut next = Instant::now() + LOOK;
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
            let mut known = known.remove(&key).unwrap_or_default();
            let before = known.status.clone().or_else(|| binding.status.clone());
            let (status, concerns) = assess(&binding, &fleet, &troubles, before.as_ref(), &now);
            if before.as_ref() == Some(&status) {
                seen.insert(key, Known { news: None, status: Some(status), ..known });
                continue;
            }
            let due = known.due(before.as_ref(), &status);
            if due > Instant::now() {
                next = next.min(due);
                seen.insert(key, known);
                continue;
            }
            // Whoever was frozen and wakes up writes nothing.
            if leadership.term().is_none() {
                break;
            }
            let written = Some(Instant::now());
            if self.write(role, &binding, &status).await {
                tell(events, &binding, before.as_ref(), &status, &concerns);
                seen.insert(key, Known { status: Some(status), written, news: None });
            } else {
                next = next.min(Instant::now() + EVERY);
                seen.insert(key, Known { written, ..Known::default() });
            }
        }
        *known = seen;
        next
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

/// Who waits for a status.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Urgency {
    /// A move, which goes on or back by it.
    Decides,
    /// A move, which has to wait for more than it says.
    Lacks,
    /// Nobody but people.
    Tells,
}

fn urgency(before: Option<&CapabilityBindingStatus>, now: &CapabilityBindingStatus) -> Urgency {
    let moving = |entry: &BindingEntryStatus| {
        let progress = entry.progress.as_ref().filter(|progress| progress.phase.is_some())?;
        let (all, failed) = (progress.reached >= progress.total, progress.failed > 0);
        Some((progress.revision, progress.phase, all, failed, progress.pending == 0))
    };
    let mut urgency = Urgency::Tells;
    for entry in &now.entries {
        let Some(step) = moving(entry) else { continue };
        let known = before.and_then(|before| before.entries.iter().find(|known| known.claim == entry.claim));
        let (_, _, all, failed, _) = step;
        if (all || failed) && known.and_then(moving) != Some(step) {
            return Urgency::Decides;
        }
        if !all {
            urgency = Urgency::Lacks;
        }
    }
    urgency
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

#[cfg(test)]
mod tests {
    use mecha_resources::kinds::{EntryProgress, SwapPhase};

    use super::*;

    fn status(
        phase: Option<SwapPhase>,
        reached: u32,
        edit: impl FnOnce(&mut EntryProgress),
    ) -> CapabilityBindingStatus {
        let mut progress = EntryProgress { revision: 3, phase, total: 2, reached, ..EntryProgress::default() };
        edit(&mut progress);
        let entry =
            BindingEntryStatus { claim: "orders".into(), progress: Some(progress), ..BindingEntryStatus::default() };
        CapabilityBindingStatus { entries: vec![entry], ..CapabilityBindingStatus::default() }
    }

    #[test]
    fn a_move_is_told_at_once_what_it_waits_for_and_what_it_lacks_waits_for_more() {
        let prepare = Some(SwapPhase::Prepare);
        let begun = status(prepare, 0, |_| {});
        let one = status(prepare, 1, |_| {});
        let all = status(prepare, 2, |_| {});
        let failed = status(prepare, 1, |p| p.failed = 1);
        assert_eq!(urgency(None, &begun), Urgency::Lacks);
        assert_eq!(urgency(Some(&begun), &one), Urgency::Lacks);
        assert_eq!(urgency(Some(&one), &all), Urgency::Decides);
        assert_eq!(urgency(None, &all), Urgency::Decides);
        assert_eq!(urgency(Some(&begun), &failed), Urgency::Decides);
        assert_eq!(urgency(Some(&all), &status(Some(SwapPhase::Switch), 2, |_| {})), Urgency::Decides);
        // It goes on by an empty old side, and not by what is left there.
        let left = |pending| status(Some(SwapPhase::Drain), 2, |p| p.pending = pending);
        assert_eq!(urgency(Some(&left(5)), &left(4)), Urgency::Tells);
        assert_eq!(urgency(Some(&left(4)), &left(0)), Urgency::Decides);
        assert_eq!(urgency(Some(&left(0)), &status(None, 2, |_| {})), Urgency::Tells);
    }

    #[tokio::test(start_paused = true)]
    async fn one_binding_is_not_written_all_the_time() {
        let prepare = Some(SwapPhase::Prepare);
        let (begun, one, all) = (status(prepare, 0, |_| {}), status(prepare, 1, |_| {}), status(prepare, 2, |_| {}));
        let now = Instant::now();
        let mut known = Known::default();
        assert_eq!(known.due(Some(&begun), &one), now + EVERY);
        assert_eq!(known.due(Some(&begun), &all), now, "the rest came meanwhile");
        let mut known = Known { written: Some(now), ..Known::default() };
        assert_eq!(known.due(Some(&begun), &all), now + QUICK);
    }
}
