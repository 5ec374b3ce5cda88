//! Conditions that keep the time of their last change.

use jiff::Timestamp;
use mecha_resources::kinds::{Condition, ConditionStatus};

/// One aspect, before it is compared with what is stored.
pub(crate) type Aspect<T, R> = (T, ConditionStatus, R, String);

/// `aspects` as conditions; one whose status is as stored keeps its time.
pub(crate) fn conditions<T: Copy + PartialEq, R: Copy>(
    stored: &[Condition<T, R>],
    aspects: Vec<Aspect<T, R>>,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition<T, R>> {
    let aspect = |(kind, status, reason, message): Aspect<T, R>| {
        let same = stored.iter().find(|c| c.kind == kind && c.status == status);
        Condition {
            kind,
            status,
            reason,
            message: shortened(message),
            last_transition_time: same.map_or_else(|| text(now), |c| c.last_transition_time.clone()),
            observed_generation: generation,
        }
    };
    aspects.into_iter().map(aspect).collect()
}

/// `True` or `False`.
pub(crate) const fn holds(yes: bool) -> ConditionStatus {
    if yes { ConditionStatus::True } else { ConditionStatus::False }
}

/// RFC 3339 with whole seconds, as Kubernetes writes times.
pub(crate) fn text(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The same with microseconds, for times that tell one thing from the next.
pub(crate) fn exact(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// Longest message of a condition, in bytes.
const LONGEST: usize = 1000;

fn shortened(mut message: String) -> String {
    message.truncate(message.floor_char_boundary(LONGEST));
    message
}

/// The first few of a list in words.
pub(crate) fn few(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}
