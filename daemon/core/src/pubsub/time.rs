//! RFC 3339 as CloudEvents carry it.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;

/// Longer than any event lives, and short enough for sums to stay inside the calendar.
const FAR: Duration = Duration::from_secs(1000 * 366 * 24 * 3600);

/// UTC, whole seconds.
pub(super) fn format(at: SystemTime) -> String {
    Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Any RFC 3339 text.
pub(super) fn parse(text: &str) -> Option<SystemTime> {
    text.parse::<Timestamp>().ok().map(SystemTime::from)
}

/// `now` and `ttl` later, at the end of the calendar at most.
pub(super) fn after(now: SystemTime, ttl: Duration) -> SystemTime {
    now.checked_add(ttl.min(FAR)).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn whole_seconds_in_utc() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_700);
        assert_eq!(format(at), "2023-11-14T22:13:20Z");
        assert_eq!(
            parse("2023-11-14T23:13:20+01:00"),
            Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000))
        );
        assert_eq!(parse("soon"), None);
    }

    #[test]
    fn a_ttl_beyond_the_calendar_is_far_away() {
        let text = format(after(SystemTime::now(), Duration::from_secs(u64::MAX)));
        assert!(parse(&text).is_some_and(|at| at > SystemTime::now()), "{text}");
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,40}") {
            let _ = parse(&text);
        }
    }
}
