//! gRPC calls of the app's own services through sidecars.

use futures_util::stream;
use mecha_tests::{EchoClient, GrpcApp, HttpApp, Sidecar};
use tonic::Code;

use crate::support::Pair;

async fn pair() -> (GrpcApp, Pair) {
    let app = GrpcApp::builder().start().await;
    let pair = Pair::built(|b| b, |b| b.grpc_app(&app).env("APP_API_TOKEN", "for-the-app")).await;
    (app, pair)
}

/// Clients that reach the same app: through two sidecars, and through its own.
async fn clients(pair: &Pair) -> [EchoClient; 2] {
    [
        EchoClient::new(pair.caller.channel().await).with("dapr-app-id", "callee"),
        EchoClient::new(pair.callee.channel().await).with("dapr-app-id", "callee"),
    ]
}

#[tokio::test]
async fn all_four_kinds_of_calls_go_through() {
    let (_app, pair) = pair().await;
    for client in clients(&pair).await {
        assert_eq!(client.say("hello").await.unwrap().into_inner(), "hello");
        let mut numbers = client.count(500).await.unwrap().into_inner();
        let mut got = Vec::new();
        while let Some(number) = numbers.message().await.unwrap() {
            got.push(number);
        }
        assert_eq!(got, (0..500).map(|n| n.to_string()).collect::<Vec<_>>());
        let texts = (0..500).map(|n| format!("{n},")).collect::<Vec<_>>();
        assert_eq!(client.join(texts.clone()).await.unwrap().into_inner(), texts.concat());
        let mut answers = client.chat(stream::iter(texts.clone())).await.unwrap().into_inner();
        let mut got = Vec::new();
        while let Some(text) = answers.message().await.unwrap() {
            got.push(text);
        }
        assert_eq!(got, texts);
    }
}

#[tokio::test]
async fn a_chat_is_not_held_back() {
    let (_app, pair) = pair().await;
    for client in clients(&pair).await {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let texts = tokio_stream::wrappers::ReceiverStream::new(receiver);
        sender.send("first".to_owned()).await.unwrap();
        let mut answers = client.with("dapr-stream", "true").chat(texts).await.unwrap().into_inner();
        for text in ["first", "second", "third"] {
            if text != "first" {
                sender.send(text.to_owned()).await.unwrap();
            }
            let answer = tokio::time::timeout(mecha_tests::DEADLINE, answers.message()).await.expect("an answer");
            assert_eq!(answer.unwrap().unwrap(), text);
        }
        drop(sender);
        assert!(answers.message().await.unwrap().is_none());
    }
}

#[tokio::test]
async fn metadata_status_details_and_trailers_pass() {
    let (_app, pair) = pair().await;
    for client in clients(&pair).await {
        let answer = client.clone().with("x-custom", "v").with("dapr-api-token", "canary").say("x").await.unwrap();
        assert_eq!(answer.metadata().get("echo-x-custom").unwrap(), "v");
        assert_eq!(answer.metadata().get("echo-dapr-api-token").unwrap(), "for-the-app");
        let status = client.say("fail").await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "told to: 100 % fail"));
        assert_eq!(status.details(), [8, 9, 18, 3, b'n', b'o', b'!']);
        assert_eq!(status.metadata().get("echo-trailer").unwrap(), "kept");
        let status = client.missing().await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unimplemented, "no such method of the echo service"));
    }
    // On the way to another app the target's name stays behind, and the caller's is added.
    let [remote, _] = clients(&pair).await;
    let answer = remote.say("x").await.unwrap();
    assert_eq!(answer.metadata().get("echo-dapr-caller-app-id").unwrap(), "caller");
    assert_eq!(answer.metadata().get("echo-dapr-callee-app-id").unwrap(), "callee");
    assert!(answer.metadata().get("echo-dapr-app-id").is_none());
}

#[tokio::test]
async fn the_other_name_of_the_target_wins() {
    let (_app, pair) = pair().await;
    let client =
        EchoClient::new(pair.caller.channel().await).with("dapr-callee-app-id", "callee").with("dapr-app-id", "nobody");
    assert_eq!(client.say("hello").await.unwrap().into_inner(), "hello");
}

#[tokio::test]
async fn a_target_is_needed_and_must_be_known() {
    let (_app, pair) = pair().await;
    let channel = pair.caller.channel().await;
    let status = EchoClient::new(channel.clone()).say("x").await.unwrap_err();
    assert_eq!(status.code(), Code::Unknown, "{status:?}");
    assert_eq!(status.message(), "cannot proxy request: missing dapr-callee-app-id or dapr-app-id metadata");
    assert!(!status.metadata().keys().any(|key| format!("{key:?}").contains("mecha")), "{status:?}");
    let status = EchoClient::new(channel).with("dapr-app-id", "nobody").say("x").await.unwrap_err();
    assert_eq!(status.code(), Code::Unknown, "{status:?}");
    assert!(status.message().contains("no host found with the given ID"), "{status:?}");
}

#[tokio::test]
async fn an_http_app_refuses_clearly() {
    let app = HttpApp::builder().start().await;
    let sidecar = Sidecar::builder().app_id("me").app(&app).start().await;
    let status = EchoClient::new(sidecar.channel().await).with("dapr-app-id", "me").say("x").await.unwrap_err();
    assert_ne!(status.code(), Code::Ok);
    assert!(status.message().to_lowercase().contains("grpc"), "what to do next: {status:?}");
    assert!(app.all_calls().iter().all(|call| call.target.starts_with("/dapr/")), "{:?}", app.all_calls());
}

#[tokio::test]
async fn large_messages_are_refused_on_the_way() {
    let (_app, pair) = pair().await;
    let [client, _] = clients(&pair).await;
    let fits = "x".repeat(3 << 20);
    assert_eq!(client.say(&fits).await.unwrap().into_inner().len(), fits.len());
    let status = client.say(&"x".repeat(5 << 20)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("received message larger than max"), "{status:?}");
    // The connection that the refused call took goes on.
    assert_eq!(client.say("after").await.unwrap().into_inner(), "after");
}

#[tokio::test]
async fn the_callee_has_its_own_limit() {
    let app = GrpcApp::builder().start().await;
    let pair =
        Pair::built(|b| b.flag("max-body-size", "16Mi"), |b| b.grpc_app(&app).flag("max-body-size", "1Mi")).await;
    let [client, _] = clients(&pair).await;
    let status = client.say(&"x".repeat(2 << 20)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let text = status.message();
    assert!(text.contains("received message larger than max") && text.ends_with("vs. 1048576)"), "{status:?}");
}

#[tokio::test]
async fn many_calls_at_once() {
    let (_app, pair) = pair().await;
    let [client, _] = clients(&pair).await;
    let calls = (0..300).map(|n| {
        let client = client.clone();
        async move { client.say(&n.to_string()).await.map(|answer| answer.into_inner() == n.to_string()) }
    });
    for outcome in futures_util::future::join_all(calls).await {
        assert!(outcome.unwrap());
    }
}
