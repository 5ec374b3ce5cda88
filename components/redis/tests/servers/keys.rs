//! What the keys of a document do on a real server, beyond what other files show of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mecha_components_api::{
    CancellationToken, Concurrency, ConfigurationStore, Consistency, DeleteState, Invoke, Metadata, OutputBinding,
    Subscribe,
};
use mecha_testkit::Inbox;
use mecha_testkit::servers::{Redis, RedisOptions};
use tokio::sync::mpsc;

use crate::support::{PATIENCE, binding, configuration, get, publish, pubsub, put, state, until};

/// Keys of a document with their values.
type Keys<'a> = &'a [(&'a str, &'a str)];

/// A number in a section of the server's INFO: `name:count=7,…`.
fn counted(redis: &Redis, section: &str, name: &str) -> u64 {
    let info = redis.command(&["INFO", section]);
    let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let count = line.and_then(|line| line.split(',').find_map(|part| part.trim().split_once('=')));
    count.and_then(|(_, n)| n.parse().ok()).unwrap_or(0)
}

/// A replica refuses each try of a write, and counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_tried_as_often_as_the_document_says() {
    let Some(primary) = Redis::start() else { return };
    let Some(replica) = RedisOptions::new().replica_of(primary.port()).start() else { return };
    let md = Metadata::new();
    let rows: [(Keys<'_>, u64); 6] = [
        (&[], 4),
        (&[("redisMaxRetries", "-1")], 1),
        (&[("redisMaxRetries", "2"), ("redisMinRetryInterval", "5ms")], 3),
        (&[("redisMaxRetries", "2"), ("redisMaxRetryInterval", "5")], 3),
        (&[("maxRetries", "2"), ("maxRetryBackoff", "5")], 3),
        (&[("redisMaxRetries", "1"), ("maxRetries", "5"), ("redisMaxRetryInterval", "-1")], 2),
    ];
    for (keys, tries) in rows {
        let address = replica.address();
        let all = [&[("redisHost", address.as_str()), ("writeTimeout", "60s")], keys].concat();
        let store = state(&all).await.unwrap();
        replica.command(&["CONFIG", "RESETSTAT"]);
        let delete = DeleteState {
            key: "k",
            etag: None,
            concurrency: Concurrency::LastWrite,
            consistency: Consistency::Eventual,
            metadata: &md,
        };
        store.delete(delete).await.unwrap_err();
        assert_eq!(counted(&replica, "errorstats", "errorstat_READONLY"), tries, "{keys:?}");
    }
}

/// The other limit of each row is much longer than the test waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_and_writes_have_limits_of_their_own() {
    let Some(redis) = Redis::start() else { return };
    let (host, port) = ("127.0.0.1".to_owned(), redis.port().to_string());
    let md = Metadata::new();
    let rows: [(Keys<'_>, bool); 4] = [
        (&[("readTimeout", "60s"), ("writeTimeout", "300")], true),
        (&[("readTimeout", "300ms")], true),
        (&[("readTimeout", "300"), ("writeTimeout", "1m")], false),
        (&[("readTimeout", "0.3s")], false),
    ];
    for (keys, write) in rows {
        let all = [&[("redisHost", host.as_str()), ("redisPort", &port)], keys].concat();
        let store = state(&all).await.unwrap();
        redis.freeze();
        let before = Instant::now();
        let failed =
            if write { store.set(put(&md, "k", "1")).await.is_err() } else { get(&*store, "k").await.is_err() };
        assert!(failed && before.elapsed() < Duration::from_secs(30), "{keys:?}: {:?}", before.elapsed());
        redis.thaw();
    }
}

