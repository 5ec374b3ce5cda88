use std::time::Duration;

use jiff::civil::{Date, DateTime};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Span, Timestamp};
use mecha_components_api::parse_go_duration;

/// A leap day comes round in eight years at the latest; what has not matched by then never will.
const HORIZON_DAYS: u32 = 8 * 366 + 1;

/// When a cron binding fires.
///
/// The syntax is that of the incumbent: five or six fields (seconds first), `*`
/// or `?`, lists, ranges, steps, names of months and days, `@hourly` and its
/// kin, `@every` with a Go duration, and a leading `TZ=Area/City`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Schedule {
    /// Each time this long after the last one, by the monotonic clock.
    Every(Duration),
    /// At times of the wall clock.
    Cron(Box<Cron>),
}

/// Fields as bit sets, and the time zone when one was named.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cron {
    second: Set,
    minute: Set,
    hour: Set,
    day: Set,
    month: Set,
    weekday: Set,
    zone: Option<TimeZone>,
}

/// Allowed values of one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Set {
    bits: u64,
    /// Written as `*` or `?` without a step: it does not restrict.
    any: bool,
}

impl Set {
    fn has(self, value: i8) -> bool {
        self.bits & (1 << value) != 0
    }
}

/// Name, smallest and largest value of a field, and names for its values.
struct Kind(&'static str, u8, u8, &'static [&'static str]);

const SECOND: Kind = Kind("second", 0, 59, &[]);
const MINUTE: Kind = Kind("minute", 0, 59, &[]);
const HOUR: Kind = Kind("hour", 0, 23, &[]);
const DAY: Kind = Kind("day of month", 1, 31, &[]);
const MONTH: Kind =
    Kind("month", 1, 12, &["", "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]);
const WEEKDAY: Kind = Kind("day of week", 0, 6, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]);

impl Schedule {
    /// Reads a schedule; the mistake is told in words.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut text = text.trim();
        let mut zone = None;
        if let Some(rest) = text.strip_prefix("CRON_TZ=").or_else(|| text.strip_prefix("TZ=")) {
            let (name, rest) =
                rest.split_once(char::is_whitespace).ok_or("a time zone must be followed by a schedule")?;
            zone = Some(TimeZone::get(name).map_err(|_| format!("the time zone '{name}' is not known here"))?);
            text = rest.trim();
        }
        if let Some(every) = text.strip_prefix("@every ") {
            let length = Some(every.trim())
                // A bare number has no unit in this place.
                .filter(|d| d.ends_with(char::is_alphabetic))
                .and_then(|d| parse_go_duration(d, Duration::from_secs(1)))
                .ok_or("'@every' must be followed by a duration such as 1s or 1h30m")?;
            let whole = Duration::from_millis(u64::try_from(length.as_millis()).unwrap_or(u64::MAX));
            return Ok(Self::Every(whole.max(Duration::from_millis(1))));
        }
        let fields = match text {
            "@yearly" | "@annually" => "0 0 0 1 1 *",
            "@monthly" => "0 0 0 1 * *",
            "@weekly" => "0 0 0 * * 0",
            "@daily" | "@midnight" => "0 0 0 * * *",
            "@hourly" => "0 0 * * * *",
            other if other.starts_with('@') => {
                return Err("expected @every, @hourly, @daily, @weekly, @monthly or @yearly".into());
            }
            other => other,
        };
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let [second, minute, hour, day, month, weekday] = match *fields.as_slice() {
            [m, h, d, mo, w] => ["0", m, h, d, mo, w],
            [s, m, h, d, mo, w] => [s, m, h, d, mo, w],
            _ => return Err(format!("expected 5 or 6 fields, found {}", fields.len())),
        };
        let cron = Cron {
            second: field(second, &SECOND)?,
            minute: field(minute, &MINUTE)?,
            hour: field(hour, &HOUR)?,
            day: field(day, &DAY)?,
            month: field(month, &MONTH)?,
            weekday: field(weekday, &WEEKDAY)?,
            zone,
        };
        // Any start does: the calendar repeats within the horizon as far as fields can see.
        if cron.next_civil(jiff::civil::date(2001, 1, 1).at(0, 0, 0, 0)).is_none() {
            return Err("no date ever matches it".into());
        }
        Ok(Self::Cron(Box::new(cron)))
    }
}

fn field(text: &str, kind: &Kind) -> Result<Set, String> {
    let mut set = Set { bits: 0, any: false };
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(number(step, kind, &[])?)),
            None => (part, None),
        };
        if step == Some(0) {
            return Err(format!("the step in {} '{part}' must be above zero", kind.0));
        }
        let (low, high) = match range.split_once('-') {
            _ if matches!(range, "*" | "?") => {
                set.any |= step.is_none_or(|s| s == 1);
                (kind.1, kind.2)
            }
            Some((low, high)) => (number(low, kind, kind.3)?, number(high, kind, kind.3)?),
            None => {
                let value = number(range, kind, kind.3)?;
                // "5/15" counts from 5 to the end of the field.
                (value, if step.is_some() { kind.2 } else { value })
            }
        };
        if low < kind.1 || high > kind.2 || low > high {
            return Err(format!("{} '{part}' must lie within {} to {}", kind.0, kind.1, kind.2));
        }
        for value in (low..=high).step_by(usize::from(step.unwrap_or(1))) {
            set.bits |= 1 << value;
        }
    }
    if set.bits == 0 {
        return Err(format!("{} '{text}' is empty", kind.0));
    }
    Ok(set)
}

