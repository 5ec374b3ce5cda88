//! How much of a subscription is in flight, and since when nothing is.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// Counts what is in flight.
#[derive(Debug)]
pub(crate) struct Busy {
    running: AtomicUsize,
    idle_since: Mutex<Instant>,
    given_back: AtomicU64,
    /// When something went back to its source last.
    given_back_at: Mutex<Option<Instant>>,
}

impl Default for Busy {
    fn default() -> Self {
        Self {
            running: AtomicUsize::new(0),
            idle_since: Mutex::new(Instant::now()),
            given_back: AtomicU64::new(0),
            given_back_at: Mutex::new(None),
        }
    }
}

impl Busy {
    /// One more, until the guard is dropped.
    pub(crate) fn enter(&self) -> impl Drop + Send + use<'_> {
        self.running.fetch_add(1, Ordering::AcqRel);
        Entered(self)
    }

    /// Whether nothing has been in flight for `span`.
    pub(crate) fn idle_for(&self, span: Duration) -> bool {
        self.running.load(Ordering::Acquire) == 0 && self.idle_since.lock().elapsed() >= span
    }

    /// How many are in flight.
    pub(crate) fn running(&self) -> u64 {
        self.running.load(Ordering::Acquire) as u64
    }

    /// One went back to its source, to come again.
    pub(crate) fn give_back(&self) {
        self.given_back.fetch_add(1, Ordering::Relaxed);
        *self.given_back_at.lock() = Some(Instant::now());
    }

    /// How many went back so far.
    pub(crate) fn given_back(&self) -> u64 {
        self.given_back.load(Ordering::Relaxed)
    }

    /// Whether nothing went back within `span`: what went back before has come again by now.
    pub(crate) fn settled_for(&self, span: Duration) -> bool {
        self.given_back_at.lock().is_none_or(|at| at.elapsed() >= span)
    }
}

struct Entered<'a>(&'a Busy);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        *self.0.idle_since.lock() = Instant::now();
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn idle_counts_from_the_last_end() {
        let busy = Busy::default();
        let span = Duration::from_secs(1);
        tokio::time::advance(span).await;
        assert!(busy.idle_for(span));
        let entered = busy.enter();
        tokio::time::advance(span).await;
        assert!(!busy.idle_for(span));
        drop(entered);
        assert!(!busy.idle_for(span));
        tokio::time::advance(span).await;
        assert!(busy.idle_for(span));
    }
}
