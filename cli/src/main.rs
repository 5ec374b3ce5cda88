//! `mecha`: runs apps with a mechad sidecar beside each, without containers or an init step, and talks to
//! the apps that run on this machine.

mod args;
mod client;
mod cluster;
mod commands;
mod error;
mod home;
mod kinds;
mod output;
mod registry;
mod run;
mod shim;
mod style;

use clap::Parser as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    // The helper modes come before everything else: they sit in the start path of every app.
    if let Some(code) = shim::dispatch() {
        return code;
    }
    let cli = args::Cli::parse();
    // One thread is enough here, and it is required: Linux sends the parent-death signal when the *thread*
    // that started a child ends, so children must be started from the thread that lives as long as mecha.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error[runtime]: cannot start the async runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = match runtime.block_on(commands::dispatch(cli)) {
        Ok(code) => code,
        Err(error) => {
            error.report();
            error.status()
        }
    };
    // Nothing is left that has to be waited for; a blocked standard input must not hold up the exit.
    runtime.shutdown_background();
    ExitCode::from(code)
}
