//! Child processes and what the kernel says of them.

use std::fs;
use std::io;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A child that is killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Process(Child);

/// Memory of a process in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Resident set.
    pub(crate) rss: u64,
    /// Resident memory that belongs to no file: heap and stacks.
    pub(crate) anonymous: u64,
    /// Largest resident set so far.
    pub(crate) peak: u64,
}

impl Process {
    pub(crate) fn spawn(command: &mut Command) -> io::Result<Self> {
        command
            .spawn()
            .map(Self)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", command.get_program().display())))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Asks it to end.
    pub(crate) fn terminate(&self) {
        let pid = i32::try_from(self.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }

    /// The exit status, when it has ended.
    pub(crate) fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.0.try_wait().ok().flatten()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// CPU seconds that a process has used, all threads that live.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0.0 };
    let nanos: u64 =
        tasks.flatten().filter_map(|task| run_time(&fs::read_to_string(task.path().join("schedstat")).ok()?)).sum();
    if nanos > 0 { nanos as f64 / 1e9 } else { ticks(pid).unwrap_or_default() }
}

/// CPU seconds of the calling thread.
pub(crate) fn own_thread_cpu() -> f64 {
    let nanos = fs::read_to_string("/proc/thread-self/schedstat").ok().and_then(|text| run_time(&text));
    nanos.unwrap_or_default() as f64 / 1e9
}

fn run_time(schedstat: &str) -> Option<u64> {
    schedstat.split_ascii_whitespace().next()?.parse().ok()
}

/// User and system time from `/proc/PID/stat`, which a kernel without schedstat has too.
fn ticks(pid: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) / rustix::param::clock_ticks_per_second() as f64)
}

/// Memory of a process now.
pub(crate) fn memory(pid: u32) -> Memory {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let read = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok()).unwrap_or_default()
    };
    Memory { rss: read("VmRSS"), anonymous: read("RssAnon"), peak: read("VmHWM") }
}

/// Resident memory of a process in KiB, pages that several map divided by their number.
pub(crate) fn proportional(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok()).unwrap_or_default()
}

/// Waits until `done`, looking often.
///
/// # Errors
/// It took longer than `limit`, or `done` failed.
pub(crate) fn wait_until(limit: Duration, what: &str, mut done: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let deadline = Instant::now() + limit;
    while !done()? {
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{what}: not within {limit:?}")));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
