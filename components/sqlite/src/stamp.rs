//! Wall-clock times in the text form that SQLite's date functions use, always UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SECONDS_PER_DAY: i64 = 86_400;
/// 9999-12-31 23:59:59: beyond it the text would sort wrong.
const LAST_SECOND: i64 = 253_402_300_799;

/// `YYYY-MM-DD HH:MM:SS`, what `CURRENT_TIMESTAMP` gives.
pub(crate) fn seconds(at: SystemTime) -> String {
    let mut text = millis(at);
    text.truncate(19);
    text
}

/// `YYYY-MM-DD HH:MM:SS.mmm`.
///
/// Sorts correctly against the form without a fraction, and the incumbent reads both; the
/// fraction keeps a life time from ending up to a second early.
pub(crate) fn millis(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let total = i64::try_from(since.as_secs()).unwrap_or(LAST_SECOND).min(LAST_SECOND);
    let (year, month, day) = civil(total / SECONDS_PER_DAY);
    let s = total % SECONDS_PER_DAY;
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{:03}",
        s / 3600,
        s / 60 % 60,
        s % 60,
        since.subsec_millis()
    )
}

/// Reads `YYYY-MM-DD[ T]HH:MM:SS[.fraction][Z]`; anything else is `None`.
pub(crate) fn parse(text: &str) -> Option<SystemTime> {
    let text = text.strip_suffix('Z').unwrap_or(text);
    let b = text.as_bytes();
    if b.len() < 19 || b[4] != b'-' || b[7] != b'-' || !matches!(b[10], b' ' | b'T') || b[13] != b':' || b[16] != b':' {
        return None;
    }
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = text.get(from..to)?;
        digits.bytes().all(|c| c.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let nanos = match b.get(19) {
        None => 0,
        Some(b'.') => {
            let fraction = text.get(20..).filter(|f| (1..=9).contains(&f.len()))?;
            number(20, 20 + fraction.len())? * 10_i64.pow(9 - u32::try_from(fraction.len()).ok()?)
        }
        Some(_) => return None,
    };
    let total = days(year, month, day) * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second;
    let since = Duration::new(u64::try_from(total).ok()?, u32::try_from(nanos).ok()?);
    UNIX_EPOCH.checked_add(since)
}

/// Days since 1970-01-01 to a Gregorian date, with years counted from March so that the
/// leap day is the last of its year (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The inverse of [`civil`].
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let march_month = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * march_month + 2) / 5 + day - 1;
    let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
    era * 146_097 + of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(ms)
    }

    #[test]
    fn known_dates() {
        assert_eq!(seconds(UNIX_EPOCH), "1970-01-01 00:00:00");
        assert_eq!(millis(at(951_782_400_007)), "2000-02-29 00:00:00.007");
        assert_eq!(seconds(at(1_735_689_599_999)), "2024-12-31 23:59:59");
        assert_eq!(parse("2000-02-29T00:00:00Z"), Some(at(951_782_400_000)));
        assert_eq!(parse("2000-02-29 00:00:00"), Some(at(951_782_400_000)));
    }

    #[test]
    fn agrees_with_sqlite() {
        let db = rusqlite::Connection::open_in_memory().unwrap();
        for s in [0_i64, 1, 68_256_000, 951_782_400, 1_709_164_800, 4_102_444_800, 253_402_300_799] {
            let theirs: String = db.query_row("SELECT datetime(?1, 'unixepoch')", [s], |r| r.get(0)).unwrap();
            assert_eq!(seconds(at(s.unsigned_abs() * 1000)), theirs);
        }
    }

    proptest! {
        #[test]
        fn reads_back_what_it_writes(ms in 0_u64..253_402_300_799_999) {
            prop_assert_eq!(parse(&millis(at(ms))), Some(at(ms)));
        }

        #[test]
        fn text_sorts_as_time_does(a in 0_u64..253_402_300_799_999, b in 0_u64..253_402_300_799_999) {
            prop_assert_eq!(a.cmp(&b), millis(at(a)).cmp(&millis(at(b))));
        }

        #[test]
        fn parse_never_panics(text in "\\PC{0,40}|[0-9T:. Z-]{10,30}") {
            let _ = parse(&text);
        }
    }
}
