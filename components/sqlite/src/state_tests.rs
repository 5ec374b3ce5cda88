use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, UNIX_EPOCH};

use mecha_components_api::{Consistency, ErrorKind, Lookup, Registry};
use tempfile::TempDir;

use super::*;

/// A clock that stands where it is put, in milliseconds.
#[derive(Debug)]
struct Hand(AtomicU64);

impl Clock for Hand {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0.load(Ordering::SeqCst))
    }
}

async fn open_with(pairs: &[(&str, &str)], clock: Option<Arc<dyn Clock>>) -> Result<Arc<dyn StateStore>> {
    let md: Metadata = pairs.iter().copied().collect();
    let mut registry = Registry::new();
    crate::register(&mut registry);
    let Lookup::Found(registration) = Registry::find(&registry.state, "state.sqlite3", "v1") else {
        panic!("not registered")
    };
    let prepared = (registration.prepare)(&md, "v1").map_err(|e| Error::invalid(e.to_string()))?;
    let mut cx = BuildCx::for_app("app", "store", ".");
    if let Some(clock) = clock {
        cx.clock = clock;
    }
    prepared.build(&cx).await
}

async fn open(path: &Path) -> Arc<dyn StateStore> {
    open_with(&[("connectionString", path.to_str().unwrap())], None).await.unwrap()
}

fn put<'a>(md: &'a Metadata, key: &'a str, value: &'static str) -> SetState<'a> {
    SetState {
        key,
        value: Value::Json(Bytes::from_static(value.as_bytes())),
        etag: None,
        concurrency: Concurrency::LastWrite,
        consistency: Consistency::Eventual,
        ttl: None,
        content_type: None,
        metadata: md,
    }
}

fn at<'a>(md: &'a Metadata, key: &'a str) -> GetState<'a> {
    GetState { key, consistency: Consistency::Eventual, metadata: md }
}

async fn read(store: &Arc<dyn StateStore>, key: &str) -> Option<Bytes> {
    store.get(at(&Metadata::new(), key)).await.unwrap().map(|i| i.value)
}

fn file(dir: &TempDir) -> std::path::PathBuf {
    dir.path().join("state.db")
}

