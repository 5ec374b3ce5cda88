//! `mecha completion`.

use crate::args::{Cli, CompletionArgs};
use crate::error::{OK, Result};
use crate::output;
use clap::CommandFactory as _;

pub(crate) fn run(args: &CompletionArgs) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "mecha", &mut script);
    output::write(&script)?;
    Ok(OK)
}
