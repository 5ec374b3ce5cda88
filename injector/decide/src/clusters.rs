//! The chain that finds clusters for an app.

use std::collections::{BTreeMap, BTreeSet};

use mecha_resources::kinds::{
    AppPlacementSpec, ClusterConditionType, ConditionStatus, Constraint, DecideReason, Division, Explanation,
    LabelSelector, MemberCluster, MoveCause, Taint, TaintEffect, Tightest, WhenUnsatisfiable, condition_status,
};
use serde::{Deserialize, Serialize};

use crate::backends::{Challenger, Hysteresis};
use crate::canonical::{Digest, digest_of};
use crate::chain::{Chain, Check, Scored, Weights, explain, rank, sift, tightest};
use crate::constraint;
use crate::inventory::Inventory;

/// What is known about a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cluster {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether an admin has accepted it.
    pub accepted: bool,
    /// Whether its agent is there; `None` when nobody knows.
    pub available: Option<bool>,
    /// Meets every selector: this machine, when no cluster is described.
    pub everywhere: bool,
    /// What constraints and spreads look at.
    pub attributes: BTreeMap<String, String>,
    /// Reasons to keep away.
    pub taints: Vec<Taint>,
    /// Free and offered processor time in thousandths of a core, unless it has not reported them.
    pub cpu: Option<(u64, u64)>,
    /// Components its sidecars know, as `type/version`; `None` when not reported.
    pub component_types: Option<BTreeSet<String>>,
    /// APIs it serves, as `group/version`; `None` when not reported.
    pub apis: Option<BTreeSet<String>>,
    /// Round trip to its users in microseconds.
    pub latency_us: Option<u64>,
    /// What it costs, from 0 to 100.
    pub cost: u32,
    /// Apps placed on it.
    pub placements: u32,
    /// Scores given by others, from 0 to 100, by name.
    pub outside: BTreeMap<String, u32>,
}

/// Annotations on a MemberCluster that give it numbers.
const COST: &str = "mecha.dev/cost";
pub(crate) const LATENCY_MS: &str = "mecha.dev/latency-ms";
const SCORE: &str = "score.mecha.dev/";
/// The preference for clusters with few apps.
pub(crate) const BALANCE: &str = "balance";

impl Cluster {
    /// What an object and its status say.
    #[must_use]
    pub fn of(object: &MemberCluster) -> Self {
        let spec = &object.spec;
        let status = object.status.clone().unwrap_or_default();
        let mut attributes = object.metadata.labels.clone();
        attributes.extend(status.properties.iter().map(|p| (p.name.clone(), p.value.clone())));
        let own = [("name", object.name()), ("region", &spec.region), ("provider", &spec.provider)];
        attributes.extend(own.into_iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| (k.to_owned(), v.to_owned())));
        if let Some(minor) = minor_version(&status.kubernetes_version) {
            attributes.insert("kubernetes.minor".to_owned(), minor.to_string());
        }
        let cpu = status.capacity.as_ref().and_then(|c| {
            let offered = millis(c.allocatable.get("cpu")?)?;
            let used = c.requested.get("cpu").map_or(Some(0), |text| millis(text))?;
            Some((offered.saturating_sub(used), offered))
        });
        let annotation = |name: &str| object.metadata.annotations.get(name);
        let number = |name: &str| annotation(name).and_then(|text| text.parse::<u64>().ok());
        let outside = object.metadata.annotations.iter().filter_map(|(key, value)| {
            let name = key.strip_prefix(SCORE)?;
            Some((name.to_owned(), value.parse::<u32>().ok()?.min(100)))
        });
        let available = match condition_status(&status.conditions, ClusterConditionType::Available) {
            Some(ConditionStatus::True) => Some(true),
            Some(ConditionStatus::False) => Some(false),
            Some(ConditionStatus::Unknown) | None => None,
        };
        Self {
            labels: object.metadata.labels.clone(),
            accepted: spec.accepted,
            available,
            everywhere: false,
            attributes,
            taints: spec.taints.clone(),
            cpu,
            component_types: None,
            apis: None,
            latency_us: number(LATENCY_MS).map(|ms| ms.saturating_mul(1000)),
            cost: number(COST).map_or(0, |cost| u32::try_from(cost.min(100)).unwrap_or(100)),
            placements: 0,
            outside: outside.collect(),
        }
    }
}

