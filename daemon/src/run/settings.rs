//! From the Configuration document and the options to the settings of each part.

use std::collections::BTreeSet;
use std::time::Duration;

use mecha_components_api::{Metadata, Secret};
use mecha_core::api_rules::{ApiRule, ApiRules};
use mecha_core::metadata::{AppConnection, AppHealthInfo, Fixed};
use mecha_core::metrics::{MetricsConfig, MetricsError};
use mecha_core::secrets::{SecretScope, SecretScopes};
use mecha_resources::{Configuration, DefaultAccess, ValueSource, env_ref_allowed};

use crate::cli::Options;
use crate::http::ApiLog;
use crate::telemetry::TracingConfig;

/// Refuses sections that guard calls and that this version does not run: leaving a guard out
/// in silence would let through what it is there to stop.
pub(super) fn refuse_unbuilt(config: &Configuration) -> Result<(), String> {
    let pipelines = [("httpPipeline", &config.http_pipeline), ("appHttpPipeline", &config.app_http_pipeline)];
    for (section, pipeline) in pipelines {
        if let Some(handler) = pipeline.as_ref().and_then(|p| p.handlers.first()) {
            return Err(format!(
                "Configuration: {section} names the middleware '{}' ({}), and this version runs none. \
                 Remove the section to start without it",
                handler.name, handler.kind
            ));
        }
    }
    Ok(())
}

/// Where spans go and how many are made. Headers that lie in a secret store follow, see
/// `span_headers`.
pub(super) fn tracing(config: &Configuration, env: &dyn Fn(&str) -> Option<String>) -> TracingConfig {
    let Some(document) = &config.tracing else { return TracingConfig::default() };
    TracingConfig::from_document(document, |header| match &header.value {
        ValueSource::Plain(value) => Some(Secret::new(value.expose())),
        ValueSource::Secret(_) => None,
        ValueSource::Env(variable) if env_ref_allowed(variable, env("DAPR_ENV_KEYS").as_deref()) => {
            Some(Secret::new(env(variable).unwrap_or_default()))
        }
        ValueSource::Env(variable) => {
            tracing::warn!(
                target: "dapr.runtime",
                "tracing.otel.headers: '{}' is left out: documents may not read the environment variable '{variable}'",
                header.name
            );
            None
        }
    })
}

/// What is counted, and how it is labelled.
pub(super) fn metrics(config: &Configuration, options: &Options) -> MetricsConfig {
    let mut out = MetricsConfig::new(&options.app_id, options.env.namespace.clone().unwrap_or_default());
    out.enabled = options.metrics.enabled;
    out.with_document(&config.effective_metrics())
}

/// Says which setting of the metrics is wrong, where it costs no more than itself.
pub(super) fn left_out(mistake: &MetricsError) {
    tracing::error!(target: "dapr.metrics", "Configuration: {mistake}; the setting is left out");
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
