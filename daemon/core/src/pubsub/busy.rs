//! How much of a subscription is in flight, and since when nothing is.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// Counts what is in flight.
#[derive(Debug)]
pub(super) struct Busy {
    running: AtomicUsize,
    idle_since: Mutex<Instant>,
}

impl Default for Busy {
    fn default() -> Self {
        Self { running: AtomicUsize::new(0), idle_since: Mutex::new(Instant::now()) }
    }
}

impl Busy {
    /// One more, until the guard is dropped.
    pub(super) fn enter(&self) -> impl Drop + Send + use<'_> {
        self.running.fetch_add(1, Ordering::AcqRel);
        Entered(self)
    }

    /// Whether nothing has been in flight for `span`.
    pub(super) fn idle_for(&self, span: Duration) -> bool {
        self.running.load(Ordering::Acquire) == 0 && self.idle_since.lock().elapsed() >= span
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
