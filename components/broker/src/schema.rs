use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

use crate::error::{Cure, Failure};

/// Longest wait for another process, to open the file or to write to it.
const PATIENCE: Duration = Duration::from_secs(10);
/// Layout below; a file with a higher number was written by a newer release.
const VERSION: i64 = 1;
/// "mchb": tells `file` and careful people whose database this is.
const APPLICATION_ID: i64 = 0x6d63_6862;
/// The log is cut back to this size after a checkpoint.
const WAL_LIMIT_BYTES: i64 = 16 << 20;

/// Small columns come before `data` so that scans do not read the payload's pages.
const TABLES: &str = "
CREATE TABLE topic(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL UNIQUE,
  next INTEGER NOT NULL DEFAULT 1,
  used_ms INTEGER NOT NULL
);
CREATE TABLE message(
  id INTEGER PRIMARY KEY,
  published_ms INTEGER NOT NULL,
  expires_ms INTEGER,
  size INTEGER NOT NULL,
  content_type TEXT,
  metadata TEXT,
  data BLOB NOT NULL
);
CREATE INDEX message_expiry ON message(expires_ms) WHERE expires_ms IS NOT NULL;
CREATE TABLE consumer(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  topic INTEGER NOT NULL,
  name TEXT NOT NULL,
  next INTEGER NOT NULL,
  token INTEGER NOT NULL DEFAULT 0,
  seen_ms INTEGER NOT NULL,
  idle INTEGER NOT NULL DEFAULT 0,
  UNIQUE(topic, name)
);
CREATE TABLE pending(
  consumer INTEGER NOT NULL,
  offset INTEGER NOT NULL,
  owner INTEGER NOT NULL,
  token INTEGER NOT NULL,
  until_ms INTEGER NOT NULL,
  attempts INTEGER NOT NULL,
  PRIMARY KEY(consumer, offset)
) WITHOUT ROWID;
CREATE TABLE counter(
  name TEXT PRIMARY KEY,
  value INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO counter(name, value) VALUES
  ('bytes', 0), ('published', 0), ('expired', 0), ('malformed', 0), ('unread_dropped', 0), ('groups_dropped', 0),
  ('maintained_mono', 0);
";

/// The folder of one broker.
#[derive(Clone, Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.0.join("broker.db")
    }

    pub(crate) fn owners(&self) -> PathBuf {
        self.0.join("owners")
    }

    pub(crate) fn wake(&self) -> PathBuf {
        self.0.join("wake")
    }

    /// Makes what is missing, for this user only.
    pub(crate) fn create(&self) -> io::Result<()> {
        let existed = self.0.exists();
        for dir in [self.0.clone(), self.owners(), self.wake()] {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        if !existed && let Some(parent) = self.0.parent() {
            // The new folder's name must outlive a power cut, or its messages do not.
            sync_dir(parent)?;
        }
        Ok(())
    }
}

/// Which file a path led to, to notice when it is replaced.
pub(crate) type FileId = (u64, u64);

/// Identity of the file at `path`, `None` when it is gone.
pub(crate) fn file_id(path: &Path) -> Option<FileId> {
    fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Opens the broker's file, creating or checking it; safe for many processes at once.
pub(crate) fn open(folder: &Folder) -> Result<Connection, Failure> {
    folder.create()?;
    let _one_at_a_time = lock_opening(folder)?;
    let path = folder.database();
    // Only when it is new: closing a second descriptor of an open database would drop
    // this process' POSIX locks on it.
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(_) => sync_dir(folder.path())?,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e.into()),
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut conn = Connection::open_with_flags(&path, flags)?;
    configure(&mut conn)?;
    migrate(&mut conn)?;
    Ok(conn)
}

/// Opens an existing file for reading only.
pub(crate) fn open_read_only(folder: &Folder) -> Result<Connection, Failure> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut conn = Connection::open_with_flags(folder.database(), flags)?;
    be_patient(&mut conn)?;
    check_version(&conn)?;
    Ok(conn)
}

