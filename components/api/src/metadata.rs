use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Key-value metadata of a component, a request or a message.
///
/// Look-ups ignore the case of ASCII letters, as component documents do; the
/// spelling that was given is kept for handing on. Of two keys that differ only
/// in case the later one wins.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Metadata(BTreeMap<String, String>);

impl Metadata {
    /// No entries.
    #[must_use]
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// The value of `key`, whatever the case of its letters.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        if let Some(v) = self.0.get(key) {
            return Some(v);
        }
        self.0.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| v.as_str())
    }

    /// Like [`Metadata::get`], with empty counted as absent.
    #[must_use]
    pub fn get_non_empty(&self, key: &str) -> Option<&str> {
        self.get(key).filter(|v| !v.is_empty())
    }

    /// Whether `key` is present, whatever the case of its letters.
    #[must_use]
    pub fn contains(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Sets `key`, replacing an entry that differs only in case.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<String>) {
        let key = key.into();
        if !self.0.contains_key(&key)
            && let Some(old) = self.0.keys().find(|k| k.eq_ignore_ascii_case(&key)).cloned()
        {
            self.0.remove(&old);
        }
        self.0.insert(key, value.into());
    }

    /// Removes `key`, whatever the case of its letters.
    pub fn remove(&mut self, key: &str) -> Option<String> {
        let found = self.0.keys().find(|k| k.eq_ignore_ascii_case(key)).cloned()?;
        self.0.remove(&found)
    }

    /// Entries in the order of their keys, as they were spelled.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the entries out.
    #[must_use]
    pub fn into_inner(self) -> BTreeMap<String, String> {
        self.0
    }
}

/// Values may be secrets, so only the keys are shown.
impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(iter: I) -> Self {
        let mut md = Self::new();
        for (k, v) in iter {
            md.insert(k, v);
        }
        md
    }
}

impl<K: Into<String>, V: Into<String>> Extend<(K, V)> for Metadata {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, iter: I) {
        for (k, v) in iter {
            self.insert(k, v);
        }
    }
}

impl IntoIterator for Metadata {
    type Item = (String, String);
    type IntoIter = std::collections::btree_map::IntoIter<String, String>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// One mistake in a component's metadata. Holds the key, never the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Metadata key; empty when the mistake concerns several.
    pub field: String,
    /// What is wrong and what is expected.
    pub message: String,
}

/// Every mistake in a component's metadata, reported together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigErrors(Vec<FieldError>);

impl ConfigErrors {
    /// No mistakes so far.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Exactly one mistake.
    #[must_use]
    pub fn one(field: impl Into<String>, message: impl Into<String>) -> Self {
        let mut e = Self::new();
        e.push(field, message);
        e
    }

    /// Notes a mistake.
    pub fn push(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(FieldError { field: field.into(), message: message.into() });
    }

    /// Keeps the value of `r`, or notes its mistake and gives `fallback` so that
    /// decoding goes on and finds the next one.
    pub fn keep<T>(&mut self, field: &str, r: Result<T, String>, fallback: T) -> T {
        match r {
            Ok(v) => v,
            Err(m) => {
                self.push(field, m);
                fallback
            }
        }
    }

    /// The mistakes, in the order they were found.
    #[must_use]
    pub fn list(&self) -> &[FieldError] {
        &self.0
    }