#[tokio::test]
async fn the_table_is_the_documented_one() {
    let dir = TempDir::new().unwrap();
    let store = open(&file(&dir)).await;
    let md = Metadata::new();
    store.set(put(&md, "text", r#"{"b": 1,"a":9007199254740993}"#)).await.unwrap();
    let bytes = SetState { value: Value::Binary(Bytes::from_static(b"\x00\xffab")), ..put(&md, "bytes", "") };
    store.set(SetState { ttl: Some(Ttl::After(Duration::from_secs(60))), ..bytes }).await.unwrap();

    let db = Connection::open(file(&dir)).unwrap();
    let row = |key: &str| {
        db.query_row("SELECT * FROM state WHERE key = ?1", [key], |r| {
            let (value, binary): (String, i64) = (r.get("value")?, r.get("is_binary")?);
            let (etag, expires): (String, Option<String>) = (r.get("etag")?, r.get("expiration_time")?);
            Ok((value, binary, etag, expires))
        })
        .unwrap()
    };
    let (value, binary, etag, expires) = row("text");
    assert_eq!((value.as_str(), binary, expires), (r#"{"b": 1,"a":9007199254740993}"#, 0, None));
    assert_eq!(etag, Uuid::parse_str(&etag).unwrap().hyphenated().to_string());
    let (value, binary, _, expires) = row("bytes");
    assert_eq!((value.as_str(), binary), ("AP9hYg==", 1));
    let left: i64 = db.query_row("SELECT unixepoch(?1) - unixepoch()", [expires], |r| r.get(0)).unwrap();
    assert!((58..=60).contains(&left), "{left}");

    let columns: Vec<String> = db
        .prepare("SELECT name || ' ' || type || ' ' || \"notnull\" || ' ' || pk FROM pragma_table_info('state')")
        .unwrap()
        .query_map([], |r| r.get(0))
        .unwrap()
        .map(std::result::Result::unwrap)
        .collect();
    assert_eq!(
        columns,
        [
            "key TEXT 1 1",
            "value TEXT 1 0",
            "is_binary BOOLEAN 1 0",
            "etag TEXT 1 0",
            "expiration_time TIMESTAMP 0 0",
            "update_time TIMESTAMP 1 0"
        ]
    );
    let rows: Vec<(String, String)> = db
        .prepare("SELECT key, value FROM metadata")
        .unwrap()
        .query_map([], |r| Ok((r.get(0)?, r.get(1)?)))
        .unwrap()
        .map(std::result::Result::unwrap)
        .collect();
    assert_eq!(rows, [("migrations".to_owned(), "1".to_owned())]);
    let mode: String = db.query_row("PRAGMA journal_mode", [], |r| r.get(0)).unwrap();
    assert_eq!(mode, "wal");
}

#[tokio::test]
async fn reads_a_file_of_the_incumbent() {
    let dir = TempDir::new().unwrap();
    let db = Connection::open(file(&dir)).unwrap();
    db.execute_batch(
        "PRAGMA journal_mode(WAL);
         CREATE TABLE metadata (key text NOT NULL PRIMARY KEY, value text NOT NULL);
         INSERT INTO metadata VALUES ('migrations', '1');
         CREATE TABLE state (key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL, is_binary BOOLEAN NOT NULL, etag TEXT NOT NULL,
            expiration_time TIMESTAMP DEFAULT NULL, update_time TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP);
         INSERT INTO state (key, value, is_binary, etag) VALUES ('app||j', '\"x\"', 0, 'e1'), ('app||b', 'aGk=', 1, 'e2');
         INSERT INTO state (key, value, is_binary, etag, expiration_time) VALUES
            ('app||dead', '1', 0, 'e3', DATETIME(CURRENT_TIMESTAMP, '-1 seconds')),
            ('app||live', '2', 0, 'e4', DATETIME(CURRENT_TIMESTAMP, '+100 seconds'));",
    )
    .unwrap();
    let store = open(&file(&dir)).await;
    assert_eq!(read(&store, "app||j").await.unwrap(), "\"x\"");
    assert_eq!(read(&store, "app||b").await.unwrap(), "hi");
    assert_eq!(read(&store, "app||dead").await, None);
    let live = store.get(at(&Metadata::new(), "app||live")).await.unwrap().unwrap();
    assert_eq!(live.etag.as_deref(), Some("e4"));
    let left = live.expires.unwrap().duration_since(SystemTime::now()).unwrap();
    assert!(left > Duration::from_secs(90) && left <= Duration::from_secs(100), "{left:?}");
    // The incumbent's own condition on what we write.
    let md = Metadata::new();
    store.set(SetState { ttl: Some(Ttl::After(Duration::from_secs(30))), ..put(&md, "app||ours", "1") }).await.unwrap();
    let seen: bool = db
        .query_row("SELECT expiration_time > CURRENT_TIMESTAMP FROM state WHERE key = 'app||ours'", [], |r| r.get(0))
        .unwrap();
    assert!(seen);
}

/// They share the row that counts the steps.
#[tokio::test]
async fn every_table_of_a_file_is_made() {
    let dir = TempDir::new().unwrap();
    let path = file(&dir);
    let md = Metadata::new();
    for table in ["state", "Other", "other"] {
        let pairs = [("connectionString", path.to_str().unwrap()), ("tableName", table)];
        let store = open_with(&pairs, None).await.unwrap();
        assert_eq!(read(&store, "k").await.is_some(), table == "other", "{table} is the table of an earlier one");
        store.set(put(&md, "k", "1")).await.unwrap();
    }
    // One that a newer program brought further keeps its number.
    let db = Connection::open(&path).unwrap();
    db.execute("UPDATE metadata SET value = '7' WHERE key = 'migrations'", []).unwrap();
    let pairs = [("connectionString", path.to_str().unwrap()), ("tableName", "third")];
    open_with(&pairs, None).await.unwrap().set(put(&md, "k", "1")).await.unwrap();
    let level: String = db.query_row("SELECT value FROM metadata WHERE key = 'migrations'", [], |r| r.get(0)).unwrap();
    assert_eq!(level, "7");
}

#[tokio::test]
async fn a_life_time_is_exact_and_the_sweep_deletes() {
    let dir = TempDir::new().unwrap();
    let clock = Arc::new(Hand(AtomicU64::new(1_700_000_000_900)));
    let path = file(&dir);
    let pairs = [("connectionString", path.to_str().unwrap()), ("cleanupInterval", "10ms")];
    let store = open_with(&pairs, Some(clock.clone() as Arc<dyn Clock>)).await.unwrap();
    let md = Metadata::new();
    store.set(SetState { ttl: Some(Ttl::After(Duration::from_secs(1))), ..put(&md, "k", "1") }).await.unwrap();
    clock.0.fetch_add(999, Ordering::SeqCst);
    assert!(read(&store, "k").await.is_some());
    clock.0.fetch_add(1, Ordering::SeqCst);
    assert_eq!(read(&store, "k").await, None);
    // A new first write may take the place of an expired row.
    store.set(SetState { concurrency: Concurrency::FirstWrite, ..put(&md, "k", "2") }).await.unwrap();
    assert_eq!(read(&store, "k").await.unwrap(), "2");

    store.set(SetState { ttl: Some(Ttl::After(Duration::from_secs(1))), ..put(&md, "gone", "1") }).await.unwrap();
    clock.0.fetch_add(5_000, Ordering::SeqCst);
    let db = Connection::open(&path).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let keys: String = db.query_row("SELECT group_concat(key) FROM state", [], |r| r.get(0)).unwrap();
        if keys == "k" {
            break;
        }
        assert!(Instant::now() < deadline, "still there: {keys}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let rows: i64 = db.query_row("SELECT count(*) FROM metadata WHERE key = 'last-cleanup'", [], |r| r.get(0)).unwrap();
    assert_eq!(rows, 1);
}

#[tokio::test]
async fn one_refusal_in_a_group_does_not_touch_the_others() {
    let dir = TempDir::new().unwrap();
    let store = open(&file(&dir)).await;
    let md = Metadata::new();
    // A foreign lock makes all of them wait, so that they share one commit.
    let other = Connection::open(file(&dir)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let work = async {
        let set = |key: &'static str| store.set(put(&md, key, "1"));
        let stale = store.set(SetState { etag: Some("stale"), ..put(&md, "c", "1") });
        let transact = store.transact().unwrap();
        let ops = vec![
            TransactOp::Set(put(&md, "d", "1")),
            TransactOp::Set(SetState { etag: Some("stale"), ..put(&md, "e", "1") }),
        ];
        tokio::join!(set("a"), set("b"), stale, transact.transact(ops, &md), set("f"))
    };
    let release = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        other.execute_batch("COMMIT").unwrap();
    };
    let ((a, b, c, de, f), ()) = tokio::join!(work, release);
    assert!(a.is_ok() && b.is_ok() && f.is_ok());
    assert_eq!(c.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(de.unwrap_err().kind(), ErrorKind::Conflict);
    assert!(read(&store, "a").await.is_some() && read(&store, "f").await.is_some());
    assert_eq!((read(&store, "d").await, read(&store, "e").await), (None, None));
}

#[tokio::test]
async fn a_foreign_lock_ends_as_unavailable_never_as_conflict() {
    let dir = TempDir::new().unwrap();
    let path = file(&dir);
    let pairs = [("connectionString", path.to_str().unwrap()), ("timeout", "1s"), ("busyTimeout", "50ms")];
    let store = open_with(&pairs, None).await.unwrap();
    let md = Metadata::new();
    store.set(put(&md, "k", "1")).await.unwrap();
    let etag = store.get(at(&md, "k")).await.unwrap().unwrap().etag.unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let e = store.set(SetState { etag: Some(&etag), ..put(&md, "k", "2") }).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
    assert_eq!(read(&store, "k").await.unwrap(), "1", "reads go on");
    other.execute_batch("ROLLBACK").unwrap();
    store.set(SetState { etag: Some(&etag), ..put(&md, "k", "2") }).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_keeps_the_old_value() {
    let dir = TempDir::new().unwrap();
    let path = file(&dir);
    // SQLite answers SQLITE_FULL beyond this number of pages, as on a full disk.
    let uri = format!("{}?_pragma=max_page_count(40)", path.to_str().unwrap());
    let store = open_with(&[("connectionString", &uri)], None).await.unwrap();
    let md = Metadata::new();
    store.set(put(&md, "k", "1")).await.unwrap();
    let large = Value::Json(Bytes::from(format!("\"{}\"", "x".repeat(400_000))));
    let (big, small) =
        tokio::join!(store.set(SetState { value: large.clone(), ..put(&md, "k", "") }), store.set(put(&md, "s", "1")));
    let e = big.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable);
    assert!(e.message().contains("full"), "{e}");
    small.unwrap();
    assert_eq!(read(&store, "k").await.unwrap(), "1");
    store.set(put(&md, "k", "2")).await.unwrap();
    assert_eq!(read(&store, "k").await.unwrap(), "2");
}

#[tokio::test]
async fn two_processes_may_share_a_file() {
    let dir = TempDir::new().unwrap();
    let path = file(&dir);
    let (one, two) = tokio::join!(open(&path), open(&path));
    let md = Metadata::new();
    let write = |store: Arc<dyn StateStore>, name: &'static str| async move {
        let md = Metadata::new();
        for i in 0..100 {
            store.set(put(&md, &format!("{name}{i}"), "1")).await.unwrap();
        }
    };
    tokio::join!(write(one.clone(), "a"), write(two.clone(), "b"));
    let page = one.list().unwrap().keys("", 1000, None).await.unwrap();
    assert_eq!(page.keys.len(), 200);
    one.set(put(&md, "shared", "1")).await.unwrap();
    assert_eq!(read(&two, "shared").await.unwrap(), "1");
}

#[tokio::test]
async fn what_was_acknowledged_survives_and_the_log_is_folded_in_on_close() {
    let dir = TempDir::new().unwrap();
    let store = open(&file(&dir)).await;
    let md = Metadata::new();
    store.set(put(&md, "k", "1")).await.unwrap();
    store.close().await;
    store.close().await;
    let e = store.set(put(&md, "k", "2")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable);
    assert!(!dir.path().join("state.db-wal").exists());
    assert_eq!(read(&open(&file(&dir)).await, "k").await.unwrap(), "1");
}

#[tokio::test]
async fn a_dropped_call_leaves_the_store_usable() {
    let dir = TempDir::new().unwrap();
    let store = open(&file(&dir)).await;
    let md = Metadata::new();
    for i in 0..50 {
        let key = format!("k{i}");
        let call = store.set(put(&md, &key, "1"));
        let _ = tokio::time::timeout(Duration::from_micros(i * 10), call).await;
        let _ = tokio::time::timeout(Duration::from_micros(i * 10), store.get(at(&md, &key))).await;
    }
    store.set(put(&md, "last", "1")).await.unwrap();
    assert!(read(&store, "last").await.is_some());
}

#[tokio::test]
async fn memory_databases_are_private() {
    let one = open_with(&[("connectionString", ":memory:")], None).await.unwrap();
    let two = open_with(&[("connectionString", ":memory:")], None).await.unwrap();
    let md = Metadata::new();
    one.set(put(&md, "k", "1")).await.unwrap();
    assert!(read(&one, "k").await.is_some());
    assert!(read(&two, "k").await.is_none());
}

#[tokio::test]
async fn pages_of_keys() {
    let store = open_with(&[("connectionString", ":memory:")], None).await.unwrap();
    let md = Metadata::new();
    for key in ["a||1", "a||2", "a||3", "A||1", "b", "a|", "ü||1", "a%"] {
        store.set(put(&md, key, "1")).await.unwrap();
    }
    let list = store.list().unwrap();
    let first = list.keys("a||", 2, None).await.unwrap();
    assert_eq!(first.keys, ["a||1", "a||2"]);
    let second = list.keys("a||", 2, first.next.as_deref()).await.unwrap();
    assert_eq!((second.keys.as_slice(), second.next), (["a||3".to_owned()].as_slice(), None));
    assert_eq!(list.keys("ü", 9, None).await.unwrap().keys, ["ü||1"]);
}

#[test]
fn successors() {
    assert_eq!(successor("a||"), Some("a|}".into()));
    assert_eq!(successor("a\u{10FFFF}"), Some("b".into()));
    assert_eq!(successor("\u{D7FF}"), Some("\u{E000}".into()));
    assert_eq!(successor(""), None);
}

#[tokio::test]
async fn mistakes_at_start_are_clear() {
    let dir = TempDir::new().unwrap();
    let missing = dir.path().join("no/such/folder/x.db");
    let e = open_with(&[("connectionString", missing.to_str().unwrap())], None).await.unwrap_err();
    assert!(e.message().contains("check that its folder exists"), "{e}");
    let text = dir.path().join("text.db");
    std::fs::write(&text, "this is certainly not a database, but a text of some length".repeat(50)).unwrap();
    let e = open_with(&[("connectionString", text.to_str().unwrap())], None).await.unwrap_err();
    assert!(e.message().contains("not a SQLite database"), "{e}");
}

#[tokio::test]
async fn a_rollback_journal_works_too() {
    let dir = TempDir::new().unwrap();
    let path = file(&dir);
    let store = open_with(&[("connectionString", path.to_str().unwrap()), ("disableWAL", "true")], None).await.unwrap();
    let md = Metadata::new();
    let write = async {
        for _ in 0..50 {
            store.set(put(&md, "k", "1")).await.unwrap();
        }
    };
    let reads = async {
        for _ in 0..50 {
            store.get(at(&md, "k")).await.unwrap();
        }
    };
    tokio::join!(write, reads);
    assert!(!dir.path().join("state.db-wal").exists());
}
