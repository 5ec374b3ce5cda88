use bytes::Bytes;
use mecha_proto::Any;
use mecha_proto::common::http_extension::Verb;
use mecha_proto::common::{HttpExtension, InvokeRequest, StateItem, StateOptions};
use mecha_proto::runtime::*;
use tonic::Code;
use tonic_types::StatusExt;

use super::{Rig, reason, state, with_etag};

fn save(states: Vec<StateItem>) -> SaveStateRequest {
    SaveStateRequest { store_name: "mem".into(), states }
}

fn get(key: &str) -> GetStateRequest {
    GetStateRequest { store_name: "mem".into(), key: key.into(), ..GetStateRequest::default() }
}

#[tokio::test]
async fn values_come_back_byte_for_byte_and_etags_guard_them() {
    let rig = Rig::start().await;
    let mut client = rig.client();
    assert_eq!(client.get_state(get("k")).await.unwrap().into_inner(), GetStateResponse::default());
    client.save_state(save(vec![state("k", "\u{0}one")])).await.unwrap();
    let first = client.get_state(get("k")).await.unwrap().into_inner();
    assert_eq!(first.data, "\u{0}one");
    assert!(!first.etag.is_empty());

    client.save_state(save(vec![with_etag(state("k", "two"), &first.etag)])).await.unwrap();
    let stale = client.save_state(save(vec![with_etag(state("k", "three"), &first.etag)])).await.unwrap_err();
    assert_eq!(stale.code(), Code::Aborted);
    assert!(stale.message().contains("possible etag mismatch. error from state store"), "{stale}");
    assert_eq!(reason(&stale), "ERR_STATE_SAVE");
    assert_eq!(stale.get_details_resource_info().unwrap().resource_name, "mem");
    // An empty etag counts as none.
    client.save_state(save(vec![with_etag(state("k", "four"), "")])).await.unwrap();

    let delete = |etag: &str| DeleteStateRequest {
        store_name: "mem".into(),
        key: "k".into(),
        etag: with_etag(StateItem::default(), etag).etag,
        ..DeleteStateRequest::default()
    };
    assert_eq!(client.delete_state(delete(&first.etag)).await.unwrap_err().code(), Code::Aborted);
    client.delete_state(delete("")).await.unwrap();
    assert!(client.get_state(get("k")).await.unwrap().into_inner().data.is_empty());
}

#[tokio::test]
async fn first_write_without_etag_wants_an_absent_key() {
    let rig = Rig::start().await;
    let mut client = rig.client();
    let first_write =
        |value| StateItem { options: Some(StateOptions { concurrency: 1, consistency: 0 }), ..state("once", value) };
    client.save_state(save(vec![first_write("a")])).await.unwrap();
    assert_eq!(client.save_state(save(vec![first_write("b")])).await.unwrap_err().code(), Code::Aborted);
}

