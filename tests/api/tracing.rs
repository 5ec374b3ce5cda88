//! Trace context through every hop, and spans to collectors.

use bytes::Bytes;
use mecha_tests::{Answer, Call, GrpcApp, HttpApp, Item, Sidecar, component, eventually};
use prost::Message;
use serde_json::{Value, json};
use tonic::Request;

use crate::support::{Pair, memory_pubsub, memory_store, wait_subscriptions};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const ALWAYS: &str = "tracing:\n  samplingRate: \"1\"\n";

#[tokio::test]
async fn a_trace_goes_through_both_sidecars() {
    let app = HttpApp::builder().on("/x", Answer::text("ok")).start().await;
    let names = tempfile::tempdir().unwrap();
    let spec = format!("{ALWAYS}{}", crate::support::registry(names.path()));
    let callee = Sidecar::builder().app_id("callee").app(&app).configuration(&spec).start().await;
    let caller = Sidecar::builder().app_id("caller").configuration(&spec).start().await;
    let request = caller.http().get("/v1.0/invoke/callee/method/x").header("traceparent", PARENT);
    let reply = request.header("tracestate", "vendor=1").header("baggage", "who=me").send().await.expect(200);
    let call = &app.calls("/x")[0];
    let seen = call.header("traceparent");
    assert!(seen.contains(TRACE) && seen.ends_with("-01"), "{seen}");
    assert_ne!(seen, PARENT, "a span of its own");
    assert_eq!((call.header("tracestate"), call.header("baggage")), ("vendor=1", "who=me"));
    assert!(reply.header("traceparent").contains(TRACE), "{:?}", reply.headers);
    drop(callee);
}

#[tokio::test]
async fn without_sampling_a_context_is_passed_on_and_none_is_made_up() {
    let app = HttpApp::builder().on("/x", Answer::text("ok")).start().await;
    let pair = Pair::with(&app).await;
    let http = pair.caller.http();
    http.get("/v1.0/invoke/callee/method/x").header("traceparent", PARENT).send().await.expect(200);
    let reply = http.get("/v1.0/invoke/callee/method/x").send().await.expect(200);
    let calls = app.calls("/x");
    assert_eq!(calls[0].header("traceparent"), PARENT);
    assert_eq!((calls[1].header("traceparent"), reply.header("traceparent")), ("", ""));
}

#[tokio::test]
async fn rate_zero_leaves_headers_alone() {
    let app = HttpApp::builder().on("/x", Answer::text("ok")).start().await;
    let sidecar =
        Sidecar::builder().app_id("me").app(&app).configuration("tracing:\n  samplingRate: \"0\"\n").start().await;
    let request = sidecar.http().get("/v1.0/invoke/me/method/x").header("traceparent", PARENT);
    let reply = request.header("baggage", "not valid baggage,,=").send().await.expect(200);
    assert_eq!(app.calls("/x")[0].header("traceparent"), PARENT);
    assert_eq!(app.calls("/x")[0].header("baggage"), "not valid baggage,,=");
    assert_eq!((reply.header("traceparent"), reply.header("baggage")), ("", ""));
}

#[tokio::test]
async fn bad_baggage_is_refused_and_a_bad_parent_starts_anew() {
    let app = HttpApp::builder().on("/x", Answer::text("ok")).start().await;
    let sidecar = Sidecar::builder().app_id("me").app(&app).configuration(ALWAYS).start().await;
    let http = sidecar.http();
    let reply = http.get("/v1.0/invoke/me/method/x").header("baggage", "a b c").send().await.expect(400);
    assert!(reply.text().starts_with("invalid baggage header: "), "{}", reply.text());
    for bad in [
        "nonsense",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ] {
        app.forget();
        http.get("/v1.0/invoke/me/method/x").header("traceparent", bad).send().await.expect(200);
        let calls = app.calls("/x");
        let seen = calls[0].header("traceparent");
        assert!(seen.len() == 55 && seen.starts_with("00-") && !seen.contains(TRACE), "{bad}: {seen}");
        assert_ne!(&seen[3..35], "00000000000000000000000000000000");
    }
}

