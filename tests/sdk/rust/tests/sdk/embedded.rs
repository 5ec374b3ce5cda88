//! What no embedded component can do; left out where there are servers.

use dapr::dapr::proto::runtime::v1::TryLockRequest;
use tonic::Code;

use crate::stage::{fails, raw, sdk};

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