fn number(text: &str, kind: &Kind, names: &[&str]) -> Result<u8, String> {
    if let Some(at) = names.iter().position(|n| !n.is_empty() && n.eq_ignore_ascii_case(text)) {
        return Ok(at as u8);
    }
    text.parse().map_err(|_| format!("{} '{text}' is not a number that fits", kind.0))
}

impl Cron {
    /// The first moment after `after` that matches.
    ///
    /// Where clocks are changed: a time of day that is skipped fires at the end of
    /// the gap, one that comes twice fires the first time. A schedule that runs in
    /// every hour goes on in real time through both.
    pub(crate) fn next(&self, after: Timestamp, local: &TimeZone) -> Option<Timestamp> {
        let zone = self.zone.as_ref().unwrap_or(local);
        if self.hour.any { self.next_elapsed(after, zone) } else { self.next_time_of_day(after, zone) }
    }

    fn next_time_of_day(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut civil = zone.to_datetime(after);
        loop {
            civil = self.next_civil(civil)?;
            let found = zone.to_ambiguous_timestamp(civil);
            let at = match found.offset() {
                AmbiguousOffset::Gap { .. } => zone.following(found.earlier().ok()?).next()?.timestamp(),
                _ => found.earlier().ok()?,
            };
            if at > after {
                return Some(at);
            }
        }
    }

    fn next_elapsed(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut offset = zone.to_offset(after);
        let mut civil = offset.to_datetime(after);
        let mut changes = zone.following(after).map(|t| (t.timestamp(), t.offset()));
        loop {
            let change = changes.next();
            let at = self.next_civil(civil).and_then(|c| offset.to_timestamp(c).ok());
            match (at, change) {
                (Some(at), Some((from, _))) if at < from => return Some(at),
                (at, None) => return at,
                (_, Some((from, next))) => {
                    offset = next;
                    // One second earlier, so that the moment of the change itself can match.
                    civil = next.to_datetime(from).checked_sub(Span::new().seconds(1)).ok()?;
                    if from.duration_since(after).as_hours() / 24 > i64::from(HORIZON_DAYS) {
                        return None;
                    }
                }
            }
        }
    }

    /// The first reading of a calendar and clock after `after` that matches.
    fn next_civil(&self, after: DateTime) -> Option<DateTime> {
        let from = after.checked_add(Span::new().seconds(1)).ok()?;
        let mut date = from.date();
        let mut start = (from.hour(), from.minute(), from.second());
        for _ in 0..HORIZON_DAYS {
            if self.matches(date)
                && let Some((hour, minute, second)) = self.first_time(start)
            {
                return Some(date.at(hour, minute, second, 0));
            }
            date = date.tomorrow().ok()?;
            start = (0, 0, 0);
        }
        None
    }

    /// Both day fields must match when one of them is unrestricted, else either.
    fn matches(&self, date: Date) -> bool {
        let day = self.day.has(date.day());
        let weekday = self.weekday.has(date.weekday().to_sunday_zero_offset());
        let days = if self.day.any || self.weekday.any { day && weekday } else { day || weekday };
        days && self.month.has(date.month())
    }

    fn first_time(&self, start: (i8, i8, i8)) -> Option<(i8, i8, i8)> {
        for hour in (start.0..24).filter(|h| self.hour.has(*h)) {
            let from = if hour == start.0 { start.1 } else { 0 };
            for minute in (from..60).filter(|m| self.minute.has(*m)) {
                let from = if (hour, minute) == (start.0, start.1) { start.2 } else { 0 };
                if let Some(second) = (from..60).find(|s| self.second.has(*s)) {
                    return Some((hour, minute, second));
                }
            }
        }
        None
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
