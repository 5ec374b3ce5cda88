use serde::{Deserialize, Serialize};

use super::binding::MoveCounts;
use super::class::{SwapStrategy, unknown_features};
use super::closed::closed;
use super::common::{CapabilityKind, Condition, Constraint, Explanation, Hint, Operator};
use super::object::{KindSpec, Problem};

closed! {
    /// What becomes of the data when a claim is deleted.
    pub enum ReclaimPolicy {
        /// It stays.
        Retain,
        /// It goes.
        Delete,
    }
}

/// One need of a developer. The name of the claim is the name of the component in the app's code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CapabilityClaimSpec {
    /// What is needed. Immutable.
    pub kind: CapabilityKind,
    /// Features it must have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// What a backend must be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<Constraint>,
    /// What is preferred: latency, cost, freeCapacity, sticky or fewestSurplus.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<Hint>,
    /// App ids that get it; all of the environment when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
    /// What becomes of the data when the claim is deleted; Retain when nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reclaim_policy: Option<ReclaimPolicy>,
}

closed! {
    /// Where a claim is in its life.
    pub enum ClaimPhase {
        /// It has no backend yet.
        Pending,
        /// It has one.
        Bound,
        /// It is on the way to another one.
        Swapping,
        /// It has one that does not work as it should.
        Degraded,
        /// Its backend was deleted.
        Lost,
    }
}

/// The Secret of a Provisioned Service: apps may read it without a sidecar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct ServiceBindingRef {
    /// Its name, in the claim's namespace.
    pub name: String,
}

/// Bindings that carry a claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct BindingCount {
    /// All of them.
    pub total: u32,
    /// Those that sidecars have.
    pub ready: u32,
}

closed! {
    /// Aspects of a claim's state.
    pub enum ClaimConditionType {
        /// It has a backend.
        Bound,
        /// Sidecars have it.
        Ready,
        /// It is to move.
        SwapPending,
        /// It does not work as it should.
        Degraded,
        /// Its backend was deleted.
        Lost,
    }
}

closed! {
    /// Why a claim's state is as it is.
    pub enum ClaimReason {
        /// A backend was chosen.
        BackendSelected,
        /// No backend would do.
        NoCandidate,
        /// The class has no rule for its kind and name.
        NoRule,
        /// The environment has no class.
        ClassUnresolved,
        /// Its namespace belongs to no environment.
        NoEnvironment,
        /// Every binding is ready.
        AllBindingsReady,
        /// Some binding is not ready yet.
        BindingsPending,
        /// A move waits for a person.
        AwaitingApproval,
        /// A move would begin with an empty store, and nobody has said that it may.
        EmptyNotAllowed,
        /// A move goes on.
        InProgress,
        /// A move has stopped at its deadline and asks.
        DeadlinePassed,
        /// A move was taken back; the same is not tried again before its class or backend is edited.
        RolledBack,
        /// The document for the backend cannot be made.
        TemplateInvalid,
        /// Nothing is to be done.
        Settled,
        /// A component of the same name in the namespace wins.
        Shadowed,
        /// The backend does not work now.
        BackendNotReady,
        /// The Secret or object of the backend is gone.
        SourceMissing,
        /// The backend object is gone; the claim stays where it is.
        BackendDeleted,
    }
}

closed! {
    /// How a move ended.
    pub enum MoveOutcome {
        /// The new backend serves the claim.
        Completed,
        /// The old backend serves it again.
        RolledBack,
    }
}

/// The receipt of one move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ClaimMove {
    /// The cluster.
    pub cluster: String,
    /// The old backend.
    pub from: String,
    /// The new backend.
    pub to: String,
    /// The way of moving.
    pub strategy: SwapStrategy,
    /// When it began, RFC 3339.
    pub started_at: String,
    /// When it ended, RFC 3339.
    pub ended_at: String,
    /// How it ended.
    pub outcome: MoveOutcome,
    /// Why the claim moved, and why it was taken back if it was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// Digest of the class and backend that asked for it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cause: String,
    /// Id of the trace of its decision, steps and switches, when the hub traces.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub trace: String,
    /// Sidecars that took part.
    #[serde(default)]
    pub sidecars: u32,
    /// What became of calls and messages. No data is copied.
    #[serde(default)]
    pub counts: MoveCounts,
}

