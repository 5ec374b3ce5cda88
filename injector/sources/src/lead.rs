//! The leader's work: looks at everything, writes what differs, waits for the next change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Api;
use mecha_apiserver::{
    CapabilityBackend, CapabilityBinding, Events, FailureKind, Followed, Leadership, Role, Selection, Term,
    apply_status, follow,
};
use mecha_resources::kinds::ConditionStatus;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::backends::{Part, judge};
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::probe::Probes;
use crate::secrets::{Said, Secrets, wanted};
use crate::source::{Credentials, Lack, find};
use crate::{LEASE, MANAGER, Options};

/// Changes that come together are looked at together.
const SETTLE: Duration = Duration::from_millis(30);
/// First and longest pause after a write that failed.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// Leads whenever this replica is the one to, for as long as it is polled.
pub(crate) async fn lead(options: Options, role: Role) {
    let gate = role.ready.wait_for("sources of backends");
    let metrics = Metrics::register(&mut role.metrics.lock());
    let everything = Selection::default();
    let mut leader = Leader {
        backends: follow(role.client.clone(), &everything, &role.tasks),
        bindings: follow(role.client.clone(), &everything, &role.tasks),
        objects: Objects::new(role.client.clone(), role.tasks.clone()),
        probes: Probes::new(
            options.probe_program.clone(),
            options.probe_every,
            options.probe_limit,
            role.tasks.clone(),
        ),
        events: Events::new(&role, MANAGER),
        metrics,
        said: BTreeMap::new(),
        options,
        role,
    };
    leader.backends.listed().await;
    leader.bindings.listed().await;
    gate.open();
    let mut leadership = Leadership::campaign(&leader.role, LEASE, leader.options.lease);
    loop {
        let term = leadership.elected().await;
        tokio::select! {
            () = leader.serve(&term) => {}
            () = leadership.deposed(&term) => {}
        }
        // What is not followed while another replica leads costs nothing.
        leader.objects.end_round();
        leader.objects.end_round();
    }
}

struct Leader {
    backends: Followed<CapabilityBackend>,
    bindings: Followed<CapabilityBinding>,
    objects: Objects,
    probes: Probes,
    events: Events,
    metrics: Metrics,
    /// The last word on each backend, for events.
    said: BTreeMap<String, (ConditionStatus, String)>,
    options: Options,
    role: Role,
}

type Found = BTreeMap<String, Result<Option<Credentials>, Lack>>;

impl Leader {
    async fn serve(&mut self, term: &Term) {
        let mut secrets = loop {
            match Secrets::begin(self.role.client.clone(), term.clone(), self.options.retain).await {
                Ok(secrets) => break secrets,
                Err(error) => {
                    tracing::warn!(%error, "the lists of Secrets cannot be read; they are tried again");
                    sleep(PAUSE.0).await;
                }
            }
        };
        let mut changes =
            [self.backends.changes(), self.bindings.changes(), self.objects.changes(), self.probes.changes()];
        let mut pause = PAUSE.0;
        while term.holds() {
            changes.iter_mut().for_each(|change| drop(change.borrow_and_update()));
            let failures = self.turn(term, &mut secrets).await;
            let mut next = Instant::now() + secrets.wait();
            if failures > 0 {
                self.metrics.failed.inc_by(failures as u64);
                next = next.min(Instant::now() + pause);
                pause = (2 * pause).min(PAUSE.1);
            } else {
                pause = PAUSE.0;
            }
            if let Some(due) = self.probes.due() {
                next = next.min(due.max(Instant::now() + SETTLE));
            }
            tokio::select! {
                () = any(&mut changes) => sleep(SETTLE).await,
                () = sleep_until(next) => {}
            }
        }
    }

    /// One look at everything; says how many writes failed.
    async fn turn(&mut self, term: &Term, secrets: &mut Secrets) -> usize {
        let backends = self.backends.all();
        let found: Found = backends
            .iter()
            .filter_map(|backend| {
                let name = backend.metadata.name.clone()?;
                Some((name, find(&backend.spec, &self.role.namespace, &self.objects)))
            })
            .collect();
        self.objects.end_round();
        self.probes.keep(|name| found.contains_key(name));
        self.said.retain(|name, _| found.contains_key(name));
        let mut failures = self.tell(term, &backends, &found).await;
        let all = wanted(self.bindings.all().iter().map(AsRef::as_ref), &self.options.cluster_name);
        let source = |name: &str| {
            let credentials = found.get(name)?.as_ref().ok()?.clone()?;
            Some((credentials, said_of(self.backends.get("", name)?.as_ref())))
        };
        let round = secrets.reconcile(&all, source).await;
        self.metrics.current.set(round.current.try_into().unwrap_or(i64::MAX));
        self.metrics.waiting.set(round.waiting.try_into().unwrap_or(i64::MAX));
        failures += round.failed;
        failures
    }

    /// Writes the statuses that differ.
    async fn tell(&mut self, term: &Term, backends: &[Arc<CapabilityBackend>], found: &Found) -> usize {
        let api: Api<CapabilityBackend> = Api::all(self.role.client.clone());
        let (mut failures, mut ready, mut not_ready) = (0, 0, 0);
        for backend in backends {
            let Some((name, source)) = backend.metadata.name.as_ref().and_then(|name| found.get_key_value(name)) else {
                continue;
            };
            match source {
                Ok(_) => ready += 1,
                Err(_) => not_ready += 1,
            }
            let proof = match source {
                Ok(credentials) => self.probes.proof(backend, credentials.as_ref()),
                Err(_) => crate::backends::Proof::Pending,
            };
            let Some(part) = judge(backend, source, &proof, Timestamp::now()) else { continue };
            if !term.holds() {
                return failures;
            }
            match apply_status(&api, name, MANAGER, &part.value()).await {
                Ok(_) => self.announce(backend, name, &part),
                Err(failure) if failure.kind == FailureKind::NotFound => {}
                Err(error) => {
                    failures += 1;
                    tracing::warn!(backend = name, %error, "the status could not be written; it is tried again");
                }
            }
        }
        self.metrics.ready.set(ready);
        self.metrics.not_ready.set(not_ready);
        failures
    }

    fn announce(&mut self, backend: &CapabilityBackend, name: &str, part: &Part) {
        let ready = &part.ready;
        let word = (ready.status, ready.reason.to_string());
        if self.said.insert(name.to_owned(), word.clone()).as_ref() == Some(&word) {
            return;
        }
        tracing::info!(backend = name, reason = word.1, message = ready.message, "the backend is judged anew");
        match ready.status {
            ConditionStatus::False => self.events.warning(backend, &word.1, "Resolve", &ready.message),
            _ => self.events.normal(backend, &word.1, "Resolve", &ready.message),
        }
    }
}

/// What Secrets of this backend say beside the keys of their source.
fn said_of(backend: &CapabilityBackend) -> Said {
    let kind = &backend.spec.component.kind;
    Said {
        kind: kind.rsplit('.').next().unwrap_or(kind).to_owned(),
        provider: backend.metadata.name.clone().unwrap_or_default(),
    }
}

async fn any(changes: &mut [watch::Receiver<u64>; 4]) {
    let [a, b, c, d] = changes;
    tokio::select! {
        _ = a.changed() => {}
        _ = b.changed() => {}
        _ = c.changed() => {}
        _ = d.changed() => {}
    }
}
