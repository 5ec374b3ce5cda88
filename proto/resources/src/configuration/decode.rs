use std::time::Duration;

use super::{
    AccessControl, AccessOperation, AccessPolicy, Api, ApiLogging, ApiRule, Configuration, DEFAULT_ALLOWED_CLOCK_SKEW,
    DEFAULT_WORKLOAD_CERT_TTL, DefaultAccess, Feature, Handler, HttpMetrics, MetricLabel, MetricRule, Metrics, Mtls,
    NameResolution, Otel, OtelProtocol, Pipeline, SecretsScope, TokenValidator, Tracing,
};
use crate::decode::Obj;
use crate::text::did_you_mean;
use crate::value::{Meta, OpaqueJson};

/// Trust domain of an app where no document names one.
const DEFAULT_TRUST_DOMAIN: &str = "public";

const ACTIONS: [(&str, DefaultAccess); 2] = [("allow", DefaultAccess::Allow), ("deny", DefaultAccess::Deny)];

/// Names of APIs in allow and deny lists.
pub const API_NAMES: [&str; 19] = [
    "invoke",
    "state",
    "publish",
    "bindings",
    "subscribe",
    "secrets",
    "actors",
    "metadata",
    "configuration",
    "lock",
    "unlock",
    "crypto",
    "subtlecrypto",
    "workflows",
    "healthz",
    "jobs",
    "shutdown",
    "conversation",
    // Our own: phase and receipts.
    "mecha",
];

const API_VERSIONS: [&str; 8] =
    ["v1", "v1alpha1", "v1alpha2", "v1beta1", "v1.0", "v1.0-alpha1", "v1.0-alpha2", "v1.0-beta1"];

impl Configuration {
    pub(crate) fn decode(root: &Obj<'_>, meta: Meta) -> Self {
        let mut doc = Self { meta, ..Self::default() };
        let Some(spec) = root.object("spec") else { return doc };
        doc.tracing = spec.object("tracing").map(|o| tracing(&o));
        doc.metric = spec.object("metric").map(|o| metrics(&o));
        doc.metrics = spec.object("metrics").map(|o| metrics(&o));
        doc.http_pipeline = spec.object("httpPipeline").map(|o| pipeline(&o));
        doc.app_http_pipeline = spec.object("appHttpPipeline").map(|o| pipeline(&o));
        doc.secrets = spec.object("secrets").map(|o| secrets(&o));
        doc.denied_components = spec.object("components").map(|o| o.texts("deny"));
        doc.api =
            spec.object("api").map(|o| Api { allowed: api_rules(&o, "allowed"), denied: api_rules(&o, "denied") });
        doc.features = spec.has("features").then(|| features(&spec));
        doc.api_logging = spec.object("logging").and_then(|o| o.object("apiLogging").map(|o| api_logging(&o)));
        doc.mtls = spec.object("mtls").map(|o| mtls(&o));
        doc.name_resolution = spec.object("nameResolution").map(|o| NameResolution {
            component: o.text_or_empty("component"),
            version: o.text_or_empty("version"),
            configuration: o.json("configuration").unwrap_or_default(),
        });
        doc.access_control = spec.object("accessControl").map(|o| access_control(&o));
        doc.workflow = spec.json("workflow");
        doc.wasm = spec.json("wasm");
        doc
    }
}

fn tracing(o: &Obj<'_>) -> Tracing {
    let tracing = Tracing {
        sampling_rate: o.text_or_empty("samplingRate"),
        stdout: o.flag("stdout").unwrap_or_default(),
        otel: o.object("otel").map(|o| otel(&o)),
        zipkin_endpoint: o.object("zipkin").map(|z| z.text_or_empty("endpointAddress")).unwrap_or_default(),
    };
    if !tracing.sampling_rate.trim().is_empty() && tracing.ratio().is_none() {
        o.warn("samplingRate", "must be a number from 0 to 1; the default is used", None);
    }
    tracing
}

fn otel(o: &Obj<'_>) -> Otel {
    Otel {
        endpoint_address: o.text_or_empty("endpointAddress"),
        protocol: o.one_of("protocol", &[("http", OtelProtocol::Http), ("grpc", OtelProtocol::Grpc)]),
        is_secure: o.flag("isSecure").unwrap_or(true),
        headers: o.name_values("headers"),
        timeout: o.duration("timeout", Duration::from_millis(1)),
    }
}

fn metrics(o: &Obj<'_>) -> Metrics {
    let mut buckets = Vec::new();
    for node in o.nodes("latencyDistributionBuckets") {
        match node.scalar_text().and_then(|t| t.parse::<u64>().ok()) {
            Some(bound) => buckets.push(bound),
            None => o.error("latencyDistributionBuckets", "must be a list of whole numbers of milliseconds"),
        }
    }
    if !buckets.is_sorted_by(|a, b| a < b) {
        o.error("latencyDistributionBuckets", "must be in ascending order");
    }
    Metrics {
        enabled: o.flag("enabled"),
        record_error_codes: o.flag("recordErrorCodes"),
        latency_distribution_buckets: buckets,
        http: o.object("http").map(|h| HttpMetrics {
            increased_cardinality: h.flag("increasedCardinality"),
            path_matching: h.texts("pathMatching"),
            exclude_verbs: h.flag("excludeVerbs"),
        }),
        rules: o
            .objects("rules")
            .into_iter()
            .map(|rule| MetricRule {
                name: rule.text_or_empty("name"),
                labels: rule
                    .objects("labels")
                    .into_iter()
                    .map(|label| MetricLabel { name: label.text_or_empty("name"), regex: label.named_texts("regex") })
                    .collect(),
            })
            .collect(),
        workflow: o.json("workflow"),
    }
}

