use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::schema::random;

/// The proof that this process lives: a file it keeps locked. The kernel drops the lock
/// when the process dies, however it dies.
#[derive(Debug)]
pub(crate) struct Owner {
    pub id: i64,
    path: PathBuf,
    _lock: File,
}

/// A process that died. Its file stays locked by us until it is buried, so that only
/// one survivor takes its leases over.
#[derive(Debug)]
pub(crate) struct Dead {
    pub id: i64,
    path: PathBuf,
    _lock: File,
}

impl Owner {
    pub(crate) fn register(dir: &Path) -> io::Result<Self> {
        // Each round fails only by an id collision or by a survivor that swept the file
        // between its creation and its lock.
        for _ in 0..16 {
            let id = 1 + (random() * (1_u64 << 52) as f64) as i64;
            let path = dir.join(file_name(id));
            let file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e),
            };
            match file.try_lock() {
                Ok(()) if path.exists() => return Ok(Self { id, path, _lock: file }),
                Ok(()) | Err(fs::TryLockError::WouldBlock) => {}
                Err(fs::TryLockError::Error(e)) => return Err(e),
            }
        }
        Err(io::Error::other("cannot register this process in the broker's folder"))
    }

    /// Whether the file is still where other processes look for it.
    pub(crate) fn is_listed(&self) -> bool {
        self.path.exists()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Dead {
    /// Forgets the process, after its leases were freed.
    pub(crate) fn bury(self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Processes in `dir` that are no more.
pub(crate) fn find_dead(dir: &Path, me: i64) -> Vec<Dead> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter_map(|e| examine(e.path(), me)).collect()
}

fn examine(path: PathBuf, me: i64) -> Option<Dead> {
    let id = i64::from_str_radix(path.file_name()?.to_str()?.strip_suffix(".lock")?, 16).ok()?;
    if id == me {
        return None;
    }
    let file = File::open(&path).ok()?;
    file.try_lock().ok()?;
    Some(Dead { id, path, _lock: file })
}

fn file_name(id: i64) -> String {
    format!("{id:x}.lock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_living_are_not_taken_for_dead() {
        let dir = tempfile::tempdir().unwrap();
        let a = Owner::register(dir.path()).unwrap();
        let b = Owner::register(dir.path()).unwrap();
        assert!(find_dead(dir.path(), a.id).is_empty());
        drop(b);
        assert!(find_dead(dir.path(), a.id).is_empty(), "who left in order leaves nothing behind");
        fs::write(dir.path().join(file_name(77)), "").unwrap();
        let dead = find_dead(dir.path(), a.id);
        assert_eq!(dead.iter().map(|d| d.id).collect::<Vec<_>>(), [77]);
        assert!(find_dead(dir.path(), a.id).is_empty(), "one survivor at a time");
        dead.into_iter().for_each(Dead::bury);
        assert!(a.is_listed());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
