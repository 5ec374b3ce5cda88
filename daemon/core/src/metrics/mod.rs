//! Prometheus metrics under the names and labels of the public contract.
//!
//! [`Metrics`] is a value, not a global: the daemon makes one, gives clones of
//! its `Arc` to whoever reports, and serves [`Metrics::encode`] on the metrics
//! port. Handles ([`Counter`], [`Histogram`], and the groups in [`OpMetrics`]
//! and its siblings) are looked up when a component is built, so that the hot
//! path is a few relaxed atomic operations.

#[cfg(test)]
mod change_tests;
mod document;
mod encode;
mod family;
mod follow;
mod names;
mod path;
mod process;
mod series;
mod settings;
#[cfg(test)]
mod tests;
mod typed;

use std::sync::Arc;

use arc_swap::ArcSwap;
use thiserror::Error;

pub use encode::{CONTENT_TYPE, go_number};
use family::Family;
use follow::Followers;
pub use follow::Following;
pub use names::{Desc, Kind, Metric, Scale};
pub use path::{HttpLabelConfig, HttpLabels, PathSide};
pub use series::{Counter, Gauge, Histogram};
pub use settings::CheckedMetrics;
use settings::Settings;
pub use typed::{
    BulkIngressMetrics, CircuitState, FlowDirection, HttpExchange, IngressMetrics, OpBlock, OpMetrics, PolicyKind,
    PolicyMetrics, ProcessStatus, RpcExchange,
};

/// Default bounds of latency histograms, milliseconds.
pub const LATENCY_MS: &[f64] = &[
    1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 13.0, 16.0, 20.0, 25.0, 30.0, 40.0, 50.0, 65.0, 80.0, 100.0, 130.0, 160.0,
    200.0, 250.0, 300.0, 400.0, 500.0, 650.0, 800.0, 1000.0, 2000.0, 5000.0, 10_000.0, 20_000.0, 50_000.0, 100_000.0,
];

/// Bounds of size histograms, bytes.
pub const SIZE_BYTES: &[f64] = &[
    1024.0,
    2048.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
    268_435_456.0,
    1_073_741_824.0,
    4_294_967_296.0,
];

/// Default cap on label sets per metric. Enough for the routes of any app we
/// know, and at 34 buckets about half a megabyte for one histogram at worst.
pub const DEFAULT_SERIES_CAP: usize = 1000;

/// What the metrics are made from: the `--enable-metrics` flag, the identity
/// of the app and the Configuration's `metrics` section.
#[derive(Clone, Debug)]
pub struct MetricsConfig {
    /// Off: no series exists, every handle does nothing.
    pub enabled: bool,
    /// Value of the `app_id` label of every series.
    pub app_id: String,
    /// Value of the `namespace` label where a metric has one.
    pub namespace: String,
    /// Whether `error_code/total` is reported.
    pub record_error_codes: bool,
    /// Replaces [`LATENCY_MS`]; milliseconds, strictly increasing.
    pub latency_buckets_ms: Option<Vec<f64>>,
    /// Path and method labels.
    pub http: HttpLabelConfig,
    /// Label rewriting.
    pub rules: Vec<MetricRule>,
    /// Most label sets per metric before the overflow series takes the rest.
    pub series_cap: usize,
}

/// Rewrites label values of one metric (Configuration `metrics.rules`).
#[derive(Clone, Debug, PartialEq)]
pub struct MetricRule {
    /// Metric name, with or without `dapr_`, with slashes or underscores.
    pub name: String,
    /// Labels to rewrite.
    pub labels: Vec<LabelRule>,
}

/// Rewrites one label.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelRule {
    /// Label name.
    pub name: String,
    /// Pairs of new value and regular expression; each expression's matches
    /// are replaced, in this order. `$1` refers to a group.
    pub regex: Vec<(String, String)>,
}

/// Why metrics could not be set up. Names the field of the Configuration.
#[derive(Debug, Error, PartialEq)]
pub enum MetricsError {
    /// Bounds are not strictly increasing finite numbers.
    #[error("metrics.latencyDistributionBuckets: must be increasing numbers, got {0:?}")]
    Buckets(Vec<f64>),
    /// A path pattern cannot be compiled.
    #[error("metrics.http.pathMatching: {0}")]
    Path(String),
    /// A rule names a metric that does not exist.
    #[error("metrics.rules: no metric is named {0:?}")]
    UnknownMetric(String),
    /// A rule names a label its metric does not have.
    #[error("metrics.rules: metric {metric:?} has no label {label:?} (it has {known})")]
    UnknownLabel {
        /// As written in the rule.
        metric: String,
        /// As written in the rule.
        label: String,
        /// Comma-separated labels of the metric.
        known: String,
    },
    /// A rule's expression does not compile.
    #[error("metrics.rules: metric {metric:?}, label {label:?}: {reason}")]
    Regex {
        /// As written in the rule.
        metric: String,
        /// As written in the rule.
        label: String,
        /// From the regular expression parser.
        reason: String,
    },
}

