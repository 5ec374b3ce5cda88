//! One database: a thread that writes with group commit, and threads that read.
//!
//! Writes that arrive while a commit is on its way to the disk share the next one, so
//! `synchronous=FULL` costs one sync per group and not per caller. An answer is given only
//! after the commit that holds it.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mecha_components_api::{Error, Result, Retry};
use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::{mpsc, oneshot};

use crate::config::DbConfig;
use crate::error::{Fault, classify, is_broken, is_busy};
use crate::queue::{Call, Entry, Queue, Taken, closed};

/// Operations in one commit, at most: bounds how long one caller waits for the others.
const GROUP: usize = 256;
/// Bytes of values in one commit, at most (one operation may be larger).
const GROUP_BYTES: usize = 8 * 1024 * 1024;
/// Two readers, so that a long listing does not hold up a look-up.
const READERS: usize = 2;
/// What SQLite and our closures need; the default of 2 MiB is not used up by far.
const STACK_BYTES: usize = 512 * 1024;
/// Page cache of the writer and of a reader. Small, because another process's or the writer's
/// commit empties a reader's cache anyway; the kernel's cache stays.
const WRITER_CACHE_KIB: u32 = 1024;
const READER_CACHE_KIB: u32 = 512;
/// The write-ahead log is cut back to this size after a checkpoint.
const WAL_KEPT_BYTES: u32 = 32 * 1024 * 1024;
/// Pause between two tries of a locked database: first and longest.
const PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// How much later than the thread's own deadline a caller gives up, so that the thread's
/// better-informed answer comes first.
const GRACE: Duration = Duration::from_millis(100);
/// Opening may take at least so long, however short calls must be: it happens once, and a
/// machine that is busy starting everything else is no reason to give up.
const SHORTEST_OPENING: Duration = Duration::from_secs(5);
/// Pause between two tries to open a database that broke; each may check the whole file.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);
/// Pause between two rounds of upkeep that has more to do.
const UPKEEP_STEP: Duration = Duration::from_millis(20);

/// Work on a fresh database before it is used: tables and migrations.
/// Runs again when somebody else held the database.
pub(crate) type Setup = Box<dyn Fn(&Connection) -> Result<(), Fault> + Send>;

/// One round of upkeep, see [`Upkeep::round`].
pub(crate) type Round = Box<dyn FnMut(&Connection) -> rusqlite::Result<bool> + Send>;

/// Work that comes back each period, on the writer's thread.
pub(crate) struct Upkeep {
    /// The period.
    pub(crate) every: Duration,
    /// One round in a bounded number of rows; true when there is more to do.
    pub(crate) round: Round,
}

/// The database as its component sees it.
pub(crate) struct Client {
    writer: Arc<Queue>,
    readers: Arc<Queue>,
    timeout: Duration,
    threads: Mutex<Threads>,
}

struct Threads {
    handles: Vec<JoinHandle<()>>,
    /// Closed once every thread has ended.
    alive: Option<mpsc::Receiver<()>>,
}

/// Held by a thread. When it ends, however it ends, nobody may wait for it.
struct Life {
    queue: Arc<Queue>,
    _alive: mpsc::Sender<()>,
}

/// What a thread needs to make its connection.
struct Opener {
    config: DbConfig,
    cache_kib: u32,
    query_only: bool,
}

struct Writer {
    opener: Opener,
    db: Option<Connection>,
    queue: Arc<Queue>,
    upkeep: Option<Upkeep>,
    /// The last connection ended with an I/O error: check the file before the next commit.
    suspect: bool,
    /// Opening it again failed: until when, and with what, calls are refused.
    refusal: Option<(Instant, Error)>,
}

/// The whole group failed.
struct Whole {
    error: rusqlite::Error,
    /// Rolled back for sure, so that each member may be tried alone.
    undone: bool,
}

