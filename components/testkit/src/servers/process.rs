use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Starts the program, says its pid, and ends it when our end of the pipe closes, however
/// we die. The program's output goes where the guard's errors go.
///
/// A line it reads is a folder to remove in the end.
const GUARD: &str = r#""$@" </dev/null >&2 & child=$!; echo "$child"; folder=
while read -r line; do folder=$line; done
kill -9 "$child"; [ -z "$folder" ] || { wait "$child"; rm -rf -- "$folder"; }"#;

/// A server program that cannot outlive this process.
#[derive(Debug)]
pub struct Process {
    guard: Child,
    pid: Pid,
    /// Closing it ends the program.
    leash: Option<ChildStdin>,
}

impl Process {
    /// Starts `program` behind a guard. Its output goes to `log`, anew at each start.
    ///
    /// # Errors
    /// Says what could not be started.
    pub fn start<S: AsRef<OsStr>>(
        program: &str,
        args: impl IntoIterator<Item = S>,
        log: &Path,
    ) -> Result<Self, String> {
        let output = std::fs::File::create(log).map_err(|e| format!("cannot write {}: {e}", log.display()))?;
        let mut guard = Command::new("sh")
            .args(["-c", GUARD, "sh", program])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(output)
            .spawn()
            .map_err(|e| format!("cannot start {program}: {e}"))?;
        let leash = guard.stdin.take();
        let mut line = String::new();
        if let Some(pid) = guard.stdout.take() {
            BufReader::new(pid).read_line(&mut line).map_err(|e| format!("cannot start {program}: {e}"))?;
        }
        let pid = line.trim().parse().ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| format!("cannot start {program}: the guard said '{}'", line.trim()))?;
        Ok(Self { guard, pid, leash })
    }

    /// Lets the guard remove `folder` once the program has ended, whatever becomes of us.
    pub fn sweep(&mut self, folder: &Path) {
        if let Some(leash) = &mut self.leash {
            let _ = writeln!(leash, "{}", folder.display());
        }
    }

    /// Whether it still runs. One that ended keeps its number until its guard goes, so its
    /// state is asked for, too.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        let ended = |stat: String| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'));
        self.has_number() && !state.is_ok_and(ended)
    }

    /// Whether its number is still taken, by it or by what is left of it.
    fn has_number(&self) -> bool {
        rustix::process::test_kill_process(self.pid).is_ok()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Freezes it: connections stay, nothing answers.
    pub fn freeze(&self) {
        let _ = kill_process(self.pid, Signal::STOP);
    }

    /// Lets a frozen one go on.
    pub fn thaw(&self) {
        let _ = kill_process(self.pid, Signal::CONT);
    }

    /// Asks it to end, as a supervisor would, and waits for it.
    pub fn terminate(&mut self) {
        let _ = kill_process(self.pid, Signal::TERM);
        let _ = wait_for(Duration::from_secs(10), || !self.is_alive());
        self.kill();
    }

    /// Ends it without a chance to say goodbye and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = kill_process(self.pid, Signal::KILL);
        drop(self.leash.take());
        let _ = self.guard.wait();
        // Servers look at the number in their lock file before they start again.
        let _ = wait_for(Duration::from_secs(10), || !self.has_number());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Looks at `condition` until it holds; false when it does not in time.
pub(crate) fn wait_for(within: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + within;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// A port nobody listens on now. Somebody may take it before its use, so starts are tried again.
#[must_use]
pub fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr()).map_or(0, |a| a.port())
}
