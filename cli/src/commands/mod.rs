//! The commands, one file each.

mod list;
mod logs;
mod stop;

use crate::args::{Cli, Command};
use crate::error::Result;

/// Runs the command and returns the exit status.
pub(crate) async fn dispatch(cli: Cli) -> Result<u8> {
    match cli.command {
        Command::Run(args) => crate::run::run(*args).await,
        Command::List(args) => list::run(&args),
        Command::Stop(args) => stop::run(&args).await,
        Command::Logs(args) => logs::run(&args).await,
        _ => Ok(0),
    }
}
