//! Names, labels and values on the metrics port.

use std::collections::{BTreeMap, BTreeSet};

use mecha_proto::Any;
use mecha_proto::common::{InvokeRequest, InvokeResponse};
use mecha_proto::internals::InternalInvokeRequest;
use mecha_proto::internals::service_invocation_client::ServiceInvocationClient;
use mecha_tests::{Answer, GrpcApp, Http, HttpApp, Item, Sidecar, Signal, component, eventually};
use serde_json::json;

use crate::support::{Pair, memory_pubsub, memory_store, series, wait_series, wait_subscriptions};

#[tokio::test]
async fn components_are_counted() {
    let builder = Sidecar::builder().app_id("me").env("NAMESPACE", "space");
    let root = builder.folder().join("files");
    let secrets = builder.folder().join("secrets.json");
    std::fs::write(&secrets, json!({"k": "v"}).to_string()).unwrap();
    let sidecar = builder
        .component(memory_store("store"))
        .component(memory_pubsub("events"))
        .component(component("files", "bindings.localstorage", &[("rootPath", root.to_str().unwrap())]))
        .component(component("vault", "secretstores.local.file", &[("secretsFile", secrets.to_str().unwrap())]))
        .start()
        .await;
    for api in sidecar.apis().await {
        api.save("store", &[Item::new("k", "1")]).await.unwrap();
        api.get("store", "k").await.unwrap();
        api.bulk_get("store", &["k"]).await.unwrap();
        api.transact("store", &[mecha_tests::Op::Upsert(Item::new("t", "1"))]).await.unwrap();
        api.save("store", &[Item::new("k", "1").etag("stale")]).await.unwrap_err();
        api.delete("store", "k", None).await.unwrap();
        api.publish("events", "topic", "", "x", &[]).await.unwrap();
        api.bulk_publish("events", "topic", &[("1", "text/plain", "x")], &[]).await.unwrap();
        api.binding("files", "list", "", &[]).await.unwrap();
        api.secret("vault", "k").await.unwrap();
        api.secrets("vault").await.unwrap();
    }
    let text = sidecar.metrics().await;
    let common = [("app_id", "me"), ("namespace", "space")];
    let count = |name: &str, labels: &[(&str, &str)]| {
        let labels: Vec<_> = labels.iter().chain(&common).copied().collect();
        series(&text, name, &labels).unwrap_or_else(|| panic!("{name}{labels:?} in\n{text}"))
    };
    let state = "dapr_component_state_count";
    for (operation, success, expected) in [
        ("set", "true", 2.0),
        ("set", "false", 2.0),
        ("get", "true", 2.0),
        ("bulk_get", "true", 2.0),
        ("delete", "true", 2.0),
        ("transaction", "true", 2.0),
    ] {
        let labels = [("component", "store"), ("operation", operation), ("success", success)];
        assert_eq!(count(state, &labels), expected, "{operation} {success}");
    }
    let published = [("component", "events"), ("success", "true"), ("topic", "topic")];
    assert_eq!(count("dapr_component_pubsub_egress_count", &published), 2.0);
    assert_eq!(count("dapr_component_pubsub_egress_bulk_count", &published), 2.0);
    let listed = [("component", "files"), ("operation", "list"), ("success", "true")];
    assert_eq!(count("dapr_component_output_binding_count", &listed), 2.0);
    for (operation, expected) in [("get", 2.0), ("bulk_get", 2.0)] {
        let labels = [("component", "vault"), ("operation", operation), ("success", "true")];
        assert_eq!(count("dapr_component_secret_count", &labels), expected);
    }
    assert_eq!(series(&text, "dapr_runtime_component_loaded", &[("app_id", "me")]), Some(4.0));
    let loaded = series(&text, "dapr_runtime_component_init_total", &[("component", "state.in-memory")]);
    assert_eq!(loaded, Some(1.0));
}

