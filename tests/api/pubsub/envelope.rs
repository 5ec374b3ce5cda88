//! What an event looks like when it arrives.

use mecha_tests::{Answer, HttpApp};
use serde_json::{Value, json};

use super::{EVENTS, KINDS, event, subscribed, taking, taking_with, with_events};

/// `(content type, bytes, member, what it holds)`.
fn payloads() -> Vec<(&'static str, &'static [u8], &'static str, Value)> {
    vec![
        ("application/json", br#"{"n":1}"#, "data", json!({"n": 1})),
        ("application/json; charset=utf-8", br#"{"n":1}"#, "data", json!({"n": 1})),
        ("application/json", b"[1,2]", "data", json!([1, 2])),
        ("application/json", b"5", "data", json!(5)),
        // Bad or empty JSON is a text.
        ("application/json", b"{broken", "data", json!("{broken")),
        ("application/json", b"", "data", json!("")),
        ("application/vnd.me+json", br#"{"n":1}"#, "data", json!(r#"{"n":1}"#)),
        ("text/plain", b"hello", "data", json!("hello")),
        ("application/xml", b"<a/>", "data", json!("<a/>")),
        ("application/octet-stream", b"\x00\xff", "data_base64", json!("AP8=")),
    ]
}

#[tokio::test]
async fn the_envelope_follows_the_content_type() {
    for kind in KINDS {
        let app = taking("topic").start().await;
        let sidecar = subscribed(with_events(kind, &app)).await;
        for api in sidecar.apis().await {
            for (content_type, bytes, member, expected) in payloads() {
                app.forget();
                api.publish(EVENTS, "topic", content_type, bytes, &[]).await.unwrap();
                let got = event(&app.wait_calls("POST /in", 1).await[0]);
                assert_eq!(got[member], expected, "{kind} over {}: {content_type}: {got}", api.name());
                assert_eq!(got["datacontenttype"], content_type);
                assert!(got.get(if member == "data" { "data_base64" } else { "data" }).is_none(), "{got}");
            }
        }
    }
}

#[tokio::test]
async fn every_attribute_is_there() {
    let app = taking("topic").start().await;
    let sidecar = subscribed(with_events("memory", &app).app_id("me")).await;
    for api in sidecar.apis().await {
        app.forget();
        api.publish(EVENTS, "topic", "", "hello", &[]).await.unwrap();
        let calls = app.wait_calls("POST /in", 1).await;
        let got = event(&calls[0]);
        assert!(uuid::Uuid::parse_str(got["id"].as_str().unwrap()).is_ok(), "{got}");
        assert_eq!(got["specversion"], "1.0");
        assert_eq!(got["source"], "me");
        assert_eq!(got["type"], "com.dapr.event.sent");
        assert_eq!(got["datacontenttype"], "text/plain");
        assert_eq!((&got["topic"], &got["pubsubname"]), (&json!("topic"), &json!(EVENTS)));
        assert_eq!(got["data"], "hello");
        let time = got["time"].as_str().unwrap();
        assert!(time.contains('T') && time.len() >= 20, "{time}");
        // All three are there, whether or not something is traced.
        for member in ["traceparent", "traceid", "tracestate"] {
            assert!(got[member].is_string(), "{member} in {got}");
        }
        assert_eq!(got["traceparent"], got["traceid"]);
        assert_eq!(calls[0].header("pubsubname"), EVENTS);
    }
}

#[tokio::test]
async fn metadata_may_say_attributes() {
    let app = taking("topic").start().await;
    let sidecar = subscribed(with_events("memory", &app)).await;
    let metadata = [
        ("cloudevent.id", "my-id"),
        ("cloudevent.source", "my-source"),
        ("cloudevent.type", "my.type"),
        ("cloudevent.subject", "my-subject"),
        ("CloudEvent.traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("cloudevent.traceid", "loses"),
    ];
    for api in sidecar.apis().await {
        app.forget();
        api.publish(EVENTS, "topic", "text/plain", "x", &metadata).await.unwrap();
        let got = event(&app.wait_calls("POST /in", 1).await[0]);
        assert_eq!(got["id"], "my-id");
        assert_eq!(got["source"], "my-source");
        assert_eq!(got["type"], "my.type");
        assert_eq!(got["subject"], "my-subject");
        assert_eq!(got["traceparent"], "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        assert_eq!(got["traceid"], got["traceparent"]);
    }
}

#[tokio::test]
async fn an_event_that_is_one_already_is_kept() {
    let app = taking("topic").start().await;
    let sidecar = subscribed(with_events("memory", &app)).await;
    let mine = json!({
        "id": "mine", "source": "me", "type": "my.type", "specversion": "1.0", "datacontenttype": "application/json",
        "data": {"n": 1}, "extra": "kept",
    });
    for api in sidecar.apis().await {
        app.forget();
        let metadata = [("cloudevent.id", "not for input that is an event")];
        api.publish(EVENTS, "topic", "application/cloudevents+json", mine.to_string(), &metadata).await.unwrap();
        let got = event(&app.wait_calls("POST /in", 1).await[0]);
        for member in ["id", "source", "type", "data", "extra"] {
            assert_eq!(got[member], mine[member], "{member} over {}", api.name());
        }
        assert_eq!((&got["topic"], &got["pubsubname"]), (&json!("topic"), &json!(EVENTS)));
        assert!(got["time"].is_string() && got["traceid"].is_string(), "{got}");
        // No id is made up, and defaults fill the rest.
        app.forget();
        api.publish(EVENTS, "topic", "application/cloudevents+json", r#"{"data":1}"#, &[]).await.unwrap();
        let got = event(&app.wait_calls("POST /in", 1).await[0]);
        assert!(got.get("id").is_none(), "{got}");
        assert_eq!((&got["source"], &got["specversion"]), (&json!("Dapr"), &json!("1.0")));
        // A trace id that is no text is not a crash.
        app.forget();
        let odd = r#"{"id":"odd","data":1,"traceid":5,"traceparent":{}}"#;
        api.publish(EVENTS, "topic", "application/cloudevents+json", odd, &[]).await.unwrap();
        assert_eq!(app.wait_calls("POST /in", 1).await[0].json()["id"], "odd");
    }
}

#[tokio::test]
async fn numbers_keep_their_digits() {
    for kind in KINDS {
        let app = taking("topic").start().await;
        let sidecar = subscribed(with_events(kind, &app)).await;
        let data = r#"{"big":12345678901234567890123,"price":1.10,"exp":1E+2,"z":1,"a":2}"#;
        for api in sidecar.apis().await {
            app.forget();
            api.publish(EVENTS, "topic", "application/json", data, &[]).await.unwrap();
            let text = app.wait_calls("POST /in", 1).await[0].text();
            assert!(text.contains("12345678901234567890123") && text.contains("1.10"), "{kind}: {text}");
        }
    }
}

/// What is looked at as a number is the double that was written, to the last bit.
#[tokio::test]
async fn a_rule_compares_the_double_that_was_published() {
    let same = "event.data.n == 31.245270191439438 && event.data.m == 121.48791951161945";
    let routes = json!({"rules": [{"match": same, "path": "/same"}], "default": "/other"});
    let app = HttpApp::builder()
        .subscribe(&json!([{"pubsubname": EVENTS, "topic": "topic", "routes": routes}]))
        .on("POST /same", Answer::status(200))
        .on("POST /other", Answer::status(200))
        .start()
        .await;
    let sidecar = subscribed(with_events(KINDS[0], &app)).await;
    for api in sidecar.apis().await {
        app.forget();
        let data = r#"{"n":31.245270191439438,"m":121.48791951161945}"#;
        api.publish(EVENTS, "topic", "application/json", data, &[]).await.unwrap();
        app.wait_calls("POST /same", 1).await;
    }
}

#[tokio::test]
async fn raw_payloads_arrive_as_they_were_sent() {
    for kind in KINDS {
        let app: HttpApp = taking_with("topic", &json!({"metadata": {"rawPayload": "true"}})).start().await;
        let sidecar = subscribed(with_events(kind, &app)).await;
        for api in sidecar.apis().await {
            app.forget();
            api.publish(EVENTS, "topic", "text/plain", &b"\x00raw\xff"[..], &[("rawPayload", "true")]).await.unwrap();
            let got = event(&app.wait_calls("POST /in", 1).await[0]);
            assert_eq!(got["data_base64"], "AHJhd/8=", "{kind} over {}: {got}", api.name());
            assert_eq!(got["datacontenttype"], "application/octet-stream");
            assert_eq!(got["source"], "Dapr");
            assert_eq!((&got["topic"], &got["pubsubname"]), (&json!("topic"), &json!(EVENTS)));
        }
    }
}

#[tokio::test]
async fn a_raw_payload_that_is_an_event_is_delivered_as_one() {
    let app = taking("topic").start().await;
    let sidecar = subscribed(with_events("memory", &app)).await;
    for api in sidecar.apis().await {
        app.forget();
        let raw = r#"{"id":"raw","type":"any","data":{"n":1}}"#;
        api.publish(EVENTS, "topic", "application/json", raw, &[("rawPayload", "true")]).await.unwrap();
        let got = event(&app.wait_calls("POST /in", 1).await[0]);
        assert_eq!((&got["id"], &got["data"]["n"]), (&json!("raw"), &json!(1)));
    }
}

#[tokio::test]
async fn topics_may_hold_slashes_and_odd_characters() {
    for kind in KINDS {
        for topic in ["a/b/c", "with space", "dots.and-dashes_1", "ключ"] {
            let app = taking(topic).start().await;
            let sidecar = subscribed(with_events(kind, &app)).await;
            for api in sidecar.apis().await {
                app.forget();
                api.publish(EVENTS, topic, "text/plain", "x", &[]).await.unwrap();
                assert_eq!(event(&app.wait_calls("POST /in", 1).await[0])["topic"], topic);
            }
            // As clients write it: the rest of the path is the topic.
            if topic == "a/b/c" {
                app.forget();
                sidecar.http().post(format!("/v1.0/publish/{EVENTS}/a/b/c"), "x").send().await.expect(204);
                app.wait_calls("POST /in", 1).await;
            }
        }
    }
}
