//! The secrets API and its scopes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use mecha_components_api::{Error, ErrorKind, Metadata, SecretMap};

use crate::codes::Code;
use crate::cx::Cx;
use crate::error::ApiError;
use crate::ops::Operation;
use crate::store::{Found, SecretHandle, Store, degraded_error};

/// Which secrets of one store this app may read (`secrets.scopes` of the Configuration).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretScope {
    /// `defaultAccess: deny`.
    pub deny_by_default: bool,
    /// When not empty, it alone decides.
    pub allowed: BTreeSet<String>,
    /// Denied names.
    pub denied: BTreeSet<String>,
}

impl SecretScope {
    /// Whether `name` may be read.
    #[must_use]
    pub fn allows(&self, name: &str) -> bool {
        if !self.allowed.is_empty() {
            return self.allowed.contains(name);
        }
        if self.denied.contains(name) {
            return false;
        }
        !self.deny_by_default
    }
}

/// Scopes by store name; a store without one is open.
pub type SecretScopes = HashMap<String, SecretScope>;

/// The secrets API.
#[derive(Debug)]
pub struct SecretsApi {
    store: Arc<Store>,
    scopes: ArcSwap<SecretScopes>,
}

impl SecretsApi {
    /// The API over the live snapshot, without scopes.
    #[must_use]
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, scopes: ArcSwap::default() }
    }

    /// Replaces the scopes.
    pub fn set_scopes(&self, scopes: SecretScopes) {
        self.scopes.store(Arc::new(scopes));
    }

    /// Whether this app may read `name` of `store`.
    #[must_use]
    pub fn allows(&self, store: &str, name: &str) -> bool {
        self.scopes.load().get(store).is_none_or(|s| s.allows(name))
    }

    fn handle(&self, store: &str) -> Result<Arc<SecretHandle>, ApiError> {
        match self.store.secrets(store) {
            Found::Running(handle) => Ok(handle),
            Found::Degraded(cause) => {
                let e = degraded_error(store, &cause);
                Err(ApiError::component(Code::SecretGet, &e, e.to_string()))
            }
            Found::Unknown => Err(ApiError::new(
                Code::SecretStoreNotFound,
                ErrorKind::InvalidArgument,
                format!("failed finding secret store with key {store}"),
            )),
            Found::NoneConfigured => Err(ApiError::new(
                Code::SecretStoresNotConfigured,
                ErrorKind::FailedPrecondition,
                "secret store is not configured",
            )),
        }
    }

    /// One secret.
    ///
    /// # Errors
    /// Unknown store, a scope that forbids it, or the store's failure.
    pub async fn get(&self, cx: &Cx, store: &str, key: &str, metadata: &Metadata) -> Result<SecretMap, ApiError> {
        let h = self.handle(store)?;
        if !self.allows(store, key) {
            return Err(ApiError::new(
                Code::PermissionDenied,
                ErrorKind::PermissionDenied,
                format!("access denied by policy to get \"{key}\" from \"{store}\""),
            ));
        }
        h.ops
            .run(cx, Operation::Get, true, || h.inner.get(key, metadata))
            .await
            .map_err(|e| failed(&e, format!("failed getting secret with key {key} from secret store {store}: {e}")))
    }

    /// All secrets that this app may read.
    ///
    /// # Errors
    /// Unknown store, or the store's failure.
    pub async fn list(
        &self,
        cx: &Cx,
        store: &str,
        metadata: &Metadata,
    ) -> Result<BTreeMap<String, SecretMap>, ApiError> {
        let h = self.handle(store)?;
        let mut all = h
            .ops
            .run(cx, Operation::BulkGet, true, || h.inner.list(metadata))
            .await
            .map_err(|e| failed(&e, format!("failed getting secrets from secret store {store}: {e}")))?;
        all.retain(|name, _| self.allows(store, name));
        Ok(all)
    }
}

/// A missing secret is a plain failure on the wire (500), as clients of the incumbent expect.
fn failed(e: &Error, message: String) -> ApiError {
    let kind = if e.kind() == ErrorKind::NotFound { ErrorKind::Internal } else { e.kind() };
    ApiError::new(Code::SecretGet, kind, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn the_allow_list_decides_alone() {
        let s = SecretScope { deny_by_default: false, allowed: set(&["a"]), denied: set(&["a"]) };
        assert!(s.allows("a") && !s.allows("b"));
    }

    #[test]
    fn then_the_deny_list_then_the_default() {
        let open = SecretScope { denied: set(&["x"]), ..SecretScope::default() };
        assert!(!open.allows("x") && open.allows("y"));
        let closed = SecretScope { deny_by_default: true, ..SecretScope::default() };
        assert!(!closed.allows("y"));
    }
}
