//! Bindings: calls out to files and HTTP, and ticks that come in.

use mecha_tests::{Answer, Call, Expect, GrpcApp, HttpApp, Sidecar, SidecarBuilder, component, eventually, free_port};
use serde_json::json;
use tonic::Code;

use crate::support::memory_store;

fn with_files() -> SidecarBuilder {
    let builder = Sidecar::builder();
    let root = builder.folder().join("files");
    builder.component(component("files", "bindings.localstorage", &[("rootPath", root.to_str().unwrap())]))
}

fn cron(name: &str, schedule: &str, more: &[(&str, &str)]) -> String {
    let mut metadata = vec![("schedule", schedule)];
    metadata.extend_from_slice(more);
    component(name, "bindings.cron", &metadata)
}

#[tokio::test]
async fn files_are_written_read_listed_and_removed() {
    let sidecar = with_files().start().await;
    let root = sidecar.folder().join("files");
    for api in sidecar.apis().await {
        let name = format!("sub/{}.txt", api.name());
        let file = [("fileName", name.as_str())];
        let (made, _) = api.binding("files", "create", "\"hello\"", &file).await.unwrap();
        let made: serde_json::Value = serde_json::from_slice(&made.unwrap()).unwrap();
        assert_eq!(made["fileName"], name.as_str());
        // A JSON string is written without its quotes.
        assert_eq!(std::fs::read_to_string(root.join(&name)).unwrap(), "hello");
        let (read, _) = api.binding("files", "get", "", &file).await.unwrap();
        assert_eq!(read.unwrap(), "hello");
        let (list, _) = api.binding("files", "list", "", &[]).await.unwrap();
        let list: Vec<String> = serde_json::from_slice(&list.unwrap()).unwrap();
        assert!(list.contains(&name), "{list:?}");
        assert!(list.iter().all(|entry| !entry.starts_with('/')), "no absolute paths: {list:?}");
        api.binding("files", "delete", "", &file).await.unwrap();
        assert!(!root.join(&name).exists());
        // Without a name one is made up.
        let (made, _) = api.binding("files", "create", "{\"a\":1}", &[]).await.unwrap();
        let made: serde_json::Value = serde_json::from_slice(&made.unwrap()).unwrap();
        let name = made["fileName"].as_str().unwrap();
        assert!(uuid::Uuid::parse_str(name).is_ok(), "{name}");
        assert_eq!(std::fs::read_to_string(root.join(name)).unwrap(), "{\"a\":1}");
    }
}

#[tokio::test]
async fn bytes_that_look_like_base64_stay_as_they_are() {
    let sidecar = with_files().start().await;
    for api in sidecar.apis().await {
        let file = [("fileName", "looks")];
        api.binding("files", "create", "\"aGVsbG8=\"", &file).await.unwrap();
        assert_eq!(std::fs::read_to_string(sidecar.folder().join("files/looks")).unwrap(), "aGVsbG8=");
    }
}

#[tokio::test]
async fn files_outside_the_root_are_out_of_reach() {
    let sidecar = with_files().start().await;
    let outside = sidecar.folder().join("outside.txt");
    std::fs::write(&outside, "canary").unwrap();
    std::os::unix::fs::symlink(&outside, sidecar.folder().join("files/link")).ok();
    for api in sidecar.apis().await {
        for name in ["../outside.txt", "/etc/passwd", "a/../../outside.txt", "link", "..", "a\0b"] {
            let file = [("fileName", name)];
            match api.binding("files", "get", "", &file).await {
                Err(fault) => {
                    let folder = sidecar.folder().to_str().unwrap();
                    assert!(!fault.message.contains(folder), "absolute path in {fault:?}");
                }
                Ok((data, _)) => assert_ne!(data.unwrap_or_default(), "canary", "{name}"),
            }
            let _ = api.binding("files", "create", "\"overwritten\"", &file).await;
            let _ = api.binding("files", "delete", "", &file).await;
        }
        assert_eq!(std::fs::read_to_string(&outside).unwrap(), "canary");
    }
}

