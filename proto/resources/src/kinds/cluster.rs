use serde::{Deserialize, Serialize};

use super::closed::closed;
use super::common::Condition;
use super::object::{KindSpec, Problem};

closed! {
    /// What a taint keeps away.
    pub enum TaintEffect {
        /// New bindings; what runs stays.
        NoNewBindings,
        /// All bindings.
        NoBindings,
        /// Bindings that can as well go elsewhere.
        PreferNoBindings,
    }
}

/// A reason to keep away from a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Taint {
    /// Name of the reason.
    pub key: String,
    /// More about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// What it keeps away.
    pub effect: TaintEffect,
}

/// The object of another system that this cluster was imported from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// Its API version.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A member of the fleet. A host without Kubernetes is one too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct MemberClusterSpec {
    /// The admin's opt-in. Setting it takes the right to update memberclusters/accept.
    #[serde(default)]
    pub accepted: bool,
    /// Who runs it, such as aws.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub provider: String,
    /// Where it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub region: String,
    /// Its zones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<String>,
    /// Reasons to keep away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<Taint>,
    /// Where it was imported from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// A fact about a cluster, as the About API publishes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Property {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// Resources of a cluster, as Kubernetes quantities.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterCapacity {
    /// What its nodes offer, by resource.
    pub allocatable: std::collections::BTreeMap<String, String>,
    /// What pods have asked for, by resource.
    pub requested: std::collections::BTreeMap<String, String>,
    /// Pods that wait for a node.
    pub pending_pods: u32,
}

/// What the agent of a cluster says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct AgentReport {
    /// Its version.
    pub version: String,
    /// The last revision it has put into effect.
    pub applied_revision: i64,
    /// The last revision it was offered.
    pub offered_revision: i64,
    /// End of its certificate, RFC 3339.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cert_not_after: String,
}

closed! {
    /// Aspects of a cluster's state.
    pub enum ClusterConditionType {
        /// It has a certificate and was accepted.
        Joined,
        /// Its agent is connected.
        Available,
        /// Its clock agrees with the hub's.
        ClockSynced,
    }
}

closed! {
    /// Why a cluster's state is as it is.
    pub enum ClusterReason {
        /// It is the cluster that the control part runs in.
        InCluster,
        /// Its agent has a certificate.
        CertificateIssued,
        /// Nobody has approved its certificate yet.
        AwaitingApproval,
        /// No admin has accepted it yet.
        AwaitingAcceptance,
        /// An admin has taken the acceptance back.
        Revoked,
        /// Its agent is connected.
        StreamFresh,
        /// Its agent has not been heard of for too long.
        StreamStale,
        /// Its agent has never connected.
        NeverConnected,
        /// Both clocks agree.
        InSync,
        /// The clocks differ by more than certificates allow.
        Skewed,
    }
}

/// What the hub knows about a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct MemberClusterStatus {
    /// What makes it the same cluster under another name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cluster_id: String,
    /// Version of its API server; empty without Kubernetes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kubernetes_version: String,
    /// Facts it has published.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub properties: Vec<Property>,
    /// Its resources, unless it has not reported them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<ClusterCapacity>,
    /// What its agent says about itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentReport>,
    /// Aspects of its state.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition<ClusterConditionType, ClusterReason>>,
}

pub(super) const ZONES_UNBUILT: &str =
    "zones is not available yet; leave the field out: constraints look at labels of the MemberCluster and its region";
pub(super) const ORIGIN_UNBUILT: &str =
    "origin is not available yet, nothing is imported; leave the field out, or say it in an annotation";

impl KindSpec for MemberClusterSpec {
    const KIND: &'static str = "MemberCluster";
    const PLURAL: &'static str = "memberclusters";
    const NAMESPACED: bool = false;
    type Status = MemberClusterStatus;

    fn check(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        if !self.zones.is_empty() {
            found.push(Problem::new("spec.zones", ZONES_UNBUILT));
        }
        if self.origin.is_some() {
            found.push(Problem::new("spec.origin", ORIGIN_UNBUILT));
        }
        found
    }
}