/// Most receipts that a claim keeps; the newest come first.
pub const MAX_HISTORY: usize = 10;

/// What the control part answers to a claim. It makes the claim a Provisioned Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct CapabilityClaimStatus {
    /// Where it is in its life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<ClaimPhase>,
    /// Its backend.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub backend: String,
    /// Its Secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binding: Option<ServiceBindingRef>,
    /// Features it asks for, with those of the class.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub required_features: Vec<String>,
    /// Bindings that carry it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bindings: Option<BindingCount>,
    /// Ready bindings of all, for columns.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub summary: String,
    /// Why this backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Explanation>,
    /// Its last moves, the newest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<ClaimMove>,
    /// Aspects of its state.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition<ClaimConditionType, ClaimReason>>,
}

pub(super) const CLAIM_KIND_FIXED: &str = "kind cannot change; make a new claim";
pub(super) const RECLAIM_UNBUILT: &str =
    "reclaimPolicy Delete is not available yet; use Retain, and delete the data at the backend yourself";
pub(super) const VALUES_FIT: &str =
    "In and NotIn need values, Gt and Lt one whole number, Exists and DoesNotExist none";
pub(super) const CLAIM_HINT: &str = "prefer must be one of latency, cost, freeCapacity, sticky and fewestSurplus";

/// What claims can prefer.
pub(super) const CLAIM_PREFERENCES: &[&str] = &["latency", "cost", "freeCapacity", "sticky", "fewestSurplus"];

/// Constraints whose values do not fit their operator.
pub(super) fn check_constraints(constraints: &[Constraint]) -> Vec<Problem> {
    let fits = |c: &Constraint| match c.operator {
        Operator::In | Operator::NotIn => !c.values.is_empty(),
        Operator::Gt | Operator::Lt => c.values.len() == 1 && c.values.iter().all(|v| whole_number(v)),
        Operator::Exists | Operator::DoesNotExist => c.values.is_empty(),
    };
    let wrong = constraints.iter().enumerate().filter(|(_, c)| !fits(c));
    wrong.map(|(i, _)| Problem::new(format!("spec.constraints[{i}]"), VALUES_FIT)).collect()
}

/// Up to 18 digits, so that every one fits into 64 bits.
fn whole_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    (1..=18).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit())
}

/// Hints that prefer what is not known, or weigh nothing.
pub(super) fn check_hints(hints: &[Hint], known: impl Fn(&str) -> bool, message: &str) -> Vec<Problem> {
    let mut found = Vec::new();
    for (i, hint) in hints.iter().enumerate() {
        if !known(&hint.prefer) {
            found.push(Problem::new(format!("spec.hints[{i}].prefer"), message));
        }
        if !(1..=100).contains(&hint.weight) {
            found.push(Problem::new(format!("spec.hints[{i}].weight"), "must be from 1 to 100"));
        }
    }
    found
}

impl KindSpec for CapabilityClaimSpec {
    const KIND: &'static str = "CapabilityClaim";
    const PLURAL: &'static str = "capabilityclaims";
    const NAMESPACED: bool = true;
    type Status = CapabilityClaimStatus;

    fn check(&self) -> Vec<Problem> {
        let mut found = unknown_features(self.kind, &self.features, "spec.features");
        found.extend(check_constraints(&self.constraints));
        found.extend(check_hints(&self.hints, |p| CLAIM_PREFERENCES.contains(&p), CLAIM_HINT));
        if self.reclaim_policy == Some(ReclaimPolicy::Delete) {
            found.push(Problem::new("spec.reclaimPolicy", RECLAIM_UNBUILT));
        }
        found
    }

    fn check_change(&self, before: &Self) -> Vec<Problem> {
        if self.kind == before.kind { Vec::new() } else { vec![Problem::new("spec.kind", CLAIM_KIND_FIXED)] }
    }
}
