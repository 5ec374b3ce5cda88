//! What goes through unchanged, and what does not.

use mecha_tests::{Answer, Call, HttpApp, Protocol, Sidecar, component};
use serde_json::json;

use crate::support::Pair;

fn echo() -> mecha_tests::HttpAppBuilder {
    HttpApp::builder().on_call("/echo*", |call: Call| async move {
        Answer::json(&json!({"verb": call.method, "target": call.target, "body": call.text()}))
            .header("x-answer", "one")
            .header("x-answer", "two")
    })
}

#[tokio::test]
async fn verb_query_body_and_headers_arrive() {
    let app = echo().start().await;
    let pair = Pair::with(&app).await;
    for client in [pair.caller.http(), pair.caller.http().speaking(Protocol::H2c)] {
        for verb in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            app.forget();
            let request = client
                .request(verb, "/v1.0/invoke/callee/method/echo/a%20b?x=1&x=2&y=%2F&z")
                .header("x-custom", "v1")
                .header("x-custom", "v2")
                .header("content-type", "text/weird")
                .body(if verb == "GET" { "" } else { "body" });
            let reply = request.send().await.expect(200);
            let answer = reply.json();
            assert_eq!(answer["verb"], verb);
            assert_eq!(answer["target"], "/echo/a%20b?x=1&x=2&y=%2F&z");
            assert_eq!(reply.headers.get_all("x-answer").iter().count(), 2, "{:?}", reply.headers);
            let call = &app.calls("/echo*")[0];
            let custom: Vec<_> = call.headers.get_all("x-custom").iter().collect();
            assert_eq!(custom, ["v1", "v2"]);
            if verb != "GET" {
                assert_eq!((answer["body"].as_str(), call.header("content-type")), (Some("body"), "text/weird"));
            }
        }
        let head = client.request("HEAD", "/v1.0/invoke/callee/method/echo").send().await.expect(200);
        assert!(head.body.is_empty());
    }
}

#[tokio::test]
async fn every_status_comes_back_as_it_is() {
    let app = HttpApp::builder()
        .on_call("/status/*", |call: Call| async move {
            let status = call.target.rsplit('/').next().unwrap().parse().unwrap();
            Answer::text(if status == 204 || status == 304 { "" } else { "as it is" })
                .with_status(status)
                .header("location", "/elsewhere")
        })
        .start()
        .await;
    let pair = Pair::with(&app).await;
    for status in [200, 201, 202, 204, 301, 302, 304, 400, 401, 403, 404, 409, 418, 429, 500, 502, 503, 504, 599] {
        let reply = pair.caller.http().get(format!("/v1.0/invoke/callee/method/status/{status}")).send().await;
        assert_eq!(reply.status, status, "{}", reply.text());
        assert_eq!(reply.header("location"), "/elsewhere");
        if status != 204 && status != 304 {
            assert_eq!(reply.text(), "as it is");
        }
    }
    // Nothing was followed or repeated.
    assert_eq!(app.all_calls().iter().filter(|call| call.target.starts_with("/status")).count(), 19);
}

#[tokio::test]
async fn the_way_is_told_and_hop_headers_stay_behind() {
    let app = echo().start().await;
    let pair = Pair::built(|b| b, |b| b.app(&app).env("APP_API_TOKEN", "for-the-app")).await;
    let request = pair
        .caller
        .http()
        .get("/v1.0/invoke/callee/method/echo")
        .header("connection", "x-hop")
        .header("x-hop", "gone")
        .header("keep-alive", "timeout=5")
        .header("proxy-connection", "keep-alive")
        .header("proxy-authorization", "canary")
        .header("te", "trailers")
        .header("upgrade", "websocket")
        .header("dapr-api-token", "canary")
        .header("dapr-caller-app-id", "forged")
        .header("dapr-callee-namespace", "forged")
        .header("x-forwarded-for", "10.0.0.1")
        .header("accept-encoding", "identity");
    request.send().await.expect(200);
    let call = &app.calls("/echo")[0];
    for gone in
        ["x-hop", "keep-alive", "proxy-connection", "proxy-authorization", "te", "upgrade", "dapr-callee-namespace"]
    {
        assert_eq!(call.header(gone), "", "{gone} of {:?}", call.headers);
    }
    assert!(!format!("{:?}", call.headers).contains("canary"), "{:?}", call.headers);
    assert_eq!(call.header("dapr-api-token"), "for-the-app");
    assert_eq!(call.headers.get_all("dapr-caller-app-id").iter().collect::<Vec<_>>(), ["caller"]);
    assert_eq!(call.header("dapr-callee-app-id"), "callee");
    let forwarded: Vec<_> = call.headers.get_all("x-forwarded-for").iter().collect();
    assert_eq!(forwarded.len(), 2, "one line more: {forwarded:?}");
    assert_eq!(forwarded[0], "10.0.0.1");
    assert!(!call.header("x-forwarded-host").is_empty() && call.header("forwarded").contains("for="));
    assert_eq!(call.header("accept-encoding"), "identity");
}