impl Client {
    /// Opens the database, runs `setup` and starts the threads. They end with [`Client::close`] or on drop.
    pub(crate) async fn open(config: DbConfig, setup: Setup, upkeep: Option<Upkeep>) -> Result<Self> {
        let writer = Arc::new(Queue::new());
        let solo = config.solo;
        let readers = if solo { Arc::clone(&writer) } else { Arc::new(Queue::new()) };
        let timeout = config.timeout;
        let opening = timeout.max(SHORTEST_OPENING);
        let (life, alive) = mpsc::channel(1);
        let client = Self {
            writer: Arc::clone(&writer),
            readers: Arc::clone(&readers),
            timeout,
            threads: Mutex::new(Threads { handles: Vec::new(), alive: Some(alive) }),
        };

        let (ready, opened) = oneshot::channel();
        let opener = Opener { config: config.clone(), cache_kib: WRITER_CACHE_KIB, query_only: false };
        client.start("sqlite-write", &client.writer, life.clone(), move || {
            let mut writer = Writer { opener, db: None, queue: writer, upkeep, suspect: false, refusal: None };
            let outcome = writer.start(&setup);
            let failed = outcome.is_err();
            // The caller gave up, or the setup failed: no work will come.
            if ready.send(outcome).is_err() || failed {
                return;
            }
            writer.serve();
        })?;
        match tokio::time::timeout(opening + GRACE, opened).await {
            Ok(Ok(outcome)) => outcome?,
            Ok(Err(_)) => return Err(Error::internal("the SQLite thread ended while it opened the database")),
            Err(_) => {
                // The thread ends by itself; waiting for it here would block the caller.
                client.threads.lock().handles.clear();
                return Err(late("opening the SQLite database", opening));
            }
        }
        if !solo {
            for _ in 0..READERS {
                let opener = Opener { config: config.clone(), cache_kib: READER_CACHE_KIB, query_only: true };
                let queue = Arc::clone(&readers);
                client.start("sqlite-read", &client.readers, life.clone(), move || read_loop(&opener, &queue))?;
            }
        }
        Ok(client)
    }

