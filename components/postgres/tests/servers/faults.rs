use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mecha_components_api::{ErrorKind, Metadata, SetState, StateStore, TransactOp};
use mecha_testkit::servers::{Postgres, PostgresOptions};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{PATIENCE, get, open, put, store, text, until};

/// What a caller may wait beyond its deadline; generous, because the machine is shared.
const GRACE: Duration = Duration::from_secs(10);

/// Writes distinct keys from several tasks until told to stop and keeps what was acknowledged.
struct Ledger {
    stop: Arc<AtomicBool>,
    acked: Arc<Mutex<Vec<String>>>,
    slowest: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Ledger {
    fn start(store: &Arc<dyn StateStore>, writers: usize, transactions: bool) -> Self {
        let (stop, acked, slowest) =
            (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<String>>>::default(), Arc::default());
        let writer = |writer: usize| {
            let (store, stop, acked) = (Arc::clone(store), Arc::clone(&stop), Arc::clone(&acked));
            let slowest: Arc<AtomicU64> = Arc::clone(&slowest);
            tokio::spawn(async move {
                let md = Metadata::new();
                for i in 0_u32.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let (key, second) = (format!("w{writer}-{i}"), format!("w{writer}-{i}-b"));
                    let started = Instant::now();
                    let outcome = if transactions && i % 3 == 0 {
                        let ops = vec![TransactOp::Set(put(&md, &key, "1")), TransactOp::Set(put(&md, &second, "1"))];
                        store.transact().unwrap().transact(ops, &md).await
                    } else {
                        store.set(put(&md, &key, "1")).await
                    };
                    slowest.fetch_max(started.elapsed().as_millis() as u64, Ordering::Relaxed);
                    match outcome {
                        Ok(()) => acked.lock().push(key),
                        Err(e) => {
                            assert!(matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{e}");
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                }
            })
        };
        let tasks = (0..writers).map(writer).collect();
        Self { stop, acked, slowest, tasks }
    }

    fn count(&self) -> usize {
        self.acked.lock().len()
    }

    /// Everything that was acknowledged.
    async fn finish(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        std::mem::take(&mut *self.acked.lock())
    }
}

fn missing(server: &Postgres, acked: &[String]) -> Vec<String> {
    let have = server.sql("SELECT key FROM state");
    let have: std::collections::HashSet<&str> = have.lines().collect();
    acked.iter().filter(|k| !have.contains(k.as_str())).cloned().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_acknowledged_write_is_lost_when_the_server_crashes() {
    let Some(mut server) = PostgresOptions::new().durable().start() else { return };
    let store = store(&server, "v2", &[("timeout", "2s")]).await;
    let ledger = Ledger::start(&store, 8, true);
    let wanted = if std::env::var("MECHA_TEST_LONG").is_ok_and(|v| v == "1") { 20_000 } else { 1_000 };
    let mut crashes = 0;
    loop {
        let before = ledger.count();
        until("writes are acknowledged", async || ledger.count() >= before + wanted / 6).await;
        if ledger.count() >= wanted && crashes >= 5 {
            break;
        }
        server.kill();
        crashes += 1;
        server.restart();
        let back = Instant::now();
        let before = ledger.count();
        until("it goes on after the crash", async || ledger.count() > before).await;
        assert!(back.elapsed() < Duration::from_secs(30), "back after {:?}", back.elapsed());
    }
    let slowest = Duration::from_millis(ledger.slowest.load(Ordering::Relaxed));
    let acked = ledger.finish().await;
    assert!(acked.len() >= wanted && crashes >= 5);
    assert_eq!(missing(&server, &acked), Vec::<String>::new());
    assert!(slowest < Duration::from_secs(2) + GRACE, "a caller waited {slowest:?}");
    // Both halves of a transaction, or none.
    let torn = "SELECT count(*) FROM state b WHERE key LIKE '%-b' AND NOT EXISTS \
                (SELECT 1 FROM state a WHERE a.key || '-b' = b.key)";
    assert_eq!(server.sql(torn), "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conditional_writes_neither_vanish_nor_count_twice() {
    let Some(mut server) = PostgresOptions::new().durable().start() else { return };
    let store = store(&server, "v2", &[("timeout", "2s")]).await;
    let md = Metadata::new();
    store.set(put(&md, "counter", "0")).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (acked, unknown) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
            let (acked, unknown) = (Arc::clone(&acked), Arc::clone(&unknown));
            tokio::spawn(async move {
                let md = Metadata::new();
                while !stop.load(Ordering::Relaxed) {
                    let Ok(Some(item)) = get(&store, "counter").await else { continue };
                    let next = String::from_utf8(item.value.to_vec()).unwrap().parse::<u32>().unwrap() + 1;
                    let next = next.to_string();
                    let set = SetState { etag: item.etag.as_deref(), ..put(&md, "counter", &next) };
                    match store.set(set).await {
                        Ok(()) => acked.fetch_add(1, Ordering::Relaxed),
                        Err(e) if e.kind() == ErrorKind::Conflict => 0,
                        Err(_) => unknown.fetch_add(1, Ordering::Relaxed),
                    };
                }
            })
        })
        .collect();
    for _ in 0..4 {
        let before = acked.load(Ordering::Relaxed);
        until("increments are acknowledged", async || acked.load(Ordering::Relaxed) > before + 20).await;
        server.kill();
        server.restart();
    }
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    let value: u32 = text(&store, "counter").await.unwrap().parse().unwrap();
    let (acked, unknown) = (acked.load(Ordering::Relaxed), unknown.load(Ordering::Relaxed));
    assert!((acked..=acked + unknown).contains(&value), "{value} after {acked} acknowledged and {unknown} unknown");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_server_is_gone_callers_get_clear_errors_in_time() {
    let Some(mut server) = PostgresOptions::new().durable().start() else { return };
    let store = store(&server, "v2", &[("timeout", "1s")]).await;
    let md = Metadata::new();
    store.set(put(&md, "k", "1")).await.unwrap();
    server.kill();
    for _ in 0..3 {
        let started = Instant::now();
        let e = store.set(put(&md, "k", "2")).await.unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(1) + GRACE, "{:?}", started.elapsed());
        assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
        assert!(store.ping().await.is_err());
    }
    server.restart();
    let back = Instant::now();
    until("reads work again", async || get(&store, "k").await.is_ok()).await;
    assert!(back.elapsed() < Duration::from_secs(30));
    assert_eq!(text(&store, "k").await.unwrap(), "1");
}

/// A restart that is short enough is not noticed by callers.
#[tokio::test(flavor = "multi_thread")]
async fn a_short_absence_is_ridden_out() {
    let Some(server) = Postgres::start() else { return };
    let (port, hung, listening) = proxy(server.port(), 0).await;
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
    let store = open("v2", &[("url", &url)]).await.unwrap();
    store.set(put(&Metadata::new(), "k", "1")).await.unwrap();
    listening.abort();
    until("connections are refused", async || TcpStream::connect(("127.0.0.1", port)).await.is_err()).await;
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mechad'");
    let call = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.set(put(&Metadata::new(), "k", "2")).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!call.is_finished());
    let _again = proxy(server.port(), port).await;
    call.await.unwrap().unwrap();
    drop(hung);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_holds_nobody_longer_than_the_deadline() {
    let Some(server) = Postgres::start() else { return };
    let store = store(&server, "v2", &[("timeout", "1s")]).await;
    let md = Metadata::new();
    store.set(put(&md, "k", "1")).await.unwrap();
    server.freeze();
    let started = Instant::now();
    let calls: Vec<_> = (0..32)
        .map(|i| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let md = Metadata::new();
                let key = format!("k{i}");
                let outcome =
                    if i % 2 == 0 { store.set(put(&md, &key, "1")).await } else { get(&store, &key).await.map(|_| ()) };
                outcome.unwrap_err().kind()
            })
        })
        .collect();
    for call in calls {
        assert!(matches!(call.await.unwrap(), ErrorKind::Timeout | ErrorKind::Unavailable));
    }
    assert!(started.elapsed() < Duration::from_secs(1) + GRACE, "{:?}", started.elapsed());
    server.thaw();
    let back = Instant::now();
    until("it works again", async || text(&store, "k").await.as_deref() == Some("1")).await;
    assert!(back.elapsed() < Duration::from_secs(30), "{:?}", back.elapsed());
}

