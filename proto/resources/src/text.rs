//! Small readers of text values: durations, expansion of variables, close names.

use std::borrow::Cow;
use std::time::Duration;

/// Parses Go's duration syntax (`1h2m3.5s`, `300ms`); a bare number, fraction allowed,
/// counts in `unit`. Negative or malformed text gives `None`.
#[must_use]
pub fn parse_duration(text: &str, unit: Duration) -> Option<Duration> {
    let text = text.trim();
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return None;
    }
    if rest.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return scale(rest, unit);
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (name, tail) = tail.split_at(end);
        let unit = match name {
            "h" => Duration::from_secs(3600),
            "m" => Duration::from_secs(60),
            "s" => Duration::from_secs(1),
            "ms" => Duration::from_millis(1),
            "us" | "µs" | "μs" => Duration::from_micros(1),
            "ns" => Duration::from_nanos(1),
            _ => return None,
        };
        total = total.checked_add(scale(number, unit)?)?;
        rest = tail;
    }
    Some(total)
}

/// `number` × `unit`, exact for whole numbers.
fn scale(number: &str, unit: Duration) -> Option<Duration> {
    if let Ok(n) = number.parse::<u64>() {
        const SECOND: u128 = 1_000_000_000;
        let nanos = u128::from(n).checked_mul(unit.as_nanos())?;
        return Some(Duration::new(u64::try_from(nanos / SECOND).ok()?, u32::try_from(nanos % SECOND).ok()?));
    }
    let n: f64 = number.parse().ok()?;
    Duration::try_from_secs_f64(n * unit.as_secs_f64()).ok()
}

/// A duration in Go's syntax, in the largest units that lose nothing down to a nanosecond.
#[must_use]
pub fn format_duration(d: Duration) -> String {
    let (seconds, nanos) = (d.as_secs(), d.subsec_nanos());
    let mut out = String::new();
    for (unit, name) in [(3600, "h"), (60, "m"), (1, "s")] {
        let n = if unit == 3600 { seconds / 3600 } else { seconds % (unit * 60) / unit };
        if n > 0 {
            out.push_str(&format!("{n}{name}"));
        }
    }
    match nanos {
        0 => {}
        n if n % 1_000_000 == 0 => out.push_str(&format!("{}ms", n / 1_000_000)),
        n if n % 1_000 == 0 => out.push_str(&format!("{}us", n / 1_000)),
        n => out.push_str(&format!("{n}ns")),
    }
    if out.is_empty() { "0s".to_owned() } else { out }
}

/// Replaces `$NAME` and `${NAME}` by what `lookup` gives, an unknown name by nothing.
///
/// By the rules of Go's `os.Expand`: `$` before a character that cannot start a name stays,
/// one of `*#$@!?-0-9` after it is a name by itself, and a malformed `${` is dropped.
#[must_use]
pub fn expand<'t>(text: &'t str, lookup: &dyn Fn(&str) -> Option<String>) -> Cow<'t, str> {
    if !text.contains('$') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        let (name, taken) = shell_name(tail);
        match name {
            Some(name) => out.push_str(&lookup(name).unwrap_or_default()),
            None if taken == 0 => out.push('$'),
            None => {}
        }
        rest = &tail[taken..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The name at the start of `tail` and the bytes it takes.
fn shell_name(tail: &str) -> (Option<&str>, usize) {
    let special = |b: u8| matches!(b, b'*' | b'#' | b'$' | b'@' | b'!' | b'?' | b'-') || b.is_ascii_digit();
    match tail.as_bytes().first() {
        None => (None, 0),
        Some(b'{') => match tail.find('}') {
            Some(1) => (None, 2),
            Some(end) => (Some(&tail[1..end]), end + 1),
            None => (None, 1),
        },
        Some(&b) if special(b) => (Some(&tail[..1]), 1),
        Some(_) => {
            let end = tail.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(tail.len());
            if end == 0 { (None, 0) } else { (Some(&tail[..end]), end) }
        }
    }
}

/// The known name that is closest to `given`, when one is close enough to be a typing mistake.
#[must_use]
pub fn did_you_mean<'k>(given: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    // The distance costs the product of the lengths; nobody mistypes a name by hundreds of letters.
    if given.len() > 64 {
        return None;
    }
    let limit = (given.chars().count() / 3).clamp(1, 3);
    known.into_iter().map(|k| (distance(given, k), k)).filter(|(d, _)| *d <= limit).min().map(|(_, k)| k)
}

/// Edit distance with transpositions (optimal string alignment), ASCII case ignored.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().map(|c| c.to_ascii_lowercase()).collect();
    let b: Vec<char> = b.chars().map(|c| c.to_ascii_lowercase()).collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let substitute = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = substitute.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations() {
        let ms = Duration::from_millis(1);
        assert_eq!(parse_duration("1m30s", ms), Some(Duration::from_secs(90)));
        assert_eq!(parse_duration("1.5h", ms), Some(Duration::from_secs(5400)));
        assert_eq!(parse_duration("250", ms), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("0", ms), Some(Duration::ZERO));
        for bad in ["", "-1s", "s", "1x", "1s2", "NaN", "1..2s", "."] {
            assert_eq!(parse_duration(bad, ms), None, "{bad}");
        }
    }

    #[test]
    fn variables() {
        let env = |name: &str| match name {
            "A" => Some("1".to_owned()),
            "LONG_NAME" => Some("2".to_owned()),
            _ => None,
        };
        for (text, expanded) in [
            ("$A", "1"),
            ("x${A}y", "x1y"),
            ("$LONG_NAME-$A", "2-1"),
            ("$MISSING.", "."),
            ("${MISSING}", ""),
            ("100$", "100$"),
            ("a$ b", "a$ b"),
            ("${}x", "x"),
            ("${A", "A"),
            ("$$A", "A"),
            ("ä$A", "ä1"),
            ("no variable", "no variable"),
        ] {
            assert_eq!(expand(text, &env), expanded, "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC{0,40}") {
            let _ = parse_duration(&text, Duration::from_secs(1));
            let _ = expand(&text, &|_| None);
            let _ = did_you_mean(&text, ["spec", "metadata"]);
        }

        #[test]
        fn text_without_a_dollar_stays(text in "[^$]{0,40}") {
            prop_assert_eq!(expand(&text, &|_| Some("x".to_owned())), text.as_str());
        }

        #[test]
        fn durations_survive_formatting(seconds in 0u64..1_000_000, nanos in 0u32..1_000_000_000) {
            let d = Duration::new(seconds, nanos);
            prop_assert_eq!(parse_duration(&format_duration(d), Duration::from_secs(1)), Some(d));
        }
    }
}
