//! The lock API.

use std::sync::Arc;
use std::time::Duration;

use mecha_components_api::{Error, ErrorKind, Unlocked};

use crate::codes::Code;
use crate::cx::Cx;
use crate::error::ApiError;
use crate::ops::Operation;
use crate::store::{Found, LockHandle, Store, degraded_error};

/// The lock API.
#[derive(Debug)]
pub struct LockApi {
    store: Arc<Store>,
}

impl LockApi {
    /// The API over the live snapshot.
    #[must_use]
    pub fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    fn handle(&self, store: &str, code: Code) -> Result<Arc<LockHandle>, ApiError> {
        match self.store.lock(store) {
            Found::Running(handle) => Ok(handle),
            Found::Degraded(cause) => {
                let e = degraded_error(store, &cause);
                Err(ApiError::component(code, &e, e.to_string()))
            }
            Found::Unknown => Err(ApiError::new(
                Code::LockStoreNotFound,
                ErrorKind::InvalidArgument,
                format!("lock store {store} not found"),
            )),
            Found::NoneConfigured => Err(ApiError::new(
                Code::LockStoreNotConfigured,
                ErrorKind::FailedPrecondition,
                "lock store is not configured",
            )),
        }
    }

    /// Takes a lock for `expiry_seconds`.
    ///
    /// # Errors
    /// Unknown store, a missing argument, or the store's failure.
    pub async fn try_lock(
        &self,
        cx: &Cx,
        store: &str,
        resource: &str,
        owner: &str,
        expiry_seconds: i64,
    ) -> Result<bool, ApiError> {
        let h = self.handle(store, Code::TryLock)?;
        check(store, resource, owner)?;
        let ttl = u64::try_from(expiry_seconds)
            .ok()
            .filter(|s| *s > 0)
            .map(Duration::from_secs)
            .ok_or_else(|| ApiError::malformed(format!("ExpiryInSeconds is not positive in lock store {store}")))?;
        let key = key(&h, resource)?;
        let failed = |e: Error| ApiError::component(Code::TryLock, &e, format!("failed to try acquiring lock: {e}"));
        h.ops.run(cx, Operation::TryLock, false, || h.inner.try_lock(&key, owner, ttl)).await.map_err(failed)
    }

    /// Releases a lock.
    ///
    /// # Errors
    /// Unknown store, a missing argument, or the store's failure.
    pub async fn unlock(&self, cx: &Cx, store: &str, resource: &str, owner: &str) -> Result<Unlocked, ApiError> {
        let h = self.handle(store, Code::Unlock)?;
        check(store, resource, owner)?;
        let key = key(&h, resource)?;
        let failed = |e: Error| ApiError::component(Code::Unlock, &e, format!("failed to release lock: {e}"));
        h.ops.run(cx, Operation::Unlock, true, || h.inner.unlock(&key, owner)).await.map_err(failed)
    }
}

fn check(store: &str, resource: &str, owner: &str) -> Result<(), ApiError> {
    for (value, name) in [(resource, "ResourceId"), (owner, "LockOwner")] {
        if value.is_empty() {
            return Err(ApiError::malformed(format!("{name} is empty in lock store {store}")));
        }
    }
    Ok(())
}

/// `lock||[prefix||]resourceId`.
fn key(h: &LockHandle, resource: &str) -> Result<String, ApiError> {
    h.extra.encode(resource).map(|k| format!("lock||{k}")).map_err(ApiError::malformed)
}
