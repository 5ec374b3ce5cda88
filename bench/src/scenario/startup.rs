//! Binary size, time from exec to the first 204, idle memory.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::{Effort, component, median};
use crate::backends::Backends;
use crate::process::memory;
use crate::sidecar::{Binary, Setup};

/// After this time an idle process has settled.
const SETTLE: Duration = Duration::from_secs(2);
/// Starts whose idle memory is looked at.
const IDLE_STARTS: usize = 5;

/// What one binary costs before it has done anything.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Footprint {
    pub(crate) binary: String,
    pub(crate) version: String,
    /// Components it was started with.
    pub(crate) loaded: String,
    pub(crate) bytes: u64,
    pub(crate) start_ms: f64,
    pub(crate) start_worst_ms: f64,
    pub(crate) idle_rss_kib: f64,
    pub(crate) idle_anonymous_kib: f64,
    pub(crate) idle_peak_kib: f64,
}

/// Starts every binary several times, in turns: with embedded defaults, then with every store.
///
/// # Errors
/// A binary that does not start.
pub(crate) fn run(
    binaries: &[Binary],
    backends: &Backends,
    folder: &Path,
    effort: Effort,
) -> io::Result<Vec<Footprint>> {
    let defaults = [
        ("sql.yaml", component("sql", "state.sqlite", &[("connectionString", "FOLDER/state.db")])),
        ("pubsub.yaml", component("pubsub", "pubsub.in-memory", &[])),
    ];
    let mut out = loaded("sqlite, memory", "idle", &defaults, binaries, folder, effort)?;
    let stores = backends.stores();
    let names: Vec<&str> = stores.iter().filter_map(|(file, _)| file.strip_suffix(".yaml")).collect();
    out.extend(loaded(&names.join(", "), "idle-stores", &stores, binaries, folder, effort)?);
    Ok(out)
}

fn loaded(
    shown: &str,
    app_id: &str,
    documents: &[(&str, String)],
    binaries: &[Binary],
    folder: &Path,
    effort: Effort,
) -> io::Result<Vec<Footprint>> {
    eprintln!("start and idle memory, loaded: {shown}");
    let mut starts = vec![Vec::new(); binaries.len()];
    let mut idle = vec![Vec::new(); binaries.len()];
    for round in 0..effort.starts {
        for (at, binary) in binaries.iter().enumerate() {
            let sidecar = binary.start(folder, &Setup { app_id, app: None, documents })?;
            // The first start makes the database files.
            if round > 0 || effort.starts == 1 {
                starts[at].push(sidecar.start.as_secs_f64() * 1e3);
            }
            if round < IDLE_STARTS {
                std::thread::sleep(SETTLE);
                idle[at].push(memory(sidecar.pid()));
            }
        }
    }
    let footprints = binaries.iter().zip(starts).zip(idle).map(|((binary, starts), idle)| Footprint {
        binary: binary.name.clone(),
        version: binary.version(),
        loaded: shown.to_owned(),
        bytes: binary.bytes(),
        start_ms: median(starts.iter().copied()),
        start_worst_ms: starts.iter().copied().fold(0.0, f64::max),
        idle_rss_kib: median(idle.iter().map(|m| m.rss as f64)),
        idle_anonymous_kib: median(idle.iter().map(|m| m.anonymous as f64)),
        idle_peak_kib: median(idle.iter().map(|m| m.peak as f64)),
    });
    Ok(footprints.collect())
}