#[tokio::test]
async fn a_call_to_the_own_app_adds_nothing() {
    let app = echo().start().await;
    let sidecar = Sidecar::builder().app_id("me").app(&app).start().await;
    sidecar.http().get("/v1.0/invoke/me/method/echo").send().await.expect(200);
    let call = &app.calls("/echo")[0];
    for absent in ["dapr-caller-app-id", "dapr-callee-app-id", "x-forwarded-for", "forwarded", "accept-encoding"] {
        assert_eq!(call.header(absent), "", "{absent}");
    }
}

#[tokio::test]
async fn the_other_ways_to_name_a_target() {
    let app = echo().start().await;
    let pair = Pair::with(&app).await;
    let http = pair.caller.http();
    let reply = http.get("/echo/by-header?q=1").header("dapr-app-id", "callee").send().await.expect(200);
    assert_eq!(reply.json()["target"], "/echo/by-header?q=1");
    assert_eq!(app.calls("/echo*")[0].header("dapr-app-id"), "");
    // Basic authentication, as clients write `http://dapr-app-id:callee@…`; it is passed on.
    let basic = "Basic ZGFwci1hcHAtaWQ6Y2FsbGVl";
    http.get("/echo/by-user").header("authorization", basic).send().await.expect(200);
    assert_eq!(app.calls("/echo/by-user")[0].header("authorization"), basic);
    // The namespace may be said.
    http.get("/v1.0/invoke/callee.default/method/echo").send().await.expect(200);
    // A real API path wins over the header.
    http.get("/v1.0/healthz").header("dapr-app-id", "callee").send().await.expect(204);
}

#[tokio::test]
async fn unknown_paths_and_targets_are_told() {
    let app = echo().start().await;
    let pair = Pair::with(&app).await;
    let http = pair.caller.http();
    for path in ["/", "/nothing/here", "/v1.0/unknown", "/v1.0/state"] {
        let reply = http.get(path).send().await.expect(404);
        assert_eq!(reply.code(), "ERR_DIRECT_INVOKE", "{path}");
        assert_eq!(
            reply.message(),
            "failed getting app id either from the URL path or the header dapr-app-id",
            "{path}"
        );
    }
    let reply = http.get("/v1.0/invoke/nobody/method/x").send().await.expect(500);
    assert_eq!(reply.code(), "ERR_DIRECT_INVOKE");
    assert_eq!(reply.message(), "failed to invoke, id: nobody, err: no host found with the given ID");
    let reply = http.get("/v1.0/invoke/a.b.c/method/x").send().await.expect(500);
    assert_eq!(reply.message(), "failed to invoke, id: a.b.c, err: invalid app id a.b.c");
    // The caller itself has no app.
    let reply = http.get("/v1.0/invoke/caller/method/x").send().await.expect(500);
    assert!(reply.message().contains("cannot invoke local endpoint: app channel not initialized"), "{}", reply.text());
}

#[tokio::test]
async fn an_app_that_is_away_is_an_error_and_comes_back() {
    let port = mecha_tests::free_port();
    let app = echo().port(port).start().await;
    let pair = Pair::with(&app).await;
    let http = pair.caller.http();
    http.get("/v1.0/invoke/callee/method/echo").send().await.expect(200);
    app.stop().await;
    let reply = http.get("/v1.0/invoke/callee/method/echo").send().await.expect(500);
    assert_eq!(reply.code(), "ERR_DIRECT_INVOKE", "{}", reply.text());
    mecha_tests::eventually("the port to be free", || async {
        std::net::TcpListener::bind(("127.0.0.1", port)).is_ok().then_some(())
    })
    .await;
    let _app = echo().port(port).start().await;
    http.get("/v1.0/invoke/callee/method/echo").send().await.expect(200);
}

