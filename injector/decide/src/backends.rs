//! The chain that finds a backend for a claim.

use std::collections::{BTreeMap, BTreeSet};

use mecha_resources::kinds::{
    BackendConditionType, BackendState, CapabilityBackend, CapabilityBackendSpec, CapabilityKind, ConditionStatus,
    Constraint, DecideReason, Explanation, Hint, LabelSelector, Tenancy, condition_status,
};
use serde::{Deserialize, Serialize};

use crate::canonical::{Digest, digest_of};
use crate::chain::{Chain, Check, Refusal, Scored, Weights, explain, rank, sift, tightest};
use crate::clusters::{Cluster, LATENCY_MS};
use crate::constraint;
use crate::inventory::Inventory;

/// What is known about a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What the platform team wrote.
    pub spec: CapabilityBackendSpec,
    /// Features that a probe has proven; `None` before the first probe.
    #[serde(default)]
    pub verified: Option<BTreeSet<String>>,
    /// Whether it works; `None` when nobody knows.
    #[serde(default)]
    pub ready: Option<bool>,
    /// Claims it serves.
    #[serde(default)]
    pub bound: u32,
    /// Probed round trip in microseconds, by cluster.
    #[serde(default)]
    pub latency_us: BTreeMap<String, u64>,
    /// The round trip that the platform team expects, for clusters that no probe has measured it from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_latency_us: Option<u64>,
    /// Clusters whose probe failed, with the probe's error.
    #[serde(default)]
    pub unreachable: BTreeMap<String, String>,
}

impl Backend {
    /// What an object and its status say; probes come beside it.
    #[must_use]
    pub fn of(object: &CapabilityBackend) -> Self {
        let status = object.status.as_ref();
        let latency = object.metadata.annotations.get(LATENCY_MS).and_then(|text| text.parse::<u64>().ok());
        let ready = status.and_then(|s| condition_status(&s.conditions, BackendConditionType::Ready));
        Self {
            labels: object.metadata.labels.clone(),
            spec: object.spec.clone(),
            verified: status.and_then(|s| s.verified_features.as_ref()).map(|f| f.iter().cloned().collect()),
            ready: ready.and_then(|status| match status {
                ConditionStatus::True => Some(true),
                ConditionStatus::False => Some(false),
                ConditionStatus::Unknown => None,
            }),
            bound: status.map_or(0, |s| s.bound_claims),
            latency_us: BTreeMap::new(),
            expected_latency_us: latency.map(|ms| ms.saturating_mul(1000)),
            unreachable: BTreeMap::new(),
        }
    }

    fn attribute(&self, name: &str) -> Option<&str> {
        match name {
            "region" => self.spec.topology.as_ref().map(|t| t.region.as_str()).filter(|region| !region.is_empty()),
            "type" => Some(&self.spec.component.kind),
            _ => self.spec.traits.get(name).map(String::as_str),
        }
    }
}

/// When a better candidate is worth a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hysteresis {
    /// Points it must be better by.
    pub min_gain: u32,
    /// Milliseconds it must stay better.
    pub hold_ms: u64,
}

impl Default for Hysteresis {
    fn default() -> Self {
        Self { min_gain: 10, hold_ms: 600_000 }
    }
}

/// A candidate that does better than what runs, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Challenger {
    /// Its name.
    pub name: String,
    /// What it would take the place of.
    pub over: String,
    /// Since when, in milliseconds of the caller's clock.
    pub since_ms: u64,
}

/// What serves a claim now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Current {
    /// The backend.
    pub backend: String,
    /// Who does better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub challenger: Option<Challenger>,
}

/// A claim with everything that its class adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimRequest {
    /// What is needed.
    pub kind: CapabilityKind,
    /// Backends that the class allows.
    pub selector: LabelSelector,
    /// Features of claim and class.
    #[serde(default)]
    pub features: BTreeSet<String>,
    /// What a backend must be.
    #[serde(default)]
    pub constraints: Vec<Constraint>,
    /// What is preferred.
    #[serde(default)]
    pub hints: Vec<Hint>,
    /// The least separation of tenants.
    #[serde(default)]
    pub tenancy: Option<Tenancy>,
    /// Clusters that have to reach it.
    #[serde(default)]
    pub targets: BTreeSet<String>,
    /// What serves the claim now.
    #[serde(default)]
    pub current: Option<Current>,
    /// When a better candidate is worth a move.
    #[serde(default)]
    pub hysteresis: Hysteresis,
}

