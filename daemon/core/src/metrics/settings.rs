//! From the Configuration to the families of series, at a start and while series count.

use std::sync::Arc;

use regex::Regex;

use super::family::{Family, Rewrite};
use super::names::{Desc, Kind, Metric, Scale};
use super::path::{HttpLabels, PathSide};
use super::series::{Counter, Gauge, Histogram, Series};
use super::{LATENCY_MS, MetricRule, MetricsConfig, MetricsError, SIZE_BYTES};

/// What is counted and how it is labelled, from one change to the next.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) enabled: bool,
    pub(super) record_error_codes: bool,
    pub(super) http: HttpLabels,
    /// In declaration order of [`Metric`].
    pub(super) families: Box<[Arc<Family>]>,
}

/// Settings that were checked and are not in force yet.
#[derive(Debug)]
pub struct CheckedMetrics {
    enabled: bool,
    record_error_codes: bool,
    app_id: String,
    series_cap: usize,
    latency: Arc<[f64]>,
    http: HttpLabels,
    /// In declaration order of [`Metric`].
    rewrites: Vec<Vec<Rewrite>>,
}

impl MetricsConfig {
    /// Checks all of it. What is wrong is left out, and said.
    #[must_use]
    pub fn check(self) -> (CheckedMetrics, Vec<MetricsError>) {
        let mut mistakes = Vec::new();
        let latency: Arc<[f64]> = match self.latency_buckets_ms {
            Some(bounds) if !bounds.is_empty() => {
                let increasing = bounds.windows(2).all(|pair| pair[0] < pair[1]);
                if increasing && bounds.iter().all(|bound| bound.is_finite()) {
                    bounds.into()
                } else {
                    mistakes.push(MetricsError::Buckets(bounds));
                    LATENCY_MS.into()
                }
            }
            _ => LATENCY_MS.into(),
        };
        let rewrites = compile(&self.rules, &mut mistakes);
        let (http, bad_patterns) = HttpLabels::lenient(self.http);
        mistakes.extend(bad_patterns.into_iter().map(MetricsError::Path));
        let checked = CheckedMetrics {
            enabled: self.enabled,
            record_error_codes: self.record_error_codes,
            app_id: self.app_id,
            series_cap: self.series_cap,
            latency,
            http,
            rewrites,
        };
        (checked, mistakes)
    }
}

impl Settings {
    /// No series at all.
    pub(super) fn off() -> Self {
        Self { enabled: false, record_error_codes: false, http: HttpLabels::plain(), families: Box::default() }
    }

    /// Families of these settings. Series of `before` that mean the same under them go on, with
    /// whoever has a handle of theirs; the others end.
    pub(super) fn new(checked: CheckedMetrics, before: Option<&Self>) -> Self {
        let CheckedMetrics { enabled, record_error_codes, app_id, series_cap, latency, http, rewrites } = checked;
        let (bytes, none): (Arc<[f64]>, Arc<[f64]>) = (SIZE_BYTES.into(), Arc::default());
        let same_labels = before.is_some_and(|old| old.http.has_config_of(&http));
        let families = Metric::ALL.iter().zip(rewrites).map(|(metric, rewrites)| {
            let desc = metric.desc();
            let bounds = match desc.kind {
                Kind::Histogram(Scale::LatencyMs) => &latency,
                Kind::Histogram(Scale::Bytes) => &bytes,
                Kind::Counter | Kind::Gauge => &none,
            };
            let labels = all_labels(desc);
            let new = Family::new(desc, labels, &app_id, Arc::clone(bounds), rewrites.into(), series_cap);
            let reported = match metric {
                Metric::ErrorCodeTotal => record_error_codes,
                Metric::HttpServerResponseCount => http.increased_cardinality(),
                _ => true,
            };
            let old = before.and_then(|old| old.families.get(*metric as usize)).filter(|_| reported);
            let side = side(*metric).filter(|_| !same_labels);
            match old {
                Some(old) if side.is_none() && new.continues(old) => return Arc::clone(old),
                Some(old) => new.take_over(old, |series| {
                    let (path, method) = (new.value(series, "path"), new.value(series, "method"));
                    side.is_none_or(|side| http.path(side, path) == path && http.method(method) == method)
                }),
                None => {}
            }
            Arc::new(new)
        });
        Self { enabled, record_error_codes, families: families.collect(), http }
    }

