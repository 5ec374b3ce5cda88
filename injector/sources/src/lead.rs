//! The leader's work: looks at everything, writes what differs, waits for the next change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Api;
use mecha_apiserver::trace::SpanKind;
use mecha_apiserver::{
    CapabilityBackend, CapabilityBinding, Events, FailureKind, Followed, Leadership, Role, Selection, Term,
    apply_status, cluster_namespace, follow,
};
use mecha_resources::kinds::ConditionStatus;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::backends::{Part, Proof, judge};
use crate::metrics::Metrics;
use crate::objects::{Objects, Reference};
use crate::probe::Probes;
use crate::secrets::{Names, Said, Secrets, Wanted, wanted};
use crate::source::{Credentials, Lack, find, find_stamped};
use crate::template::{Stamp, Stamps, Unit, fill_in};
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
    let own = Selection { namespace: Some(cluster_namespace(&options.cluster_name)), ..Selection::default() };
    let mut leader = Leader {
        backends: follow(role.client.clone(), &everything, &role.tasks),
        bindings: follow(role.client.clone(), &own, &role.tasks),
        objects: Objects::new(role.client.clone(), role.tasks.clone()),
        probes: Probes::new(
            options.probe_program.clone(),
            options.probe_every,
            options.probe_limit,
            role.tasks.clone(),
            options.tracer.clone(),
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

type Answer = Result<Option<Credentials>, Lack>;

/// What was found in one look at everything.
#[derive(Default)]
struct Found {
    /// By backend.
    backends: BTreeMap<String, Answer>,
    /// By unit, for backends with a template.
    units: BTreeMap<Unit, Answer>,
    /// Objects to be made.
    stamps: Vec<Stamp>,
}

impl Leader {
    async fn serve(&mut self, term: &Term) {
        let mut secrets = loop {
            match Secrets::begin(self.role.client.clone(), term.clone(), &self.options).await {
                Ok(secrets) => break secrets,
                Err(error) => {
                    tracing::warn!(%error, "the lists of Secrets cannot be read; they are tried again");
                    sleep(PAUSE.0).await;
                }
            }
        };
        let mut changes =
            [self.backends.changes(), self.bindings.changes(), self.objects.changes(), self.probes.changes()];
        let mut stamps = Stamps::default();
        let mut pause = PAUSE.0;
        while term.holds() {
            changes.iter_mut().for_each(|change| drop(change.borrow_and_update()));
            let failures = self.turn(term, &mut secrets, &mut stamps).await;
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
    async fn turn(&mut self, term: &Term, secrets: &mut Secrets, stamps: &mut Stamps) -> usize {
        let backends = self.backends.all();
        let all = wanted(self.bindings.all().iter().map(AsRef::as_ref), &self.options.cluster_name);
        let found = self.find_all(&backends, &all, stamps);
        self.objects.end_round();
        self.probes.keep(|name| found.backends.contains_key(name));
        self.said.retain(|name, _| found.backends.contains_key(name));
        let (mut failures, news) = stamps.apply(&self.role.client, term, &found.stamps).await;
        if news {
            // What could not be made is to be said, and what can be read now is to be read.
            let found = self.find_all(&backends, &all, stamps);
            failures += self.tell(term, &backends, &found).await;
            return failures.max(1);
        }
        failures += self.tell(term, &backends, &found).await;
        let source = |namespace: &str, wanted: &Wanted| {
            let backend = self.backends.get("", &wanted.backend)?;
            let answer = if backend.spec.source.template.is_some() {
                found.units.get(&self.unit(&backend, namespace, &wanted.claim))?
            } else {
                found.backends.get(&wanted.backend)?
            };
            Some((answer.as_ref().ok()?.clone()?, said_of(&backend)))
        };
        let round = secrets.reconcile(&all, source).await;
        self.metrics.current.set(round.current.try_into().unwrap_or(i64::MAX));
        self.metrics.waiting.set(round.waiting.try_into().unwrap_or(i64::MAX));
        failures += round.failed;
        failures
    }

    fn unit(&self, backend: &CapabilityBackend, namespace: &str, claim: &str) -> Unit {
        let name = backend.metadata.name.as_deref().unwrap_or_default();
        Unit::of(backend.spec.tenancy, name, &self.options.cluster_name, namespace, claim)
    }

    /// Looks up every source. Objects that are made elsewhere are followed from here on.
    fn find_all(&self, backends: &[Arc<CapabilityBackend>], all: &BTreeMap<String, Names>, stamps: &Stamps) -> Found {
        let mut found = Found::default();
        let mut taken = BTreeMap::<Reference, Unit>::new();
        for backend in backends {
            let Some(name) = backend.metadata.name.clone() else { continue };
            if backend.spec.source.template.is_none() {
                found.backends.insert(name, find(&backend.spec, &self.role.namespace, &self.objects));
                continue;
            }
            let mut units: BTreeSet<Unit> = all
                .iter()
                .flat_map(|(namespace, names)| names.claims.iter().map(move |claim| (namespace, claim)))
                .filter(|(_, (_, of))| *of == name)
                .map(|(namespace, (claim, _))| self.unit(backend, namespace, claim))
                .collect();
            // Shared objects are made at once; of the others it is seen whether they could be.
            let sample = self.unit(backend, "environment", "claim");
            let shared = Unit::is_shared(backend.spec.tenancy);
            if shared {
                units.insert(sample.clone());
            }
            let whole = fill_in(&backend.spec, &sample, &self.role.namespace);
            let whole = whole.map_err(|why| Lack::template(&why)).map(|_| None);
            for unit in units {
                let answer = match fill_in(&backend.spec, &unit, &self.role.namespace) {
                    Err(why) => Err(Lack::template(&why)),
                    Ok(None) => continue,
                    Ok(Some(stamp)) => match taken.insert(stamp.reference.clone(), unit.clone()) {
                        Some(other) if other != unit => Err(Lack::template(&format!(
                            "{} would serve two units; put what tells them apart into its name",
                            stamp.reference
                        ))),
                        _ => {
                            let failure = stamps.failure(&stamp.reference);
                            let answer = find_stamped(&backend.spec, &stamp, failure, &self.objects);
                            found.stamps.push(stamp);
                            answer
                        }
                    },
                };
                found.units.insert(unit, answer);
            }
            let of_all = if shared { found.units.get(&sample).cloned() } else { None };
            found.backends.insert(name, of_all.unwrap_or(whole));
        }
        found
    }

    /// What is known of the features of a backend whose source is complete.
    fn proof(
        &self,
        backend: &CapabilityBackend,
        name: &str,
        credentials: Option<&Credentials>,
        found: &Found,
    ) -> Proof {
        if backend.spec.source.template.is_none() || Unit::is_shared(backend.spec.tenancy) {
            return self.probes.proof(backend, credentials);
        }
        let lacks = found.units.iter().filter(|(unit, _)| unit.backend == name).filter_map(|(_, a)| a.as_ref().err());
        Proof::Later(lacks.filter(|lack| !lack.unread).map(|lack| lack.message.clone()).next())
    }

    /// Writes the statuses that differ.
    async fn tell(&mut self, term: &Term, backends: &[Arc<CapabilityBackend>], found: &Found) -> usize {
        let api: Api<CapabilityBackend> = Api::all(self.role.client.clone());
        let (mut failures, mut ready, mut not_ready) = (0, 0, 0);
        for backend in backends {
            let Some((name, source)) =
                backend.metadata.name.as_ref().and_then(|name| found.backends.get_key_value(name))
            else {
                continue;
            };
            match source {
                Ok(_) => ready += 1,
                Err(_) => not_ready += 1,
            }
            let proof = match source {
                Ok(credentials) => self.proof(backend, name, credentials.as_ref(), found),
                Err(_) => Proof::Pending,
            };
            let Some(part) = judge(backend, source, &proof, Timestamp::now()) else { continue };
            if !term.holds() {
                return failures;
            }
            let mut span = self.options.tracer.start(SpanKind::Internal, None, || "resolve source");
            if span.is_recording() {
                span.set("mecha.backend", name.clone());
                span.set("mecha.outcome", part.ready.reason.to_string());
            }
            match apply_status(&api, name, MANAGER, &part.value()).await {
                Ok(_) => self.announce(backend, name, &part),
                Err(failure) if failure.kind == FailureKind::NotFound => span.discard(),
                Err(error) => {
                    failures += 1;
                    span.fail("the status could not be written");
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
