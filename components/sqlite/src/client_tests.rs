use std::io::{Seek, SeekFrom, Write};

use mecha_components_api::ErrorKind;
use rusqlite::ffi;
use tempfile::TempDir;

use super::*;

fn config(dir: &TempDir) -> DbConfig {
    DbConfig {
        uri: format!("file:{}", dir.path().join("x.db").display()),
        memory: false,
        alone: false,
        solo: false,
        wal: true,
        read_only: false,
        busy_timeout: Duration::from_millis(100),
        timeout: Duration::from_secs(5),
        pragmas: Vec::new(),
    }
}

fn writer(dir: &TempDir) -> Writer {
    let opener = Opener { config: config(dir), cache_kib: WRITER_CACHE_KIB, query_only: false };
    let mut writer =
        Writer { opener, db: None, queue: Arc::new(Queue::new()), upkeep: None, suspect: false, refusal: None };
    let setup: Setup = Box::new(|db| {
        db.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)")?;
        Ok(())
    });
    writer.start(&setup).unwrap();
    writer
}

/// An insert on its way, and where its answer comes.
fn insert(a: i64) -> (Entry, oneshot::Receiver<Result<usize>>) {
    let (job, answer) = Call::boxed(move |db| Ok(db.execute("INSERT INTO t VALUES (?1, ?2)", (a, "x".repeat(5000)))?));
    (Entry { job, deadline: Instant::now() + Duration::from_secs(5), weight: 0, compound: false, writes: true }, answer)
}

fn run_one(writer: &mut Writer, a: i64) -> Result<usize> {
    let (entry, mut answer) = insert(a);
    writer.commit(vec![entry]);
    answer.try_recv().unwrap()
}

fn break_it(writer: &mut Writer) {
    let error = rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_IOERR_FSYNC), None);
    let (entry, mut answer) = insert(99);
    writer.fail(vec![entry], &Whole { error, undone: false });
    let e = answer.try_recv().unwrap().unwrap_err();
    assert_eq!((e.kind(), e.retry()), (ErrorKind::Unavailable, Retry::IfIdempotent), "the outcome is unknown");
}

#[test]
fn after_a_failed_sync_the_file_is_opened_again_and_checked() {
    let dir = TempDir::new().unwrap();
    let mut writer = writer(&dir);
    run_one(&mut writer, 1).unwrap();
    break_it(&mut writer);
    assert!(writer.db.is_none() && writer.suspect);
    run_one(&mut writer, 2).unwrap();
    assert!(!writer.suspect);
}

#[test]
fn nothing_is_acknowledged_on_a_damaged_file() {
    let dir = TempDir::new().unwrap();
    let mut writer = writer(&dir);
    for a in 0..50 {
        run_one(&mut writer, a).unwrap();
    }
    break_it(&mut writer);
    // The last connection is gone, so the log was folded in: damage the pages.
    let path = dir.path().join("x.db");
    let whole = std::fs::read(&path).unwrap();
    let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    for page in 2..20 {
        file.seek(SeekFrom::Start(page * 4096)).unwrap();
        file.write_all(&[0xa5; 4096]).unwrap();
    }
    drop(file);
    let e = run_one(&mut writer, 100).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Internal, "{e}");
    assert!(e.to_string().contains("damaged"), "{e}");
    // Restored, it works again after the pause.
    std::fs::write(&path, whole).unwrap();
    assert!(run_one(&mut writer, 100).is_err(), "not tried again at once");
    writer.refusal = None;
    run_one(&mut writer, 100).unwrap();
}

#[test]
fn work_whose_caller_left_is_not_done() {
    let dir = TempDir::new().unwrap();
    let mut writer = writer(&dir);
    let (entry, answer) = insert(1);
    drop(answer);
    let (other, mut kept) = insert(2);
    writer.commit(vec![entry, other]);
    kept.try_recv().unwrap().unwrap();
    let rows: Vec<i64> = {
        let db = writer.db.as_ref().unwrap();
        let mut statement = db.prepare("SELECT a FROM t").unwrap();
        statement.query_map([], |r| r.get(0)).unwrap().map(std::result::Result::unwrap).collect()
    };
    assert_eq!(rows, [2]);
}

#[test]
fn work_that_waited_too_long_is_not_started() {
    let dir = TempDir::new().unwrap();
    let mut writer = writer(&dir);
    let (mut entry, mut answer) = insert(1);
    entry.deadline = Instant::now();
    writer.commit(vec![entry]);
    let e = answer.try_recv().unwrap().unwrap_err();
    assert_eq!((e.kind(), e.retry()), (ErrorKind::Timeout, Retry::Always));
}

#[test]
fn batches_are_bounded_by_count_and_weight() {
    let queue = Queue::new();
    let mut out = Vec::new();
    assert_eq!(queue.take(&mut out, 10, 10, Some(Duration::ZERO)), Taken::Nothing);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for a in 0..5 {
        let (mut entry, _) = insert(a);
        entry.weight = 4;
        runtime.block_on(queue.push(entry)).unwrap();
    }
    queue.take(&mut out, 1, usize::MAX, None);
    assert_eq!(out.len(), 1);
    queue.take(&mut out, 10, 5, None);
    assert_eq!(out.len(), 3, "the one that goes over the weight is the last");
    queue.close();
    assert_eq!(runtime.block_on(queue.push(insert(9).0)).unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(queue.take(&mut out, 10, usize::MAX, None), Taken::Jobs, "what waits is still done");
    assert_eq!(queue.take(&mut out, 10, usize::MAX, None), Taken::Closed);
}
