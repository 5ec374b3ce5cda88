use mecha_components_api::{Consistency, ErrorKind, Metadata, SetState, TransactOp};
use mecha_testkit::servers::{Redis, RedisOptions};

use crate::support::{get, lock, put, state, until};

fn strong<'a>(md: &'a Metadata, key: &'a str, text: &str) -> SetState<'a> {
    SetState { consistency: Consistency::Strong, ..put(md, key, text) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strong_write_fails_when_replicas_are_short() {
    let Some(primary) = Redis::start() else { return };
    let Some(replica) = RedisOptions::new().replica_of(primary.port()).start() else { return };
    let online = || primary.command(&["INFO", "replication"]).contains("state=online");
    until("the replica is in step", async || online()).await;
    let store = state(&[("redisHost", &primary.address())]).await.unwrap();
    let md = Metadata::new();
    store.set(strong(&md, "k", "1")).await.unwrap();
    assert_eq!(replica.command(&["HGET", "k", "data"]), "1");

    replica.freeze();
    let e = store.set(strong(&md, "k", "2")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
    assert!(e.to_string().contains("0 of 1 replicas"), "{e}");
    let ops = vec![TransactOp::Set(strong(&md, "k", "3"))];
    assert!(store.transact().unwrap().transact(ops, &md).await.is_err());
    // Others are not held up.
    store.set(put(&md, "other", "1")).await.unwrap();
    replica.thaw();
    until("strong writes work again", async || store.set(strong(&md, "k", "4")).await.is_ok()).await;

    // A replica that is gone for good is missed, too.
    drop(replica);
    until("the replica is gone", async || !online()).await;
    assert!(store.set(strong(&md, "k", "5")).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strong_write_needs_no_replicas_where_there_are_none() {
    let Some(redis) = Redis::start() else { return };
    let store = state(&[("redisHost", &redis.address())]).await.unwrap();
    let md = Metadata::new();
    store.set(strong(&md, "k", "1")).await.unwrap();
    assert_eq!(get(&*store, "k").await.unwrap().unwrap().0, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_refuses_replicas_it_cannot_follow() {
    let Some(primary) = Redis::start() else { return };
    let Some(_replica) = RedisOptions::new().replica_of(primary.port()).start() else { return };
    until("the replica is there", async || primary.command(&["INFO", "replication"]).contains("slave0")).await;
    let e = lock(&[("redisHost", &primary.address())]).await.unwrap_err();
    assert!(e.to_string().contains("replication is not supported"), "{e}");
}