#[tokio::test]
async fn events_in_are_counted() {
    let app = HttpApp::builder()
        .subscribe(&json!([{"pubsubname": "events", "topic": "topic", "route": "/in"}]))
        .on("POST /in", Answer::status(200))
        .on("OPTIONS /tick", Answer::status(200))
        .on("POST /tick", Answer::status(200))
        .start()
        .await;
    let sidecar = Sidecar::builder()
        .app(&app)
        .component(memory_pubsub("events"))
        .component(component("tick", "bindings.cron", &[("schedule", "@every 1s")]))
        .start()
        .await;
    wait_subscriptions(&sidecar, 1).await;
    let [api, _] = sidecar.apis().await;
    api.publish("events", "topic", "", "x", &[]).await.unwrap();
    let labels = [("component", "events"), ("process_status", "success"), ("status", "success"), ("topic", "topic")];
    wait_series(&sidecar, "dapr_component_pubsub_ingress_count", &labels, 1.0).await;
    wait_series(&sidecar, "dapr_component_input_binding_count", &[("component", "tick"), ("success", "true")], 1.0)
        .await;
}

#[tokio::test]
async fn http_calls_are_counted_by_path() {
    let app = HttpApp::builder().on("/orders/*", Answer::text("ok")).start().await;
    let sidecar = Sidecar::builder().app_id("me").app(&app).component(memory_store("store")).start().await;
    let http = sidecar.http();
    for key in ["one", "two"] {
        http.get(format!("/v1.0/state/store/{key}")).send().await.expect(204);
        http.get(format!("/v1.0/invoke/me/method/orders/{key}")).send().await.expect(200);
    }
    let text = sidecar.metrics().await;
    let count = |name: &str, path: &str, status: &str| {
        series(&text, name, &[("app_id", "me"), ("method", "GET"), ("path", path), ("status", status)])
    };
    assert_eq!(count("dapr_http_server_request_count", "/v1.0/state/store", "204"), Some(2.0), "{text}");
    let invoked = count("dapr_http_server_request_count", "/v1.0/invoke/me/method/orders/one", "200");
    assert_eq!(invoked, Some(1.0), "{text}");
    assert_eq!(count("dapr_http_server_response_count", "/v1.0/state/store", "204"), Some(2.0), "{text}");
    // Toward the app.
    let to_app = [("path", "/orders/one"), ("status", "200")];
    let client = text.lines().find(|line| {
        line.starts_with("dapr_http_client_completed_count{")
            && to_app.iter().all(|(k, v)| line.contains(&format!("{k}=\"")) && line.contains(v))
    });
    assert!(client.is_some(), "{text}");
}

#[tokio::test]
async fn paths_can_be_matched_or_left_out() {
    let app = HttpApp::builder().on("/*", Answer::text("ok")).start().await;
    for (spec, path, expected) in [
        ("metrics:\n  http:\n    increasedCardinality: false\n", "/v1.0/invoke/me/method/orders/1", ""),
        (
            "metrics:\n  http:\n    increasedCardinality: false\n    pathMatching: [\"/orders/{id}\"]\n",
            "/v1.0/invoke/me/method/orders/1",
            "/v1.0/invoke/{app_id}/method/orders/{id}",
        ),
        (
            "metrics:\n  http:\n    increasedCardinality: true\n",
            "/v1.0/invoke/me/method/a/1",
            "/v1.0/invoke/me/method/a/1",
        ),
    ] {
        let sidecar = Sidecar::builder().app_id("me").app(&app).configuration(spec).start().await;
        sidecar.http().get(path).send().await.expect(200);
        let text = sidecar.metrics().await;
        let found = series(&text, "dapr_http_server_request_count", &[("path", expected), ("status", "200")]);
        assert!(found.is_some_and(|count| count >= 1.0), "{expected:?} in\n{text}");
    }
}

#[tokio::test]
async fn verbs_can_be_left_out() {
    let sidecar = Sidecar::builder().configuration("metrics:\n  http:\n    excludeVerbs: true\n").start().await;
    sidecar.http().get("/v1.0/metadata").send().await.expect(200);
    let text = sidecar.metrics().await;
    let labels = [("method", ""), ("path", "/v1.0/metadata")];
    assert!(series(&text, "dapr_http_server_request_count", &labels).is_some(), "{text}");
}

