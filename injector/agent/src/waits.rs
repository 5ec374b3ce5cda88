//! Documents that wait for a secret: people hear of it once for all sidecars of a namespace, and only when it takes
//! long.
//!
//! A claim is bound some moments before its Secret is written, so every claim begins with a short wait.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How long a wait is nothing to speak of.
pub(crate) const GRACE: Duration = Duration::from_secs(30);
/// What was said is said again after so long at the earliest.
const AGAIN: Duration = Duration::from_secs(600);
/// Most of what was said that is kept account of.
const MAX: usize = 1024;

/// What was said lately about the documents of one namespace.
#[derive(Debug, Default)]
pub(crate) struct Said(Mutex<BTreeMap<String, Instant>>);

impl Said {
    /// Whether `what` is to be said now; it counts as said from then on.
    pub(crate) fn is_news(&self, what: String, now: Instant) -> bool {
        let mut said = self.0.lock();
        said.retain(|_, at| now.duration_since(*at) < AGAIN);
        let news = said.len() < MAX && !said.contains_key(&what);
        if news {
            said.insert(what, now);
        }
        news
    }
}

/// When to speak of what one sidecar waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Patience {
    /// A wait goes on and nobody has been told yet.
    pub(crate) until: Option<Instant>,
}

impl Patience {
    /// What it is after the next set, which waits for something or not. A wait that goes on is as old as it was.
    pub(crate) fn next(self, waits: bool, now: Instant) -> Self {
        Self { until: waits.then(|| self.until.unwrap_or(now + GRACE)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_told_once_for_all_sidecars_and_again_after_a_long_time() {
        let (said, now) = (Said::default(), Instant::now());
        let wait = || "Component orders: Secret mecha-orders-r1 is missing".to_owned();
        assert!(said.is_news(wait(), now));
        assert!(!said.is_news(wait(), now + AGAIN / 2));
        assert!(said.is_news("another".to_owned(), now));
        assert!(said.is_news(wait(), now + AGAIN));
        assert!((0..2 * MAX).filter(|i| said.is_news(i.to_string(), now + AGAIN)).count() < MAX);
    }

    #[test]
    fn a_short_wait_is_nothing_to_speak_of_and_a_long_one_is_as_old_as_it_is() {
        let now = Instant::now();
        let begun = Patience::default().next(true, now);
        assert_eq!(begun.until, Some(now + GRACE));
        assert_eq!(begun.next(true, now + GRACE / 2), begun);
        assert_eq!(begun.next(false, now + GRACE / 2), Patience::default());
    }
}
