//! Time that passes faster than it does, for processes of ours alone.
//!
//! A small library takes the place of the C library's clocks: the wall clock and the one that timers use go on
//! together, as over a real day. Who is not told of it, such as the API server, keeps the machine's time.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/control/clock/ahead.c");

/// A clock that is moved by hand.
#[derive(Debug)]
pub(crate) struct Clock {
    folder: TempDir,
    file: File,
    ahead: Duration,
}

impl Clock {
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let (library, path) = (library(&folder), folder.path().join("ahead"));
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"])
            .args([library.as_os_str(), SOURCE.as_ref()])
            .output()
            .unwrap_or_else(|e| panic!("no C compiler, which the build needs as well: {e}"));
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        std::fs::write(&path, 0_i64.to_ne_bytes()).unwrap();
        let file = File::options().write(true).open(path).unwrap();
        Self { folder, file, ahead: Duration::ZERO }
    }

    /// What processes have in their environment that follow this clock.
    pub(crate) fn variables(&self) -> Vec<(String, String)> {
        let file = self.folder.path().join("ahead");
        [("LD_PRELOAD", library(&self.folder)), ("MECHA_TEST_CLOCK", file)]
            .map(|(name, path)| (name.to_owned(), path.to_string_lossy().into_owned()))
            .into()
    }

    /// Lets so much time pass at once.
    pub(crate) fn forward(&mut self, by: Duration) {
        self.ahead += by;
        self.file.write_all_at(&i64::try_from(self.ahead.as_secs()).unwrap().to_ne_bytes(), 0).unwrap();
    }
}

fn library(folder: &TempDir) -> PathBuf {
    folder.path().join("ahead.so")
}
