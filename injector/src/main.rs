//! `mecha-control`, the control part: roles by subcommand.

mod cli;
mod logs;
mod ops;
mod program;
mod roles;
mod telemetry;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    logs::start(&cli.common);
    match program::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(code = error.code, "{error}");
            eprintln!("error[{}]: {error}", error.code);
            ExitCode::FAILURE
        }
    }
}
