use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::trip::Trip;

/// Settings of a breaker.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerSpec {
    /// Name of the policy.
    pub name: Arc<str>,
    /// Calls let through while half open, and successes in a row that close it.
    pub max_requests: u32,
    /// A closed breaker forgets its counts after this time; zero means never.
    pub interval: Duration,
    /// It stays open for this time.
    pub timeout: Duration,
    /// When it opens.
    pub trip: Trip,
}

impl BreakerSpec {
    /// What a document means that gives a breaker a name and nothing else.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            max_requests: 1,
            interval: Duration::ZERO,
            timeout: Duration::from_secs(60),
            trip: Trip::default(),
        }
    }
}

/// State of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Calls pass.
    Closed,
    /// A few calls pass, to find out.
    HalfOpen,
    /// No call passes.
    Open,
}

impl State {
    /// The name that metrics and logs use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half-open",
            Self::Open => "open",
        }
    }
}

/// A step from one state to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// State before.
    pub from: State,
    /// State after.
    pub to: State,
}

/// Why a breaker lets a call not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is open.
    Open,
    /// It is half open and enough calls are out already.
    TooManyRequests,
}

/// Counts since the last change of state, or since the last interval began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls let through.
    pub requests: u32,
    /// Successes.
    pub total_successes: u32,
    /// Failures.
    pub total_failures: u32,
    /// Successes since the last failure.
    pub consecutive_successes: u32,
    /// Failures since the last success.
    pub consecutive_failures: u32,
}

impl Counts {
    fn succeed(&mut self) {
        self.total_successes = self.total_successes.saturating_add(1);
        self.consecutive_successes = self.consecutive_successes.saturating_add(1);
        self.consecutive_failures = 0;
    }

    fn fail(&mut self) {
        self.total_failures = self.total_failures.saturating_add(1);
        self.consecutive_failures = self.consecutive_failures.saturating_add(1);
        self.consecutive_successes = 0;
    }
}

/// A circuit breaker with the behaviour of gobreaker, which daprd uses.
///
/// Closed, it counts and opens when [`Trip`] says so. Open, it refuses until its timeout is
/// over, then it is half open: `max_requests` calls pass; that many successes in a row
/// close it, one failure opens it again. The result of a call that began before the last change
/// of state is not counted.
///
/// Unlike gobreaker, a call that is given up without a result gives its place back, so a
/// caller that leaves cannot leave a breaker half open for ever.
#[derive(Debug)]
pub struct Breaker {
    spec: BreakerSpec,
    inner: Mutex<Inner>,
}

#[derive(Clone, Debug)]
struct Inner {
    state: State,
    /// Changes with the state and with each interval; a result from another generation is stale.
    generation: u64,
    counts: Counts,
    /// End of the interval or of the open time.
    expiry: Option<Instant>,
}

/// Leave for one call. Report its result with [`Permit::finish`]; dropped without, the call
/// counts as never made.
#[derive(Debug)]
#[must_use]
pub struct Permit<'b> {
    breaker: &'b Breaker,
    generation: u64,
    open: bool,
}

impl Breaker {
    /// A closed breaker.
    #[must_use]
    pub fn new(mut spec: BreakerSpec, now: Instant) -> Self {
        spec.max_requests = spec.max_requests.max(1);
        let mut inner = Inner { state: State::Closed, generation: 0, counts: Counts::default(), expiry: None };
        inner.renew(&spec, now);
        Self { spec, inner: Mutex::new(inner) }
    }

    /// A breaker with other settings that goes on where this one stands.
    #[must_use]
    pub fn with_spec(&self, mut spec: BreakerSpec) -> Self {
        spec.max_requests = spec.max_requests.max(1);
        Self { spec, inner: Mutex::new(self.inner.lock().clone()) }
    }

    /// Its settings.
    #[must_use]
    pub fn spec(&self) -> &BreakerSpec {
        &self.spec
    }

    /// Its state at `now`.
    #[must_use]
    pub fn state(&self, now: Instant) -> State {
        let inner = self.inner.lock();
        match (inner.state, inner.expiry) {
            (State::Open, Some(end)) if end <= now => State::HalfOpen,
            (state, _) => state,
        }
    }