/// An administrator, or a failover, ends sessions again and again: no caller sees it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn terminated_sessions_are_replaced_without_an_error() {
    let Some(server) = Postgres::start() else { return };
    let store = store(&server, "v2", &[("maxConns", "4")]).await;
    let done = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = (0..8)
        .map(|writer| {
            let (store, done) = (Arc::clone(&store), Arc::clone(&done));
            tokio::spawn(async move {
                let md = Metadata::new();
                let mut count = 0;
                while !done.load(Ordering::Relaxed) {
                    let (key, second) = (format!("w{writer}-{count}"), format!("x{writer}-{count}"));
                    store.set(put(&md, &key, "1")).await.unwrap();
                    assert!(get(&store, &key).await.unwrap().is_some());
                    let ops = vec![TransactOp::Set(put(&md, &key, "2")), TransactOp::Set(put(&md, &second, "2"))];
                    store.transact().unwrap().transact(ops, &md).await.unwrap();
                    count += 1;
                }
                count
            })
        })
        .collect();
    for _ in 0..20 {
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mechad'");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    done.store(true, Ordering::Relaxed);
    for task in tasks {
        assert!(task.await.unwrap() > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_callers_than_connections_all_get_their_turn() {
    let Some(server) = PostgresOptions::new().set("max_connections", "5").start() else { return };
    let store = store(&server, "v2", &[("maxConns", "20")]).await;
    let calls: Vec<_> = (0..200)
        .map(|i| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.set(put(&Metadata::new(), &format!("k{i}"), "1")).await })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
}

/// A session that does nothing.
async fn occupy(server: &Postgres) -> TcpStream {
    let body = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let mut socket = TcpStream::connect(("127.0.0.1", server.port())).await.unwrap();
        socket.write_u32(body.len() as u32 + 4).await.unwrap();
        socket.write_all(body).await.unwrap();
        if socket.read_u8().await.is_ok_and(|kind| kind == b'R') {
            return socket;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no session is to be had");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_free_connection_is_an_error_in_time() {
    let Some(server) = PostgresOptions::new().set("max_connections", "5").start() else { return };
    let store = store(&server, "v2", &[("timeout", "1s")]).await;
    let md = Metadata::new();
    let mut others = vec![occupy(&server).await, occupy(&server).await, occupy(&server).await];
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mechad'");
    others.extend([occupy(&server).await, occupy(&server).await]);
    let started = Instant::now();
    let e = store.set(put(&md, "k", "1")).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(1) + GRACE, "{:?}", started.elapsed());
    assert_eq!(e.kind(), ErrorKind::Unavailable);
    // Said as soon as the server has answered, which it may do after the caller's second.
    until("the reason is told", async || {
        store.set(put(&md, "k", "1")).await.unwrap_err().to_string().contains("no connection to spare")
    })
    .await;
    drop(others);
    until("it works again", async || store.set(put(&md, "k", "1")).await.is_ok()).await;
}

/// What a demoted primary says; it is told again once it takes writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_no_writes_is_left_and_found_again() {
    let Some(server) = Postgres::start() else { return };
    let store = store(&server, "v2", &[("timeout", "10s"), ("queryExecMode", "exec")]).await;
    let md = Metadata::new();
    store.set(put(&md, "k", "1")).await.unwrap();
    let sessions =
        "SELECT string_agg(pid::text, ',' ORDER BY pid) FROM pg_stat_activity WHERE application_name = 'mechad'";
    let before = server.sql(sessions);
    server.sql("ALTER SYSTEM SET default_transaction_read_only = on");
    server.sql("SELECT pg_reload_conf()");
    until("the setting is in force", async || server.sql("SHOW default_transaction_read_only") == "on").await;
    let call = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.set(put(&Metadata::new(), "k", "2")).await }
    });
    until("the old session is gone", async || server.sql(sessions) != before).await;
    assert!(!call.is_finished());
    server.sql("ALTER SYSTEM RESET default_transaction_read_only");
    server.sql("SELECT pg_reload_conf()");
    call.await.unwrap().unwrap();
    assert_eq!(text(&store, "k").await.unwrap(), "2");
}

