use std::time::Duration;

use mecha_components_api::{ErrorKind, Metadata, TransactOp};
use mecha_testkit::servers::{Redis, RedisOptions};

use crate::support::{get, publish, pubsub, put, state, until};

/// A cluster of one node that serves every slot.
async fn cluster() -> Option<Redis> {
    let redis = RedisOptions::new().cluster().start()?;
    redis.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    until("the cluster is up", async || redis.command(&["CLUSTER", "INFO"]).contains("cluster_state:ok")).await;
    Some(redis)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_lives_on_a_cluster() {
    let Some(redis) = cluster().await else { return };
    let store = state(&[("redisHost", &redis.address()), ("redisType", "cluster")]).await.unwrap();
    let md = Metadata::new();
    for key in ["a", "b", "{tag}1", "{tag}2"] {
        store.set(put(&md, key, key)).await.unwrap();
        assert_eq!(get(&*store, key).await.unwrap().unwrap().0, key);
    }
    let transact = store.transact().unwrap();
    let ops = |one: &'static str, two: &'static str| {
        vec![TransactOp::Set(put(&md, one, "new")), TransactOp::Set(put(&md, two, "new"))]
    };
    transact.transact(ops("{tag}1", "{tag}2"), &md).await.unwrap();
    let e = transact.transact(ops("a", "b"), &md).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::InvalidArgument, "{e}");
    assert_eq!(get(&*store, "a").await.unwrap().unwrap().0, "a");
    assert!(store.list().is_none());
    assert_eq!(store.bulk().unwrap().get_many(&[]).await.unwrap().len(), 0);
}

/// How many reads of streams the server has begun.
fn reads(redis: &Redis) -> u64 {
    let stats = redis.command(&["INFO", "commandstats"]);
    let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_xreadgroup:calls="));
    line.and_then(|line| line.split(',').next()).and_then(|calls| calls.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_pass_through_a_cluster() {
    use std::sync::Arc;

    let Some(redis) = cluster().await else { return };
    let broker = pubsub(&[("redisHost", &redis.address()), ("redisType", "cluster")]).await.unwrap();
    let inbox = Arc::new(mecha_testkit::Inbox::new());
    let stop = mecha_components_api::CancellationToken::new();
    let task = tokio::spawn({
        let (broker, inbox, stop) = (Arc::clone(&broker), Arc::clone(&inbox), stop.clone());
        let sub = mecha_components_api::Subscribe { topic: "t".into(), metadata: Metadata::new(), bulk: None };
        async move { broker.subscribe(sub, inbox, stop).await }
    });
    for i in 0..20 {
        publish(&*broker, "t", &i.to_string()).await.unwrap();
    }
    inbox.wait_for(20, crate::support::PATIENCE).await.unwrap();
    // Reads that wait at the server in vain are no trouble: the connection stays.
    let before = reads(&redis);
    until("some reads came back empty", async || reads(&redis) >= before + 3).await;
    assert_eq!(inbox.attachments(), 1);
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(10), task).await.expect("it stops").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_a_cluster_is_not_taken_for_a_single_server() {
    let (Some(one), Some(two)) = (RedisOptions::new().cluster().start(), RedisOptions::new().cluster().start()) else {
        return;
    };
    one.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "8191"]);
    two.command(&["CLUSTER", "ADDSLOTSRANGE", "8192", "16383"]);
    one.command(&["CLUSTER", "MEET", "127.0.0.1", &two.port().to_string()]);
    for node in [&one, &two] {
        until("the cluster is up", async || node.command(&["CLUSTER", "INFO"]).contains("cluster_state:ok")).await;
    }
    let md = Metadata::new();
    let single = state(&[("redisHost", &one.address())]).await.unwrap();
    // Slot 15495 lies on the other node.
    let e = single.set(put(&md, "a", "1")).await.unwrap_err();
    assert!(e.to_string().contains("redisType"), "{e}");
    let both = format!("{},{}", one.address(), two.address());
    let store = state(&[("redisHost", &both), ("redisType", "cluster")]).await.unwrap();
    for key in ["a", "b", "c", "d"] {
        store.set(put(&md, key, key)).await.unwrap();
        assert_eq!(get(&*store, key).await.unwrap().unwrap().0, key);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_lead_to_the_new_primary() {
    let Some(primary) = Redis::start() else { return };
    let Some(replica) = RedisOptions::new().replica_of(primary.port()).start() else { return };
    let Some(sentinel) = RedisOptions::new().sentinel_of(primary.port()).start() else { return };
    until("the sentinel knows the replica", async || {
        sentinel.command(&["SENTINEL", "replicas", "primary"]).contains(&replica.port().to_string())
    })
    .await;
    let address = sentinel.address();
    let settings = [("redisHost", address.as_str()), ("failover", "true"), ("sentinelMasterName", "primary")];
    let store = state(&settings).await.unwrap();
    let md = Metadata::new();
    store.set(put(&md, "k", "1")).await.unwrap();
    assert_eq!(primary.command(&["HGET", "k", "data"]), "1");
    drop(primary);
    until("the store works on the new primary", async || store.set(put(&md, "k", "2")).await.is_ok()).await;
    assert_eq!(replica.command(&["HGET", "k", "data"]), "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_and_servers_have_logins_of_their_own() {
    let Some(primary) = RedisOptions::new().password("hunter2").start() else { return };
    let sentinel = RedisOptions::new().password("boss").sentinel_of(primary.port());
    let sentinel = ["requirepass boss", "user bob on >sesame allchannels +@all", "sentinel auth-pass primary hunter2"]
        .into_iter()
        .fold(sentinel, RedisOptions::arg);
    let Some(sentinel) = sentinel.start() else { return };
    until("the sentinel knows the server", async || {
        sentinel.command(&["SENTINEL", "master", "primary"]).contains("role-reported\nmaster")
    })
    .await;
    let address = sentinel.address();
    let known = [
        ("redisHost", address.as_str()),
        ("failover", "true"),
        ("sentinelMasterName", "primary"),
        ("redisPassword", "hunter2"),
        ("dialTimeout", "2s"),
    ];
    for wrong in [&[("sentinelUsername", "bob")][..], &[("sentinelUsername", "bob"), ("sentinelPassword", "guess")]] {
        let e = state(&[&known, wrong].concat()).await.unwrap_err();
        assert!(!format!("{e} {e:?}").contains("guess") && !e.to_string().contains("hunter2"), "{e:?}");
    }
    let login = [("sentinelUsername", "bob"), ("sentinelPassword", "sesame")];
    let store = state(&[&known[..], &login].concat()).await.unwrap();
    store.set(put(&Metadata::new(), "k", "1")).await.unwrap();
    assert_eq!(primary.command(&["HGET", "k", "data"]), "1");
    let store = state(&[&known[..], &[("sentinelPassword", "boss")]].concat()).await.unwrap();
    assert_eq!(get(&*store, "k").await.unwrap().unwrap().0, "1");
}
