use std::time::Duration;

use async_trait::async_trait;

use crate::{Component, Result};

/// Outcome of [`LockStore::unlock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlocked {
    /// The lock was ours and is free now.
    Released,
    /// Nobody holds it.
    NotHeld,
    /// Somebody else holds it; nothing changed.
    HeldByOther,
}

/// A store of leases.
#[async_trait]
pub trait LockStore: Component {
    /// Takes the lock for `ttl` unless another owner, or this one, holds it.
    async fn try_lock(&self, id: &str, owner: &str, ttl: Duration) -> Result<bool>;

    /// Frees the lock when `owner` holds it.
    async fn unlock(&self, id: &str, owner: &str) -> Result<Unlocked>;

    /// Leases with fencing tokens.
    fn fenced(&self) -> Option<&dyn FencedLock> {
        None
    }
}

/// Leases with fencing tokens, beyond the incumbent's API.
#[async_trait]
pub trait FencedLock: Send + Sync {
    /// Takes the lock and returns a token that grows with each holder, or `None` when held.
    async fn lock(&self, id: &str, owner: &str, ttl: Duration) -> Result<Option<u64>>;

    /// Extends a lease; `false` when it is lost.
    async fn renew(&self, id: &str, owner: &str, token: u64, ttl: Duration) -> Result<bool>;
}