/// Why a claim stays where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StayWhy {
    /// Nothing does better.
    Best,
    /// Another one does better, by too little.
    GainTooSmall,
    /// Another one does better, not for long enough yet.
    GainNotHeld,
    /// It should not stay, and there is nowhere to go.
    NoCandidate,
    /// Its backend is not among the inputs, which says nothing about it.
    Unseen,
}

/// Why a claim moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MoveWhy {
    /// Its backend no longer does.
    Contradicted {
        /// The decider that says so.
        decider: String,
        /// Why, for machines.
        reason: DecideReason,
        /// Why, in one sentence.
        message: String,
    },
    /// Another one has done better for long enough.
    Better {
        /// By how many points.
        gain: u32,
    },
}

/// What becomes of a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Choice {
    /// It had no backend and gets this one.
    Bind {
        /// The backend.
        to: String,
    },
    /// It keeps its backend.
    Stay {
        /// The backend.
        at: String,
        /// Why.
        why: StayWhy,
    },
    /// It moves.
    Move {
        /// The old backend.
        from: String,
        /// The new backend.
        to: String,
        /// Why.
        why: MoveWhy,
    },
    /// It had no backend and gets none.
    Pending,
}

impl Choice {
    /// The backend that is wanted, if there is one.
    #[must_use]
    pub fn backend(&self) -> Option<&str> {
        match self {
            Self::Bind { to } | Self::Move { to, .. } => Some(to),
            Self::Stay { at, .. } => Some(at),
            Self::Pending => None,
        }
    }
}

/// The answer for one claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendDecision {
    /// What becomes of the claim.
    pub choice: Choice,
    /// Who does better; to be passed in again next time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub challenger: Option<Challenger>,
    /// Why.
    pub explanation: Explanation,
}

struct BackendChain<'r> {
    request: &'r ClaimRequest,
    clusters: &'r Inventory<Cluster>,
    filters: Vec<Filter<'r>>,
}

enum Filter<'r> {
    Kind,
    Selector,
    State,
    Ready,
    Features,
    Constraint(&'r Constraint),
    Tenancy(Tenancy),
    Capacity,
    Reachability,
    Component,
}

/// The attribute with a decider of its own, after the capacity: where data may lie.
const RESIDENCY: &str = "residency";

impl<'r> BackendChain<'r> {
    fn new(request: &'r ClaimRequest, clusters: &'r Inventory<Cluster>) -> Self {
        use Filter::{Capacity, Component, Features, Kind, Reachability, Ready, Selector, State};
        let (residency, others): (Vec<_>, Vec<_>) = request.constraints.iter().partition(|c| c.attribute == RESIDENCY);
        let mut filters = vec![Kind, Selector, State, Ready, Features];
        filters.extend(others.into_iter().map(Filter::Constraint));
        filters.extend(request.tenancy.filter(|t| *t > Tenancy::Shared).map(Filter::Tenancy));
        filters.push(Capacity);
        filters.extend(residency.into_iter().map(Filter::Constraint));
        filters.extend([Reachability, Component]);
        Self { request, clusters, filters }
    }

    /// The first feature that is missing or unproven.
    fn lacking<'c>(&'c self, backend: &'c Backend) -> Option<(&'c str, DecideReason)> {
        let claimed = |f: &String| backend.spec.features.contains(f);
        let missing = self.request.features.iter().find(|f| match &backend.verified {
            Some(verified) => !verified.contains(*f),
            None => !claimed(f),
        });
        match (missing, &backend.verified) {
            (Some(f), Some(_)) if claimed(f) => Some((f, DecideReason::NotProven)),
            (Some(f), _) => Some((f, DecideReason::MissingFeature)),
            (None, None) if !self.request.features.is_empty() => Some(("", DecideReason::NotProven)),
            (None, _) => None,
        }
    }

    /// The first cluster that cannot reach the backend, or that nobody knows.
    fn cut_off<'c>(&'c self, backend: &'c Backend) -> Option<(&'c str, DecideReason)> {
        let selector = backend.spec.topology.as_ref().and_then(|t| t.reachable_from.as_ref());
        self.request.targets.iter().find_map(|target| {
            if backend.unreachable.contains_key(target) {
                return Some((target.as_str(), DecideReason::NotReachable));
            }
            let selector = selector?;
            match self.clusters.get(target) {
                None => Some((target.as_str(), DecideReason::ClusterUnknown)),
                Some(cluster) if cluster.everywhere || selector.matches(&cluster.labels) => None,
                Some(_) => Some((target.as_str(), DecideReason::NotReachable)),
            }
        })
    }

    /// The first cluster whose sidecars do not know the component.
    fn unknown_there<'c>(&'c self, backend: &'c Backend) -> Option<&'c str> {
        let wanted = backend.spec.component.type_and_version();
        let without = |target: &&String| {
            let known = self.clusters.get(target).and_then(|c| c.component_types.as_ref());
            known.is_some_and(|known| !known.contains(&wanted))
        };
        self.request.targets.iter().find(without).map(String::as_str)
    }
}

