//! Our seven kinds as objects of the API server.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use mecha_resources::kinds::{self, API_VERSION, GROUP, KindSpec, Object, VERSION};
use serde::{Deserialize, Serialize};

/// An object of one of our kinds with the metadata of the API server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", bound = "")]
pub struct Stored<S: KindSpec> {
    /// `mecha.dev/v1alpha1`.
    #[serde(default)]
    pub api_version: String,
    /// [`KindSpec::KIND`].
    #[serde(default)]
    pub kind: String,
    /// Name, labels, resource version and the like.
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: S,
    /// What the control part answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<S::Status>,
}

/// A MemberCluster.
pub type MemberCluster = Stored<kinds::MemberClusterSpec>;
/// An EnvironmentClass.
pub type EnvironmentClass = Stored<kinds::EnvironmentClassSpec>;
/// An Environment.
pub type Environment = Stored<kinds::EnvironmentSpec>;
/// A CapabilityBackend.
pub type CapabilityBackend = Stored<kinds::CapabilityBackendSpec>;
/// A CapabilityClaim.
pub type CapabilityClaim = Stored<kinds::CapabilityClaimSpec>;
/// An AppPlacement.
pub type AppPlacement = Stored<kinds::AppPlacementSpec>;
/// A CapabilityBinding.
pub type CapabilityBinding = Stored<kinds::CapabilityBindingSpec>;

/// The namespace of a cluster's bindings: its agent has rights to bindings there and nowhere else.
#[must_use]
pub fn cluster_namespace(cluster: &str) -> String {
    format!("mecha-cluster-{cluster}")
}

impl<S: KindSpec> Stored<S> {
    /// An object without a status.
    #[must_use]
    pub fn new(name: &str, namespace: Option<&str>, spec: S) -> Self {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: namespace.map(str::to_owned),
            ..ObjectMeta::default()
        };
        Self { api_version: API_VERSION.to_owned(), kind: S::KIND.to_owned(), metadata, spec, status: None }
    }

    /// As deciders take it.
    #[must_use]
    pub fn object(&self) -> Object<S> {
        let metadata = kinds::ObjectMeta {
            name: self.metadata.name.clone().unwrap_or_default(),
            namespace: self.metadata.namespace.clone().unwrap_or_default(),
            labels: self.metadata.labels.clone().unwrap_or_default(),
            annotations: self.metadata.annotations.clone().unwrap_or_default(),
            generation: self.metadata.generation,
        };
        let mut object = Object::new(metadata, self.spec.clone());
        object.status.clone_from(&self.status);
        object
    }
}

impl<S: KindSpec> Resource for Stored<S> {
    type DynamicType = ();
    type Scope = k8s_openapi::NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        S::KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        VERSION.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        S::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