/// `36` of `v1.36.2`.
fn minor_version(version: &str) -> Option<u32> {
    let digits: String = version.split('.').nth(1)?.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// A Kubernetes quantity of processor time in thousandths of a core.
fn millis(text: &str) -> Option<u64> {
    match text.strip_suffix('m') {
        Some(millis) => millis.parse().ok(),
        None => {
            let (whole, part) = text.split_once('.').unwrap_or((text, ""));
            let part: String = part.chars().chain("000".chars()).take(3).collect();
            whole.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(part.parse().ok()?)
        }
    }
}

/// A backend that the app uses, for its pull on the app.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Gravity {
    /// The backend.
    pub backend: String,
    /// Its region.
    pub region: String,
    /// Labels of the clusters that reach it; all when `None`.
    pub reachable_from: Option<LabelSelector>,
    /// Clusters whose probe failed, with the probe's error.
    pub unreachable: BTreeMap<String, String>,
    /// Probed round trip in microseconds, by cluster.
    pub latency_us: BTreeMap<String, u64>,
}

/// A cluster that runs the app now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The cluster.
    pub cluster: String,
    /// Replicas it has.
    #[serde(default)]
    pub replicas: Option<u32>,
}

/// A placement with everything that its class adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlacementRequest {
    /// What the developer wrote.
    pub spec: AppPlacementSpec,
    /// Clusters that the class allows; all when `None`.
    #[serde(default)]
    pub class_selector: Option<LabelSelector>,
    /// APIs a cluster must serve.
    #[serde(default)]
    pub apis: BTreeSet<String>,
    /// Backends that the app uses.
    #[serde(default)]
    pub backends: Vec<Gravity>,
    /// Where the app runs now.
    #[serde(default)]
    pub current: Vec<Standing>,
    /// Who does better.
    #[serde(default)]
    pub challenger: Option<Challenger>,
    /// When a better cluster is worth a move.
    #[serde(default)]
    pub hysteresis: Hysteresis,
}

/// The answer for one app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterDecision {
    /// The clusters, the best first, with their replicas and scores.
    pub selected: Vec<Chosen>,
    /// Whether the placement's own demands are met. If not, everything stays as it was.
    pub satisfied: bool,
    /// Why the clusters are not those of before; `None` when they are.
    pub cause: Option<MoveCause>,
    /// Who does better; to be passed in again next time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub challenger: Option<Challenger>,
    /// Why.
    pub explanation: Explanation,
}

/// One cluster of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// The cluster.
    pub cluster: String,
    /// Replicas it gets; `None` when the placement names no number.
    pub replicas: Option<u32>,
    /// From 0 to 100; 0 for one that stays though it should not.
    pub score: u32,
}

struct ClusterChain<'r> {
    request: &'r PlacementRequest,
    filters: Vec<Filter<'r>>,
}

enum Filter<'r> {
    Accepted,
    Available,
    Taints,
    Class,
    Constraint(&'r Constraint),
    Apis,
    Backends,
}

impl<'r> ClusterChain<'r> {
    fn new(request: &'r PlacementRequest) -> Self {
        let mut filters = vec![Filter::Accepted, Filter::Available, Filter::Taints, Filter::Class];
        filters.extend(request.spec.constraints.iter().map(Filter::Constraint));
        filters.extend([Filter::Apis, Filter::Backends]);
        Self { request, filters }
    }

    fn tolerated(&self, taint: &Taint) -> bool {
        let mut list = self.request.spec.tolerations.iter();
        list.any(|t| t.key == taint.key && t.effect.is_none_or(|effect| effect == taint.effect))
    }

