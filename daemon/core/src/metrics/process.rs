//! Figures about the process itself, read from `/proc` at scrape time.
//! Where there is no `/proc` they are left out.

use std::fs;

use super::encode::{header, plain};

/// `USER_HZ`: the unit of times in `/proc/<pid>/stat`. It is 100 on every
/// architecture we ship for and part of the kernel's stable interface.
const TICKS_PER_SECOND: f64 = 100.0;

/// Index of `utime` in `/proc/self/stat` counted after the command name.
const UTIME: usize = 11;
const STIME: usize = 12;
const START_TIME: usize = 19;

pub(super) fn encode(out: &mut String) {
    let mut write = |name, kind, help, value: Option<f64>| {
        if let Some(value) = value {
            header(out, name, kind, help);
            plain(out, name, value);
        }
    };
    let stat = fs::read_to_string("/proc/self/stat").ok();
    let field = |at| stat.as_deref().and_then(|stat| stat_field(stat, at));
    let cpu = field(UTIME).zip(field(STIME)).map(|(user, system)| (user + system) / TICKS_PER_SECOND);
    write("process_cpu_seconds_total", "counter", "User and system CPU time spent, seconds.", cpu);
    let limits = fs::read_to_string("/proc/self/limits").ok();
    write("process_max_fds", "gauge", "Maximum number of open file descriptors.", limits.as_deref().and_then(max_fds));
    // One descriptor is the directory being read.
    let fds = fs::read_dir("/proc/self/fd").ok().map(|dir| dir.count().saturating_sub(1) as f64);
    write("process_open_fds", "gauge", "Number of open file descriptors.", fds);
    let status = fs::read_to_string("/proc/self/status").ok();
    let kib = |key| status.as_deref().and_then(|status| status_kib(status, key)).map(|kib| kib * 1024.0);
    write("process_resident_memory_bytes", "gauge", "Resident memory size, bytes.", kib("VmRSS:"));
    let started = field(START_TIME)
        .zip(fs::read_to_string("/proc/stat").ok().as_deref().and_then(boot_time))
        .map(|(ticks, boot)| boot + ticks / TICKS_PER_SECOND);
    write("process_start_time_seconds", "gauge", "Start time of the process since the Unix epoch, seconds.", started);
    write("process_virtual_memory_bytes", "gauge", "Virtual memory size, bytes.", kib("VmSize:"));
}

/// A number after the command name, which is in parentheses and may hold anything.
fn stat_field(stat: &str, at: usize) -> Option<f64> {
    let after = &stat[stat.rfind(')')? + 1..];
    after.split_ascii_whitespace().nth(at)?.parse().ok()
}

fn status_kib(status: &str, key: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn boot_time(stat: &str) -> Option<f64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn max_fds(limits: &str) -> Option<f64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_an_odd_command_name() {
        let stat = "12 (a ) b) S 1 1 1 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 5 0 12345 1 2";
        assert_eq!(stat_field(stat, UTIME), Some(150.0));
        assert_eq!(stat_field(stat, STIME), Some(50.0));
        assert_eq!(stat_field(stat, START_TIME), Some(12345.0));
        assert_eq!(stat_field("no parenthesis", 1), None);
    }

    #[test]
    fn status_and_limits_are_read() {
        assert_eq!(status_kib("Name:\tx\nVmRSS:\t    9216 kB\n", "VmRSS:"), Some(9216.0));
        assert_eq!(
            max_fds("Max open files            1024                 4096                 files\n"),
            Some(1024.0)
        );
        assert_eq!(max_fds("Max open files            unlimited   unlimited  files\n"), None);
        assert_eq!(boot_time("cpu 1 2\nbtime 1700000000\n"), Some(1_700_000_000.0));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_plausible_figures() {
        let mut out = String::new();
        encode(&mut out);
        let value = |name: &str| -> f64 {
            let line = out.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
            line[name.len() + 1..].parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_open_fds") >= 3.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - value("process_start_time_seconds")).abs() < 24.0 * 3600.0);
        assert!(value("process_cpu_seconds_total") < 3600.0);
    }
}
