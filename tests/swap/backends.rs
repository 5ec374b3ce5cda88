//! A state store moves to another backend: applied at once, nothing fails, no data is moved, and
//! ETags of the old one do not match at the new one.

use mecha_testkit::servers::{Postgres, Redis, absent};
use mecha_tests::{Sidecar, component};

use crate::load::{Load, state};
use crate::support::{Documents, ended, generation, metric, switched};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_moves_from_sqlite_to_redis_to_postgres_and_back_under_load() {
    let Some(redis) = Redis::start() else {
        return absent("redis-server", Redis::missing().unwrap_or_default());
    };
    let Some(postgres) = Postgres::start() else {
        return absent("postgres", Postgres::missing().unwrap_or_default());
    };
    let builder = Sidecar::builder().app_id("stores").switch("mecha-strict");
    let file = builder.folder().join("state.db").to_str().unwrap().to_owned();
    let sqlite = component("store", "state.sqlite", &[("connectionString", &file)]);
    let redis = component("store", "state.redis", &[("redisHost", &redis.address())]);
    let postgres = component("store", "state.postgresql", &[("connectionString", &postgres.url())]);
    let sidecar = builder.document("store.yaml", &sqlite).start().await;
    let (http, documents) = (sidecar.http(), Documents::of(&sidecar));
    let calls = Load::start(sidecar.http_port(), 500, state("store"));
    calls.more(200).await;
    let mut old_etag = String::new();
    for (document, kind) in [
        (&redis, "state.redis/v1"),
        (&postgres, "state.postgresql/v1"),
        (&redis, "state.redis/v1"),
        (&sqlite, "state.sqlite/v1"),
    ] {
        http.post("/v1.0/state/store", r#"[{"key":"mine","value":"old"}]"#).send().await.expect(204);
        let reply = http.get("/v1.0/state/store/mine").send().await.expect(200);
        reply.header("etag").clone_into(&mut old_etag);
        let before = generation(&http).await;
        documents.write("store.yaml", document);
        let (receipt, took) = switched(&http, before, "Component", "store").await;
        println!("to {kind}: seen after {took:?}, switched in {} ms", receipt["switchMs"]);
        let receipt = ended(&http, before, "Component", "store").await;
        assert_eq!((receipt["to"].as_str(), receipt["dataMoved"].as_bool()), (Some(kind), Some(false)), "{receipt}");
        assert_eq!((receipt["outcome"].as_str(), receipt["failed"].as_u64()), (Some("applied"), Some(0)));
        // Written anew until its version could be the same by chance: it still conflicts.
        for value in 0..3 {
            let body = format!(r#"[{{"key":"mine","value":{value}}}]"#);
            http.post("/v1.0/state/store", body).send().await.expect(204);
            let stale = format!(r#"[{{"key":"mine","value":"stale","etag":{}}}]"#, serde_json::json!(old_etag));
            http.post("/v1.0/state/store", stale).send().await.expect(409);
        }
        // And the new one's own ETag counts.
        let reply = http.get("/v1.0/state/store/mine").send().await.expect(200);
        assert_eq!(reply.text(), "2");
        let good = format!(r#"[{{"key":"mine","value":3,"etag":{}}}]"#, serde_json::json!(reply.header("etag")));
        http.post("/v1.0/state/store", good).send().await.expect(204);
        calls.more(200).await;
    }
    assert!(metric(&sidecar, "mecha_swap_total", &["kind=\"Component\"", "outcome=\"applied\""]).await >= 4.0);
    calls.end("state calls over four backends").await;
}
