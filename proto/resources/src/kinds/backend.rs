use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::class::unknown_features;
use super::closed::closed;
use super::common::{CapabilityKind, Condition, LabelSelector, Span};
use super::object::{KindSpec, Problem};

closed! {
    /// How far a backend separates tenants; later ones separate more.
    pub enum Tenancy {
        /// Not at all.
        Shared,
        /// By environment.
        PerEnvironment,
        /// By claim.
        PerClaim,
    }
}

closed! {
    /// Where the credentials of a backend are.
    pub enum CredentialDelivery {
        /// In a Secret that is in the member already.
        Reference,
        /// Encrypted to the key of one agent.
        Sealed,
    }
}

closed! {
    /// What a backend may be used for.
    pub enum BackendState {
        /// Everything.
        Active,
        /// What is bound stays, nothing new comes.
        Cordoned,
        /// What is bound moves away.
        Draining,
        /// Nothing.
        Retired,
    }
}

/// A key of the backend's Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct KeyRef {
    /// The key.
    pub key: String,
}

/// A metadata item of the component: a text, which may hold templates, or a key of the backend's Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct TemplateValue {
    /// Key of the metadata item.
    pub name: String,
    /// Its text, with `{{ claim.slug }}` and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Where its value comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<KeyRef>,
}

/// The component that sidecars get, in Dapr's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ComponentTemplate {
    /// Type, such as state.postgresql.
    #[serde(rename = "type")]
    pub kind: String,
    /// Version; v1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Time for its initialisation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_timeout: Option<Span>,
    /// Metadata items.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metadata: Vec<TemplateValue>,
}

impl ComponentTemplate {
    /// `state.postgresql/v2`; without a version it is v1.
    #[must_use]
    pub fn type_and_version(&self) -> String {
        format!("{}/{}", self.kind, self.version.as_deref().filter(|v| !v.is_empty()).unwrap_or("v1"))
    }
}

/// Where a backend is, and who reaches it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Topology {
    /// Its region.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub region: String,
    /// Labels of the clusters that reach it; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reachable_from: Option<LabelSelector>,
}

/// How much a backend bears.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Capacity {
    /// Claims it can serve.
    pub bindings: u32,
}

/// A Secret with the keys that the component refers to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct SecretSource {
    /// Its namespace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// An object of another system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    /// Its API version.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its namespace; empty for a cluster-wide one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// An object that is made for each tenancy unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct StampedSource {
    /// The object; its texts may hold templates.
    pub manifest: serde_json::Value,
    /// CEL over the object that says when it is ready; its condition Ready when absent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ready_when: String,
    /// Name of the Secret it leaves; templates as in the object.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub secret_name: String,
}

/// Says that a backend needs no credentials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct EmptySource {}

/// Where the credentials come from. Exactly one is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct BackendSource {
    /// A Secret, such as the connection Secret of a Crossplane resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretSource>,
    /// A Provisioned Service: its `.status.binding.name` names the Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_ref: Option<ObjectRef>,
    /// An object that is made for each tenancy unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<StampedSource>,
    /// Nothing is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub none: Option<EmptySource>,
}

/// One offer of the platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CapabilityBackendSpec {
    /// What it gives. Immutable: make a new backend and swap.
    pub kind: CapabilityKind,
    /// The component that sidecars get.
    pub component: ComponentTemplate,
    /// Features it claims to have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// Further attributes that constraints look at.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub traits: BTreeMap<String, String>,
    /// Where it is, and who reaches it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<Topology>,
    /// How far it separates tenants; Shared when nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenancy: Option<Tenancy>,
    /// How much it bears; no limit when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
    /// What it costs, from 0 to 100 by the platform's own measure.
    #[serde(default)]
    #[cfg_attr(feature = "crd", schemars(range(max = 100)))]
    pub cost: u32,
    /// Where its credentials come from.
    pub source: BackendSource,
    /// Where its credentials are; Reference when nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_delivery: Option<CredentialDelivery>,
    /// What it may be used for; Active when nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<BackendState>,
}

closed! {
    /// Aspects of a backend's state.
    pub enum BackendConditionType {
        /// It can be used.
        Ready,
        /// It is to be deleted and cannot be.
        InUse,
    }
}

closed! {
    /// Why a backend's state is as it is.
    pub enum BackendReason {
        /// A probe has worked.
        ProbePassed,
        /// A probe has failed.
        ProbeFailed,
        /// No probe has run yet.
        ProbePending,
        /// Nothing probes here: its source is complete, and what it claims is taken as true.
        NotProbed,
        /// The Secret or object it names is not there.
        SourceMissing,
        /// The object it names is not ready.
        SourceNotReady,
        /// The Secret lacks a key that the component refers to.
        SourceKeyMissing,
        /// A template cannot be filled in.
        TemplateInvalid,
        /// The agents' sidecars do not know its component.
        UnknownComponent,
        /// It is out of use.
        Retired,
        /// Claims are bound to it.
        ClaimsBound,
    }
}

/// What was found about a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct CapabilityBackendStatus {
    /// Features that a probe has proven; absent before the first probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified_features: Option<Vec<String>>,
    /// When the last probe ran, RFC 3339.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last_probe: String,
    /// Claims it serves.
    pub bound_claims: u32,
    /// Aspects of its state.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition<BackendConditionType, BackendReason>>,
}

pub(super) const ONE_SOURCE: &str = "give exactly one of secretRef, serviceRef, template and none";
pub(super) const ONE_VALUE: &str = "give either value or valueFrom";
pub(super) const KIND_FIXED: &str = "kind cannot change; make a new backend and swap to it";
pub(super) const TYPE_FIXED: &str = "component.type cannot change; make a new backend and swap to it";
pub(super) const SEALED_UNBUILT: &str = "credentialDelivery Sealed is not built yet; use Reference";
pub(super) const TYPE_OF_KIND: &str = "component.type does not belong to kind";

impl KindSpec for CapabilityBackendSpec {
    const KIND: &'static str = "CapabilityBackend";
    const PLURAL: &'static str = "capabilitybackends";
    const NAMESPACED: bool = false;
    type Status = CapabilityBackendStatus;

    fn check(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        let s = &self.source;
        let given = [s.secret_ref.is_some(), s.service_ref.is_some(), s.template.is_some(), s.none.is_some()];
        if given.into_iter().filter(|given| *given).count() != 1 {
            found.push(Problem::new("spec.source", ONE_SOURCE));
        }
        let prefix = self.kind.type_prefix();
        if !self.component.kind.starts_with(prefix) {
            let message = format!("{TYPE_OF_KIND}: types of kind {} start with '{prefix}'", self.kind);
            found.push(Problem::new("spec.component.type", message));
        }
        for (i, item) in self.component.metadata.iter().enumerate() {
            if item.value.is_some() == item.value_from.is_some() {
                found.push(Problem::new(format!("spec.component.metadata[{i}]"), ONE_VALUE));
            }
        }
        if self.credential_delivery == Some(CredentialDelivery::Sealed) {
            found.push(Problem::new("spec.credentialDelivery", SEALED_UNBUILT));
        }
        if self.cost > 100 {
            found.push(Problem::new("spec.cost", "must be from 0 to 100"));
        }
        found.extend(unknown_features(self.kind, &self.features, "spec.features"));
        found
    }

    fn check_change(&self, before: &Self) -> Vec<Problem> {
        let mut found = Vec::new();
        if self.kind != before.kind {
            found.push(Problem::new("spec.kind", KIND_FIXED));
        }
        if self.component.kind != before.component.kind {
            found.push(Problem::new("spec.component.type", TYPE_FIXED));
        }
        found
    }
}
