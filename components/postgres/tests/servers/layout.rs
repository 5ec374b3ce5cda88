use std::sync::Arc;

use mecha_components_api::{Metadata, SetState};
use mecha_testkit::servers::Postgres;

use crate::support::{bytes, get, open, put, seconds, store, text};

const COLUMNS: &str = "SELECT string_agg(column_name || ' ' || data_type || ' ' || is_nullable || ' ' || is_identity, ', ' \
     ORDER BY ordinal_position) FROM information_schema.columns WHERE table_name =";
const INDEXES: &str = "SELECT string_agg(indexname, ', ' ORDER BY indexname) FROM pg_indexes WHERE tablename =";

#[tokio::test]
async fn the_tables_are_the_documented_ones() {
    let Some(server) = Postgres::start() else { return };
    store(&server, "v1", &[("tableName", "one")]).await;
    store(&server, "v2", &[("tablePrefix", "two_")]).await;
    assert_eq!(
        server.sql(&format!("{COLUMNS} 'one'")),
        "key text NO NO, value jsonb NO NO, isbinary boolean NO NO, insertdate timestamp with time zone NO NO, \
         updatedate timestamp with time zone YES NO, expiredate timestamp with time zone YES NO, row_id bigint NO YES"
    );
    assert_eq!(server.sql(&format!("{INDEXES} 'one'")), "one_pkey, one_row_id_uidx");
    assert_eq!(
        server.sql(&format!("{COLUMNS} 'two_state'")),
        "key text NO NO, value bytea NO NO, etag uuid NO NO, created_at timestamp with time zone NO NO, \
         updated_at timestamp with time zone YES NO, expires_at timestamp with time zone YES NO, row_id bigint NO YES"
    );
    assert_eq!(
        server.sql(&format!("{INDEXES} 'two_state'")),
        "two_state_expires_at_idx, two_state_pkey, two_state_row_id_uidx"
    );
    assert_eq!(
        server.sql("SELECT key || '=' || value FROM dapr_metadata ORDER BY key"),
        "lock=lock\nmigrations=3\nmigrations-state-v2-two_=2"
    );
}

