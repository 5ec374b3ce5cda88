//! Cases of [`LockStore`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use mecha_components_api::{FencedLock, LockStore, Result, Unlocked};
use tokio::task::JoinSet;

use crate::case::{Case, Failure, Outcome, PATIENCE, check, check_eq, fresh_name, table, wait_until};

/// A lease that no case outlives.
const LONG: Duration = Duration::from_secs(300);
/// A lease to be waited out.
const SHORT: Duration = Duration::from_secs(1);
/// Callers at once.
const CALLERS: usize = 16;

/// What a store of leases declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockProfile {
    /// Has [`LockStore::fenced`].
    pub fenced: bool,
}

/// All cases.
pub const CASES: &[Case<dyn LockStore, LockProfile>] = table![Door::new;
    a_free_lock_is_taken: any,
    a_held_lock_is_refused_to_another: any,
    a_held_lock_is_refused_to_its_owner: any,
    a_released_lock_can_be_taken: any,
    another_owner_cannot_release: any,
    a_free_lock_is_not_held: any,
    a_lock_expires: any,
    a_lock_does_not_expire_early: any,
    an_expired_lock_is_not_held: any,
    a_late_owner_cannot_release_the_next_one: any,
    locks_are_separate: any,
    owners_are_compared_exactly: any,
    one_of_many_takes_the_lock: any,
    one_of_many_releases_the_lock: any,
    dropped_calls_leave_the_store_usable: any,
    tokens_grow_with_each_holder: |p| p.fenced,
    a_lease_is_renewed_by_its_holder_only: |p| p.fenced,
];

fn any(_: &LockProfile) -> bool {
    true
}

/// A store, and a lock that nobody else uses.
#[derive(Clone)]
struct Door {
    store: Arc<dyn LockStore>,
    id: String,
}

impl Door {
    fn new(store: Arc<dyn LockStore>) -> Self {
        Self { store, id: format!("lock||{}", fresh_name()) }
    }

    async fn take(&self, owner: &str, ttl: Duration) -> Result<bool> {
        self.store.try_lock(&self.id, owner, ttl).await
    }

    async fn free(&self, owner: &str) -> Result<Unlocked> {
        self.store.unlock(&self.id, owner).await
    }

    fn fenced(&self) -> Result<&dyn FencedLock, Failure> {
        self.store.fenced().ok_or_else(|| Failure::new("the store has no fencing tokens"))
    }
}

async fn a_free_lock_is_taken(d: Door) -> Outcome {
    check!(d.take("a", LONG).await?, "a free lock was refused");
    Ok(())
}

async fn a_held_lock_is_refused_to_another(d: Door) -> Outcome {
    d.take("a", LONG).await?;
    check!(!d.take("b", LONG).await?, "a held lock was given away");
    check_eq!(d.free("a").await?, Unlocked::Released, "release by its owner");
    Ok(())
}

async fn a_held_lock_is_refused_to_its_owner(d: Door) -> Outcome {
    d.take("a", LONG).await?;
    check!(!d.take("a", LONG).await?, "its owner took a held lock again");
    Ok(())
}

async fn a_released_lock_can_be_taken(d: Door) -> Outcome {
    for owner in ["a", "b", "a"] {
        check!(d.take(owner, LONG).await?, "{owner} was refused");
        check_eq!(d.free(owner).await?, Unlocked::Released, "release by {owner}");
    }
    Ok(())
}

async fn another_owner_cannot_release(d: Door) -> Outcome {
    d.take("a", LONG).await?;
    check_eq!(d.free("b").await?, Unlocked::HeldByOther, "release by another");
    check!(!d.take("b", LONG).await?, "the lock was free after the release by another");
    Ok(())
}

async fn a_free_lock_is_not_held(d: Door) -> Outcome {
    check_eq!(d.free("a").await?, Unlocked::NotHeld, "release of a lock nobody took");
    d.take("a", LONG).await?;
    d.free("a").await?;
    check_eq!(d.free("a").await?, Unlocked::NotHeld, "second release");
    Ok(())
}

async fn expired(d: &Door) -> Outcome {
    let taken = || async { matches!(d.take("next", LONG).await, Ok(true)) };
    wait_until(PATIENCE, "the lock expires", taken).await
}

async fn a_lock_expires(d: Door) -> Outcome {
    d.take("a", SHORT).await?;
    expired(&d).await
}

async fn a_lock_does_not_expire_early(d: Door) -> Outcome {
    let before = Instant::now();
    d.take("a", SHORT).await?;
    expired(&d).await?;
    // The store's clock may count from a little before the answer, never from before the call.
    check!(before.elapsed() >= Duration::from_millis(950), "free after {:?}", before.elapsed());
    Ok(())
}