#[tokio::test]
async fn grpc_calls_are_counted_by_method() {
    let answer = || InvokeResponse { data: Some(Any::plain("x".repeat(1000))), ..InvokeResponse::default() };
    let app = GrpcApp::builder().on_invoke(move |_| Ok(answer())).start().await;
    let sidecar = Sidecar::builder().app_id("me").grpc_app(&app).component(memory_store("store")).start().await;
    let [_, grpc] = sidecar.apis().await;
    grpc.save("store", &[Item::new("k", "1")]).await.unwrap();
    grpc.save("nowhere", &[Item::new("k", "1")]).await.unwrap_err();
    sidecar.http().get("/v1.0/invoke/me/method/x").send().await.expect(200);
    let method = "/dapr.proto.runtime.v1.Dapr/SaveState";
    for (status, count) in [("OK", 1.0), ("InvalidArgument", 1.0)] {
        let labels = [("app_id", "me"), ("grpc_server_method", method), ("grpc_server_status", status)];
        wait_series(&sidecar, "dapr_grpc_io_server_completed_rpcs", &labels, count).await;
    }
    let labels = [("grpc_client_method", "/dapr.proto.runtime.v1.AppCallback/OnInvoke"), ("grpc_client_status", "OK")];
    wait_series(&sidecar, "dapr_grpc_io_client_completed_rpcs", &labels, 1.0).await;
    // The size of the messages, which the app answers 1000 bytes with.
    for (name, at_least) in [("sent", 1.0), ("received", 1000.0)] {
        let name = format!("dapr_grpc_io_client_{name}_bytes_per_rpc_sum");
        wait_series(&sidecar, &name, &labels[..1], at_least).await;
    }
}

#[tokio::test]
async fn unary_calls_of_peers_are_counted() {
    let app = GrpcApp::builder().on_invoke(|_| Ok(InvokeResponse::default())).start().await;
    let sidecar = Sidecar::builder().app_id("me").grpc_app(&app).start().await;
    let mut peer = ServiceInvocationClient::new(sidecar.internal_channel().await);
    let request = InternalInvokeRequest {
        ver: 1,
        message: Some(InvokeRequest { method: "x".to_owned(), ..InvokeRequest::default() }),
        ..InternalInvokeRequest::default()
    };
    peer.call_local(request).await.unwrap();
    let method = [("grpc_server_method", "/dapr.proto.internals.v1.ServiceInvocation/CallLocal")];
    wait_series(&sidecar, "dapr_grpc_io_server_received_bytes_per_rpc_sum", &method, 1.0).await;
    let labels = [method[0], ("grpc_server_status", "OK")];
    wait_series(&sidecar, "dapr_grpc_io_server_completed_rpcs", &labels, 1.0).await;
}

#[tokio::test]
async fn invocations_are_counted_at_both_ends() {
    let app = HttpApp::builder().on("/x", Answer::text("ok")).start().await;
    let pair = Pair::with(&app).await;
    for _ in 0..3 {
        pair.caller.http().get("/v1.0/invoke/callee/method/x").send().await.expect(200);
    }
    let name = |part: &str| format!("dapr_runtime_service_invocation_{part}");
    let sent = [("app_id", "caller"), ("dst_app_id", "callee")];
    wait_series(&pair.caller, &name("req_sent_total"), &sent, 3.0).await;
    wait_series(&pair.callee, &name("req_recv_total"), &[("src_app_id", "caller")], 3.0).await;
    wait_series(&pair.callee, &name("res_sent_total"), &[("dst_app_id", "caller"), ("status", "200")], 3.0).await;
    wait_series(&pair.caller, &name("res_recv_total"), &[("src_app_id", "callee"), ("status", "200")], 3.0).await;
}

#[tokio::test]
async fn error_codes_are_counted_when_asked_for() {
    let sidecar = Sidecar::builder()
        .configuration("metrics:\n  recordErrorCodes: true\n")
        .component(memory_store("store"))
        .start()
        .await;
    for api in sidecar.apis().await {
        api.get("nowhere", "k").await.unwrap_err();
    }
    let labels = [("category", "state"), ("error_code", "ERR_STATE_STORE_NOT_FOUND")];
    wait_series(&sidecar, "dapr_error_code_total", &labels, 2.0).await;
    assert_eq!(series(&sidecar.metrics().await, "dapr_error_code_total", &labels), Some(2.0), "each is counted once");
    let silent = Sidecar::with("app", &[memory_store("store")]).await;
    silent.apis().await[0].get("nowhere", "k").await.unwrap_err();
    assert!(!silent.metrics().await.contains("dapr_error_code_total"));
}

