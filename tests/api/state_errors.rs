//! What a caller of the state API is told when something is wrong, on both fronts.

use mecha_proto::common::StateItem;
use mecha_proto::runtime::{ExecuteStateTransactionRequest, SaveStateRequest, TransactionalStateOperation};
use mecha_tests::{Expect, Fault, Item, Op, Sidecar};
use serde_json::json;
use tonic::Code;

use crate::support::memory_store;

async fn with_store() -> Sidecar {
    Sidecar::with("app", &[memory_store("store")]).await
}

/// The same wrong store through every call.
async fn store_faults(sidecar: &Sidecar, store: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    for api in sidecar.apis().await {
        faults.push(api.get(store, "k").await.unwrap_err());
        faults.push(api.save(store, &[Item::new("k", "1")]).await.unwrap_err());
        faults.push(api.delete(store, "k", None).await.unwrap_err());
        faults.push(api.bulk_get(store, &["k"]).await.unwrap_err());
        faults.push(api.transact(store, &[Op::Upsert(Item::new("k", "1"))]).await.unwrap_err());
    }
    faults
}

#[tokio::test]
async fn an_unknown_store_is_named() {
    let sidecar = with_store().await;
    for fault in store_faults(&sidecar, "nowhere").await {
        fault.is(&Expect {
            http: 400,
            grpc: Code::InvalidArgument,
            code: "ERR_STATE_STORE_NOT_FOUND",
            reason: "DAPR_STATE_NOT_FOUND",
            message: "state store nowhere is not found",
        });
        assert_eq!(fault.detail_names(), ["ErrorInfo"], "no ResourceInfo: {fault:?}");
        let info = fault.detail("ErrorInfo").unwrap();
        assert_eq!(info["domain"], "dapr.io");
        if fault.http.is_some() {
            assert_eq!(info["metadata"], json!({"appID": "app"}));
        }
    }
}

#[tokio::test]
async fn no_store_at_all_is_another_error() {
    let sidecar = Sidecar::with("app", &[]).await;
    for fault in store_faults(&sidecar, "nowhere").await {
        fault.is(&Expect {
            http: 500,
            grpc: Code::FailedPrecondition,
            code: "ERR_STATE_STORE_NOT_CONFIGURED",
            reason: "DAPR_STATE_NOT_CONFIGURED",
            message: "state store nowhere is not configured",
        });
        assert_eq!(fault.detail_names(), ["ErrorInfo"], "{fault:?}");
    }
}

#[tokio::test]
async fn a_key_with_two_pipes_is_refused() {
    let sidecar = with_store().await;
    let key = "other||key";
    for api in sidecar.apis().await {
        let faults = [
            api.get("store", key).await.unwrap_err(),
            api.save("store", &[Item::new(key, "1")]).await.unwrap_err(),
            api.delete("store", key, None).await.unwrap_err(),
            api.bulk_get("store", &[key]).await.unwrap_err(),
            api.transact("store", &[Op::Upsert(Item::new(key, "1"))]).await.unwrap_err(),
        ];
        for (number, fault) in faults.iter().enumerate() {
            let message = if api.is_http() {
                "api error: code = InvalidArgument desc = input key/keyPrefix 'other||key' can't contain '||'"
            } else {
                "input key/keyPrefix 'other||key' can't contain '||'"
            };
            fault.is(&Expect {
                http: 400,
                grpc: Code::InvalidArgument,
                code: "ERR_MALFORMED_REQUEST",
                reason: "DAPR_STATE_ILLEGAL_KEY",
                message,
            });
            let transaction = number == 4;
            let field = if transaction && api.is_http() { "" } else { key };
            let violations = &fault.detail("BadRequest").unwrap()["field_violations"];
            assert_eq!(violations[0]["field"], field, "{fault:?}");
            let resource = fault.detail("ResourceInfo").unwrap();
            assert_eq!((&resource["resource_type"], &resource["resource_name"]), (&json!("state"), &json!("store")));
        }
    }
}

#[tokio::test]
async fn details_come_in_the_contract_s_order() {
    let sidecar = with_store().await;
    for api in sidecar.apis().await {
        let fault = api.get("store", "a||b").await.unwrap_err();
        assert_eq!(fault.detail_names(), ["BadRequest", "ResourceInfo", "ErrorInfo"], "{fault:?}");
        assert_eq!(fault.detail("ResourceInfo").unwrap()["owner"], "");
    }
}

