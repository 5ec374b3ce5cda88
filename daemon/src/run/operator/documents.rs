//! Custom resources as the operator sends them, and the documents they are.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use mecha_resources::{Configuration, Loaded, Located, Refused, Resource, Severity};
use serde_json::{Map, Value};

use super::super::source::DocumentSet;

/// Documents of one kind kept; a control plane that sends more has lost its way.
const MAX_DOCUMENTS: usize = 10_000;
/// The store whose secrets the operator fills in.
const OPERATOR_SECRETS: &str = "kubernetes";

/// Kinds that the operator sends and this daemon uses.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(in crate::run) enum Kind {
    Component,
    Subscription,
    HttpEndpoint,
    Resiliency,
    Configuration,
}

impl Kind {
    pub(in crate::run) const fn name(self) -> &'static str {
        match self {
            Self::Component => "Component",
            Self::Subscription => "Subscription",
            Self::HttpEndpoint => "HTTPEndpoint",
            Self::Resiliency => "Resiliency",
            Self::Configuration => "Configuration",
        }
    }

    const fn api_version(self) -> &'static str {
        match self {
            Self::Subscription => "dapr.io/v2alpha1",
            _ => "dapr.io/v1alpha1",
        }
    }
}

/// A resource that could be read as far as its name.
#[derive(Clone, PartialEq)]
pub(in crate::run) struct Item {
    pub(in crate::run) name: String,
    /// With secrets filled in.
    pub(in crate::run) value: Value,
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Item").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What the operator has said last.
#[derive(Debug, Default)]
pub(in crate::run) struct Mirror {
    items: BTreeMap<(Kind, String), Item>,
}

impl Item {
    /// Reads a resource; `None` where it belongs to another namespace.
    pub(in crate::run) fn read(kind: Kind, json: &Bytes, namespace: &str) -> Result<Option<Self>, String> {
        let mut value: Value = serde_json::from_slice(json).map_err(|e| format!("it is no JSON: {e}"))?;
        let object = value.as_object_mut().ok_or("it is no JSON object")?;
        let meta = object.get("metadata");
        let text = |key: &str| meta.and_then(|m| m.get(key)).and_then(Value::as_str).unwrap_or_default();
        let (name, own) = (text("name").to_owned(), text("namespace").to_owned());
        if name.is_empty() {
            return Err("it has no name".to_owned());
        }
        if !own.is_empty() && own != namespace {
            return Ok(None);
        }
        // The types of a Kubernetes client often leave out what they are.
        for (key, wanted) in [("kind", kind.name()), ("apiVersion", kind.api_version())] {
            if object.get(key).and_then(Value::as_str).is_none_or(str::is_empty) {
                object.insert(key.to_owned(), wanted.into());
            }
        }
        let store = object.get("auth").and_then(|a| a.get("secretStore")).and_then(Value::as_str).unwrap_or_default();
        let filled = store.is_empty() || store == OPERATOR_SECRETS;
        if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
            for list in ["metadata", "headers"] {
                for entry in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                    settle_secret(entry, filled).map_err(|e| format!("{name}: {e}"))?;
                }
            }
            for (_, entry) in spec.get_mut("clientTLS").and_then(Value::as_object_mut).into_iter().flatten() {
                settle_secret(entry, filled).map_err(|e| format!("{name}: {e}"))?;
            }
        }
        Ok(Some(Self { name, value }))
    }
}

/// A value that refers to a secret comes with what the operator found there, in base64.
fn settle_secret(entry: &mut Value, filled: bool) -> Result<(), String> {
    let Some(entry) = entry.as_object_mut() else { return Ok(()) };
    let Some(reference) = entry.get("secretKeyRef") else { return Ok(()) };
    let named = reference.get("name").and_then(Value::as_str).is_some_and(|n| !n.is_empty());
    if !named {
        // Written out by serializers that know no absent members.
        entry.remove("secretKeyRef");
        return Ok(());
    }
    let field = entry.get("name").and_then(Value::as_str).unwrap_or("value").to_owned();
    match entry.get("value").and_then(Value::as_str) {
        Some(text) if filled && !text.is_empty() => {
            let bytes = STANDARD.decode(text).map_err(|_| format!("the secret of '{field}' is not base64"))?;
            let text = String::from_utf8(bytes).map_err(|_| format!("the secret of '{field}' is not UTF-8"))?;
            entry.insert("value".to_owned(), text.into());
            entry.remove("secretKeyRef");
        }
        _ => drop(entry.remove("value")),
    }
    Ok(())
}

impl Mirror {
    /// Replaces everything of `kind`; whether that changed anything.
    pub(super) fn replace(&mut self, kind: Kind, items: Vec<Item>) -> bool {
        let before: Map<String, Value> = self.of(kind).map(|i| (i.name.clone(), i.value.clone())).collect();
        let after: Map<String, Value> = items.into_iter().take(MAX_DOCUMENTS).map(|i| (i.name, i.value)).collect();
        if before == after {
            return false;
        }
        self.items.retain(|(k, _), _| *k != kind);
        self.items.extend(after.into_iter().map(|(name, value)| ((kind, name.clone()), Item { name, value })));
        true
    }

    /// Sets one; whether that changed anything.
    pub(in crate::run) fn set(&mut self, kind: Kind, item: Item) -> bool {
        let key = (kind, item.name.clone());
        if self.items.get(&key) == Some(&item)
            || (self.items.len() >= 5 * MAX_DOCUMENTS && !self.items.contains_key(&key))
        {
            return false;
        }
        self.items.insert(key, item);
        true
    }

    /// Removes one; whether it was there.
    pub(super) fn remove(&mut self, kind: Kind, name: &str) -> bool {
        self.items.remove(&(kind, name.to_owned())).is_some()
    }

    fn of(&self, kind: Kind) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(move |((k, _), _)| *k == kind).map(|(_, item)| item)
    }

    /// Everything as documents. `configurations` are merged in their order.
    pub(in crate::run) fn read(&self, configurations: &[String]) -> DocumentSet {
        let mut loaded = Loaded::default();
        for ((kind, name), item) in &self.items {
            loaded.read_json(&format!("operator: {}/{name}", kind.name()), &item.value);
        }
        let (mut configuration, mut faults) = (Configuration::default(), Vec::new());
        for name in configurations {
            if let Some(found) = loaded.configurations.iter().find(|c| c.value.meta.name == *name) {
                configuration.merge(found.value.clone());
            }
            // Without it the defaults would be in force, which let in who is kept out.
            let is_it = |r: &&Located<Refused>| r.value.kind == Configuration::KIND && r.value.meta.name == *name;
            if let Some(refused) = loaded.refused.iter().find(is_it) {
                let mistakes = loaded.diagnostics.iter().filter(|d| d.file == refused.origin.file);
                faults.extend(mistakes.filter(|d| d.severity == Severity::Error).map(ToString::to_string));
            }
        }
        let configuration_fault = (!faults.is_empty()).then(|| faults.join("; "));
        DocumentSet { configuration, configuration_fault, loaded, ..DocumentSet::default() }
    }
}
