//! Invocation and bindings.

use prost_types::Any;
use serde_json::{Value, json};

use crate::stage::{fails, metadata, new_id, sdk, stage, until};

#[tokio::test]
async fn invoke_grpc_app() {
    let data = Any { value: b"some bytes".to_vec(), ..Any::default() };
    let answer = sdk().await.invoke_service("grpc-app", "echo", Some(data)).await.expect("an answer");
    assert_eq!(answer.content_type, "application/json");
    let got: Value = serde_json::from_slice(&answer.data.expect("data").value).expect("JSON");
    assert_eq!(got, json!({ "app": "grpc-app", "body": "some bytes", "caller": "tester" }));
}

#[tokio::test]
async fn invoke_error_of_app() {
    let answer = sdk().await.invoke_service("grpc-app", "fail", Some(Any::default())).await;
    fails(answer, "AlreadyExists", "broken by intent");
}

#[tokio::test]
async fn invoke_unknown_app() {
    let answer = sdk().await.invoke_service("nobody", "echo", Some(Any::default())).await;
    fails(answer, "Internal", "nobody");
}

#[tokio::test]
async fn binding_output() {
    let (mut sdk, name) = (sdk().await, new_id());
    let file = metadata("fileName", &name);
    sdk.invoke_binding("files", b"a text".to_vec(), "create", file.clone()).await.expect("created");
    let got = sdk.invoke_binding("files", vec![], "get", file.clone()).await.expect("read");
    assert_eq!(got.data, b"a text");
    let list = sdk.invoke_binding("files", vec![], "list", None).await.expect("listed");
    let names: Vec<String> = serde_json::from_slice(&list.data).expect("JSON");
    assert!(names.contains(&name), "{names:?}");
    sdk.invoke_binding("files", vec![], "delete", file.clone()).await.expect("deleted");
    let gone = sdk.invoke_binding("files", vec![], "get", file).await;
    fails(gone, "Internal", "error invoking output binding files");
}

#[tokio::test]
async fn binding_input_grpc_app() {
    let app = &stage().await.app;
    let first = app.ticks();
    until("ticks", async || (app.ticks() > first).then_some(())).await;
}

#[tokio::test]
async fn binding_unknown() {
    let answer = sdk().await.invoke_output_binding("nowhere", "create").await;
    fails(answer, "Internal", "couldn't find output binding nowhere");
}

#[tokio::test]
async fn binding_unknown_operation() {
    let answer = sdk().await.invoke_output_binding("files", "paint").await;
    fails(answer, "InvalidArgument", "binding files does not support operation paint");
}