    fn repels<'c>(&self, cluster: &'c Cluster, effect: TaintEffect) -> Option<&'c Taint> {
        cluster.taints.iter().find(|taint| taint.effect == effect && !self.tolerated(taint))
    }

    /// The first backend that the cluster cannot reach.
    fn cut_off(&self, cluster: &Cluster) -> Option<&Gravity> {
        self.request.backends.iter().find(|backend| {
            let selected = backend.reachable_from.as_ref().is_none_or(|s| s.matches(&cluster.labels));
            let name = cluster.attributes.get("name");
            !(selected || cluster.everywhere) || name.is_some_and(|name| backend.unreachable.contains_key(name))
        })
    }
}

impl Chain for ClusterChain<'_> {
    type Candidate = Cluster;

    fn filters(&self) -> usize {
        self.filters.len()
    }

    fn check<'c>(&'c self, filter: usize, cluster: &'c Cluster, incumbent: bool) -> Check<'c> {
        match &self.filters[filter] {
            Filter::Accepted if cluster.accepted => Check::Pass,
            Filter::Accepted => Check::fail(DecideReason::NotAccepted),
            Filter::Available => match cluster.available {
                Some(true) => Check::Pass,
                // Silence moves nothing: fail-over is a decision of its own.
                Some(false) if incumbent => Check::Pass,
                Some(false) => Check::fail(DecideReason::NotAvailable),
                None => Check::unknown(DecideReason::AvailabilityUnknown),
            },
            Filter::Taints => match self.repels(cluster, TaintEffect::NoBindings) {
                Some(taint) => Check::Fail { reason: DecideReason::NoBindings, detail: &taint.key },
                None if incumbent => Check::Pass,
                None => match self.repels(cluster, TaintEffect::NoNewBindings) {
                    Some(taint) => Check::Fail { reason: DecideReason::NoNewBindings, detail: &taint.key },
                    None => Check::Pass,
                },
            },
            Filter::Class => match &self.request.class_selector {
                Some(selector) if !cluster.everywhere && !selector.matches(&cluster.labels) => {
                    Check::fail(DecideReason::NotSelected)
                }
                _ => Check::Pass,
            },
            Filter::Constraint(wanted) => {
                constraint::check(wanted, cluster.attributes.get(&wanted.attribute).map(String::as_str))
            }
            Filter::Apis => match &cluster.apis {
                Some(apis) if !self.request.apis.is_subset(apis) => Check::fail(DecideReason::MissingApi),
                _ => Check::Pass,
            },
            Filter::Backends => match self.cut_off(cluster) {
                None => Check::Pass,
                Some(backend) => Check::Fail { reason: DecideReason::NotReachable, detail: &backend.backend },
            },
        }
    }

    fn name(&self, filter: usize, detail: &str) -> String {
        match &self.filters[filter] {
            Filter::Accepted => "accepted".to_owned(),
            Filter::Available => "available".to_owned(),
            Filter::Taints => format!("taint/{detail}"),
            Filter::Class => "class".to_owned(),
            Filter::Constraint(c) => format!("constraint/{}", c.attribute),
            Filter::Apis => "apis".to_owned(),
            Filter::Backends => format!("reachability/{detail}"),
        }
    }

    fn requirement(&self, filter: usize, detail: &str) -> String {
        match &self.filters[filter] {
            Filter::Constraint(c) => format!("the constraint {}", constraint::name(c)),
            Filter::Class => {
                let selector = self.request.class_selector.as_ref().map(ToString::to_string).unwrap_or_default();
                format!("the class's selector {selector}")
            }
            Filter::Taints => format!("the taint {detail}"),
            Filter::Backends => format!("the backend {detail}"),
            _ => format!("the decider {}", self.name(filter, detail)),
        }
    }

    fn sentence(&self, filter: usize, cluster: &Cluster, reason: DecideReason, detail: &str) -> String {
        match &self.filters[filter] {
            Filter::Accepted => "has not been accepted by an admin".to_owned(),
            Filter::Available if reason == DecideReason::NotAvailable => "its agent is away".to_owned(),
            Filter::Available => "nobody knows whether its agent is there".to_owned(),
            Filter::Taints => {
                let value =
                    cluster.taints.iter().find(|t| t.key == detail).map(|t| t.value.as_str()).unwrap_or_default();
                let taint = if value.is_empty() { detail.to_owned() } else { format!("{detail}={value}") };
                match reason {
                    DecideReason::NoBindings => format!("the taint {taint} keeps all bindings away"),
                    _ => format!("the taint {taint} keeps new bindings away"),
                }
            }
            Filter::Class => "the class does not select it".to_owned(),
            Filter::Constraint(c) => constraint::sentence(c, cluster.attributes.get(&c.attribute).map(String::as_str)),
            Filter::Apis => {
                let missing =
                    self.request.apis.iter().find(|api| cluster.apis.as_ref().is_some_and(|a| !a.contains(*api)));
                format!("does not serve {}", missing.map(String::as_str).unwrap_or_default())
            }
            Filter::Backends => {
                let name = cluster.attributes.get("name").map(String::as_str).unwrap_or_default();
                let backend = self.request.backends.iter().find(|b| b.backend == detail);
                match backend.and_then(|b| b.unreachable.get(name)) {
                    Some(error) => format!("cannot reach {detail}: {error}"),
                    None => format!("is not among the clusters that reach {detail}"),
                }
            }
        }
    }

    fn score(&self, cluster: &Cluster, preference: &str, incumbent: bool) -> u32 {
        let near = |us: u64| 100 - u32::try_from(us / 1000).unwrap_or(100).min(100);
        match preference {
            "dataGravity" => {
                let name = cluster.attributes.get("name").map(String::as_str).unwrap_or_default();
                let region = cluster.attributes.get("region").map(String::as_str).unwrap_or_default();
                let pull = |b: &Gravity| match b.latency_us.get(name) {
                    Some(us) => near(*us),
                    None if !b.region.is_empty() && b.region == region => 100,
                    None => 50,
                };
                let count = u32::try_from(self.request.backends.len()).unwrap_or(u32::MAX).max(1);
                self.request.backends.iter().map(pull).sum::<u32>() / count
            }
            "freeCapacity" => match cluster.cpu {
                Some((free, offered)) => u32::try_from(free * 100 / offered.max(1)).unwrap_or(100),
                None => 50,
            },
            "latency" => cluster.latency_us.map_or(50, near),
            "cost" => 100u32.saturating_sub(cluster.cost),
            "sticky" => u32::from(incumbent) * 100,
            BALANCE => 100u32.saturating_sub(cluster.placements),
            other => other.strip_prefix("outside/").and_then(|n| cluster.outside.get(n)).copied().unwrap_or(50),
        }
    }
}

