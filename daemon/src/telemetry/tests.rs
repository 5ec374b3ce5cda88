use std::collections::BTreeMap;
use std::sync::Mutex;

use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mecha_components_api::Secret;
use mecha_core::trace::{SpanKind, TraceContext, attribute};
use mecha_otlp::OtlpProtocol;
use tokio::sync::mpsc;

use super::*;

fn with_rate(rate: &str) -> TracingConfig {
    TracingConfig { sampling_rate: Some(rate.into()), ..TracingConfig::default() }
}

fn otel(endpoint: &str) -> OtelConfig {
    OtelConfig { endpoint_address: Some(endpoint.into()), ..OtelConfig::default() }
}

fn variables(pairs: &[(&str, &str)]) -> (OtelEnv, Vec<String>) {
    let mut warnings = Vec::new();
    let lookup = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    (OtelEnv::read(&lookup, &mut warnings), warnings)
}

fn plan_of(config: &TracingConfig, env: &OtelEnv) -> Plan {
    plan(config, env, "shop")
}

fn otlp_of(plan: &Plan) -> &OtlpPlan {
    match &plan.exporters[..] {
        [ExporterPlan::Otlp(otlp)] => otlp,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_rate_and_the_exporters_decide_the_mode() {
    let none = OtelEnv::default();
    let stdout = TracingConfig { stdout: true, ..TracingConfig::default() };
    for (config, mode, ratio) in [
        (TracingConfig::default(), Mode::PassThrough, 0.0001),
        (with_rate(""), Mode::PassThrough, 0.0001),
        (with_rate("0"), Mode::Off, 0.0),
        (with_rate("0.0"), Mode::Off, 0.0),
        (with_rate("1"), Mode::On, 1.0),
        (with_rate("0.25"), Mode::On, 0.25),
        (with_rate("7"), Mode::On, 1.0),
        (with_rate("lots"), Mode::On, 0.0001),
        (stdout.clone(), Mode::On, 0.0001),
        (TracingConfig { sampling_rate: Some("0".into()), ..stdout }, Mode::Off, 0.0),
    ] {
        let plan = plan_of(&config, &none);
        assert_eq!((plan.mode, plan.sampler.ratio()), (mode, ratio), "{config:?}");
        assert!(plan.mode != Mode::Off || plan.exporters.is_empty());
    }
    assert!(plan_of(&with_rate("lots"), &none).warnings[0].contains("samplingRate"));
}

#[test]
fn an_endpoint_in_the_environment_samples_all() {
    let env = |endpoint: &str, protocol: Option<&str>, insecure: bool| OtelEnv {
        endpoint: Some(endpoint.into()),
        protocol: protocol.map(str::to_owned),
        insecure,
        ..OtelEnv::default()
    };
    for (env, protocol, url) in [
        (env("collector:4317", None, false), OtlpProtocol::Grpc, "https://collector:4317"),
        (env("collector:4317", None, true), OtlpProtocol::Grpc, "http://collector:4317"),
        (env("http://collector:4317/", None, false), OtlpProtocol::Grpc, "http://collector:4317"),
        (env("https://c:4318", Some("http/protobuf"), false), OtlpProtocol::Http, "https://c:4318/v1/traces"),
        (env("http://c:4318/v1/traces", Some("http/json"), false), OtlpProtocol::Http, "http://c:4318/v1/traces"),
    ] {
        let plan = plan_of(&TracingConfig::default(), &env);
        assert_eq!((plan.mode, plan.sampler.ratio()), (Mode::On, 1.0));
        assert_eq!((otlp_of(&plan).protocol, otlp_of(&plan).url.as_str()), (protocol, url));
        assert_eq!(plan_of(&with_rate("0.5"), &env).sampler.ratio(), 0.5);
    }
}

#[test]
fn the_documents_endpoint_wins_but_headers_and_timeout_are_the_environments() {
    let config = TracingConfig {
        otel: OtelConfig {
            protocol: Some("http".into()),
            is_secure: false,
            headers: vec![("X-Key".into(), Secret::new("doc")), ("x-other".into(), Secret::new("kept"))],
            timeout: Some(Duration::from_secs(3)),
            ..otel("doc:4318")
        },
        ..TracingConfig::default()
    };
    let (env, warnings) = variables(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "env:4317"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=from%20env, broken, bad name=x"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
    ]);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    let plan = plan_of(&config, &env);
    let otlp = otlp_of(&plan);
    assert_eq!((otlp.protocol, otlp.url.as_str()), (OtlpProtocol::Http, "http://doc:4318/v1/traces"));
    assert_eq!(plan.sampler.ratio(), 0.0001);
    let headers: BTreeMap<&str, &str> = otlp.headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
    assert_eq!(headers, BTreeMap::from([("x-key", "from env"), ("x-other", "kept")]));
    assert_eq!(otlp.timeout, Duration::from_millis(250));
    assert!(!format!("{plan:?}").contains("from env"));
    let without = plan_of(&config, &OtelEnv::default());
    assert_eq!(otlp_of(&without).timeout, Duration::from_secs(3));
}

#[test]
fn the_resource_names_the_service() {
    let (env, warnings) = variables(&[("OTEL_RESOURCE_ATTRIBUTES", "team=shop%20floor,service.name=other,=x")]);
    let plan = plan_of(&TracingConfig::default(), &env);
    assert_eq!(plan.resource, [("service.name".into(), "shop".into()), ("team".into(), "shop floor".into())]);
    assert_eq!(warnings.len(), 1);
    let named = OtelEnv { service_name: Some("front".into()), ..env };
    assert_eq!(plan_of(&TracingConfig::default(), &named).service_name, "front");
}

#[test]
fn passwords_in_urls_are_not_shown() {
    let exporter = ExporterPlan::Zipkin { url: "http://user:pass@zipkin:9411/api/v2/spans".into() };
    assert_eq!(exporter.to_string(), "Zipkin at http://zipkin:9411/api/v2/spans");
}

/// What a request to the stand-in collector was.
struct Received {
    path: String,
    headers: http::HeaderMap,
    body: bytes::Bytes,
}

/// Answers every request with 200 and shows what came.
async fn collector(grpc: bool) -> (String, mpsc::UnboundedReceiver<Received>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (seen, received) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let seen = seen.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let seen = seen.clone();
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        let _ = seen.send(Received { path: parts.uri.path().into(), headers: parts.headers, body });
                        let mut response = http::Response::new(Full::new(bytes::Bytes::from_static(if grpc {
                            &[0, 0, 0, 0, 0]
                        } else {
                            b""
                        })));
                        if grpc {
                            response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
                            response.headers_mut().insert("grpc-status", "0".parse().unwrap());
                        }
                        Ok::<_, std::convert::Infallible>(response)
                    }
                });
                if grpc {
                    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                } else {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                }
            });
        }
    });
    (address, received)
}

