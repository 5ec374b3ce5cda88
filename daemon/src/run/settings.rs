//! From the Configuration document and the options to the settings of each part.

use std::collections::BTreeSet;
use std::time::Duration;

use mecha_components_api::{Metadata, Secret};
use mecha_core::api_rules::{ApiRule, ApiRules};
use mecha_core::metadata::{AppConnection, AppHealthInfo, Fixed};
use mecha_core::metrics::{HttpLabelConfig, LabelRule, MetricRule, MetricsConfig};
use mecha_core::secrets::{SecretScope, SecretScopes};
use mecha_resources::{Configuration, DefaultAccess, OtelProtocol, ValueSource};

use crate::cli::Options;
use crate::http::ApiLog;
use crate::telemetry::{OtelConfig, TracingConfig};

/// Where spans go and how many are made.
pub(super) fn tracing(config: &Configuration) -> TracingConfig {
    let Some(t) = &config.tracing else { return TracingConfig::default() };
    let text = |t: &str| (!t.is_empty()).then(|| t.to_owned());
    let otel = t.otel.as_ref().map_or_else(OtelConfig::default, |o| OtelConfig {
        endpoint_address: text(&o.endpoint_address),
        protocol: o.protocol.map(|p| match p {
            OtelProtocol::Http => "http".to_owned(),
            OtelProtocol::Grpc => "grpc".to_owned(),
        }),
        is_secure: o.is_secure,
        headers: o
            .headers
            .iter()
            .filter_map(|h| match &h.value {
                ValueSource::Plain(v) => Some((h.name.clone(), Secret::new(v.expose()))),
                // Exporters start before the secret stores do.
                _ => None,
            })
            .collect(),
        timeout: o.timeout,
    });
    TracingConfig {
        sampling_rate: text(&t.sampling_rate),
        stdout: t.stdout,
        zipkin_endpoint: text(&t.zipkin_endpoint),
        otel,
    }
}

/// What is counted, and how it is labelled.
pub(super) fn metrics(config: &Configuration, options: &Options) -> MetricsConfig {
    let m = config.effective_metrics();
    let mut out = MetricsConfig::new(&options.app_id, options.env.namespace.clone().unwrap_or_default());
    out.enabled = options.metrics.enabled && m.enabled.unwrap_or(true);
    out.record_error_codes = m.record_error_codes.unwrap_or(false);
    if !m.latency_distribution_buckets.is_empty() {
        // Whole milliseconds far below 2^53.
        out.latency_buckets_ms = Some(m.latency_distribution_buckets.iter().map(|b| *b as f64).collect());
    }
    if let Some(http) = &m.http {
        out.http = HttpLabelConfig {
            increased_cardinality: http.increased_cardinality.unwrap_or(true),
            path_matching: http.path_matching.clone(),
            exclude_verbs: http.exclude_verbs.unwrap_or(false),
        };
    }
    out.rules = m
        .rules
        .iter()
        .map(|r| MetricRule {
            name: r.name.clone(),
            labels: r
                .labels
                .iter()
                .map(|l| LabelRule {
                    name: l.name.clone(),
                    regex: l.regex.iter().map(|(new, pattern)| (new.clone(), pattern.clone())).collect(),
                })
                .collect(),
        })
        .collect();
    out
}

/// Which secrets this app may read.
pub(super) fn secret_scopes(config: &Configuration) -> SecretScopes {
    let set = |names: &[String]| names.iter().cloned().collect::<BTreeSet<_>>();
    let scopes = config.secrets.iter().flatten();
    scopes
        .map(|s| {
            let scope = SecretScope {
                deny_by_default: s.default_access == DefaultAccess::Deny,
                allowed: set(&s.allowed_secrets),
                denied: set(&s.denied_secrets),
            };
            (s.store_name.clone(), scope)
        })
        .collect()
}

/// Which APIs are open, with warnings about rules that match nothing.
pub(super) fn api_rules(config: &Configuration, strict: bool) -> (ApiRules, Vec<String>) {
    let Some(api) = &config.api else { return Default::default() };
    let list = |rules: &[mecha_resources::ApiRule]| -> Vec<ApiRule> {
        let rule = |r: &mecha_resources::ApiRule| ApiRule {
            name: r.name.clone(),
            version: r.version.clone(),
            protocol: r.protocol.clone(),
        };
        rules.iter().map(rule).collect()
    };
    ApiRules::compile(&list(&api.allowed), &list(&api.denied), strict)
}

/// The API log: the flag decides whether, the document how.
pub(super) fn api_log(config: &Configuration, options: &Options) -> ApiLog {
    let doc = config.api_logging.unwrap_or_default();
    ApiLog {
        enabled: options.api_logging.or(doc.enabled).unwrap_or(false),
        obfuscate: doc.obfuscate_urls,
        omit_health: doc.omit_health_checks,
    }
}

/// What the metadata API shows of this run.
pub(super) fn fixed(
    config: &Configuration,
    options: &Options,
    endpoints: Vec<String>,
    resiliencies: Vec<String>,
) -> Fixed {
    let app = options.app_port.map(|port| AppConnection {
        port,
        protocol: options.app_protocol.name().to_owned(),
        channel_address: options.app_channel_address.clone(),
        max_concurrency: options.app_max_concurrency.map_or(0, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        health: options.app_health.as_ref().map(|h| AppHealthInfo {
            path: if options.app_protocol.is_grpc() { String::new() } else { h.path.clone() },
            interval: go_duration(h.interval),
            timeout: go_duration(h.timeout),
            threshold: h.threshold,
        }),
    });
    let known = mecha_resources::FEATURES_ON_BY_DEFAULT.iter().map(|f| (*f).to_owned());
    let named = config.features.iter().flatten().map(|f| f.name.clone());
    let mut features: Vec<String> = known.chain(named).filter(|f| config.feature(f)).collect();
    features.sort_unstable();
    features.dedup();
    Fixed { app, features, http_endpoints: endpoints, resiliencies }
}

fn go_duration(d: Duration) -> String {
    mecha_resources::format_duration(d)
}

/// Settings of a name resolver as component metadata.
pub(super) fn resolver_metadata(settings: &serde_json::Value) -> Metadata {
    let members = settings.as_object().into_iter().flatten();
    members.map(|(k, v)| (k.clone(), v.as_str().map_or_else(|| v.to_string(), str::to_owned))).collect()
}
