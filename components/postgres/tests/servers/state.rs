use std::sync::Arc;

use mecha_components_api::{Concurrency, ErrorKind, GetState, Metadata, SetState, TransactOp, Value};
use mecha_testkit::STATE_CASES;
use mecha_testkit::servers::{Postgres, PostgresOptions};
use serde_json::json;

use crate::support::{bytes, get, open, put, remove, seconds, store, text, until};

const VERSIONS: [&str; 2] = ["v1", "v2"];
const MODES: [&str; 5] = ["cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"];

/// Every mode of sending statements keeps every promise.
#[tokio::test(flavor = "multi_thread")]
async fn all_modes_and_versions_pass_the_cases() {
    let Some(server) = Postgres::start() else { return };
    for version in VERSIONS {
        for mode in MODES {
            let store = store(&server, version, &[table(version), ("queryExecMode", mode)]).await;
            let profile = mecha_testkit::StateProfile {
                caps: store.caps(),
                transactional: true,
                bulk: true,
                list: true,
                query: version == "v1",
                exact_json: version == "v2",
                absent_etag_conflicts: true,
            };
            assert_eq!(mecha_testkit::StateProfile::observed(&*store, &profile), profile);
            let cases = STATE_CASES.iter().copied().flatten().filter(|case| (case.needs)(&profile));
            let running: Vec<_> = cases.map(|case| (case.name, tokio::spawn((case.run)(Arc::clone(&store))))).collect();
            for (name, case) in running {
                if let Err(failure) = case.await.unwrap() {
                    panic!("{version} {mode} {name}: {failure}");
                }
            }
            store.close().await;
        }
    }
}

