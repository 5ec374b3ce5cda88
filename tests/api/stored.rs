//! What calls of an app leave behind on real servers, and what the daemon says of documents that name them wrongly.

use mecha_testkit::servers::{Postgres, Redis};
use mecha_tests::{Http, Item, Op, Sidecar, component};
use serde_json::json;

/// `(keyPrefix, stored prefix)` for app `App-One`, component `shared…`, namespace `space`.
const PREFIXES: [(&str, &str); 5] = [
    ("appid", "App-One||"),
    ("name", "shared-name||"),
    ("namespace", "space.App-One||"),
    ("none", ""),
    ("MyOwn", "myown||"),
];

/// A component that is left out when its metadata is wrong.
fn optional(name: &str, kind: &str, metadata: &[(&str, &str)]) -> String {
    component(name, kind, metadata).replace("spec:\n", "spec:\n  ignoreErrors: true\n")
}

/// What a component can do, in the order of the metadata document.
async fn capabilities(sidecar: &Sidecar, name: &str) -> Vec<String> {
    let document = sidecar.metadata().await;
    let found = document["components"].as_array().unwrap().iter().find(|component| component["name"] == name);
    serde_json::from_value(found.unwrap()["capabilities"].clone()).unwrap_or_default()
}

async fn lock(http: &Http, verb: &str, store: &str, body: &serde_json::Value) -> serde_json::Value {
    http.post_json(format!("/v1.0-alpha1/{verb}/{store}"), body).send().await.expect(200).json()
}