impl Chain for BackendChain<'_> {
    type Candidate = Backend;

    fn filters(&self) -> usize {
        self.filters.len()
    }

    fn check<'c>(&'c self, filter: usize, candidate: &'c Self::Candidate, incumbent: bool) -> Check<'c> {
        let backend = candidate;
        let spec = &backend.spec;
        match &self.filters[filter] {
            Filter::Kind if spec.kind == self.request.kind => Check::Pass,
            Filter::Kind => Check::fail(DecideReason::KindMismatch),
            Filter::Selector if self.request.selector.matches(&backend.labels) => Check::Pass,
            Filter::Selector => Check::fail(DecideReason::NotSelected),
            Filter::State => match spec.state.unwrap_or(BackendState::Active) {
                BackendState::Active => Check::Pass,
                BackendState::Cordoned if incumbent => Check::Pass,
                BackendState::Cordoned => Check::fail(DecideReason::Cordoned),
                BackendState::Draining => Check::fail(DecideReason::Draining),
                BackendState::Retired => Check::fail(DecideReason::Retired),
            },
            // Down is no reason to move data: what is there stays, new ones go elsewhere.
            Filter::Ready if incumbent || backend.ready != Some(false) => Check::Pass,
            Filter::Ready => Check::fail(DecideReason::NotReady),
            Filter::Features => match self.lacking(backend) {
                None => Check::Pass,
                Some((detail, reason)) if backend.verified.is_none() && reason == DecideReason::NotProven => {
                    Check::Unknown { reason, detail }
                }
                Some((_, reason)) => Check::fail(reason),
            },
            Filter::Constraint(wanted) => constraint::check(wanted, backend.attribute(&wanted.attribute)),
            Filter::Tenancy(wanted) if spec.tenancy.unwrap_or(Tenancy::Shared) >= *wanted => Check::Pass,
            Filter::Tenancy(_) => Check::fail(DecideReason::TenancyTooWeak),
            Filter::Capacity => match &spec.capacity {
                Some(capacity) if !incumbent && backend.bound >= capacity.bindings => Check::fail(DecideReason::Full),
                _ => Check::Pass,
            },
            Filter::Reachability => match self.cut_off(backend) {
                None => Check::Pass,
                Some((_, DecideReason::ClusterUnknown)) => Check::unknown(DecideReason::ClusterUnknown),
                // A failed probe is an outage, not a change of mind.
                Some((target, _)) if incumbent && backend.unreachable.contains_key(target) => Check::Pass,
                Some((_, reason)) => Check::fail(reason),
            },
            Filter::Component if self.unknown_there(backend).is_none() => Check::Pass,
            Filter::Component => Check::fail(DecideReason::UnknownComponent),
        }
    }

    fn name(&self, filter: usize, _: &str) -> String {
        match &self.filters[filter] {
            Filter::Kind => "kind".to_owned(),
            Filter::Selector => "selector".to_owned(),
            Filter::State => "state".to_owned(),
            Filter::Ready => "ready".to_owned(),
            Filter::Features => "features".to_owned(),
            Filter::Constraint(c) if c.attribute == RESIDENCY => RESIDENCY.to_owned(),
            Filter::Constraint(c) => format!("constraint/{}", c.attribute),
            Filter::Tenancy(_) => "tenancy".to_owned(),
            Filter::Capacity => "capacity".to_owned(),
            Filter::Reachability => "reachability".to_owned(),
            Filter::Component => "component".to_owned(),
        }
    }

    fn requirement(&self, filter: usize, detail: &str) -> String {
        match &self.filters[filter] {
            Filter::Kind => format!("kind {}", self.request.kind),
            Filter::Selector => format!("the class's selector {}", self.request.selector),
            Filter::Features => {
                let features: Vec<_> = self.request.features.iter().map(String::as_str).collect();
                format!("the features [{}]", features.join(", "))
            }
            Filter::Constraint(c) => format!("the constraint {}", constraint::name(c)),
            Filter::Tenancy(t) => format!("tenancy {t}"),
            _ => format!("the decider {}", self.name(filter, detail)),
        }
    }

    fn sentence(&self, filter: usize, candidate: &Self::Candidate, reason: DecideReason, _: &str) -> String {
        let backend = candidate;
        let spec = &backend.spec;
        match &self.filters[filter] {
            Filter::Kind => format!("gives {}, not {}", spec.kind, self.request.kind),
            Filter::Selector => format!("the class selects {}", self.request.selector),
            Filter::State => match reason {
                DecideReason::Cordoned => "is cordoned: it takes no new claims".to_owned(),
                DecideReason::Draining => "is draining: its claims move away".to_owned(),
                _ => "is retired".to_owned(),
            },
            Filter::Ready => "is not ready; see its condition Ready".to_owned(),
            Filter::Features => match self.lacking(backend) {
                Some(("", _)) => "no probe has proven its features yet".to_owned(),
                Some((f, DecideReason::NotProven)) => format!("claims {f}, which its probe has not proven"),
                Some((f, _)) => format!("does not have {f}"),
                None => String::new(),
            },
            Filter::Constraint(c) => constraint::sentence(c, backend.attribute(&c.attribute)),
            Filter::Tenancy(wanted) => {
                format!("separates tenants as {}, the class asks for {wanted}", spec.tenancy.unwrap_or(Tenancy::Shared))
            }
            Filter::Capacity => {
                let limit = spec.capacity.as_ref().map_or(0, |c| c.bindings);
                format!("serves {} of at most {limit} claims", backend.bound)
            }
            Filter::Reachability => match self.cut_off(backend) {
                Some((target, DecideReason::ClusterUnknown)) => format!("cluster {target} is not known"),
                Some((target, _)) => match backend.unreachable.get(target) {
                    Some(error) => format!("cluster {target} cannot reach it: {error}"),
                    None => format!("cluster {target} is not among those that reach it"),
                },
                None => String::new(),
            },
            Filter::Component => {
                let target = self.unknown_there(backend).unwrap_or_default();
                format!("sidecars in cluster {target} do not know {}", spec.component.type_and_version())
            }
        }
    }

    fn score(&self, candidate: &Self::Candidate, preference: &str, incumbent: bool) -> u32 {
        let backend = candidate;
        match preference {
            "latency" => {
                // The slowest cluster counts; one of which nothing is known counts as middling.
                let known = |t| backend.latency_us.get(t).or(backend.expected_latency_us.as_ref());
                let worst = self.request.targets.iter().map(known).map(|us| match us {
                    Some(us) => 100 - u32::try_from(us / 1000).unwrap_or(100).min(100),
                    None => 50,
                });
                worst.min().unwrap_or(50)
            }
            "cost" => 100u32.saturating_sub(backend.spec.cost),
            "freeCapacity" => match &backend.spec.capacity {
                None => 100,
                Some(capacity) => {
                    let free = u64::from(capacity.bindings.saturating_sub(backend.bound));
                    u32::try_from(free * 100 / u64::from(capacity.bindings).max(1)).unwrap_or(100)
                }
            },
            "sticky" => u32::from(incumbent) * 100,
            "fewestSurplus" => {
                let has = backend.verified.as_ref().map_or(backend.spec.features.len(), BTreeSet::len);
                let surplus = u32::try_from(has.saturating_sub(self.request.features.len())).unwrap_or(100);
                100u32.saturating_sub(surplus.saturating_mul(10))
            }
            _ => 0,
        }
    }
}

