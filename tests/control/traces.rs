//! One trace from the decision over the delivery to the switch in the sidecar, at a collector.

use std::collections::BTreeSet;

use mecha_tests::{Answer, Call, HttpApp, wait_until};
use prost::Message;
use serde_json::{Value, json};

use crate::guide::{PATIENCE, Shop};
use crate::install::NAMESPACE;
use crate::roles::{AGENT, HUB, INJECTOR};

/// Where collectors take spans, over HTTP and over gRPC.
const ROUTES: [&str; 2] = ["POST /v1/traces", "POST /opentelemetry.proto.collector.trace.v1.TraceService/Export"];

/// A pod of the app that starts after its node knows where spans go.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: orders-traced
  annotations: {dapr.io/enabled: "true", dapr.io/app-id: orders-api, dapr.io/app-port: "8080"}
spec:
  serviceAccountName: default
  containers:
  - name: app
    image: example/orders-api:1
    ports: [{containerPort: 8080}]
"#;

/// The parts of OTLP that are looked at.
#[derive(Clone, PartialEq, Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.clone()?.text);
    found.unwrap_or_default()
}

/// Everything that came, as service and span.
fn all_spans(collector: &HttpApp) -> Vec<(String, Span)> {
    let calls: Vec<Call> = ROUTES.iter().flat_map(|route| collector.calls(route)).collect();
    let mut all = Vec::new();
    for call in calls {
        // A gRPC body has five bytes of framing before its message.
        let framing = if call.header("content-type").starts_with("application/grpc") { 5 } else { 0 };
        for resource in Export::decode(call.body.slice(framing..)).unwrap().resources {
            let service = text(&resource.resource.unwrap_or_default().attributes, "service.name");
            let spans = resource.scopes.into_iter().flat_map(|scope| scope.spans);
            all.extend(spans.map(|span| (service.clone(), span)));
        }
    }
    all
}

/// Everything that came in one trace, as service and span.
fn spans(collector: &HttpApp, trace: &str) -> Vec<(String, Span)> {
    all_spans(collector).into_iter().filter(|(_, span)| hex(&span.trace_id) == trace).collect()
}

