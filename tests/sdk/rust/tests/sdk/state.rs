//! State.

use dapr::client::{Etag, StateItem, StateOptions};
use dapr::dapr::proto::common::v1::state_options::StateConcurrency;
use dapr::dapr::proto::runtime::v1::{
    DeleteStateRequest, ExecuteStateTransactionRequest, GetBulkStateRequest, TransactionalStateOperation,
};
use serde_json::json;
use tonic::Code;

use crate::stage::{Sdk, Sidecar, ask, fails, metadata, new_id, raw, sdk, until};

const STORE: &str = "statestore";

async fn save(sdk: &mut Sdk, key: &str, value: &str) {
    sdk.save_state(STORE, key, value.into(), None, None, None).await.expect("saved");
}

async fn get(sdk: &mut Sdk, key: &str) -> (String, String) {
    let state = sdk.get_state(STORE, key, None).await.expect("read");
    (String::from_utf8(state.data).expect("text"), state.etag)
}

fn first_write() -> Option<StateOptions> {
    Some(StateOptions { concurrency: StateConcurrency::ConcurrencyFirstWrite.into(), ..StateOptions::default() })
}

fn etag(value: &str) -> Option<Etag> {
    Some(Etag { value: value.to_owned() })
}

fn item(key: &str, value: &str) -> StateItem {
    StateItem { key: key.to_owned(), value: value.into(), ..StateItem::default() }
}

fn upsert(item: StateItem) -> TransactionalStateOperation {
    TransactionalStateOperation { operation_type: "upsert".to_owned(), request: Some(item) }
}

#[tokio::test]
async fn state_save_and_get() {
    let (mut sdk, key) = (sdk().await, new_id());
    let value = r#"{"sum": 9007199254740993, "name": "ä"}"#;
    save(&mut sdk, &key, value).await;
    let (got, etag) = get(&mut sdk, &key).await;
    assert_eq!(got, value);
    assert!(!etag.is_empty());
}

#[tokio::test]
async fn state_get_of_a_missing_key() {
    assert_eq!(get(&mut sdk().await, &new_id()).await, (String::new(), String::new()));
}

#[tokio::test]
async fn state_bulk() {
    let (mut sdk, key) = (sdk().await, new_id());
    let name = |end: &str| format!("{key}{end}");
    sdk.save_bulk_states(STORE, [item(&name("a"), "1"), item(&name("b"), "2")]).await.expect("saved");
    let keys = vec![name("b"), name("none"), name("a")];
    let request = GetBulkStateRequest { store_name: STORE.to_owned(), keys: keys.clone(), ..Default::default() };
    let items = raw().await.get_bulk_state(request).await.expect("read").into_inner().items;
    assert_eq!(items.iter().map(|item| item.key.clone()).collect::<Vec<_>>(), keys);
    assert_eq!(items.iter().map(|item| item.data.as_slice()).collect::<Vec<_>>(), [&b"2"[..], b"", b"1"]);
    sdk.delete_bulk_state(STORE.to_owned(), [(name("a"), vec![]), (name("b"), vec![])]).await.expect("deleted");
    assert_eq!(get(&mut sdk, &name("a")).await.0, "");
}

#[tokio::test]
async fn state_delete() {
    let (mut sdk, key) = (sdk().await, new_id());
    save(&mut sdk, &key, "here").await;
    sdk.delete_state(STORE, key.as_str(), None).await.expect("deleted");
    assert_eq!(get(&mut sdk, &key).await.0, "");
}

#[tokio::test]
async fn state_etag_mismatch() {
    let (mut sdk, key) = (sdk().await, new_id());
    save(&mut sdk, &key, "one").await;
    let (_, old) = get(&mut sdk, &key).await;
    sdk.save_state(STORE, key.as_str(), "two".into(), etag(&old), None, None).await.expect("saved");
    let stale = sdk.save_state(STORE, key.as_str(), "three".into(), etag(&old), None, first_write()).await;
    fails(stale, "Aborted", "possible etag mismatch");
    let delete =
        DeleteStateRequest { store_name: STORE.to_owned(), key: key.clone(), etag: etag(&old), ..Default::default() };
    let error = raw().await.delete_state(delete).await.expect_err("refused");
    assert_eq!(error.code(), Code::Aborted, "{error}");
    assert_eq!(get(&mut sdk, &key).await.0, "two");
}

#[tokio::test]
async fn state_first_write() {
    let (mut sdk, key) = (sdk().await, new_id());
    sdk.save_state(STORE, key.as_str(), "mine".into(), None, None, first_write()).await.expect("saved");
    fails(sdk.save_state(STORE, key.as_str(), "yours".into(), None, None, first_write()).await, "Aborted", "");
    assert_eq!(get(&mut sdk, &key).await.0, "mine");
}

#[tokio::test]
async fn state_transaction() {
    let (mut sdk, key) = (sdk().await, new_id());
    let (old, new) = (format!("{key}old"), format!("{key}new"));
    save(&mut sdk, &old, "old").await;
    let delete = TransactionalStateOperation { operation_type: "delete".to_owned(), request: Some(item(&old, "")) };
    let operations = vec![upsert(item(&new, "new")), delete];
    let request = ExecuteStateTransactionRequest { store_name: STORE.to_owned(), operations, ..Default::default() };
    raw().await.execute_state_transaction(request).await.expect("done");
    assert_eq!(get(&mut sdk, &new).await.0, "new");
    assert_eq!(get(&mut sdk, &old).await.0, "");
}

#[tokio::test]
async fn state_transaction_is_atomic() {
    let (mut sdk, key) = (sdk().await, new_id());
    let new = format!("{key}new");
    save(&mut sdk, &key, "one").await;
    let (_, old) = get(&mut sdk, &key).await;
    save(&mut sdk, &key, "two").await;
    let stale = StateItem { etag: etag(&old), options: first_write(), ..item(&key, "three") };
    let operations = vec![upsert(item(&new, "new")), upsert(stale)];
    let request = ExecuteStateTransactionRequest { store_name: STORE.to_owned(), operations, ..Default::default() };
    let error = raw().await.execute_state_transaction(request).await.expect_err("refused");
    assert_eq!(error.code(), Code::Aborted, "{error}");
    assert_eq!(get(&mut sdk, &new).await.0, "");
    assert_eq!(get(&mut sdk, &key).await.0, "two");
}

#[tokio::test]
async fn state_ttl() {
    let (mut sdk, key) = (sdk().await, new_id());
    let ttl = metadata("ttlInSeconds", "1");
    sdk.save_state(STORE, key.as_str(), "brief".into(), None, ttl, None).await.expect("saved");
    assert_eq!(get(&mut sdk, &key).await.0, "brief");
    until("it is gone", async || get(&mut sdk, &key).await.0.is_empty().then_some(())).await;
}

#[tokio::test]
async fn state_unknown_store() {
    let answer = sdk().await.get_state("nowhere", "key", None).await;
    fails(answer, "InvalidArgument", "state store nowhere is not found");
}

#[tokio::test]
async fn state_key_with_separator() {
    let answer = sdk().await.save_state(STORE, "a||b", "x".into(), None, None, None).await;
    fails(answer, "InvalidArgument", "");
}

#[tokio::test]
async fn state_survives_kill() {
    let key = new_id();
    save(&mut Sidecar::run("victim", json!({})).await.client().await, &key, "kept").await;
    assert_eq!(ask("/kill", json!({ "appId": "victim" })).await["status"], -9);
    assert_eq!(get(&mut Sidecar::run("victim", json!({})).await.client().await, &key).await.0, "kept");
}
