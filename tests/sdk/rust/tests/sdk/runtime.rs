//! Secrets, metadata, what is not configured, and whether every scenario is played.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dapr::dapr::proto::runtime::v1::{ShutdownRequest, TryLockRequest};
use serde_json::{Value, json};
use tonic::Code;

use crate::stage::{Sidecar, ask, fails, raw, sdk};

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
    let kinds: BTreeMap<_, _> =
        got.registered_components.iter().map(|c| (c.name.as_str(), c.r#type.as_str())).collect();
    let want = BTreeMap::from([
        ("statestore", "state.sqlite"),
        ("pubsub", "pubsub.mecha"),
        ("secrets", "secretstores.local.file"),
        ("files", "bindings.localstorage"),
    ]);
    assert_eq!(kinds, want);
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
async fn lock_not_configured() {
    let request = TryLockRequest {
        store_name: "lockstore".to_owned(),
        resource_id: "resource".to_owned(),
        lock_owner: "owner".to_owned(),
        expiry_in_seconds: 10,
    };
    let error = raw().await.try_lock_alpha1(request).await.expect_err("refused");
    assert_eq!((error.code(), error.message()), (Code::FailedPrecondition, "lock store is not configured"));
}

#[tokio::test]
async fn configuration_not_configured() {
    let answer = sdk().await.get_configuration("configstore", vec!["key"], None).await;
    fails(answer, "FailedPrecondition", "configuration stores not configured");
}

#[tokio::test]
async fn shutdown() {
    let leaver = Sidecar::run("leaver", json!({})).await;
    leaver.raw().await.shutdown(ShutdownRequest {}).await.expect("an answer");
    assert_eq!(ask("/ended", json!({ "appId": "leaver" })).await["status"], 0);
}

#[test]
fn every_scenario_is_played() {
    let table: BTreeMap<String, Value> =
        serde_json::from_str(include_str!("../../../scenarios.json")).expect("a table");
    let mut played: BTreeSet<&str> = NOT_IN_SDK.into();
    for source in
        [include_str!("state.rs"), include_str!("pubsub.rs"), include_str!("calls.rs"), include_str!("runtime.rs")]
    {
        let tests = source.split("#[tokio::test]\nasync fn ").skip(1);
        played.extend(tests.filter_map(|test| test.split_once('(')).map(|(name, _)| name));
    }
    assert_eq!(played.into_iter().collect::<Vec<_>>(), table.keys().map(String::as_str).collect::<Vec<_>>());
}