    pub(super) fn counter(&self, metric: Metric, labels: &[&str]) -> Counter {
        debug_assert_eq!(metric.desc().kind, Kind::Counter, "{metric:?}");
        Counter(self.series(metric, labels))
    }

    pub(super) fn gauge(&self, metric: Metric, labels: &[&str]) -> Gauge {
        debug_assert_eq!(metric.desc().kind, Kind::Gauge, "{metric:?}");
        Gauge(self.series(metric, labels))
    }

    pub(super) fn histogram(&self, metric: Metric, labels: &[&str]) -> Histogram {
        debug_assert!(matches!(metric.desc().kind, Kind::Histogram(_)), "{metric:?}");
        Histogram(self.series(metric, labels))
    }

    fn series(&self, metric: Metric, labels: &[&str]) -> Option<Arc<Series>> {
        if !self.enabled {
            return None;
        }
        let found = self.families.get(metric as usize)?.series(labels);
        if found.overflowed && metric != Metric::MetricsOverflowTotal {
            self.counter(Metric::MetricsOverflowTotal, &[&metric.desc().scraped_name()]).inc();
        }
        Some(found.series)
    }
}

/// The side whose paths and methods label the metric.
fn side(metric: Metric) -> Option<PathSide> {
    match metric {
        Metric::HttpServerRequestCount | Metric::HttpServerResponseCount | Metric::HttpServerLatency => {
            Some(PathSide::Api)
        }
        Metric::HttpClientSentBytes | Metric::HttpClientRoundtripLatency | Metric::HttpClientCompletedCount => {
            Some(PathSide::App)
        }
        _ => None,
    }
}

/// Labels of a metric with `app_id` in its sorted place.
fn all_labels(desc: Desc) -> Box<[&'static str]> {
    let mut labels: Vec<&'static str> = desc.labels.to_vec();
    labels.push("app_id");
    labels.sort_unstable();
    labels.into()
}

/// Rules per metric, in declaration order of [`Metric`].
fn compile(rules: &[MetricRule], mistakes: &mut Vec<MetricsError>) -> Vec<Vec<Rewrite>> {
    let mut all: Vec<Vec<Rewrite>> = Metric::ALL.iter().map(|_| Vec::new()).collect();
    for rule in rules {
        let wanted = normal(&rule.name);
        let Some(metric) = Metric::ALL.iter().find(|metric| normal(metric.desc().path) == wanted) else {
            mistakes.push(MetricsError::UnknownMetric(rule.name.clone()));
            continue;
        };
        let labels = all_labels(metric.desc());
        for label in &rule.labels {
            let Some(at) = labels.iter().position(|name| *name == label.name) else {
                mistakes.push(MetricsError::UnknownLabel {
                    metric: rule.name.clone(),
                    label: label.name.clone(),
                    known: labels.join(", "),
                });
                continue;
            };
            for (replacement, pattern) in &label.regex {
                match Regex::new(pattern) {
                    Ok(pattern) => {
                        let replacement = replacement.as_str().into();
                        all[*metric as usize].push(Rewrite { label: at, pattern, replacement });
                    }
                    Err(error) => mistakes.push(MetricsError::Regex {
                        metric: rule.name.clone(),
                        label: label.name.clone(),
                        reason: error.to_string(),
                    }),
                }
            }
        }
    }
    all
}

fn normal(name: &str) -> String {
    let name = name.replace(['/', '.'], "_");
    name.strip_prefix("dapr_").map(str::to_owned).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_of_paths_has_a_side() {
        for metric in Metric::ALL {
            let by_path = metric.desc().labels.contains(&"path");
            assert_eq!(side(*metric).is_some(), by_path, "{metric:?}");
            assert!(!by_path || metric.desc().labels.contains(&"method"), "{metric:?}");
        }
    }
}
