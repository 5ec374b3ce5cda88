use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use mecha_components_api::ErrorKind;
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::*;

#[derive(Debug)]
struct Hand(AtomicU64);

impl Clock for Hand {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.0.load(Ordering::SeqCst))
    }
}

async fn open(path: &std::path::Path, clock: Option<Arc<dyn Clock>>) -> Arc<dyn NameResolver> {
    let md: Metadata = [("connectionString", path.to_str().unwrap())].into_iter().collect();
    let mut cx = BuildCx::for_app("app", "nr", ".");
    if let Some(clock) = clock {
        cx.clock = clock;
    }
    prepare(&md, "v1").unwrap_or_else(|e| panic!("{e}")).build(&cx).await.unwrap()
}

fn instance(app: &str, host: &str, port: u16) -> Instance {
    Instance { app_id: app.into(), namespace: "ns".into(), host: host.into(), port, instance_id: "i".into() }
}

fn target(app_id: &str) -> Target<'_> {
    Target { app_id, namespace: "other" }
}

struct Announced {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<()>>,
}

async fn announce(resolver: &Arc<dyn NameResolver>, me: Instance) -> Announced {
    let (up, ready) = oneshot::channel();
    let stop = CancellationToken::new();
    let (r, s) = (Arc::clone(resolver), stop.clone());
    let task = tokio::spawn(async move { r.announce(me, Box::new(move || up.send(()).unwrap()), s).await });
    ready.await.unwrap();
    Announced { stop, task }
}

#[tokio::test]
async fn announced_instances_are_found_until_they_stop() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("nr.db");
    let (one, two) = (open(&path, None).await, open(&path, None).await);
    let e = two.resolve(target("shop")).await.unwrap_err();
    assert_eq!((e.kind(), e.message()), (ErrorKind::NotFound, "no host found with the given ID"));

    let first = announce(&one, instance("shop", "10.0.0.1", 50002)).await;
    let second = announce(&one, instance("shop", "::1", 50003)).await;
    let found = two.resolve(target("shop")).await.unwrap();
    assert_eq!(found.iter().map(AsRef::as_ref).collect::<Vec<&str>>(), ["10.0.0.1:50002", "[::1]:50003"]);

    second.stop.cancel();
    second.task.await.unwrap().unwrap();
    assert_eq!(two.resolve(target("shop")).await.unwrap().len(), 1);
    first.stop.cancel();
    first.task.await.unwrap().unwrap();
    assert_eq!(two.resolve(target("shop")).await.unwrap_err().kind(), ErrorKind::NotFound);

    let db = Connection::open(&path).unwrap();
    let level: String =
        db.query_row("SELECT value FROM metadata WHERE key = 'nr-migrations'", [], |r| r.get(0)).unwrap();
    assert_eq!(level, "1");
}

#[tokio::test]
async fn rows_older_than_the_update_interval_are_dead() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("nr.db");
    let clock = Arc::new(Hand(AtomicU64::new(1_700_000_000)));
    let resolver = open(&path, Some(clock.clone() as Arc<dyn Clock>)).await;
    let announced = announce(&resolver, instance("shop", "127.0.0.1", 1)).await;
    clock.0.fetch_add(4, Ordering::SeqCst);
    assert!(resolver.resolve(target("shop")).await.is_ok());
    clock.0.fetch_add(1, Ordering::SeqCst);
    assert_eq!(resolver.resolve(target("shop")).await.unwrap_err().kind(), ErrorKind::NotFound);
    // The renewal, four seconds after the registration, brings it back.
    let deadline = Instant::now() + Duration::from_secs(20);
    while resolver.resolve(target("shop")).await.is_err() {
        assert!(Instant::now() < deadline, "never renewed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    announced.stop.cancel();
    announced.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_new_process_takes_over_an_address() {
    let dir = TempDir::new().unwrap();
    let resolver = open(&dir.path().join("nr.db"), None).await;
    let old = announce(&resolver, instance("old", "127.0.0.1", 7)).await;
    old.task.abort();
    let new = announce(&resolver, instance("new", "127.0.0.1", 7)).await;
    assert!(resolver.resolve(target("old")).await.is_err());
    assert_eq!(resolver.resolve(target("new")).await.unwrap()[0].as_ref(), "127.0.0.1:7");
    new.stop.cancel();
    new.task.await.unwrap().unwrap();
}

#[test]
fn intervals_are_checked() {
    let refused = |pairs: &[(&str, &str)]| {
        let md: Metadata = pairs.iter().copied().chain([("connectionString", "x")]).collect();
        prepare(&md, "v1").err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert!(refused(&[("updateInterval", "1500ms"), ("timeout", "1s")]).contains("fractions of seconds"));
    assert!(refused(&[("updateInterval", "3s"), ("timeout", "2500ms")]).contains("at least 1s greater than timeout"));
    assert_eq!(refused(&[("updateInterval", "10"), ("timeout", "2")]), "");
}