async fn an_expired_lock_is_not_held(d: Door) -> Outcome {
    d.take("a", SHORT).await?;
    let gone = || async { matches!(d.free("nobody").await, Ok(Unlocked::NotHeld)) };
    wait_until(PATIENCE, "the lock expires", gone).await?;
    check_eq!(d.free("a").await?, Unlocked::NotHeld, "release after the expiry");
    Ok(())
}

async fn a_late_owner_cannot_release_the_next_one(d: Door) -> Outcome {
    d.take("a", SHORT).await?;
    expired(&d).await?;
    check_eq!(d.free("a").await?, Unlocked::HeldByOther, "release by the late owner");
    check_eq!(d.free("next").await?, Unlocked::Released, "release by the owner");
    Ok(())
}

async fn locks_are_separate(d: Door) -> Outcome {
    for suffix in ["", "x", " ", "||", "*", "é"] {
        let other = Door { store: Arc::clone(&d.store), id: format!("{}{suffix}", d.id) };
        check!(other.take("a", LONG).await?, "the lock with the suffix {suffix:?} was refused");
    }
    Ok(())
}

async fn owners_are_compared_exactly(d: Door) -> Outcome {
    d.take("Owner 漢", LONG).await?;
    for other in ["owner 漢", "Owner 漢 ", "Owner", "Owner*"] {
        check_eq!(d.free(other).await?, Unlocked::HeldByOther, "release by {other:?}");
    }
    check_eq!(d.free("Owner 漢").await?, Unlocked::Released, "release by the owner");
    Ok(())
}

async fn one_of_many_takes_the_lock(d: Door) -> Outcome {
    let mut set = JoinSet::new();
    for i in 0..CALLERS {
        let d = d.clone();
        set.spawn(async move { d.take(&i.to_string(), LONG).await.map(|taken| taken.then_some(i)) });
    }
    let mut holders = Vec::new();
    while let Some(joined) = set.join_next().await {
        holders.extend(joined.map_err(|e| Failure::new(format!("a caller panicked: {e}")))??);
    }
    check_eq!(holders.len(), 1, "holders");
    check_eq!(d.free(&holders[0].to_string()).await?, Unlocked::Released, "release by the holder");
    Ok(())
}

async fn one_of_many_releases_the_lock(d: Door) -> Outcome {
    d.take("a", LONG).await?;
    let mut set = JoinSet::new();
    for _ in 0..CALLERS {
        let d = d.clone();
        set.spawn(async move { d.free("a").await });
    }
    let mut released = 0;
    while let Some(joined) = set.join_next().await {
        match joined.map_err(|e| Failure::new(format!("a caller panicked: {e}")))?? {
            Unlocked::Released => released += 1,
            Unlocked::NotHeld => {}
            Unlocked::HeldByOther => return Err(Failure::new("somebody else held the lock")),
        }
    }
    check_eq!(released, 1, "releases");
    Ok(())
}

async fn dropped_calls_leave_the_store_usable(d: Door) -> Outcome {
    for i in 0..40_u64 {
        let _ = tokio::time::timeout(Duration::from_micros(i * 20), d.take("dropped", SHORT)).await;
        let _ = tokio::time::timeout(Duration::from_micros(i * 20), d.free("dropped")).await;
    }
    expired(&d).await?;
    check_eq!(d.free("next").await?, Unlocked::Released, "release after dropped calls");
    Ok(())
}

async fn tokens_grow_with_each_holder(d: Door) -> Outcome {
    let fenced = d.fenced()?;
    let mut last = None;
    for owner in ["a", "b", "a"] {
        let token = fenced.lock(&d.id, owner, LONG).await?;
        let token = token.ok_or_else(|| Failure::new(format!("{owner} was refused a free lock")))?;
        check!(last.is_none_or(|l| token > l), "token {token} after {last:?}");
        check_eq!(fenced.lock(&d.id, "other", LONG).await?, None, "token of a held lock");
        check_eq!(d.free(owner).await?, Unlocked::Released, "release by {owner}");
        last = Some(token);
    }
    Ok(())
}

async fn a_lease_is_renewed_by_its_holder_only(d: Door) -> Outcome {
    let fenced = d.fenced()?;
    let token = fenced.lock(&d.id, "a", SHORT).await?.ok_or_else(|| Failure::new("a free lock was refused"))?;
    check!(!fenced.renew(&d.id, "b", token, LONG).await?, "another owner renewed the lease");
    check!(!fenced.renew(&d.id, "a", token + 1, LONG).await?, "a wrong token renewed the lease");
    check!(fenced.renew(&d.id, "a", token, LONG).await?, "its holder could not renew the lease");
    // A lock that was taken later, with the life time the first one had, is over.
    let probe = Door { store: Arc::clone(&d.store), id: format!("{}-probe", d.id) };
    probe.take("a", SHORT).await?;
    expired(&probe).await?;
    check!(!d.take("b", LONG).await?, "the renewed lease ended with its first life time");
    Ok(())
}