    /// Its counts.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.inner.lock().counts
    }

    /// Asks for leave to make a call at `now`. The change is the one that the passing of time
    /// has brought.
    ///
    /// # Errors
    /// The call must not be made.
    pub fn admit(&self, now: Instant) -> (Result<Permit<'_>, Refused>, Option<Change>) {
        let mut inner = self.inner.lock();
        let change = inner.advance(&self.spec, now);
        let refused = match inner.state {
            State::Open => Some(Refused::Open),
            State::HalfOpen if inner.counts.requests >= self.spec.max_requests => Some(Refused::TooManyRequests),
            State::Closed | State::HalfOpen => None,
        };
        if let Some(refused) = refused {
            return (Err(refused), change);
        }
        inner.counts.requests = inner.counts.requests.saturating_add(1);
        (Ok(Permit { breaker: self, generation: inner.generation, open: true }), change)
    }
}

impl Permit<'_> {
    /// Reports the result of the call at `now`.
    pub fn finish(mut self, success: bool, now: Instant) -> Option<Change> {
        self.open = false;
        let spec = &self.breaker.spec;
        let mut inner = self.breaker.inner.lock();
        let before = inner.state;
        inner.advance(spec, now);
        if inner.generation == self.generation {
            inner.settle(spec, success, now);
        }
        let to = inner.state;
        (before != to).then_some(Change { from: before, to })
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.open {
            let mut inner = self.breaker.inner.lock();
            if inner.generation == self.generation {
                inner.counts.requests = inner.counts.requests.saturating_sub(1);
            }
        }
    }
}

impl Inner {
    /// Brings the state up to `now`.
    fn advance(&mut self, spec: &BreakerSpec, now: Instant) -> Option<Change> {
        let over = self.expiry.is_some_and(|end| end <= now);
        match self.state {
            State::Closed if over => {
                self.renew(spec, now);
                None
            }
            State::Open if over => Some(self.enter(State::HalfOpen, spec, now)),
            _ => None,
        }
    }

    fn settle(&mut self, spec: &BreakerSpec, success: bool, now: Instant) {
        match (self.state, success) {
            (State::Closed, true) => self.counts.succeed(),
            (State::Closed, false) => {
                self.counts.fail();
                if spec.trip.applies(&self.counts) {
                    self.enter(State::Open, spec, now);
                }
            }
            (State::HalfOpen, true) => {
                self.counts.succeed();
                if self.counts.consecutive_successes >= spec.max_requests {
                    self.enter(State::Closed, spec, now);
                }
            }
            (State::HalfOpen, false) => {
                self.enter(State::Open, spec, now);
            }
            (State::Open, _) => {}
        }
    }

    fn enter(&mut self, to: State, spec: &BreakerSpec, now: Instant) -> Change {
        let from = std::mem::replace(&mut self.state, to);
        self.renew(spec, now);
        Change { from, to }
    }