#[tokio::test]
async fn the_text_form_is_what_scrapers_read() {
    let sidecar = Sidecar::builder().app_id("me").component(memory_store("store")).start().await;
    let [api, _] = sidecar.apis().await;
    api.save("store", &[Item::new("k", "1")]).await.unwrap();
    let reply = Http::tcp(sidecar.metrics_port()).get("/any/path").send().await.expect(200);
    assert!(reply.header("content-type").starts_with("text/plain; version=0.0.4"), "{:?}", reply.headers);
    let text = reply.text();
    let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(kinds.insert(name, kind).is_none(), "{name} is declared twice");
            continue;
        }
        if line.starts_with('#') || line.is_empty() {
            continue;
        }
        let (head, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok() || value == "+Inf", "{line}");
        assert!(seen.insert(head), "twice: {head}");
        let name = head.split('{').next().unwrap();
        let base =
            ["_bucket", "_sum", "_count", "_total"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        assert!(kinds.contains_key(name) || kinds.contains_key(base), "no TYPE for {name}");
        if name.starts_with("dapr_") {
            assert!(line.contains("app_id=\"me\""), "{line}");
        }
        if let Some((_, labels)) = head.split_once('{') {
            let names: Vec<&str> =
                labels.trim_end_matches('}').split("\",").filter_map(|pair| pair.split('=').next()).collect();
            let without: Vec<&&str> = names.iter().filter(|name| **name != "le").collect();
            assert!(without.is_sorted(), "labels are sorted: {line}");
        }
    }
    for name in
        ["process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds", "process_start_time_seconds"]
    {
        assert!(
            text.lines().any(|line| line.starts_with(&format!("{name} ")) || line.starts_with(&format!("{name}{{"))),
            "{name}"
        );
    }
    assert!(text.contains("le=\"100000\"") && text.contains("le=\"+Inf\""), "{text}");
}

#[tokio::test]
async fn metrics_can_be_switched_off() {
    let sidecar = Sidecar::builder().flag("enable-metrics", "false").switch("enable-metrics=false").start().await;
    assert!(std::net::TcpStream::connect(("127.0.0.1", sidecar.metrics_port())).is_err());
}

/// The output is a full disk.
#[tokio::test]
async fn log_lines_that_are_lost_are_counted_over_a_rebuild() {
    let sidecar = Sidecar::builder().app_id("me").flag("log-file", "/dev/full").start().await;
    let lost = || async {
        series(&sidecar.metrics().await, "mecha_log_dropped_total", &[("app_id", "me")]).unwrap_or_default()
    };
    let before =
        eventually("the lines of the start are counted", || async { Some(lost().await).filter(|n| *n >= 5.0) });
    let before = before.await;
    sidecar.signal(Signal::Hup);
    let more = || async { Some(lost().await).filter(|n| *n > before) };
    eventually("the lines of the rebuild are counted, too", more).await;
}

#[tokio::test]
async fn a_flood_of_paths_is_capped() {
    let app = HttpApp::builder().on("/*", Answer::text("ok")).start().await;
    let sidecar = Sidecar::builder().app_id("me").app(&app).start().await;
    let http = sidecar.http();
    for chunk in 0..30 {
        let calls = (0..100).map(|n| http.get(format!("/v1.0/invoke/me/method/p/{chunk}/{n}")).send());
        for reply in futures_util::future::join_all(calls).await {
            assert_eq!(reply.status, 200);
        }
    }
    let text = sidecar.metrics().await;
    let count = text.lines().filter(|line| line.starts_with("dapr_http_server_request_count{")).count();
    assert!(count <= 2100, "{count} series");
    assert!(text.len() < 32 << 20, "{} bytes", text.len());
    http.get("/v1.0/healthz").send().await.expect(204);
}
