//! Secrets, metadata, and whether every scenario is played.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dapr::dapr::proto::runtime::v1::ShutdownRequest;
use serde_json::{Value, json};

use crate::stage::{Sidecar, ask, backend, fails, sdk};

/// What the SDK has no part in: it has neither an HTTP client nor, but for actors, an HTTP server, and nothing that
/// waits for a sidecar. Every client of it is asynchronous. Calls of other services are not its business.
const NOT_IN_SDK: [&str; 8] = [
    "async_client",
    "binding_input_http_app",
    "health",
    "invoke_by_proxy",
    "invoke_http_app",
    "publish_to_declared_subscription",
    "publish_to_http_app",
    "publish_to_rules",
];

#[tokio::test]
async fn secret_get() {
    for (key, value) in [("plain", "of no worth"), ("database:user", "reader")] {
        let got = sdk().await.get_secret("secrets", key).await.expect("a secret");
        assert_eq!(got.data, HashMap::from([(key.to_owned(), value.to_owned())]));
    }
}

#[tokio::test]
async fn secret_bulk() {
    let got = sdk().await.get_bulk_secret("secrets", None).await.expect("secrets");
    let keys: BTreeSet<_> = got.data.keys().map(String::as_str).collect();
    assert_eq!(keys, BTreeSet::from(["plain", "database:user", "database:password"]));
    assert_eq!(got.data["database:password"].secrets["database:password"], "of no worth either");
}

#[tokio::test]
async fn secret_missing() {
    let answer = sdk().await.get_secret("secrets", "nothing").await;
    fails(answer, "Internal", "failed getting secret with key nothing from secret store secrets");
}

#[tokio::test]
async fn secret_unknown_store() {
    let answer = sdk().await.get_secret("nowhere", "plain").await;
    fails(answer, "InvalidArgument", "failed finding secret store with key nowhere");
}

#[tokio::test]
async fn metadata_get() {
    let got = sdk().await.get_metadata().await.expect("metadata");
    assert_eq!(got.id, "tester");
    let kinds: BTreeMap<String, String> = got.registered_components.into_iter().map(|c| (c.name, c.r#type)).collect();
    assert_eq!(json!(kinds), backend()["components"]);
}

#[tokio::test]
async fn metadata_set() {
    let mut sdk = sdk().await;
    sdk.set_metadata("colour", "green").await.expect("set");
    assert_eq!(sdk.get_metadata().await.expect("metadata").extended_metadata["colour"], "green");
}

#[tokio::test]
async fn api_token() {
    let token = "a token of the test";
    let guarded = Sidecar::run("guarded", json!({ "DAPR_API_TOKEN": token })).await;
    fails(guarded.client().await.get_metadata().await, "Unauthenticated", "");
    assert_eq!(guarded.client_with_token(token).await.get_metadata().await.expect("metadata").id, "guarded");
}

#[tokio::test]
async fn shutdown() {
    let leaver = Sidecar::run("leaver", json!({})).await;
    leaver.raw().await.shutdown(ShutdownRequest {}).await.expect("an answer");
    assert_eq!(ask("/ended", json!({ "appId": "leaver" })).await["status"], 0);
}

#[test]
fn every_scenario_is_played() {
    let table: BTreeMap<String, BTreeMap<String, Value>> =
        serde_json::from_str(include_str!("../../../scenarios.json")).expect("a table");
    let wanted: BTreeSet<&str> = table.values().flat_map(BTreeMap::keys).map(String::as_str).collect();
    let mut played: BTreeSet<&str> = NOT_IN_SDK.into();
    for source in [
        include_str!("state.rs"),
        include_str!("pubsub.rs"),
        include_str!("calls.rs"),
        include_str!("runtime.rs"),
        include_str!("embedded.rs"),
        include_str!("servers.rs"),
    ] {
        let tests = source.split("#[tokio::test]\nasync fn ").skip(1);
        played.extend(tests.filter_map(|test| test.split_once('(')).map(|(name, _)| name));
    }
    assert_eq!(played, wanted);
}
