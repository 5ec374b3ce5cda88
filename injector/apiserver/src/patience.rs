//! When a failure is worth a word.

use std::time::{Duration, Instant};

use crate::error::FailureKind;

/// A server that starts, restarts or is changed for another says no for so long, and nobody need hear of it.
const QUIET: Duration = Duration::from_secs(30);
/// Failures further apart than this are not the same trouble.
const APART: Duration = Duration::from_secs(60);

/// Whether a failure that is tried again is worth a warning: at once when somebody has to act, else when it lasts; once
/// until [`Patience::over`].
#[derive(Debug, Default)]
pub struct Patience {
    /// The first failure and the last.
    span: Option<(Instant, Instant)>,
    said: bool,
}

impl Patience {
    /// Nothing has failed.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a failure; whether to warn of it.
    pub fn is_out(&mut self, kind: FailureKind) -> bool {
        self.at(kind, Instant::now())
    }

    fn at(&mut self, kind: FailureKind, now: Instant) -> bool {
        let begun = self.span.filter(|(_, last)| now.saturating_duration_since(*last) < APART);
        if begun.is_none() {
            self.over();
        }
        let since = begun.map_or(now, |(since, _)| since);
        self.span = Some((since, now));
        // A server that starts knows neither accounts nor their rights before it has read them.
        let passes = !matches!(kind, FailureKind::NotFound | FailureKind::Invalid | FailureKind::Conflict);
        if self.said || passes && now.saturating_duration_since(since) < QUIET {
            return false;
        }
        self.said = true;
        true
    }

    /// It works again; whether it was warned of.
    pub fn over(&mut self) -> bool {
        self.span = None;
        std::mem::take(&mut self.said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_told_when_it_lasts_and_everything_once() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut patience = Patience::new();
        for seconds in [0, 10, 29] {
            assert!(!patience.at(FailureKind::Busy, after(seconds)));
        }
        assert!(patience.at(FailureKind::Unavailable, after(31)));
        assert!(!patience.at(FailureKind::Busy, after(60)), "once");
        assert!(patience.over() && !patience.over());
        assert!(!patience.at(FailureKind::Busy, after(61)));
        assert!(patience.at(FailureKind::NotFound, after(62)), "nobody but a person mends this");
        assert!(!patience.at(FailureKind::NotFound, after(63)));
        assert!(!patience.at(FailureKind::Forbidden, after(200)), "another trouble");
        assert!(patience.at(FailureKind::Forbidden, after(240)));
    }
}