#[tokio::test]
async fn the_rows_are_the_documented_ones() {
    let Some(server) = Postgres::start() else { return };
    let md = Metadata::new();
    let one = store(&server, "v1", &[("tableName", "one")]).await;
    one.set(put(&md, "j", r#"{"a":1}"#)).await.unwrap();
    one.set(SetState { ttl: seconds(60), ..bytes(&md, "b", b"\x00\xffab") }).await.unwrap();
    assert_eq!(
        server.sql("SELECT key, value, isbinary, expiredate - now() BETWEEN '55s' AND '60s' FROM one ORDER BY key"),
        "b|\"AP9hYg==\"|t|t\nj|{\"a\": 1}|f|"
    );
    assert_eq!(
        get(&one, "j").await.unwrap().unwrap().etag.unwrap(),
        server.sql("SELECT xmin FROM one WHERE key = 'j'")
    );
    let two = store(&server, "v2", &[]).await;
    two.set(put(&md, "j", r#"{ "b":1,"a":2}"#)).await.unwrap();
    let before = get(&two, "j").await.unwrap().unwrap().etag.unwrap();
    two.set(put(&md, "j", r#"{ "b":1,"a":2}"#)).await.unwrap();
    let etag = get(&two, "j").await.unwrap().unwrap().etag.unwrap();
    assert_ne!(before, etag);
    assert_eq!(
        server.sql("SELECT convert_from(value, 'UTF8'), etag, updated_at >= created_at, expires_at FROM state"),
        format!("{{ \"b\":1,\"a\":2}}|{etag}|t|")
    );
}

/// As an older and a present daprd leave them behind.
#[tokio::test]
async fn tables_of_the_incumbent_are_used() {
    let Some(server) = Postgres::start() else { return };
    server.sql(
        "CREATE TABLE dapr_metadata (key text NOT NULL PRIMARY KEY, value text NOT NULL);
         INSERT INTO dapr_metadata VALUES ('lock', 'lock'), ('migrations', '2'), ('migrations-state-v2-', '1');
         CREATE TABLE old (key text NOT NULL PRIMARY KEY, value jsonb NOT NULL, isbinary boolean NOT NULL,
            insertdate TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW(), updatedate TIMESTAMP WITH TIME ZONE NULL,
            expiredate TIMESTAMP WITH TIME ZONE);
         INSERT INTO old (key, value, isbinary) VALUES ('app||j', '\"x\"', false), ('app||b', '\"aGk=\"', true);
         INSERT INTO old (key, value, isbinary, expiredate) VALUES ('app||dead', '1', false, now() - interval '1s');
         CREATE TABLE state (key text NOT NULL PRIMARY KEY, value bytea NOT NULL, etag uuid NOT NULL DEFAULT gen_random_uuid(),
            created_at timestamp with time zone NOT NULL DEFAULT now(), updated_at timestamp with time zone,
            expires_at timestamp with time zone);
         CREATE INDEX ON state (expires_at);
         INSERT INTO state (key, value) VALUES ('app||k', 'hi')",
    );
    let one = store(&server, "v1", &[("tableName", "old")]).await;
    assert_eq!(text(&one, "app||j").await.unwrap(), "\"x\"");
    assert_eq!(text(&one, "app||b").await.unwrap(), "hi");
    assert_eq!(text(&one, "app||dead").await, None);
    assert_eq!(one.list().unwrap().keys("app||", 10, None).await.unwrap().keys.len(), 2);
    let two = store(&server, "v2", &[]).await;
    assert_eq!(text(&two, "app||k").await.unwrap(), "hi");
    assert_eq!(server.sql("SELECT value FROM dapr_metadata WHERE key LIKE 'migrations%' ORDER BY key"), "3\n2");
    assert_eq!(server.sql(&format!("{INDEXES} 'state'")), "state_expires_at_idx, state_pkey, state_row_id_uidx");
}

/// A second table in the same database shares the metadata table, and its row too in v1.
#[tokio::test]
async fn several_tables_share_one_database() {
    let Some(server) = Postgres::start() else { return };
    server.sql("CREATE SCHEMA other");
    let md = Metadata::new();
    for name in ["a", "b", "other.c", "\"With Space\""] {
        let store = store(&server, "v1", &[("tableName", name)]).await;
        store.set(put(&md, "k", "1")).await.unwrap();
    }
    for prefix in ["a_", "other.x_"] {
        let store = store(&server, "v2", &[("tablePrefix", prefix), ("metadataTableName", "other.meta")]).await;
        store.set(put(&md, "k", "1")).await.unwrap();
    }
    assert_eq!(server.sql("SELECT count(*) FROM other.x_state"), "1");
}

/// Nothing but the rights on rows is needed once the tables are there.
#[tokio::test]
async fn a_user_without_the_right_to_create_can_start() {
    let Some(server) = Postgres::start() else { return };
    store(&server, "v2", &[]).await;
    server.sql(
        "CREATE ROLE small LOGIN; GRANT SELECT, INSERT, UPDATE, DELETE ON state TO small;
         GRANT SELECT ON dapr_metadata TO small; REVOKE CREATE ON SCHEMA public FROM PUBLIC",
    );
    let url = format!("postgres://small@127.0.0.1:{}/postgres", server.port());
    let store = open("v2", &[("url", &url)]).await.unwrap();
    let md = Metadata::new();
    store.set(put(&md, "k", "1")).await.unwrap();
    assert_eq!(text(&store, "k").await.unwrap(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_daemons_start_at_once() {
    let Some(server) = Postgres::start() else { return };
    let server = Arc::new(server);
    let mut starts = Vec::new();
    for i in 0..24 {
        let server = Arc::clone(&server);
        starts.push(tokio::spawn(async move {
            let version = if i % 2 == 0 { "v1" } else { "v2" };
            let table = if i % 2 == 0 { ("tableName", "many") } else { ("tablePrefix", "many_") };
            let store = store(&server, version, &[table, ("maxConns", "2")]).await;
            store.set(put(&Metadata::new(), &format!("k{i}"), "1")).await.unwrap();
        }));
    }
    for start in starts {
        start.await.unwrap();
    }
    assert_eq!(server.sql("SELECT (SELECT count(*) FROM many) + (SELECT count(*) FROM many_state)"), "24");
    assert_eq!(server.sql("SELECT value FROM dapr_metadata WHERE key NOT LIKE 'last%' ORDER BY key"), "lock\n3\n2");
}
