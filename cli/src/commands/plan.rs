//! `mecha plan`: what the documents of a folder would change, before anything does.

use crate::error::{CHANGES, OK, Result};
use crate::kinds::{self, show};
use crate::output::{self, Format};
use clap::{Args, ValueHint};
use mecha_decide::{Consent, Plan};
use std::path::PathBuf;

/// Show which claims an edit would bind or move, why, and what stands in the way. Changes nothing.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mecha plan --dir platform\n  \
    mecha plan --dir platform --from platform.before -o json\n\n\
    What is bound now is read from the claims' status, and with --from from what the documents there decide.\n\
    Exit status: 0 nothing would change, 3 something would.")]
pub(crate) struct PlanArgs {
    /// Folder with the documents as they are to be
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: PathBuf,
    /// Folder with the documents as they were
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    from: Option<PathBuf>,
    /// Stores may begin empty at their new backend
    #[arg(long)]
    empty_ok: bool,
    /// Format of the answer
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

pub(crate) fn run(args: &PlanArgs) -> Result<u8> {
    let world = kinds::world(&kinds::read(&args.dir)?);
    let consent = Consent { empty_ok: args.empty_ok, ..Consent::default() };
    let memory = match &args.from {
        None => world.memory(),
        Some(dir) => {
            let before = kinds::world(&kinds::read(dir)?);
            let agreed = Consent { all: true, empty_ok: true, ..Consent::default() };
            before.evaluate(&before.memory(), &agreed, 0).memory
        }
    };
    let plan = Plan::of(&world.evaluate(&memory, &consent, 0));
    output::print(args.output, &plan, || show::plan(&plan))?;
    Ok(if plan.is_empty() { OK } else { CHANGES })
}