/// The registry. Cheap to share; all methods take `&self`.
#[derive(Debug)]
pub struct Metrics {
    namespace: Box<str>,
    now: ArcSwap<Settings>,
    followers: Followers,
}

impl MetricsConfig {
    /// Everything on, defaults of the contract.
    pub fn new(app_id: impl Into<String>, namespace: impl Into<String>) -> Self {
        Self {
            enabled: true,
            app_id: app_id.into(),
            namespace: namespace.into(),
            record_error_codes: false,
            latency_buckets_ms: None,
            http: HttpLabelConfig::default(),
            rules: Vec::new(),
            series_cap: DEFAULT_SERIES_CAP,
        }
    }
}

impl Metrics {
    /// Builds all families; refuses a configuration with mistakes.
    pub fn new(config: MetricsConfig) -> Result<Self, MetricsError> {
        let (metrics, mistakes) = Self::lenient(config);
        match mistakes.into_iter().next() {
            Some(mistake) => Err(mistake),
            None => Ok(metrics),
        }
    }

    /// Builds all families without the settings that are wrong, and says which
    /// those are: a bad rule must not keep the daemon from starting.
    pub fn lenient(config: MetricsConfig) -> (Self, Vec<MetricsError>) {
        Self::build(config, None)
    }

    /// As [`Metrics::lenient`], with the counts of `old` going on as after
    /// [`Metrics::change`]. Handles made by `old` keep working and feed the
    /// same series. Used when the daemon is rebuilt inside its process.
    pub fn succeed(old: &Metrics, config: MetricsConfig) -> (Self, Vec<MetricsError>) {
        Self::build(config, Some(&old.now.load()))
    }

    fn build(config: MetricsConfig, before: Option<&Settings>) -> (Self, Vec<MetricsError>) {
        let namespace = config.namespace.as_str().into();
        let (checked, mistakes) = config.check();
        let now = ArcSwap::from_pointee(Settings::new(checked, before));
        (Self { namespace, now, followers: Followers::default() }, mistakes)
    }

    /// A registry whose handles do nothing.
    pub fn disabled() -> Self {
        let now = ArcSwap::from_pointee(Settings::off());
        Self { namespace: Box::default(), now, followers: Followers::default() }
    }

    /// Puts other settings in force. A series whose label values the new ones
    /// leave as they are goes on with its count, unless its buckets change;
    /// every other series ends. While metrics are off nothing counts, and
    /// what was counted before goes on afterwards.
    pub fn change(&self, to: CheckedMetrics) {
        self.followers.renew(self, || {
            let next = Settings::new(to, Some(&self.now.load()));
            self.now.store(Arc::new(next));
        });
    }

    /// Whether anything is reported.
    pub fn is_enabled(&self) -> bool {
        self.now.load().enabled
    }

    /// The counter for these label values: one per label of the metric
    /// besides `app_id`, in the order of [`Desc::labels`]. Does nothing if
    /// the metric is no counter. Whoever keeps it asks by [`Metrics::follow`].
    pub fn counter(&self, metric: Metric, labels: &[&str]) -> Counter {
        self.now.load().counter(metric, labels)
    }

    /// The gauge for these label values; see [`Metrics::counter`].
    pub fn gauge(&self, metric: Metric, labels: &[&str]) -> Gauge {
        self.now.load().gauge(metric, labels)
    }

    /// The histogram for these label values; see [`Metrics::counter`].
    pub fn histogram(&self, metric: Metric, labels: &[&str]) -> Histogram {
        self.now.load().histogram(metric, labels)
    }

    /// Everything in Prometheus text format, process figures included.
    pub fn encode(&self) -> String {
        let mut out = String::with_capacity(8 * 1024);
        let now = self.now.load();
        if now.enabled {
            let mut sorted: Vec<&Arc<Family>> = now.families.iter().collect();
            sorted.sort_by(|a, b| a.name.cmp(&b.name));
            for family in sorted {
                encode::family(&mut out, family);
            }
        }
        process::encode(&mut out);
        out
    }
}
