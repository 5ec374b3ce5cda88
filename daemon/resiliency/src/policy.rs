use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use mecha_components_api::Retry as Repeatable;
use tokio::time::{Instant, sleep, timeout};

use crate::backoff::{Jitter, Retry};
use crate::breaker::{Breaker, BreakerSpec, Change, Permit, Refused, State};
use crate::failure::{CallClass, Failure};
use crate::group::BreakerGroup;

/// The settings of a policy, as documents give them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicySpec {
    /// What the policy stands over, for logs.
    pub name: Arc<str>,
    /// Limit of each attempt; zero means none.
    pub timeout: Option<Duration>,
    /// Retries.
    pub retry: Option<Retry>,
    /// Breaker.
    pub breaker: Option<BreakerSpec>,
}

/// The breaker of a policy.
#[derive(Clone, Debug, Default)]
pub enum Guard {
    /// There is none.
    #[default]
    None,
    /// One for all calls. It may be shared with other policies.
    One(Arc<Breaker>),
    /// One for each key of a call.
    Each(Arc<BreakerGroup>),
}

/// What stands over the calls to one target. An empty policy costs nothing.
#[derive(Debug, Default)]
pub struct Policy {
    /// What the policy stands over, for logs.
    pub name: Arc<str>,
    timeout: Option<Duration>,
    retry: Option<Retry>,
    guard: Guard,
    jitter: Jitter,
}

/// Part of a policy, by the names that metrics use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PolicyKind {
    /// Timeout.
    Timeout,
    /// Retry.
    Retry,
    /// Circuit breaker.
    CircuitBreaker,
}

impl PolicyKind {
    /// The value of the label `policy`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Retry => "retry",
            Self::CircuitBreaker => "circuitbreaker",
        }
    }
}

/// Told of what a policy does. Called on the path of the call: be quick, do not block.
pub trait Observe {
    /// A part of the policy stands over a call; once per call and part. `state` is that of the breaker.
    fn applied(&self, kind: PolicyKind, state: Option<State>) {
        let _ = (kind, state);
    }

    /// An attempt was cut off.
    fn timed_out(&self, after: Duration) {
        let _ = after;
    }

    /// An attempt failed and the next one follows after `pause`. `retry` counts from 1.
    fn retrying(&self, retry: u32, pause: Duration) {
        let _ = (retry, pause);
    }

    /// A call succeeded after retries.
    fn recovered(&self, retries: u32) {
        let _ = retries;
    }

    /// The breaker changed its state.
    fn breaker_changed(&self, change: Change) {
        let _ = change;
    }
}

/// Tells nobody.
impl Observe for () {}

/// Why a call under a policy did not succeed.
#[derive(Debug, PartialEq, Eq)]
pub enum RunError<E> {
    /// The last attempt failed so.
    Failed(E),
    /// The last attempt was cut off; whether the callee did it is unknown.
    TimedOut {
        /// The limit.
        after: Duration,
    },
    /// The breaker is open; nothing was sent in this attempt.
    BreakerOpen,
    /// The breaker is half open and enough calls are out; nothing was sent in this attempt.
    TooManyRequests,
}

impl<E> RunError<E> {
    /// Changes the error of the callee.
    pub fn map<F>(self, f: impl FnOnce(E) -> F) -> RunError<F> {
        match self {
            Self::Failed(e) => RunError::Failed(f(e)),
            Self::TimedOut { after } => RunError::TimedOut { after },
            Self::BreakerOpen => RunError::BreakerOpen,
            Self::TooManyRequests => RunError::TooManyRequests,
        }
    }
}

/// The texts are those of daprd, which scripts match.
impl<E: fmt::Display> fmt::Display for RunError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(e) => e.fmt(f),
            Self::TimedOut { .. } => f.write_str("context deadline exceeded"),
            Self::BreakerOpen => f.write_str("circuit breaker is open"),
            Self::TooManyRequests => f.write_str("too many requests"),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for RunError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Failed(e) => e.source(),
            _ => None,
        }
    }
}

impl From<RunError<Self>> for mecha_components_api::Error {
    fn from(e: RunError<Self>) -> Self {
        match e {
            RunError::Failed(e) => e,
            RunError::TimedOut { .. } => Self::timeout("context deadline exceeded"),
            RunError::BreakerOpen => Self::unavailable("circuit breaker is open"),
            RunError::TooManyRequests => Self::unavailable("too many requests"),
        }
    }
}

impl Policy {
    /// No policy at all.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// A policy with a breaker of its own.
    #[must_use]
    pub fn new(spec: PolicySpec) -> Self {
        let guard = match spec.breaker {
            None => Guard::None,
            Some(breaker) => Guard::One(Arc::new(Breaker::new(breaker, Instant::now()))),
        };
        Self::with_guard(spec.name, spec.timeout, spec.retry, guard)
    }

    /// A policy with a breaker, or breakers, that exist already.
    #[must_use]
    pub fn with_guard(
        name: impl Into<Arc<str>>,
        timeout: Option<Duration>,
        retry: Option<Retry>,
        guard: Guard,
    ) -> Self {
        let timeout = timeout.filter(|t| !t.is_zero());
        Self { name: name.into(), timeout, retry, guard, jitter: Jitter::default() }
    }

    /// Replaces the jitter, for a schedule that can be foretold.
    #[must_use]
    pub fn with_jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// The breakers of `before` under the settings of this policy; `None` where the two do not
    /// have the same kind of guard.
    #[must_use]
    pub fn guard_after(&self, before: &Self) -> Option<Guard> {
        match (&self.guard, &before.guard) {
            (Guard::One(new), Guard::One(old)) if new.spec() == old.spec() => Some(Guard::One(Arc::clone(old))),
            (Guard::One(new), Guard::One(old)) => Some(Guard::One(Arc::new(old.with_spec(new.spec().clone())))),
            (Guard::Each(new), Guard::Each(old)) => {
                Some(Guard::Each(Arc::new(old.with_spec(new.spec().clone(), new.capacity()))))
            }
            _ => None,
        }
    }

