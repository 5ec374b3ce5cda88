//! How long something that was replaced is read on.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

/// How long something that was replaced is read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For as long without anything new: no event settled, none that had not failed before.
    pub stalled: Duration,
    /// In all.
    pub whole: Duration,
}

/// Why something was left before it was read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It was not empty, as far as anybody knows, and delivered nothing that could be settled.
    Stalled(Duration),
    /// It delivered all the time, and never came to an end.
    Endless(Duration),
    /// The process stops.
    Stopped,
}

/// What events in flight get where the process stops: the time for them was that of the reading.
const LAST: Duration = Duration::from_secs(1);

impl Cut {
    /// What is left of `grace` for events in flight.
    pub(crate) fn grace(cut: Option<Self>, grace: Duration) -> Duration {
        if cut == Some(Self::Stopped) { grace.min(LAST) } else { grace }
    }
}

/// Follows one reading.
#[derive(Debug)]
pub(crate) struct Reader {
    patience: Patience,
    began: Instant,
    waited: Instant,
}

impl Reader {
    pub(crate) fn begin(patience: Patience) -> Self {
        let now = Instant::now();
        Self { patience, began: now, waited: now }
    }

    /// Nobody could take an event until now, so that the time that passed says nothing.
    pub(crate) fn waits(&mut self) {
        self.waited = Instant::now();
    }

    /// Whether it is to be left, where the last `news` is of that time.
    pub(crate) fn over(&self, news: Option<Instant>) -> Option<Cut> {
        let Patience { stalled, whole } = self.patience;
        if news.map_or(self.waited, |news| news.max(self.waited)).elapsed() >= stalled {
            return Some(Cut::Stalled(stalled));
        }
        (self.began.elapsed() >= whole).then_some(Cut::Endless(whole))
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stalled(span) => write!(f, "nothing of it could be delivered for {span:?}"),
            Self::Endless(span) => write!(f, "it still delivered after {span:?}"),
            Self::Stopped => f.write_str("the sidecar stopped before"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_goes_on_is_read_on_until_the_whole_time_is_over() {
        let second = Duration::from_secs(1);
        let patience = Patience { stalled: second * 3, whole: second * 10 };
        let mut reader = Reader::begin(patience);
        let mut news = Instant::now();
        for _ in 0..4 {
            tokio::time::advance(second * 2).await;
            assert_eq!(reader.over(Some(news)), None);
            news = Instant::now();
        }
        tokio::time::advance(second * 2).await;
        assert_eq!(reader.over(Some(news)), Some(Cut::Endless(second * 10)));
        reader = Reader::begin(patience);
        tokio::time::advance(second * 2).await;
        reader.waits();
        tokio::time::advance(second * 2).await;
        assert_eq!(reader.over(Some(news)), None);
        tokio::time::advance(second).await;
        assert_eq!(reader.over(Some(news)), Some(Cut::Stalled(second * 3)));
    }
}
