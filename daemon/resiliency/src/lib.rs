//! Timeout, retry and circuit breaker.
//!
//! Each is a state machine that is told the time and never asks for it; [`Policy::run`] is
//! the one place that waits. It waits on tokio's timer, so a test on a paused clock
//! (`tokio::time::pause`) decides when time passes. Jitter comes from a seed that can be given.
//!
//! Order from the inside out: timeout, breaker, retry. Each attempt has its own timeout, each
//! attempt is one call for the breaker, and a breaker that refuses ends the retries.
//!
//! A call is repeated only when that cannot do harm: when it never reached the callee, when it
//! is idempotent, or when the policy lists the code it failed with. See [`Retry::allows`].

mod backoff;
mod breaker;
mod builtin;
mod expression;
mod failure;
mod group;
mod policy;
mod trip;

pub use backoff::{Backoff, CodeSet, Jitter, Pauses, Retry};
pub use breaker::{Breaker, BreakerSpec, Change, Counts, Permit, Refused, State};
pub use builtin::{
    ACTOR_NOT_FOUND_RETRIES, ACTOR_REMINDER_RETRIES, ACTOR_RETRIES, INITIALIZATION_RETRIES, SERVICE_RETRIES, built_in,
};
pub use expression::{ExpressionError, MAX_DEPTH, MAX_EXPRESSION, MAX_LOOPS, MAX_NESTING, compile_cel};
pub use failure::{CallClass, Failure};
pub use group::BreakerGroup;
pub use policy::{Guard, Observe, Policy, PolicyKind, PolicySpec, RunError};
pub use trip::Trip;
