use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn message(data: &[u8], content_type: Option<&str>, metadata: &[(&str, &str)]) -> Delivery {
    Delivery {
        topic: "orders".into(),
        data: Bytes::copy_from_slice(data),
        metadata: metadata.iter().copied().collect(),
        content_type: content_type.map(Into::into),
    }
}

fn decode(data: &[u8], content_type: Option<&str>, metadata: &[(&str, &str)]) -> Result<Event, String> {
    Event::decode(&message(data, content_type, metadata), "bus", "orders", false)
}

fn object(event: &Event) -> Value {
    Value::Object(event.members.to_map())
}

#[test]
fn an_object_is_taken_as_it_is() {
    let data = br#"{"id":"1","data":{"n":1.50}}"#;
    let event = decode(data, None, &[]).unwrap();
    assert_eq!(event.body, data.as_slice());
    assert_eq!(event.members.raw("data").unwrap(), r#"{"n":1.50}"#);
}

#[test]
fn trace_fields_come_from_metadata_only_if_absent() {
    let metadata = [("traceid", "i"), ("traceparent", "p"), ("tracestate", "s"), ("baggage", "k=v")];
    let event = decode(b"{}", None, &metadata).unwrap();
    assert_eq!(object(&event), json!({"traceid": "p", "traceparent": "p", "tracestate": "s", "baggage": "k=v"}));
    assert_eq!(event.body, "{}");
    let event = decode(br#"{"traceparent":"own","tracestate":""}"#, None, &metadata).unwrap();
    assert_eq!(object(&event), json!({"traceid": "i", "traceparent": "own", "tracestate": "", "baggage": "k=v"}));
}

#[test]
fn what_is_no_object_is_no_event() {
    for bad in ["", "null", "[]", "1", "text", "{\"a\":"] {
        assert!(decode(bad.as_bytes(), None, &[]).is_err(), "{bad}");
    }
}

#[test]
fn a_binary_event_is_rebuilt_and_keeps_its_bytes() {
    let metadata = [("ce_id", "7"), ("CE_Type", "t"), ("other", "x"), ("ce_", "y")];
    let event = decode(b"\x00\x01", Some("application/octet-stream"), &metadata).unwrap();
    assert_eq!(
        object(&event),
        json!({"id": "7", "type": "t", "datacontenttype": "application/octet-stream", "data_base64": "AAE="})
    );
    assert_eq!(event.body, b"\x00\x01".as_slice());
    let event = decode(b"{\"id\":\"1\"}", None, &[("content-type", "application/octet-stream")]).unwrap();
    assert_eq!(event.members.text("id").unwrap(), "1");
    assert_eq!(decode(b"\xff", Some("application/octet-stream"), &[]).unwrap().body, b"\xff".as_slice());
}

#[test]
fn a_raw_subscription_wraps_the_bytes() {
    let msg = message(b"\x00{", None, &[("traceid", "i")]);
    let event = Event::decode(&msg, "bus", "orders", true).unwrap();
    let mut body: Value = serde_json::from_slice(&event.body).unwrap();
    assert!(uuid::Uuid::parse_str(body["id"].take().as_str().unwrap()).is_ok());
    assert_eq!(
        body,
        json!({
            "id": null, "specversion": "1.0", "datacontenttype": "application/octet-stream", "source": "Dapr",
            "type": "com.dapr.event.sent", "topic": "orders", "pubsubname": "bus", "data_base64": "AHs=", "traceid": "i",
        })
    );
}

#[test]
fn expiry() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let expired = |json: &str| decode(json.as_bytes(), None, &[]).unwrap().is_expired(now);
    assert!(expired(r#"{"expiration":"2023-11-14T22:13:19Z"}"#));
    assert!(!expired(r#"{"expiration":"2023-11-14T22:13:21Z"}"#));
    for never in [r#"{"expiration":""}"#, r#"{"expiration":5}"#, r#"{"expiration":"soon"}"#, "{}"] {
        assert!(!expired(never), "{never}");
    }
}

#[test]
fn a_trace_id_that_is_no_text_is_none() {
    let tracer = Tracer::pass_through();
    for odd in [r#"{"traceid":5}"#, r#"{"traceparent":{},"traceid":[]}"#, r#"{"traceparent":"x"}"#] {
        assert_eq!(decode(odd.as_bytes(), None, &[]).unwrap().parent(&tracer), None);
    }
}

proptest! {
    #[test]
    fn arbitrary_messages_never_panic(
        data in proptest::collection::vec(any::<u8>(), 0..100),
        key in "\\PC{0,6}",
        value in "\\PC{0,10}",
        raw: bool,
    ) {
        let msg = message(&data, Some(&value), &[(&key, &value)]);
        if let Ok(event) = Event::decode(&msg, "b", "t", raw) {
            let _ = (event.is_expired(SystemTime::now()), event.members.to_map(), event.members.to_json());
            let _ = event.parent(&Tracer::pass_through());
        }
    }
}
