use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;

use mecha_components_api::{CancellationToken, Changes, ConfigurationStore, Metadata};
use mecha_testkit::servers::{Redis, RedisOptions};
use tokio::sync::mpsc;

use crate::support::{PATIENCE, configuration, until};

/// A watch of the keys, in place: it has told of a change of `probe`.
async fn watch(
    redis: &Redis,
    store: &Arc<dyn ConfigurationStore>,
    stop: &CancellationToken,
) -> mpsc::Receiver<Changes> {
    let (out, mut changes) = mpsc::channel(64);
    let (store, stop) = (Arc::clone(store), stop.clone());
    tokio::spawn(async move { store.watch(vec!["k".into(), "probe".into()], Metadata::new(), out, stop).await });
    let mut n = 0;
    until("the watch is in place", async || {
        n += 1;
        redis.command(&["SET", "probe", &n.to_string()]);
        tokio::time::timeout(std::time::Duration::from_millis(50), changes.recv()).await.is_ok()
    })
    .await;
    changes
}

/// Waits until `k` is told to have this value.
async fn told(changes: &mut mpsc::Receiver<Changes>, value: &str) {
    let told = async {
        loop {
            let Some(changes) = changes.recv().await else { panic!("the watch ended") };
            if changes.get("k").is_some_and(|item| item.value == value) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, told).await.unwrap_or_else(|_| panic!("'{value}' was not told"));
}

/// Changes `k` in one go with the end of all connections that wait for events.
fn change_unheard(redis: &Redis, value: &str) {
    let mut socket = TcpStream::connect(redis.address()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let commands = format!("MULTI\r\nCLIENT KILL TYPE pubsub\r\nSET k {value}\r\nEXEC\r\n");
    socket.write_all(commands.as_bytes()).unwrap();
    // The answers: begun, queued twice, and the two results.
    let lines = BufReader::new(socket).lines().take(6).map(Result::unwrap).collect::<Vec<_>>();
    assert_eq!(lines, ["+OK", "+QUEUED", "+QUEUED", "*2", ":1", "+OK"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_while_the_connection_is_gone_are_told() {
    let Some(mut redis) = RedisOptions::new().durable().start() else { return };
    let store = configuration(&[("redisHost", &redis.address())]).await.unwrap();
    let stop = CancellationToken::new();
    let mut changes = watch(&redis, &store, &stop).await;
    for round in 0..5 {
        redis.command(&["SET", "k", &format!("a{round}")]);
        told(&mut changes, &format!("a{round}")).await;
        change_unheard(&redis, &format!("b{round}"));
        told(&mut changes, &format!("b{round}")).await;
    }
    redis.kill();
    redis.restart();
    redis.command(&["SET", "k", "restarted"]);
    told(&mut changes, "restarted").await;
    redis.command(&["DEL", "k"]);
    told(&mut changes, "").await;
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_found_where_events_cannot_be_switched_on() {
    let Some(redis) = Redis::start() else { return };
    redis.command(&["ACL", "SETUSER", "joe", "on", "nopass", "~*", "&*", "+@all", "-config"]);
    let store =
        configuration(&[("redisHost", &redis.address()), ("redisUsername", "joe"), ("redisPassword", "x")]).await;
    let stop = CancellationToken::new();
    let mut changes = watch(&redis, &store.unwrap(), &stop).await;
    redis.command(&["SET", "k", "on"]);
    told(&mut changes, "on").await;
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_others_need_stay_on() {
    let Some(redis) = Redis::start() else { return };
    redis.command(&["CONFIG", "SET", "notify-keyspace-events", "El"]);
    let store = configuration(&[("redisHost", &redis.address())]).await.unwrap();
    let stop = CancellationToken::new();
    let _changes = watch(&redis, &store, &stop).await;
    let flags = redis.command(&["CONFIG", "GET", "notify-keyspace-events"]);
    let flags = flags.lines().nth(1).unwrap_or_default();
    assert!("ElKg$xe".chars().all(|c| flags.contains(c)), "{flags}");
    stop.cancel();
}
