use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use tonic::server::NamedService;

use crate::common::state_options::{StateConcurrency, StateConsistency};
use crate::common::{Etag, HttpExtension, InvokeRequest, StateItem, StateOptions, http_extension::Verb};
use crate::internals::{InternalInvokeRequestStream, ListStringValue};
use crate::runtime::{self, SaveStateRequest, SubscribeTopicEventsRequestAlpha1, topic_event_response};
use crate::{Any, common, components, internals, operator, placement, scheduler, sentry};

/// Encodes to exactly `wire`, and `wire` decodes to it again.
#[track_caller]
fn same<M: Message + Default + PartialEq + std::fmt::Debug>(message: &M, wire: &[u8]) {
    assert_eq!(message.encode_to_vec(), wire);
    assert_eq!(&M::decode(wire).unwrap(), message);
}

#[test]
fn a_saved_state_item() {
    let message = SaveStateRequest {
        store_name: "s".into(),
        states: vec![StateItem {
            key: "k".into(),
            value: Bytes::from_static(b"\x00\xff"),
            etag: Some(Etag { value: "7".into() }),
            metadata: BTreeMap::from([("a".into(), "1".into())]),
            options: Some(StateOptions {
                concurrency: StateConcurrency::ConcurrencyFirstWrite.into(),
                consistency: StateConsistency::ConsistencyStrong.into(),
            }),
        }],
    };
    let wire = [
        b"\x0a\x01s".as_slice(),       // 1: store_name
        b"\x12\x1a",                   // 2: states, 26 bytes
        b"\x0a\x01k",                  //   1: key
        b"\x12\x02\x00\xff",           //   2: value
        b"\x1a\x03\x0a\x017",          //   3: etag { 1: value }
        b"\x22\x06\x0a\x01a\x12\x011", // 4: metadata { 1: key, 2: value }
        b"\x2a\x04\x08\x01\x10\x02",   //   5: options { 1: first-write, 2: strong }
    ]
    .concat();
    same(&message, &wire);
}

#[test]
fn an_absent_etag_differs_from_an_empty_one() {
    let absent = StateItem { key: "k".into(), ..StateItem::default() };
    same(&absent, b"\x0a\x01k");
    same(&StateItem { etag: Some(Etag::default()), ..absent }, b"\x0a\x01k\x1a\x00");
}

#[test]
fn an_invocation_and_its_stream() {
    let message = InvokeRequest {
        method: "m".into(),
        data: Some(Any::plain("hi")),
        content_type: "t".into(),
        http_extension: Some(HttpExtension { verb: Verb::Post.into(), querystring: "a=1".into() }),
    };
    same(&message, b"\x0a\x01m\x12\x04\x12\x02hi\x1a\x01t\x22\x07\x08\x03\x12\x03a=1");

    let chunk = InternalInvokeRequestStream {
        request: Some(internals::InternalInvokeRequest {
            ver: internals::ApiVersion::V1.into(),
            metadata: BTreeMap::from([("h".into(), ListStringValue { values: vec!["x".into(), "y".into()] })]),
            ..Default::default()
        }),
        payload: Some(common::StreamPayload { data: Bytes::from_static(b"z"), seq: 300 }),
    };
    same(&chunk, b"\x0a\x0f\x08\x01\x12\x0b\x0a\x01h\x12\x06\x0a\x01x\x0a\x01y\x12\x06\x0a\x01z\x10\xac\x02");
}

#[test]
fn a_settled_event_of_a_streaming_subscription() {
    use runtime::subscribe_topic_events_request_alpha1::SubscribeTopicEventsRequestType;
    let message = SubscribeTopicEventsRequestAlpha1 {
        subscribe_topic_events_request_type: Some(SubscribeTopicEventsRequestType::EventProcessed(
            runtime::SubscribeTopicEventsRequestProcessedAlpha1 {
                id: "e".into(),
                status: Some(runtime::TopicEventResponse {
                    status: topic_event_response::TopicEventResponseStatus::Drop.into(),
                }),
            },
        )),
    };
    same(&message, b"\x12\x07\x0a\x01e\x12\x02\x08\x02");
}

#[test]
fn unknown_fields_of_a_newer_peer_are_skipped() {
    let wire = b"\x0a\x01k\xfa\x3f\x03new";
    assert_eq!(Etag::decode(wire.as_slice()).unwrap().value, "k");
}

#[test]
fn decoding_shares_the_bytes_of_the_input() {
    let wire =
        Bytes::from(InvokeRequest { data: Some(Any::plain(vec![7; 4096])), ..Default::default() }.encode_to_vec());
    let value = InvokeRequest::decode(wire.clone()).unwrap().data.unwrap().value;
    assert!(wire.as_ptr_range().contains(&value.as_ptr()), "the value was copied");
}

