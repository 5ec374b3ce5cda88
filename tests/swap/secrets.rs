//! A secret that changes in its store is a change of every document that refers to it.

use mecha_testkit::servers::{Redis, RedisOptions, absent};
use mecha_tests::{Sidecar, component};

use crate::load::{Load, state};
use crate::support::{ended, generation};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_password_is_taken_up_and_no_call_fails() {
    let Some(redis) = RedisOptions::new().password("first").start() else {
        return absent("redis-server", Redis::missing().unwrap_or_default());
    };
    let builder = Sidecar::builder().app_id("rotation").switch("mecha-strict");
    let file = builder.folder().join("secrets.json");
    let put = |password: &str| {
        let beside = file.with_extension("new");
        std::fs::write(&beside, serde_json::json!({"redis": {"password": password}}).to_string()).unwrap();
        std::fs::rename(beside, &file).unwrap();
    };
    put("first");
    let store = component("store", "state.redis", &[("redisHost", &redis.address())])
        + "  - name: redisPassword\n    secretKeyRef: {name: 'redis:password', key: 'redis:password'}\n\
           auth: {secretStore: secrets}\n";
    let sidecar = builder
        .document(
            "secrets.yaml",
            &component("secrets", "secretstores.local.file", &[("secretsFile", file.to_str().unwrap())]),
        )
        .document("store.yaml", &store)
        .start()
        .await;
    let http = sidecar.http();
    let calls = Load::start(sidecar.http_port(), 500, state("store"));
    calls.more(200).await;
    let etag = {
        http.post("/v1.0/state/store", r#"[{"key":"mine","value":1}]"#).send().await.expect(204);
        http.get("/v1.0/state/store/mine").send().await.expect(200).header("etag").to_owned()
    };
    for password in ["second", "third"] {
        let before = generation(&http).await;
        // Both passwords are good for a while, as rotations are done.
        redis.command(&["ACL", "SETUSER", "default", &format!(">{password}")]);
        put(password);
        let receipt = ended(&http, before, "Component", "store").await;
        assert_eq!((receipt["change"].as_str(), receipt["failed"].as_u64()), (Some("updated"), Some(0)));
        calls.more(200).await;
    }
    redis.command(&["ACL", "SETUSER", "default", "<first", "<second"]);
    calls.more(200).await;
    // The data is the same, so an ETag from before still counts.
    let body = format!(r#"[{{"key":"mine","value":2,"etag":"{etag}"}}]"#);
    http.post("/v1.0/state/store", body).send().await.expect(204);
    calls.end("state calls over two rotations").await;
    for password in ["first", "second", "third"] {
        assert!(!sidecar.log().contains(&format!("\"{password}\"")), "a password is in the log");
    }
}
