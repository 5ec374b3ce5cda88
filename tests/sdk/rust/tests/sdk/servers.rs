//! Configuration and locks, which only servers have; left out where there are none.

use std::collections::BTreeMap;
use std::time::Duration;

use dapr::dapr::proto::runtime::v1::unlock_response::Status;
use dapr::dapr::proto::runtime::v1::{TryLockRequest, UnlockRequest};
use tokio::time::timeout;
use tonic::Code;

use crate::stage::{DEADLINE, fails, new_id, raw, sdk, setting, until};

#[tokio::test]
async fn binding_of_server() {
    let key = new_id();
    setting("write", &key, "on", "7").await;
    let (answer, wanted) = setting("read", &key, "on", "7").await;
    assert_eq!(answer, wanted);
}

#[tokio::test]
async fn configuration_get() {
    let keys = ["a", "b", "none"].map(|end| format!("{}{end}", new_id()));
    setting("write", &keys[0], "on", "1").await;
    setting("write", &keys[1], "off", "2").await;
    let got = sdk().await.get_configuration("configstore", keys.to_vec(), None).await.expect("items");
    let got: BTreeMap<_, _> = got.items.into_iter().map(|(key, item)| (key, (item.value, item.version))).collect();
    let item = |value: &str, version: &str| (value.to_owned(), version.to_owned());
    let [a, b, _] = keys;
    assert_eq!(got, BTreeMap::from([(a, item("on", "1")), (b, item("off", "2"))]));
}

#[tokio::test]
async fn configuration_subscribe() {
    let (mut sdk, key) = (sdk().await, new_id());
    let mut told = sdk.subscribe_configuration("configstore", vec![key.as_str()], None).await.expect("a stream");
    let mut version = 0;
    let id = until("a change is told", async || {
        // Changes from before the watch was in place are not told.
        version += 1;
        setting("write", &key, &format!("value {version}"), &version.to_string()).await;
        let change = timeout(Duration::from_millis(500), told.message()).await.ok()?.expect("alive").expect("a change");
        (!change.items.is_empty()).then_some(change.id)
    })
    .await;
    setting("write", &key, "last", "100000").await;
    loop {
        let change = timeout(DEADLINE, told.message()).await.expect("in time").expect("alive").expect("a change");
        assert_eq!(change.items.keys().collect::<Vec<_>>(), [&key]);
        if change.items[&key].value == "last" {
            assert_eq!(change.items[&key].version, "100000");
            break;
        }
    }
    assert!(sdk.unsubscribe_configuration("configstore", id.as_str()).await.expect("an answer").ok);
    while timeout(DEADLINE, told.message()).await.expect("the stream ends").is_ok_and(|change| change.is_some()) {}
}

#[tokio::test]
async fn configuration_unknown_store() {
    let answer = sdk().await.get_configuration("nowhere", vec!["key"], None).await;
    fails(answer, "InvalidArgument", "configuration store nowhere not found");
}

async fn lock(store: &str, id: &str, owner: &str, seconds: i32) -> Result<bool, tonic::Status> {
    let request = TryLockRequest {
        store_name: store.to_owned(),
        resource_id: id.to_owned(),
        lock_owner: owner.to_owned(),
        expiry_in_seconds: seconds,
    };
    Ok(raw().await.try_lock_alpha1(request).await?.into_inner().success)
}

async fn unlock(id: &str, owner: &str) -> Status {
    let (resource_id, lock_owner) = (id.to_owned(), owner.to_owned());
    let request = UnlockRequest { store_name: "lockstore".to_owned(), resource_id, lock_owner };
    raw().await.unlock_alpha1(request).await.expect("an answer").into_inner().status()
}

#[tokio::test]
async fn lock_has_one_owner() {
    let id = new_id();
    assert!(lock("lockstore", &id, "first", 60).await.expect("an answer"));
    assert!(!lock("lockstore", &id, "second", 60).await.expect("an answer"));
    assert_eq!(unlock(&id, "second").await, Status::LockBelongsToOthers);
    assert_eq!(unlock(&id, "first").await, Status::Success);
    assert_eq!(unlock(&id, "first").await, Status::LockDoesNotExist);
    assert!(lock("lockstore", &id, "second", 60).await.expect("an answer"));
}

#[tokio::test]
async fn lock_expires() {
    let id = new_id();
    assert!(lock("lockstore", &id, "first", 1).await.expect("an answer"));
    until("the lock is free", async || lock("lockstore", &id, "second", 60).await.expect("an answer").then_some(()))
        .await;
}

#[tokio::test]
async fn lock_unknown_store() {
    let error = lock("nowhere", "resource", "owner", 10).await.expect_err("refused");
    assert_eq!((error.code(), error.message()), (Code::InvalidArgument, "lock store nowhere not found"));
}
