//! A child process with its own process group, its output, and an end that comes for sure.

use super::console::{Console, Sink, pump};
use crate::error::{CliError, Result};
use crate::shim;
use rustix::process::{Pid, Signal};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::process::Child;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How long output of a process that ended may take to arrive.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the children an app left behind may take to end.
const LEFTOVER_GRACE: Duration = Duration::from_secs(2);
const LEFTOVER_POLL: Duration = Duration::from_millis(10);
/// A killed process is gone at once; one that is not hangs in the kernel.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// How urgently everything is to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Not at all.
    #[default]
    No,
    /// With this signal, and time to finish.
    Gracefully(Signal),
    /// At once.
    Now,
}

/// What to start.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) program: &'a Path,
    /// What the program is called with, its argument zero.
    pub(crate) name: &'a OsStr,
    pub(crate) args: &'a [OsString],
    pub(crate) folder: &'a Path,
    pub(crate) env: &'a [(OsString, OsString)],
}

/// Starts processes that do not outlive mecha.
#[derive(Clone, Debug)]
pub(crate) struct Launcher {
    mecha: PathBuf,
    console: Console,
    watcher: Arc<Watcher>,
}

/// The process that ends the others when mecha cannot.
#[derive(Debug)]
struct Watcher {
    child: Mutex<std::process::Child>,
}

/// A running process and its group.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    group: Pid,
    output: JoinSet<()>,
    watcher: Arc<Watcher>,
}

impl Launcher {
    /// Starts the watcher.
    pub(crate) fn start(console: Console) -> Result<Self> {
        let failed = |error: io::Error| CliError::new("start", format!("mecha cannot start itself: {error}"));
        let mecha = std::env::current_exe().map_err(failed)?;
        let child = shim::watcher(mecha.as_os_str())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            // Ctrl-C at the terminal is for mecha alone.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        Ok(Self { mecha, console, watcher: Arc::new(Watcher { child: Mutex::new(child) }) })
    }

    /// Starts a process; its output goes to the sinks.
    pub(crate) fn launch(&self, launch: &Launch<'_>, stdout: Sink, stderr: Sink) -> io::Result<Process> {
        let mut command =
            shim::supervised(self.mecha.as_os_str(), launch.program.as_os_str(), launch.name, launch.args);
        command
            .current_dir(launch.folder)
            .envs(launch.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn()?;
        let group = child
            .id()
            .and_then(|id| Pid::from_raw(id.cast_signed()))
            .ok_or_else(|| io::Error::other("the process ended before it began"))?;
        self.watcher.tell(format_args!("+{group}"));
        let mut output = JoinSet::new();
        if let Some(stream) = child.stdout.take() {
            output.spawn(pump(stream, stdout, self.console.clone()));
        }
        if let Some(stream) = child.stderr.take() {
            output.spawn(pump(stream, stderr, self.console.clone()));
        }
        Ok(Process { child, group, output, watcher: Arc::clone(&self.watcher) })
    }
}

impl Watcher {
    fn tell(&self, what: fmt::Arguments<'_>) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipe) = &mut child.stdin {
            // A watcher that somebody killed is missed only if mecha is killed too.
            let _ = writeln!(pipe, "{what}");
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(child.stdin.take());
        // It ends on its own when the pipe ends; waiting only collects it.
        let _ = child.wait();
    }
}

impl Process {
    pub(crate) fn pid(&self) -> i32 {
        self.group.as_raw_nonzero().get()
    }

