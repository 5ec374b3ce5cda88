//! From a backend and a claim to the Component document that sidecars receive.

use std::fmt;

use mecha_resources::kinds::{CapabilityBackend, CapabilityClaim, ComponentTemplate, Span};
use serde::Serialize;
use serde_json::Value;

use crate::canonical::{Digest, digest_of};
use crate::class::environment_slug;

/// Whom a document is for.
#[derive(Clone, Copy, Debug)]
pub struct Tenant<'t> {
    /// The environment, as namespace/name.
    pub environment: &'t str,
    /// Its namespace in the member.
    pub namespace: &'t str,
    /// The member.
    pub cluster: &'t str,
}

/// Why a document cannot be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderError {
    /// The metadata item with the template.
    pub item: String,
    /// What is wrong with it.
    pub message: String,
}

impl fmt::Display for RenderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "component.metadata {}: {}", self.item, self.message)
    }
}

impl std::error::Error for RenderError {}

/// Longest readable part of a slug. With its hash it fits the 63 bytes of an SQL identifier beside a suffix.
const MAX_SLUG: usize = 40;

/// A word that belongs to one claim of one environment and to no other: both names, and a hash that tells
/// apart what the words alone would mix up (`a-b` and `a_b`, or two teams' environments of one name).
#[must_use]
pub fn claim_slug(environment: &str, claim: &str) -> String {
    let name = environment.rsplit('/').next().unwrap_or(environment);
    let word = format!("{}_{}", environment_slug(name), environment_slug(claim));
    let word = word.get(..MAX_SLUG).unwrap_or(&word).trim_end_matches('_');
    format!("{word}_{}", digest_of(&(environment, claim)).short(8))
}

/// The Secret with a claim's credentials at a revision of its binding.
#[must_use]
pub fn secret_name(claim: &str, revision: i64) -> String {
    format!("mecha-{claim}-r{revision}")
}

/// Longest name of a claim with credentials: the name of its Secret has room for every revision in the 253 bytes that
/// Kubernetes allows.
const MAX_CLAIM: usize = 225;

/// A Component document. Its JSON is exactly what sidecars in scope receive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Component {
    api_version: &'static str,
    kind: &'static str,
    /// Name, namespace and where it comes from.
    pub metadata: Metadata,
    /// What sidecars open.
    pub spec: Spec,
    /// Who has its secrets; only where it refers to some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    /// App ids that get it; all when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
}

/// Metadata of a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Metadata {
    /// The claim's name.
    pub name: String,
    /// The environment's namespace.
    pub namespace: String,
    /// Where it comes from.
    pub annotations: Annotations,
}

/// Where a document comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Annotations {
    /// Revision of the binding in which it last changed.
    #[serde(rename = "mecha.dev/revision")]
    pub revision: String,
    /// The backend.
    #[serde(rename = "mecha.dev/backend")]
    pub backend: String,
}

/// Spec of a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// Type, such as state.postgresql.
    #[serde(rename = "type")]
    pub kind: String,
    /// Version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Time for its initialisation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_timeout: Option<Span>,
    /// Metadata items.
    pub metadata: Vec<Item>,
}

/// A metadata item of a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Item {
    /// Its key.
    pub name: String,
    /// Its text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The Secret with its text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<SecretKey>,
}

/// A key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SecretKey {
    /// The Secret.
    pub name: String,
    /// The key.
    pub key: String,
}

/// Who has the secrets of a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Auth {
    /// The secret store.
    pub secret_store: String,
}

impl Component {
    /// The document as text.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Text keys and text values only: this cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Digest of what was decided, the same at every revision.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut timeless = self.clone();
        timeless.metadata.annotations.revision.clear();
        for item in &mut timeless.spec.metadata {
            if let Some(secret) = &mut item.secret_key_ref {
                secret.name.clear();
            }
        }
        digest_of(&timeless)
    }
}

