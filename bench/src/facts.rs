//! What the machine is and how busy it was.

use std::fs;
use std::process::Command;

use serde::Serialize;

/// Facts that figures mean nothing without.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Facts {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    /// Commit that the bench was built in, with a mark when the tree had changes.
    pub(crate) commit: String,
    pub(crate) date: String,
    /// One-minute load average before the first and after the last run.
    pub(crate) load_before: f64,
    pub(crate) load_after: f64,
}

impl Facts {
    pub(crate) fn now() -> Self {
        let cpu = read("/proc/cpuinfo");
        let model =
            cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, v)| v.trim()));
        let memory = read("/proc/meminfo");
        let total = memory
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.split_ascii_whitespace().next()?.parse::<u64>().ok());
        Self {
            cpu: model.unwrap_or("unknown").to_owned(),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_mib: total.unwrap_or_default() / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            commit: said("git", &["describe", "--always", "--dirty"]),
            date: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%MZ").to_string(),
            load_before: load(),
            load_after: 0.0,
        }
    }

    pub(crate) fn finish(&mut self) {
        self.load_after = load();
    }
}

fn load() -> f64 {
    read("/proc/loadavg").split_ascii_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or_default()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn said(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output();
    out.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}
