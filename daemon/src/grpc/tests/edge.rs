use bytes::Bytes;
use http_body_util::BodyExt;
use mecha_core::api_rules::{ApiRule, ApiRules};
use mecha_core::health::Phase;
use mecha_core::trace::Tracer;
use mecha_proto::common::StateItem;
use mecha_proto::runtime::{GetMetadataRequest, GetStateRequest, SaveStateRequest};
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_types::StatusExt;

use super::{Rig, token, tracing_on};
use crate::grpc::GrpcOptions;
use crate::peer::testing::eventually;

const GET_METADATA: &str = "/dapr.proto.runtime.v1.Dapr/GetMetadata";

fn channel(rig: &Rig) -> Channel {
    Channel::from_shared(format!("http://{}", rig.address)).unwrap().connect_lazy()
}

#[tokio::test]
async fn a_token_is_asked_for_by_name() {
    let options = GrpcOptions { max_body: 4 << 20, token: token("s3cret"), ..GrpcOptions::default() };
    let rig = Rig::with(options, Tracer::pass_through()).await;
    let ask = |given: Option<&'static str>| {
        let mut req = Request::new(GetMetadataRequest {});
        if let Some(given) = given {
            req.metadata_mut().insert("dapr-api-token", given.parse().unwrap());
        }
        let mut client = rig.client();
        async move { client.get_metadata(req).await }
    };
    assert!(ask(Some("s3cret")).await.is_ok());
    for (given, cause) in
        [(None, "missing api token in request metadata"), (Some("s3creT"), "authentication error: api token mismatch")]
    {
        let status = ask(given).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "Unauthorized"));
        let info = status.get_details_error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.metadata["http.code"].as_str()), ("Unauthorized", "401"));
        assert_eq!(info.metadata["http.error_message"], cause);
    }
    // Reflection and services that would be proxied are behind it too, probes are not.
    assert_eq!(rig.raw("/shop.Orders/Get", &[("dapr-app-id", "x")]).await.headers()["grpc-status"], "16");
    let mut health = HealthClient::new(channel(&rig));
    assert!(health.check(HealthCheckRequest::default()).await.is_ok());
}

#[tokio::test]
async fn a_refused_method_looks_unbuilt() {
    let rig = Rig::start().await;
    let rule =
        |name: &str, version: &str| ApiRule { name: name.into(), version: version.into(), protocol: "grpc".into() };
    let (rules, _) = ApiRules::compile(&[rule("metadata", "v1")], &[], false);
    rig.core.api_rules.store(rules.into());
    assert!(rig.client().get_metadata(GetMetadataRequest {}).await.is_ok());
    let status = rig.client().get_state(GetStateRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unimplemented, "Not Implemented"));
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.metadata["http.code"], "501");
    assert_eq!(info.metadata["http.error_message"], "requested endpoint is not available");
    // The lists speak of the daemon's own API only.
    let proxied = rig.raw("/shop.Orders/Get", &[]).await;
    assert_eq!(proxied.headers()["grpc-status"], "2");
}

#[tokio::test]
async fn messages_over_the_limit_are_refused_in_the_words_of_go() {
    let options = GrpcOptions { max_body: 1000, ..GrpcOptions::default() };
    let rig = Rig::with(options, Tracer::pass_through()).await;
    let save = |n: usize| SaveStateRequest {
        store_name: "mem".into(),
        states: vec![StateItem { key: "k".into(), value: Bytes::from(vec![7; n]), ..StateItem::default() }],
    };
    let size = prost::Message::encoded_len(&save(2000));
    let status = rig.client().save_state(save(2000)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), format!("grpc: received message larger than max ({size} vs. 1000)"));

    // Two that fit in make an answer that does not.
    for key in ["a", "b"] {
        let mut item = save(600);
        item.states[0].key = key.into();
        rig.client().save_state(item).await.unwrap();
    }
    let req = mecha_proto::runtime::GetBulkStateRequest {
        store_name: "mem".into(),
        keys: vec!["a".into(), "b".into()],
        ..Default::default()
    };
    let status = rig.client().get_bulk_state(req).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().starts_with("grpc: trying to send message larger than max ("), "{status}");
    assert!(status.message().ends_with(" vs. 1000)"), "{status}");
}

