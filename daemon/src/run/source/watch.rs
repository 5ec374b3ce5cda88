//! Notices changes in folders: inotify where the system has it, a slow look at the files elsewhere.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio::sync::Mutex;

/// Pause between two looks where the system does not say that files changed.
const LOOK: Duration = Duration::from_secs(1);

/// Name, time of the last change and length of a file.
type Stamp = (PathBuf, Option<SystemTime>, u64);

/// A watch over the files directly in some folders.
#[derive(Debug)]
pub(super) struct Watch {
    folders: Vec<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    #[cfg(target_os = "linux")]
    events: Option<linux::Events>,
    /// Where links led to when the events were asked for: it may be elsewhere by now. `None` without links.
    #[cfg(target_os = "linux")]
    places: Option<Vec<Option<PathBuf>>>,
    /// That there are no events was said.
    #[cfg(target_os = "linux")]
    warned: bool,
    /// What the last look saw.
    seen: Option<Vec<Stamp>>,
}

impl Watch {
    /// Watches nothing until the first wait.
    pub(super) fn new(folders: Vec<PathBuf>) -> Self {
        Self { folders, state: Mutex::default() }
    }

    /// Returns when a file in one of the folders may have changed since the last call.
    pub(super) async fn changed(&self) {
        if self.folders.is_empty() {
            return std::future::pending().await;
        }
        let mut state = self.state.lock().await;
        #[cfg(target_os = "linux")]
        {
            if state.events.is_none() {
                match linux::Events::new(&self.folders) {
                    Ok(events) => {
                        state.events = Some(events);
                        state.places = self.places();
                        state.warned = false;
                        // What happened before the watch stood would go unnoticed.
                        return;
                    }
                    Err(e) if !state.warned => {
                        state.warned = true;
                        tracing::warn!(
                            target: "dapr.runtime.hotreload",
                            "cannot watch the resources folders, looking at them each {LOOK:?} instead: {e}"
                        );
                    }
                    Err(_) => {}
                }
            }
            let State { events: watched, places, .. } = &mut *state;
            if let Some(events) = watched {
                let seen = loop {
                    if places.is_none() {
                        break events.next().await;
                    }
                    match tokio::time::timeout(LOOK, events.next()).await {
                        Ok(seen) => break seen,
                        Err(_) if self.places() == *places => {}
                        Err(_) => break Ok(linux::Seen::Folder),
                    }
                };
                match seen {
                    Ok(seen) => {
                        // A folder that was replaced needs a new watch.
                        let elsewhere = places.is_some() && self.places() != *places;
                        if seen == linux::Seen::Folder || elsewhere {
                            *watched = None;
                        }
                        return;
                    }
                    Err(e) => {
                        tracing::warn!(target: "dapr.runtime.hotreload", "watching the resources folders failed: {e}");
                        *watched = None;
                    }
                }
            }
        }
        loop {
            let now = self.look();
            let before = state.seen.replace(now.clone());
            if before.is_some_and(|before| before != now) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    #[cfg(target_os = "linux")]
    fn places(&self) -> Option<Vec<Option<PathBuf>>> {
        let places: Vec<_> = self.folders.iter().map(|folder| folder.canonicalize().ok()).collect();
        let plain = self.folders.iter().map(|folder| std::path::absolute(folder).ok());
        (!plain.eq(places.iter().cloned())).then_some(places)
    }

    fn look(&self) -> Vec<Stamp> {
        let mut stamps = Vec::new();
        for folder in &self.folders {
            let Ok(entries) = std::fs::read_dir(folder) else { continue };
            for path in entries.flatten().map(|e| e.path()) {
                if path.extension().is_some_and(|e| e == "yaml" || e == "yml")
                    && let Ok(metadata) = std::fs::metadata(&path)
                {
                    stamps.push((path, metadata.modified().ok(), metadata.len()));
                }
            }
        }
        stamps.sort();
        stamps
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::mem::MaybeUninit;
    use std::os::fd::OwnedFd;
    use std::path::PathBuf;

    use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
    use rustix::io::Errno;
    use tokio::io::unix::AsyncFd;

    /// Room for a burst; what does not fit is read in the next round.
    const BUFFER: usize = 4096;

    /// What an event was about.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) enum Seen {
        /// Files in a folder.
        Files,
        /// A folder itself went away.
        Folder,
    }

    #[derive(Debug)]
    pub(super) struct Events {
        fd: AsyncFd<OwnedFd>,
    }

    impl Events {
        pub(super) fn new(folders: &[PathBuf]) -> io::Result<Self> {
            let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
            // Written files count when they are closed, so that half of one is not read. Links
            // have no close: mounted volumes change by a link that is moved in.
            let flags = WatchFlags::CLOSE_WRITE
                | WatchFlags::CREATE
                | WatchFlags::DELETE
                | WatchFlags::MOVED_FROM
                | WatchFlags::MOVED_TO
                | WatchFlags::ATTRIB
                | WatchFlags::DELETE_SELF
                | WatchFlags::MOVE_SELF;
            for folder in folders {
                inotify::add_watch(&fd, folder, flags)?;
            }
            #[allow(deprecated, reason = "sound here: an OwnedFd always gives the same descriptor and keeps it open")]
            let fd = AsyncFd::new(fd)?;
            Ok(Self { fd })
        }

        /// Waits for events and takes all that are there.
        pub(super) async fn next(&mut self) -> io::Result<Seen> {
            loop {
                let mut ready = self.fd.readable().await?;
                match ready.try_io(|fd| drain(fd.get_ref())) {
                    Ok(seen) => return seen,
                    Err(_would_block) => {}
                }
            }
        }
    }

    fn drain(fd: &OwnedFd) -> io::Result<Seen> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut reader = Reader::new(fd, &mut buffer);
        let mut seen = None;
        loop {
            match reader.next() {
                Ok(event) => {
                    let gone = ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::IGNORED | ReadFlags::UNMOUNT;
                    let folder = event.events().intersects(gone);
                    seen = Some(if folder || seen == Some(Seen::Folder) { Seen::Folder } else { Seen::Files });
                }
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return seen.ok_or_else(|| io::ErrorKind::WouldBlock.into()),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    async fn changed(watch: &Watch) {
        tokio::time::timeout(LIMIT, watch.changed()).await.expect("a change is noticed");
    }

    #[tokio::test]
    async fn a_written_a_moved_and_a_deleted_file_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let watch = Watch::new(vec![folder.path().to_owned()]);
        changed(&watch).await;
        std::fs::write(folder.path().join("a.yaml"), "x").unwrap();
        changed(&watch).await;
        std::fs::rename(folder.path().join("a.yaml"), folder.path().join("b.yaml")).unwrap();
        changed(&watch).await;
        std::fs::remove_file(folder.path().join("b.yaml")).unwrap();
        changed(&watch).await;
    }

    #[tokio::test]
    async fn a_folder_that_is_made_anew_is_watched_again() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("resources");
        std::fs::create_dir(&folder).unwrap();
        let watch = Watch::new(vec![folder.clone()]);
        changed(&watch).await;
        std::fs::remove_dir(&folder).unwrap();
        changed(&watch).await;
        std::fs::create_dir(&folder).unwrap();
        changed(&watch).await;
        std::fs::write(folder.join("a.yaml"), "x").unwrap();
        changed(&watch).await;
    }
}