fn configure(conn: &mut Connection) -> Result<(), Failure> {
    be_patient(conn)?;
    conn.set_prepared_statement_cache_capacity(64);
    // Must precede the first table; no effect on an existing file.
    conn.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    let mode: String = conn.query_row("PRAGMA journal_mode=WAL", [], |r| r.get(0))?;
    if !mode.eq_ignore_ascii_case("wal") {
        return Err(Failure::new(
            Cure::Refuse,
            format!("the file system allows journal mode {mode} only, WAL is needed"),
        ));
    }
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "journal_size_limit", WAL_LIMIT_BYTES)?;
    // One MiB of page cache per process: the hot end of the log fits, idle memory stays small.
    conn.pragma_update(None, "cache_size", -1024)?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    Ok(())
}

fn migrate(conn: &mut Connection) -> Result<(), Failure> {
    if check_version(conn)? == VERSION {
        return Ok(());
    }
    let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    tx.execute_batch(TABLES)?;
    tx.pragma_update(None, "application_id", APPLICATION_ID)?;
    tx.pragma_update(None, "user_version", VERSION)?;
    tx.commit()?;
    Ok(())
}

fn check_version(conn: &Connection) -> Result<i64, Failure> {
    let version: i64 = conn.query_row("PRAGMA user_version", [], |r| r.get(0))?;
    match version {
        0 | VERSION => Ok(version),
        v => Err(Failure::new(
            Cure::Refuse,
            format!(
                "its layout has version {v}, this release knows {VERSION}; use the newer release or another folder"
            ),
        )),
    }
}

/// Waits for other writers in short, uneven steps instead of SQLite's, which grow to 100 ms.
fn be_patient(conn: &mut Connection) -> Result<(), Failure> {
    let mut since = Instant::now();
    conn.busy_handler(Some(move |tries: i32| {
        if tries == 0 {
            since = Instant::now();
        }
        if since.elapsed() >= PATIENCE {
            return false;
        }
        let step = match tries {
            0..20 => 100,
            20..100 => 500,
            _ => 3000,
        };
        thread::sleep(Duration::from_micros(step / 2 + (random() * step as f64) as u64));
        true
    }))?;
    Ok(())
}

/// Between 0 and 1; good enough to spread retries.
pub(crate) fn random() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    // Every RandomState has keys of its own.
    (RandomState::new().hash_one(0_u8) >> 11) as f64 / (1_u64 << 53) as f64
}

/// Creation and the switch to WAL do not queue well inside SQLite, so openers take turns.
fn lock_opening(folder: &Folder) -> Result<File, Failure> {
    let path = folder.path().join("open.lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let since = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) if since.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(2)),
            Err(fs::TryLockError::WouldBlock) => {
                return Err(Failure::new(Cure::Wait, "another process has been opening it for 10 s"));
            }
            Err(fs::TryLockError::Error(e)) => return Err(e.into()),
        }
    }
}

fn sync_dir(path: &Path) -> io::Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path)?.sync_all()
}

/// An empty broker without a file.
#[cfg(test)]
pub(crate) fn in_memory() -> Connection {
    let conn = Connection::open_in_memory().unwrap();
    conn.execute_batch(TABLES).unwrap();
    conn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_a_newer_release_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path());
        open(&folder).unwrap().pragma_update(None, "user_version", 9).unwrap();
        let failure = open(&folder).unwrap_err();
        assert_eq!(failure.cure, Cure::Refuse);
        assert!(failure.to_string().contains("version 9"), "{failure}");
    }

    #[test]
    fn only_the_user_can_read_the_messages() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().join("deep/broker"));
        let _conn = open(&folder).unwrap();
        assert_eq!(fs::metadata(folder.path()).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(folder.database()).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn garbage_is_an_error_and_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path());
        let garbage = vec![7_u8; 8192];
        fs::write(folder.database(), &garbage).unwrap();
        assert_eq!(open(&folder).unwrap_err().cure, Cure::Reopen);
        assert_eq!(fs::read(folder.database()).unwrap(), garbage);
    }
}