fn record(telemetry: &Telemetry) -> TraceContext {
    let mut span = telemetry.tracer().start(SpanKind::Client, None, || "/v1.0/state/store");
    span.set(attribute::DB_NAME, "store");
    span.http_status(503);
    span.context().unwrap().clone()
}

async fn next(received: &mut mpsc::UnboundedReceiver<Received>) -> Received {
    tokio::time::timeout(Duration::from_secs(20), received.recv()).await.expect("an export in time").unwrap()
}

fn contains(body: &[u8], part: &[u8]) -> bool {
    body.windows(part.len()).any(|window| window == part)
}

#[tokio::test]
async fn zipkin_gets_v2_json() {
    let (address, mut received) = collector(false).await;
    let config = TracingConfig { zipkin_endpoint: Some(format!("http://{address}/api/v2/spans")), ..with_rate("1") };
    let telemetry = Telemetry::start(&config, &OtelEnv::default(), "shop").unwrap();
    let context = record(&telemetry);
    assert!(telemetry.shutdown(Duration::from_secs(20)).await);
    let request = next(&mut received).await;
    assert_eq!(
        (request.path.as_str(), &request.headers["content-type"]),
        ("/api/v2/spans", &"application/json".parse::<http::HeaderValue>().unwrap())
    );
    let spans: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
    let span = &spans[0];
    assert_eq!(span["traceId"], context.trace_id.to_string());
    assert_eq!(span["id"], context.span_id.to_string());
    assert_eq!(span["kind"], "CLIENT");
    assert_eq!(span["name"], "/v1.0/state/store");
    assert_eq!(span["localEndpoint"]["serviceName"], "shop");
    assert_eq!(span["tags"]["db.name"], "store");
    assert_eq!(span["tags"]["dapr.status_code"], "503");
    assert_eq!(span["tags"]["error"], "HTTP 503");
    assert!(span["duration"].as_u64().unwrap() >= 1);
    assert!(span.get("parentId").is_none());
}

