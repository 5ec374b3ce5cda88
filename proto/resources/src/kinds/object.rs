//! An object of the API: metadata, spec, status.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// API group of all kinds.
pub const GROUP: &str = "mecha.dev";
/// API version of all kinds.
pub const VERSION: &str = "v1alpha1";
/// What documents say as `apiVersion`.
pub const API_VERSION: &str = "mecha.dev/v1alpha1";

/// What a spec breaks, with the path of the field below the document's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Such as `spec.source`.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl Problem {
    pub(crate) fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// The spec of one kind.
pub trait KindSpec: Clone + fmt::Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The kind, as documents spell it.
    const KIND: &'static str;
    /// Its plural, as in paths of the API.
    const PLURAL: &'static str;
    /// Whether its objects live in a namespace.
    const NAMESPACED: bool;
    /// What the control part answers.
    type Status: Clone + fmt::Debug + Default + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static;

    /// What the spec breaks of the rules that concern one document.
    fn check(&self) -> Vec<Problem> {
        Vec::new()
    }

    /// What changing `before` to this spec breaks.
    fn check_change(&self, _before: &Self) -> Vec<Problem> {
        Vec::new()
    }
}

/// The metadata that Mecha reads; a Kubernetes client brings its own type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectMeta {
    /// Name.
    pub name: String,
    /// Namespace; empty for cluster-wide kinds.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Generation of the spec.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
}

/// An object of one of the kinds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", bound(serialize = "M: Serialize", deserialize = "M: DeserializeOwned"))]
pub struct Object<S: KindSpec, M = ObjectMeta> {
    /// [`API_VERSION`].
    pub api_version: String,
    /// [`KindSpec::KIND`].
    pub kind: String,
    /// Name, labels and the like.
    pub metadata: M,
    /// What is wanted.
    pub spec: S,
    /// What the control part answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<S::Status>,
}

impl<S: KindSpec, M> Object<S, M> {
    /// An object without a status.
    pub fn new(metadata: M, spec: S) -> Self {
        Self { api_version: API_VERSION.to_owned(), kind: S::KIND.to_owned(), metadata, spec, status: None }
    }
}

impl<S: KindSpec> Object<S> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.metadata.name
    }

    /// Its namespace, empty for cluster-wide kinds.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.metadata.namespace
    }

    /// `namespace/name`, or the name alone for cluster-wide kinds.
    #[must_use]
    pub fn key(&self) -> String {
        if self.metadata.namespace.is_empty() {
            self.metadata.name.clone()
        } else {
            format!("{}/{}", self.metadata.namespace, self.metadata.name)
        }
    }
}
