use std::future::Future;
use std::time::{Duration, Instant};

/// Generous: reached only when something is broken.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Time between looks: short at first, as most things happen within milliseconds.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Waits until `condition` holds.
///
/// # Panics
/// With `what` when it does not within `limit`.
#[track_caller]
pub fn wait_until<F, Fut>(limit: Duration, what: &str, mut condition: F) -> impl Future<Output = ()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let there = std::panic::Location::caller();
    async move {
        let found = look(limit, async || condition().await.then_some(())).await;
        assert!(found.is_some(), "waited {limit:?} for {what} ({there})");
    }
}

/// Waits until `find` finds something, and returns it.
///
/// # Panics
/// With `what` when it does not within [`DEADLINE`].
#[track_caller]
pub fn eventually<F, Fut, T>(what: &str, mut find: F) -> impl Future<Output = T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let there = std::panic::Location::caller();
    async move {
        let Some(found) = look(DEADLINE, async || find().await).await else {
            panic!("waited {DEADLINE:?} for {what} ({there})");
        };
        found
    }
}

async fn look<T>(limit: Duration, mut find: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    let mut pause = FIRST_PAUSE;
    loop {
        if let Some(found) = find().await {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