#[tokio::test]
async fn errors_name_the_binding_and_the_operation() {
    let sidecar = with_files().component(cron("tick", "@every 1h", &[])).start().await;
    for api in sidecar.apis().await {
        let expected = |http, message| Expect {
            http,
            grpc: if http == 400 { Code::InvalidArgument } else { Code::Internal },
            code: "ERR_INVOKE_OUTPUT_BINDING",
            reason: "ERR_INVOKE_OUTPUT_BINDING",
            message,
        };
        let fault = api.binding("nowhere", "create", "1", &[]).await.unwrap_err();
        fault.is(&expected(500, "error invoking output binding nowhere: couldn't find output binding nowhere"));
        let fault = api.binding("files", "", "1", &[]).await.unwrap_err();
        fault.is(&expected(400, "error invoking output binding files: operation field is missing from request"));
        let fault = api.binding("files", "explode", "1", &[]).await.unwrap_err();
        fault.is(&expected(
            400,
            "error invoking output binding files: binding files does not support operation explode. supported \
             operations:create get list delete",
        ));
        let fault = api.binding("tick", "create", "1", &[]).await.unwrap_err();
        fault.is(&expected(500, "error invoking output binding tick: couldn't find output binding tick"));
    }
}

fn http_binding(app: &HttpApp, more: &[(&str, &str)]) -> String {
    let url = format!("http://127.0.0.1:{}/base", app.port());
    let mut metadata = vec![("url", url.as_str())];
    metadata.extend_from_slice(more);
    component("web", "bindings.http", &metadata)
}

#[tokio::test]
async fn http_calls_go_out_and_answers_come_back() {
    let there = HttpApp::builder()
        .on("/base*", Answer::text("found").header("x-answer", "yes").header("content-type", "text/plain"))
        .start()
        .await;
    let sidecar = Sidecar::builder().component(http_binding(&there, &[])).start().await;
    for api in sidecar.apis().await {
        for (operation, verb) in [
            ("get", "GET"),
            ("head", "HEAD"),
            ("create", "POST"),
            ("post", "POST"),
            ("put", "PUT"),
            ("patch", "PATCH"),
            ("delete", "DELETE"),
            ("options", "OPTIONS"),
            ("trace", "TRACE"),
        ] {
            there.forget();
            let metadata = [("path", "/sub/thing"), ("X-Custom", "1")];
            let (_, answered) = api.binding("web", operation, "{\"n\":1}", &metadata).await.unwrap();
            assert_eq!(answered["statusCode"], "200", "{answered:?}");
            let status = answered.get("status").map(String::as_str);
            assert_eq!(status, Some("200 OK"));
            let header = answered.iter().find(|(key, _)| key.eq_ignore_ascii_case("x-answer"));
            assert_eq!(header.map(|(_, value)| value.as_str()), Some("yes"), "{answered:?}");
            let calls = there.calls("/base/sub/thing");
            assert_eq!(calls.len(), 1, "{operation} over {}", api.name());
            assert_eq!(calls[0].method, verb);
            assert_eq!(calls[0].header("x-custom"), "1");
            if operation == "post" {
                assert_eq!(calls[0].text(), "{\"n\":1}");
                assert_eq!(calls[0].header("content-type"), "application/json; charset=utf-8");
                assert_eq!(calls[0].header("accept"), "application/json; charset=utf-8");
            }
        }
    }
}