/// What counts where a claim says nothing.
const FALLBACK: &[(&str, u32)] = &[("latency", 40), ("cost", 30), ("freeCapacity", 20), ("fewestSurplus", 10)];

/// Finds a backend for a claim. `now_ms` is the time on the clock of [`Challenger::since_ms`].
#[must_use]
pub fn decide_backend(
    request: &ClaimRequest,
    backends: &Inventory<Backend>,
    clusters: &Inventory<Cluster>,
    now_ms: u64,
) -> BackendDecision {
    let chain = BackendChain::new(request, clusters);
    let current = request.current.as_ref().map(|c| c.backend.as_str());
    let incumbent = |name: &str| current == Some(name);
    let sifted = sift(&chain, backends.iter(), incumbent);
    let weights = Weights::new(&request.hints, FALLBACK);
    let ranked = rank(&chain, &weights, &sifted.passed, incumbent, |_| 0);
    let digest = inputs_digest(request, backends, clusters, now_ms);
    let refusal = |name: &str| sifted.refused.iter().find(|r| r.0 == name);
    let (choice, challenger) = match (current, ranked.first()) {
        (None, Some(best)) => (Choice::Bind { to: best.name.to_owned() }, None),
        (None, None) => (Choice::Pending, None),
        (Some(at), best) => match (refusal(at), best) {
            (Some((_, candidate, refusal)), Some(best)) => {
                let why = contradiction(&chain, candidate, refusal);
                (Choice::Move { from: at.to_owned(), to: best.name.to_owned(), why }, None)
            }
            (Some(_), None) => (Choice::Stay { at: at.to_owned(), why: StayWhy::NoCandidate }, None),
            (None, _) => match ranked.iter().find(|s| s.name == at) {
                None => (Choice::Stay { at: at.to_owned(), why: StayWhy::Unseen }, None),
                Some(now) => hold(request, now, &ranked, now_ms),
            },
        },
    };
    let selected: Vec<_> = choice.backend().into_iter().collect();
    let mut explanation = explain(&chain, digest, &ranked, &sifted.refused, &selected);
    if ranked.is_empty() {
        explanation.tightest = tightest(&chain, "backends", &sifted.refused, incumbent);
    }
    BackendDecision { choice, challenger, explanation }
}