/// What counts where a placement says nothing.
const FALLBACK: &[(&str, u32)] = &[("dataGravity", 40), ("freeCapacity", 30), ("latency", 20), ("cost", 10)];
/// Points that a taint of effect PreferNoBindings costs.
const UNWELCOME: u32 = 50;

/// Finds clusters for an app. `now_ms` is the time on the clock of [`Challenger::since_ms`].
#[must_use]
pub fn decide_clusters(request: &PlacementRequest, clusters: &Inventory<Cluster>, now_ms: u64) -> ClusterDecision {
    let chain = ClusterChain::new(request);
    let standing: BTreeSet<&str> = request.current.iter().map(|s| s.cluster.as_str()).collect();
    let incumbent = |name: &str| standing.contains(name);
    let sifted = sift(&chain, clusters.iter(), incumbent);
    let weights = Weights::new(&request.spec.hints, FALLBACK);
    let malus = |c: &Cluster| if chain.repels(c, TaintEffect::PreferNoBindings).is_some() { UNWELCOME } else { 0 };
    let ranked = rank(&chain, &weights, &sifted.passed, incumbent, malus);
    let digest = inputs_digest(request, clusters, now_ms);
    // One that nobody sees any more stays: it takes a place and is not moved.
    let unseen: Vec<&str> = standing.iter().copied().filter(|name| clusters.get(name).is_none()).collect();
    let picked = pick(request, &ranked, &unseen, &standing, now_ms);
    let (names, satisfied, challenger, obstacle) = match picked {
        Ok((names, challenger)) => (names, true, challenger, None),
        Err(obstacle) => (standing.iter().copied().collect(), false, None, Some(obstacle)),
    };
    let mut explanation = explain(&chain, digest, &ranked, &sifted.refused, &names);
    if let Some(obstacle) = obstacle {
        explanation.tightest = obstacle.or_else(|| tightest(&chain, "clusters", &sifted.refused, incumbent));
    }
    let score = |name: &str| ranked.iter().find(|s| s.name == name).map_or(0, |s| s.total);
    let replicas = divide(request, &names, clusters);
    let selected = names.iter().zip(replicas);
    let selected: Vec<_> =
        selected.map(|(name, replicas)| Chosen { cluster: (*name).to_owned(), replicas, score: score(name) }).collect();
    let cause = cause(&standing, &names, |name| sifted.refused.iter().any(|r| r.0 == name));
    ClusterDecision { selected, satisfied, cause, challenger, explanation }
}