#[test]
fn any_is_the_well_known_type() {
    let theirs = prost_types::Any { type_url: "type.googleapis.com/a.B".into(), value: b"v".to_vec() };
    let ours = Any::decode(theirs.encode_to_vec().as_slice()).unwrap();
    assert_eq!(ours, Any::from(theirs.clone()));
    assert_eq!(prost_types::Any::from(ours), theirs);

    let time = prost_types::Timestamp { seconds: 5, nanos: 6 };
    let packed = Any::pack(&time);
    assert_eq!(packed.type_url, "type.googleapis.com/google.protobuf.Timestamp");
    assert_eq!(packed.unpack::<prost_types::Timestamp>().unwrap(), Some(time));
    assert_eq!(packed.unpack::<prost_types::Duration>().unwrap(), None);
    assert_eq!(Any::plain("x").unpack::<prost_types::Duration>().unwrap(), None);
    let broken = Any { value: Bytes::from_static(b"\xff"), ..packed };
    assert!(broken.unpack::<prost_types::Timestamp>().is_err());
}

#[test]
fn services_have_the_names_clients_call() {
    struct Nothing;
    fn name<S: NamedService>() -> &'static str {
        S::NAME
    }
    assert_eq!(name::<runtime::dapr_server::DaprServer<Nothing>>(), "dapr.proto.runtime.v1.Dapr");
    assert_eq!(
        name::<runtime::app_callback_health_check_server::AppCallbackHealthCheckServer<Nothing>>(),
        "dapr.proto.runtime.v1.AppCallbackHealthCheck"
    );
    assert_eq!(
        name::<internals::service_invocation_server::ServiceInvocationServer<Nothing>>(),
        "dapr.proto.internals.v1.ServiceInvocation"
    );
    assert_eq!(name::<sentry::ca_server::CaServer<Nothing>>(), "dapr.proto.sentry.v1.CA");
    assert_eq!(name::<operator::operator_server::OperatorServer<Nothing>>(), "dapr.proto.operator.v1.Operator");
    assert_eq!(name::<placement::placement_server::PlacementServer<Nothing>>(), "dapr.proto.placement.v1.Placement");
    assert_eq!(name::<scheduler::scheduler_server::SchedulerServer<Nothing>>(), "dapr.proto.scheduler.v1.Scheduler");
    assert_eq!(
        name::<components::state_store_server::StateStoreServer<Nothing>>(),
        "dapr.proto.components.v1.StateStore"
    );
}

#[test]
fn clients_take_a_channel() {
    // Without generated transport code; compiling is the test.
    let _: fn(tonic::transport::Channel) -> runtime::dapr_client::DaprClient<tonic::transport::Channel> =
        runtime::dapr_client::DaprClient::new;
}

#[test]
fn secrets_do_not_show_in_debug() {
    let map = || BTreeMap::from([("user".to_owned(), "hunter2".to_owned())]);
    let bytes = || Bytes::from_static(b"hunter2");
    let shown = [
        format!("{:?}", runtime::GetSecretResponse { data: map() }),
        format!(
            "{:?}",
            runtime::GetBulkSecretResponse {
                data: BTreeMap::from([("db".into(), runtime::SecretResponse { secrets: map() })])
            }
        ),
        format!("{:?}", runtime::SubtleUnwrapKeyResponse { plaintext_key: bytes() }),
        format!("{:?}", runtime::SubtleWrapKeyRequest { plaintext_key: bytes(), ..Default::default() }),
        format!("{:?}", components::GetSecretResponse { data: map() }),
        format!("{:?}", components::SecretResponse { secrets: map() }),
        format!("{:?}", components::InitRequest { metadata: Some(components::MetadataRequest { properties: map() }) }),
        format!("{:?}", operator::ComponentUpdateEvent { component: bytes(), r#type: 1 }),
        format!("{:?}", operator::ListComponentResponse { components: vec![bytes()] }),
        format!("{:?}", operator::HttpEndpointUpdateEvent { http_endpoints: bytes(), r#type: 1 }),
        format!("{:?}", operator::GetHttpEndpointResponse { http_endpoint: bytes() }),
        format!("{:?}", operator::ListHttpEndpointsResponse { http_endpoints: vec![bytes()] }),
        format!("{:?}", sentry::SignCertificateRequest { token: "hunter2".into(), ..Default::default() }),
        format!("{:?}", sentry::SignCertificateResponse { jwt: Some("hunter2".into()), ..Default::default() }),
        format!("{:?}", Any::plain("hunter2")),
    ];
    for text in &shown {
        assert!(!text.contains("hunter2") && !text.contains("104, 117"), "{text}");
    }
    assert_eq!(shown[0], r#"GetSecretResponse { data: {"user": ***} }"#);
    assert_eq!(shown[7], "ComponentUpdateEvent { type: 1, component: *** }");
    assert_eq!(shown[8], "ListComponentResponse { components: 1 }");
}