#[tokio::test]
async fn events_carry_the_trace_of_their_publisher() {
    let app = HttpApp::builder()
        .subscribe(&json!([{"pubsubname": "events", "topic": "topic", "route": "/in"}]))
        .on("POST /in", Answer::status(200))
        .start()
        .await;
    let sidecar = Sidecar::builder().app(&app).configuration(ALWAYS).component(memory_pubsub("events")).start().await;
    wait_subscriptions(&sidecar, 1).await;
    sidecar.http().post("/v1.0/publish/events/topic", "x").header("traceparent", PARENT).send().await.expect(204);
    let mut grpc = sidecar.grpc().await;
    let mut request = Request::new(mecha_proto::runtime::PublishEventRequest {
        pubsub_name: "events".to_owned(),
        topic: "topic".to_owned(),
        data: Bytes::from_static(b"y"),
        ..Default::default()
    });
    request.metadata_mut().insert("traceparent", PARENT.parse().unwrap());
    grpc.publish_event(request).await.unwrap();
    for call in app.wait_calls("POST /in", 2).await {
        let event = call.json();
        let inside = event["traceparent"].as_str().unwrap();
        assert!(inside.contains(TRACE), "{event}");
        assert_eq!(event["traceid"], event["traceparent"]);
        let delivered = call.header("traceparent");
        assert!(delivered.contains(TRACE) && delivered != inside, "{delivered} is a child of {inside}");
    }
}

#[tokio::test]
async fn a_grpc_app_and_a_grpc_caller_share_a_trace() {
    let app = GrpcApp::builder().on_invoke(|_| Ok(mecha_proto::common::InvokeResponse::default())).start().await;
    let sidecar = Sidecar::builder().app_id("me").grpc_app(&app).configuration(ALWAYS).start().await;
    let mut request = Request::new(mecha_proto::runtime::InvokeServiceRequest {
        id: "me".to_owned(),
        message: Some(mecha_proto::common::InvokeRequest { method: "x".to_owned(), ..Default::default() }),
    });
    request.metadata_mut().insert("traceparent", PARENT.parse().unwrap());
    let answer = sidecar.grpc().await.invoke_service(request).await.unwrap();
    let echoed = answer.metadata().get("traceparent").map(|value| value.to_str().unwrap().to_owned());
    assert!(echoed.is_some_and(|value| value.contains(TRACE)), "{:?}", answer.metadata());
    let (_, metadata) = app.invocations().pop().unwrap();
    let seen = metadata.get("traceparent").map(|value| value.to_str().unwrap().to_owned());
    assert!(seen.is_some_and(|value| value.contains(TRACE)), "{metadata:?}");
}

/// A collector, and a sidecar that did some work for it.
async fn with_collector(spec: impl Fn(u16) -> String, env: &[(&str, &str)]) -> (HttpApp, Sidecar) {
    let collector = HttpApp::builder().on("/*", Answer::status(200)).start().await;
    let app = HttpApp::builder().on("/x", Answer::status(500)).start().await;
    let mut builder = Sidecar::builder().app_id("me").app(&app).component(memory_store("store"));
    let text = spec(collector.port());
    if !text.is_empty() {
        builder = builder.configuration(&text);
    }
    for (name, value) in env {
        builder = builder.env(name, value.replace("PORT", &collector.port().to_string()));
    }
    let sidecar = builder.start().await;
    let http = sidecar.http();
    http.get("/v1.0/state/store/k").header("traceparent", PARENT).send().await.expect(204);
    http.get("/v1.0/invoke/me/method/x").header("traceparent", PARENT).send().await.expect(500);
    http.get("/v1.0/healthz").header("traceparent", PARENT).send().await.expect(204);
    sidecar.apis().await[1].save("store", &[Item::new("k", "1")]).await.unwrap();
    (collector, sidecar)
}

