use serde::{Deserialize, Serialize};

use super::backend::Tenancy;
use super::closed::closed;
use super::common::{CapabilityKind, Condition, LabelSelector, Span};
use super::object::{KindSpec, Problem};

closed! {
    /// What separates the environments of a class.
    pub enum Isolation {
        /// A namespace each.
        Namespace = "namespace",
        /// A virtual cluster each.
        Vcluster = "vcluster",
        /// A cluster each.
        Cluster = "cluster",
    }
}

closed! {
    /// How a claim moves from one backend to another.
    pub enum SwapStrategy {
        /// Open the new one beside the old, check, switch, drain what is in flight, close the old.
        Immediate,
        /// New pods get the new one, old pods keep theirs.
        OnRestart,
        /// Subscribe at the new one, switch publishers, read the old until it is empty.
        Drain,
        /// Write to both, copy, verify, then read the new one.
        DualWrite,
    }
}

closed! {
    /// Who starts a move.
    pub enum Approval {
        /// The control part, by itself.
        Automatic,
        /// A person, who names the digest of the plan.
        Manual,
    }
}

/// How claims of a rule move when their backend changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SwapPolicy {
    /// The way of moving; Drain for pubsub and binding, Immediate for the rest, when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<SwapStrategy>,
    /// Who starts it; Automatic when nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approval>,
    /// When a move that has not come to its end stops and asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Span>,
    /// How long the data of the old backend is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain_old: Option<Span>,
    /// Clusters that move at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 1000)))]
    pub max_parallel_clusters: Option<u32>,
    /// Says that a store may begin empty at the new backend, since no data is copied.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_ok: bool,
}

/// Which backends serve which claims. The first rule that matches kind and name wins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CapabilityRule {
    /// Kind of the claims.
    pub kind: CapabilityKind,
    /// Names of the claims; all when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Backends that may serve them. A swap is an edit of this line.
    pub backend_selector: LabelSelector,
    /// Features that every claim gets, asked for or not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub require: Vec<String>,
    /// The least separation of tenants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenancy: Option<Tenancy>,
    /// How claims move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<SwapPolicy>,
}

closed! {
    /// What happens when a cluster is lost.
    pub enum FailoverMode {
        /// A standby takes over.
        DisasterRecovery,
        /// All clusters write.
        ActiveActive,
    }
}

closed! {
    /// How work returns after a failover.
    pub enum Failback {
        /// When a person says so.
        Manual,
        /// By itself.
        Automatic,
    }
}

closed! {
    /// Who may write in a cluster that is cut off.
    pub enum WriteAuthority {
        /// The cluster itself goes on.
        Local,
        /// Only with a fresh lease.
        Leased,
    }
}

/// What happens when a cluster is lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Failover {
    /// The way of it.
    pub mode: FailoverMode,
    /// How long a cluster must be lost first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Span>,
    /// How work returns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failback: Option<Failback>,
    /// Who may write in a cluster that is cut off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_authority: Option<WriteAuthority>,
    /// Environments that move at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrent_moves: Option<u32>,
}

/// What is stamped to make a virtual or a whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct IsolationTemplate {
    /// The object to make.
    pub manifest: serde_json::Value,
}

/// The platform's policy for a kind of environments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct EnvironmentClassSpec {
    /// Word that environments of this class show as their type.
    #[serde(rename = "type")]
    pub kind: String,
    /// What separates its environments; namespace when nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// What is stamped for isolation by vcluster or cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation_template: Option<IsolationTemplate>,
    /// Clusters its environments may use; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_selector: Option<LabelSelector>,
    /// Which backends serve which claims.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<CapabilityRule>,
    /// What happens when a cluster is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover: Option<Failover>,
    /// Agreement to the moves that wait for a person: the digest of their plan, as status.pendingPlan gives it.
    /// It goes stale when other claims would move, or to another backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved_swap: Option<String>,
}

closed! {
    /// Aspects of a class's state.
    pub enum ClassConditionType {
        /// Claims wait for a person before they move.
        SwapPending,
        /// It is to be deleted and cannot be.
        InUse,
    }
}

closed! {
    /// Why a class's state is as it is.
    pub enum ClassReason {
        /// Moves wait for approvedSwap.
        AwaitingApproval,
        /// Stores would begin empty, and nobody has said that they may.
        EmptyNotAllowed,
        /// Nothing waits.
        Settled,
        /// Environments are of this class.
        UsedByEnvironments,
        /// Nothing is of this class.
        Unused,
    }
}

