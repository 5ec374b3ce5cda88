//! `mechad`, the sidecar.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    mechad::run::main(&args)
}