#[tokio::test]
async fn an_http_answer_outside_2xx_is_an_error_unless_told() {
    let there = HttpApp::builder()
        .on("/base/teapot", Answer::text("short and stout").with_status(418))
        .on("/base/moved", Answer::status(302).header("location", "/base/teapot"))
        .start()
        .await;
    let sidecar = Sidecar::builder().component(http_binding(&there, &[])).start().await;
    for api in sidecar.apis().await {
        let fault = api.binding("web", "get", "", &[("path", "/teapot")]).await.unwrap_err();
        fault.is(&Expect {
            http: 500,
            grpc: Code::Internal,
            code: "ERR_INVOKE_OUTPUT_BINDING",
            reason: "ERR_INVOKE_OUTPUT_BINDING",
            message: "error invoking output binding web: received status code 418…",
        });
        let told = [("path", "/teapot"), ("errorIfNot2XX", "false")];
        let (data, metadata) = api.binding("web", "get", "", &told).await.unwrap();
        assert_eq!((data.unwrap().as_ref(), metadata["statusCode"].as_str()), (&b"short and stout"[..], "418"));
        // Redirects are handed back, not followed.
        there.forget();
        let told = [("path", "/moved"), ("errorIfNot2XX", "false")];
        let (_, metadata) = api.binding("web", "get", "", &told).await.unwrap();
        assert_eq!(metadata["statusCode"], "302");
        assert!(there.calls("/base/teapot").is_empty());
    }
    // Over HTTP the metadata comes as headers, also with an error.
    let body = json!({"operation": "get", "metadata": {"path": "/teapot"}});
    let reply = sidecar.http().post_json("/v1.0/bindings/web", &body).send().await.expect(500);
    assert_eq!(reply.header("metadata.statuscode"), "418");
}

#[tokio::test]
async fn an_http_call_stays_below_its_url() {
    let there = HttpApp::builder().on("/*", Answer::text("seen")).start().await;
    let sidecar = Sidecar::builder()
        .component(http_binding(&there, &[("securityToken", "canary"), ("securityTokenHeader", "X-Token")]))
        .start()
        .await;
    for api in sidecar.apis().await {
        for path in ["/../secret", "../secret", "/a/../../secret", "/%2e%2e/secret", "//evil.test/x", "@evil.test/"] {
            let _ = api.binding("web", "get", "", &[("path", path)]).await;
        }
        for call in there.all_calls() {
            assert!(call.target.starts_with("/base"), "{call:?}");
        }
        there.forget();
        api.binding("web", "get", "", &[("path", "/ok"), ("X-Token", "mine")]).await.unwrap();
        let call = &there.calls("/base/ok")[0];
        assert_eq!(call.headers.get_all("x-token").iter().count(), 1);
        assert_eq!(call.header("x-token"), "canary", "the security header cannot be overridden");
    }
}

#[tokio::test]
async fn metadata_of_a_call_holds_text_only() {
    let sidecar = with_files().start().await;
    let body = json!({"operation": "list", "metadata": {"fileName": 5}});
    let reply = sidecar.http().post_json("/v1.0/bindings/files", &body).send().await.expect(400);
    assert_eq!(reply.code(), "ERR_MALFORMED_REQUEST");
}

#[tokio::test]
async fn ticks_reach_an_http_app() {
    let app = HttpApp::builder()
        .on("OPTIONS /tick", Answer::status(200))
        .on("POST /tick", Answer::status(200))
        .on("OPTIONS /by-route", Answer::status(405))
        .on("POST /by-route", Answer::status(204))
        .on("POST /unprobed", Answer::status(200))
        .start()
        .await;
    let _sidecar = Sidecar::builder()
        .app(&app)
        .component(cron("tick", "@every 1s", &[]))
        .component(cron("routed", "* * * * * *", &[("route", "/by-route")]))
        .component(cron("unprobed", "@every 1s", &[("direction", "input")]))
        .component(cron("unwanted", "@every 1s", &[]))
        .start()
        .await;
    for route in ["POST /tick", "POST /by-route", "POST /unprobed"] {
        let calls: Vec<Call> = app.wait_calls(route, 2).await;
        assert!(calls[0].body.is_empty(), "{calls:?}");
        assert_eq!(calls[0].header("content-type"), "application/json");
        assert!(!calls[0].header("readtimeutc").is_empty(), "{:?}", calls[0].headers);
        assert!(!calls[0].header("timezone").is_empty());
    }
    assert!(app.calls("OPTIONS /unprobed").is_empty(), "a direction needs no probe");
    assert!(!app.calls("OPTIONS /unwanted").is_empty());
    assert!(app.calls("POST /unwanted").is_empty(), "a binding the app does not want was started");
}

