use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn seal(content_type: Option<&str>, data: &[u8], metadata: &[(&str, &str)]) -> Result<Bytes, NoEvent> {
    let metadata = metadata.iter().copied().collect();
    Draft {
        pubsub: "bus",
        topic: "orders",
        app_id: "shop",
        data: &Bytes::copy_from_slice(data),
        content_type,
        metadata: &metadata,
        traceparent: PARENT,
        tracestate: "a=1",
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        expires: None,
    }
    .seal()
}

fn event(content_type: Option<&str>, data: &[u8], metadata: &[(&str, &str)]) -> Value {
    serde_json::from_slice(&seal(content_type, data, metadata).unwrap()).unwrap()
}

#[test]
fn the_envelope_has_exactly_the_attributes_of_the_contract() {
    let mut e = event(None, b"hi", &[]);
    let id = e["id"].take();
    assert!(uuid::Uuid::parse_str(id.as_str().unwrap()).is_ok());
    assert_eq!(
        e,
        json!({
            "id": null, "specversion": "1.0", "source": "shop", "type": "com.dapr.event.sent",
            "time": "2023-11-14T22:13:20Z", "datacontenttype": "text/plain", "topic": "orders", "pubsubname": "bus",
            "traceid": PARENT, "traceparent": PARENT, "tracestate": "a=1", "data": "hi",
        })
    );
}

#[test]
fn data_by_content_type() {
    let data = |ct, data: &[u8]| event(Some(ct), data, &[])["data"].take();
    assert_eq!(data("application/json; charset=utf-8", br#"{"a":[1]}"#), json!({"a": [1]}));
    assert_eq!(data("application/json", b" null "), json!(null));
    assert_eq!(data("application/json", b""), json!(""));
    assert_eq!(data("application/json", b"{broken"), json!("{broken"));
    assert_eq!(data("application/vnd.shop+json", b"{\"a\":1}"), json!("{\"a\":1}"));
    assert_eq!(data("text/plain", b"\xff"), json!("\u{fffd}"));
    assert_eq!(data("", b"x"), json!("x"));
    let e = event(Some("application/octet-stream"), b"\x00\xff", &[]);
    assert_eq!((e.get("data"), &e["data_base64"]), (None, &json!("AP8=")));
}

#[test]
fn numbers_keep_their_digits() {
    let sealed = seal(Some("application/json"), b"{\"n\":1.50,\"big\":123456789012345678901234567890}", &[]).unwrap();
    let text = std::str::from_utf8(&sealed).unwrap();
    assert!(text.contains(r#""data":{"n":1.50,"big":123456789012345678901234567890}"#), "{text}");
    let own = br#"{"id":"1","data":{"n":1.50e2}}"#;
    let sealed = seal(Some(content::CLOUD_EVENT), own, &[]).unwrap();
    assert!(std::str::from_utf8(&sealed).unwrap().contains(r#""data":{"n":1.50e2}"#));
}

#[test]
fn metadata_overrides_attributes_in_any_case() {
    let e = event(
        None,
        b"",
        &[
            ("cloudevent.ID", "7"),
            ("CloudEvent.source", "s"),
            ("cloudevent.type", "t"),
            ("cloudevent.subject", "u"),
            ("cloudevent.traceid", "x"),
            ("cloudevent.traceparent", "y"),
            ("cloudevent.tracestate", "z"),
        ],
    );
    let got: Vec<_> = ["id", "source", "type", "subject", "traceid", "traceparent", "tracestate"]
        .iter()
        .map(|name| e[*name].as_str().unwrap())
        .collect();
    assert_eq!(got, ["7", "s", "t", "u", "y", "y", "z"]);
}

#[test]
fn an_event_of_the_publisher_is_kept() {
    let own = json!({"id": "1", "source": "me", "time": "t", "traceid": "own", "topic": "other", "x": 1, "type": null});
    let e = event(Some("application/cloudevents+json"), own.to_string().as_bytes(), &[("cloudevent.id", "9")]);
    assert_eq!(
        e,
        json!({
            "id": "1", "source": "me", "time": "t", "traceid": "own", "traceparent": "own", "tracestate": "a=1",
            "topic": "orders", "pubsubname": "bus", "type": "com.dapr.event.sent", "specversion": "1.0", "x": 1,
        })
    );
    let e = event(Some(content::CLOUD_EVENT), b"{}", &[]);
    assert_eq!((&e["source"], &e["traceid"], e.get("id")), (&json!("Dapr"), &json!(PARENT), None));
    assert_eq!(event(Some(content::CLOUD_EVENT), b"{\"traceid\":5}", &[])["traceparent"], json!(5));
}

#[test]
fn what_claims_to_be_an_event_must_be_an_object() {
    for bad in ["", "null", "[]", "\"x\"", "{"] {
        assert_eq!(seal(Some(content::CLOUD_EVENT), bad.as_bytes(), &[]), Err(NoEvent), "{bad}");
    }
}

proptest! {
    #[test]
    fn any_payload_makes_an_envelope_that_reads_back(data in proptest::collection::vec(any::<u8>(), 0..200), ct in 0..4usize) {
        let ct = ["application/octet-stream", "text/plain", "application/json", "a/b+json"][ct];
        let sealed = seal(Some(ct), &data, &[]).unwrap();
        let event = Members::parse(&sealed).unwrap();
        match event.text("data_base64") {
            Some(text) => prop_assert_eq!(BASE64_STANDARD.decode(text).unwrap(), data),
            None if ct == "application/json" && json_value(&data.clone().into()).is_some() => {
                prop_assert_eq!(event.raw("data").unwrap(), &json_value(&data.into()).unwrap());
            }
            None => prop_assert_eq!(event.text("data").unwrap(), String::from_utf8_lossy(&data)),
        }
    }

    #[test]
    fn json_payloads_keep_every_byte(n in "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?", s in "\\PC{0,20}") {
        let data = format!("{{\"n\": {n},\t\"s\":{}}}", json!(s));
        let event = Members::parse(&seal(Some("application/json"), data.as_bytes(), &[]).unwrap()).unwrap();
        prop_assert_eq!(event.raw("data").unwrap(), data.as_bytes());
    }
}