fn cause(before: &BTreeSet<&str>, now: &[&str], refused: impl Fn(&str) -> bool) -> Option<MoveCause> {
    let after: BTreeSet<&str> = now.iter().copied().collect();
    if *before == after {
        return None;
    }
    let gone: Vec<_> = before.difference(&after).collect();
    Some(match gone.as_slice() {
        _ if before.is_empty() => MoveCause::FirstPlaced,
        gone if gone.iter().any(|name| refused(name)) => MoveCause::ClusterChanged,
        gone if gone.len() == 1 && before.len() == after.len() => MoveCause::BetterCandidate,
        _ => MoveCause::SpecChanged,
    })
}

type Picked<'c> = Result<(Vec<&'c str>, Option<Challenger>), Option<Tightest>>;

/// Chooses among the ranked. The error says what stands in the way, `None` when it is the filters.
fn pick<'c>(
    request: &PlacementRequest,
    ranked: &[Scored<'c, Cluster>],
    unseen: &[&'c str],
    standing: &BTreeSet<&str>,
    now_ms: u64,
) -> Picked<'c> {
    let spec = &request.spec;
    let wanted = match spec.replicas {
        Some(replicas) if replicas.divide == Division::Aggregated => spec.clusters.min,
        Some(replicas) if replicas.divide == Division::Weighted => spec.clusters.max.min(replicas.total),
        _ => spec.clusters.max,
    };
    let wanted = wanted.max(spec.clusters.min) as usize;
    let available = ranked.len() + unseen.len();
    if available < spec.clusters.min as usize {
        return Err(None);
    }
    let hard = spec.spread.iter().find(|s| s.when_unsatisfiable == WhenUnsatisfiable::DoNotSchedule);
    let mut room = wanted.saturating_sub(unseen.len());
    let mut chosen: Vec<&Scored<'c, Cluster>> = Vec::with_capacity(room);
    let group = |s: &Scored<'c, Cluster>, key: &str| s.candidate.attributes.get(key).map(String::as_str);
    if let Some(spread) = hard {
        // The best of each group, the groups in the order of their best: no choice covers more groups.
        let mut first: Vec<(&str, &Scored<'c, Cluster>)> = Vec::new();
        let keeps = |s: &&Scored<'c, Cluster>| standing.contains(s.name);
        for scored in ranked.iter().filter(keeps).chain(ranked.iter().filter(|s| !keeps(s))) {
            if let Some(name) = group(scored, &spread.key)
                && !first.iter().any(|(known, _)| *known == name)
            {
                first.push((name, scored));
            }
        }
        let groups = first.len();
        if groups < spread.min_groups as usize || room < spread.min_groups as usize {
            let message = format!(
                "the clusters that would do lie in {groups} groups of {}, {} are asked for",
                spread.key, spread.min_groups
            );
            let decider = format!("spread/{}", spread.key);
            return Err(Some(Tightest { decider, admits: u32::try_from(ranked.len()).unwrap_or(u32::MAX), message }));
        }
        chosen.extend(first.into_iter().take(spread.min_groups as usize).map(|(_, scored)| scored));
        room -= chosen.len();
    }
    // Then what runs there already, then groups that soft spreads still lack, then the best.
    let soft: Vec<_> =
        spec.spread.iter().filter(|s| s.when_unsatisfiable == WhenUnsatisfiable::ScheduleAnyway).collect();
    for _ in 0..room {
        let lacks = |scored: &Scored<'c, Cluster>| {
            let missing = soft.iter().filter(|spread| {
                let Some(name) = group(scored, &spread.key) else { return false };
                let used: BTreeSet<_> = chosen.iter().filter_map(|s| group(s, &spread.key)).collect();
                used.len() < spread.min_groups as usize && !used.contains(name)
            });
            missing.count()
        };
        let free = ranked.iter().enumerate().filter(|(_, s)| !chosen.iter().any(|c| c.name == s.name));
        let next = match soft.is_empty() {
            true => free.min_by_key(|(rank, s)| (!standing.contains(s.name), *rank)),
            false => free.min_by_key(|(rank, s)| (!standing.contains(s.name), std::cmp::Reverse(lacks(s)), *rank)),
        };
        match next {
            Some((_, scored)) => chosen.push(scored),
            None => break,
        }
    }
    let challenger =
        challenge(request, ranked, &mut chosen, standing, hard.map(|s| (s.key.as_str(), s.min_groups)), now_ms);
    chosen.sort_unstable_by(|a, b| b.total.cmp(&a.total).then_with(|| a.name.cmp(b.name)));
    let mut names: Vec<_> = chosen.iter().map(|s| s.name).collect();
    names.extend(unseen);
    Ok((names, challenger))
}

