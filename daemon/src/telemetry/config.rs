//! What to export where: the Configuration's section and the environment,
//! resolved without doing anything yet.

use std::fmt;
use std::time::Duration;

use mecha_components_api::Secret;
use mecha_core::trace::{DEFAULT_SAMPLING_RATIO, Mode, Sampler};
use mecha_otlp::{DEFAULT_TIMEOUT, OtelEnv, OtlpPlan, OtlpProtocol, header, without_userinfo};

/// The Configuration's `tracing` section.
#[derive(Clone, Debug, Default)]
pub struct TracingConfig {
    /// Share of new traces, as text; `None` or empty: unset.
    pub sampling_rate: Option<String>,
    /// Write spans to standard output.
    pub stdout: bool,
    /// Zipkin's span endpoint, a URL.
    pub zipkin_endpoint: Option<String>,
    /// OTLP.
    pub otel: OtelConfig,
}

/// The Configuration's `tracing.otel` section.
#[derive(Clone, Debug)]
pub struct OtelConfig {
    /// `host:port`; `None` or empty: the environment decides.
    pub endpoint_address: Option<String>,
    /// `http` or `grpc`.
    pub protocol: Option<String>,
    /// TLS.
    pub is_secure: bool,
    /// Sent with every export.
    pub headers: Vec<(String, Secret)>,
    /// More headers come once secret stores run; the exporter waits for them.
    pub headers_follow: bool,
    /// Limit of one export.
    pub timeout: Option<Duration>,
}

/// What [`plan`] found.
#[derive(Debug)]
pub struct Plan {
    /// What happens with trace context.
    pub mode: Mode,
    /// How new traces are sampled when spans are made.
    pub sampler: Sampler,
    /// Where spans go.
    pub exporters: Vec<ExporterPlan>,
    /// `service.name`.
    pub service_name: String,
    /// Attributes of the resource, `service.name` among them.
    pub resource: Vec<(String, String)>,
    /// Values that were ignored, and why.
    pub warnings: Vec<String>,
}

/// One exporter.
#[derive(Clone, Debug)]
pub enum ExporterPlan {
    /// A JSON line per span.
    Stdout,
    /// Zipkin v2 JSON.
    Zipkin {
        /// Where spans are posted.
        url: String,
    },
    /// OTLP.
    Otlp(OtlpPlan),
}

impl Default for OtelConfig {
    fn default() -> Self {
        Self {
            endpoint_address: None,
            protocol: None,
            is_secure: true,
            headers: Vec::new(),
            headers_follow: false,
            timeout: None,
        }
    }
}

impl fmt::Display for ExporterPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExporterPlan::Stdout => f.write_str("standard output"),
            ExporterPlan::Zipkin { url } => write!(f, "Zipkin at {}", without_userinfo(url)),
            ExporterPlan::Otlp(otlp) => write!(f, "{otlp}"),
        }
    }
}

/// Resolves everything. Mistakes cost the setting, not the start.
pub fn plan(config: &TracingConfig, env: &OtelEnv, app_id: &str) -> Plan {
    let mut warnings = Vec::new();
    let given = |text: &Option<String>| text.as_deref().map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned);
    let document_endpoint = given(&config.otel.endpoint_address);
    let env_endpoint = given(&env.endpoint).filter(|_| document_endpoint.is_none());
    let rate = match given(&config.sampling_rate) {
        Some(text) => Some(text.parse::<f64>().ok().filter(|rate| rate.is_finite()).unwrap_or_else(|| {
            warnings.push(format!("tracing.samplingRate: {text:?} is not a number; using {DEFAULT_SAMPLING_RATIO}"));
            DEFAULT_SAMPLING_RATIO
        })),
        // Whoever names a collector in the environment only wants to see traces.
        None => env_endpoint.is_some().then_some(1.0),
    };
    let mut exporters = Vec::new();
    if config.stdout {
        exporters.push(ExporterPlan::Stdout);
    }
    if let Some(url) = given(&config.zipkin_endpoint) {
        exporters.push(ExporterPlan::Zipkin { url });
    }
    if let Some(endpoint) = document_endpoint.as_deref().or(env_endpoint.as_deref()) {
        let from_env = document_endpoint.is_none();
        exporters.push(ExporterPlan::Otlp(otlp(config, env, endpoint, from_env, &mut warnings)));
    }
    let off = rate.is_some_and(|rate| rate <= 0.0);
    let mode = match (off, rate.is_some() || !exporters.is_empty()) {
        (true, _) => Mode::Off,
        (false, true) => Mode::On,
        (false, false) => Mode::PassThrough,
    };
    if off {
        exporters.clear();
    }
    let service_name = env.service_name(app_id);
    let resource = env.resource(&service_name);
    let sampler = Sampler::new(rate.unwrap_or(DEFAULT_SAMPLING_RATIO));
    Plan { mode, sampler, exporters, service_name, resource, warnings }
}

fn otlp(config: &TracingConfig, env: &OtelEnv, endpoint: &str, from_env: bool, warnings: &mut Vec<String>) -> OtlpPlan {
    let (protocol, insecure) = if from_env {
        (env.protocol.as_deref(), env.insecure)
    } else {
        (config.otel.protocol.as_deref(), !config.otel.is_secure)
    };
    let mut plan = OtlpPlan::new(OtlpProtocol::of(protocol), endpoint, insecure);
    for (name, value) in &config.otel.headers {
        match header(name, value.expose()) {
            Some((name, value)) => drop(plan.headers.insert(name, value)),
            None => warnings.push(format!("tracing.otel.headers: {name:?} is not a valid header; ignored")),
        }
    }
    // The environment's win.
    plan.headers.extend(env.headers.clone());
    plan.timeout = env.timeout.or(config.otel.timeout).unwrap_or(DEFAULT_TIMEOUT);
    plan
}
