use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

const REDACTED: &str = "<redacted>";

/// Text that may be a secret: `Debug` and `Serialize` show no more than whether it is empty.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Sensitive(String);

impl Sensitive {
    /// Wraps `text`.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Sensitive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "\"\"" } else { REDACTED })
    }
}

impl Serialize for Sensitive {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.0.is_empty() { "" } else { REDACTED })
    }
}

/// A free-form part of a document. It may hold secrets: `Debug` and `Serialize` show nothing of it.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct OpaqueJson(serde_json::Value);

impl OpaqueJson {
    /// Wraps `value`.
    #[must_use]
    pub fn new(value: serde_json::Value) -> Self {
        Self(value)
    }

    /// The value itself.
    #[must_use]
    pub fn expose(&self) -> &serde_json::Value {
        &self.0
    }
}

impl fmt::Debug for OpaqueJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for OpaqueJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

/// A reference to one key of one secret in a secret store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct SecretRef {
    /// Name of the secret.
    pub name: String,
    /// Key inside it; the name where the document gives none.
    pub key: String,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum ValueSource {
    /// Written in the document.
    #[serde(rename = "value")]
    Plain(Sensitive),
    /// A secret store has it.
    #[serde(rename = "secretKeyRef")]
    Secret(SecretRef),
    /// An environment variable has it.
    #[serde(rename = "envRef")]
    Env(String),
}

/// A named value: a metadata item of a component, a header of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct NameValue {
    /// Key as it is spelled in the document.
    pub name: String,
    /// Where its value comes from.
    #[serde(flatten)]
    pub value: ValueSource,
}

/// What every document has beside its spec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Meta {
    /// Name; a valid path segment.
    pub name: String,
    /// Namespace, empty when none is given.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// App ids it is for; empty means all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
}

impl Meta {
    /// Whether the document is for `app_id`: its scopes are empty or name the app, and its
    /// namespace is empty or `namespace`. `None` compares no namespace, as daprd does for
    /// documents on disk where `NAMESPACE` is not set.
    #[must_use]
    pub fn applies_to(&self, app_id: &str, namespace: Option<&str>) -> bool {
        let in_scope = self.scopes.is_empty() || self.scopes.iter().any(|s| s == app_id);
        let in_namespace = namespace.is_none_or(|ns| self.namespace.is_empty() || self.namespace == ns);
        in_scope && in_namespace
    }
}

/// Hash of everything in a document that matters. Two documents with one hash need no reload.
///
/// It covers literal values, so it can confirm a guess at a weak secret: keep it inside the process.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpecHash([u8; 32]);

impl fmt::Debug for SpecHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SpecHash(..)")
    }
}

/// Feeds SHA-256 through the standard hashing of a type.
#[derive(Default)]
struct ShaHasher(Sha256);

impl std::hash::Hasher for ShaHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        // Only asked for by maps, which this hasher is never given to.
        0
    }
}

/// A document of one of the known kinds.
pub trait Resource: std::hash::Hash {
    /// Its kind, as documents spell it.
    const KIND: &'static str;

    /// Name, namespace and scopes.
    fn meta(&self) -> &Meta;

    /// Its name.
    fn name(&self) -> &str {
        &self.meta().name
    }

    /// See [`Meta::applies_to`].
    fn applies_to(&self, app_id: &str, namespace: Option<&str>) -> bool {
        self.meta().applies_to(app_id, namespace)
    }

    /// Hash of its content, the same for the same content within one process.
    fn spec_hash(&self) -> SpecHash {
        let mut hasher = ShaHasher::default();
        self.hash(&mut hasher);
        SpecHash(hasher.0.finalize().into())
    }
}

pub(crate) fn duration_text<S: Serializer>(d: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&crate::text::format_duration(*d))
}

pub(crate) fn optional_duration_text<S: Serializer>(d: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
    match d {
        Some(d) => duration_text(d, s),
        None => s.serialize_none(),
    }
}

pub(crate) fn duration_texts<S: Serializer>(
    map: &std::collections::BTreeMap<String, Duration>,
    s: S,
) -> Result<S::Ok, S::Error> {
    s.collect_map(map.iter().map(|(k, d)| (k, crate::text::format_duration(*d))))
}
