//! What the hub counts.

use std::collections::BTreeMap;
use std::time::Duration;

use mecha_resources::kinds::{ClaimPhase, MoveOutcome};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// A word of a closed list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Word(&'static str);

impl EncodeLabelValue for Word {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Phase {
    phase: Word,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: Word,
}

/// Clones count together.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    turns: Histogram,
    decisions: Counter,
    claims: Family<Phase, Gauge>,
    bound: Histogram,
    moves: Family<Outcome, Counter>,
    writes: Family<Outcome, Counter>,
    leader: Gauge,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            turns: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            decisions: Counter::default(),
            claims: Family::default(),
            bound: Histogram::new(exponential_buckets(0.05, 2.0, 14)),
            moves: Family::default(),
            writes: Family::default(),
            leader: Gauge::default(),
        };
        registry.register(
            "mecha_hub_reconcile_seconds",
            "Time of one look at everything, with its writes",
            metrics.turns.clone(),
        );
        registry.register(
            "mecha_hub_decisions",
            "Claims that were decided about, over all looks",
            metrics.decisions.clone(),
        );
        registry.register("mecha_hub_claims", "Claims by phase", metrics.claims.clone());
        registry.register(
            "mecha_hub_claim_bound_seconds",
            "Time from the making of a claim to its first binding",
            metrics.bound.clone(),
        );
        registry.register("mecha_hub_moves", "Moves that have ended, by result", metrics.moves.clone());
        registry.register("mecha_hub_writes", "Writes to the API server, by result", metrics.writes.clone());
        registry.register("mecha_hub_leader", "1 while this replica leads", metrics.leader.clone());
        metrics
    }

    pub(crate) fn turn(&self, took: Duration, decisions: usize) {
        self.turns.observe(took.as_secs_f64());
        self.decisions.inc_by(u64::try_from(decisions).unwrap_or(u64::MAX));
    }

    pub(crate) fn claims(&self, phases: &BTreeMap<ClaimPhase, u32>) {
        for phase in ClaimPhase::ALL {
            let count = phases.get(phase).copied().unwrap_or(0);
            self.claims.get_or_create(&Phase { phase: Word(phase.as_str()) }).set(i64::from(count));
        }
    }

    pub(crate) fn write(&self, done: bool) {
        let result = Word(if done { "done" } else { "refused" });
        self.writes.get_or_create(&Outcome { result }).inc();
    }

    pub(crate) fn bound(&self, seconds: f64) {
        self.bound.observe(seconds);
    }

    pub(crate) fn moved(&self, outcome: MoveOutcome) {
        self.moves.get_or_create(&Outcome { result: Word(outcome.as_str()) }).inc();
    }

    pub(crate) fn leads(&self, yes: bool) {
        self.leader.set(i64::from(yes));
    }
}
