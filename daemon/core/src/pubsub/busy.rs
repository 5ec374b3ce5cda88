//! How much of a subscription is in flight, since when nothing is, and what is still to come again.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// An event that its source was given back comes again within this time.
pub(crate) const REDELIVERY: Duration = Duration::from_secs(75);
/// Events that are known one by one while they are to come again. Of more it is only known when the last went back.
const MOST_OWED: usize = 4096;

/// Counts what is in flight.
#[derive(Debug)]
pub(crate) struct Busy {
    running: AtomicUsize,
    idle_since: Mutex<Instant>,
    given_back: AtomicU64,
    owed: Mutex<Owed>,
    /// When an event was settled last, or failed that had not failed before.
    news: Mutex<Instant>,
}

/// What went back to its source and was not settled since.
#[derive(Debug, Default)]
struct Owed {
    hasher: RandomState,
    /// By its mark: when it went back last.
    known: HashMap<u64, Instant>,
    /// When one went back that found no room there.
    others: Option<Instant>,
}

impl Default for Busy {
    fn default() -> Self {
        Self {
            running: AtomicUsize::new(0),
            idle_since: Mutex::new(Instant::now()),
            given_back: AtomicU64::new(0),
            owed: Mutex::default(),
            news: Mutex::new(Instant::now()),
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

    /// One went back to its source, to come again with the same `mark`.
    pub(crate) fn give_back(&self, mark: impl Hash) {
        let now = Instant::now();
        self.given_back.fetch_add(1, Ordering::Relaxed);
        let mut owed = self.owed.lock();
        let mark = owed.hasher.hash_one(mark);
        if let Some(at) = owed.known.get_mut(&mark) {
            *at = now;
        } else if owed.known.len() < MOST_OWED {
            owed.known.insert(mark, now);
            *self.news.lock() = now;
        } else {
            owed.others = Some(now);
        }
    }

    /// One went back to a source that does not deliver it again.
    pub(crate) fn give_up(&self) {
        self.given_back.fetch_add(1, Ordering::Relaxed);
        *self.news.lock() = Instant::now();
    }

    /// One is done with. `mark` is that of [`Busy::give_back`], `None` where several events may have the same.
    pub(crate) fn settle(&self, mark: Option<impl Hash>) {
        *self.news.lock() = Instant::now();
        let mut owed = self.owed.lock();
        if let Some(mark) = mark
            && !owed.known.is_empty()
        {
            let mark = owed.hasher.hash_one(mark);
            owed.known.remove(&mark);
        }
    }

    /// When an event was settled last, or failed that had not failed before.
    pub(crate) fn news(&self) -> Instant {
        *self.news.lock()
    }

    /// How many went back so far.
    pub(crate) fn given_back(&self) -> u64 {
        self.given_back.load(Ordering::Relaxed)
    }

    /// Whether nothing is to come again: what went back was settled since, or went back longer than `span` ago,
    /// so that somebody else has it.
    pub(crate) fn owes_nothing(&self, span: Duration) -> bool {
        let owed = self.owed.lock();
        owed.known.values().chain(&owed.others).all(|at| at.elapsed() >= span)
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

    #[tokio::test(start_paused = true)]
    async fn what_comes_again_and_is_settled_is_owed_no_longer() {
        let busy = Busy::default();
        let span = Duration::from_secs(75);
        busy.give_back("a");
        busy.give_back("b");
        busy.settle(Some("a"));
        assert!(!busy.owes_nothing(span));
        // One that is like others may be another one.
        busy.settle(None::<&str>);
        assert!(!busy.owes_nothing(span));
        busy.settle(Some("b"));
        assert!(busy.owes_nothing(span));
        // Whoever took it has settled it by then.
        busy.give_back("c");
        tokio::time::advance(span).await;
        assert!(busy.owes_nothing(span));
        assert_eq!(busy.given_back(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_fails_again_and_again_is_no_news() {
        let busy = Busy::default();
        let second = Duration::from_secs(1);
        tokio::time::advance(second).await;
        busy.give_back("a");
        let first = busy.news();
        tokio::time::advance(second).await;
        busy.give_back("a");
        assert_eq!(busy.news(), first);
        busy.give_back("b");
        assert_eq!(busy.news(), first + second);
        tokio::time::advance(second).await;
        busy.settle(Some("c"));
        assert_eq!(busy.news(), first + second * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_can_be_told_apart_are_owed_for_the_whole_time() {
        let busy = Busy::default();
        let span = Duration::from_secs(75);
        (0..=MOST_OWED).for_each(|n| busy.give_back(n));
        (0..=MOST_OWED).for_each(|n| busy.settle(Some(n)));
        assert!(!busy.owes_nothing(span));
        tokio::time::advance(span).await;
        assert!(busy.owes_nothing(span));
    }
}