/// Replaces the worst that runs by the best that does not, when that is worth it for long enough. One at a time.
fn challenge<'c, 's>(
    request: &PlacementRequest,
    ranked: &'s [Scored<'c, Cluster>],
    chosen: &mut [&'s Scored<'c, Cluster>],
    standing: &BTreeSet<&str>,
    hard: Option<(&str, u32)>,
    now_ms: u64,
) -> Option<Challenger> {
    let best = ranked.iter().find(|s| !chosen.iter().any(|c| c.name == s.name))?;
    let stays = |with: &[&Scored<'c, Cluster>]| {
        hard.is_none_or(|(key, least)| {
            let groups: BTreeSet<_> = with.iter().filter_map(|s| s.candidate.attributes.get(key)).collect();
            groups.len() >= least as usize
        })
    };
    let mut worst: Option<usize> = None;
    for (index, scored) in chosen.iter().enumerate().filter(|(_, s)| standing.contains(s.name)) {
        let mut after: Vec<_> = chosen.to_vec();
        after[index] = best;
        let worse = worst.is_none_or(|w: usize| {
            (scored.total, std::cmp::Reverse(scored.name)) < (chosen[w].total, std::cmp::Reverse(chosen[w].name))
        });
        if worse && stays(&after) {
            worst = Some(index);
        }
    }
    let worst = worst?;
    if best.total < chosen[worst].total.saturating_add(request.hysteresis.min_gain) {
        return None;
    }
    let over = chosen[worst].name;
    let before = request.challenger.as_ref().filter(|c| c.name == best.name && c.over == over);
    let since_ms = before.map_or(now_ms, |c| c.since_ms);
    if now_ms.saturating_sub(since_ms) >= request.hysteresis.hold_ms {
        chosen[worst] = best;
    }
    // It stays the challenger until the move has been written.
    Some(Challenger { name: best.name.to_owned(), over: over.to_owned(), since_ms })
}