#[tokio::test]
async fn numbers_survive_jsonb() {
    let Some(server) = Postgres::start() else { return };
    let store = store(&server, "v1", &[]).await;
    let md = Metadata::new();
    for number in [
        "9007199254740993",
        "123456789012345678901234567890.123456789012345678901234567890",
        "0.10",
        "1.000",
        "31.245270191439438",
    ] {
        let value = format!("{{\"n\": {number}}}");
        store.set(put(&md, "k", &value)).await.unwrap();
        assert_eq!(text(&store, "k").await.unwrap(), value);
    }
    // The order and spacing of members are the server's.
    store.set(put(&md, "k", r#"{"bb":1,"a":[1,2]}"#)).await.unwrap();
    assert_eq!(text(&store, "k").await.unwrap(), r#"{"a": [1, 2], "bb": 1}"#);
    // What jsonb cannot hold is refused and says why.
    let e = store.set(put(&md, "k", r#""\u0000""#)).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::InvalidArgument);
    assert!(e.message().contains("NUL"), "{e}");
    let e = store.set(put(&md, "k", "{broken")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn etags_of_each_version() {
    let Some(server) = Postgres::start() else { return };
    let md = Metadata::new();
    for (version, malformed) in [("v1", ErrorKind::InvalidArgument), ("v2", ErrorKind::Conflict)] {
        let store = store(&server, version, &[("metadataTableName", &format!("m{version}")), table(version)]).await;
        store.set(put(&md, "k", "1")).await.unwrap();
        for etag in ["no etag", "-1", "4294967296", "+1", " 1"] {
            let e = store.set(SetState { etag: Some(etag), ..put(&md, "k", "2") }).await.unwrap_err();
            assert_eq!(e.kind(), malformed, "{version} {etag}: {e}");
            let mut gone = remove(&md, "k");
            gone.etag = Some(etag);
            assert_eq!(store.delete(gone).await.unwrap_err().kind(), malformed);
        }
        assert_eq!(text(&store, "k").await.unwrap(), "1");
        let first = SetState { concurrency: Concurrency::FirstWrite, ..put(&md, "k", "3") };
        assert_eq!(store.set(first).await.unwrap_err().kind(), ErrorKind::Conflict);
    }
}

fn table(version: &str) -> (&'static str, &'static str) {
    if version == "v1" { ("tableName", "etags_one") } else { ("tablePrefix", "etags_two_") }
}

#[tokio::test]
async fn an_empty_value_is_a_value() {
    let Some(server) = Postgres::start() else { return };
    let md = Metadata::new();
    for version in VERSIONS {
        let store = store(&server, version, &[table(version)]).await;
        store.set(bytes(&md, "empty", b"")).await.unwrap();
        let item = get(&store, "empty").await.unwrap().unwrap();
        assert!(item.value.is_empty() && item.etag.is_some(), "{version}");
    }
}

#[tokio::test]
async fn keys_that_postgres_cannot_hold_are_refused() {
    let Some(server) = Postgres::start() else { return };
    let store = store(&server, "v2", &[]).await;
    let md = Metadata::new();
    let e = store.set(put(&md, "a\0b", "1")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::InvalidArgument);
    let get = |key| GetState { key, consistency: mecha_components_api::Consistency::Eventual, metadata: &md };
    let all = store.bulk().unwrap().get_many(&[get("a\0b"), get("absent")]).await.unwrap();
    assert!(all[0].is_err() && matches!(all[1], Ok(None)));
}

#[tokio::test]
async fn expired_rows_are_deleted_by_later_writes() {
    let Some(server) = Postgres::start() else { return };
    let md = Metadata::new();
    for version in VERSIONS {
        let store = store(&server, version, &[table(version), ("cleanupInterval", "100ms")]).await;
        for i in 0..700 {
            store.set(SetState { ttl: seconds(1), ..put(&md, &format!("k{i}"), "1") }).await.unwrap();
        }
        let table = if version == "v1" { "etags_one" } else { "etags_two_state" };
        until("the rows are gone", async || {
            store.set(put(&md, "stays", "1")).await.unwrap();
            server.sql(&format!("SELECT count(*) FROM {table}")) == "1"
        })
        .await;
        let row = if version == "v1" { "last-cleanup" } else { "last-cleanup-state-v2-etags_two_" };
        assert_eq!(server.sql(&format!("SELECT count(*) FROM dapr_metadata WHERE key = '{row}'")), "1");
    }
    for key in [("cleanupInterval", "-1"), ("cleanupIntervalInSeconds", "0")] {
        let quiet = store(&server, "v2", &[("tablePrefix", "quiet_"), key]).await;
        quiet.set(put(&md, "k", "1")).await.unwrap();
    }
    assert_eq!(server.sql("SELECT count(*) FROM dapr_metadata WHERE key LIKE '%quiet_%' AND key LIKE 'last%'"), "0");
    let old_name = store(&server, "v2", &[("tablePrefix", "seconds_"), ("cleanupIntervalInSeconds", "1")]).await;
    old_name.set(SetState { ttl: seconds(1), ..put(&md, "k", "1") }).await.unwrap();
    until("the row is gone by the old name of the key", async || {
        old_name.set(put(&md, "stays", "1")).await.unwrap();
        server.sql("SELECT count(*) FROM seconds_state") == "1"
    })
    .await;
}

/// Sessions of ours in a database.
fn sessions(server: &Postgres, database: &str) -> usize {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mechad' AND datname =";
    server.sql(&format!("{sql} '{database}'")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_may_be_named_key_by_key() {
    let Some(server) = Postgres::start() else { return };
    server.sql("CREATE DATABASE other");
    let port = server.port().to_string();
    let url = "postgres://nobody:x@127.0.0.1:1/nowhere";
    let rows: [&[(&str, &str)]; 3] = [
        &[("host", "127.0.0.1"), ("port", &port), ("user", "postgres"), ("database", "other")],
        &[("hostaddr", "127.0.0.1"), ("port", &port), ("user", "postgres"), ("database", "other")],
        &[("url", url), ("host", "127.0.0.1"), ("port", &port), ("user", "postgres"), ("database", "other")],
    ];
    for keys in rows {
        let store = open("v2", keys).await.unwrap_or_else(|e| panic!("{keys:?}: {e}"));
        store.set(put(&Metadata::new(), "k", "1")).await.unwrap();
        assert!(sessions(&server, "other") > 0, "{keys:?}");
        store.close().await;
        drop(store);
        until("the sessions end", async || sessions(&server, "other") == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_as_many_and_idle_as_long_as_the_document_says() {
    let Some(server) = Postgres::start() else { return };
    let md = Metadata::new();
    for idle in [("connectionMaxIdleTime", "300ms"), ("connMaxIdleTime", "1")] {
        let store = store(&server, "v2", &[("maxConns", "3"), idle]).await;
        let calls = (0..60).map(|i| {
            let (store, md, key) = (&store, &md, format!("k{i}"));
            async move { store.set(put(md, &key, "1")).await }
        });
        for outcome in futures_util::future::join_all(calls).await {
            outcome.unwrap();
        }
        let most = sessions(&server, "postgres");
        assert!((1..=3).contains(&most), "{most} sessions");
        // The last one in use serves the calls that look.
        until("the idle ones are closed", async || {
            store.set(put(&md, "k", "1")).await.unwrap();
            sessions(&server, "postgres") == 1
        })
        .await;
        store.close().await;
        drop(store);
        until("the sessions end", async || sessions(&server, "postgres") == 0).await;
    }
}

#[tokio::test]
async fn a_transaction_with_one_stale_etag_changes_nothing() {
    let Some(server) = Postgres::start() else { return };
    let md = Metadata::new();
    for version in VERSIONS {
        let store = store(&server, version, &[table(version)]).await;
        store.set(put(&md, "m", "1")).await.unwrap();
        let stale = if version == "v1" { "1" } else { "00000000-0000-4000-8000-000000000000" };
        // More steps than are sent at once, the conflict in the middle of their order.
        let keys: Vec<String> = (0..40).map(|i| format!("t{i}")).collect();
        let mut ops: Vec<TransactOp<'_>> = keys.iter().map(|k| TransactOp::Set(put(&md, k, "1"))).collect();
        ops.insert(20, TransactOp::Set(SetState { etag: Some(stale), ..put(&md, "t20x", "2") }));
        ops.push(TransactOp::Delete(remove(&md, "m")));
        let e = store.transact().unwrap().transact(ops, &md).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Conflict, "{version}: {e}");
        assert_eq!(get(&store, "t0").await.unwrap(), None);
        assert_eq!(text(&store, "m").await.unwrap(), "1");
        // The connection is as good as new, and the order of writes to one key is kept.
        let ops = vec![
            TransactOp::Set(put(&md, "z", "1")),
            TransactOp::Set(put(&md, "a", "1")),
            TransactOp::Delete(remove(&md, "z")),
            TransactOp::Set(put(&md, "z", "3")),
        ];
        store.transact().unwrap().transact(ops, &md).await.unwrap();
        assert_eq!(text(&store, "z").await.unwrap(), "3");
    }
}

/// Writers in opposite orders would get into deadlocks, and the server would end half of them.
#[tokio::test(flavor = "multi_thread")]
async fn transactions_in_opposite_orders_all_succeed() {
    let Some(server) = Postgres::start() else { return };
    let store = store(&server, "v2", &[("maxConns", "8")]).await;
    let mut tasks = Vec::new();
    for writer in 0..8 {
        let store = Arc::clone(&store);
        tasks.push(tokio::spawn(async move {
            let md = Metadata::new();
            for _ in 0..25 {
                let mut keys = vec!["a", "b", "c", "d"];
                if writer % 2 == 0 {
                    keys.reverse();
                }
                let ops = keys.into_iter().map(|k| TransactOp::Set(put(&md, k, "1"))).collect();
                store.transact().unwrap().transact(ops, &md).await.unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let deadlocks = server.sql("SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'");
    assert_eq!(deadlocks, "0");
}

/// A foreign program takes the locks in the other order: the server ends one of the two, and
/// the store tries again.
#[tokio::test(flavor = "multi_thread")]
async fn a_deadlock_with_somebody_else_is_retried() {
    let Some(server) = PostgresOptions::new().set("deadlock_timeout", "4s").start() else { return };
    let store = store(&server, "v2", &[]).await;
    let md = Metadata::new();
    for key in ["a", "b"] {
        store.set(put(&md, key, "0")).await.unwrap();
    }
    // The server looks once in each wait, ours: it begins at most a second before the other one's,
    // whose own look comes later.
    let sql = "SET deadlock_timeout = '60s'; BEGIN; UPDATE state SET value = '1' WHERE key = 'b'; SELECT pg_sleep(1); \
               UPDATE state SET value = '1' WHERE key = 'a'; COMMIT";
    let server = Arc::new(server);
    let foreign = tokio::task::spawn_blocking({
        let server = Arc::clone(&server);
        move || server.sql(sql)
    });
    until("the other one holds its first lock", async || {
        server.sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(1)%' AND wait_event = 'PgSleep'")
            == "1"
    })
    .await;
    let ops = vec![TransactOp::Set(put(&md, "a", "2")), TransactOp::Set(put(&md, "b", "2"))];
    store.transact().unwrap().transact(ops, &md).await.unwrap();
    foreign.await.unwrap();
    assert_eq!(server.sql("SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'"), "1");
    assert_eq!((text(&store, "a").await.unwrap(), text(&store, "b").await.unwrap()), ("2".into(), "2".into()));
}

#[tokio::test]
async fn queries_filter_sort_and_page() {
    let Some(server) = Postgres::start() else { return };
    let store = store(&server, "v1", &[]).await;
    let md = Metadata::new();
    let people = [("1", "CA", 9), ("2", "WA", 10), ("3", "CA", 100), ("4", "TX", 2)];
    for (key, state, age) in people {
        let value = json!({"person": {"state": state, "o'dd": true}, "age": age}).to_string();
        store.set(put(&md, key, &value)).await.unwrap();
    }
    store
        .set(SetState { ttl: seconds(1), ..put(&md, "gone", r#"{"age": 50, "person": {"state": "CA"}}"#) })
        .await
        .unwrap();
    store.set(SetState { value: Value::Binary("bytes".into()), ..put(&md, "bytes", "") }).await.unwrap();
    until("the key expires", async || get(&store, "gone").await.unwrap().is_none()).await;
    let query = store.query().unwrap();
    let keys = async |document: serde_json::Value| {
        let page = query.query(&document, &md).await.unwrap();
        (page.items.into_iter().map(|(k, _)| k).collect::<Vec<_>>().join(","), page.token)
    };
    let none = String::new();
    assert_eq!(keys(json!({"filter": {"EQ": {"person.state": "CA"}}})).await, ("1,3".into(), none.clone()));
    let by_age = json!({"filter": {"GT": {"age": 5}}, "sort": [{"key": "age", "order": "DESC"}]});
    assert_eq!(keys(by_age).await, ("3,2,1".into(), none.clone()), "numbers sort as numbers");
    let either = json!({"filter": {"OR": [{"IN": {"age": [2, 10]}}, {"EQ": {"age": "100"}}]}});
    assert_eq!(keys(either).await, ("2,3,4".into(), none.clone()));
    let not = json!({"filter": {"AND": [{"NEQ": {"person.state": "CA"}}, {"LTE": {"age": 10}}]}});
    assert_eq!(keys(not).await, ("2,4".into(), none.clone()));
    assert_eq!(
        keys(json!({"filter": {"EQ": {"person.o'dd": true}}, "page": {"limit": 3}})).await,
        ("1,2,3".into(), "3".into())
    );
    assert_eq!(
        keys(json!({"filter": {"EQ": {"person.o'dd": true}}, "page": {"limit": 3, "token": "3"}})).await,
        ("4".into(), none)
    );
    let all = query.query(&json!({}), &md).await.unwrap().items;
    let (_, item) = all.iter().find(|(k, _)| k == "bytes").unwrap();
    assert_eq!((item.value.as_ref(), item.etag.is_some()), (&b"bytes"[..], true));
}

#[tokio::test]
async fn mistakes_at_start_are_clear() {
    let Some(server) = Postgres::start() else { return };
    let e = open("v2", &[]).await.unwrap_err();
    assert!(e.message().contains("failed to build connection string"), "{e}");
    let url = format!("postgres://postgres:hidden@127.0.0.1:{}/nosuch", server.port());
    let e = open("v2", &[("url", &url)]).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::FailedPrecondition);
    assert!(e.message().contains("no such database") && !format!("{e:?} {e}").contains("hidden"), "{e}");
    let e = open("v2", &[("url", "postgres://postgres:hidden@127.0.0.1:1/x"), ("timeout", "1s")]).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable);
    assert!(!format!("{e:?} {e}").contains("hidden"));
}

#[tokio::test]
async fn passwords_are_used_and_never_shown() {
    let hba = "host all me 127.0.0.1/32 scram-sha-256";
    let Some(server) = PostgresOptions::new().hba(hba).start() else { return };
    server.sql("CREATE ROLE me LOGIN PASSWORD 'right'; GRANT ALL ON SCHEMA public TO me");
    let url = format!("postgres://127.0.0.1:{}/postgres", server.port());
    let login = |password: &'static str| [("url", url.as_str()), ("user", "me"), ("password", password)];
    let store = open("v2", &login("right")).await.unwrap();
    store.ping().await.unwrap();
    assert!(!format!("{store:?}").contains("right"));
    let e = open("v2", &login("wrong")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unauthenticated);
    assert!(!format!("{e:?} {e}").contains("wrong"), "{e}");
}