#[tokio::test]
async fn trace_context_is_handed_back() {
    let rig = Rig::with(GrpcOptions { max_body: 4 << 20, ..GrpcOptions::default() }, tracing_on()).await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let res = rig.raw(GET_METADATA, &[("traceparent", parent), ("baggage", "a=1")]).await;
    assert_eq!(res.headers()["grpc-status"], "0");
    let context = {
        use base64::Engine;
        base64::prelude::BASE64_STANDARD_NO_PAD.decode(&res.headers()["grpc-trace-bin"]).unwrap()
    };
    let context = mecha_core::trace::TraceContext::parse_binary(&context).unwrap();
    assert!(context.traceparent().starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"));
    assert_eq!(res.headers()["baggage"], "a=1");

    let mut bad = Request::new(GetMetadataRequest {});
    bad.metadata_mut().insert("baggage", "no equals sign".parse().unwrap());
    let bad = rig.client().get_metadata(bad).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    assert!(bad.message().starts_with("invalid baggage header: "), "{bad}");

    let invoked = rig.raw("/dapr.proto.runtime.v1.Dapr/InvokeService", &[("traceparent", parent)]).await;
    assert!(invoked.headers()["traceparent"].to_str().unwrap().starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"));
    assert!(!invoked.headers().contains_key("grpc-trace-bin"));
}

#[tokio::test]
async fn what_is_not_grpc_gets_an_http_status() {
    let rig = Rig::start().await;
    let io = hyper_util::rt::TokioIo::new(tokio::net::TcpStream::connect(rig.address).await.unwrap());
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let mut ask = |method: &str, content_type: &str| {
        let req = http::Request::builder()
            .method(method)
            .uri(format!("http://{}{GET_METADATA}", rig.address))
            .header("content-type", content_type)
            .body(http_body_util::Empty::<Bytes>::new())
            .unwrap();
        send.send_request(req)
    };
    let got = ask("GET", "application/grpc");
    let posted = ask("POST", "application/json");
    assert_eq!(got.await.unwrap().status(), 405);
    assert_eq!(posted.await.unwrap().status(), 415);
}

#[tokio::test]
async fn unknown_services_and_methods_go_to_the_proxy() {
    let rig = Rig::start().await;
    let message = |res: &http::Response<Bytes>| {
        let text = percent_encoding::percent_decode(res.headers()["grpc-message"].as_bytes());
        let text = text.decode_utf8().unwrap().into_owned();
        (res.headers()["grpc-status"].to_str().unwrap().to_owned(), text)
    };
    let (code, text) = message(&rig.raw("/shop.Orders/Get", &[]).await);
    assert_eq!(code, "2");
    assert!(text.starts_with("cannot proxy request: missing dapr-callee-app-id"), "{text}");
    let (code, text) = message(&rig.raw("/dapr.proto.runtime.v1.Dapr/Nothing", &[]).await);
    assert_eq!(code, "2");
    assert!(text.starts_with("failed to proxy request: required metadata"), "{text}");
}

#[tokio::test]
async fn a_deadline_ends_the_wait() {
    let rig = Rig::start().await;
    // The first message of this stream never comes.
    let silent = http_body_util::StreamBody::new(futures_util::stream::pending()).boxed_unsync();
    let path = "/dapr.proto.runtime.v1.Dapr/SubscribeTopicEventsAlpha1";
    let res = rig.raw_with(path, &[("grpc-timeout", "20m")], silent).await;
    assert_eq!(res.headers()["grpc-status"], "4");
}

#[tokio::test]
async fn calls_are_counted_with_their_status() {
    let rig = Rig::start().await;
    let _ = rig.client().get_metadata(GetMetadataRequest {}).await.unwrap();
    let _ = rig.client().get_state(GetStateRequest { store_name: "nope".into(), ..Default::default() }).await;
    eventually(|| rig.metric("dapr_grpc_io_server_completed_rpcs").len() == 2).await;
    let counted = rig.metric("dapr_grpc_io_server_completed_rpcs");
    let line = |method: &str| counted.iter().find(|l| l.contains(&format!("/{method}\""))).unwrap();
    assert!(line("GetMetadata").contains("grpc_server_status=\"OK\""), "{counted:?}");
    assert!(line("GetState").contains("grpc_server_status=\"InvalidArgument\""), "{counted:?}");
}

#[tokio::test]
async fn reflection_lists_the_api_without_metadata() {
    let rig = Rig::start().await;
    let mut client = ServerReflectionClient::new(channel(&rig));
    let ask = |what| ServerReflectionRequest { host: String::new(), message_request: Some(what) };
    let asked = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("dapr.proto.runtime.v1.Dapr".into())),
    ];
    let mut answers = client.server_reflection_info(futures_util::stream::iter(asked)).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) = answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("a list");
    };
    let names: Vec<_> = list.service.iter().map(|s| s.name.as_str()).collect();
    for listed in ["dapr.proto.runtime.v1.Dapr", "mecha.v1.Sidecar", "grpc.health.v1.Health"] {
        assert!(names.contains(&listed), "{names:?}");
    }
    assert!(!names.iter().any(|n| n.contains("Sentry") || n.contains("AppCallback")), "{names:?}");
    let Some(MessageResponse::FileDescriptorResponse(files)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("a file");
    };
    assert!(!files.file_descriptor_proto.is_empty());
    let alpha = rig.raw("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &[]).await;
    assert!(alpha.headers()["grpc-status"] != "12", "{:?}", alpha.headers());
}

#[tokio::test]
async fn health_follows_the_sidecar() {
    let rig = Rig::start().await;
    let mut client = HealthClient::new(channel(&rig));
    let ask = |service: &str| HealthCheckRequest { service: service.into() };
    let mut watch = client.watch(ask("")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert_eq!(client.check(ask("")).await.unwrap().into_inner().status(), ServingStatus::NotServing);
    rig.core.health.enter(Phase::Ready);
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let api = client.check(ask("dapr.proto.runtime.v1.Dapr")).await.unwrap().into_inner();
    assert_eq!(api.status(), ServingStatus::Serving);
    assert_eq!(client.check(ask("x")).await.unwrap_err().code(), Code::NotFound);
    rig.core.tasks.stopping().cancel();
    assert!(watch.message().await.unwrap().is_none());
}
