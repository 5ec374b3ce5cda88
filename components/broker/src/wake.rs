use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::net::UnixDatagram;

/// The list of sleepers is read again at least this often: two subscribers that come
/// within one tick of the folder's time stamp would look like one.
const LIST_AGE: Duration = Duration::from_secs(1);

/// Where one subscription waits to hear that its topic grew. Losing a wake-up costs
/// latency, never a message: subscriptions also look by themselves from time to time.
#[derive(Debug)]
pub(crate) struct Sleeper {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Sleeper {
    /// Must be called on a tokio runtime with I/O.
    pub(crate) fn bind(dir: &Path, topic: i64, owner: i64) -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("{topic:x}-{owner:x}-{n:x}.sock"));
        let socket = UnixDatagram::bind(&path)?;
        Ok(Self { socket, path })
    }

    /// Returns when somebody rang since the last call.
    pub(crate) async fn rung(&self) {
        loop {
            if self.socket.readable().await.is_err() {
                // The poll of the subscription goes on alone.
                std::future::pending::<()>().await;
            }
            let mut any = false;
            while self.socket.try_recv(&mut [0; 8]).is_ok() {
                any = true;
            }
            if any {
                return;
            }
        }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Rings the sleepers of topics, in this process and in others.
#[derive(Debug)]
pub(crate) struct Bell {
    dir: PathBuf,
    socket: Option<StdDatagram>,
    sleepers: Vec<(i64, PathBuf)>,
    read_at: Option<Instant>,
    stamp: (i64, i64),
}

impl Bell {
    pub(crate) fn new(dir: PathBuf) -> Self {
        let socket = StdDatagram::unbound().and_then(|s| s.set_nonblocking(true).map(|()| s)).ok();
        Self { dir, socket, sleepers: Vec::new(), read_at: None, stamp: (0, 0) }
    }

    pub(crate) fn ring(&mut self, topics: &[i64]) {
        if topics.is_empty() {
            return;
        }
        self.refresh();
        let Some(socket) = &self.socket else { return };
        self.sleepers.retain(|(topic, path)| {
            if !topics.contains(topic) {
                return true;
            }
            match socket.send_to(&[1], path) {
                // Bound before it got its name, so a refusal means that the process is gone.
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                    let _ = fs::remove_file(path);
                    false
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => false,
                // A full buffer means that it will wake up anyway.
                _ => true,
            }
        });
    }

    /// Removes what a dead process left behind.
    pub(crate) fn forget(&mut self, owner: i64) {
        let mark = format!("-{owner:x}-");
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_str().is_some_and(|n| n.contains(&mark)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn refresh(&mut self) {
        let stamp = fs::metadata(&self.dir).map_or((0, 0), |m| (m.mtime(), m.mtime_nsec()));
        if stamp == self.stamp && self.read_at.is_some_and(|t| t.elapsed() < LIST_AGE) {
            return;
        }
        self.stamp = stamp;
        self.read_at = Some(Instant::now());
        self.sleepers.clear();
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        self.sleepers.extend(entries.flatten().filter_map(|e| Some((topic_of(&e.path())?, e.path()))));
    }
}

fn topic_of(path: &Path) -> Option<i64> {
    let name = path.file_name()?.to_str()?.strip_suffix(".sock")?;
    i64::from_str_radix(name.split_once('-')?.0, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_sleepers_of_the_topic_wake_up() {
        let dir = tempfile::tempdir().unwrap();
        let one = Sleeper::bind(dir.path(), 1, 9).unwrap();
        let two = Sleeper::bind(dir.path(), 2, 9).unwrap();
        let mut bell = Bell::new(dir.path().to_owned());
        bell.ring(&[1]);
        one.rung().await;
        assert!(two.socket.try_recv(&mut [0; 8]).is_err());
        assert!(one.socket.try_recv(&mut [0; 8]).is_err(), "one call takes all rings");
    }

    #[tokio::test]
    async fn sockets_of_the_dead_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("1-5-0.sock");
        drop(StdDatagram::bind(&left).unwrap());
        assert!(left.exists());
        let mut bell = Bell::new(dir.path().to_owned());
        bell.ring(&[1]);
        assert!(!left.exists());

        drop(StdDatagram::bind(&left).unwrap());
        bell.forget(5);
        assert!(!left.exists());
    }
}
