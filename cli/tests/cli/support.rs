//! A mecha home of its own, a sidecar that only pretends, and waits with deadlines.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Generous: reached only when something is broken.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A place to run mecha in.
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
}

/// A mecha that runs in the background.
pub(crate) struct Running {
    pub(crate) child: Child,
    lines: Receiver<String>,
    seen: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("work")).unwrap();
        Self { folder }
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    pub(crate) fn mecha<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mecha = Path::new(env!("CARGO_BIN_EXE_mecha"));
        let fake = mecha.parent().unwrap().join("examples/fake-sidecar");
        assert!(fake.exists(), "{} is missing; `cargo test -p mecha` builds it", fake.display());
        let mut command = Command::new(mecha);
        command
            .args(args)
            .current_dir(self.work())
            .env("MECHA_HOME", self.home())
            .env("MECHA_MECHAD", fake)
            .env_remove("NO_COLOR")
            .env_remove("DAPR_API_TOKEN")
            .env_remove("DAPR_HOST_IP")
            .env_remove("FAKE_SIDECAR")
            .stdin(Stdio::null());
        command
    }

    /// Runs mecha to its end.
    pub(crate) fn output(&self, args: &[&str]) -> Output {
        self.mecha(args).output().unwrap()
    }

    /// Runs mecha to its end, which must be a success; returns what it printed.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(output.status.success(), "mecha {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn start(&self, args: &[&str]) -> Running {
        Running::start(self.mecha(args))
    }

    /// Run files of apps that run.
    pub(crate) fn run_files(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.home().join("run")) else { return Vec::new() };
        entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "json"))
            .collect()
    }
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (send, lines) = channel();
        let streams: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for stream in streams {
            let send = send.clone();
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                let mut line = Vec::new();
                while reader.by_ref().read_until(b'\n', &mut line).unwrap_or(0) > 0 {
                    if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                        return;
                    }
                    line.clear();
                }
            });
        }
        Self { child, lines, seen: String::new() }
    }

    /// Waits for a line that holds `text` and returns it.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        if let Some(line) = self.seen.lines().find(|line| line.contains(text)) {
            return line.to_owned();
        }
        let deadline = Instant::now() + DEADLINE;
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.seen.push_str(&line);
            if line.contains(text) {
                return line;
            }
        }
        panic!("{text:?} did not come; seen:\n{}", self.seen);
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(i32::try_from(self.child.id()).unwrap(), name);
    }

    /// Waits for the end and returns the status and everything printed.
    pub(crate) fn finish(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + DEADLINE;
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.seen.push_str(&line);
        }
        wait_until("mecha ended", || self.child.try_wait().unwrap().is_some());
        (self.child.wait().unwrap(), std::mem::take(&mut self.seen))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn signal(pid: i32, name: &str) {
    assert!(Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().unwrap().success());
}

pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process runs; one that ended and waits for its parent does not.
pub(crate) fn runs(pid: i32) -> bool {
    let output = Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output().unwrap();
    let state = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    !state.is_empty() && !state.starts_with('Z')
}