#[tokio::test]
async fn spans_go_to_zipkin() {
    let spec = |port| {
        format!(
            "tracing:\n  samplingRate: \"1\"\n  zipkin:\n    endpointAddress: http://127.0.0.1:{port}/api/v2/spans\n"
        )
    };
    let (collector, _sidecar) = with_collector(spec, &[]).await;
    let spans = eventually("spans", || async {
        let calls = collector.calls("POST /api/v2/spans");
        let spans: Vec<Value> = calls.iter().flat_map(|call: &Call| call.json().as_array().cloned().unwrap()).collect();
        spans
            .iter()
            .any(|span| span["name"].as_str().is_some_and(|n| n.to_lowercase().contains("/v1.0/state/store")))
            .then_some(spans)
    })
    .await;
    let state =
        spans.iter().find(|span| span["name"].as_str().unwrap().to_lowercase().contains("/v1.0/state/store")).unwrap();
    assert_eq!(state["traceId"], TRACE);
    assert_eq!(state["parentId"], "b7ad6b7169203331");
    assert_eq!(state["localEndpoint"]["serviceName"], "me");
    assert!(spans.iter().all(|span| !span["name"].as_str().unwrap().contains("healthz")), "{spans:?}");
}

/// The parts of OTLP that these cases look at.
mod otlp {
    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Export {
        #[prost(message, repeated, tag = "1")]
        pub(super) resources: Vec<ResourceSpans>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct ResourceSpans {
        #[prost(message, optional, tag = "1")]
        pub(super) resource: Option<Resource>,
        #[prost(message, repeated, tag = "2")]
        pub(super) scopes: Vec<ScopeSpans>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Resource {
        #[prost(message, repeated, tag = "1")]
        pub(super) attributes: Vec<KeyValue>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct ScopeSpans {
        #[prost(message, repeated, tag = "2")]
        pub(super) spans: Vec<Span>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Span {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) trace_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "4")]
        pub(super) parent_span_id: Vec<u8>,
        #[prost(string, tag = "5")]
        pub(super) name: String,
        #[prost(int32, tag = "6")]
        pub(super) kind: i32,
        #[prost(message, repeated, tag = "9")]
        pub(super) attributes: Vec<KeyValue>,
        #[prost(message, optional, tag = "15")]
        pub(super) status: Option<SpanStatus>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct SpanStatus {
        #[prost(int32, tag = "3")]
        pub(super) code: i32,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct KeyValue {
        #[prost(string, tag = "1")]
        pub(super) key: String,
        #[prost(message, optional, tag = "2")]
        pub(super) value: Option<AnyValue>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct AnyValue {
        #[prost(string, optional, tag = "1")]
        pub(super) text: Option<String>,
    }

    impl Span {
        pub(super) fn attribute(&self, key: &str) -> Option<String> {
            let found = self.attributes.iter().find(|pair| pair.key == key)?;
            found.value.clone()?.text
        }
    }
}

fn spans_of(calls: &[Call]) -> (Vec<otlp::KeyValue>, Vec<otlp::Span>) {
    let mut spans = Vec::new();
    let mut attributes = Vec::new();
    for call in calls {
        // A gRPC body has five bytes of framing before its message.
        let body = if call.header("content-type").starts_with("application/grpc") {
            call.body.slice(5..)
        } else {
            call.body.clone()
        };
        let export = otlp::Export::decode(body).unwrap();
        for resource in export.resources {
            attributes.extend(resource.resource.unwrap_or_default().attributes);
            spans.extend(resource.scopes.into_iter().flat_map(|scope| scope.spans));
        }
    }
    (attributes, spans)
}

async fn check_otlp(collector: &HttpApp, route: &str, service: &str) {
    let (resource, spans) = eventually("spans", || async {
        let (resource, spans) = spans_of(&collector.calls(route));
        let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
        let done = ["/v1.0/state/store", "/v1.0/invoke/me/method/x", "SaveState"]
            .iter()
            .all(|part| names.iter().any(|name| name.contains(part)));
        done.then_some((resource, spans))
    })
    .await;
    let named = resource.iter().find(|pair| pair.key == "service.name").and_then(|pair| pair.value.clone());
    assert_eq!(named.and_then(|value| value.text).as_deref(), Some(service));
    let span = |part: &str| spans.iter().find(|span| span.name.contains(part)).unwrap();
    let state = span("/v1.0/state/store");
    assert_eq!(hex(&state.trace_id), TRACE);
    assert_eq!(hex(&state.parent_span_id), "b7ad6b7169203331");
    assert_eq!(state.kind, 3, "client kind");
    assert_eq!(state.attribute("db.name").as_deref(), Some("store"), "{:?}", state.attributes);
    let save = span("SaveState");
    for (key, value) in [
        ("db.system", "state"),
        ("db.name", "store"),
        ("db.statement", "/dapr.proto.runtime.v1.Dapr/SaveState"),
        ("db.connection_string", "state"),
        ("rpc.service", "Dapr"),
    ] {
        assert_eq!(save.attribute(key).as_deref(), Some(value), "{key}: {:?}", save.attributes);
    }
    let invoke = span("/v1.0/invoke/me/method/x");
    assert_eq!(invoke.status.as_ref().map(|status| status.code), Some(2), "an error by its 500");
    assert!(spans.iter().all(|span| !span.name.contains("healthz")));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn spans_go_to_an_otlp_collector_over_http() {
    let spec = |port| {
        format!(
            "tracing:\n  samplingRate: \"1\"\n  otel:\n    endpointAddress: 127.0.0.1:{port}\n    isSecure: false\n    \
             protocol: http\n    headers:\n      - name: x-tenant\n        value: blue\n"
        )
    };
    let (collector, _sidecar) = with_collector(spec, &[]).await;
    check_otlp(&collector, "POST /v1/traces", "me").await;
    let call = &collector.calls("POST /v1/traces")[0];
    assert_eq!((call.header("content-type"), call.header("x-tenant")), ("application/x-protobuf", "blue"));
}

#[tokio::test]
async fn spans_go_to_an_otlp_collector_over_grpc() {
    let spec = |port| {
        format!(
            "tracing:\n  samplingRate: \"1\"\n  otel:\n    endpointAddress: 127.0.0.1:{port}\n    isSecure: false\n    \
             protocol: grpc\n"
        )
    };
    let (collector, _sidecar) = with_collector(spec, &[]).await;
    check_otlp(&collector, "POST /opentelemetry.proto.collector.trace.v1.TraceService/Export", "me").await;
}

#[tokio::test]
async fn headers_for_the_collector_may_lie_in_a_secret_store() {
    let collector = HttpApp::builder().on("/*", Answer::status(200)).start().await;
    let spec = format!(
        "tracing:\n  samplingRate: \"1\"\n  otel:\n    endpointAddress: 127.0.0.1:{}\n    isSecure: false\n    \
         protocol: http\n    headers:\n      - name: Authorization\n        secretKeyRef:\n          name: COLLECTOR\n          \
         key: COLLECTOR\n      - name: x-lost\n        secretKeyRef:\n          name: NOT_THERE\n          key: other\n      - \
         name: x-tenant\n        value: blue\n",
        collector.port()
    );
    let secrets = component("secrets", "secretstores.local.env", &[]);
    let builder = Sidecar::builder().component(secrets).component(memory_store("store")).configuration(&spec);
    let sidecar = builder.env("COLLECTOR", "Bearer canary").start().await;
    sidecar.http().get("/v1.0/state/store/k").send().await.expect(204);
    let calls = collector.wait_calls("POST /v1/traces", 1).await;
    assert_eq!((calls[0].header("authorization"), calls[0].header("x-tenant")), ("Bearer canary", "blue"));
    let log = sidecar.log();
    assert!(!log.contains("canary"), "a header's value stays out of the log");
}

#[tokio::test]
async fn a_call_to_another_app_has_a_span_at_both_ends() {
    let collector = HttpApp::builder().on("/*", Answer::status(200)).start().await;
    let app = HttpApp::builder().on("/x", Answer::text("ok")).start().await;
    let port = collector.port();
    let spec = format!(
        "tracing:\n  samplingRate: \"1\"\n  otel:\n    endpointAddress: 127.0.0.1:{port}\n    isSecure: false\n    \
         protocol: http\n"
    );
    let pair = Pair::built(|b| b.configuration(&spec), |b| b.app(&app).configuration(&spec)).await;
    let call = pair.caller.http().get("/v1.0/invoke/callee/method/x").header("traceparent", PARENT);
    call.send().await.expect(200);
    let spans = eventually("both spans", || async {
        let (_, spans) = spans_of(&collector.calls("POST /v1/traces"));
        let there = |part: &str| spans.iter().any(|span| span.name.contains(part));
        (there("/v1.0/invoke/callee/method/x") && there("CallLocal/callee/x")).then_some(spans)
    })
    .await;
    let span = |part: &str| spans.iter().find(|span| span.name.contains(part)).unwrap();
    let (out, local) = (span("/v1.0/invoke/callee/method/x"), span("CallLocal/callee/x"));
    assert_eq!((hex(&out.trace_id), hex(&local.trace_id)), (TRACE.to_owned(), TRACE.to_owned()));
    assert_eq!((out.kind, local.kind), (3, 2), "client and server kind");
    assert_eq!(out.attribute("rpc.service").as_deref(), Some("ServiceInvocation"), "{:?}", out.attributes);
    assert_eq!(out.attribute("net.peer.name").as_deref(), Some("callee"), "{:?}", out.attributes);
    assert_eq!(out.attribute("dapr.invoke_method").as_deref(), Some("x"), "{:?}", out.attributes);
}

#[tokio::test]
async fn the_environment_may_name_the_collector() {
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:PORT"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_INSECURE", "true"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=re%64"),
        ("OTEL_SERVICE_NAME", "renamed"),
    ];
    let (collector, _sidecar) = with_collector(|_| String::new(), &env).await;
    check_otlp(&collector, "POST /v1/traces", "renamed").await;
    assert_eq!(collector.calls("POST /v1/traces")[0].header("x-tenant"), "red");
}

#[tokio::test]
async fn what_is_left_is_sent_at_the_stop() {
    let spec = |port| {
        format!(
            "tracing:\n  samplingRate: \"1\"\n  zipkin:\n    endpointAddress: http://127.0.0.1:{port}/api/v2/spans\n"
        )
    };
    let (collector, sidecar) = with_collector(spec, &[]).await;
    sidecar.http().get("/v1.0/state/store/last").header("traceparent", PARENT).send().await.expect(204);
    sidecar.signal(mecha_tests::Signal::Term);
    assert_eq!(sidecar.ended(std::time::Duration::from_secs(15)).await.code, Some(0));
    let text: String = collector.calls("POST /api/v2/spans").iter().map(Call::text).collect();
    assert!(text.contains("/v1.0/state/store"), "{text}");
}

#[tokio::test]
async fn a_collector_that_is_away_costs_nothing() {
    let port = mecha_tests::free_port();
    let spec = format!(
        "tracing:\n  samplingRate: \"1\"\n  otel:\n    endpointAddress: 127.0.0.1:{port}\n    isSecure: false\n    \
         protocol: http\n"
    );
    let sidecar = Sidecar::builder().configuration(&spec).component(memory_store("store")).start().await;
    let [api, _] = sidecar.apis().await;
    for n in 0..200 {
        api.save("store", &[Item::new(&format!("k{n}"), "1")]).await.unwrap();
    }
    sidecar.signal(mecha_tests::Signal::Term);
    let ended = sidecar.ended(std::time::Duration::from_secs(15)).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
}

#[tokio::test]
async fn spans_may_go_to_the_log() {
    let sidecar = Sidecar::builder()
        .configuration("tracing:\n  samplingRate: \"1\"\n  stdout: true\n")
        .component(memory_store("store"))
        .start()
        .await;
    sidecar.http().get("/v1.0/state/store/k").header("traceparent", PARENT).send().await.expect(204);
    sidecar.wait_log(TRACE).await;
}
