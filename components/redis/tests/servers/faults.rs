use std::time::{Duration, Instant};

use mecha_components_api::{ErrorKind, Metadata, Retry};
use mecha_testkit::servers::{Redis, RedisOptions};

use crate::support::{get, put, state, until};

/// A scheduler on a busy machine may add this to a deadline.
const SLACK: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_is_an_error_at_once_and_comes_back() {
    let Some(mut redis) = RedisOptions::new().durable().start() else { return };
    let store = state(&[("redisHost", &redis.address())]).await.unwrap();
    let md = Metadata::new();
    store.set(put(&md, "k", "1")).await.unwrap();
    redis.kill();
    let before = Instant::now();
    let e = store.set(put(&md, "k", "2")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
    assert!(before.elapsed() < Duration::from_secs(3) + SLACK, "it took {:?}", before.elapsed());
    // The next one cannot have been sent at all.
    let e = store.set(put(&md, "k", "2")).await.unwrap_err();
    assert_eq!((e.kind(), e.retry()), (ErrorKind::Unavailable, Retry::Always), "{e}");
    assert!(e.to_string().contains(&redis.address()), "{e}");
    assert!(store.ping().await.is_err());
    redis.restart();
    until("the store works again", async || store.set(put(&md, "k", "3")).await.is_ok()).await;
    assert_eq!(get(&*store, "k").await.unwrap().unwrap().0, "3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_holds_callers_no_longer_than_their_deadline() {
    let Some(redis) = Redis::start() else { return };
    let store = state(&[("redisHost", &redis.address()), ("readTimeout", "400ms")]).await.unwrap();
    let md = Metadata::new();
    store.set(put(&md, "k", "1")).await.unwrap();
    redis.freeze();
    // The second round meets connections that were never answered.
    for _ in 0..2 {
        let before = Instant::now();
        let calls = (0..20).map(|_| async { get(&*store, "k").await });
        for outcome in futures_util::future::join_all(calls).await {
            let e = outcome.unwrap_err();
            assert!(matches!(e.kind(), ErrorKind::Timeout | ErrorKind::Unavailable), "{:?}: {e}", e.kind());
        }
        assert!(before.elapsed() < Duration::from_millis(400) + SLACK, "it took {:?}", before.elapsed());
    }
    redis.thaw();
    until("the store works again", async || matches!(get(&*store, "k").await, Ok(Some(_)))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_not_built_without_its_server() {
    let Some(mut redis) = Redis::start() else { return };
    redis.kill();
    let e = state(&[("redisHost", &redis.address()), ("dialTimeout", "500ms")]).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
    redis.restart();
    redis.freeze();
    let before = Instant::now();
    let e = state(&[("redisHost", &redis.address()), ("dialTimeout", "500ms")]).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Timeout, "{e}");
    assert!(before.elapsed() < Duration::from_millis(500) + SLACK, "it took {:?}", before.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_waits_for_a_replica_to_be_promoted() {
    let Some(primary) = Redis::start() else { return };
    let Some(replica) = RedisOptions::new().replica_of(primary.port()).start() else { return };
    let address = replica.address();
    let settings = [("redisHost", address.as_str()), ("redisMaxRetries", "50"), ("writeTimeout", "20s")];
    let patient = state(&settings).await.unwrap();
    let hasty = state(&[("redisHost", &address), ("redisMaxRetries", "-1")]).await.unwrap();
    let md = Metadata::new();
    let e = hasty.set(put(&md, "k", "1")).await.unwrap_err();
    assert_eq!((e.kind(), e.retry()), (ErrorKind::Unavailable, Retry::Always), "{e}");
    assert!(e.to_string().contains("replica"), "{e}");

    let promote = async {
        until("the write was refused", async || replica.command(&["INFO", "errorstats"]).contains("READONLY")).await;
        replica.command(&["REPLICAOF", "NO", "ONE"]);
    };
    let (written, ()) = tokio::join!(patient.set(put(&md, "k", "2")), promote);
    written.unwrap();
    assert_eq!(get(&*hasty, "k").await.unwrap().unwrap().0, "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_memory_is_told_and_keeps_the_old_value() {
    let Some(redis) = Redis::start() else { return };
    let store = state(&[("redisHost", &redis.address())]).await.unwrap();
    let md = Metadata::new();
    store.set(put(&md, "k", "1")).await.unwrap();
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
    let e = store.set(put(&md, "k", "2")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Overloaded, "{e}");
    assert_eq!(get(&*store, "k").await.unwrap().unwrap(), ("1".to_owned(), Some("1".to_owned())));
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    store.set(put(&md, "k", "2")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_script_is_sent_again() {
    let Some(redis) = Redis::start() else { return };
    let store = state(&[("redisHost", &redis.address())]).await.unwrap();
    let md = Metadata::new();
    for round in 0..3 {
        redis.command(&["SCRIPT", "FLUSH"]);
        store.set(put(&md, "k", &round.to_string())).await.unwrap();
    }
    assert_eq!(get(&*store, "k").await.unwrap().unwrap(), ("2".to_owned(), Some("3".to_owned())));
}

/// The ids of all connections but the one that asks.
fn connections(redis: &Redis) -> Vec<String> {
    let list = redis.command(&["CLIENT", "LIST"]);
    let others = list.lines().filter(|line| !line.contains("cmd=client"));
    others.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_the_server_closed_fails_nobody() {
    let Some(redis) = Redis::start() else { return };
    // Without tries: whatever is sent into a closed connection would come back as an error.
    let store = state(&[("redisHost", &redis.address()), ("redisMaxRetries", "-1")]).await.unwrap();
    let md = Metadata::new();
    for round in 0..3 {
        store.set(put(&md, "k", "1")).await.unwrap();
        redis.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        until("the connection is closed", async || connections(&redis).is_empty()).await;
        // Nothing tells from outside that the client has seen it, too.
        tokio::time::sleep(Duration::from_millis(500)).await;
        store.set(put(&md, "k", "2")).await.unwrap_or_else(|e| panic!("round {round}: {e}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_connection_is_left_although_its_callers_leave_first() {
    let Some(redis) = Redis::start() else { return };
    let store = state(&[("redisHost", &redis.address()), ("readTimeout", "500ms")]).await.unwrap();
    let first = connections(&redis);
    assert_eq!(first.len(), 1);
    redis.freeze();
    let before = Instant::now();
    while before.elapsed() < Duration::from_millis(800) {
        let _ = tokio::time::timeout(Duration::from_millis(50), get(&*store, "k")).await;
    }
    redis.thaw();
    until("the store works again", async || get(&*store, "k").await.is_ok()).await;
    until("the old connection is gone", async || !connections(&redis).contains(&first[0])).await;
    assert_eq!(connections(&redis).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_carries_all_calls_and_ends_with_the_component() {
    let Some(redis) = Redis::start() else { return };
    let store = state(&[("redisHost", &redis.address())]).await.unwrap();
    let md = Metadata::new();
    let calls = (0..100).map(|i| {
        let (store, md, key) = (&store, &md, format!("k{i}"));
        async move { store.set(put(md, &key, "1")).await }
    });
    for outcome in futures_util::future::join_all(calls).await {
        outcome.unwrap();
    }
    assert_eq!(connections(&redis).len(), 1);
    store.close().await;
    until("the connection ends", async || connections(&redis).is_empty()).await;
    let e = store.set(put(&md, "k", "1")).await.unwrap_err();
    assert!(e.to_string().contains("closed"), "{e}");
}