    fn renew(&mut self, spec: &BreakerSpec, now: Instant) {
        self.generation = self.generation.wrapping_add(1);
        self.counts = Counts::default();
        self.expiry = match self.state {
            State::Closed => (!spec.interval.is_zero()).then(|| now.checked_add(spec.interval)).flatten(),
            // An end beyond the clock's range must not leave the breaker open for ever.
            State::Open => Some(now.checked_add(spec.timeout).unwrap_or(now)),
            State::HalfOpen => None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec() -> BreakerSpec {
        BreakerSpec { timeout: Duration::from_secs(10), trip: Trip::MoreInARow(1), ..BreakerSpec::new("b") }
    }

    fn call(breaker: &Breaker, success: bool, now: Instant) -> Result<(), Refused> {
        breaker.admit(now).0.map(|p| {
            p.finish(success, now);
        })
    }

    #[test]
    fn opens_waits_probes_and_closes() {
        let t0 = Instant::now();
        let breaker = Breaker::new(spec(), t0);
        assert_eq!(call(&breaker, false, t0), Ok(()));
        let (permit, _) = breaker.admit(t0);
        let change = permit.unwrap().finish(false, t0);
        assert_eq!(change, Some(Change { from: State::Closed, to: State::Open }));
        assert_eq!(call(&breaker, true, t0 + Duration::from_secs(9)), Err(Refused::Open));

        let later = t0 + Duration::from_secs(10);
        assert_eq!(breaker.state(later), State::HalfOpen);
        let (probe, change) = breaker.admit(later);
        assert_eq!(change, Some(Change { from: State::Open, to: State::HalfOpen }));
        assert_eq!(call(&breaker, true, later), Err(Refused::TooManyRequests));
        assert_eq!(probe.unwrap().finish(true, later), Some(Change { from: State::HalfOpen, to: State::Closed }));
        assert_eq!(call(&breaker, true, later), Ok(()));
    }

    #[test]
    fn a_failed_probe_opens_it_again() {
        let t0 = Instant::now();
        let breaker = Breaker::new(spec(), t0);
        for _ in 0..2 {
            call(&breaker, false, t0).unwrap();
        }
        let later = t0 + Duration::from_secs(10);
        call(&breaker, false, later).unwrap();
        assert_eq!(breaker.state(later + Duration::from_secs(9)), State::Open);
    }

    #[test]
    fn a_probe_that_is_given_up_frees_its_place() {
        let t0 = Instant::now();
        let breaker = Breaker::new(spec(), t0);
        for _ in 0..2 {
            call(&breaker, false, t0).unwrap();
        }
        let later = t0 + Duration::from_secs(10);
        drop(breaker.admit(later));
        assert_eq!(call(&breaker, true, later), Ok(()));
        assert_eq!(breaker.state(later), State::Closed);
    }

    #[test]
    fn the_interval_clears_the_counts() {
        let t0 = Instant::now();
        let breaker = Breaker::new(BreakerSpec { interval: Duration::from_secs(1), ..spec() }, t0);
        call(&breaker, false, t0).unwrap();
        call(&breaker, false, t0 + Duration::from_secs(2)).unwrap();
        assert_eq!(breaker.state(t0 + Duration::from_secs(2)), State::Closed);
    }

    #[test]
    fn other_settings_keep_the_state() {
        let t0 = Instant::now();
        let breaker = Breaker::new(spec(), t0);
        for _ in 0..2 {
            call(&breaker, false, t0).unwrap();
        }
        let next = breaker.with_spec(BreakerSpec { trip: Trip::MoreInARow(9), ..spec() });
        assert_eq!(call(&next, true, t0), Err(Refused::Open));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Begin,
        Finish(bool),
        GiveUp,
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Begin),
            any::<bool>().prop_map(Step::Finish),
            Just(Step::GiveUp),
            (0u64..15).prop_map(Step::Wait)
        ]
    }

    proptest! {
        #[test]
        fn invariants_hold(steps in proptest::collection::vec(step(), 0..200), max in 1u32..4) {
            let mut now = Instant::now();
            let breaker = Breaker::new(BreakerSpec { max_requests: max, ..spec() }, now);
            let mut out: Vec<Permit<'_>> = Vec::new();
            for step in steps {
                match step {
                    Step::Begin => {
                        let state = breaker.state(now);
                        let (permit, _) = breaker.admit(now);
                        prop_assert_eq!(permit.is_err() && state == State::Open, state == State::Open);
                        out.extend(permit.ok());
                    }
                    Step::Finish(success) => {
                        if !out.is_empty() {
                            out.remove(0).finish(success, now);
                        }
                    }
                    Step::GiveUp => drop(out.pop()),
                    Step::Wait(seconds) => now += Duration::from_secs(seconds),
                }
                let counts = breaker.counts();
                prop_assert!(counts.total_successes + counts.total_failures <= counts.requests);
                prop_assert!(counts.consecutive_successes == 0 || counts.consecutive_failures == 0);
                if breaker.state(now) == State::HalfOpen {
                    prop_assert!(counts.requests <= max);
                }
            }
            // With nothing out, time and successes always close it again.
            out.clear();
            now += Duration::from_secs(10);
            for _ in 0..max {
                let (permit, _) = breaker.admit(now);
                prop_assert!(permit.is_ok());
                permit.unwrap().finish(true, now);
            }
            prop_assert_eq!(breaker.state(now), State::Closed);
        }
    }
}
