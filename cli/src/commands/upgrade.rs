//! `mecha upgrade`: asks the owning `mecha run` to replace a sidecar in place, and waits.

use crate::args::UpgradeArgs;
use crate::error::{CliError, FAILURE, OK, Result};
use crate::home::Home;
use crate::output;
use crate::registry::{self, Record, UpgradeRequest};
use crate::run::sidecar;
use std::path::{Path, PathBuf};
use tokio::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);

pub(crate) async fn run(args: &UpgradeArgs) -> Result<u8> {
    let home = Home::locate()?;
    let running = registry::list(&home)?;
    let chosen = choose(args, &running)?;
    let mechad = match &args.mechad {
        Some(path) => program(path)?,
        None => sidecar::find()?,
    };
    let mut status = OK;
    // One after the other: where the new program is broken, the first one tells.
    for record in chosen {
        match upgrade(&home, &record, &mechad, args.timeout).await {
            Ok(pid) => {
                output::write(
                    format!("upgraded {}: process {} -> {pid}\n", record.app_id, record.sidecar_pid).as_bytes(),
                )?;
            }
            Err(error) => {
                status = FAILURE;
                error.report();
                break;
            }
        }
    }
    Ok(status)
}

/// The process id of the new sidecar.
async fn upgrade(home: &Home, record: &Record, mechad: &Path, limit: Duration) -> Result<i32> {
    if record.handover.is_none() {
        let text = format!("the sidecar of {} cannot be replaced in place", record.app_id);
        return Err(CliError::new("upgrade", text).hint(
            "it was started by an older mecha, or the path of MECHA_HOME is too long for a socket; start it anew",
        ));
    }
    record.ask_upgrade(home, &UpgradeRequest { mechad: mechad.to_owned() })?;
    let deadline = Instant::now() + limit;
    loop {
        if let Some(outcome) = record.upgrade_outcome(home) {
            return match outcome.error {
                None => Ok(outcome.sidecar_pid),
                Some(error) => Err(CliError::new("upgrade", error).hint("the sidecar before goes on")),
            };
        }
        let text = |what: &str| CliError::new("upgrade", format!("the sidecar of {} {what}", record.app_id));
        if !registry::list(home)?.iter().any(|r| (&r.app_id, r.cli_pid) == (&record.app_id, record.cli_pid)) {
            return Err(text("was stopped meanwhile"));
        }
        if Instant::now() >= deadline {
            record.withdraw_upgrade(home);
            return Err(text(&format!("was not replaced within {limit:?}")).hint("--timeout waits longer"));
        }
        tokio::time::sleep(POLL).await;
    }
}

fn program(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path)
        .map_err(|error| CliError::usage("upgrade", format!("cannot use {}: {error}", path.display())))
}

fn choose(args: &UpgradeArgs, running: &[Record]) -> Result<Vec<Record>> {
    if args.all {
        return Ok(running.to_vec());
    }
    let mut chosen: Vec<Record> = Vec::new();
    for id in args.app_ids.iter().chain(&args.ids) {
        let before = chosen.len();
        chosen.extend(running.iter().filter(|record| &record.app_id == id).cloned());
        if chosen.len() == before {
            return Err(registry::unknown(id, running));
        }
    }
    match chosen.is_empty() {
        true => Err(CliError::usage("upgrade", "name the apps").hint("--app-id ID or --all")),
        false => Ok(chosen),
    }
}
