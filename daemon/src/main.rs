//! `mechad`, the sidecar.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((command, rest)) if command == "probe" => mechad::probe::main(rest),
        _ => mechad::run::main(&args),
    }
}
