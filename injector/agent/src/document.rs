//! Documents before the values of their secrets are filled in.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mecha_resources::kinds::{SwapPhase, SwapRecord};
use serde_json::Value;

/// Most secrets that one document may name; more is a mistake.
const MAX_SECRETS: usize = 256;
/// The store whose secrets the agent fills in; also when a document names none.
const OUR_STORE: &str = "kubernetes";

/// What sidecars are told about.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Kind {
    Component,
    Subscription,
    Configuration,
    Resiliency,
    HttpEndpoint,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Component => "Component",
            Self::Subscription => "Subscription",
            Self::Configuration => "Configuration",
            Self::Resiliency => "Resiliency",
            Self::HttpEndpoint => "HTTPEndpoint",
        }
    }

    pub(crate) const fn plural(self) -> &'static str {
        match self {
            Self::Component => "components",
            Self::Subscription => "subscriptions",
            Self::Configuration => "configurations",
            Self::Resiliency => "resiliencies",
            Self::HttpEndpoint => "httpendpoints",
        }
    }

    /// The version that sidecars read.
    pub(crate) const fn version(self) -> &'static str {
        match self {
            Self::Subscription => "v2alpha1",
            _ => "v1alpha1",
        }
    }

    pub(crate) const fn api_version(self) -> &'static str {
        match self {
            Self::Subscription => "dapr.io/v2alpha1",
            _ => "dapr.io/v1alpha1",
        }
    }
}

/// A secret that a document names.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct SecretKey {
    pub(crate) name: String,
    pub(crate) key: String,
}

/// Which entry of a binding a document comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Origin {
    /// Name of the binding.
    pub(crate) binding: String,
    pub(crate) claim: String,
    /// Revision of the entry.
    pub(crate) revision: i64,
}

/// One side of a document: its text, and the secrets it names.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Body {
    value: Value,
    secrets: BTreeSet<SecretKey>,
}

/// A document for the sidecars in its scopes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Document {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    /// App ids that get it; all of the namespace when empty.
    pub(crate) scopes: Vec<String>,
    pub(crate) body: Body,
    /// Where it comes from, unless somebody wrote it by hand.
    pub(crate) origin: Option<Origin>,
    /// Set while its claim moves, with the document of the old side.
    pub(crate) moving: Option<(SwapRecord, Body)>,
}

impl Body {
    pub(crate) fn new(kind: Kind, value: Value) -> Result<Self, String> {
        let mut secrets = BTreeSet::new();
        each_reference(kind, &value, |secret| {
            secrets.insert(secret);
        });
        if secrets.len() > MAX_SECRETS {
            return Err(format!("it names more than {MAX_SECRETS} secrets"));
        }
        Ok(Self { value, secrets })
    }

    /// Names of the Secrets with what it needs.
    pub(crate) fn secret_names(&self) -> impl Iterator<Item = &str> {
        self.secrets.iter().map(|s| s.name.as_str())
    }

    /// The text for sidecars. `secret` gives the value of a key; what it refuses stays without value, and the
    /// reasons are given back.
    pub(crate) fn fill(
        &self,
        kind: Kind,
        mut secret: impl FnMut(&SecretKey) -> Result<Vec<u8>, String>,
    ) -> (String, Vec<String>) {
        let mut value = self.value.clone();
        let mut missing = Vec::new();
        each_holder(kind, &mut value, &mut |holder| {
            let Some(key) = reference(holder) else { return };
            match secret(&key) {
                Ok(bytes) => holder["value"] = STANDARD.encode(bytes).into(),
                Err(why) => {
                    if let Some(holder) = holder.as_object_mut() {
                        holder.remove("value");
                    }
                    if !missing.contains(&why) {
                        missing.push(why);
                    }
                }
            }
        });
        (value.to_string(), missing)
    }
}

impl Document {
    /// Reads a document that somebody wrote by hand.
    pub(crate) fn written(kind: Kind, mut value: Value) -> Result<Self, String> {
        if kind == Kind::Subscription {
            upgrade_subscription(&mut value);
        }
        let (name, scopes) = (name_of(&value)?, scopes_of(&value)?);
        Ok(Self { kind, name, scopes, body: Body::new(kind, value)?, origin: None, moving: None })
    }

    /// Whether the sidecars of `app_id` get it.
    pub(crate) fn concerns(&self, app_id: &str) -> bool {
        self.scopes.is_empty() || self.scopes.iter().any(|scope| scope == app_id)
    }

    /// The one side that a sidecar gets which knows nothing of moves.
    pub(crate) fn owner(&self) -> &Body {
        match &self.moving {
            Some((record, old)) if owned_by_old(record.phase) => old,
            _ => &self.body,
        }
    }

    /// All its sides.
    pub(crate) fn bodies(&self) -> impl Iterator<Item = &Body> {
        std::iter::once(&self.body).chain(self.moving.as_ref().map(|(_, old)| old))
    }
}

/// Whether the old backend owns the claim; the phases say so.
const fn owned_by_old(phase: SwapPhase) -> bool {
    matches!(phase, SwapPhase::Prepare | SwapPhase::RollBack)
}

pub(crate) fn name_of(value: &Value) -> Result<String, String> {
    let name = value["metadata"]["name"].as_str().unwrap_or_default();
    if name.is_empty() { Err("it has no metadata.name".to_owned()) } else { Ok(name.to_owned()) }
}

/// Fails closed: a document whose scopes cannot be read goes to nobody rather than to all.
pub(crate) fn scopes_of(value: &Value) -> Result<Vec<String>, String> {
    let scopes = match &value["scopes"] {
        Value::Null => Some(Vec::new()),
        Value::Array(scopes) => scopes.iter().map(|s| s.as_str().map(str::to_owned)).collect(),
        _ => None,
    };
    scopes.ok_or_else(|| "its scopes are no list of app ids".to_owned())
}

/// Subscriptions of v1alpha1 have one route where those of v2alpha1 have rules.
fn upgrade_subscription(value: &mut Value) {
    let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if spec.contains_key("routes") {
        spec.remove("route");
    } else if let Some(route) = spec.remove("route") {
        spec.insert("routes".to_owned(), serde_json::json!({ "default": route }));
    }
}

/// Calls `visit` with everything in a document that may have a value or a reference to a secret of ours.
fn each_holder(kind: Kind, value: &mut Value, visit: &mut dyn FnMut(&mut Value)) {
    let store = value["auth"]["secretStore"].as_str().unwrap_or_default();
    if !store.is_empty() && store != OUR_STORE {
        return;
    }
    let list = match kind {
        Kind::Component => "metadata",
        Kind::HttpEndpoint => "headers",
        _ => return,
    };
    let Some(spec) = value.get_mut("spec") else { return };
    for item in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
        visit(item);
    }
    if kind == Kind::HttpEndpoint {
        for (_, item) in spec.get_mut("clientTLS").and_then(Value::as_object_mut).into_iter().flatten() {
            visit(item);
        }
    }
}

fn each_reference(kind: Kind, value: &Value, mut visit: impl FnMut(SecretKey)) {
    each_holder(kind, &mut value.clone(), &mut |holder| reference(holder).into_iter().for_each(&mut visit));
}

/// The secret that a holder refers to; without a key, the key of the Secret's own name.
fn reference(holder: &Value) -> Option<SecretKey> {
    let reference = holder.get("secretKeyRef")?;
    let text = |key: &str| reference.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let name = text("name")?;
    Some(SecretKey { name: name.to_owned(), key: text("key").unwrap_or(name).to_owned() })
}

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;