#[tokio::test]
async fn an_item_that_says_json_must_be_json() {
    let rig = Rig::start().await;
    let mut client = rig.client();
    let json = |value| StateItem {
        metadata: [("contentType".to_owned(), "application/json".to_owned())].into(),
        ..state("j", value)
    };
    client.save_state(save(vec![json(r#"{"n": 9007199254740993.50}"#)])).await.unwrap();
    assert_eq!(client.get_state(get("j")).await.unwrap().into_inner().data, r#"{"n": 9007199254740993.50}"#);
    let bad = client.save_state(save(vec![json("{")])).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    assert!(bad.message().starts_with("failed saving state in state store mem: "), "{bad}");
    let op = TransactionalStateOperation { operation_type: "upsert".into(), request: Some(json("{")) };
    let req = ExecuteStateTransactionRequest {
        store_name: "mem".into(),
        operations: vec![op],
        ..ExecuteStateTransactionRequest::default()
    };
    assert_eq!(client.execute_state_transaction(req).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_life_time_shows_in_the_answer() {
    let rig = Rig::start().await;
    let mut client = rig.client();
    let mut item = state("t", "x");
    item.metadata.insert("ttlInSeconds".into(), "100".into());
    client.save_state(save(vec![item])).await.unwrap();
    let found = client.get_state(get("t")).await.unwrap().into_inner();
    let expires: jiff::Timestamp = found.metadata["ttlExpireTime"].parse().unwrap();
    assert!(expires > jiff::Timestamp::now());
}

#[tokio::test]
async fn bulk_get_answers_every_key_in_order() {
    let rig = Rig::start().await;
    let mut client = rig.client();
    client.save_state(save(vec![state("a", "1"), state("b", "2")])).await.unwrap();
    let req = GetBulkStateRequest {
        store_name: "mem".into(),
        keys: ["b", "none", "a", "b"].map(str::to_owned).to_vec(),
        ..GetBulkStateRequest::default()
    };
    let items = client.get_bulk_state(req).await.unwrap().into_inner().items;
    let seen: Vec<_> = items.iter().map(|i| (i.key.as_str(), &i.data[..])).collect();
    assert_eq!(seen, [("b", &b"2"[..]), ("none", b""), ("a", b"1"), ("b", b"2")]);
    let all = DeleteBulkStateRequest { store_name: "mem".into(), states: vec![state("a", ""), state("b", "")] };
    client.delete_bulk_state(all).await.unwrap();
    assert!(client.get_state(get("a")).await.unwrap().into_inner().data.is_empty());
}

#[tokio::test]
async fn a_transaction_is_all_or_nothing() {
    let rig = Rig::start().await;
    let mut client = rig.client();
    client.save_state(save(vec![state("k", "old")])).await.unwrap();
    let op = |kind: &str, item| TransactionalStateOperation { operation_type: kind.into(), request: Some(item) };
    let tx = |operations| ExecuteStateTransactionRequest {
        store_name: "mem".into(),
        operations,
        ..ExecuteStateTransactionRequest::default()
    };
    let stale = with_etag(state("k", "new"), "4711");
    let failed = client
        .execute_state_transaction(tx(vec![op("upsert", state("other", "x")), op("upsert", stale)]))
        .await
        .unwrap_err();
    assert_eq!(failed.code(), Code::Aborted);
    assert!(client.get_state(get("other")).await.unwrap().into_inner().data.is_empty());
    client
        .execute_state_transaction(tx(vec![op("upsert", state("other", "x")), op("delete", state("k", ""))]))
        .await
        .unwrap();
    assert_eq!(client.get_state(get("other")).await.unwrap().into_inner().data, "x");
    let unknown = client.execute_state_transaction(tx(vec![op("merge", state("k", ""))])).await.unwrap_err();
    assert_eq!((unknown.code(), unknown.message()), (Code::Unimplemented, "operation type merge not supported"));
}

#[tokio::test]
async fn errors_carry_what_the_contract_says_and_count_once() {
    let rig = Rig::start().await;
    let mut client = rig.client();
    let missing = client
        .get_state(GetStateRequest { store_name: "nope".into(), key: "k".into(), ..GetStateRequest::default() })
        .await
        .unwrap_err();
    assert_eq!((missing.code(), missing.message()), (Code::InvalidArgument, "state store nope is not found"));
    assert_eq!(reason(&missing), "DAPR_STATE_NOT_FOUND");
    let counted = rig.metric("dapr_error_code_total");
    assert_eq!(counted.len(), 1, "{counted:?}");
    assert!(counted[0].contains("\"ERR_STATE_STORE_NOT_FOUND\"") && counted[0].ends_with(" 1"), "{counted:?}");

    let illegal = client.get_state(get("a||b")).await.unwrap_err();
    assert_eq!(illegal.message(), "input key/keyPrefix 'a||b' can't contain '||'");
    assert_eq!(illegal.get_details_bad_request().unwrap().field_violations[0].field, "a||b");

    let no_key = client.save_state(save(vec![state("", "x")])).await.unwrap_err();
    assert_eq!((no_key.code(), no_key.message()), (Code::InvalidArgument, "state key cannot be empty"));
    assert_eq!(reason(&no_key), "ERR_STATE_SAVE");

    // Plain by contract.
    let secret = client
        .get_secret(GetSecretRequest { store_name: "nope".into(), key: "k".into(), ..GetSecretRequest::default() })
        .await
        .unwrap_err();
    assert_eq!((secret.code(), secret.details().len()), (Code::InvalidArgument, 0));
    assert_eq!(secret.message(), "failed finding secret store with key nope");

    let binding = client
        .invoke_binding(InvokeBindingRequest { name: "b".into(), ..InvokeBindingRequest::default() })
        .await
        .unwrap_err();
    assert_eq!((binding.code(), reason(&binding).as_str()), (Code::Internal, "ERR_INVOKE_OUTPUT_BINDING"));
}

#[tokio::test]
async fn unbuilt_apis_answer_from_the_one_table() {
    let rig = Rig::start().await;
    let mut client = rig.client();
    let actor = client.invoke_actor(InvokeActorRequest::default()).await.unwrap_err();
    assert_eq!((actor.code(), actor.message()), (Code::Unavailable, "placement service is not configured"));
    let workflow = StartWorkflowRequest { workflow_component: "wf".into(), ..StartWorkflowRequest::default() };
    let workflow = client.start_workflow_beta1(workflow).await.unwrap_err();
    assert_eq!(workflow.code(), Code::InvalidArgument);
    assert!(workflow.message().contains("'wf'"), "{workflow}");
    let key = client.subtle_get_key_alpha1(SubtleGetKeyRequest::default()).await.unwrap_err();
    assert_eq!((key.code(), key.message()), (Code::Unimplemented, "this API is currently not implemented"));
    assert_eq!(client.get_job(GetJobRequest::default()).await.unwrap_err().code(), Code::Internal);
    let talk = ConversationRequest { name: "gpt".into(), ..ConversationRequest::default() };
    assert_eq!(client.converse_alpha1(talk).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn events_are_published_alone_and_in_bulk() {
    let rig = Rig::start().await;
    let mut client = rig.client();
    let event = PublishEventRequest {
        pubsub_name: "bus".into(),
        topic: "orders".into(),
        data: Bytes::from_static(b"hi"),
        ..PublishEventRequest::default()
    };
    client.publish_event(event.clone()).await.unwrap();
    let missing = client.publish_event(PublishEventRequest { pubsub_name: "nope".into(), ..event }).await.unwrap_err();
    assert_eq!((missing.code(), reason(&missing).as_str()), (Code::InvalidArgument, "DAPR_PUBSUB_NOT_FOUND"));

    let entry = |id: &str| BulkPublishRequestEntry {
        entry_id: id.into(),
        event: Bytes::from_static(b"{}"),
        content_type: "application/json".into(),
        ..BulkPublishRequestEntry::default()
    };
    let bulk = |ids: [&str; 2]| BulkPublishRequest {
        pubsub_name: "bus".into(),
        topic: "orders".into(),
        entries: ids.map(entry).to_vec(),
        ..BulkPublishRequest::default()
    };
    assert!(client.bulk_publish_event(bulk(["1", "2"])).await.unwrap().into_inner().failed_entries.is_empty());
    for ids in [["1", "1"], ["1", ""]] {
        assert_eq!(client.bulk_publish_event_alpha1(bulk(ids)).await.unwrap_err().code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn secrets_metadata_and_shutdown() {
    let rig = Rig::start().await;
    let mut client = rig.client();
    let ask = GetSecretRequest { store_name: "env".into(), key: "PATH".into(), ..GetSecretRequest::default() };
    let path = client.get_secret(ask).await.unwrap().into_inner();
    assert_eq!(path.data["PATH"], std::env::var("PATH").unwrap());

    let set = SetMetadataRequest { key: "colour".into(), value: "blue".into() };
    client.set_metadata(set).await.unwrap();
    let doc = client.get_metadata(GetMetadataRequest {}).await.unwrap().into_inner();
    assert_eq!((doc.id.as_str(), doc.extended_metadata["colour"].as_str()), ("shop", "blue"));
    let names: Vec<_> = doc.registered_components.iter().map(|c| c.name.as_str()).collect();
    assert!(names.contains(&"mem") && names.contains(&"bus"), "{names:?}");
    assert_eq!(doc.actor_runtime.unwrap().runtime_status(), actor_runtime::ActorRuntimeStatus::Disabled);

    let asked = rig.core.shutdown_requests();
    let mut forced = tonic::Request::new(ShutdownRequest {});
    forced.metadata_mut().insert("dapr-force-shutdown", "true".parse().unwrap());
    client.shutdown(forced).await.unwrap();
    assert_eq!(*asked.borrow(), mecha_core::ShutdownRequest::Forced);
}

#[tokio::test]
async fn lock_and_configuration_stores_that_are_not_there() {
    let rig = Rig::start().await;
    let mut client = rig.client();
    let lock = client
        .try_lock_alpha1(TryLockRequest { store_name: "l".into(), ..TryLockRequest::default() })
        .await
        .unwrap_err();
    assert_eq!((lock.code(), lock.message()), (Code::FailedPrecondition, "lock store is not configured"));
    let ask = |store: &str| GetConfigurationRequest {
        store_name: store.into(),
        keys: vec!["a".into()],
        ..GetConfigurationRequest::default()
    };
    let found = client.get_configuration_alpha1(ask("conf")).await.unwrap().into_inner();
    assert_eq!(found.items["a"].value, "value of a");
    let missing = client.get_configuration(ask("nope")).await.unwrap_err();
    assert_eq!((missing.code(), missing.message()), (Code::InvalidArgument, "configuration store nope not found"));
    assert_eq!(reason(&missing), "ERR_CONFIGURATION_STORE_NOT_FOUND");
    let end = UnsubscribeConfigurationRequest { store_name: "conf".into(), id: "x".into() };
    let ended = client.unsubscribe_configuration(end).await.unwrap().into_inner();
    assert!(!ended.ok && ended.message.contains("failed to unsubscribe"), "{ended:?}");
}

#[tokio::test]
async fn invoke_service_reaches_the_app() {
    let rig = Rig::start().await;
    let message = InvokeRequest {
        method: "orders/1".into(),
        data: Some(Any::plain(Bytes::from_static(b"body"))),
        content_type: "text/plain".into(),
        http_extension: Some(HttpExtension { verb: Verb::Put as i32, querystring: "a=1".into() }),
    };
    let req = InvokeServiceRequest { id: "shop".into(), message: Some(message.clone()) };
    let mut req = tonic::Request::new(req);
    req.metadata_mut().insert("x-mine", "1".parse().unwrap());
    let res = rig.client().invoke_service(req).await.unwrap();
    let md = res.metadata();
    assert_eq!(md.get("dapr-http-status").unwrap(), "200");
    assert_eq!(md.get("x-method").unwrap(), "PUT");
    assert_eq!(md.get("x-uri").unwrap(), "/orders/1?a=1");
    assert_eq!(md.get("x-echo-x-mine").unwrap(), "1");
    assert!(md.get("x-echo-grpc-accept-encoding").is_none());
    assert_eq!(res.into_inner().data.unwrap().value, "body");

    let bare = InvokeRequest { http_extension: None, ..message };
    let req = InvokeServiceRequest { id: "shop".into(), message: Some(bare) };
    let failed = rig.client().invoke_service(req).await.unwrap_err();
    assert_eq!(failed.code(), Code::Internal);
    assert!(failed.message().contains("missing HTTP extension field"), "{failed}");
}
