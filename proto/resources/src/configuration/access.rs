//! Who may use what: secret scopes, API lists, access control.

use serde::Serialize;

/// What is not listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultAccess {
    /// Is allowed.
    #[default]
    Allow,
    /// Is denied.
    Deny,
}

/// One entry of `spec.secrets.scopes`
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretsScope {
    /// Secret store that it is for.
    pub store_name: String,
    /// For secrets that are in neither list.
    pub default_access: DefaultAccess,
    /// When not empty, only these are allowed.
    pub allowed_secrets: Vec<String>,
    /// Never allowed, unless the list above is not empty.
    pub denied_secrets: Vec<String>,
}

impl SecretsScope {
    /// Whether the app may read `secret`.
    #[must_use]
    pub fn allows(&self, secret: &str) -> bool {
        if !self.allowed_secrets.is_empty() {
            return self.allowed_secrets.iter().any(|s| s == secret);
        }
        !self.denied_secrets.iter().any(|s| s == secret) && self.default_access == DefaultAccess::Allow
    }
}

/// `spec.api`
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Api {
    /// When not empty, only these APIs are open.
    pub allowed: Vec<ApiRule>,
    /// These are closed; looked at first.
    pub denied: Vec<ApiRule>,
}

/// An API by name, version and protocol. A rule with an empty or unknown part matches nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ApiRule {
    /// Name, such as `state`.
    pub name: String,
    /// Version, such as `v1`.
    pub version: String,
    /// `http` or `grpc`.
    pub protocol: String,
}

/// `spec.accessControl`
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessControl {
    /// For callers and operations that no policy names; `None` when not given.
    pub default_action: Option<DefaultAccess>,
    /// Trust domain of the app.
    pub trust_domain: String,
    /// One per caller.
    pub policies: Vec<AccessPolicy>,
}

impl AccessControl {
    /// The default action, which is deny where there are policies and no default.
    #[must_use]
    pub fn effective_default(&self) -> DefaultAccess {
        let implied = if self.policies.is_empty() { DefaultAccess::Allow } else { DefaultAccess::Deny };
        self.default_action.unwrap_or(implied)
    }
}

/// What one caller may do.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessPolicy {
    /// App id of the caller.
    pub app_id: String,
    /// Namespace of the caller.
    pub namespace: String,
    /// Trust domain of the caller.
    pub trust_domain: String,
    /// For operations that are not listed; `None` when not given.
    pub default_action: Option<DefaultAccess>,
    /// Operations.
    pub operations: Vec<AccessOperation>,
}

/// One operation of the app.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessOperation {
    /// Path or gRPC method; may end in `*`.
    pub name: String,
    /// HTTP methods, `*` for all; empty for gRPC.
    pub http_verb: Vec<String>,
    /// What happens to it.
    pub action: DefaultAccess,
}
