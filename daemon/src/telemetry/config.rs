//! What to export where: the Configuration's section and the environment,
//! resolved without doing anything yet.

use std::fmt;
use std::time::Duration;

use mecha_components_api::Secret;
use mecha_core::trace::{DEFAULT_SAMPLING_RATIO, Mode, Sampler};
use percent_encoding::percent_decode_str;

use crate::cli::OtelEnv;

/// Until an export has failed, when nobody says how long.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Path of OTLP over HTTP.
const OTLP_PATH: &str = "/v1/traces";

const SERVICE_NAME: &str = "service.name";

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

/// OTLP's two transports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OtlpProtocol {
    /// Port 4317 by custom.
    Grpc,
    /// Protobuf over HTTP; port 4318 by custom.
    Http,
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

/// An OTLP exporter.
#[derive(Clone, Debug)]
pub struct OtlpPlan {
    /// Transport.
    pub protocol: OtlpProtocol,
    /// With scheme; for HTTP with path.
    pub url: String,
    /// Lower-case names.
    pub headers: Vec<(String, Secret)>,
    /// Limit of one export.
    pub timeout: Duration,
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
            ExporterPlan::Otlp(otlp) => write!(f, "OTLP at {}", without_userinfo(&otlp.url)),
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
    let service_name = given(&env.service_name).unwrap_or_else(|| app_id.to_owned());
    let mut resource = vec![(SERVICE_NAME.to_owned(), service_name.clone())];
    for (key, value) in
        pairs(env.resource_attributes.as_deref().unwrap_or_default(), "OTEL_RESOURCE_ATTRIBUTES", &mut warnings)
    {
        if key != SERVICE_NAME {
            resource.push((key, value));
        }
    }
    let sampler = Sampler::new(rate.unwrap_or(DEFAULT_SAMPLING_RATIO));
    Plan { mode, sampler, exporters, service_name, resource, warnings }
}

fn otlp(config: &TracingConfig, env: &OtelEnv, endpoint: &str, from_env: bool, warnings: &mut Vec<String>) -> OtlpPlan {
    let (scheme, rest) = match endpoint.split_once("://") {
        Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
        None => (String::new(), endpoint),
    };
    let (protocol, insecure) = if from_env {
        (env.protocol.as_deref(), env.insecure)
    } else {
        (config.otel.protocol.as_deref(), !config.otel.is_secure)
    };
    let protocol = match protocol {
        Some(text) if text.trim().to_ascii_lowercase().starts_with("http") => OtlpProtocol::Http,
        _ => OtlpProtocol::Grpc,
    };
    // A scheme is the clearest word on TLS; the incumbent drops it and then
    // talks TLS to a plain port.
    let scheme = if insecure || scheme == "http" { "http" } else { "https" };
    let rest = rest.trim_end_matches('/');
    let url = match protocol {
        OtlpProtocol::Grpc => format!("{scheme}://{rest}"),
        OtlpProtocol::Http if rest.ends_with(OTLP_PATH) => format!("{scheme}://{rest}"),
        OtlpProtocol::Http => format!("{scheme}://{rest}{OTLP_PATH}"),
    };
    let mut headers: Vec<(String, Secret)> =
        config.otel.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
    if let Some(text) = &env.headers {
        for (name, value) in pairs(text.expose(), "OTEL_EXPORTER_OTLP_HEADERS", warnings) {
            let name = name.to_ascii_lowercase();
            headers.retain(|(known, _)| *known != name);
            headers.push((name, Secret::new(value)));
        }
    }
    headers.retain(|(name, value)| {
        let valid = is_header(name, value);
        if !valid {
            warnings.push(format!("tracing.otel.headers: {name:?} is not a valid header; ignored"));
        }
        valid
    });
    OtlpPlan { protocol, url, headers, timeout: env.timeout.or(config.otel.timeout).unwrap_or(DEFAULT_TIMEOUT) }
}

pub(super) fn is_header(name: &str, value: &Secret) -> bool {
    http::HeaderName::try_from(name).is_ok() && http::HeaderValue::try_from(value.expose()).is_ok()
}

/// csv of `key=value`, values percent-decoded. Warnings name no value: it may be a token.
fn pairs(text: &str, variable: &str, warnings: &mut Vec<String>) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for (at, pair) in text.split(',').enumerate().filter(|(_, pair)| !pair.trim().is_empty()) {
        let decoded = pair.split_once('=').and_then(|(key, value)| {
            let key = key.trim();
            let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
            (!key.is_empty()).then(|| (key.to_owned(), value.into_owned()))
        });
        match decoded {
            Some(pair) => pairs.push(pair),
            None => warnings.push(format!("{variable}: entry {} is not key=value; ignored", at + 1)),
        }
    }
    pairs
}

/// For logs and errors: a URL may hold a password.
fn without_userinfo(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let host_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..host_end].rfind('@') {
        Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
        None => url.to_owned(),
    }
}
