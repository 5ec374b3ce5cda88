//! Avro values as JSON and back, by their schema (Avro specification 1.11).
//!
//! `schema.rs` reads schemas, `encode.rs` writes binary values from JSON, `decode.rs` JSON from binary values. JSON is
//! turned into Avro by the schema alone, so no value is held in between. Logical types are what their underlying type
//! is: a date is a number, a decimal its bytes. Bytes are text with one character, 0 to 255, for each.

mod decode;
mod encode;
mod schema;

pub(crate) use schema::Schema;

/// How deep values and schemas may be.
const DEPTH: usize = 64;

/// How JSON says which type of a union a value has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// Not at all: the first type of the union that the value fits.
    Standard,
    /// As the Avro specification has it: `{"type": value}`, and null.
    AvroJson,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn schema(text: &Value) -> Schema {
        Schema::parse(&text.to_string()).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn encoded(schema: &Schema, style: Style, value: &Value) -> Result<String, String> {
        schema.encode(value.to_string().as_bytes(), style).map(|bytes| hex(&bytes))
    }

    fn decoded(schema: &Schema, style: Style, hex: &str) -> Result<Value, String> {
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        schema.decode(&bytes, style).map(|json| serde_json::from_slice(&json).unwrap())
    }

    fn user() -> Schema {
        schema(&json!({"type": "record", "name": "User", "namespace": "shop", "fields": [
            {"name": "id", "type": "long"},
            {"name": "name", "type": "string"},
            {"name": "active", "type": "boolean"},
            {"name": "score", "type": "double"},
            {"name": "ratio", "type": "float"},
            {"name": "level", "type": "int"},
            {"name": "raw", "type": "bytes"},
            {"name": "hash", "type": {"type": "fixed", "name": "Hash", "size": 3}},
            {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["NEW", "OLD"]}},
            {"name": "tags", "type": {"type": "array", "items": "string"}},
            {"name": "sizes", "type": {"type": "map", "values": "int"}},
            {"name": "note", "type": ["null", "string"], "default": null},
            {"name": "friend", "type": ["null", "User"], "default": null}]}))
    }

    fn zoe(style: Style) -> Value {
        let friend = json!({"id": 1, "name": "", "active": false, "score": 0.0, "ratio": 0.0, "level": 0, "raw": "",
            "hash": "\u{0}\u{1}\u{2}", "kind": "NEW", "tags": [], "sizes": {}, "note": null, "friend": null});
        let typed = |kind: &str, value: Value| if style == Style::AvroJson { json!({kind: value}) } else { value };
        json!({"id": -9_007_199_254_740_993_i64, "name": "Zoë", "active": true, "score": 0.1, "ratio": -2.5,
            "level": -64, "raw": "\u{0}\u{ff}", "hash": "abc", "kind": "OLD", "tags": ["a", ""], "sizes": {"x": 3},
            "note": typed("string", json!("hi")), "friend": typed("shop.User", friend)})
    }

    /// What fastavro 1.13 writes for it.
    const ZOE: &str = "8180808080808020085a6fc3ab019a9999999999b93f000020c07f0400ff616263020402610000020278060002046869\
                       0202000000000000000000000000000000000001020000000000";

    #[test]
    fn values_are_written_and_read_as_others_do() {
        for style in [Style::Standard, Style::AvroJson] {
            assert_eq!(encoded(&user(), style, &zoe(style)).as_deref(), Ok(ZOE));
            assert_eq!(decoded(&user(), style, ZOE), Ok(zoe(style)));
        }
        // By fastavro 1.13, too.
        for (kind, value, hex) in [
            ("long", json!(i64::MAX), "feffffffffffffffff01"),
            ("long", json!(i64::MIN), "ffffffffffffffffff01"),
            ("int", json!(i32::MAX), "feffffff0f"),
            ("int", json!(i32::MIN), "ffffffff0f"),
            ("double", json!(1e300), "9c7500883ce4377e"),
            ("float", json!(1.5), "0000c03f"),
            ("string", json!("日本"), "0ce697a5e69cac"),
        ] {
            let schema = schema(&json!(kind));
            assert_eq!(encoded(&schema, Style::Standard, &value).as_deref(), Ok(hex), "{kind}");
            assert_eq!(decoded(&schema, Style::Standard, hex), Ok(value), "{kind}");
        }
        let union = schema(&json!(["null", "long", "string"]));
        for (value, hex) in [(json!("a"), "040261"), (json!(null), "00"), (json!(7), "020e")] {
            assert_eq!(encoded(&union, Style::Standard, &value).as_deref(), Ok(hex));
            assert_eq!(decoded(&union, Style::Standard, hex), Ok(value));
        }
    }

    #[test]
    fn what_is_left_out_has_its_default_and_what_is_unknown_is_refused() {
        let schema = schema(&json!({"type": "record", "name": "R", "fields": [
            {"name": "a", "type": "int", "default": 5},
            {"name": "b", "type": ["null", "string"], "default": null},
            {"name": "c", "type": "string"}]}));
        assert_eq!(encoded(&schema, Style::Standard, &json!({"c": "x"})).as_deref(), Ok("0a000278"));
        assert_eq!(encoded(&schema, Style::AvroJson, &json!({"c": "x"})).as_deref(), Ok("0a000278"));
        let missing = encoded(&schema, Style::Standard, &json!({"a": 1})).unwrap_err();
        assert!(missing.contains("'c'"), "{missing}");
        let unknown = encoded(&schema, Style::Standard, &json!({"c": "x", "d": "hunter2"})).unwrap_err();
        assert!(unknown.contains("'d'") && !unknown.contains("hunter2"), "{unknown}");
    }

    #[test]
    fn what_does_not_fit_says_where_and_shows_no_value() {
        for (kind, value, word) in [
            (json!("int"), json!(3_000_000_000_i64), "int"),
            (json!("int"), json!(1.5), "int"),
            (json!("string"), json!(424_242), "string"),
            (json!("bytes"), json!("日"), "bytes"),
            (json!("boolean"), json!("424242"), "boolean"),
            (json!({"type": "fixed", "name": "F", "size": 2}), json!("424242"), "2 bytes"),
            (json!({"type": "enum", "name": "E", "symbols": ["A"]}), json!("424242"), "E"),
            (json!(["null", "int"]), json!("424242"), "union"),
            (json!({"type": "array", "items": "int"}), json!({}), "array"),
            (json!({"type": "map", "values": "int"}), json!([]), "map"),
        ] {
            let text = encoded(&schema(&kind), Style::Standard, &value).unwrap_err();
            assert!(text.contains(word) && !text.contains("4242"), "{text}");
        }
        let nested = schema(&json!({"type": "record", "name": "R", "fields": [
            {"name": "list", "type": {"type": "array", "items": "long"}}]}));
        let text = encoded(&nested, Style::Standard, &json!({"list": [1, "x"]})).unwrap_err();
        assert!(text.contains("list[1]"), "{text}");
    }

    #[test]
    fn schemas_that_are_none_are_refused() {
        for text in [
            "{",
            "5",
            "\"nosuch\"",
            r#"{"type": "record", "name": "R"}"#,
            r#"{"type": "record", "name": "R", "fields": [{"name": "a"}]}"#,
            r#"{"type": "record", "fields": []}"#,
            r#"{"type": "enum", "name": "E", "symbols": [1]}"#,
            r#"{"type": "fixed", "name": "F", "size": -1}"#,
            r#"{"type": "array"}"#,
            r#"["int", ["null"]]"#,
            "[]",
        ] {
            assert!(Schema::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_found_by_their_namespace() {
        let outer = schema(&json!({"type": "record", "name": "a.b.Outer", "fields": [
            {"name": "one", "type": {"type": "fixed", "name": "Id", "size": 1}},
            {"name": "two", "type": ["null", "Id"]},
            {"name": "three", "type": "a.b.Id"}]}));
        let value = json!({"one": "x", "two": {"a.b.Id": "y"}, "three": "z"});
        assert_eq!(encoded(&outer, Style::AvroJson, &value).as_deref(), Ok("7802797a"));
        assert_eq!(decoded(&outer, Style::AvroJson, "7802797a"), Ok(value));
    }

    #[test]
    fn values_of_a_hostile_peer_end() {
        // A record of itself, blocks of values that take no bytes, lengths of anything.
        let itself = schema(&json!({"type": "record", "name": "R", "fields": [{"name": "r", "type": "R"}]}));
        assert!(decoded(&itself, Style::Standard, "").is_err());
        assert!(encoded(&itself, Style::Standard, &json!({})).is_err());
        let nulls = schema(&json!({"type": "array", "items": "null"}));
        assert!(decoded(&nulls, Style::Standard, "feffffffffffffffff0100").is_err());
        for kind in ["string", "bytes"] {
            for hex in ["feffffffffffffffff01", "01", "04", ""] {
                assert!(decoded(&schema(&json!(kind)), Style::Standard, hex).is_err(), "{kind} {hex}");
            }
        }
        assert!(decoded(&schema(&json!("string")), Style::Standard, "02ff").is_err());
        assert!(decoded(&schema(&json!("int")), Style::Standard, "0000").is_err(), "bytes are left");
        let defaults = schema(&json!({"type": "record", "name": "R", "fields": [
            {"name": "r", "type": "R", "default": {}}]}));
        assert!(encoded(&defaults, Style::Standard, &json!({})).is_err());
    }

    #[test]
    fn unions_that_fit_only_in_the_end_take_no_time() {
        let branch = json!({"type": "record", "name": "B", "fields": [
            {"name": "v", "type": ["int", "A", "B"]}, {"name": "z", "type": "int"}]});
        let schema = schema(&json!({"type": "record", "name": "A", "fields": [
            {"name": "v", "type": ["int", "A", branch]}, {"name": "z", "type": "int"}]}));
        let nested = |z: Value| (0..20).fold(json!(1), |v, _| json!({"v": v, "z": z}));
        // Two records fit each level, and nothing says that neither does before its last field.
        assert!(encoded(&schema, Style::Standard, &nested(json!("wrong"))).is_err());
        assert!(encoded(&schema, Style::Standard, &nested(json!(1))).is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for style in [Style::Standard, Style::AvroJson] {
                if let Ok(json) = user().decode(&bytes, style) {
                    serde_json::from_slice::<Value>(&json).unwrap();
                }
            }
        }

        #[test]
        fn what_was_written_is_read(id: i64, name in ".{0,20}", score: i32, raw in proptest::collection::vec(any::<u8>(), 0..20), tags in proptest::collection::vec(".{0,5}", 0..5)) {
            let raw: String = raw.into_iter().map(char::from).collect();
            let mut value = zoe(Style::Standard);
            (value["id"], value["name"], value["score"]) = (json!(id), json!(name), json!(f64::from(score) / 8.0));
            (value["raw"], value["tags"]) = (json!(raw), json!(tags));
            let bytes = user().encode(value.to_string().as_bytes(), Style::Standard).unwrap();
            let back: Value = serde_json::from_slice(&user().decode(&bytes, Style::Standard).unwrap()).unwrap();
            prop_assert_eq!(back, value);
        }
    }
}
