//! Reading annotations: ours before Dapr's, every mistake with its key.

use std::str::FromStr;

use serde_json::{Map, Value};

use crate::Problem;

const OURS: &str = "mecha.dev/";
const DAPRS: &str = "dapr.io/";

/// The annotations of a pod.
pub(crate) struct Annotations<'a>(Option<&'a Map<String, Value>>);

impl<'a> Annotations<'a> {
    pub(crate) fn of(pod: &'a Value) -> Self {
        Self(pod.pointer("/metadata/annotations").and_then(Value::as_object))
    }

    /// The key as it is written in the pod, and its text without blanks around it. An empty
    /// value counts as absent, as templates leave such.
    pub(crate) fn find(&self, key: &str) -> Option<(String, &'a str)> {
        [OURS, DAPRS].into_iter().find_map(|prefix| {
            let full = format!("{prefix}{key}");
            let text = self.0?.get(&full)?.as_str()?.trim();
            (!text.is_empty()).then_some((full, text))
        })
    }

    pub(crate) fn text(&self, key: &str) -> Option<&'a str> {
        self.find(key).map(|(_, text)| text)
    }

    /// A switch; the words are Dapr's, in any case.
    pub(crate) fn maybe_switch(&self, key: &str, problems: &mut Vec<Problem>) -> Option<bool> {
        let (key, text) = self.find(key)?;
        match text.to_ascii_lowercase().as_str() {
            "y" | "yes" | "true" | "t" | "on" | "1" => Some(true),
            "n" | "no" | "false" | "f" | "off" | "0" => Some(false),
            _ => {
                problems.push(problem(&key, format!("is '{text}', not a switch"), "Write true or false."));
                None
            }
        }
    }

    pub(crate) fn switch(&self, key: &str, default: bool, problems: &mut Vec<Problem>) -> bool {
        self.maybe_switch(key, problems).unwrap_or(default)
    }

    /// A whole number between `least` and `most`.
    pub(crate) fn number<N>(&self, key: &str, least: N, most: N, problems: &mut Vec<Problem>) -> Option<N>
    where
        N: FromStr + PartialOrd + Copy + std::fmt::Display,
    {
        let (key, text) = self.find(key)?;
        match text.parse::<N>() {
            Ok(n) if n >= least && n <= most => Some(n),
            _ => {
                let next = format!("Write a whole number from {least} to {most}.");
                problems.push(problem(&key, format!("is '{text}'"), &next));
                None
            }
        }
    }

    pub(crate) fn port(&self, key: &str, default: u16, problems: &mut Vec<Problem>) -> u16 {
        self.number(key, 1, u16::MAX, problems).unwrap_or(default)
    }

    /// One of `words`.
    pub(crate) fn word(&self, key: &str, words: &[&'static str], problems: &mut Vec<Problem>) -> Option<&'static str> {
        let (key, text) = self.find(key)?;
        let found = words.iter().find(|word| word.eq_ignore_ascii_case(text)).copied();
        if found.is_none() {
            problems.push(problem(&key, format!("is '{text}'"), &format!("Write one of {}.", words.join(", "))));
        }
        found
    }

    /// A quantity such as `100m`, `64Mi` or `0.5`.
    pub(crate) fn quantity(&self, key: &str, problems: &mut Vec<Problem>) -> Option<&'a str> {
        let (key, text) = self.find(key)?;
        if is_quantity(text) {
            return Some(text);
        }
        problems.push(problem(&key, format!("is '{text}', not a quantity"), "Write it like 100m, 0.5 or 64Mi."));
        None
    }

    /// The parts of a comma-separated list, without empty ones.
    pub(crate) fn list(&self, key: &str) -> Vec<&'a str> {
        self.text(key)
            .map(|text| text.split(',').map(str::trim).filter(|p| !p.is_empty()).collect())
            .unwrap_or_default()
    }
}

pub(crate) fn problem(annotation: &str, message: String, next: &str) -> Problem {
    Problem { field: format!("annotation {annotation}"), message, next: next.to_owned() }
}

/// A Kubernetes quantity without sign: digits, perhaps a fraction, perhaps a suffix or exponent.
fn is_quantity(text: &str) -> bool {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let digits = number.bytes().filter(u8::is_ascii_digit).count();
    let exponent = || {
        let power = suffix.strip_prefix(['e', 'E'])?;
        power.strip_prefix(['+', '-']).unwrap_or(power).parse::<u8>().ok()
    };
    digits > 0
        && number.matches('.').count() <= 1
        && (matches!(
            suffix,
            "" | "n" | "u" | "m" | "k" | "M" | "G" | "T" | "P" | "E" | "Ki" | "Mi" | "Gi" | "Ti" | "Pi" | "Ei"
        ) || exponent().is_some())
}

#[cfg(test)]
mod tests {
    use super::is_quantity;

    #[test]
    fn quantities_are_told_from_other_text() {
        for good in ["1", "100m", "0.5", ".5", "64Mi", "1e3", "2E-1", "1G"] {
            assert!(is_quantity(good), "{good}");
        }
        for bad in ["", "Mi", "1mi", "-1", "1 Mi", "1.2.3", "64MB", "e3", "."] {
            assert!(!is_quantity(bad), "{bad}");
        }
    }
}
