//! The metadata document.

use mecha_proto::runtime::GetMetadataRequest;
use mecha_tests::{HttpApp, Sidecar, component};
use serde_json::json;

use crate::support::{memory_pubsub, memory_store, wait_subscriptions};

#[tokio::test]
async fn it_lists_what_runs() {
    let app = HttpApp::builder()
        .subscribe(&json!([{"pubsubname": "events", "topic": "orders", "route": "/orders", "deadLetterTopic": "dead"}]))
        .start()
        .await;
    let builder = Sidecar::builder().app_id("me").app(&app);
    let file = builder.folder().join("s.db");
    let sidecar = builder
        .component(memory_store("memory"))
        .component(component("file", "state.sqlite", &[("connectionString", file.to_str().unwrap())]))
        .component(memory_pubsub("events"))
        .start()
        .await;
    wait_subscriptions(&sidecar, 1).await;
    let document = sidecar.metadata().await;
    assert_eq!(document["id"], "me");
    let version = document["runtimeVersion"].as_str().unwrap();
    assert!(version == "edge" || version.starts_with("1.18."), "{version}");
    assert!(document["extended"]["daprRuntimeVersion"].is_string(), "{document}");
    let mecha = document["extended"].as_object().unwrap().keys().any(|key| key.starts_with("mecha"));
    assert!(mecha, "our own version: {document}");
    let components = document["components"].as_array().unwrap();
    let named = |name: &str| components.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("{document}"));
    assert_eq!((&named("memory")["type"], &named("memory")["version"]), (&json!("state.in-memory"), &json!("v1")));
    // In this order, as clients compare the list; ACTOR comes last where the store is used for actors.
    let listed = |name: &str| -> Vec<String> { serde_json::from_value(named(name)["capabilities"].clone()).unwrap() };
    assert_eq!(listed("memory")[..5], ["ETAG", "TRANSACTIONAL", "TTL", "DELETE_WITH_PREFIX", "KEYS_LIKE"]);
    assert_eq!(listed("file")[..4], ["ETAG", "TRANSACTIONAL", "TTL", "KEYS_LIKE"]);
    assert_eq!(listed("events"), ["SUBSCRIBE_WILDCARDS"]);
    let subscription = &document["subscriptions"][0];
    assert_eq!(subscription["pubsubname"], "events");
    assert_eq!(subscription["topic"], "orders");
    assert_eq!(subscription["deadLetterTopic"], "dead");
    assert_eq!(subscription["type"], "PROGRAMMATIC");
    assert_eq!(subscription["rules"][0]["path"], "/orders");
    let connection = &document["appConnectionProperties"];
    assert_eq!(connection["port"], app.port());
    assert_eq!(connection["protocol"], "http");
    assert_eq!(connection["channelAddress"], "127.0.0.1");
    assert_eq!(document["actorRuntime"]["runtimeStatus"], "DISABLED");
    assert_eq!(document["actorRuntime"]["hostReady"], false);
}

#[tokio::test]
async fn grpc_says_the_same() {
    let sidecar = Sidecar::with("me", &[memory_store("memory")]).await;
    let document = sidecar.metadata().await;
    let answer = sidecar.grpc().await.get_metadata(GetMetadataRequest {}).await.unwrap().into_inner();
    assert_eq!(answer.id, "me");
    assert_eq!(answer.runtime_version, document["runtimeVersion"].as_str().unwrap());
    assert_eq!(answer.registered_components[0].name, "memory");
    let capabilities: Vec<String> = serde_json::from_value(document["components"][0]["capabilities"].clone()).unwrap();
    assert_eq!(answer.registered_components[0].capabilities, capabilities);
    let features: Vec<String> = serde_json::from_value(document["enabledFeatures"].clone()).unwrap_or_default();
    assert_eq!(answer.enabled_features, features);
}

#[tokio::test]
async fn entries_can_be_set_on_both_fronts() {
    let sidecar = Sidecar::with("me", &[]).await;
    for api in sidecar.apis().await {
        let key = format!("cliPID-{}", api.name());
        api.set_metadata(&key, "first & value\n2").await.unwrap();
        assert_eq!(sidecar.metadata().await["extended"][&key], "first & value\n2");
        api.set_metadata(&key, "second").await.unwrap();
        let answer = sidecar.grpc().await.get_metadata(GetMetadataRequest {}).await.unwrap().into_inner();
        assert_eq!(answer.extended_metadata[&key], "second");
    }
}

#[tokio::test]
async fn empty_members_are_left_out() {
    let sidecar = Sidecar::with("me", &[]).await;
    let document = sidecar.metadata().await;
    for absent in ["components", "subscriptions", "httpEndpoints", "appConnectionProperties", "actors"] {
        assert!(document.get(absent).is_none(), "{absent} in {document}");
    }
}
