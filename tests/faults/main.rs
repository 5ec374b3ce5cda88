//! Faults of the daemon, of its app, of the servers behind its components and of the network between
//! them: clear errors while they last, recovery by itself, and nothing lost that was acknowledged.
//!
//! `cargo test -p mecha-tests --test faults -- state.redis` runs a part of it. A durable component is
//! one row in `table.rs`; every case below is run for every row it fits.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

mod app_process;
mod kill_app;
mod kill_mechad;
mod load;
mod servers;
mod start_up;
mod table;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use self::table::{Block, ROWS, Row};

/// Cases at once.
const THREADS: usize = 6;

fn main() -> ExitCode {
    if let Some(code) = app_process::main() {
        return code;
    }
    let mut arguments = Arguments::from_args();
    // Most of the time something is waited for.
    arguments.test_threads.get_or_insert(THREADS);
    let mut trials = Vec::new();
    // The longest ones first, so that none runs alone in the end.
    for row in ROWS.iter().rev().filter(|row| row.server.is_some()) {
        trials.push(trial(row, "faults of its server", servers::run));
    }
    for row in ROWS {
        trials.push(trial(row, "kill of mechad", kill_mechad::run));
        if row.block == Block::PubSub {
            trials.push(trial(row, "kill of the app, the broker delivers again", kill_app::by_broker));
            trials.push(trial(row, "kill of the app, a policy tries again", kill_app::by_policy));
        }
        if row.server.is_some() {
            trials.push(trial(row, "server away at a strict start", start_up::strict));
            trials.push(trial(row, "server away at a bare start", start_up::bare));
            trials.push(trial(row, "server silent at a bare start", start_up::bare_timeout));
            trials.push(trial(row, "server away, errors ignored", start_up::bare_ignored));
        }
    }
    trials.push(named("locks, configuration and bindings: servers away at a strict start", start_up::others));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A case for one row.
fn trial<Fut>(row: &Row, case: &str, run: fn(Row) -> Fut) -> Trial
where
    Fut: Future<Output = ()> + 'static,
{
    let row = *row;
    named(&format!("{}: {case}", row.name), move || run(row))
}

/// A case, in a runtime of its own.
fn named<Fut>(name: &str, run: impl FnOnce() -> Fut + Send + 'static) -> Trial
where
    Fut: Future<Output = ()> + 'static,
{
    Trial::test(name.to_owned(), move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.map_err(|e| format!("cannot start the runtime: {e}"))?.block_on(run());
        Ok(())
    })
}

/// How often something is done: in the gate, and with `MECHA_TEST_LONG`.
fn rounds(gate: usize, long: usize) -> usize {
    if std::env::var_os("MECHA_TEST_LONG").is_some() { long } else { gate }
}
