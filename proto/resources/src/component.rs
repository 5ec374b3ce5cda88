use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::decode::Obj;
use crate::text::parse_duration;
use crate::value::{Meta, NameValue, Resource, ValueSource};

/// Time a component has for its initialisation where the document names none.
pub const DEFAULT_INIT_TIMEOUT: Duration = Duration::from_secs(5);

/// A Component document (`dapr.io/v1alpha1`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Component {
    /// Name, namespace, scopes.
    #[serde(flatten)]
    pub meta: Meta,
    /// Type, such as `state.redis`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Version as written; empty means `v1`.
    pub version: String,
    /// Metadata items in the order of the document. Keys match in any case.
    pub metadata: Vec<NameValue>,
    /// Go on without the component when it fails.
    pub ignore_errors: bool,
    /// Time for its initialisation.
    #[serde(serialize_with = "crate::value::duration_text")]
    pub init_timeout: Duration,
    /// Secret store for its references (`auth.secretStore`), empty when none is named.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub secret_store: String,
}

impl Resource for Component {
    const KIND: &'static str = "Component";

    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl Component {
    pub(crate) fn decode(root: &Obj<'_>, meta: Meta) -> Self {
        let secret_store = root.object("auth").map(|a| a.text_or_empty("secretStore")).unwrap_or_default();
        let mut component = Self {
            meta,
            kind: String::new(),
            version: String::new(),
            metadata: Vec::new(),
            ignore_errors: false,
            init_timeout: DEFAULT_INIT_TIMEOUT,
            secret_store,
        };
        let Some(spec) = root.required_object("spec") else { return component };
        component.kind = spec.required("type");
        component.version = spec.text_or_empty("version");
        component.ignore_errors = spec.flag("ignoreErrors").unwrap_or_default();
        // daprd takes its default for text that is no duration, so this stays a warning.
        if let Some(text) = spec.text("initTimeout").filter(|t| !t.is_empty()) {
            match parse_duration(&text, Duration::from_secs(1)) {
                Some(d) if !d.is_zero() => component.init_timeout = d,
                _ => spec.warn("initTimeout", "is not a duration such as 5s; 5s is used", None),
            }
        }
        component.metadata = spec.name_values("metadata");
        component
    }

    /// `name (type/version)`, as log lines name a component; without a version `name (type)`.
    #[must_use]
    pub fn log_name(&self) -> String {
        if self.version.is_empty() {
            format!("{} ({})", self.meta.name, self.kind)
        } else {
            format!("{} ({}/{})", self.meta.name, self.kind, self.version)
        }
    }

    /// The secrets that its metadata refers to, as store, secret name and key. `default_store`
    /// stands for an `auth.secretStore` that is not given (`kubernetes` there, else empty).
    pub fn secret_refs<'c>(&'c self, default_store: &'c str) -> impl Iterator<Item = SecretQuery<'c>> {
        let store = if self.secret_store.is_empty() { default_store } else { &self.secret_store };
        self.metadata.iter().filter_map(move |item| match &item.value {
            ValueSource::Secret(r) => Some(SecretQuery { store, name: &r.name, key: &r.key }),
            _ => None,
        })
    }

    /// Store that has to be loaded before this component, if it refers to one.
    #[must_use]
    pub fn waits_for<'c>(&'c self, default_store: &'c str) -> Option<&'c str> {
        self.secret_refs(default_store).next().map(|q| q.store).filter(|s| !s.is_empty())
    }
}

/// One key of one secret of one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretQuery<'a> {
    /// Name of the secret store component.
    pub store: &'a str,
    /// Name of the secret.
    pub name: &'a str,
    /// Key inside it.
    pub key: &'a str,
}

/// Component names that occur more than once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DuplicateComponents {
    /// Each repeated component with the first one of its name, by their log names.
    pub pairs: Vec<(String, String)>,
}

impl fmt::Display for DuplicateComponents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failed to load components: ")?;
        for (i, (name, existing)) in self.pairs.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "duplicate definition of Component name {name} with existing {existing}")?;
        }
        Ok(())
    }
}

impl std::error::Error for DuplicateComponents {}

/// Checks that no two of `components` have one name. Give it those that apply to the app.
///
/// # Errors
/// All repeated names together.
pub fn unique_names<'c>(components: impl IntoIterator<Item = &'c Component>) -> Result<(), DuplicateComponents> {
    let mut first = std::collections::HashMap::new();
    let mut pairs = Vec::new();
    for component in components {
        match first.entry(component.meta.name.as_str()) {
            std::collections::hash_map::Entry::Vacant(slot) => {
                slot.insert(component);
            }
            std::collections::hash_map::Entry::Occupied(slot) => {
                pairs.push((component.log_name(), slot.get().log_name()));
            }
        }
    }
    if pairs.is_empty() { Ok(()) } else { Err(DuplicateComponents { pairs }) }
}
