//! From the metadata of a component to plain key-value pairs.

use std::fmt;

use crate::component::{Component, SecretQuery};
use crate::value::ValueSource;

/// What the values of a component's metadata may draw on.
pub struct ResolveCx<'a> {
    /// Id of the app.
    pub app_id: &'a str,
    /// Namespace of the app.
    pub namespace: &'a str,
    /// Value of `POD_NAME`, if set.
    pub pod_name: Option<&'a str>,
    /// Value of `DAPR_ENV_KEYS`: names that `envRef` may use, separated by spaces.
    pub env_keys: Option<&'a str>,
    /// Store for references where the document names none: `kubernetes` there, else empty.
    pub default_store: &'a str,
    /// The environment.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// Secrets that were fetched before.
    pub secrets: &'a dyn Fn(SecretQuery<'_>) -> Option<String>,
}

/// A value that stays empty, with the reason. Holds names only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResolveNote {
    /// The secret, or the key in it, does not exist.
    NoSecret {
        /// Metadata key.
        item: String,
        /// Secret store.
        store: String,
        /// Secret.
        name: String,
        /// Key in the secret.
        key: String,
    },
    /// `envRef` names a variable that components may not read.
    EnvForbidden {
        /// Metadata key.
        item: String,
        /// Variable.
        variable: String,
    },
}

impl fmt::Display for ResolveNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSecret { item, store, name, key } => {
                write!(f, "metadata '{item}': secret store '{store}' has no key '{key}' in secret '{name}'")
            }
            Self::EnvForbidden { item, variable } => {
                write!(f, "metadata '{item}': components may not read the environment variable '{variable}'")
            }
        }
    }
}

/// The metadata of a component, ready for its decoder.
#[derive(Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Keys as they are spelled, in the order of the document.
    pub values: Vec<(String, String)>,
    /// Values that stay empty although the document refers to something.
    pub notes: Vec<ResolveNote>,
}

/// Values may be secrets, so only the keys are shown.
impl fmt::Debug for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<_> = self.values.iter().map(|(k, _)| k).collect();
        f.debug_struct("Resolved").field("keys", &keys).field("notes", &self.notes).finish()
    }
}

/// Why metadata cannot be resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolveError {
    /// Metadata key.
    pub item: String,
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "metadata '{}' uses {{podName}}, but POD_NAME is not set", self.item)
    }
}

impl std::error::Error for ResolveError {}

/// Resolves references and templates of `component`.
///
/// # Errors
/// A `{podName}` where there is no pod name.
pub fn resolve(component: &Component, cx: &ResolveCx<'_>) -> Result<Resolved, ResolveError> {
    let store = if component.secret_store.is_empty() { cx.default_store } else { &component.secret_store };
    let mut resolved = Resolved { values: Vec::with_capacity(component.metadata.len()), notes: Vec::new() };
    for item in &component.metadata {
        let value = match &item.value {
            ValueSource::Plain(text) => text.expose().to_owned(),
            ValueSource::Secret(r) => {
                let found = (cx.secrets)(SecretQuery { store, name: &r.name, key: &r.key });
                found.unwrap_or_else(|| {
                    resolved.notes.push(ResolveNote::NoSecret {
                        item: item.name.clone(),
                        store: store.to_owned(),
                        name: r.name.clone(),
                        key: r.key.clone(),
                    });
                    String::new()
                })
            }
            ValueSource::Env(variable) if env_ref_allowed(variable, cx.env_keys) => {
                (cx.env)(variable).unwrap_or_default()
            }
            ValueSource::Env(variable) => {
                let note = ResolveNote::EnvForbidden { item: item.name.clone(), variable: variable.clone() };
                resolved.notes.push(note);
                String::new()
            }
        };
        let value = fill_templates(value, cx).map_err(|NoPodName| ResolveError { item: item.name.clone() })?;
        resolved.values.push((item.name.clone(), value));
    }
    Ok(resolved)
}

/// Whether an `envRef` may read `variable`: neither the API tokens nor anything else of the
/// runtime, and only listed names where there is a list.
#[must_use]
pub fn env_ref_allowed(variable: &str, env_keys: Option<&str>) -> bool {
    let name = variable.to_ascii_uppercase();
    if name.is_empty() || name.contains(' ') || name == "APP_API_TOKEN" || name.starts_with("DAPR_") {
        return false;
    }
    match env_keys {
        None | Some("") => true,
        Some(list) => list.split(' ').any(|k| k.eq_ignore_ascii_case(&name)),
    }
}

struct NoPodName;

/// Replaces `{uuid}` (a new one each time), `{podName}`, `{namespace}` and `{appID}`, in that order.
fn fill_templates(mut value: String, cx: &ResolveCx<'_>) -> Result<String, NoPodName> {
    if !value.contains('{') {
        return Ok(value);
    }
    if value.contains("{uuid}") {
        let mut parts = value.split("{uuid}");
        let mut filled = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            filled.push_str(&uuid::Uuid::new_v4().to_string());
            filled.push_str(part);
        }
        value = filled;
    }
    if value.contains("{podName}") {
        let pod = cx.pod_name.filter(|p| !p.is_empty()).ok_or(NoPodName)?;
        value = value.replace("{podName}", pod);
    }
    let namespaced = format!("{}.{}", cx.namespace, cx.app_id);
    Ok(value.replace("{namespace}", &namespaced).replace("{appID}", cx.app_id))
}
