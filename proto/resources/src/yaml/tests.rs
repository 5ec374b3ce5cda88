use super::*;
use proptest::prelude::*;

fn text_of(yaml: &str) -> String {
    let mut parsed = parse(yaml);
    assert!(parsed.faults.is_empty(), "{:?}", parsed.faults);
    parsed.documents.remove(0).root.to_text()
}

#[test]
fn plain_scalars_follow_yaml_1_1() {
    for (yaml, text) in [
        ("on", "true"),
        ("yes", "true"),
        ("Y", "true"),
        ("off", "false"),
        ("N", "false"),
        ("0777", "511"),
        ("0o17", "15"),
        ("0x1F", "31"),
        ("0b11", "3"),
        ("1_000", "1000"),
        ("-12", "-12"),
        ("+12", "12"),
        ("08", "8"),
        ("1.10", "1.1"),
        (".5", "0.5"),
        ("1e3", "1000"),
        ("1e21", "1e+21"),
        ("0.0000001", "1e-7"),
        ("18446744073709551615", "18446744073709551615"),
        ("null", ""),
        ("~", ""),
        ("\"on\"", "on"),
        ("'0777'", "0777"),
        ("!!str 0777", "0777"),
        ("2024-01-02", "2024-01-02"),
        ("1.2.3", "1.2.3"),
        ("localhost:6379", "localhost:6379"),
        ("12:30", "12:30"),
        ("-", "[null]"),
        ("{b: [1, on], a: x}", r#"{"a":"x","b":[1,true]}"#),
    ] {
        assert_eq!(text_of(yaml), text, "{yaml}");
    }
}

#[test]
fn a_broken_document_does_not_hide_the_next() {
    let parsed = parse("a: 1\n---\nb: [1, 2\n---\nc: 3\n");
    assert_eq!(parsed.documents.iter().map(|d| d.index).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(parsed.faults.len(), 1);
    assert_eq!(parsed.faults[0].document, 2);
}

#[test]
fn merges_and_repeated_keys() {
    let parsed = parse("base: &b {a: 1, b: 2}\nuse:\n  <<: *b\n  b: 3\n  b: 4\n");
    let doc = &parsed.documents[0];
    assert_eq!(doc.root.get("use").map(Node::to_text).as_deref(), Some(r#"{"a":1,"b":4}"#));
    assert_eq!(doc.repeated, [("b".to_owned(), 5, 3)]);
}

#[test]
fn bombs_are_refused_early() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let refs = vec![format!("*a{}", i - 1); 9].join(", ");
        bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
    }
    let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 100].join(", "));
    let deep = "[".repeat(10_000);
    let separators = "---\n".repeat(MAX_NODES + 10);
    for text in [bomb, long, deep, separators] {
        let parsed = parse(&text);
        assert!(!parsed.faults.is_empty());
    }
    let parsed = parse("a: &a [*a]\n");
    assert!(!parsed.faults.is_empty());
}

proptest! {
    #[test]
    fn never_panics(text in "[-a-c:&*!{}\\[\\]<|>#'\" \n\t%0-9.~]{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn json_survives(keys in proptest::collection::btree_map("[a-z]{1,6}", -1000i64..1000, 0..8)) {
        let json = serde_json::json!(keys);
        prop_assert_eq!(Node::from_json(&json).to_json(), json);
    }

    #[test]
    fn whole_numbers_keep_their_value(n in any::<i64>()) {
        prop_assert_eq!(text_of(&n.to_string()), n.to_string());
    }
}