    /// The same policy with another guard.
    #[must_use]
    pub fn guarded_by(&self, guard: Guard) -> Self {
        Self::with_guard(Arc::clone(&self.name), self.timeout, self.retry.clone(), guard)
    }

    /// Whether it does nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.timeout.is_none() && self.retry.is_none() && matches!(self.guard, Guard::None)
    }

    /// Whether a failed call may be sent again, so that its body has to be kept.
    #[must_use]
    pub fn may_retry(&self) -> bool {
        self.retry.as_ref().is_some_and(|r| r.max_retries != Some(0))
    }

    /// Its retries.
    #[must_use]
    pub fn retry(&self) -> Option<&Retry> {
        self.retry.as_ref()
    }

    /// Its limit for an attempt.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// Its breaker.
    #[must_use]
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Makes a call under this policy. `attempt` is given the number of the attempt, from 0.
    ///
    /// # Errors
    /// See [`RunError`]. Dropping the future ends the attempt and leaves the breaker as if the
    /// call had not been made.
    pub async fn run<T, E, O, F, A>(&self, class: CallClass, observer: &O, attempt: A) -> Result<T, RunError<E>>
    where
        E: Failure,
        O: Observe + ?Sized,
        F: Future<Output = Result<T, E>>,
        A: FnMut(u32) -> F,
    {
        self.run_keyed("", class, observer, attempt).await
    }

    /// Like [`Policy::run`], with the breaker of `key` where there is one for each.
    ///
    /// # Errors
    /// See [`Policy::run`].
    pub async fn run_keyed<T, E, O, F, A>(
        &self,
        key: &str,
        class: CallClass,
        observer: &O,
        mut attempt: A,
    ) -> Result<T, RunError<E>>
    where
        E: Failure,
        O: Observe + ?Sized,
        F: Future<Output = Result<T, E>>,
        A: FnMut(u32) -> F,
    {
        if self.is_empty() {
            return attempt(0).await.map_err(RunError::Failed);
        }
        let start = Instant::now();
        let owned;
        let breaker = match &self.guard {
            Guard::None => None,
            Guard::One(breaker) => Some(breaker),
            Guard::Each(group) => {
                owned = group.get(key, start);
                Some(&owned)
            }
        };
        self.announce(observer, breaker, start);
        let mut pauses = self.retry.as_ref().map(|retry| (retry, retry.pauses(start)));
        let mut number = 0u32;
        loop {
            let permit = match breaker {
                None => None,
                Some(breaker) => Some(admit(breaker, observer)?),
            };
            let outcome = self.once(attempt(number), observer).await;
            let healthy = match &outcome {
                Ok(_) => true,
                Err(RunError::Failed(e)) => !e.counts_as_failure(),
                Err(_) => false,
            };
            if let Some(change) = permit.and_then(|p| p.finish(healthy, Instant::now())) {
                observer.breaker_changed(change);
            }
            let error = match outcome {
                Ok(value) => {
                    if number > 0 {
                        observer.recovered(number);
                    }
                    return Ok(value);
                }
                Err(error) => error,
            };
            let Some((retry, pauses)) = &mut pauses else { return Err(error) };
            let repeat = match &error {
                RunError::Failed(e) => retry.allows(class, e),
                RunError::TimedOut { .. } => retry.allows(class, &CutOff),
                RunError::BreakerOpen | RunError::TooManyRequests => false,
            };
            let pause = if repeat { pauses.next(Instant::now(), self.jitter.next()) } else { None };
            let Some(pause) = pause else { return Err(error) };
            drop(error);
            number = number.saturating_add(1);
            observer.retrying(number, pause);
            sleep(pause).await;
        }
    }

    /// One attempt within its limit.
    async fn once<T, E, O, F>(&self, call: F, observer: &O) -> Result<T, RunError<E>>
    where
        O: Observe + ?Sized,
        F: Future<Output = Result<T, E>>,
    {
        let Some(after) = self.timeout else {
            return call.await.map_err(RunError::Failed);
        };
        match timeout(after, call).await {
            Ok(result) => result.map_err(RunError::Failed),
            Err(_) => {
                observer.timed_out(after);
                Err(RunError::TimedOut { after })
            }
        }
    }

    fn announce<O: Observe + ?Sized>(&self, observer: &O, breaker: Option<&Arc<Breaker>>, now: Instant) {
        if self.timeout.is_some() {
            observer.applied(PolicyKind::Timeout, None);
        }
        if self.retry.is_some() {
            observer.applied(PolicyKind::Retry, None);
        }
        if let Some(breaker) = breaker {
            observer.applied(PolicyKind::CircuitBreaker, Some(breaker.state(now)));
        }
    }
}

fn admit<'b, E, O: Observe + ?Sized>(breaker: &'b Breaker, observer: &O) -> Result<Permit<'b>, RunError<E>> {
    let (permit, change) = breaker.admit(Instant::now());
    if let Some(change) = change {
        observer.breaker_changed(change);
    }
    permit.map_err(|refused| match refused {
        Refused::Open => RunError::BreakerOpen,
        Refused::TooManyRequests => RunError::TooManyRequests,
    })
}

/// An attempt without an answer: the callee may have done it.
struct CutOff;

impl Failure for CutOff {
    fn repeatable(&self) -> Repeatable {
        Repeatable::IfIdempotent
    }
}

#[cfg(test)]
mod tests;