/// The log of commands shows how the stream is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_read_as_the_document_says() {
    let Some(redis) = Redis::start() else { return };
    redis.command(&["CONFIG", "SET", "slowlog-log-slower-than", "0", "slowlog-max-len", "10000"]);
    let address = redis.address();
    // Group, most entries of one read, and whether others' entries are claimed.
    let rows: [(Keys<'_>, &str, &str, bool); 4] = [
        (&[], "app", "10", true),
        (&[("consumerID", "crew"), ("concurrency", "7")], "crew", "7", true),
        (&[("concurrency", "50"), ("queueDepth", "5"), ("redeliverInterval", "0")], "app", "5", false),
        (&[("processingTimeout", "0")], "app", "10", false),
    ];
    for (i, (keys, group, count, claims)) in rows.into_iter().enumerate() {
        redis.command(&["SLOWLOG", "RESET"]);
        redis.command(&["CONFIG", "RESETSTAT"]);
        let topic = format!("t{i}");
        let broker = pubsub(&[&[("redisHost", address.as_str())], keys].concat()).await.unwrap();
        let (inbox, stop) = (Arc::new(Inbox::new()), CancellationToken::new());
        let task = tokio::spawn({
            let (broker, inbox, stop, topic) = (Arc::clone(&broker), Arc::clone(&inbox), stop.clone(), topic.clone());
            let sub = Subscribe { topic, metadata: Metadata::new(), bulk: None };
            async move { broker.subscribe(sub, inbox, stop).await }
        });
        publish(&*broker, &topic, "x").await.unwrap();
        inbox.wait_for(1, PATIENCE).await.unwrap();
        let claimed = || counted(&redis, "commandstats", "cmdstat_xautoclaim") > 0;
        if claims {
            until("entries of others are looked for", async || claimed()).await;
        }
        until(&format!("{keys:?} reads so"), async || {
            let log = redis.command(&["SLOWLOG", "GET", "-1"]);
            let words: Vec<&str> = log.lines().map(str::trim).collect();
            let has = |pair: [&str; 2]| words.windows(2).any(|two| two == pair);
            has(["GROUP", group]) && has(["COUNT", count])
        })
        .await;
        assert_eq!(claimed(), claims, "{keys:?}");
        assert!(redis.command(&["XINFO", "GROUPS", &topic]).lines().any(|line| line == group), "{keys:?}");
        stop.cancel();
        task.await.unwrap().unwrap();
        broker.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_keep_what_is_younger_than_their_time() {
    let Some(redis) = Redis::start() else { return };
    let old = "for i = 1, 300 do redis.call('XADD', KEYS[1], i .. '-0', 'data', 'old') end";
    let address = redis.address();
    for (topic, keys, longest) in [
        ("kept", &[][..], 301),
        ("aged", &[("streamTTL", "1h")], 150),
        ("milliseconds", &[("streamTTL", "3600000")], 150),
    ] {
        redis.command(&["EVAL", old, "1", topic]);
        let broker = pubsub(&[&[("redisHost", address.as_str())], keys].concat()).await.unwrap();
        publish(&*broker, topic, "new").await.unwrap();
        // Whole nodes of 100 entries are removed.
        let length: u32 = redis.command(&["XLEN", topic]).parse().unwrap();
        assert!((1..=longest).contains(&length) && (longest < 300 || length == longest), "{topic}: {length} entries");
    }
}

/// Calls a binding with request metadata; gives the data of the answer.
async fn invoke(binding: &Arc<dyn OutputBinding>, operation: &str, data: &'static str, md: Keys<'_>) -> String {
    let metadata: Metadata = md.iter().copied().collect();
    let invoke = Invoke { operation, data: Bytes::from_static(data.as_bytes()), metadata: &metadata };
    let reply = binding.invoke(invoke).await.unwrap_or_else(|e| panic!("{operation} {md:?}: {e}"));
    String::from_utf8(reply.data.unwrap_or_default().to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_binding_writes_are_plain_keys() {
    let Some(redis) = Redis::start() else { return };
    let binding = binding(&[("redisHost", &redis.address()), ("redisDB", "2")]).await.unwrap();
    let ask = |args: &[&str]| redis.command(&[&["-n", "2"], args].concat());
    let lives = |key: &str| ask(&["TTL", key]).parse::<i64>().unwrap();
    invoke(&binding, "create", "{\"a\": 0.10}", &[("key", "k")]).await;
    assert_eq!((ask(&["GET", "k"]), lives("k")), ("{\"a\": 0.10}".into(), -1));
    invoke(&binding, "create", "x", &[("key", "k"), ("ttlInSeconds", "100")]).await;
    assert!((90..=100).contains(&lives("k")), "{}", lives("k"));
    assert_eq!(invoke(&binding, "get", "", &[("key", "k")]).await, "x");
    assert_eq!(invoke(&binding, "get", "", &[("key", "k"), ("delete", "true")]).await, "x");
    assert_eq!(ask(&["EXISTS", "k"]), "0");
    for _ in 0..2 {
        invoke(&binding, "increment", "", &[("key", "n"), ("ttlInSeconds", "100")]).await;
    }
    assert_eq!(ask(&["GET", "n"]), "2");
    assert!((90..=100).contains(&lives("n")), "{}", lives("n"));
    invoke(&binding, "delete", "", &[("key", "n")]).await;
    assert_eq!(ask(&["DBSIZE"]), "0");
}

/// The events of a database name it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configuration_is_read_and_watched_in_the_database_of_the_document() {
    let Some(redis) = Redis::start() else { return };
    let store: Arc<dyn ConfigurationStore> =
        configuration(&[("redisHost", &redis.address()), ("redisDB", "3")]).await.unwrap();
    redis.command(&["SET", "k", "elsewhere||1"]);
    let (out, mut changes) = mpsc::channel(64);
    let stop = CancellationToken::new();
    let task = tokio::spawn({
        let (store, stop) = (Arc::clone(&store), stop.clone());
        async move { store.watch(vec!["k".into()], Metadata::new(), out, stop).await }
    });
    let mut n = 0;
    until("a change is told", async || {
        n += 1;
        redis.command(&["-n", "3", "SET", "k", &format!("on||{n}")]);
        tokio::time::timeout(Duration::from_millis(100), changes.recv()).await.is_ok_and(|told| {
            let item = told.unwrap()["k"].clone();
            item.value == "on"
        })
    })
    .await;
    let found = store.get(&["k"], &Metadata::new()).await.unwrap();
    assert_eq!((found["k"].value.as_str(), found["k"].version.clone()), ("on", n.to_string()));
    stop.cancel();
    task.await.unwrap().unwrap();
}
