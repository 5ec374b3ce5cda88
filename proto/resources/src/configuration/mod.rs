//! The Configuration document: types here, reading in `decode`, files in `crate::load`.

mod access;
mod decode;

pub use access::{AccessControl, AccessOperation, AccessPolicy, Api, ApiRule, DefaultAccess, SecretsScope};
pub use decode::API_NAMES;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::value::{Meta, NameValue, OpaqueJson, Resource};

/// Sampling rate where no document names one.
pub const DEFAULT_SAMPLING_RATE: f64 = 0.0001;
/// Lifetime of workload certificates where no document names one.
pub const DEFAULT_WORKLOAD_CERT_TTL: Duration = Duration::from_secs(24 * 3600);
/// Tolerated clock difference where no document names one.
pub const DEFAULT_ALLOWED_CLOCK_SKEW: Duration = Duration::from_secs(15 * 60);
/// Features that are on unless a document turns them off.
pub const FEATURES_ON_BY_DEFAULT: [&str; 2] = ["HotReload", "WorkflowsRemoteActivityReminder"];

/// A Configuration document (`dapr.io/v1alpha1`), or several of them merged.
/// A section that is not given is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Configuration {
    /// Name, namespace, scopes.
    #[serde(flatten)]
    pub meta: Meta,
    /// Tracing.
    pub tracing: Option<Tracing>,
    /// Metrics, older spelling; read both through [`Configuration::effective_metrics`].
    pub metric: Option<Metrics>,
    /// Metrics, newer spelling; wins field by field.
    pub metrics: Option<Metrics>,
    /// Middleware for calls of the API.
    pub http_pipeline: Option<Pipeline>,
    /// Middleware for calls to the app.
    pub app_http_pipeline: Option<Pipeline>,
    /// Scopes of secret stores.
    pub secrets: Option<Vec<SecretsScope>>,
    /// Component types that are refused, as `type` or `type/version`.
    pub denied_components: Option<Vec<String>>,
    /// APIs that are open.
    pub api: Option<Api>,
    /// Features turned on or off.
    pub features: Option<Vec<Feature>>,
    /// API logging.
    pub api_logging: Option<ApiLogging>,
    /// mTLS.
    pub mtls: Option<Mtls>,
    /// Name resolution.
    pub name_resolution: Option<NameResolution>,
    /// Access control list of the app.
    pub access_control: Option<AccessControl>,
    /// Settings of the workflow engine.
    pub workflow: Option<OpaqueJson>,
    /// Settings of WebAssembly middleware.
    pub wasm: Option<OpaqueJson>,
}

/// `spec.tracing`
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tracing {
    /// Ratio as text; empty when not given, `0` is off.
    pub sampling_rate: String,
    /// Spans to standard output.
    pub stdout: bool,
    /// OTLP.
    pub otel: Option<Otel>,
    /// URL of a Zipkin collector, empty for none.
    pub zipkin_endpoint: String,
}

impl Tracing {
    /// The ratio from 0 to 1; `None` when not given.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        self.sampling_rate.trim().parse::<f64>().ok().filter(|r| r.is_finite()).map(|r| r.clamp(0.0, 1.0))
    }
}

/// `spec.tracing.otel`
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Otel {
    /// Address of the collector; empty when not given.
    pub endpoint_address: String,
    /// Protocol; `None` when not given.
    pub protocol: Option<OtelProtocol>,
    /// TLS; on unless turned off.
    pub is_secure: bool,
    /// Headers of each export.
    pub headers: Vec<NameValue>,
    /// Limit of one export.
    #[serde(serialize_with = "crate::value::optional_duration_text")]
    pub timeout: Option<Duration>,
}

/// Protocol of an OTLP exporter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OtelProtocol {
    /// OTLP over HTTP.
    Http,
    /// OTLP over gRPC.
    Grpc,
}

/// `spec.metric` or `spec.metrics`
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Metrics {
    /// On unless turned off.
    pub enabled: Option<bool>,
    /// Count API errors by code; off unless turned on.
    pub record_error_codes: Option<bool>,
    /// Upper bounds of the latency buckets in ms; empty means the built-in ones.
    pub latency_distribution_buckets: Vec<u64>,
    /// HTTP server metrics.
    pub http: Option<HttpMetrics>,
    /// Rewriting of labels.
    pub rules: Vec<MetricRule>,
    /// Settings of the workflow metrics.
    pub workflow: Option<OpaqueJson>,
}

/// `spec.metrics.http`
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpMetrics {
    /// Paths and methods as labels; on unless turned off.
    pub increased_cardinality: Option<bool>,
    /// Path patterns that become labels.
    pub path_matching: Vec<String>,
    /// Leave the method out; off unless turned on.
    pub exclude_verbs: Option<bool>,
}

/// Rewriting of the labels of one metric.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct MetricRule {
    /// Name of the metric.
    pub name: String,
    /// Labels to rewrite.
    pub labels: Vec<MetricLabel>,
}

/// Rewriting of one label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct MetricLabel {
    /// Name of the label.
    pub name: String,
    /// New value → pattern of the values it replaces.
    pub regex: BTreeMap<String, String>,
}

