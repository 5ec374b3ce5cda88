//! What is stored looks as the incumbent stores it, and what it stored can be read.

use std::time::Duration;

use bytes::Bytes;
use mecha_components_api::{
    Concurrency, Consistency, DeleteState, ErrorKind, Metadata, Publish, SetState, StateStore, TransactOp, Ttl,
};
use mecha_testkit::servers::{Redis, RedisOptions};

use crate::support::{configuration, get, lock, pubsub, put, state};

fn hash(redis: &Redis, key: &str) -> Vec<String> {
    redis.command(&["HMGET", key, "data", "version", "first-write"]).lines().map(str::to_owned).collect()
}

fn first<'a>(md: &'a Metadata, key: &'a str, text: &str) -> SetState<'a> {
    SetState { concurrency: Concurrency::FirstWrite, ..put(md, key, text) }
}

async fn conflict(store: &dyn StateStore, req: SetState<'_>) {
    let e = store.set(req).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Conflict, "{e}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_are_hashes_with_a_version() {
    let Some(redis) = Redis::start() else { return };
    let store = state(&[("redisHost", &redis.address())]).await.unwrap();
    let md = Metadata::new();
    store.set(put(&md, "k", "{\"a\":1}")).await.unwrap();
    assert_eq!(hash(&redis, "k"), ["{\"a\":1}", "1"]);
    store.set(put(&md, "k", "2")).await.unwrap();
    assert_eq!(hash(&redis, "k"), ["2", "2"]);
    store.set(first(&md, "f", "1")).await.unwrap();
    assert_eq!(hash(&redis, "f"), ["1", "1", "0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_the_incumbent_are_read_and_replaced() {
    let Some(redis) = Redis::start() else { return };
    let store = state(&[("redisHost", &redis.address())]).await.unwrap();
    let md = Metadata::new();
    redis.command(&["HSET", "k", "data", "old", "version", "41", "first-write", "0"]);
    assert_eq!(get(&*store, "k").await.unwrap().unwrap(), ("old".to_owned(), Some("41".to_owned())));
    conflict(&*store, first(&md, "k", "1")).await;
    conflict(&*store, SetState { etag: Some("40"), ..put(&md, "k", "1") }).await;
    store.set(SetState { etag: Some("41"), ..put(&md, "k", "new") }).await.unwrap();
    assert_eq!(hash(&redis, "k")[..2], ["new", "42"]);

    redis.command(&["SET", "text", "plain"]);
    assert_eq!(get(&*store, "text").await.unwrap().unwrap(), ("plain".to_owned(), None));
    store.set(put(&md, "text", "1")).await.unwrap();
    assert_eq!(hash(&redis, "text"), ["1", "1"]);
}

/// Here a command of the server's own plays the module's part: it answers with the version, too,
/// and its key is no hash either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_of_the_json_module_keep_their_versions() {
    let options = RedisOptions::new().arg("--rename-command").arg("ZSCORE").arg("JSON.GET");
    let Some(redis) = options.start() else { return };
    let store = state(&[("redisHost", &redis.address())]).await.unwrap();
    let md = Metadata::new();
    let documents = || {
        for key in ["set", "delete", "a", "b"] {
            redis.command(&["DEL", key]);
            redis.command(&["ZADD", key, "41", ".version"]);
        }
    };
    documents();
    let delete = |etag| DeleteState {
        key: "delete",
        etag,
        concurrency: Concurrency::LastWrite,
        consistency: Consistency::Eventual,
        metadata: &md,
    };
    conflict(&*store, SetState { etag: Some("40"), ..put(&md, "set", "1") }).await;
    assert_eq!(store.delete(delete(Some("40"))).await.unwrap_err().kind(), ErrorKind::Conflict);
    store.set(SetState { etag: Some("41"), ..put(&md, "set", "1") }).await.unwrap();
    assert_eq!(hash(&redis, "set"), ["1", "42"]);
    store.delete(delete(Some("41"))).await.unwrap();
    assert_eq!(redis.command(&["EXISTS", "delete"]), "0");

    let transact = store.transact().unwrap();
    let stale = SetState { etag: Some("40"), ..put(&md, "b", "1") };
    let ops = vec![TransactOp::Set(put(&md, "a", "1")), TransactOp::Set(stale)];
    assert_eq!(transact.transact(ops, &md).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(redis.command(&["TYPE", "a"]), "zset");
    let fresh = SetState { etag: Some("41"), ..put(&md, "b", "1") };
    let ops = vec![TransactOp::Set(put(&md, "a", "1")), TransactOp::Set(fresh), TransactOp::Set(put(&md, "b", "2"))];
    transact.transact(ops, &md).await.unwrap();
    assert_eq!((hash(&redis, "a"), hash(&redis, "b")), (vec!["1".into(), "42".into()], vec!["2".into(), "43".into()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_write_is_refused_only_after_a_first_write() {
    let Some(redis) = Redis::start() else { return };
    let store = state(&[("redisHost", &redis.address())]).await.unwrap();
    let md = Metadata::new();
    store.set(put(&md, "k", "1")).await.unwrap();
    store.set(first(&md, "k", "2")).await.unwrap();
    conflict(&*store, first(&md, "k", "3")).await;
    store.set(put(&md, "k", "4")).await.unwrap();
    store.set(first(&md, "k", "5")).await.unwrap();
    assert_eq!(hash(&redis, "k"), ["5", "4", "0"]);
    // The same inside transactions, also within one.
    let transact = store.transact().unwrap();
    let ops = vec![TransactOp::Set(put(&md, "k", "6")), TransactOp::Set(first(&md, "k", "7"))];
    transact.transact(ops, &md).await.unwrap();
    let ops = vec![TransactOp::Set(put(&md, "new", "1")), TransactOp::Set(first(&md, "k", "8"))];
    assert_eq!(transact.transact(ops, &md).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(hash(&redis, "k"), ["7", "6", "0"]);
    assert_eq!(redis.command(&["EXISTS", "new"]), "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etags_are_integers_and_those_of_absent_keys_are_accepted() {
    let Some(redis) = Redis::start() else { return };
    let store = state(&[("redisHost", &redis.address())]).await.unwrap();
    let md = Metadata::new();
    let e = store.set(SetState { etag: Some("x"), ..put(&md, "k", "1") }).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::InvalidArgument, "{e}");
    assert!(e.to_string().starts_with("invalid etag value"), "{e}");
    let delete = |etag| DeleteState {
        key: "k",
        etag: Some(etag),
        concurrency: Concurrency::LastWrite,
        consistency: Consistency::Eventual,
        metadata: &md,
    };
    assert_eq!(store.delete(delete("x")).await.unwrap_err().kind(), ErrorKind::Conflict);
    store.delete(delete("7")).await.unwrap();
    store.set(SetState { etag: Some("7"), ..put(&md, "k", "1") }).await.unwrap();
    assert_eq!(store.delete(delete("7")).await.unwrap_err().kind(), ErrorKind::Conflict);
    store.delete(delete("1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn life_times_are_the_servers_own() {
    let Some(redis) = Redis::start() else { return };
    let store = state(&[("redisHost", &redis.address()), ("ttlInSeconds", "1000")]).await.unwrap();
    let md = Metadata::new();
    let left = |key: &str| redis.command(&["TTL", key]).parse::<i64>().unwrap();
    store.set(put(&md, "k", "1")).await.unwrap();
    assert!((990..=1000).contains(&left("k")), "{}", left("k"));
    store.set(SetState { ttl: Some(Ttl::After(Duration::from_secs(50))), ..put(&md, "k", "1") }).await.unwrap();
    assert!((40..=50).contains(&left("k")), "{}", left("k"));
    store.set(SetState { ttl: Some(Ttl::Never), ..put(&md, "k", "1") }).await.unwrap();
    assert_eq!(left("k"), -1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_json_value_must_be_json() {
    let Some(redis) = Redis::start() else { return };
    let store = state(&[("redisHost", &redis.address())]).await.unwrap();
    let md = Metadata::new();
    let json = |text: &'static str| SetState { content_type: Some("application/json"), ..put(&md, "k", text) };
    let e = store.set(json("{")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::InvalidArgument, "{e}");
    let exact = "{ \"b\": 9007199254740993, \"a\": 0.10 }";
    store.set(json(exact)).await.unwrap();
    assert_eq!(get(&*store, "k").await.unwrap().unwrap().0, exact);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_entries_with_data_and_metadata() {
    let Some(redis) = Redis::start() else { return };
    let settings = [("redisHost", redis.address())];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let broker = pubsub(&settings).await.unwrap();
    let md: Metadata = [("ttlInSeconds", "5")].into_iter().collect();
    let msg = Publish { topic: "t", data: Bytes::from_static(b"x"), content_type: None, metadata: &md };
    broker.publish(msg).await.unwrap();
    let entry = redis.command(&["XRANGE", "t", "-", "+"]);
    let fields: Vec<&str> = entry.lines().skip(1).collect();
    assert_eq!(fields, ["data", "x", "metadata", r#"{"ttlInSeconds":"5"}"#]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_kept_short() {
    let Some(redis) = Redis::start() else { return };
    let broker = pubsub(&[("redisHost", &redis.address()), ("maxLenApprox", "10")]).await.unwrap();
    for _ in 0..500 {
        crate::support::publish(&*broker, "t", "x").await.unwrap();
    }
    let length: u32 = redis.command(&["XLEN", "t"]).parse().unwrap();
    // Whole nodes of 100 entries are removed.
    assert!(length < 250, "{length} entries");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_and_configuration_are_plain_keys() {
    let Some(redis) = Redis::start() else { return };
    let locks = lock(&[("redisHost", &redis.address())]).await.unwrap();
    assert!(locks.try_lock("lock||r", "me", Duration::from_secs(100)).await.unwrap());
    assert_eq!(redis.command(&["GET", "lock||r"]), "me");
    let left: i64 = redis.command(&["TTL", "lock||r"]).parse().unwrap();
    assert!((90..=100).contains(&left), "{left}");

    redis.command(&["SET", "c", "on||7"]);
    redis.command(&["RPUSH", "list", "x"]);
    let store = configuration(&[("redisHost", &redis.address())]).await.unwrap();
    let found = store.get(&[], &Metadata::new()).await.unwrap();
    let found: Vec<(&str, &str, &str)> =
        found.iter().map(|(k, i)| (k.as_str(), i.value.as_str(), i.version.as_str())).collect();
    assert_eq!(found, [("c", "on", "7"), ("lock||r", "me", "")]);
}