#[tokio::test]
async fn an_unnamed_verb_goes_on_as_post_and_connect_does_not() {
    let app = echo().start().await;
    let pair = Pair::with(&app).await;
    // The same from the own sidecar as from another one.
    for sidecar in [&pair.caller, &pair.callee] {
        let reply = sidecar.http().request("PURGE", "/v1.0/invoke/callee/method/echo").send().await.expect(200);
        assert_eq!(reply.json()["verb"], "POST", "{}", sidecar.app_id());
    }
    let reply = pair.caller.http().request("TRACE", "/v1.0/invoke/callee/method/echo").send().await.expect(200);
    assert_eq!(reply.json()["verb"], "TRACE");
}

#[tokio::test]
async fn an_h2c_app_is_called_by_http2() {
    let app = echo().start().await;
    let pair = Pair::built(|b| b, |b| b.app(&app).flag("app-protocol", "h2c")).await;
    let reply = pair.caller.http().post("/v1.0/invoke/callee/method/echo?q=1", "two").send().await.expect(200);
    assert_eq!((&reply.json()["target"], &reply.json()["body"]), (&json!("/echo?q=1"), &json!("two")));
}

#[tokio::test]
async fn callees_are_found_without_multicast_by_one_file() {
    let app = echo().start().await;
    let pair = Pair::with(&app).await;
    assert!(pair.callee.log().contains("Initialized name resolution to sqlite"), "{}", pair.callee.log());
    // The callee's restart on another port is followed: its old address is dropped on failure.
    let Pair { caller, mut callee, .. } = pair;
    callee.kill().await;
    callee.again().await;
    mecha_tests::eventually("the callee to be reached again", || async {
        (caller.http().get("/v1.0/invoke/callee/method/echo").send().await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn loops_are_cut() {
    // Each app asks its own sidecar for the other, for ever.
    let names = tempfile::tempdir().unwrap();
    let spec = crate::support::registry(names.path());
    let ports = [mecha_tests::free_port(), mecha_tests::free_port()];
    let looping = |port: u16, other: &'static str| {
        HttpApp::builder().on_call("/loop", move |call: Call| async move {
            let mut request = mecha_tests::Http::tcp(port).get(format!("/v1.0/invoke/{other}/method/loop"));
            for (name, value) in &call.headers {
                if !["host", "content-length"].contains(&name.as_str()) {
                    request = request.header(name.as_str(), value.as_bytes());
                }
            }
            let reply = request.send().await;
            Answer::text(reply.body.clone()).with_status(reply.status)
        })
    };
    let (one, two) = (looping(ports[0], "two").start().await, looping(ports[1], "one").start().await);
    let start = |id: &'static str, app: &HttpApp, port: u16| {
        Sidecar::builder()
            .app_id(id)
            .app(app)
            .configuration(&spec)
            .without("dapr-http-port")
            .flag("dapr-http-port", port.to_string())
            .spawn()
    };
    let sidecars = (start("one", &one, ports[0]), start("two", &two, ports[1]));
    let client = mecha_tests::Http::tcp(ports[0]);
    mecha_tests::eventually("both sidecars", || async {
        let ready = |port| async move {
            let reply = mecha_tests::Http::tcp(port).get("/v1.0/healthz").try_send().await;
            reply.is_ok_and(|reply| reply.status == 204)
        };
        (ready(ports[0]).await && ready(ports[1]).await).then_some(())
    })
    .await;
    let reply = client.get("/v1.0/invoke/two/method/loop").send().await.expect(508);
    assert_eq!(reply.code(), "ERR_DIRECT_INVOKE", "{}", reply.text());
    drop(sidecars);
}

#[tokio::test]
async fn an_endpoint_document_is_a_target() {
    let there = echo().start().await;
    let endpoint = format!(
        "apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata:\n  name: outside\nspec:\n  baseUrl: \
         http://127.0.0.1:{}\n  headers:\n    - name: x-from-document\n      value: added\n",
        there.port()
    );
    let sidecar =
        Sidecar::builder().component(endpoint).component(component("s", "state.in-memory", &[])).start().await;
    let reply = sidecar.http().post("/v1.0/invoke/outside/method/echo/x?q=1", "body").send().await.expect(200);
    assert_eq!(reply.json(), json!({"verb": "POST", "target": "/echo/x?q=1", "body": "body"}));
    assert_eq!(there.calls("/echo*")[0].header("x-from-document"), "added");
    assert!(sidecar.log().contains("Found http endpoint: outside"));
    assert_eq!(sidecar.metadata().await["httpEndpoints"], json!([{"name": "outside"}]));
}
