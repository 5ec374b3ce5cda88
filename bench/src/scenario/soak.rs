//! Memory over minutes of steady load.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::invoke::{http_shot, pairs};
use crate::load::{self, Load, Pace, Wire};
use crate::process::memory;
use crate::serve::start_app;
use crate::sidecar::Binary;

const PER_SECOND: u32 = 1000;
const CONNECTIONS: usize = 16;
/// Time for memory to be given back.
const SETTLE: Duration = Duration::from_secs(10);

/// Resident memory of one calling sidecar, in KiB.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Soak {
    pub(crate) path: String,
    pub(crate) seconds: u64,
    pub(crate) per_second: u32,
    pub(crate) before_kib: u64,
    pub(crate) half_way_kib: u64,
    pub(crate) end_kib: u64,
    pub(crate) after_kib: u64,
    pub(crate) errors: u64,
}

/// Invokes through two sidecars for `length`, each binary in its turn.
///
/// # Errors
/// A binary that does not start or does not answer.
pub(crate) fn run(binaries: &[Binary], folder: &Path, length: Duration) -> io::Result<Vec<Soak>> {
    let app = start_app(Wire::Http1, 0)?;
    let pairs = pairs(binaries, folder, (app.address, "http"), "soak")?;
    let each = |(binary, (caller, _)): (&Binary, &(crate::sidecar::Sidecar, crate::sidecar::Sidecar))| {
        eprintln!("memory over {} s of {PER_SECOND} invocations a second, {}", length.as_secs(), binary.name);
        let pid = caller.pid();
        let before = memory(pid);
        let shot = http_shot(caller.http, "/v1.0/invoke/soak-callee/method/echo", 1024);
        let load =
            Load { pace: Pace::Rate(PER_SECOND), connections: CONNECTIONS, warm_up: Duration::ZERO, measured: length };
        let (half_way, end, outcome) = std::thread::scope(|scope| {
            let loading = scope.spawn(|| load::run(&shot, load, &[]));
            std::thread::sleep(length / 2);
            let half_way = memory(pid);
            std::thread::sleep(length / 2);
            let end = memory(pid);
            let outcome = loading.join().unwrap_or_else(|_| Err(io::Error::other("the load panicked")))?;
            Ok::<_, io::Error>((half_way, end, outcome))
        })?;
        std::thread::sleep(SETTLE);
        let after = memory(pid);
        Ok(Soak {
            path: binary.name.clone(),
            seconds: length.as_secs(),
            per_second: PER_SECOND,
            before_kib: before.rss,
            half_way_kib: half_way.rss,
            end_kib: end.rss,
            after_kib: after.rss,
            errors: outcome.errors,
        })
    };
    binaries.iter().zip(&pairs).map(each).collect()
}
