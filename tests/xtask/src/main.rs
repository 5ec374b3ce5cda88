//! Chores of this repository: `cargo run -p xtask -- COMMAND`.
//!
//! Every command prints what is wrong, where, and what to do next. Status: 0 all is well, 1 something
//! is to be done, 2 the command line is wrong.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

mod codegen;
mod crds;
mod docs;
mod manifests;
mod tidy;

const USAGE: &str = "\
Usage: cargo run -p xtask -- COMMAND

Commands:
  codegen           generate proto/src/generated from proto/dapr
  codegen --check   fail when the committed code is not what codegen writes
  crds              generate deploy/crds from the kinds in proto/resources
  crds --check      fail when the committed definitions are not what crds writes
  manifests         generate deploy/manifests from the chart in deploy/chart
  manifests --check fail when the committed manifests are not what the chart renders
  docs              generate docs/reference, docs/errors and the table of components in README.md
  docs --check      fail when the committed pages are not what docs writes
  tidy              check the rules of the house: arrows between crates, lints, lock file, named paths
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let root = workspace_root();
    let outcome = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["codegen"] => codegen::write(&root),
        ["codegen", "--check"] => codegen::check(&root),
        ["crds"] => crds::write(&root),
        ["crds", "--check"] => crds::check(&root),
        ["manifests"] => manifests::write(&root),
        ["manifests", "--check"] => manifests::check(&root),
        ["docs"] => docs::write(&root),
        ["docs", "--check"] => docs::check(&root),
        ["tidy"] => tidy::run(&root),
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("xtask: unknown command line `{}`\n\n{USAGE}", args.join(" "));
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

/// The folder of the root manifest: this package lives two folders below it.
fn workspace_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}