#[tokio::test]
async fn values_events_and_locks_lie_in_redis_as_documented() {
    let Some(redis) = Redis::start() else { return };
    let host = redis.address();
    let mut builder = Sidecar::builder().app_id("App-One").env("NAMESPACE", "space");
    for (strategy, _) in PREFIXES {
        let metadata = [("redisHost", host.as_str()), ("keyPrefix", strategy)];
        builder = builder
            .component(component(&format!("shared-{strategy}"), "state.redis", &metadata))
            .component(component(&format!("lock-{strategy}"), "lock.redis", &metadata));
    }
    let sidecar = builder
        .component(component("events", "pubsub.redis", &[("redisHost", &host)]))
        .component(component("keys", "bindings.redis", &[("redisHost", &host), ("redisDB", "1")]))
        .start()
        .await;
    let state = ["ETAG", "TRANSACTIONAL", "TTL", "KEYS_LIKE", "ACTOR"];
    assert_eq!(capabilities(&sidecar, "shared-appid").await, state);
    assert_eq!(capabilities(&sidecar, "keys").await, ["OUTPUT_BINDING"]);
    for name in ["events", "lock-appid"] {
        assert!(capabilities(&sidecar, name).await.is_empty(), "{name}");
    }
    let hash = |key: &str| redis.command(&["HMGET", key, "data", "version", "first-write"]);
    let lives = |key: &str| redis.command(&["TTL", key]).parse::<i64>().unwrap();
    for (strategy, prefix) in PREFIXES {
        let store = format!("shared-{strategy}");
        for api in sidecar.apis().await {
            let key = format!("{strategy}-{}", api.name());
            let stored = format!("{prefix}{key}");
            let exact = r#"{ "n":31.245270191439438, "big":123456789012345678901 }"#;
            let item =
                Item::new(&key, exact).metadata("contentType", "application/json").metadata("ttlInSeconds", "100");
            api.save(&store, &[item]).await.unwrap();
            assert_eq!(hash(&stored).trim_end(), format!("{exact}\n1"), "keyPrefix {strategy} over {}", api.name());
            assert!((80..=100).contains(&lives(&stored)), "{}", lives(&stored));
            let forever = Item::new(&key, "2").metadata("ttlInSeconds", "-1").first_write();
            api.transact(&store, &[Op::Upsert(forever)]).await.unwrap();
            assert_eq!((hash(&stored).as_str(), lives(&stored)), ("2\n2\n0", -1));
            let bad = api.save(&store, &[Item::new(&key, "3").metadata("ttlInSeconds", "soon")]).await.unwrap_err();
            assert!(bad.message.contains("ttlInSeconds"), "{bad:?}");
            assert_eq!(hash(&stored), "2\n2\n0");
        }
        let held = json!({"resourceId": "r", "lockOwner": strategy, "expiryInSeconds": 100});
        let lock_store = format!("lock-{strategy}");
        assert_eq!(lock(&sidecar.http(), "lock", &lock_store, &held).await["success"], true);
        let prefix = prefix.replace("shared-", "lock-");
        let stored = format!("lock||{prefix}r");
        assert_eq!(redis.command(&["GET", &stored]), strategy);
        assert!((80..=100).contains(&lives(&stored)), "{}", lives(&stored));
        assert_eq!(lock(&sidecar.http(), "unlock", &lock_store, &held).await["status"], 0);
        assert_eq!(redis.command(&["EXISTS", &stored]), "0");
    }
    for api in sidecar.apis().await {
        redis.command(&["DEL", "topic"]);
        api.publish("events", "topic", "application/json", r#"{"n":0.10}"#, &[("rawPayload", "true")]).await.unwrap();
        api.publish("events", "topic", "application/json", r#"{"n":0.10}"#, &[("ttlInSeconds", "60")]).await.unwrap();
        let entries = redis.command(&["XRANGE", "topic", "-", "+"]);
        let lines: Vec<&str> = entries.lines().collect();
        // Each: its id, then names and values.
        assert_eq!((lines.len(), &lines[1..4], lines[6]), (10, &["data", r#"{"n":0.10}"#, "metadata"][..], "data"));
        assert!(lines[7].contains(r#""data":{"n":0.10}"#) && lines[7].contains(r#""expiration":""#), "{}", lines[7]);
        assert!(lines[9].contains(r#""ttlInSeconds":"60""#), "{}", lines[9]);

        api.binding("keys", "create", r#"{"n":0.10}"#, &[("key", "k"), ("ttlInSeconds", "100")]).await.unwrap();
        let ask = |args: [&str; 2]| redis.command(&["-n", "1", args[0], args[1]]);
        assert_eq!(ask(["GET", "k"]), r#"{"n":0.10}"#, "over {}", api.name());
        assert!((80..=100).contains(&ask(["TTL", "k"]).parse::<i64>().unwrap()));
    }
}

#[tokio::test]
async fn values_lie_in_postgres_as_documented_and_queries_give_their_digits() {
    let Some(server) = Postgres::start() else { return };
    let url = server.url();
    let two = component("two", "state.postgresql", &[("connectionString", &url), ("tablePrefix", "two_")]);
    let sidecar = Sidecar::builder()
        .app_id("shop")
        .component(component("one", "state.postgresql", &[("url", &url), ("tableName", "one"), ("keyPrefix", "name")]))
        .component(two.replace("version: v1", "version: v2"))
        .start()
        .await;
    let one = ["ETAG", "TRANSACTIONAL", "TTL", "KEYS_LIKE", "QUERY_API", "ACTOR"];
    assert_eq!(capabilities(&sidecar, "one").await, one);
    assert_eq!(capabilities(&sidecar, "two").await, ["ETAG", "TRANSACTIONAL", "TTL", "KEYS_LIKE", "ACTOR"]);
    let [http, grpc] = sidecar.apis().await;
    let exact = r#"{"n":31.245270191439438,"low":121.48791951161945,"big":123456789012345678901}"#;
    for store in ["one", "two"] {
        http.save(store, &[Item::new("h", exact).metadata("ttlInSeconds", "100")]).await.unwrap();
        grpc.save(store, &[Item::new("g", exact)]).await.unwrap();
        for api in [&http, &grpc] {
            assert_eq!(api.get(store, "g").await.unwrap().unwrap().text(), exact, "{store}");
        }
    }
    assert_eq!(http.get("two", "h").await.unwrap().unwrap().text(), exact);
    assert_eq!(
        server.sql(
            "SELECT key, isbinary, value ->> 'n', expiredate - now() BETWEEN '80s' AND '100s' FROM one ORDER BY key"
        ),
        "one||g|t||\none||h|f|31.245270191439438|t"
    );
    let value = "convert_from(value, 'UTF8')";
    assert_eq!(
        server.sql(&format!(
            "SELECT key, {value}, expires_at - now() BETWEEN '80s' AND '100s' FROM two_state ORDER BY key"
        )),
        format!("shop||g|{exact}|\nshop||h|{exact}|t")
    );

    // The number of the filter and those of the answer are the ones that were written.
    let query = r#"{"filter": {"AND": [{"EQ": {"n": 31.245270191439438}}, {"LTE": {"low": 121.48791951161945}}]}}"#;
    let reply = sidecar.http().post("/v1.0-alpha1/state/one/query", query).header("content-type", "application/json");
    let text = reply.send().await.expect(200).text();
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((document["results"].as_array().map(Vec::len), &document["results"][0]["key"]), (Some(1), &"h".into()));
    for number in ["31.245270191439438", "121.48791951161945", "123456789012345678901"] {
        assert!(text.contains(number), "{number} is not in {text}");
    }
    assert!(document["token"].is_string() && document["results"][0]["etag"].is_string(), "{text}");
}

/// Type, key, wrong value, and what the message says besides the name of the key.
const WRONG: [(&str, &str, &str, &str); 27] = [
    ("state.redis", "redisHost", "redis://joe:hunter2@db:6379", "without scheme, user and password"),
    ("state.redis", "redisPort", "70000", "between 1 and 65535"),
    ("state.redis", "redisType", "ring", "node or cluster"),
    ("state.redis", "redisDB", "first", "must be an integer (given: 'first')"),
    ("state.redis", "redisMaxRetries", "often", "must be an integer"),
    ("state.redis", "maxRetryBackoff", "later", "must be a duration such as"),
    ("state.redis", "ttlInSeconds", "1m", "must be an integer"),
    ("state.redis", "sentinelMasterName", "", "is required"),
    ("state.redis", "useEntraID", "true", "redisUsername and redisPassword"),
    ("state.redis", "clientCert", "x", "need each other"),
    ("state.redis", "redisHost", "", "is required"),
    ("pubsub.redis", "redisMinRetryInterval", "8 ms", "must be a duration such as"),
    ("pubsub.redis", "redeliverInterval", "soon", "must be a duration such as"),
    ("pubsub.redis", "processingTimeout", "soon", "or a bare number (given: 'soon')"),
    ("pubsub.redis", "queueDepth", "0", "between 1 and 65535"),
    ("pubsub.redis", "concurrency", "single", "must be an integer"),
    ("pubsub.redis", "maxLenApprox", "many", "must be an integer"),
    ("pubsub.redis", "streamTTL", "long", "must be a duration such as"),
    ("lock.redis", "redisType", "cluster", "a lock cannot live on a cluster"),
    ("configuration.redis", "dialTimeout", "x", "must be a duration such as"),
    ("bindings.redis", "poolSize", "big", "must be an integer"),
    ("state.postgresql", "tableName", "a;b", "must be a table name"),
    ("state.postgresql", "cleanupInterval", "daily", "must be a duration such as"),
    ("state.postgresql", "timeout", "10ms", "greater than 1s"),
    ("bindings.postgresql", "maxConns", "-1", "must be between 0 and 10000"),
    ("configuration.postgresql", "queryExecMode", "fast", "use cache_statement"),
    ("configuration.postgresql", "useAWSIAM", "true", "use a password or a client certificate"),
];

#[tokio::test]
async fn a_wrong_value_is_told_with_component_key_and_what_to_do() {
    let mut builder = Sidecar::builder();
    for (i, (kind, key, value, _)) in WRONG.into_iter().enumerate() {
        let mut metadata = match kind {
            _ if key == "redisHost" => Vec::new(),
            _ if key == "sentinelMasterName" => vec![("redisHost", "127.0.0.1"), ("failover", "true")],
            "configuration.postgresql" => vec![("url", "host=127.0.0.1 port=1"), ("table", "t")],
            _ if kind.ends_with("postgresql") => vec![("url", "host=127.0.0.1 port=1")],
            _ => vec![("redisHost", "127.0.0.1")],
        };
        metadata.push((key, value));
        builder = builder.component(optional(&format!("wrong-{i}"), kind, &metadata));
    }
    let sidecar = builder.start().await;
    for (i, (kind, key, _, says)) in WRONG.into_iter().enumerate() {
        let begin = format!("Failed to init component wrong-{i} ({kind}/v1): [INIT_COMPONENT_FAILURE]: ");
        sidecar.wait_log(&begin).await;
        let log = sidecar.log();
        let line = log.lines().find(|line| line.contains(&begin)).unwrap();
        assert!(line.contains(key) && line.contains(says), "{kind} {key}: {line}");
    }
    assert!(!sidecar.log().contains("hunter2"), "a password is in the log");
}
