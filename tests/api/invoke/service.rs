//! The gRPC call InvokeService, and apps on gRPC.

use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use mecha_proto::Any;
use mecha_proto::common::http_extension::Verb;
use mecha_proto::common::{HttpExtension, InvokeRequest, InvokeResponse};
use mecha_proto::runtime::InvokeServiceRequest;
use mecha_tests::{Answer, Body, Call, GrpcApp, HttpApp, status_details};
use prost::Message as _;
use serde_json::json;
use tonic::{Code, Request};

use crate::support::Pair;

fn request(method: &str, body: &str, extension: Option<(Verb, &str)>) -> InvokeServiceRequest {
    InvokeServiceRequest {
        id: "callee".to_owned(),
        message: Some(InvokeRequest {
            method: method.to_owned(),
            data: Some(Any::plain(body.to_owned())),
            content_type: "text/plain".to_owned(),
            http_extension: extension
                .map(|(verb, query)| HttpExtension { verb: verb.into(), querystring: query.to_owned() }),
        }),
    }
}

#[tokio::test]
async fn an_http_app_is_called_with_verb_and_query() {
    let app = HttpApp::builder()
        .on_call("/hello", |call: Call| async move {
            Answer::text(format!("{} {} {}", call.method, call.target, call.text()))
                .header("content-type", "text/special")
                .header("x-answer", "yes")
                .with_status(201)
        })
        .start()
        .await;
    let pair = Pair::with(&app).await;
    let mut client = pair.caller.grpc().await;
    let mut ask = Request::new(request("hello", "body", Some((Verb::Put, "a=1&b=2"))));
    ask.metadata_mut().insert("x-custom", "v".parse().unwrap());
    ask.metadata_mut().insert_bin("x-secret-bin", tonic::metadata::MetadataValue::from_bytes(b"\x00"));
    let answer = client.invoke_service(ask).await.unwrap();
    assert_eq!(answer.metadata().get("dapr-http-status").unwrap(), "201");
    assert_eq!(answer.metadata().get("x-answer").unwrap(), "yes");
    let answer = answer.into_inner();
    assert_eq!(answer.content_type, "text/special");
    assert_eq!(answer.data.unwrap().value, "PUT /hello?a=1&b=2 body");
    let call = &app.calls("/hello")[0];
    assert_eq!(call.header("content-type"), "text/plain");
    assert_eq!(call.header("x-custom"), "v");
    assert!(!call.headers.keys().any(|name| name.as_str().ends_with("-bin")), "{:?}", call.headers);
    assert_eq!(call.header("dapr-caller-app-id"), "caller");
}

#[tokio::test]
async fn an_http_app_needs_a_verb() {
    let app = HttpApp::builder().on("/*", Answer::text("seen")).start().await;
    let pair = Pair::with(&app).await;
    let cases = [
        (None, "rpc error: code = InvalidArgument desc = missing HTTP extension field"),
        (Some((Verb::None, "")), "rpc error: code = InvalidArgument desc = invalid HTTP verb"),
    ];
    for (extension, text) in cases {
        let ask = || request("x", "", extension);
        let own = pair.callee.grpc().await.invoke_service(ask()).await.unwrap_err();
        assert_eq!(
            (own.code(), own.message()),
            (Code::Internal, format!("failed to invoke, id: callee, err: {text}").as_str())
        );
        // From another sidecar the callee's own words come behind those of the way there.
        let remote = pair.caller.grpc().await.invoke_service(ask()).await.unwrap_err();
        assert_eq!(remote.code(), Code::Internal, "{remote:?}");
        assert!(remote.message().starts_with("failed to invoke, id: callee, err: "), "{remote:?}");
        assert!(remote.message().ends_with(text), "{remote:?}");
    }
    assert!(app.calls("/x").is_empty());
}

/// HTTP status of the app, and the code a gRPC caller gets.
const STATUSES: [(u16, Code, &str); 12] = [
    (400, Code::Internal, "Bad Request"),
    (401, Code::Unauthenticated, "Unauthorized"),
    (403, Code::PermissionDenied, "Forbidden"),
    (404, Code::NotFound, "Not Found"),
    (408, Code::Cancelled, "Request Timeout"),
    (409, Code::AlreadyExists, "Conflict"),
    (429, Code::ResourceExhausted, "Too Many Requests"),
    (500, Code::Unknown, "Internal Server Error"),
    (501, Code::Unimplemented, "Not Implemented"),
    (503, Code::Unavailable, "Service Unavailable"),
    (504, Code::DeadlineExceeded, "Gateway Timeout"),
    (418, Code::Unknown, "I'm a teapot"),
];

