use std::sync::Arc;

use bytes::Bytes;
use mecha_components_api::{ErrorKind, Invoke, Metadata, OutputBinding, Reply, Result};
use mecha_testkit::servers::Postgres;
use serde_json::{Value, json};

use crate::support::binding;

async fn invoke(binding: &Arc<dyn OutputBinding>, operation: &str, sql: &str, params: Option<&str>) -> Result<Reply> {
    let mut metadata = Metadata::new();
    if !sql.is_empty() {
        metadata.insert("sql", sql);
    }
    if let Some(params) = params {
        metadata.insert("params", params);
    }
    binding.invoke(Invoke { operation, data: Bytes::new(), metadata: &metadata }).await
}

async fn rows(binding: &Arc<dyn OutputBinding>, sql: &str, params: Option<&str>) -> Value {
    let reply = invoke(binding, "query", sql, params).await.unwrap();
    serde_json::from_slice(&reply.data.unwrap()).unwrap()
}

const INSERT: &str = "INSERT INTO people (id, name, joined, tags, facts, data) VALUES ($1, $2, $3, $4, $5, $6)";

#[tokio::test]
async fn parameters_are_bound_in_every_mode() {
    let Some(server) = Postgres::start() else { return };
    for mode in ["cache_statement", "cache_describe", "exec", "simple_protocol"] {
        let binding = binding(&server, &[("queryExecMode", mode)]).await;
        // Without parameters a text may hold several statements.
        let script = "DROP TABLE IF EXISTS people; CREATE TABLE people (id bigint, name text, joined date, tags text[], \
                      facts jsonb, data numeric)";
        invoke(&binding, "exec", script, None).await.unwrap();
        let name = "Robert'); DROP TABLE people;-- \\ \u{1F980}";
        let arrays = mode.starts_with("cache_s");
        let tags = if arrays { r#"["a b", "q\"", null]"# } else { r#""{a,b}""# };
        let params = format!(
            r#"[9007199254740993, {}, "2024-02-29", {tags}, {{"b": [1, 2.50]}}, 123456789012345678901234567890.10]"#,
            json!(name)
        );
        let reply = invoke(&binding, "exec", INSERT, Some(&params)).await.unwrap();
        assert_eq!(reply.metadata.get("rows-affected"), Some("1"), "{mode}");
        let first = if arrays { "a b" } else { "a" };
        assert_eq!(
            server.sql("SELECT id, name, joined, tags[1], facts->'b'->1, data FROM people"),
            format!("9007199254740993|{name}|2024-02-29|{first}|2.50|123456789012345678901234567890.10")
        );
        let found = rows(&binding, "SELECT name FROM people WHERE id = $1", Some("[9007199254740993]")).await;
        assert_eq!(found, json!([[name]]), "{mode}");
        binding.close().await;
    }
}

#[tokio::test]
async fn values_of_all_usual_types_become_json() {
    let Some(server) = Postgres::start() else { return };
    let binding = binding(&server, &[]).await;
    let sql = "SELECT 1::smallint, 9007199254740993::bigint, 1.5::float8, 'x\"y'::text, true, NULL::int, \
               12345678901234567890.001200::numeric, -0.05::numeric, 100000000::numeric, 'NaN'::numeric, \
               '{\"a\": 1.10}'::jsonb, '6ba7b810-9dad-11d1-80b4-00c04fd430c8'::uuid, '\\x00ff'::bytea, \
               '2024-02-29'::date, '2024-02-29 12:00:00.5+02'::timestamptz, '13:14:15'::time, \
               ARRAY[1,NULL,3], ARRAY[['a','b'],['c','d']], ARRAY[]::int[], 'infinity'::timestamptz";
    let reply = invoke(&binding, "query", sql, None).await.unwrap();
    let text = String::from_utf8(reply.data.unwrap().to_vec()).unwrap();
    assert_eq!(
        text,
        "[[1,9007199254740993,1.5,\"x\\\"y\",true,null,12345678901234567890.001200,-0.05,100000000,\"NaN\",{\"a\": 1.10},\
         \"6ba7b810-9dad-11d1-80b4-00c04fd430c8\",\"AP8=\",\"2024-02-29T00:00:00Z\",\"2024-02-29T10:00:00.5Z\",\
         \"13:14:15.000000\",[1,null,3],[[\"a\",\"b\"],[\"c\",\"d\"]],[],\"infinity\"]]"
    );
    for key in ["operation", "sql", "start-time", "end-time", "duration"] {
        assert!(reply.metadata.get(key).is_some_and(|v| !v.is_empty()), "{key}");
    }
    assert_eq!(rows(&binding, "SELECT 1 WHERE false", None).await, json!([]));
    let e = invoke(&binding, "query", "SELECT point(1, 2)", None).await.unwrap_err();
    assert!(e.message().contains("cast it to text"), "{e}");
    assert_eq!(rows(&binding, "SELECT point(1, 2)::text", None).await, json!([["(1,2)"]]));
}

#[tokio::test]
async fn mistakes_are_the_callers() {
    let Some(server) = Postgres::start() else { return };
    let binding = binding(&server, &[]).await;
    let kind = async |operation: &str, sql: &str, params: Option<&str>| {
        invoke(&binding, operation, sql, params).await.unwrap_err().kind()
    };
    assert_eq!(kind("exec", "", None).await, ErrorKind::InvalidArgument);
    assert_eq!(kind("exec", "no sql at all", None).await, ErrorKind::InvalidArgument);
    assert_eq!(kind("query", "SELECT $1::int", Some("[]")).await, ErrorKind::InvalidArgument);
    assert_eq!(kind("query", "SELECT $1::int", Some(r#"["x"]"#)).await, ErrorKind::InvalidArgument);
    assert_eq!(kind("query", "SELECT 1", Some(r#"{"a": 1}"#)).await, ErrorKind::InvalidArgument);
    assert_eq!(kind("drop", "SELECT 1", None).await, ErrorKind::InvalidArgument);
    assert_eq!(kind("query", "SELECT * FROM nosuch", None).await, ErrorKind::FailedPrecondition);
}

/// What one call leaves open must not reach the next one.
#[tokio::test]
async fn a_session_that_was_changed_is_not_lent_again() {
    let Some(server) = Postgres::start() else { return };
    let binding = binding(&server, &[("maxConns", "1")]).await;
    invoke(&binding, "exec", "CREATE TABLE t (a int)", None).await.unwrap();
    invoke(&binding, "exec", "BEGIN; INSERT INTO t VALUES (1)", None).await.unwrap();
    invoke(&binding, "exec", "SET search_path = nowhere", None).await.unwrap();
    invoke(&binding, "exec", "INSERT INTO t VALUES (2)", None).await.unwrap();
    assert_eq!(server.sql("SELECT a FROM t"), "2");
}

#[tokio::test]
async fn after_close_calls_are_refused() {
    let Some(server) = Postgres::start() else { return };
    let binding = binding(&server, &[]).await;
    invoke(&binding, "close", "", None).await.unwrap();
    let e = invoke(&binding, "query", "SELECT 1", None).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable);
    assert!(e.message().contains("closed"), "{e}");
}