#[tokio::test]
async fn an_item_needs_a_key() {
    let sidecar = with_store().await;
    let [http, grpc] = sidecar.apis().await;
    let expected = |message| Expect {
        http: 400,
        grpc: Code::InvalidArgument,
        code: "ERR_MALFORMED_REQUEST",
        reason: "ERR_STATE_SAVE",
        message,
    };
    let fault = http.save("store", &[Item::new("", "1")]).await.unwrap_err();
    fault.is(&expected("\"key\" is a required field"));
    assert!(fault.details.is_empty(), "plain: {fault:?}");
    grpc.save("store", &[Item::new("", "1")]).await.unwrap_err().is(&expected("state key cannot be empty"));
    // Nothing of such a list is written.
    let items = [Item::new("good", "1"), Item::new("", "2")];
    for api in [http, grpc] {
        api.save("store", &items).await.unwrap_err();
        assert!(api.get("store", "good").await.unwrap().is_none(), "over {}", api.name());
    }
}

#[tokio::test]
async fn an_unknown_operation_is_named() {
    let sidecar = with_store().await;
    let body = json!({"operations": [{"operation": "merge", "request": {"key": "k", "value": 1}}]});
    let reply = sidecar.http().post_json("/v1.0/state/store/transaction", &body).send().await.expect(400);
    assert_eq!(reply.code(), "ERR_NOT_SUPPORTED_STATE_OPERATION");
    assert_eq!(reply.message(), "operation type merge not supported");
    let request = ExecuteStateTransactionRequest {
        store_name: "store".to_owned(),
        operations: vec![TransactionalStateOperation {
            operation_type: "merge".to_owned(),
            request: Some(StateItem { key: "k".to_owned(), ..StateItem::default() }),
        }],
        ..ExecuteStateTransactionRequest::default()
    };
    let status = sidecar.grpc().await.execute_state_transaction(request).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unimplemented, "operation type merge not supported"));
}

#[tokio::test]
async fn a_ttl_that_is_no_number_is_the_caller_s_mistake() {
    let sidecar = with_store().await;
    for api in sidecar.apis().await {
        for ttl in ["soon", "1.5", "10s"] {
            let fault = api.save("store", &[Item::new("k", "1").metadata("ttlInSeconds", ttl)]).await.unwrap_err();
            assert!(fault.http == Some(400) || fault.grpc == Some(Code::InvalidArgument), "{ttl}: {fault:?}");
            assert_eq!(fault.code, "ERR_STATE_SAVE", "{fault:?}");
            assert!(fault.message.starts_with("failed saving state in state store store: "), "{fault:?}");
        }
        // Empty means not given.
        api.save("store", &[Item::new("k", "1").metadata("ttlInSeconds", "")]).await.unwrap();
    }
}

#[tokio::test]
async fn an_unknown_concurrency_is_the_caller_s_mistake() {
    let sidecar = with_store().await;
    for options in [json!({"concurrency": "maybe"}), json!({"consistency": "maybe"})] {
        let body = json!([{"key": "k", "value": 1, "options": options}]);
        let reply = sidecar.http().post_json("/v1.0/state/store", &body).send().await.expect(400);
        assert_eq!(reply.code(), "ERR_STATE_SAVE", "{}", reply.text());
    }
    let reply = sidecar.http().delete("/v1.0/state/store/k?concurrency=maybe").send().await.expect(400);
    assert_eq!(reply.code(), "ERR_STATE_DELETE");
}

#[tokio::test]
async fn queries_need_a_store_that_can() {
    let sidecar = with_store().await;
    let reply = sidecar.http().post_json("/v1.0-alpha1/state/store/query", &json!({"filter": {}})).send().await;
    let reply = reply.expect(500);
    assert_eq!(reply.code(), "ERR_STATE_STORE_NOT_SUPPORTED");
    assert_eq!(reply.message(), "state store does not support querying");
    let request = mecha_proto::runtime::QueryStateRequest {
        store_name: "store".to_owned(),
        query: "{}".to_owned(),
        ..mecha_proto::runtime::QueryStateRequest::default()
    };
    let status = sidecar.grpc().await.query_state_alpha1(request).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Internal, "state store does not support querying"));
}

#[tokio::test]
async fn invalid_utf8_in_a_body_is_refused() {
    let sidecar = with_store().await;
    let body = b"[{\"key\":\"k\",\"value\":\"\xff\"}]".to_vec();
    let reply = sidecar.http().post("/v1.0/state/store", body).header("content-type", "application/json");
    let reply = reply.send().await.expect(400);
    assert_eq!(reply.code(), "ERR_MALFORMED_REQUEST");
    sidecar.http().get("/v1.0/state/store/k").send().await.expect(204);
}

#[tokio::test]
async fn a_good_request_follows_a_bad_one() {
    let sidecar = with_store().await;
    let mut grpc = sidecar.grpc().await;
    let bad = SaveStateRequest { store_name: "nowhere".to_owned(), states: Vec::new() };
    grpc.save_state(bad).await.unwrap_err();
    for api in sidecar.apis().await {
        api.save("nowhere", &[Item::new("k", "1")]).await.unwrap_err();
        api.save("store", &[Item::new("k", "1")]).await.unwrap();
    }
}
