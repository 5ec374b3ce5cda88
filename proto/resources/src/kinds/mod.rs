//! The kinds of `mecha.dev/v1alpha1`: what teams and platform write, and what the control part answers.
//!
//! The same types serve files on a laptop and objects of an API server. [`read_dir`] reads files, with the
//! place of every mistake; [`KindSpec::check`] applies the rules that the CRDs hold as CEL, so that a
//! file is refused here for what the API server would refuse, in the same words.

mod backend;
mod binding;
mod claim;
mod class;
mod closed;
mod cluster;
mod common;
#[cfg(feature = "crd")]
pub mod crd;
mod environment;
mod object;
mod placement;
mod read;

pub use backend::{
    BackendConditionType, BackendReason, BackendSource, BackendState, CapabilityBackendSpec, CapabilityBackendStatus,
    Capacity, ComponentTemplate, CredentialDelivery, EmptySource, KeyRef, ObjectRef, SecretSource, StampedSource,
    TemplateValue, Tenancy, Topology,
};
pub use binding::{
    Access, BindingConditionType, BindingEntry, BindingEntryStatus, BindingReason, CapabilityBindingSpec,
    CapabilityBindingStatus, EntryProgress, MAX_ENTRIES, MoveCounts, Role, SwapPhase, SwapRecord,
};
pub use claim::{
    BindingCount, CapabilityClaimSpec, CapabilityClaimStatus, ClaimConditionType, ClaimMove, ClaimPhase, ClaimReason,
    MAX_HISTORY, MoveOutcome, ReclaimPolicy, ServiceBindingRef,
};
pub use class::{
    Approval, ApprovedMove, ApprovedPlan, CapabilityRule, ClassConditionType, ClassReason, EnvironmentClassSpec,
    EnvironmentClassStatus, Failback, Failover, FailoverMode, Isolation, IsolationTemplate, SwapPolicy, SwapStrategy,
    WriteAuthority,
};
pub use cluster::{
    AgentReport, ClusterCapacity, ClusterConditionType, ClusterReason, MemberClusterSpec, MemberClusterStatus, Origin,
    Property, Taint, TaintEffect,
};
pub use common::{
    Candidate, CapabilityKind, Condition, ConditionStatus, Constraint, DecideReason, Explanation, Hint, LabelOperator,
    LabelRequirement, LabelSelector, Operator, RejectedBy, ScorePart, Span, Tightest, Verdict, condition_status,
};
pub use environment::{
    ClaimCount, EnvironmentCluster, EnvironmentConditionType, EnvironmentReason, EnvironmentSpec, EnvironmentStatus,
};
pub use object::{API_VERSION, GROUP, KindSpec, Object, ObjectMeta, Problem, VERSION};
pub use placement::{
    AppPlacementSpec, AppPlacementStatus, Count, Division, Move, MoveCause, Overflow, PlacementConditionType,
    PlacementDecision, PlacementFailover, PlacementFailoverMode, PlacementReason, Replicas, Spread, Toleration,
    WhenUnsatisfiable,
};
pub use read::{Documents, Foreign, read_dir};

/// A member of the fleet.
pub type MemberCluster = Object<MemberClusterSpec>;
/// The platform's policy for a kind of environments.
pub type EnvironmentClass = Object<EnvironmentClassSpec>;
/// A team's environment.
pub type Environment = Object<EnvironmentSpec>;
/// One offer of the platform.
pub type CapabilityBackend = Object<CapabilityBackendSpec>;
/// One need of a developer.
pub type CapabilityClaim = Object<CapabilityClaimSpec>;
/// Where one app runs.
pub type AppPlacement = Object<AppPlacementSpec>;
/// What one cluster gets of one environment.
pub type CapabilityBinding = Object<CapabilityBindingSpec>;

#[cfg(test)]
mod tests;