fn pipeline(o: &Obj<'_>) -> Pipeline {
    let handlers = o.objects("handlers").into_iter().map(|h| Handler {
        name: h.required("name"),
        kind: h.required("type"),
        version: h.text_or_empty("version"),
        selector: h
            .object("selector")
            .map(|s| s.objects("fields"))
            .into_iter()
            .flatten()
            .map(|f| (f.text_or_empty("field"), f.text_or_empty("value")))
            .collect(),
    });
    Pipeline { handlers: handlers.collect() }
}

fn secrets(o: &Obj<'_>) -> Vec<SecretsScope> {
    let mut scopes: Vec<SecretsScope> = Vec::new();
    for scope in o.objects("scopes") {
        let store_name = scope.required("storeName");
        if scopes.iter().any(|s| s.store_name == store_name) {
            scope.error("storeName", format!("\"{store_name}\" storeName is repeated in secrets configuration"));
        }
        scopes.push(SecretsScope {
            store_name,
            default_access: scope.one_of("defaultAccess", &ACTIONS).unwrap_or_default(),
            allowed_secrets: scope.texts("allowedSecrets"),
            denied_secrets: scope.texts("deniedSecrets"),
        });
    }
    scopes
}

fn api_rules(o: &Obj<'_>, list: &'static str) -> Vec<ApiRule> {
    let rules = o.objects(list).into_iter().map(|rule| {
        let api = ApiRule {
            name: rule.text_or_empty("name"),
            version: rule.text_or_empty("version"),
            protocol: rule.text_or_empty("protocol"),
        };
        for (field, value, known) in [
            ("name", &api.name, &API_NAMES[..]),
            ("version", &api.version, &API_VERSIONS[..]),
            ("protocol", &api.protocol, &["http", "grpc"][..]),
        ] {
            if value.is_empty() {
                rule.warn(field, "is empty, so the rule matches nothing", None);
            } else if !known.contains(&value.as_str()) {
                let suggestion = did_you_mean(value, known.iter().copied());
                rule.warn(field, format!("'{value}' is unknown, so the rule matches nothing"), suggestion);
            }
        }
        api
    });
    rules.collect()
}

fn features(spec: &Obj<'_>) -> Vec<Feature> {
    let features = spec.objects("features").into_iter();
    features.map(|f| Feature { name: f.required("name"), enabled: f.flag("enabled").unwrap_or_default() }).collect()
}

fn api_logging(o: &Obj<'_>) -> ApiLogging {
    ApiLogging {
        enabled: o.flag("enabled"),
        obfuscate_urls: o.flag("obfuscateURLs").unwrap_or_default(),
        omit_health_checks: o.flag("omitHealthChecks").unwrap_or_default(),
    }
}

fn mtls(o: &Obj<'_>) -> Mtls {
    let second = Duration::from_secs(1);
    Mtls {
        enabled: o.flag("enabled").unwrap_or_default(),
        workload_cert_ttl: o.duration("workloadCertTTL", second).unwrap_or(DEFAULT_WORKLOAD_CERT_TTL),
        allowed_clock_skew: o.duration("allowedClockSkew", second).unwrap_or(DEFAULT_ALLOWED_CLOCK_SKEW),
        sentry_address: o.text_or_empty("sentryAddress"),
        control_plane_trust_domain: o.text_or_empty("controlPlaneTrustDomain"),
        token_validators: o
            .objects("tokenValidators")
            .into_iter()
            .map(|v| TokenValidator {
                name: v.required("name"),
                options: v.json("options").unwrap_or_else(|| OpaqueJson::new(serde_json::Value::Null)),
            })
            .collect(),
    }
}

fn access_control(o: &Obj<'_>) -> AccessControl {
    let trust_domain = o.text("trustDomain").filter(|t| !t.is_empty());
    AccessControl {
        default_action: o.one_of("defaultAction", &ACTIONS),
        trust_domain: trust_domain.unwrap_or_else(|| DEFAULT_TRUST_DOMAIN.to_owned()),
        policies: o
            .objects("policies")
            .into_iter()
            .map(|policy| AccessPolicy {
                app_id: policy.required("appId"),
                namespace: policy.required("namespace"),
                trust_domain: policy.required("trustDomain"),
                default_action: policy.one_of("defaultAction", &ACTIONS),
                operations: policy.objects("operations").iter().map(operation).collect(),
            })
            .collect(),
    }
}

fn operation(o: &Obj<'_>) -> AccessOperation {
    AccessOperation {
        name: o.required("name"),
        http_verb: o.texts("httpVerb"),
        // A missing action must not open anything.
        action: o.one_of("action", &ACTIONS).unwrap_or_else(|| {
            if !o.has("action") {
                o.error("action", "is required: allow or deny");
            }
            DefaultAccess::Deny
        }),
    }
}