#[tokio::test]
async fn otlp_over_http_sends_protobuf_and_headers() {
    let (address, mut received) = collector(false).await;
    let config = TracingConfig {
        otel: OtelConfig {
            protocol: Some("http".into()),
            is_secure: false,
            headers: vec![("x-key".into(), Secret::new("k"))],
            ..otel(&address)
        },
        ..with_rate("1")
    };
    let telemetry = Telemetry::start(&config, &OtelEnv::default(), "shop").unwrap();
    let context = record(&telemetry);
    assert!(telemetry.shutdown(Duration::from_secs(20)).await);
    let request = next(&mut received).await;
    assert_eq!(request.path, "/v1/traces");
    assert_eq!(request.headers["content-type"], "application/x-protobuf");
    assert_eq!(request.headers["x-key"], "k");
    assert!(contains(&request.body, &context.trace_id.to_bytes()));
    assert!(contains(&request.body, b"service.name") && contains(&request.body, b"shop"));
}

#[tokio::test]
async fn otlp_over_grpc_sends_the_same() {
    let (address, mut received) = collector(true).await;
    let config = TracingConfig {
        otel: OtelConfig { is_secure: false, headers: vec![("x-key".into(), Secret::new("k"))], ..otel(&address) },
        ..with_rate("1")
    };
    let telemetry = Telemetry::start(&config, &OtelEnv::default(), "shop").unwrap();
    let context = record(&telemetry);
    assert!(telemetry.shutdown(Duration::from_secs(20)).await);
    let request = next(&mut received).await;
    assert_eq!(request.path, "/opentelemetry.proto.collector.trace.v1.TraceService/Export");
    assert_eq!(request.headers["x-key"], "k");
    assert!(contains(&request.body, &context.trace_id.to_bytes()));
}

#[tokio::test]
async fn a_collector_that_is_away_costs_no_time() {
    // Accepts and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config =
        TracingConfig { zipkin_endpoint: Some(format!("http://{}/", silent.local_addr().unwrap())), ..with_rate("1") };
    let telemetry = Telemetry::start(&config, &OtelEnv::default(), "shop").unwrap();
    let started = std::time::Instant::now();
    for _ in 0..3 * mecha_otlp::QUEUE {
        record(&telemetry);
    }
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(!telemetry.shutdown(Duration::from_millis(300)).await);
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn exporters_over_tls_are_built_without_connecting() {
    for protocol in ["grpc", "http"] {
        let config = TracingConfig {
            otel: OtelConfig { protocol: Some(protocol.into()), ..otel("collector.invalid:443") },
            ..with_rate("1")
        };
        let telemetry = Telemetry::start(&config, &OtelEnv::default(), "shop").unwrap();
        // No span, nothing to send: the stop is clean.
        assert!(telemetry.shutdown(Duration::from_secs(20)).await);
    }
}

#[tokio::test]
async fn a_bad_url_is_a_clear_error() {
    for url in ["zipkin:9411", "ftp://zipkin/", "http://"] {
        let config = TracingConfig { zipkin_endpoint: Some(url.into()), ..with_rate("1") };
        let error = Telemetry::start(&config, &OtelEnv::default(), "shop").unwrap_err().to_string();
        assert!(error.contains("cannot export traces to Zipkin"), "{error}");
    }
}

#[test]
fn spans_on_standard_output_are_json_objects() {
    let spans: Arc<Mutex<Vec<mecha_core::trace::FinishedSpan>>> = Arc::default();
    #[derive(Debug)]
    struct Kept(Arc<Mutex<Vec<mecha_core::trace::FinishedSpan>>>);
    impl SpanSink for Kept {
        fn export(&self, span: mecha_core::trace::FinishedSpan) {
            self.0.lock().unwrap().push(span);
        }
    }
    let tracer = Tracer::on(Sampler::new(1.0), Some(Arc::new(Kept(Arc::clone(&spans)))));
    let parent = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None);
    tracer.start(SpanKind::Server, parent.as_ref(), || "CallLocal/shop/buy").end();
    let span = spans.lock().unwrap().remove(0);
    let data = mecha_otlp::convert(span, opentelemetry::InstrumentationScope::default());
    let line = stdout::Stdout::default().line(&data);
    assert_eq!(line["Name"], "CallLocal/shop/buy");
    assert_eq!(line["TraceID"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(line["ParentSpanID"], "00f067aa0ba902b7");
    assert_eq!(line["SpanKind"], "server");
    let zipkin = zipkin::encode(&data, "shop");
    assert_eq!(zipkin["parentId"], "00f067aa0ba902b7");
}