/// [`Component::digest`] of a document as text, so that what is kept digests as what is made anew.
#[must_use]
pub fn document_digest(document: &str) -> Digest {
    let Ok(mut timeless) = serde_json::from_str::<Value>(document) else { return digest_of(&document) };
    let clear = |text: Option<&mut Value>| {
        if let Some(text @ Value::String(_)) = text {
            *text = Value::String(String::new());
        }
    };
    clear(timeless.pointer_mut("/metadata/annotations/mecha.dev~1revision"));
    let items = timeless.pointer_mut("/spec/metadata").and_then(Value::as_array_mut);
    for item in items.into_iter().flatten() {
        clear(item.pointer_mut("/secretKeyRef/name"));
    }
    digest_of(&timeless)
}

/// The document for `claim` at `backend`, as of `revision`.
///
/// # Errors
/// A template names what is not known.
pub fn render(
    claim: &CapabilityClaim,
    backend: &CapabilityBackend,
    tenant: Tenant<'_>,
    revision: i64,
) -> Result<Component, RenderError> {
    let template: &ComponentTemplate = &backend.spec.component;
    let mut metadata = Vec::with_capacity(template.metadata.len());
    for item in &template.metadata {
        let value = match &item.value {
            Some(text) => {
                Some(fill(text, claim, tenant).map_err(|message| RenderError { item: item.name.clone(), message })?)
            }
            None => None,
        };
        if item.value_from.is_some() && claim.name().len() > MAX_CLAIM {
            let message = format!(
                "it comes from a Secret, and the claim's name is too long for the name of one; use at most {MAX_CLAIM} \
                 characters"
            );
            return Err(RenderError { item: item.name.clone(), message });
        }
        let secret_key_ref = item
            .value_from
            .as_ref()
            .map(|from| SecretKey { name: secret_name(claim.name(), revision), key: from.key.clone() });
        metadata.push(Item { name: item.name.clone(), value, secret_key_ref });
    }
    let secrets = metadata.iter().any(|item| item.secret_key_ref.is_some());
    Ok(Component {
        api_version: "dapr.io/v1alpha1",
        kind: "Component",
        metadata: Metadata {
            name: claim.name().to_owned(),
            namespace: tenant.namespace.to_owned(),
            annotations: Annotations { revision: revision.to_string(), backend: backend.name().to_owned() },
        },
        spec: Spec {
            kind: template.kind.clone(),
            version: template.version.clone(),
            init_timeout: template.init_timeout,
            metadata,
        },
        auth: secrets.then(|| Auth { secret_store: "kubernetes".to_owned() }),
        scopes: claim.spec.scopes.clone(),
    })
}

const KNOWN: &[&str] = &["claim.slug", "claim.name", "environment", "environment.slug", "cluster", "appId"];

/// Replaces `{{ NAME }}` in `text`.
fn fill(text: &str, claim: &CapabilityClaim, tenant: Tenant<'_>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find("{{") {
        out.push_str(&rest[..begin]);
        let tail = &rest[begin + 2..];
        let end = tail.find("}}").ok_or("a template begins with {{ and does not end with }}")?;
        let name = tail[..end].trim();
        match name {
            "claim.slug" => out.push_str(&claim_slug(tenant.environment, claim.name())),
            "claim.name" => out.push_str(claim.name()),
            // The namespace, not the name: two teams may have environments of one name.
            "environment" => out.push_str(tenant.namespace),
            "environment.slug" => out.push_str(&environment_slug(tenant.namespace)),
            "cluster" => out.push_str(tenant.cluster),
            // One document serves all apps in scope; the sidecar puts its own in.
            "appId" => match claim.spec.scopes.as_slice() {
                [app] => out.push_str(app),
                _ => out.push_str("{appID}"),
            },
            _ => return Err(format!("the template {{{{ {name} }}}} is none of {}", KNOWN.join(", "))),
        }
        rest = &tail[end + 2..];
    }
    out.push_str(rest);
    Ok(out)
}