/// Moves from one backend to another that a person has agreed to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct ApprovedMove {
    /// The old backend.
    pub from: String,
    /// The new backend.
    pub to: String,
}

/// What a person has agreed to: kept, so that a plan that is half done is still agreed to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ApprovedPlan {
    /// Digest of the plan.
    pub digest: String,
    /// The backends that its claims leave and go to.
    pub moves: Vec<ApprovedMove>,
}

/// What the control part answers to a class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct EnvironmentClassStatus {
    /// Environments of this class.
    pub environments: u32,
    /// Digest of the plan of all moves that wait for approval; empty when none does.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pending_plan: String,
    /// Moves of that plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending_moves: Option<u32>,
    /// The plan that was approved last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approved: Option<ApprovedPlan>,
    /// Generation of the spec that was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Aspects of its state.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition<ClassConditionType, ClassReason>>,
}

pub(super) const STRATEGY_UNBUILT: &str =
    "strategies OnRestart and DualWrite are not built yet; use Immediate or Drain";
pub(super) const DRAIN_ONLY_QUEUES: &str = "strategy Drain is for kinds pubsub and binding; use Immediate";
pub(super) const RETAIN_OLD_UNBUILT: &str =
    "retainOld is not available yet; leave the field out: the data at the old backend stays until you delete it";
pub(super) const PARALLEL_UNBUILT: &str =
    "maxParallelClusters is not available yet; leave the field out: all clusters of an environment move together";
pub(super) const ISOLATION_TEMPLATE_UNBUILT: &str =
    "isolationTemplate is not available yet; leave the field out: isolation namespace needs none";
pub(super) const ISOLATION_UNBUILT: &str = "isolation vcluster and cluster are not built yet; use namespace";
pub(super) const FAILOVER_UNBUILT: &str = "failover is not built yet; leave the field out";
pub(super) const FEATURE_UNKNOWN: &str = "holds a feature that its kind does not have";

/// Features outside the closed list of their kind.
pub(super) fn unknown_features(kind: CapabilityKind, features: &[String], path: &str) -> Vec<Problem> {
    let known = kind.features();
    let unknown = features.iter().filter(|f| !known.contains(&f.as_str()));
    unknown
        .map(|feature| {
            let mut message = format!("{FEATURE_UNKNOWN}: '{feature}' is none of {}", known.join(", "));
            if known.is_empty() {
                message = format!("{FEATURE_UNKNOWN}: kind {kind} has none, '{feature}' was given");
            }
            if let Some(close) = crate::text::did_you_mean(feature, known.iter().copied()) {
                message.push_str(&format!("; did you mean '{close}'?"));
            }
            Problem::new(path, message)
        })
        .collect()
}

impl KindSpec for EnvironmentClassSpec {
    const KIND: &'static str = "EnvironmentClass";
    const PLURAL: &'static str = "environmentclasses";
    const NAMESPACED: bool = false;
    type Status = EnvironmentClassStatus;

    fn check(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        if self.isolation.is_some_and(|i| i != Isolation::Namespace) {
            found.push(Problem::new("spec.isolation", ISOLATION_UNBUILT));
        }
        if self.isolation_template.is_some() {
            found.push(Problem::new("spec.isolationTemplate", ISOLATION_TEMPLATE_UNBUILT));
        }
        if self.failover.is_some() {
            found.push(Problem::new("spec.failover", FAILOVER_UNBUILT));
        }
        for (i, rule) in self.capabilities.iter().enumerate() {
            let path = format!("spec.capabilities[{i}]");
            found.extend(unknown_features(rule.kind, &rule.require, &format!("{path}.require")));
            if rule.swap.as_ref().is_some_and(|s| s.retain_old.is_some()) {
                found.push(Problem::new(format!("{path}.swap.retainOld"), RETAIN_OLD_UNBUILT));
            }
            if rule.swap.as_ref().is_some_and(|s| s.max_parallel_clusters.is_some()) {
                found.push(Problem::new(format!("{path}.swap.maxParallelClusters"), PARALLEL_UNBUILT));
            }
            let strategy = rule.swap.as_ref().and_then(|s| s.strategy);
            match strategy {
                Some(SwapStrategy::OnRestart | SwapStrategy::DualWrite) => {
                    found.push(Problem::new(format!("{path}.swap.strategy"), STRATEGY_UNBUILT));
                }
                Some(SwapStrategy::Drain) if !matches!(rule.kind, CapabilityKind::Pubsub | CapabilityKind::Binding) => {
                    found.push(Problem::new(format!("{path}.swap.strategy"), DRAIN_ONLY_QUEUES));
                }
                _ => {}
            }
        }
        found
    }
}
