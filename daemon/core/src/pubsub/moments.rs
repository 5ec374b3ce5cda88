//! `timestamp()` and `duration()` of rules, as nanoseconds.
//!
//! The expression library has types for them behind a second calendar with its own time zone
//! database. Rules compare moments and add spans to them, which whole numbers do as well; what
//! they lack are the accessors such as `getHours()`.

use std::time::Duration;

use cel::common::types::{CelInt, CelString};
use cel::{Env, ExecutionError};
use jiff::Timestamp;
use mecha_resources::parse_duration;

/// Declares both.
///
/// # Errors
/// The library declares them by now.
pub(super) fn add(env: &mut Env) -> Result<(), cel::DeclarationError> {
    cel::add_overload!(env, fn timestamp: (CelString) -> Result<CelInt>)?;
    cel::add_overload!(env, fn duration: (CelString) -> Result<CelInt>)
}

/// RFC 3339 to nanoseconds since 1970; the years 1678 to 2261.
fn timestamp(text: &CelString<'_>) -> Result<CelInt, ExecutionError> {
    let at = text.inner().parse::<Timestamp>().ok().and_then(|at| i64::try_from(at.as_nanosecond()).ok());
    let error = || ExecutionError::function_error("timestamp", "the text is no RFC 3339 moment between 1678 and 2261");
    at.map(CelInt::from).ok_or_else(error)
}

/// Go's texts such as `1h30m` or `-5s` to nanoseconds.
fn duration(text: &CelString<'_>) -> Result<CelInt, ExecutionError> {
    let text: &str = text.inner();
    let (sign, span) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    // A bare number has no unit, except for the zero.
    let bare = span.bytes().all(|b| b.is_ascii_digit()) && span != "0";
    let parsed = parse_duration(span, Duration::ZERO).filter(|_| !bare && !span.starts_with(['+', '-']));
    let nanos = parsed.and_then(|d| i64::try_from(d.as_nanos()).ok()).map(|n| sign * n);
    nanos
        .map(CelInt::from)
        .ok_or_else(|| ExecutionError::function_error("duration", "the text is no span such as 1h30m"))
}