    fn start(
        &self,
        name: &str,
        queue: &Arc<Queue>,
        life: mpsc::Sender<()>,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<()> {
        let life = Life { queue: Arc::clone(queue), _alive: life };
        let handle = std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let _life = life;
                body();
            })
            .map_err(|e| Error::unavailable("cannot start a thread for SQLite").with_source(e))?;
        self.threads.lock().handles.push(handle);
        Ok(())
    }

    /// Runs `work` in a write transaction, perhaps together with that of others, and returns
    /// once it is committed. `work` may run again after a rollback. `compound` work, of several
    /// statements, is undone as one when it fails.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        weight: usize,
        compound: bool,
        work: impl FnMut(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T> {
        let (job, answer) = Call::boxed(work);
        let deadline = Instant::now() + self.timeout;
        self.ask(&self.writer, Entry { job, deadline, weight, compound, writes: true }, answer).await
    }

    /// Runs `work` on a connection that only reads.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        work: impl FnMut(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T> {
        let (job, answer) = Call::boxed(work);
        let deadline = Instant::now() + self.timeout;
        self.ask(&self.readers, Entry { job, deadline, weight: 0, compound: false, writes: false }, answer).await
    }

    async fn ask<T>(&self, queue: &Queue, entry: Entry, answer: oneshot::Receiver<Result<T>>) -> Result<T> {
        let wait = async {
            queue.push(entry).await?;
            answer.await.map_err(|_| closed())?
        };
        match tokio::time::timeout(self.timeout + GRACE, wait).await {
            Ok(outcome) => outcome,
            Err(_) => Err(late("SQLite operation", self.timeout)),
        }
    }

    /// Finishes what is queued and ends the threads. Idempotent.
    pub(crate) async fn close(&self) {
        self.writer.close();
        self.readers.close();
        let Some(mut alive) = self.threads.lock().alive.take() else { return };
        // Nobody sends: the channel ends when the last thread drops its side.
        if tokio::time::timeout(self.timeout + GRACE, alive.recv()).await.is_err() {
            tracing::warn!("a SQLite thread is still busy after {:?}; it ends once its call returns", self.timeout);
            self.threads.lock().handles.clear();
            return;
        }
        self.join();
    }

    fn join(&self) {
        let handles = std::mem::take(&mut self.threads.lock().handles);
        for handle in handles {
            if handle.join().is_err() {
                tracing::error!("a SQLite thread panicked");
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.writer.close();
        self.readers.close();
        self.join();
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl Opener {
    fn open(&self) -> rusqlite::Result<Connection> {
        let config = &self.config;
        let access = if config.read_only {
            OpenFlags::SQLITE_OPEN_READ_ONLY
        } else {
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE
        };
        // One thread owns the connection, so SQLite need not lock it.
        let flags = access | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&config.uri, flags)?;
        db.busy_timeout(config.busy_timeout)?;
        db.execute_batch(&format!("PRAGMA cache_size(-{})", self.cache_kib))?;
        if !self.query_only && !config.read_only {
            let mode = if config.memory {
                "memory"
            } else if config.wal {
                "wal"
            } else {
                "delete"
            };
            let deadline = Instant::now() + config.timeout.max(SHORTEST_OPENING);
            let given: String = patiently(
                deadline,
                || false,
                || db.query_row(&format!("PRAGMA journal_mode({mode})"), [], |r| r.get(0)),
            )?;
            if !given.eq_ignore_ascii_case(mode) {
                tracing::warn!(
                    wanted = mode,
                    given,
                    "SQLite keeps another journal mode; a network file system needs disableWAL"
                );
            }
            // SQLite's own default, and the incumbent's, said aloud: a commit that was
            // acknowledged survives a loss of power. `_pragma=synchronous(…)` overrides it.
            db.execute_batch(&format!("PRAGMA synchronous(FULL); PRAGMA journal_size_limit({WAL_KEPT_BYTES})"))?;
        }
        for (name, value) in &config.pragmas {
            db.execute_batch(&format!("PRAGMA {name}({value})"))?;
        }
        if self.query_only {
            db.execute_batch("PRAGMA query_only(1)")?;
        }
        Ok(db)
    }
}

impl Writer {
    fn start(&mut self, setup: &Setup) -> Result<()> {
        let deadline = Instant::now() + self.opener.config.timeout.max(SHORTEST_OPENING);
        let db = self.opener.open().map_err(|e| classify("failed to open the database", &e))?;
        let stop = || self.queue.is_closed();
        patiently(deadline, stop, || setup(&db)).map_err(|e| e.into_error("failed to perform migrations"))?;
        self.db = Some(db);
        Ok(())
    }

    fn serve(&mut self) {
        let mut due = self.upkeep.as_ref().map(|u| Instant::now() + u.every);
        let mut jobs = Vec::new();
        loop {
            let patience = due.map(|d| d.saturating_duration_since(Instant::now()));
            match self.queue.take(&mut jobs, GROUP, GROUP_BYTES, patience) {
                Taken::Closed => return,
                Taken::Nothing => {}
                Taken::Jobs => self.work(&mut jobs),
            }
            if due.is_some_and(|d| d <= Instant::now()) {
                due = self.tend().map(|pause| Instant::now() + pause);
            }
        }
    }

    /// Runs jobs in their order; neighbouring writes share a commit.
    fn work(&mut self, jobs: &mut Vec<Entry>) {
        let mut group = Vec::new();
        for entry in jobs.drain(..) {
            if entry.writes {
                group.push(entry);
                continue;
            }
            self.commit(std::mem::take(&mut group));
            self.read(entry);
        }
        self.commit(group);
    }

    /// A read on this connection, for databases that have only one.
    fn read(&mut self, entry: Entry) {
        let Some(mut entry) = still_wanted(entry) else { return };
        let outcome = match self.connection() {
            Ok(db) => entry.job.run(db).map_err(|e| e.into_error("read failed")),
            Err(e) => Err(e),
        };
        entry.job.settle(outcome);
    }

    fn commit(&mut self, group: Vec<Entry>) {
        let mut group: Vec<Entry> = group.into_iter().filter_map(still_wanted).collect();
        if group.is_empty() {
            return;
        }
        let Err(whole) = self.attempt(&mut group) else { return };
        if group.len() > 1 && whole.undone && !is_busy(&whole.error) && !is_broken(&whole.error) {
            // One of them cannot be stored, for example because it fills the disk: find out which.
            for entry in group {
                let mut alone = vec![entry];
                if let Err(whole) = self.attempt(&mut alone) {
                    self.fail(alone, &whole);
                }
            }
        } else {
            self.fail(group, &whole);
        }
    }

    fn fail(&mut self, group: Vec<Entry>, whole: &Whole) {
        if is_broken(&whole.error) && !self.opener.config.memory {
            // After a failed sync the kernel may show pages that never reached the disk: what
            // this connection believes is worth nothing.
            self.db = None;
            self.suspect = true;
        }
        for entry in group {
            let error = classify("write failed", &whole.error);
            let retry = if whole.undone { error.retry() } else { Retry::IfIdempotent };
            entry.job.settle(Err(error.with_retry(retry)));
        }
    }

    /// Tries the group in one transaction. On success every member was answered and the group is empty.
    fn attempt(&mut self, group: &mut Vec<Entry>) -> Result<(), Whole> {
        let queue = Arc::clone(&self.queue);
        let db = match self.connection() {
            Ok(db) => db,
            Err(error) => {
                for entry in group.drain(..) {
                    entry.job.settle(Err(same(&error)));
                }
                return Ok(());
            }
        };
        let deadline = group.iter().map(|e| e.deadline).max().unwrap_or_else(Instant::now);
        let stop = || queue.is_closed();
        patiently(deadline, stop, || run(db, "BEGIN IMMEDIATE")).map_err(|error| Whole { error, undone: true })?;

        let mut outcomes = Vec::with_capacity(group.len());
        for entry in group.iter_mut() {
            // Its caller may have left while we waited for the lock.
            outcomes.push(if entry.job.wanted() { step(db, entry) } else { Ok(()) });
            // SQLite rolls everything back by itself when, say, the disk is full.
            if db.is_autocommit() {
                let error = match outcomes.pop() {
                    Some(Err(Fault::Db(error))) => error,
                    _ => rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT), None),
                };
                return Err(Whole { error, undone: true });
            }
        }
        if let Err(error) = patiently(deadline, stop, || run(db, "COMMIT")) {
            // A commit that failed with an I/O error may still be found committed later.
            let undone = (db.is_autocommit() || run(db, "ROLLBACK").is_ok()) && !is_broken(&error);
            return Err(Whole { error, undone });
        }
        for (entry, outcome) in group.drain(..).zip(outcomes) {
            entry.job.settle(outcome.map_err(|e| e.into_error("write failed")));
        }
        Ok(())
    }

    /// The connection, opened again and checked when the last one broke.
    fn connection(&mut self) -> Result<&Connection> {
        if self.db.is_none() {
            if let Some((until, error)) = &self.refusal
                && Instant::now() < *until
            {
                return Err(same(error));
            }
            match self.reopen() {
                Ok(db) => {
                    self.db = Some(db);
                    (self.suspect, self.refusal) = (false, None);
                }
                Err(error) => {
                    tracing::error!(%error, "the database does not open again; calls are refused");
                    self.refusal = Some((Instant::now() + REOPEN_PAUSE, same(&error)));
                    return Err(error);
                }
            }
        }
        self.db.as_ref().ok_or_else(closed)
    }

    fn reopen(&self) -> Result<Connection> {
        let db = self.opener.open().map_err(|e| classify("failed to open the database again", &e))?;
        if self.suspect {
            let verdict: String = db
                .query_row("PRAGMA quick_check(1)", [], |r| r.get(0))
                .map_err(|e| classify("failed to check the database after an I/O error", &e))?;
            if verdict != "ok" {
                return Err(Error::internal(format!(
                    "the database file is damaged, restore it from a backup: {verdict}"
                )));
            }
            tracing::info!("the database was opened again and checked after an I/O error");
        }
        Ok(db)
    }

    /// One round of upkeep; gives the pause until the next.
    fn tend(&mut self) -> Option<Duration> {
        let mut upkeep = self.upkeep.take()?;
        let pause = match self.connection().map(|db| (upkeep.round)(db)) {
            Ok(Ok(true)) => UPKEEP_STEP.min(upkeep.every),
            Ok(Ok(false)) => upkeep.every,
            Ok(Err(error)) => {
                tracing::warn!(%error, "SQLite clean-up failed; it comes again after its interval");
                upkeep.every
            }
            Err(error) => {
                tracing::warn!(%error, "SQLite clean-up found no connection");
                upkeep.every
            }
        };
        self.upkeep = Some(upkeep);
        Some(pause)
    }
}

