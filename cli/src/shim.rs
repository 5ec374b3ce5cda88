//! The two small modes in which mecha starts itself, so that nothing it started outlives it, even when it is
//! killed with SIGKILL and cannot clean up.
//!
//! * `mecha __supervise PARENT PROGRAM NAME ARGS…` asks the kernel for a SIGTERM when its parent dies and then
//!   *becomes* the program. Doing this in a fresh process needs no code between fork and exec.
//! * `mecha __watch` holds the read end of a pipe whose write end only mecha has. When mecha is gone, for whatever
//!   reason, the pipe ends and the process groups named on it are ended. This reaches what the first cannot:
//!   children of the app (npm → node), and systems without a parent-death signal.

use rustix::process::{Pid, Signal};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::BufRead as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

const SUPERVISE: &str = "__supervise";
const WATCH: &str = "__watch";

/// How long the groups of a mecha that died may take to end by themselves.
const ORPHAN_GRACE: Duration = Duration::from_secs(3);
const ORPHAN_POLL: Duration = Duration::from_millis(20);

/// Statuses of shells for "found, but cannot be run" and "not found".
const CANNOT_EXECUTE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Runs a helper mode if this process was started in one.
pub(crate) fn dispatch() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    match args.next()?.to_str()? {
        SUPERVISE => Some(supervise(args)),
        WATCH => Some(watch()),
        _ => None,
    }
}

/// A command that runs `program` (called `name`) and ends with this process.
pub(crate) fn supervised(mecha: &OsStr, program: &OsStr, name: &OsStr, args: &[OsString]) -> Command {
    let mut command = Command::new(mecha);
    command.arg(SUPERVISE).arg(std::process::id().to_string()).arg(program).arg(name).args(args);
    command
}

/// The command of the watcher.
pub(crate) fn watcher(mecha: &OsStr) -> Command {
    let mut command = Command::new(mecha);
    command.arg(WATCH);
    command
}

fn supervise(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let (Some(parent), Some(program), Some(name)) = (args.next(), args.next(), args.next()) else {
        eprintln!("mecha: {SUPERVISE} is for mecha's own use");
        return ExitCode::from(crate::error::USAGE);
    };
    #[cfg(target_os = "linux")]
    {
        if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::TERM)) {
            eprintln!("mecha: cannot tie the process to mecha: {error}");
            return ExitCode::FAILURE;
        }
    }
    // The parent may have died before the request was made: then nobody would ever send the signal.
    let alive = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().to_string());
    if alive.as_deref() != parent.to_str() {
        return ExitCode::FAILURE;
    }
    let error = Command::new(&program).arg0(&name).args(args).exec();
    eprintln!("mecha: cannot start {}: {error}", program.to_string_lossy());
    ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_EXECUTE })
}

fn watch() -> ExitCode {
    let mut groups = BTreeSet::new();
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        // `+N` adds the process group N, `-N` forgets it.
        match line.strip_prefix('+') {
            Some(group) => drop(group.parse().map(|group: i32| groups.insert(group))),
            None => drop(
                line.strip_prefix('-').and_then(|group| group.parse().ok()).map(|group: i32| groups.remove(&group)),
            ),
        }
    }
    let groups: Vec<Pid> = groups.into_iter().filter_map(Pid::from_raw).collect();
    end_groups(&groups);
    ExitCode::SUCCESS
}

/// Ends what is left of the process groups: gracefully if it goes quickly, by force if not.
fn end_groups(groups: &[Pid]) {
    // On Linux the leaders already got a SIGTERM from the kernel, and for a sidecar a second one means "at once".
    if !cfg!(target_os = "linux") {
        for group in groups {
            // An empty group is what we want.
            let _ = rustix::process::kill_process_group(*group, Signal::TERM);
        }
    }
    let deadline = Instant::now() + ORPHAN_GRACE;
    let mut left: Vec<Pid> = groups.to_vec();
    loop {
        left.retain(|leader| rustix::process::test_kill_process(*leader).is_ok());
        if left.is_empty() || Instant::now() >= deadline {
            break;
        }
        std::thread::sleep(ORPHAN_POLL);
    }
    for group in groups {
        // An empty group is what we want.
        let _ = rustix::process::kill_process_group(*group, Signal::KILL);
    }
}