#[tokio::test]
async fn an_http_status_becomes_a_code() {
    let app = HttpApp::builder()
        .on_call("/status/*", |call: Call| async move {
            let status = call.target.rsplit('/').next().unwrap().parse().unwrap();
            Answer::text("the body of the app").with_status(status)
        })
        .start()
        .await;
    let pair = Pair::with(&app).await;
    let mut client = pair.caller.grpc().await;
    for (http, code, text) in STATUSES {
        let ask = request(&format!("status/{http}"), "", Some((Verb::Get, "")));
        let status = client.invoke_service(ask).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (code, text), "{http}");
        let details = status_details(&status);
        assert_eq!(details[0]["domain"], "dapr.io", "{details:?}");
        assert_eq!(details[0]["reason"], text);
        assert_eq!(details[0]["metadata"]["http.code"], http.to_string());
        assert_eq!(details[0]["metadata"]["http.error_message"], "the body of the app");
    }
}

#[tokio::test]
async fn a_grpc_app_answers_both_fronts() {
    let app = GrpcApp::builder()
        .on_invoke(|ask| match ask.method.as_str() {
            "fail" => Err(tonic::Status::not_found("no such thing")),
            _ => Ok(InvokeResponse {
                data: ask.data.clone(),
                content_type: format!("echo/{}", ask.content_type.replace('/', "-")),
            }),
        })
        .start()
        .await;
    let pair = Pair::built(|b| b, |b| b.grpc_app(&app)).await;
    let mut client = pair.caller.grpc().await;
    let answer = client.invoke_service(request("hello", "body", None)).await.unwrap().into_inner();
    assert_eq!((answer.data.unwrap().value.as_ref(), answer.content_type.as_str()), (&b"body"[..], "echo/text-plain"));
    let status = client.invoke_service(request("fail", "", None)).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "no such thing"));
    // Over HTTP.
    let ask =
        pair.caller.http().post("/v1.0/invoke/callee/method/hello?q=1", "body").header("content-type", "text/plain");
    let reply = ask.send().await.expect(200);
    assert_eq!((reply.text().as_str(), reply.header("content-type")), ("body", "echo/text-plain"));
    let (last, _) = app.invocations().pop().unwrap();
    let extension = last.http_extension.unwrap();
    assert_eq!((extension.verb, extension.querystring.as_str()), (i32::from(Verb::Post), "q=1"));
    let reply = pair.caller.http().get("/v1.0/invoke/callee/method/fail").send().await.expect(404);
    assert_eq!(reply.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(reply.json()["code"], json!(5));
    assert_eq!(reply.json()["message"], "no such thing");
}

/// Answers `OnInvoke` with a message, a header and a trailer, which server libraries keep apart.
async fn with_trailers(_: http::Request<Incoming>) -> http::Response<Body> {
    let message = InvokeResponse { data: Some(Any::plain("ok".to_owned())), content_type: "text/plain".to_owned() };
    let mut framed = vec![0];
    framed.extend(u32::try_from(message.encoded_len()).unwrap().to_be_bytes());
    framed.extend(message.encode_to_vec());
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    trailers.insert("x-cost", "3".parse().unwrap());
    let frames = [Frame::data(Bytes::from(framed)), Frame::trailers(trailers)];
    let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, std::io::Error>))).boxed_unsync();
    let answer = http::Response::builder().header("content-type", "application/grpc").header("x-first", "1");
    answer.body(body).unwrap()
}

#[tokio::test]
async fn trailers_of_a_grpc_app_come_behind_the_message() {
    let app =
        HttpApp::builder().on_stream("POST /dapr.proto.runtime.v1.AppCallback/OnInvoke", with_trailers).start().await;
    let pair = Pair::built(|b| b, |b| b.app(&app).flag("app-protocol", "grpc")).await;
    for sidecar in [&pair.callee, &pair.caller] {
        let mut client = tonic::client::Grpc::new(sidecar.channel().await);
        client.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static("/dapr.proto.runtime.v1.Dapr/InvokeService");
        let codec = tonic_prost::ProstCodec::<InvokeServiceRequest, InvokeResponse>::default();
        let ask = Request::new(request("hello", "body", None));
        let answer = client.server_streaming(ask, path, codec).await.unwrap();
        assert_eq!(answer.metadata().get("x-first").unwrap(), "1", "{}", sidecar.app_id());
        for name in ["x-cost", "date"] {
            assert!(answer.metadata().get(name).is_none(), "{:?}", answer.metadata());
        }
        let mut messages = answer.into_inner();
        assert_eq!(messages.message().await.unwrap().unwrap().data.unwrap().value, "ok");
        let trailers = messages.trailers().await.unwrap().unwrap_or_default();
        assert_eq!(trailers.get("x-cost").map(|v| v.to_str().unwrap()), Some("3"), "{}", sidecar.app_id());
    }
}

#[tokio::test]
async fn an_unknown_app_is_named() {
    let app = HttpApp::builder().start().await;
    let pair = Pair::with(&app).await;
    let mut ask = request("x", "", Some((Verb::Get, "")));
    ask.id = "nobody".to_owned();
    let status = pair.caller.grpc().await.invoke_service(ask).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert_eq!(status.message(), "failed to invoke, id: nobody, err: no host found with the given ID");
    assert!(status_details(&status).is_empty(), "code and message only");
}