/// One member of a group. A failed statement undoes itself; several need a savepoint.
fn step(db: &Connection, entry: &mut Entry) -> Result<(), Fault> {
    if !entry.compound {
        return entry.job.run(db);
    }
    run(db, "SAVEPOINT item")?;
    let outcome = entry.job.run(db);
    if outcome.is_err() && !db.is_autocommit() {
        run(db, "ROLLBACK TO item")?;
    }
    if !db.is_autocommit() {
        run(db, "RELEASE item")?;
    }
    outcome
}

fn run(db: &Connection, sql: &str) -> rusqlite::Result<()> {
    db.prepare_cached(sql)?.raw_execute().map(drop)
}

/// Runs `f` until it gives something else than a lock held by others, `stop` says so, or the deadline is near.
fn patiently<T, E: Locked>(
    deadline: Instant,
    stop: impl Fn() -> bool,
    mut f: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let mut pause = PAUSE;
    loop {
        match f() {
            Err(e) if e.is_locked() && Instant::now() + pause < deadline && !stop() => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            other => return other,
        }
    }
}

/// Errors that may be about somebody else's lock.
trait Locked {
    fn is_locked(&self) -> bool;
}

impl Locked for rusqlite::Error {
    fn is_locked(&self) -> bool {
        is_busy(self)
    }
}