/// Waits for a span of the service that says all this.
async fn said(collector: &HttpApp, service: &str, name: &str, attributes: &[(&str, &str)]) {
    wait_until(PATIENCE, &format!("a span {name} of {service} with {attributes:?}"), async || {
        all_spans(collector).iter().any(|(of, span)| {
            let says = |(key, value): &(&str, &str)| text(&span.attributes, key) == *value;
            of == service && span.name == name && attributes.iter().all(says)
        })
    })
    .await;
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Tells the injector where sidecars of the environment send their spans.
fn tell_sidecars(shop: &Shop, port: u16) {
    let map = ["-n", NAMESPACE, "configmap", "mecha-injector"];
    let config: Value =
        serde_json::from_str(&shop.server.kubectl(&[&["get", "-o", "json"], &map[..]].concat())).unwrap();
    let config = config["data"]["config.yaml"].as_str().unwrap().to_owned();
    let variables = json!({
        "OTEL_EXPORTER_OTLP_ENDPOINT": format!("http://127.0.0.1:{port}"),
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_SERVICE_NAME": "sidecar",
    });
    let telemetry = json!({"environments": {(shop.home.as_str()): variables}});
    let patch = json!({"data": {"config.yaml": format!("{config}\ntelemetry: {telemetry}\n")}}).to_string();
    shop.server.kubectl(&[&["patch"], &map[..], &["--type=merge", "-p", &patch]].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_goes_from_the_decision_over_the_delivery_to_the_switch_in_the_sidecar() {
    let Some(mut shop) = Shop::open().await else { return };
    let collector = HttpApp::builder().on("/*", Answer::status(200)).start().await;
    let endpoint = format!("http://127.0.0.1:{}", collector.port());
    for (role, protocol) in [(HUB, "grpc"), (AGENT, "http/protobuf"), (INJECTOR, "grpc")] {
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_SERVICE_NAME", role),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        shop.roles.variables(role, variables.into());
        shop.roles.kill(role);
        shop.roles.launch(&shop.server, role);
    }
    shop.roles.ready().await;
    tell_sidecars(&shop, collector.port());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), POD).unwrap();
    let file = file.path().to_string_lossy().into_owned();
    let tried = ["-n", &shop.home, "create", "--dry-run=server", "-o", "yaml", "-f", &file];
    wait_until(PATIENCE, "the injector to know where spans go", async || {
        shop.server.kubectl_refused(&tried).is_ok_and(|pod| pod.contains("OTEL_SERVICE_NAME"))
    })
    .await;
    shop.apply(POD);
    let ready = ".status.conditions[?(@.type==\"Ready\")].status";
    shop.shows(&["-n", &shop.home, "pod", "orders-traced"], ready, "True").await;
    // How the pod came to its sidecar, and the sidecar to its certificate.
    let app = [("mecha.namespace", shop.home.as_str()), ("mecha.app_id", "orders-api")];
    let injected = [("mecha.name", "orders-traced"), ("mecha.outcome", "injected")];
    said(&collector, INJECTOR, "admit pod", &[app, injected].concat()).await;
    said(&collector, AGENT, "issue certificate", &[&app[..], &[("mecha.outcome", "issued")]].concat()).await;
    std::fs::write(&file, POD.replace("\"8080\"", "\"http\"")).unwrap();
    shop.server.kubectl_refused(&tried).unwrap_err();
    let denied = [("mecha.outcome", "denied"), ("mecha.fields", "annotation dapr.io/app-port")];
    said(&collector, INJECTOR, "admit pod", &denied).await;

    // Where backends come from: one that is there once its Secret is, and a Secret that is rotated.
    let backend = "
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: redis-later}
spec:
  kind: state
  component: {type: state.redis, version: v1, metadata: [{name: redisHost, valueFrom: {key: host}}]}
  source: {secretRef: {name: redis-later, namespace: databases}}
";
    shop.server.apply(backend).unwrap();
    let of = |outcome| [("mecha.backend", "redis-later"), ("mecha.outcome", outcome)];
    said(&collector, AGENT, "resolve source", &of("SourceMissing")).await;
    let create = ["-n", "databases", "create", "secret", "generic", "redis-later", "--from-literal=host=secret-host:1"];
    shop.server.kubectl(&create);
    said(&collector, AGENT, "resolve source", &of("NotProbed")).await;
    let rotated =
        [("mecha.namespace", shop.home.as_str()), ("mecha.backend", "redis-blue"), ("mecha.outcome", "written")];
    let rotate = [
        "-n",
        "databases",
        "patch",
        "secret",
        "redis-blue",
        "--type=merge",
        "-p",
        r#"{"stringData": {"note": "secret-note"}}"#,
    ];
    shop.server.kubectl(&rotate);
    said(&collector, AGENT, "write secret", &rotated).await;
    let told = |(_, span): &(String, Span)| span.attributes.iter().any(|pair| format!("{pair:?}").contains("secret-"));
    assert!(!all_spans(&collector).iter().any(told), "a value of a Secret is in a span");

    shop.selects("green");
    shop.bound_to("redis-green").await;

    // From the receipt to the trace.
    let claim = ["-n", &shop.home, "capabilityclaim", "orders"];
    let trace = shop.field(&claim, ".status.history[0].trace").unwrap();
    assert_eq!(trace.len(), 32, "{trace}");
    let expected =
        [(HUB, "decide"), (HUB, "write binding"), (AGENT, "deliver documents"), ("sidecar", "apply documents")];
    let switched = |spans: &[(String, Span)]| {
        spans.iter().any(|(service, span)| service == "sidecar" && text(&span.attributes, "mecha.phases") == "Switch")
    };
    wait_until(PATIENCE, "spans of hub, agent and sidecar in the trace of the receipt", async || {
        let spans = spans(&collector, &trace);
        let there: BTreeSet<_> = spans.iter().map(|(service, span)| (service.as_str(), span.name.as_str())).collect();
        expected.iter().all(|wanted| there.contains(wanted)) && switched(&spans)
    })
    .await;
    let spans = spans(&collector, &trace);
    let of = |name: &str| spans.iter().filter(|(_, span)| span.name == name).map(|(_, span)| span).collect::<Vec<_>>();
    let decide = of("decide");
    assert_eq!(decide.len(), 1, "one edit, one decision");
    assert!(decide[0].parent_span_id.is_empty());
    let below: BTreeSet<_> = decide.iter().map(|span| span.span_id.clone()).collect();
    assert!(of("deliver documents").iter().all(|span| below.contains(&span.parent_span_id)));
    assert!(of("write binding").iter().all(|span| below.contains(&span.parent_span_id)));
    // What the sidecar does is part of a delivery. Its span may come before that of the agent.
    let all = "the deliveries of all that was applied";
    wait_until(PATIENCE, all, async || {
        let spans = self::spans(&collector, &trace);
        let delivered: BTreeSet<_> =
            spans.iter().filter(|(_, s)| s.name == "deliver documents").map(|(_, s)| s.span_id.clone()).collect();
        let mut applied = spans.iter().filter(|(_, s)| s.name == "apply documents");
        applied.all(|(_, span)| delivered.contains(&span.parent_span_id))
    })
    .await;
}
