//! `mecha stop`: asks the owning `mecha run`, which knows how to end things in order, and waits.

use crate::args::StopArgs;
use crate::error::{CliError, OK, Result};
use crate::home::Home;
use crate::output;
use crate::registry::{self, Record};
use crate::run::runfile;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

const POLL: Duration = Duration::from_millis(20);

pub(crate) async fn run(args: &StopArgs) -> Result<u8> {
    let home = Home::locate()?;
    let running = registry::list(&home)?;
    let chosen = choose(args, &running)?;
    let mut whole_runs = BTreeSet::new();
    for record in &chosen {
        let whole = running.iter().filter(|other| other.cli_pid == record.cli_pid).all(|other| chosen.contains(other));
        if !whole {
            record.stop_app(&home)?;
        } else if whole_runs.insert(record.cli_pid) {
            record.stop_run()?;
        }
    }
    let deadline = Instant::now() + args.timeout;
    loop {
        let left: Vec<Record> =
            registry::list(&home)?.into_iter().filter(|record| chosen.iter().any(|one| same(one, record))).collect();
        if left.is_empty() {
            break;
        }
        if Instant::now() >= deadline {
            let names: Vec<String> =
                left.iter().map(|record| format!("{} (process {})", record.app_id, record.cli_pid)).collect();
            return Err(CliError::new("stop", format!("not ended within {:?}: {}", args.timeout, names.join(", ")))
                .hint("--timeout waits longer; `kill -9` of that process ends its apps at once"));
        }
        tokio::time::sleep(POLL).await;
    }
    let lines: String = chosen.iter().map(|record| format!("stopped {}\n", record.app_id)).collect();
    output::write(lines.as_bytes())?;
    Ok(OK)
}

fn choose(args: &StopArgs, running: &[Record]) -> Result<Vec<Record>> {
    if args.all {
        return Ok(running.to_vec());
    }
    if let Some(path) = &args.run_file {
        let file = runfile::locate(path)?
            .ok_or_else(|| CliError::usage("run-file", "apps started from standard input have no file to name"))?;
        let chosen: Vec<Record> =
            running.iter().filter(|record| record.run_file.as_ref() == Some(&file)).cloned().collect();
        return match chosen.is_empty() {
            true => Err(CliError::new("app-not-running", format!("no app of {} runs here", file.display()))),
            false => Ok(chosen),
        };
    }
    let mut chosen = Vec::new();
    for id in args.app_ids.iter().chain(&args.ids) {
        let before = chosen.len();
        chosen.extend(running.iter().filter(|record| &record.app_id == id).cloned());
        if chosen.len() == before {
            return Err(registry::unknown(id, running));
        }
    }
    match chosen.is_empty() {
        true => Err(CliError::usage("stop", "name the apps to stop").hint("--app-id ID, -f FILE or --all")),
        false => Ok(chosen),
    }
}

fn same(one: &Record, other: &Record) -> bool {
    (&one.app_id, one.cli_pid, &one.started) == (&other.app_id, other.cli_pid, &other.started)
}