impl Locked for Fault {
    fn is_locked(&self) -> bool {
        matches!(self, Self::Db(e) if is_busy(e))
    }
}

/// The entry, unless its caller left or its time is over.
fn still_wanted(entry: Entry) -> Option<Entry> {
    if !entry.job.wanted() {
        return None;
    }
    if entry.deadline <= Instant::now() {
        entry
            .job
            .settle(Err(Error::timeout("the SQLite queue was too long: the operation was not started")
                .with_retry(Retry::Always)));
        return None;
    }
    Some(entry)
}

fn read_loop(opener: &Opener, queue: &Queue) {
    let mut db: Option<Connection> = None;
    let mut jobs = Vec::with_capacity(1);
    loop {
        // One at a time, so that the other reader gets its share.
        if queue.take(&mut jobs, 1, usize::MAX, None) == Taken::Closed {
            return;
        }
        let Some(mut entry) = jobs.pop().and_then(still_wanted) else { continue };
        if db.is_none() {
            match opener.open() {
                Ok(opened) => db = Some(opened),
                Err(e) => {
                    entry.job.settle(Err(classify("failed to open the database", &e)));
                    continue;
                }
            }
        }
        let Some(open) = &db else { continue };
        let outcome = patiently(entry.deadline, || queue.is_closed(), || entry.job.run(open));
        if matches!(&outcome, Err(Fault::Db(e)) if is_broken(e)) {
            db = None;
        }
        entry.job.settle(outcome.map_err(|e| e.into_error("read failed")));
    }
}

/// The error once more, for the next caller.
fn same(error: &Error) -> Error {
    Error::new(error.kind(), error.to_string()).with_retry(error.retry())
}

fn late(what: &str, after: Duration) -> Error {
    Error::timeout(format!("{what} gave no answer within {after:?}"))
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