    /// `Ok(value)` when there are none.
    ///
    /// # Errors
    /// Returns itself when a mistake was noted.
    pub fn finish<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }

    /// Text of `key`, noted as missing when absent or empty.
    pub fn required(&mut self, md: &Metadata, key: &str) -> String {
        match md.get_non_empty(key) {
            Some(v) => v.to_owned(),
            None => {
                self.push(key, format!("metadata key '{key}' is required"));
                String::new()
            }
        }
    }

    /// Text of `key`, or `default` when absent or empty.
    #[must_use]
    pub fn text(&self, md: &Metadata, key: &str, default: &str) -> String {
        md.get_non_empty(key).unwrap_or(default).to_owned()
    }

    /// Boolean by the truthy list (`y yes true t on 1`, any case); any other text is false.
    #[must_use]
    pub fn bool(&self, md: &Metadata, key: &str, default: bool) -> bool {
        md.get_non_empty(key).map_or(default, parse_bool)
    }

    /// Integer of `key`, or `default`; noted when it is no integer.
    pub fn int(&mut self, md: &Metadata, key: &str, default: i64) -> i64 {
        match md.get_non_empty(key) {
            None => default,
            Some(v) => {
                let r = v.trim().parse().map_err(|_| format!("'{key}' must be an integer"));
                self.keep(key, r, default)
            }
        }
    }

    /// Duration of `key` in Go syntax, a bare number counted in `unit`; noted when malformed.
    pub fn duration(&mut self, md: &Metadata, key: &str, unit: Duration, default: Duration) -> Duration {
        match md.get_non_empty(key) {
            None => default,
            Some(v) => {
                let r = parse_go_duration(v, unit)
                    .ok_or_else(|| format!("'{key}' must be a duration such as 1m30s, 500ms or a bare number"));
                self.keep(key, r, default)
            }
        }
    }

    /// Size of `key` as a Kubernetes quantity, in bytes; noted when malformed.
    pub fn quantity(&mut self, md: &Metadata, key: &str, default: u64) -> u64 {
        match md.get_non_empty(key) {
            None => default,
            Some(v) => {
                let r = parse_quantity(v).ok_or_else(|| format!("'{key}' must be a size such as 4Mi, 1k or 4194304"));
                self.keep(key, r, default)
            }
        }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, e) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            f.write_str(&e.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// `y yes true t on 1`, any case. Everything else is false.
#[must_use]
pub fn parse_bool(text: &str) -> bool {
    ["y", "yes", "true", "t", "on", "1"].iter().any(|t| text.trim().eq_ignore_ascii_case(t))
}

/// Parses Go's duration syntax (`1h2m3.5s`, `300ms`, `1us`, `1µs`, `10ns`); a bare number
/// (fraction allowed) counts in `unit`. Negative or malformed text gives `None`.
#[must_use]
pub fn parse_go_duration(text: &str, unit: Duration) -> Option<Duration> {
    let text = text.trim();
    let text = text.strip_prefix('+').unwrap_or(text);
    if text.is_empty() {
        return None;
    }
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        let n: f64 = text.parse().ok()?;
        return Duration::try_from_secs_f64(n * unit.as_secs_f64()).ok();
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let n: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(n * seconds).ok()?)?;
        rest = &rest[end..];
    }
    Some(total)
}

/// Parses a Kubernetes quantity (`4Mi`, `1k`, `1.5G`, `4194304`) into a whole number of bytes.
#[must_use]
pub fn parse_quantity(text: &str) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let n: f64 = text[..split].parse().ok()?;
    let factor = match &text[split..] {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let bytes = (n * factor).ceil();
    // 2^53: beyond it an f64 no longer holds every integer, and no size here comes near.
    (bytes.is_finite() && bytes < 9_007_199_254_740_992.0).then_some(bytes as u64)
}

/// The known name that is closest to `given`, when one is close enough to be a typing mistake.
#[must_use]
pub fn did_you_mean<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
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
    fn keys_ignore_case_and_keep_their_spelling() {
        let mut md: Metadata = [("redisHost", "a")].into_iter().collect();
        assert_eq!(md.get("REDISHOST"), Some("a"));
        md.insert("redishost", "b");
        assert_eq!(md.iter().collect::<Vec<_>>(), [("redishost", "b")]);
    }

    #[test]
    fn debug_shows_no_value() {
        let md: Metadata = [("password", "hunter2")].into_iter().collect();
        assert!(!format!("{md:?}").contains("hunter2"));
    }

    #[test]
    fn go_durations() {
        let ms = Duration::from_millis(1);
        assert_eq!(parse_go_duration("1m30s", ms), Some(Duration::from_secs(90)));
        assert_eq!(parse_go_duration("1.5h", ms), Some(Duration::from_secs(5400)));
        assert_eq!(parse_go_duration("250", ms), Some(Duration::from_millis(250)));
        assert_eq!(parse_go_duration("0", ms), Some(Duration::ZERO));
        for bad in ["", "-1s", "1", "s", "1x", "1s2", "NaN", "1..2s"] {
            let parsed = parse_go_duration(bad, ms);
            assert!(parsed.is_none() || bad == "1", "{bad} gave {parsed:?}");
        }
    }

    #[test]
    fn quantities() {
        assert_eq!(parse_quantity("4Mi"), Some(4_194_304));
        assert_eq!(parse_quantity("1k"), Some(1000));
        assert_eq!(parse_quantity("100"), Some(100));
        assert_eq!(parse_quantity("4MB"), None);
        assert_eq!(parse_quantity("-1"), None);
    }

    #[test]
    fn suggestions() {
        assert_eq!(did_you_mean("redisHots", ["redisHost", "redisPort"]), Some("redisHost"));
        assert_eq!(did_you_mean("zzz", ["redisHost"]), None);
    }

    proptest! {
        #[test]
        fn parsers_never_panic(text in "\\PC{0,24}") {
            let _ = parse_go_duration(&text, Duration::from_secs(1));
            let _ = parse_quantity(&text);
            let _ = did_you_mean(&text, ["abc", "redisHost"]);
        }
    }
}