/// `spec.httpPipeline` or `spec.appHttpPipeline`
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Pipeline {
    /// Outermost first.
    pub handlers: Vec<Handler>,
}

/// One middleware of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Handler {
    /// Name of the component.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its version; empty means `v1`.
    pub version: String,
    /// Conditions, as field and value.
    pub selector: Vec<(String, String)>,
}

/// One entry of `spec.features`
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Feature {
    /// Name.
    pub name: String,
    /// On or off.
    pub enabled: bool,
}

/// `spec.logging.apiLogging`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiLogging {
    /// Log each call; `None` leaves it to the command line.
    pub enabled: Option<bool>,
    /// Leave names out of paths.
    pub obfuscate_urls: bool,
    /// Do not log health checks.
    pub omit_health_checks: bool,
}

/// `spec.mtls`
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mtls {
    /// Whether it is on.
    pub enabled: bool,
    /// Lifetime of a certificate.
    #[serde(serialize_with = "crate::value::duration_text")]
    pub workload_cert_ttl: Duration,
    /// Tolerated clock difference.
    #[serde(serialize_with = "crate::value::duration_text")]
    pub allowed_clock_skew: Duration,
    /// Address of sentry, empty when not given.
    pub sentry_address: String,
    /// Trust domain of the control plane, empty when not given.
    pub control_plane_trust_domain: String,
    /// Names of validators of additional tokens with their options.
    pub token_validators: Vec<TokenValidator>,
}

/// One entry of `spec.mtls.tokenValidators`
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct TokenValidator {
    /// Name, such as `jwks`.
    pub name: String,
    /// Its options.
    pub options: OpaqueJson,
}

/// `spec.nameResolution`
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct NameResolution {
    /// Type after `nameresolution.`, empty for the default of the mode.
    pub component: String,
    /// Version; empty means `v1`.
    pub version: String,
    /// Settings of the resolver.
    pub configuration: OpaqueJson,
}

impl Resource for Configuration {
    const KIND: &'static str = "Configuration";

    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl Configuration {
    /// Lays `later` over this one: each section that it has replaces the one here.
    pub fn merge(&mut self, later: Self) {
        fn take<T>(here: &mut Option<T>, later: Option<T>) {
            if later.is_some() {
                *here = later;
            }
        }
        if !later.meta.name.is_empty() {
            self.meta = later.meta;
        }
        take(&mut self.tracing, later.tracing);
        take(&mut self.metric, later.metric);
        take(&mut self.metrics, later.metrics);
        take(&mut self.http_pipeline, later.http_pipeline);
        take(&mut self.app_http_pipeline, later.app_http_pipeline);
        take(&mut self.secrets, later.secrets);
        take(&mut self.denied_components, later.denied_components);
        take(&mut self.api, later.api);
        take(&mut self.features, later.features);
        take(&mut self.api_logging, later.api_logging);
        take(&mut self.mtls, later.mtls);
        take(&mut self.name_resolution, later.name_resolution);
        take(&mut self.access_control, later.access_control);
        take(&mut self.workflow, later.workflow);
        take(&mut self.wasm, later.wasm);
    }

    /// Metrics with `metrics` laid over `metric` field by field.
    #[must_use]
    pub fn effective_metrics(&self) -> Metrics {
        let (Some(older), Some(newer)) = (&self.metric, &self.metrics) else {
            return self.metrics.clone().or_else(|| self.metric.clone()).unwrap_or_default();
        };
        let list = |newer: &[u64], older: &[u64]| if newer.is_empty() { older.to_vec() } else { newer.to_vec() };
        Metrics {
            enabled: newer.enabled.or(older.enabled),
            record_error_codes: newer.record_error_codes.or(older.record_error_codes),
            latency_distribution_buckets: list(
                &newer.latency_distribution_buckets,
                &older.latency_distribution_buckets,
            ),
            http: newer.http.clone().or_else(|| older.http.clone()),
            rules: if newer.rules.is_empty() { older.rules.clone() } else { newer.rules.clone() },
            workflow: newer.workflow.clone().or_else(|| older.workflow.clone()),
        }
    }

    /// Whether a feature is on, by this document or by default.
    #[must_use]
    pub fn feature(&self, name: &str) -> bool {
        let named = self.features.iter().flatten().find(|f| f.name == name);
        named.map_or_else(|| FEATURES_ON_BY_DEFAULT.contains(&name), |f| f.enabled)
    }

    /// The scope of a secret store, if there is one.
    #[must_use]
    pub fn secrets_scope(&self, store: &str) -> Option<&SecretsScope> {
        self.secrets.iter().flatten().find(|s| s.store_name == store)
    }

    /// Whether components of `kind` and `version` are refused. An entry without a version
    /// means all of them; case does not count.
    #[must_use]
    pub fn denies_component(&self, kind: &str, version: &str) -> bool {
        let version = if version.is_empty() { "v1" } else { version };
        self.denied_components.iter().flatten().any(|entry| match entry.split_once('/') {
            None => entry.eq_ignore_ascii_case(kind),
            Some((k, v)) => k.eq_ignore_ascii_case(kind) && (v.is_empty() || v.eq_ignore_ascii_case(version)),
        })
    }
}
