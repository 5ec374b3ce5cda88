//! Memory with many open connections, and what comes back when they are gone.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::{Effort, component, state};
use crate::load::{self, Load, Pace};
use crate::process::memory;
use crate::sidecar::{Binary, Setup, request};

const CONNECTIONS: usize = 1000;
/// Time for memory to be given back.
const SETTLE: Duration = Duration::from_secs(10);

/// Resident memory of one binary, in KiB.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Connections {
    pub(crate) path: String,
    pub(crate) connections: usize,
    pub(crate) before_kib: u64,
    pub(crate) under_load_kib: u64,
    pub(crate) after_kib: u64,
    pub(crate) errors: u64,
}

/// Reads state over a thousand connections at once.
///
/// # Errors
/// A binary that does not start or does not answer.
pub(crate) fn run(binaries: &[Binary], folder: &Path, effort: Effort) -> io::Result<Vec<Connections>> {
    eprintln!("memory under {CONNECTIONS} connections");
    let documents = [
        ("memory.yaml", component("memory", "state.in-memory", &[])),
        ("sql.yaml", component("sql", "state.sqlite", &[("connectionString", "FOLDER/state.db")])),
    ];
    let each = |binary: &Binary| {
        let sidecar = binary.start(folder, &Setup { app_id: "connections", app: None, documents: &documents })?;
        let value = super::json_value(1024);
        let save = format!("[{{\"key\":\"k\",\"value\":{}}}]", String::from_utf8_lossy(&value));
        request(sidecar.http, "POST", "/v1.0/state/memory", &save)?;
        std::thread::sleep(Duration::from_secs(1));
        let before = memory(sidecar.pid());
        let shot = state::get(sidecar.http, "memory");
        let load = Load {
            pace: Pace::Saturation,
            connections: CONNECTIONS,
            warm_up: effort.warm_up,
            measured: effort.measured.max(Duration::from_secs(2)),
        };
        let (under, errors) = std::thread::scope(|scope| {
            let loading = scope.spawn(|| load::run(&shot, load, &[]));
            std::thread::sleep(load.warm_up + load.measured.mul_f32(0.8));
            let under = memory(sidecar.pid());
            let outcome = loading.join().unwrap_or_else(|_| Err(io::Error::other("the load panicked")))?;
            Ok::<_, io::Error>((under, outcome.errors))
        })?;
        std::thread::sleep(SETTLE);
        let after = memory(sidecar.pid());
        Ok(Connections {
            path: binary.name.clone(),
            connections: CONNECTIONS,
            before_kib: before.rss,
            under_load_kib: under.rss,
            after_kib: after.rss,
            errors,
        })
    };
    binaries.iter().map(each).collect()
}
