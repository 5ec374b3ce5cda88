use serde_json::json;

use super::*;

fn component(store: &str) -> Value {
    json!({
        "metadata": {"name": "orders"}, "auth": {"secretStore": store},
        "spec": {"type": "state.redis", "version": "v1", "metadata": [
            {"name": "redisHost", "value": "redis:6379"},
            {"name": "redisPassword", "secretKeyRef": {"name": "redis", "key": "password"}},
            {"name": "redisUsername", "secretKeyRef": {"name": "redis"}},
            {"name": "empty", "value": "", "secretKeyRef": {"name": "", "key": ""}},
        ]},
    })
}

fn filled(document: &Document) -> (Value, Vec<String>) {
    let secret = |key: &SecretKey| match (key.name.as_str(), key.key.as_str()) {
        ("redis", "password") => Ok(b"hunter2".to_vec()),
        (name, key) => Err(format!("Secret {name} has no key {key}")),
    };
    let (text, missing) = document.body.fill(document.kind, secret);
    (serde_json::from_str(&text).unwrap(), missing)
}

#[test]
fn values_of_secrets_come_in_base64_beside_their_reference() {
    let document = Document::written(Kind::Component, component("kubernetes")).unwrap();
    assert_eq!(document.body.secret_names().collect::<BTreeSet<_>>(), BTreeSet::from(["redis"]));
    let (value, missing) = filled(&document);
    let items = &value["spec"]["metadata"];
    assert_eq!(items[0], json!({"name": "redisHost", "value": "redis:6379"}));
    assert_eq!(items[1]["value"], "aHVudGVyMg==");
    assert_eq!(items[1]["secretKeyRef"]["key"], "password");
    // Without a key, the key of the Secret's name; missing here, so it stays a reference.
    assert!(items[2].get("value").is_none());
    assert_eq!(items[3]["value"], "");
    assert_eq!(missing, ["Secret redis has no key redis"]);
}

#[test]
fn references_into_other_stores_stay_as_they_are() {
    let document = Document::written(Kind::Component, component("vault")).unwrap();
    assert_eq!(document.body.secret_names().count(), 0);
    let (value, missing) = filled(&document);
    assert_eq!(value["spec"]["metadata"], component("vault")["spec"]["metadata"]);
    assert_eq!(missing, [""; 0]);
}

#[test]
fn endpoints_have_secrets_in_headers_and_certificates() {
    let endpoint = json!({
        "metadata": {"name": "bank"},
        "spec": {
            "baseUrl": "https://bank.example",
            "headers": [{"name": "key", "secretKeyRef": {"name": "redis", "key": "password"}}],
            "clientTLS": {"privateKey": {"secretKeyRef": {"name": "redis", "key": "password"}}},
        },
    });
    let (value, missing) = filled(&Document::written(Kind::HttpEndpoint, endpoint).unwrap());
    assert_eq!(value["spec"]["headers"][0]["value"], "aHVudGVyMg==");
    assert_eq!(value["spec"]["clientTLS"]["privateKey"]["value"], "aHVudGVyMg==");
    assert_eq!(missing, [""; 0]);
}

#[test]
fn scopes_that_cannot_be_read_let_nobody_in() {
    let with = |scopes: Value| {
        let mut value = component("");
        value["scopes"] = scopes;
        Document::written(Kind::Component, value)
    };
    assert!(with(json!(null)).unwrap().concerns("cart"));
    assert!(with(json!([])).unwrap().concerns("cart"));
    assert!(with(json!(["cart"])).unwrap().concerns("cart"));
    assert!(!with(json!(["billing"])).unwrap().concerns("cart"));
    for bad in [json!("cart"), json!([1]), json!({})] {
        assert!(with(bad).is_err());
    }
}

#[test]
fn subscriptions_of_the_first_version_get_routes() {
    let old = json!({"metadata": {"name": "s"}, "spec": {"topic": "t", "pubsubname": "p", "route": "/t"}});
    let (value, _) = filled(&Document::written(Kind::Subscription, old).unwrap());
    assert_eq!(value["spec"], json!({"topic": "t", "pubsubname": "p", "routes": {"default": "/t"}}));
}

#[test]
fn the_old_side_owns_until_the_switch() {
    use mecha_resources::kinds::SwapStrategy;
    let side = |text: &str| {
        let mut value = component("vault");
        value["spec"]["type"] = text.into();
        value
    };
    let mut document = Document::written(Kind::Component, side("state.new")).unwrap();
    for (phase, owner) in [
        (SwapPhase::Prepare, "state.old"),
        (SwapPhase::Switch, "state.new"),
        (SwapPhase::Drain, "state.new"),
        (SwapPhase::Paused, "state.new"),
        (SwapPhase::Finalize, "state.new"),
        (SwapPhase::RollBack, "state.old"),
    ] {
        let record = SwapRecord {
            from: "a".into(),
            to: "b".into(),
            strategy: SwapStrategy::Drain,
            phase,
            started_at: String::new(),
            deadline: None,
            why: String::new(),
            cause: String::new(),
            traceparent: None,
        };
        let old = Body::new(Kind::Component, side("state.old")).unwrap();
        document.moving = Some((record, old));
        let (text, _) = document.owner().fill(Kind::Component, |_| Err(String::new()));
        assert!(text.contains(owner), "{phase:?}: {text}");
    }
}