#[tokio::test]
async fn ticks_reach_a_grpc_app() {
    let app = GrpcApp::builder()
        .on_binding(&["tick"], |_| Ok(mecha_proto::runtime::BindingEventResponse::default()))
        .start()
        .await;
    let _sidecar = Sidecar::builder()
        .grpc_app(&app)
        .component(cron("tick", "@every 1s", &[]))
        .component(cron("unwanted", "@every 1s", &[]))
        .start()
        .await;
    let events = eventually("two ticks", || async { Some(app.binding_events()).filter(|e| e.len() >= 2) }).await;
    assert!(events.iter().all(|event| event.name == "tick"), "{events:?}");
    assert!(events[0].metadata.contains_key("readTimeUTC"), "{events:?}");
}

#[tokio::test]
async fn ticks_wait_for_an_app_that_comes_late() {
    let port = free_port();
    let sidecar = Sidecar::builder()
        .flag("app-port", port.to_string())
        .component(cron("tick", "@every 1s", &[]))
        .start_outbound()
        .await;
    sidecar
        .wait_log(&format!("waiting on port {port}.  This will block until the app is listening on that port."))
        .await;
    sidecar.http().get("/v1.0/healthz").send().await.expect(500);
    let app = HttpApp::builder()
        .port(port)
        .on("OPTIONS /tick", Answer::status(200))
        .on("POST /tick", Answer::status(200))
        .start()
        .await;
    app.wait_calls("POST /tick", 1).await;
    sidecar.wait_log(&format!("application discovered on port {port}")).await;
    let reply = sidecar.http().get("/v1.0/healthz").send().await;
    assert_eq!(reply.status, 204);
}

#[tokio::test]
async fn ticks_come_back_with_an_app_that_restarts() {
    let port = free_port();
    let app =
        || HttpApp::builder().port(port).on("OPTIONS /tick", Answer::status(200)).on("POST /tick", Answer::status(200));
    let first = app().start().await;
    let _sidecar = Sidecar::builder().app(&first).component(cron("tick", "@every 1s", &[])).start().await;
    first.wait_calls("POST /tick", 1).await;
    first.stop().await;
    let second = eventually("the port to be free", || async {
        std::net::TcpListener::bind(("127.0.0.1", port)).is_ok().then_some(())
    });
    second.await;
    let second = app().start().await;
    second.wait_calls("POST /tick", 1).await;
}

#[tokio::test]
async fn an_answer_to_a_tick_may_save_state_and_call_bindings() {
    let app = HttpApp::builder()
        .on("OPTIONS /tick", Answer::status(200))
        .on(
            "POST /tick",
            Answer::json(&json!({
                "storeName": "store",
                "state": [{"key": "from-tick", "value": {"n": 1}}],
                "to": ["files"],
                "data": "written",
            })),
        )
        .start()
        .await;
    let builder = Sidecar::builder().app(&app).component(cron("tick", "@every 1s", &[]));
    let root = builder.folder().join("files");
    let sidecar = builder
        .component(memory_store("store"))
        .component(component("files", "bindings.localstorage", &[("rootPath", root.to_str().unwrap())]))
        .start()
        .await;
    let [api, _] = sidecar.apis().await;
    let saved = eventually("the state", || async { api.get("store", "from-tick").await.unwrap() }).await;
    assert_eq!(saved.text(), "{\"n\":1}");
    eventually("the file", || async {
        let mut files = std::fs::read_dir(&root).ok()?;
        let file = files.next()?.ok()?;
        (std::fs::read_to_string(file.path()).ok()? == "written").then_some(())
    })
    .await;
}

#[tokio::test]
async fn trace_headers_go_along_with_a_call() {
    let there = HttpApp::builder().on("/base*", Answer::text("ok")).start().await;
    let sidecar = Sidecar::builder()
        .configuration("tracing:\n  samplingRate: \"1\"\n")
        .component(http_binding(&there, &[]))
        .start()
        .await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let body = json!({"operation": "get", "metadata": {"path": "/x"}});
    let call = sidecar.http().post_json("/v1.0/bindings/web", &body);
    call.header("traceparent", parent).header("baggage", "who=me").send().await.expect(200);
    let seen = &there.calls("/base/x")[0];
    assert!(seen.header("traceparent").contains("0af7651916cd43dd8448eb211c80319c"), "{:?}", seen.headers);
    assert_eq!(seen.header("baggage"), "who=me");
}
