use serde::{Deserialize, Serialize};

use super::binding::Role;
use super::claim::{check_constraints, check_hints};
use super::closed::closed;
use super::cluster::TaintEffect;
use super::common::{Condition, Constraint, Explanation, Hint, LabelSelector, Span};
use super::object::{KindSpec, Problem};

/// How many clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Count {
    /// At least.
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 1000)))]
    pub min: u32,
    /// At most.
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 1000)))]
    pub max: u32,
}

closed! {
    /// How replicas are shared out.
    pub enum Division {
        /// Each cluster gets all.
        Duplicated,
        /// By free capacity.
        Weighted,
        /// As few clusters as allowed.
        Aggregated,
    }
}

/// Replicas of the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Replicas {
    /// How many.
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 1_000_000)))]
    pub total: u32,
    /// How they are shared out.
    pub divide: Division,
}

closed! {
    /// What to do when clusters cannot be spread as asked.
    pub enum WhenUnsatisfiable {
        /// Nothing.
        DoNotSchedule,
        /// As well as it goes.
        ScheduleAnyway,
    }
}

/// Over what clusters are spread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Spread {
    /// Attribute whose values are the groups, such as region.
    pub key: String,
    /// Groups that must be used at least.
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 1000)))]
    pub min_groups: u32,
    /// What to do when there are fewer.
    pub when_unsatisfiable: WhenUnsatisfiable,
}

/// A taint that does not matter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Toleration {
    /// Key of the taint.
    pub key: String,
    /// Its effect; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
}

closed! {
    /// What happens when clusters are full or lost.
    pub enum PlacementFailoverMode {
        /// Further clusters help out.
        Burst,
        /// A standby takes over.
        DisasterRecovery,
        /// All clusters write.
        ActiveActive,
    }
}

/// Clusters that help out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Overflow {
    /// Which ones.
    pub cluster_selector: LabelSelector,
    /// How long pods must wait for a node first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when_pending_for: Option<Span>,
    /// How long after the need they are given back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_after: Option<Span>,
}

/// What happens when clusters are full or lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct PlacementFailover {
    /// The way of it.
    pub mode: PlacementFailoverMode,
    /// Clusters that help out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overflow: Option<Overflow>,
}

/// Where one app runs: pods, not data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct AppPlacementSpec {
    /// The app.
    pub app_id: String,
    /// How many clusters.
    pub clusters: Count,
    /// Replicas to share out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<Replicas>,
    /// What a cluster must be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<Constraint>,
    /// What is preferred: dataGravity, freeCapacity, latency, cost, sticky, balance or outside/NAME.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<Hint>,
    /// Over what they are spread.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spread: Vec<Spread>,
    /// Taints that do not matter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// What happens when clusters are full or lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover: Option<PlacementFailover>,
}

/// One cluster that was chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct PlacementDecision {
    /// The cluster.
    pub cluster: String,
    /// What it does there.
    pub role: Role,
    /// Replicas it gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// How well it does, from 0 to 100.
    #[serde(default)]
    pub score: u32,
    /// Since when, RFC 3339.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub since: String,
}

closed! {
    /// What made an app move.
    pub enum MoveCause {
        /// It was placed for the first time.
        FirstPlaced,
        /// Its placement was edited.
        SpecChanged,
        /// The class was edited.
        ClassChanged,
        /// A cluster no longer does.
        ClusterChanged,
        /// Another cluster does much better for long enough.
        BetterCandidate,
    }
}

/// One move of an app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Move {
    /// When, RFC 3339.
    pub at: String,
    /// Clusters before.
    #[serde(default)]
    pub from: Vec<String>,
    /// Clusters after.
    #[serde(default)]
    pub to: Vec<String>,
    /// What made it move.
    pub cause: MoveCause,
}

closed! {
    /// Aspects of a placement's state.
    pub enum PlacementConditionType {
        /// It has as many clusters as it asks for.
        Satisfied,
    }
}

closed! {
    /// Why a placement's state is as it is.
    pub enum PlacementReason {
        /// It has at least the smallest number of clusters.
        MinMet,
        /// Too few clusters would do.
        BelowMin,
        /// No cluster would do.
        NoCandidate,
        /// Too few groups to spread over.
        SpreadViolated,
        /// The environment has no class.
        ClassUnresolved,
    }
}

/// What the control part answers to a placement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct AppPlacementStatus {
    /// The names of the chosen clusters in one text, for columns.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub selected: String,
    /// The chosen clusters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub decisions: Vec<PlacementDecision>,
    /// Why these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Explanation>,
    /// The last ten moves, newest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Move>,
    /// Aspects of its state.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition<PlacementConditionType, PlacementReason>>,
}

pub(super) const MIN_MAX: &str = "min must not be above max";
pub(super) const APP_FIXED: &str = "appId cannot change; make a new placement";
pub(super) const ONE_HARD_SPREAD: &str =
    "only one spread with DoNotSchedule is built; use ScheduleAnyway for the others";
pub(super) const GROUPS_MAX: &str = "minGroups must not be above clusters.max";
pub(super) const PLACEMENT_FAILOVER_UNBUILT: &str = "failover is not built yet; leave the field out";
pub(super) const PLACEMENT_HINT: &str =
    "prefer must be one of dataGravity, freeCapacity, latency, cost, sticky, balance and outside/NAME";

/// What placements can prefer, beside `outside/NAME`.
pub(super) const PLACEMENT_PREFERENCES: &[&str] =
    &["dataGravity", "freeCapacity", "latency", "cost", "sticky", "balance"];
pub(super) const OUTSIDE: &str = "outside/";

impl KindSpec for AppPlacementSpec {
    const KIND: &'static str = "AppPlacement";
    const PLURAL: &'static str = "appplacements";
    const NAMESPACED: bool = true;
    type Status = AppPlacementStatus;

    fn check(&self) -> Vec<Problem> {
        let mut found = check_constraints(&self.constraints);
        let known =
            |p: &str| PLACEMENT_PREFERENCES.contains(&p) || p.strip_prefix(OUTSIDE).is_some_and(|n| !n.is_empty());
        found.extend(check_hints(&self.hints, known, PLACEMENT_HINT));
        if self.clusters.min > self.clusters.max {
            found.push(Problem::new("spec.clusters", MIN_MAX));
        }
        if self.clusters.min == 0 {
            found.push(Problem::new("spec.clusters.min", "must be from 1 to 1000"));
        }
        if self.replicas.is_some_and(|r| r.total == 0) {
            found.push(Problem::new("spec.replicas.total", "must be at least 1"));
        }
        let hard = self.spread.iter().filter(|s| s.when_unsatisfiable == WhenUnsatisfiable::DoNotSchedule);
        if hard.count() > 1 {
            found.push(Problem::new("spec.spread", ONE_HARD_SPREAD));
        }
        if self.spread.iter().any(|s| s.min_groups > self.clusters.max) {
            found.push(Problem::new("spec", GROUPS_MAX));
        }
        if self.failover.is_some() {
            found.push(Problem::new("spec.failover", PLACEMENT_FAILOVER_UNBUILT));
        }
        found
    }

    fn check_change(&self, before: &Self) -> Vec<Problem> {
        if self.app_id == before.app_id { Vec::new() } else { vec![Problem::new("spec.appId", APP_FIXED)] }
    }
}