fn contradiction(chain: &BackendChain<'_>, candidate: &Backend, refusal: &Refusal<'_>) -> MoveWhy {
    MoveWhy::Contradicted {
        decider: chain.name(refusal.filter, refusal.detail),
        reason: refusal.reason,
        message: chain.sentence(refusal.filter, candidate, refusal.reason, refusal.detail),
    }
}

/// Whether the best candidate is so much better than the present one, for so long, that a move is worth it.
fn hold(
    request: &ClaimRequest,
    now: &Scored<'_, Backend>,
    ranked: &[Scored<'_, Backend>],
    now_ms: u64,
) -> (Choice, Option<Challenger>) {
    let stay = |why| Choice::Stay { at: now.name.to_owned(), why };
    let Some(best) = ranked.first().filter(|best| best.total > now.total) else { return (stay(StayWhy::Best), None) };
    let gain = best.total - now.total;
    if gain < request.hysteresis.min_gain {
        return (stay(StayWhy::GainTooSmall), None);
    }
    let before = request.current.as_ref().and_then(|c| c.challenger.as_ref());
    let since_ms = before.filter(|c| c.name == best.name && c.over == now.name).map_or(now_ms, |c| c.since_ms);
    let challenger = Challenger { name: best.name.to_owned(), over: now.name.to_owned(), since_ms };
    if now_ms.saturating_sub(since_ms) < request.hysteresis.hold_ms {
        return (stay(StayWhy::GainNotHeld), Some(challenger));
    }
    let why = MoveWhy::Better { gain };
    // It stays the challenger until the claim is there: the move may have to wait, for a person or for a write.
    (Choice::Move { from: now.name.to_owned(), to: best.name.to_owned(), why }, Some(challenger))
}

/// Of time only what matters goes into the digest: whether a challenger has held long enough.
fn inputs_digest(
    request: &ClaimRequest,
    backends: &Inventory<Backend>,
    clusters: &Inventory<Cluster>,
    now_ms: u64,
) -> Digest {
    let challenger = request.current.as_ref().and_then(|c| c.challenger.as_ref());
    let held = challenger.is_some_and(|c| now_ms.saturating_sub(c.since_ms) >= request.hysteresis.hold_ms);
    let mut timeless = request.clone();
    if let Some(challenger) = timeless.current.as_mut().and_then(|c| c.challenger.as_mut()) {
        challenger.since_ms = 0;
    }
    let own = digest_of(&(&timeless, held));
    // Of the clusters only the targets are looked at.
    let targets: Vec<_> = request.targets.iter().map(|t| (t, clusters.get(t))).collect();
    Digest::over([&own, &backends.digest(), &digest_of(&targets)])
}