    /// Waits for the end. Cancel safe.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Ends the process: by `signal`, and after `grace` (or as soon as `stop` says "now") by force.
    pub(crate) async fn stop(
        &mut self,
        signal: Signal,
        grace: Duration,
        stop: &mut watch::Receiver<Stop>,
    ) -> io::Result<ExitStatus> {
        self.signal(signal);
        let status = tokio::select! {
            status = self.child.wait() => return status,
            () = tokio::time::sleep(grace) => None,
            _ = stop.wait_for(|stop| *stop == Stop::Now) => None::<ExitStatus>,
        };
        debug_assert!(status.is_none());
        self.signal(Signal::KILL);
        match tokio::time::timeout(KILL_TIMEOUT, self.child.wait()).await {
            Ok(status) => status,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "it does not even end when killed")),
        }
    }

    /// After the process has ended: ends what it left behind in its group, and takes its last output.
    pub(crate) async fn finish(mut self, stop: &mut watch::Receiver<Stop>) {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + LEFTOVER_GRACE;
        while rustix::process::test_kill_process_group(self.group).is_ok() {
            if Instant::now() >= deadline || *stop.borrow() == Stop::Now {
                self.signal(Signal::KILL);
                break;
            }
            tokio::time::sleep(LEFTOVER_POLL).await;
        }
        self.watcher.tell(format_args!("-{}", self.group));
        let drained = async { while self.output.join_next().await.is_some() {} };
        // Somebody outside the group may still hold the pipe; what they print is not the app's any more.
        let _ = tokio::time::timeout(OUTPUT_TIMEOUT, drained).await;
    }

    fn signal(&self, signal: Signal) {
        // A group that is gone needs no signal.
        let _ = rustix::process::kill_process_group(self.group, signal);
    }
}

/// The program a command names: a path relative to `folder`, or a name to look up in `path`.
pub(crate) fn find_program(name: &OsStr, folder: &Path, path: Option<&OsStr>) -> Option<PathBuf> {
    let executable = |file: &Path| {
        std::fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if name.as_encoded_bytes().contains(&b'/') {
        let file = folder.join(name);
        return executable(&file).then_some(file);
    }
    let folders = std::env::split_paths(path.unwrap_or(OsStr::new("/usr/local/bin:/usr/bin:/bin")));
    folders.map(|entry| folder.join(entry).join(name)).find(|file| executable(file))
}

/// How a process ended, in words.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => match signal_name(signal) {
            Some(name) => format!("was ended by signal {signal} ({name})"),
            None => format!("was ended by signal {signal}"),
        },
        (None, None) => "ended".to_owned(),
    }
}

/// The exit status a shell would report.
pub(crate) fn status_code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => (code & 0xff) as u8,
        (None, Some(signal)) => 128_u8.saturating_add((signal & 0x7f) as u8),
        (None, None) => crate::error::FAILURE,
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    let known = [
        (Signal::HUP, "SIGHUP"),
        (Signal::INT, "SIGINT"),
        (Signal::QUIT, "SIGQUIT"),
        (Signal::ILL, "SIGILL"),
        (Signal::ABORT, "SIGABRT"),
        (Signal::BUS, "SIGBUS"),
        (Signal::FPE, "SIGFPE"),
        (Signal::KILL, "SIGKILL"),
        (Signal::SEGV, "SIGSEGV"),
        (Signal::PIPE, "SIGPIPE"),
        (Signal::TERM, "SIGTERM"),
    ];
    known.iter().find(|(known, _)| known.as_raw() == signal).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_described_and_counted_as_shells_do() {
        assert_eq!(describe(ExitStatus::from_raw(3 << 8)), "exited with status 3");
        assert_eq!(status_code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(describe(ExitStatus::from_raw(9)), "was ended by signal 9 (SIGKILL)");
        assert_eq!(status_code(ExitStatus::from_raw(9)), 137);
    }

    #[test]
    fn programs_are_found_as_shells_find_them() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("start");
        std::fs::write(&script, "").unwrap();
        assert_eq!(find_program("./start".as_ref(), folder.path(), None), None, "it is not executable");
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find_program("./start".as_ref(), folder.path(), None), Some(folder.path().join("./start")));
        assert_eq!(find_program("start".as_ref(), Path::new("/"), None), None);
        assert_eq!(find_program("start".as_ref(), Path::new("/"), Some(folder.path().as_os_str())), Some(script));
    }
}
