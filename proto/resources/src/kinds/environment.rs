use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::class::Isolation;
use super::closed::closed;
use super::common::{Condition, LabelSelector, Span};
use super::object::{KindSpec, Problem};

/// A team's environment. Exactly one of the three ways names its class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct EnvironmentSpec {
    /// Name of the class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_name: Option<String>,
    /// Labels of the class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_selector: Option<LabelSelector>,
    /// The same as classSelector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub composition_selector: Option<LabelSelector>,
    /// Free parameters, for the platform's own tools. Of them `installInfra` is a column; the control part acts on
    /// none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, serde_json::Value>,
    /// How long it lives; for ever when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Span>,
}

/// One cluster of an environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct EnvironmentCluster {
    /// Its name.
    pub name: String,
    /// The environment's namespace in it.
    pub namespace: String,
    /// Whether that can be used.
    #[serde(default)]
    pub ready: bool,
}

/// Claims of an environment by phase.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ClaimCount {
    /// Bound.
    pub bound: u32,
    /// Waiting for a backend.
    pub pending: u32,
    /// On the way to another backend.
    pub swapping: u32,
}

closed! {
    /// Aspects of an environment's state.
    pub enum EnvironmentConditionType {
        /// All of the others hold.
        Ready,
        /// One class was found.
        ClassResolved,
        /// Its namespaces are there.
        ClustersReady,
        /// Its claims have backends.
        ClaimsBound,
    }
}

closed! {
    /// Why an environment's state is as it is.
    pub enum EnvironmentReason {
        /// Everything is there.
        AllReady,
        /// The class was found.
        ClassFound,
        /// No class has that name or those labels.
        ClassNotFound,
        /// More than one class has those labels.
        ClassAmbiguous,
        /// A parameter is not what the class allows.
        ParametersRejected,
        /// The namespaces are there.
        NamespacesReady,
        /// A namespace is being made.
        NamespacePending,
        /// No cluster fits the class.
        NoCluster,
        /// All claims are bound.
        AllBound,
        /// A claim waits for a backend.
        ClaimsPending,
        /// A claim has lost its backend.
        ClaimsLost,
        /// Its time is over.
        Expired,
        /// It is being deleted.
        Deleting,
    }
}

/// What the control part answers to an environment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct EnvironmentStatus {
    /// Its class.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub class_name: String,
    /// The type of its class.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// What separates it from others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// Namespace of its claims, and its namespace in every cluster.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub connect_to: String,
    /// Its clusters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<EnvironmentCluster>,
    /// The names of its clusters in one text, for columns.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cluster_names: String,
    /// Its claims by phase.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claims: Option<ClaimCount>,
    /// Aspects of its state.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition<EnvironmentConditionType, EnvironmentReason>>,
}

pub(super) const ONE_CLASS: &str = "give exactly one of className, classSelector and compositionSelector";

impl EnvironmentSpec {
    /// The selector of its class under either of its names.
    #[must_use]
    pub fn selector(&self) -> Option<&LabelSelector> {
        self.class_selector.as_ref().or(self.composition_selector.as_ref())
    }
}

impl KindSpec for EnvironmentSpec {
    const KIND: &'static str = "Environment";
    const PLURAL: &'static str = "environments";
    const NAMESPACED: bool = true;
    type Status = EnvironmentStatus;

    fn check(&self) -> Vec<Problem> {
        let given = [self.class_name.is_some(), self.class_selector.is_some(), self.composition_selector.is_some()];
        if given.into_iter().filter(|given| *given).count() == 1 {
            Vec::new()
        } else {
            vec![Problem::new("spec", ONE_CLASS)]
        }
    }
}
