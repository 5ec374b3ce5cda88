//! `mechad probe`: the features of a component are proven on the real server, and nothing is left there.

use std::io::Write as _;
use std::process::{Command, Stdio};

use mecha_testkit::servers::{KafkaOptions, Postgres, Redis};
use mecha_tests::mechad;
use serde_json::{Value, json};

/// Name of the component, and with it the beginning of all that a probe writes.
const NAME: &str = "mecha-probe-7";

/// Asks whether a component has these features; the answer, and whether the program succeeded.
fn probe(kind: &str, version: &str, metadata: &[(&str, &str)], features: &[&str]) -> (Value, bool) {
    let metadata: Vec<Value> = metadata.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    let question = json!({
        "component": {"metadata": {"name": NAME}, "spec": {"type": kind, "version": version, "metadata": metadata}},
        "features": features,
    });
    let mut child = Command::new(mechad())
        .args(["probe", "--document", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(question.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (serde_json::from_slice(&output.stdout).unwrap(), output.status.success())
}

fn assert_proven(answer: &Value, features: &[&str]) {
    for feature in features {
        assert_eq!(answer["features"][feature], json!({"ok": true}), "{feature}: {answer}");
    }
}

/// The feature is not there, and the reason says so.
fn assert_refused(answer: &Value, feature: &str) {
    let verdict = &answer["features"][feature];
    assert_eq!(verdict["ok"], false, "{feature}: {answer}");
    assert!(verdict["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{feature}: {answer}");
}

#[test]
fn stores_on_redis_and_postgresql_show_their_features_and_keep_nothing() {
    if let Some(redis) = Redis::start() {
        let host = [("redisHost", redis.address())];
        let host: Vec<(&str, &str)> = host.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let there = ["crud", "etag", "transactional", "ttl", "keysLike", "actorStateStore"];
        let asked = [&there[..], &["query", "deleteWithPrefix", "nosuch"]].concat();
        let (answer, succeeded) = probe("state.redis", "v1", &host, &asked);
        assert!(succeeded, "{answer}");
        assert_proven(&answer, &there);
        // This server has no search module.
        for missing in ["query", "deleteWithPrefix", "nosuch"] {
            assert_refused(&answer, missing);
        }
        assert_eq!(redis.command(&["DBSIZE"]).trim(), "0");
    }
    let Some(postgres) = Postgres::start() else { return };
    for version in ["v1", "v2"] {
        let there = ["crud", "etag", "transactional", "ttl", "keysLike", "actorStateStore"];
        let asked = [&there[..], &["deleteWithPrefix", "nosuch"]].concat();
        let url = postgres.url();
        let (answer, succeeded) = probe("state.postgresql", version, &[("connectionString", &url)], &asked);
        assert!(succeeded, "{answer}");
        assert_proven(&answer, &there);
        assert_refused(&answer, "deleteWithPrefix");
        assert_refused(&answer, "nosuch");
        assert_eq!(postgres.sql("SELECT count(*) FROM state").trim(), "0", "{version}");
        // The other version has another table of the same name.
        postgres.sql("DROP TABLE state");
        postgres.sql("DROP TABLE dapr_metadata");
    }
}

#[test]
fn a_broker_on_redis_shows_its_features_and_keeps_nothing() {
    let Some(redis) = Redis::start() else { return };
    let address = redis.address();
    let asked = ["ordered", "replay", "deadLetter", "ttl", "bulk", "wildcards"];
    let (answer, succeeded) = probe("pubsub.redis", "v1", &[("redisHost", &address)], &asked);
    assert!(succeeded, "{answer}");
    assert_proven(&answer, &asked[..3]);
    for missing in &asked[3..] {
        assert_refused(&answer, missing);
    }
    assert_eq!(redis.command(&["DBSIZE"]).trim(), "0");
}

#[test]
fn a_broker_on_kafka_shows_its_features_and_keeps_nothing_and_a_wrong_address_is_told() {
    // Topics that nobody made are made by nobody.
    let Some(kafka) = KafkaOptions::new().set("auto.create.topics.enable", "false").start() else { return };
    let (address, plain) = (kafka.address(), ("authType", "none"));
    let asked = ["ordered", "bulk", "replay", "deadLetter", "ttl"];
    let group = ("consumerGroup", "everybody");
    // A topic that was left there could not be made again.
    for _ in 0..2 {
        let (answer, succeeded) = probe("pubsub.kafka", "v1", &[("brokers", &address), plain, group], &asked);
        assert!(succeeded, "{answer}");
        assert_proven(&answer, &asked[..4]);
        assert_refused(&answer, "ttl");
    }
    drop(kafka);
    let (answer, succeeded) = probe("pubsub.kafka", "v1", &[("brokers", &address), plain], &["bulk"]);
    assert!(!succeeded && answer["error"].as_str().is_some_and(|error| error.contains(&address)), "{answer}");
}

#[test]
fn the_embedded_broker_shows_its_features_and_keeps_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let asked = ["ordered", "bulk", "replay", "deadLetter", "ttl", "wildcards"];
    let path = [("path", folder.path().to_str().unwrap())];
    let (answer, succeeded) = probe("pubsub.mecha", "v1", &path, &asked);
    assert!(succeeded, "{answer}");
    assert_proven(&answer, &asked[..5]);
    assert_refused(&answer, "wildcards");
    let file = rusqlite::Connection::open(folder.path().join("broker.db")).unwrap();
    for table in ["topic", "message", "consumer", "pending"] {
        let rows: i64 = file.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 0, "{table}");
    }
    let bytes: i64 = file.query_row("SELECT value FROM counter WHERE name = 'bytes'", [], |row| row.get(0)).unwrap();
    assert_eq!(bytes, 0);
}