/// Replicas for each of `names`.
fn divide(request: &PlacementRequest, names: &[&str], clusters: &Inventory<Cluster>) -> Vec<Option<u32>> {
    let Some(replicas) = request.spec.replicas.filter(|_| !names.is_empty()) else { return vec![None; names.len()] };
    let count = u32::try_from(names.len()).unwrap_or(u32::MAX);
    // What is shared out already stays so while clusters and number are the same: no churn by capacity.
    let before: BTreeMap<&str, Option<u32>> =
        request.current.iter().map(|s| (s.cluster.as_str(), s.replicas)).collect();
    let kept: Option<Vec<u32>> = names.iter().map(|name| before.get(name).copied().flatten()).collect();
    if let Some(kept) = kept.filter(|_| before.len() == names.len())
        && replicas.divide != Division::Duplicated
        && kept.iter().map(|n| u64::from(*n)).sum::<u64>() == u64::from(replicas.total)
    {
        return kept.into_iter().map(Some).collect();
    }
    match replicas.divide {
        Division::Duplicated => vec![Some(replicas.total); names.len()],
        Division::Aggregated => {
            // The best one takes what the others leave: one each.
            let others = (count - 1).min(replicas.total);
            let share = |i: usize| match i {
                0 => replicas.total - others,
                i => u32::from(u32::try_from(i).unwrap_or(u32::MAX) <= others),
            };
            (0..names.len()).map(|i| Some(share(i))).collect()
        }
        Division::Weighted => {
            let free: Option<Vec<u64>> =
                names.iter().map(|name| clusters.get(name)?.cpu.map(|(free, _)| free)).collect();
            let weights = free.filter(|free| free.iter().any(|f| *f > 0)).unwrap_or_else(|| vec![1; names.len()]);
            weighted(replicas.total, &weights).into_iter().map(Some).collect()
        }
    }
}

/// Largest remainder, at least one each where there are enough, earlier ones first among equals.
fn weighted(total: u32, weights: &[u64]) -> Vec<u32> {
    let count = u32::try_from(weights.len()).unwrap_or(u32::MAX);
    let least = u32::from(total >= count);
    let rest = u128::from(total - least * count.min(total));
    let sum: u128 = weights.iter().map(|w| u128::from(*w)).sum::<u128>().max(1);
    let mut shares: Vec<(u128, u128)> =
        weights.iter().map(|w| (rest * u128::from(*w) / sum, rest * u128::from(*w) % sum)).collect();
    let given: u128 = shares.iter().map(|s| s.0).sum();
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by(|a, b| shares[*b].1.cmp(&shares[*a].1).then(a.cmp(b)));
    for index in order.into_iter().cycle().take(usize::try_from(rest - given).unwrap_or(0)) {
        shares[index].0 += 1;
    }
    shares.into_iter().map(|s| least + u32::try_from(s.0).unwrap_or(u32::MAX)).collect()
}

/// Of time only what matters goes into the digest: whether a challenger has held long enough.
fn inputs_digest(request: &PlacementRequest, clusters: &Inventory<Cluster>, now_ms: u64) -> Digest {
    let held = |c: &Challenger| now_ms.saturating_sub(c.since_ms) >= request.hysteresis.hold_ms;
    let held = request.challenger.as_ref().is_some_and(held);
    let mut timeless = request.clone();
    if let Some(challenger) = &mut timeless.challenger {
        challenger.since_ms = 0;
    }
    Digest::over([&digest_of(&(&timeless, held)), &clusters.digest()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_and_versions() {
        assert_eq!(millis("320"), Some(320_000));
        assert_eq!(millis("1500m"), Some(1500));
        assert_eq!(millis("0.25"), Some(250));
        assert_eq!(millis("4Gi"), None);
        assert_eq!(minor_version("v1.36.2"), Some(36));
        assert_eq!(minor_version("v1.30+"), Some(30));
        assert_eq!(minor_version(""), None);
    }

    #[test]
    fn replicas_are_shared_out_whole() {
        assert_eq!(weighted(12, &[7, 5]), [7, 5]);
        assert_eq!(weighted(2, &[1, 1, 1]), [1, 1, 0]);
        assert_eq!(weighted(3, &[0, 0, 9]), [1, 1, 1]);
        assert_eq!(weighted(10, &[1, 1, 1]).iter().sum::<u32>(), 10);
    }
}