/// Callers that go away must not use the pool up, nor leave half an answer to the next one.
#[tokio::test(flavor = "multi_thread")]
async fn dropped_calls_leave_the_pool_whole() {
    let Some(server) = Postgres::start() else { return };
    let store = store(&server, "v2", &[("maxConns", "2")]).await;
    let md = Metadata::new();
    for i in 0..100 {
        let key = format!("k{}", i % 7);
        let within = Duration::from_micros(i * 37);
        let _ = tokio::time::timeout(within, store.set(put(&md, &key, "1"))).await;
        let _ = tokio::time::timeout(within, get(&store, &key)).await;
        let ops = vec![TransactOp::Set(put(&md, "t", "1")), TransactOp::Set(put(&md, "u", "1"))];
        let _ = tokio::time::timeout(within, store.transact().unwrap().transact(ops, &md)).await;
    }
    for i in 0..7 {
        let (key, value) = (format!("k{i}"), i.to_string());
        store.set(put(&md, &key, &value)).await.unwrap();
        assert_eq!(text(&store, &key).await.unwrap(), value, "an answer went to the wrong call");
    }
    until("abandoned sessions are gone", async || {
        let count: u32 =
            server.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mechad'").parse().unwrap();
        count <= 2
    })
    .await;
}

/// Forwards connections; those that exist when it is told to hang go silent for ever.
/// Its port may be given; ends with the task.
async fn proxy(to: u16, port: u16) -> (u16, Arc<AtomicU32>, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let hung = Arc::new(AtomicU32::new(0));
    let generation = Arc::clone(&hung);
    let listening = tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let (born, generation) = (generation.load(Ordering::SeqCst), Arc::clone(&generation));
            tokio::spawn(async move {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else { return };
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let back = Arc::clone(&generation);
                let up = async move {
                    let mut buffer = [0; 8192];
                    while let Ok(n @ 1..) = from_client.read(&mut buffer).await {
                        if generation.load(Ordering::SeqCst) == born && to_server.write_all(&buffer[..n]).await.is_err()
                        {
                            break;
                        }
                    }
                };
                let down = async move {
                    let mut buffer = [0; 8192];
                    while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
                        if back.load(Ordering::SeqCst) == born && to_client.write_all(&buffer[..n]).await.is_err() {
                            break;
                        }
                    }
                };
                tokio::select! { () = up => {}, () = down => {} }
            });
        }
    });
    (port, hung, listening)
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_connections_are_found() {
    let Some(server) = Postgres::start() else { return };
    let (port, hung, _listening) = proxy(server.port(), 0).await;
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
    let store = open("v2", &[("url", &url)]).await.unwrap();
    let md = Metadata::new();
    store.set(put(&md, "k", "1")).await.unwrap();
    // In use a moment ago: trusted, so the call itself finds out.
    hung.fetch_add(1, Ordering::SeqCst);
    let started = Instant::now();
    assert_eq!(text(&store, "k").await.unwrap(), "1");
    assert!(started.elapsed() < Duration::from_secs(15), "found after {:?}", started.elapsed());
    // Idle for a while: asked before it is lent, also for a write that may not be repeated.
    tokio::time::sleep(Duration::from_secs(6)).await;
    hung.fetch_add(1, Ordering::SeqCst);
    let started = Instant::now();
    let etag = get(&store, "k").await.unwrap().unwrap().etag.unwrap();
    store.set(SetState { etag: Some(&etag), ..put(&md, "k", "2") }).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(5), "found after {:?}", started.elapsed());
}
