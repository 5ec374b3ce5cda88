use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::app::RouteRule;

fn routes(rules: &[(&str, &str)], default: Option<&str>) -> Result<Routes, String> {
    let rule = |(matches, path): &(&str, &str)| RouteRule { matches: (*matches).into(), path: (*path).into() };
    Routes::compile(&AppSubscription {
        rules: rules.iter().map(rule).collect(),
        default_route: default.map(Into::into),
        ..AppSubscription::default()
    })
}

fn event(json: &str) -> Members {
    Members::parse(&Bytes::copy_from_slice(json.as_bytes())).unwrap()
}

#[test]
fn the_first_rule_that_is_true_wins() {
    let r = routes(
        &[
            ("event.type == 'order' && event.data.total > 100", "/big"),
            ("event.type == \"order\"", "/order"),
            ("event.type.startsWith('pay')", "/pay"),
        ],
        Some("/rest"),
    )
    .unwrap();
    let pick = |json: &str| r.pick(&event(json)).unwrap().map(str::to_owned);
    assert_eq!(pick(r#"{"type":"order","data":{"total":150}}"#).unwrap(), "/big");
    assert_eq!(pick(r#"{"type":"order","data":{"total":100}}"#).unwrap(), "/order");
    assert_eq!(pick(r#"{"type":"payment"}"#).unwrap(), "/pay");
    assert_eq!(pick(r#"{"type":"x"}"#).unwrap(), "/rest");
}

#[test]
fn rules_reckon_with_time() {
    let rules = [
        ("timestamp(event.time) < timestamp('2026-01-01T00:00:00Z')", "/old"),
        ("timestamp(event.data.due) - timestamp(event.time) <= duration('1h30m')", "/soon"),
        ("timestamp(event.time) + duration('-24h') > timestamp('2027-01-01T00:00:00+01:00')", "/late"),
    ];
    let r = routes(&rules, Some("/rest")).unwrap();
    let pick = |time: &str, due: &str| {
        let json = format!(r#"{{"time":"{time}","data":{{"due":"{due}"}}}}"#);
        r.pick(&event(&json)).map(|path| path.unwrap().to_owned())
    };
    assert_eq!(pick("2025-12-31T23:59:59.9Z", "x").unwrap(), "/old");
    assert_eq!(pick("2026-05-01T10:00:00Z", "2026-05-01T13:30:00+02:00").unwrap(), "/soon");
    assert_eq!(pick("2027-01-02T00:00:00Z", "2028-01-01T00:00:00Z").unwrap(), "/late");
    assert_eq!(pick("2026-05-01T10:00:00Z", "2026-06-01T00:00:00Z").unwrap(), "/rest");
    assert!(pick("2026-05-01T10:00:00Z", "tomorrow").unwrap_err().contains("RFC 3339"));
    for bad in ["duration('5')", "duration('')", "duration('--5s')", "duration('1 hour')", "duration('999999999h')"] {
        assert!(routes(&[(&format!("{bad} > 0"), "/x")], None).unwrap().pick(&event("{}")).is_err(), "{bad}");
    }
}

#[test]
fn an_empty_match_is_always_true_and_no_route_is_none() {
    assert!(routes(&[("", "/all"), ("nonsense(", "/x")], None).unwrap_err().contains("nonsense("));
    assert_eq!(routes(&[("  ", "/all")], None).unwrap().pick(&event("{}")).unwrap(), Some("/all"));
    assert_eq!(routes(&[("event.a == 1", "/a")], None).unwrap().pick(&event("{\"a\":2}")).unwrap(), None);
}

#[test]
fn an_expression_beyond_every_stack_is_refused() {
    let chain = format!("event.a{} == 1", ".a".repeat(1_900));
    for deep in ["(".repeat(100_000), "event.t(".repeat(500), "[".repeat(4_000), chain] {
        let Err(error) = routes(&[(&deep, "/a")], None) else { panic!("{}… is taken", &deep[..20]) };
        assert!(error.len() < 500, "{} bytes: {error}", error.len());
    }
}

#[test]
fn a_rule_that_cannot_be_decided_ends_the_search() {
    let r = routes(&[("event.data.missing == 1", "/a"), ("true", "/b")], Some("/c")).unwrap();
    assert!(r.pick(&event(r#"{"data":{}}"#)).unwrap_err().contains("missing"));
    assert!(r.pick(&event(r#"{"data":"text"}"#)).is_err());
    let r = routes(&[("event.type", "/a")], Some("/c")).unwrap();
    assert!(r.pick(&event(r#"{"type":"x"}"#)).unwrap_err().contains("not a bool"));
}

#[test]
fn expressions_of_the_documentation_work() {
    let yes = |expression: &str, json: &str| {
        let r = routes(&[(expression, "/a")], None).unwrap();
        assert_eq!(r.pick(&event(json)), Ok(Some("/a")), "{expression} over {json}");
    };
    yes("event.data.important == true", r#"{"data":{"important":true}}"#);
    yes("event.data.deposit > int(10000)", r#"{"data":{"deposit":10001}}"#);
    yes("event.data.n == 10", r#"{"data":{"n":10}}"#);
    yes("event.data.n * 1.5 == 15.0", r#"{"data":{"n":10}}"#);
    yes("has(event.data.order) && event.data.order.customer == 'VIP'", r#"{"data":{"order":{"customer":"VIP"}}}"#);
    yes("!has(event.data.order)", r#"{"data":{}}"#);
    yes("event.data.list.exists(x, x == 'b')", r#"{"data":{"list":["a","b"]}}"#);
    yes("event.data.list[1] == 'b'", r#"{"data":{"list":["a","b"]}}"#);
    yes("event.type.matches('^com[.]shop[.].*')", r#"{"type":"com.shop.order"}"#);
    yes("event.type in ['a', 'b']", r#"{"type":"b"}"#);
    yes("event['type'] == 'b'", r#"{"type":"b"}"#);
    yes("size(event.data) == 3", r#"{"data":"abc"}"#);
    yes("event.data.missing == 1 || true", r#"{"data":{}}"#);
}

proptest! {
    #[test]
    fn expressions_never_panic(text in "\\PC{0,40}", json in "\\PC{0,40}") {
        if let Ok(r) = routes(&[(&text, "/a")], None) {
            let mut e = Members::default();
            e.set("data", &json);
            let _ = r.pick(&e);
        }
    }

    #[test]
    fn every_event_reaches_the_default(name in "[a-z]{1,8}", text in "\\PC{0,20}") {
        let r = routes(&[("event.id == 'none'", "/x")], Some("/d")).unwrap();
        let mut e = Members::default();
        e.set(&name, &text);
        e.set("id", "some");
        prop_assert_eq!(r.pick(&e).unwrap(), Some("/d"));
    }
}
