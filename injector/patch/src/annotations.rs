//! Reading annotations: ours before Dapr's, every mistake with its key.

use std::str::FromStr;

use serde_json::{Map, Value};

use crate::Problem;

const OURS: &str = "mecha.dev/";
const DAPRS: &str = "dapr.io/";

/// What is read of a pod, and what of Dapr's is known to have no effect here. Any other key is most likely a slip.
const KNOWN: &[&str] = &[
    "actors-disseminate-timeout",
    "allow-host-network",
    "api-token-secret",
    "app-binding-options-timeout",
    "app-channel-address",
    "app-health-check-path",
    "app-health-probe-interval",
    "app-health-probe-timeout",
    "app-health-threshold",
    "app-id",
    "app-max-concurrency",
    "app-port",
    "app-protocol",
    "app-ssl",
    "app-token-secret",
    "block-shutdown-duration",
    "component-container",
    "config",
    "debug-port",
    "disable-builtin-k8s-secret-store",
    "disable-init-endpoints",
    "enable-api-logging",
    "enable-app-health-check",
    "enable-debug",
    "enable-metrics",
    "enable-native-sidecar",
    "enable-profiling",
    "enabled",
    "env",
    "env-from-secret",
    "graceful-shutdown-seconds",
    "grpc-port",
    "http-max-request-size",
    "http-port",
    "http-read-buffer-size",
    "inject-pluggable-components",
    "internal-grpc-port",
    "log-as-json",
    "log-level",
    "max-body-size",
    "metrics-port",
    "placement-host-address",
    "pluggable-components",
    "pluggable-components-sockets-folder",
    "read-buffer-size",
    "ring",
    "scheduler-host-address",
    "sentry-request-jwt-audiences",
    "sidecar-cpu-limit",
    "sidecar-cpu-request",
    "sidecar-image",
    "sidecar-listen-addresses",
    "sidecar-liveness-probe-delay-seconds",
    "sidecar-liveness-probe-period-seconds",
    "sidecar-liveness-probe-threshold",
    "sidecar-liveness-probe-timeout-seconds",
    "sidecar-memory-limit",
    "sidecar-memory-request",
    "sidecar-readiness-probe-delay-seconds",
    "sidecar-readiness-probe-period-seconds",
    "sidecar-readiness-probe-threshold",
    "sidecar-readiness-probe-timeout-seconds",
    "sidecar-seccomp-profile-type",
    "sidecar-svc-annotations",
    "strict",
    "unix-domain-socket-path",
    "volume-mounts",
    "volume-mounts-rw",
];

/// The annotations of a pod.
pub(crate) struct Annotations<'a>(Option<&'a Map<String, Value>>);

impl<'a> Annotations<'a> {
    pub(crate) fn of(pod: &'a Value) -> Self {
        Self(pod.pointer("/metadata/annotations").and_then(Value::as_object))
    }

    /// The key as it is written in the pod, and its text without blanks around it. An empty
    /// value counts as absent, as templates leave such.
    pub(crate) fn find(&self, key: &str) -> Option<(String, &'a str)> {
        debug_assert!(KNOWN.contains(&key), "{key}");
        [OURS, DAPRS].into_iter().find_map(|prefix| {
            let full = format!("{prefix}{key}");
            let text = self.0?.get(&full)?.as_str()?.trim();
            (!text.is_empty()).then_some((full, text))
        })
    }

    /// Keys of ours and of Dapr's that nobody knows.
    pub(crate) fn unknown(&self) -> impl Iterator<Item = &'a str> {
        let keys = self.0.into_iter().flat_map(Map::keys).map(String::as_str);
        keys.filter(|key| {
            let rest = [OURS, DAPRS].into_iter().find_map(|prefix| key.strip_prefix(prefix));
            rest.is_some_and(|rest| !KNOWN.contains(&rest))
        })
    }

    /// An address that the cluster has one of its own for. Blank or `empty` means none, as with Dapr.
    pub(crate) fn address(&self, key: &str, own: &'a str) -> Option<&'a str> {
        let blank = |prefix: &str| {
            self.0?.get(&format!("{prefix}{key}"))?.as_str().map(|text| text.trim().is_empty() && !text.is_empty())
        };
        let given = self.text(key);
        if given.is_none() && [OURS, DAPRS].into_iter().any(|prefix| blank(prefix) == Some(true)) {
            return None;
        }
        given.or(Some(own)).filter(|text| !text.is_empty() && *text != "empty")
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
        if quantity(text).is_some() {
            return Some(text);
        }
        problems.push(problem(&key, format!("is '{text}', not a quantity"), "Write it like 100m, 0.5 or 64Mi."));
        None
    }

    /// A time such as `500ms` or `1m30s`; `least` seconds of it or more.
    pub(crate) fn duration(&self, key: &str, least: f64, problems: &mut Vec<Problem>) -> Option<&'a str> {
        let (key, text) = self.find(key)?;
        match seconds(text) {
            Some(time) if time >= least => Some(text),
            Some(_) => {
                problems.push(problem(&key, format!("is '{text}'"), "Write a time above 0, such as 30s."));
                None
            }
            None => {
                problems.push(problem(&key, format!("is '{text}', not a time"), "Write it like 500ms, 30s or 1m30s."));
                None
            }
        }
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

/// What a Kubernetes quantity without sign amounts to: digits, perhaps a fraction, perhaps a suffix or exponent.
pub(crate) fn quantity(text: &str) -> Option<f64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let number: f64 = number.parse().ok()?;
    let power = |suffix: &str| {
        let power = suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok().filter(|power| power.abs() < 256)?;
        Some(10_f64.powi(power))
    };
    let factor = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024_f64.powi(2),
        "Gi" => 1024_f64.powi(3),
        "Ti" => 1024_f64.powi(4),
        "Pi" => 1024_f64.powi(5),
        "Ei" => 1024_f64.powi(6),
        _ => power(suffix)?,
    };
    Some(number * factor)
}

/// Seconds of a time as Go writes it: numbers with units, perhaps a sign. 0 needs no unit.
fn seconds(text: &str) -> Option<f64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0.0);
    }
    let mut total = None;
    while !rest.is_empty() {
        let unit = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..unit].parse().ok()?;
        rest = &rest[unit..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let factor = match &rest[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total = Some(total.unwrap_or(0.0) + number * factor);
        rest = &rest[end..];
    }
    total.map(|total| sign * total)
}

#[cfg(test)]
mod tests {
    use super::{quantity, seconds};

    #[test]
    fn quantities_are_told_from_other_text() {
        for good in ["1", "100m", "0.5", ".5", "64Mi", "1e3", "2E-1", "1G"] {
            assert!(quantity(good).is_some(), "{good}");
        }
        for bad in ["", "Mi", "1mi", "-1", "1 Mi", "1.2.3", "64MB", "e3", ".", "1e", "1e999"] {
            assert!(quantity(bad).is_none(), "{bad}");
        }
        assert!(quantity("100m") < quantity("0.5") && quantity("1Gi") > quantity("1G"));
    }

    #[test]
    fn times_are_read_as_go_does() {
        for (text, expected) in [("500ms", 0.5), ("1m30s", 90.0), ("-1.5h", -5400.0), ("0", 0.0), ("+2s", 2.0)] {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        for bad in ["", "5", "s", "5 s", "1m30", "soon", "5d", "-"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }
}
