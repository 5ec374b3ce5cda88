//! Measures a sidecar daemon beside direct calls, bare handlers and bare proxies, in one run on
//! one machine: start, memory, latency, throughput, CPU. Prints ratios, writes JSON and an SVG.
//!
//! The load generator is a thread of this process; the app, the bare handler and the bare proxies
//! are processes of their own, so that CPU is counted where it is used.

mod backends;
mod control;
mod facts;
mod layout;
mod load;
mod process;
mod report;
mod scenario;
mod serve;
mod sidecar;
mod svg;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use crate::backends::Backends;
use crate::report::Results;
use crate::scenario::Effort;
use crate::scenario::swap::Swaps;
use crate::sidecar::Binary;

/// Measures sidecar daemons side by side.
///
/// Examples:
///   mecha-bench                                      everything, target/release/mechad
///   mecha-bench --daemon target/release/mechad --daemon /usr/bin/daprd
///   mecha-bench --only invoke --only startup --quick
#[derive(Debug, Parser)]
#[command(verbatim_doc_comment)]
struct Args {
    /// A daemon to measure; several take turns in every round.
    #[arg(long = "daemon", value_name = "PATH", default_value = "target/release/mechad")]
    daemons: Vec<PathBuf>,
    /// Only these parts; all of them when none is named.
    #[arg(long = "only", value_name = "PART")]
    parts: Vec<Part>,
    /// One short round: shows that everything works, its figures mean little.
    #[arg(long)]
    quick: bool,
    /// Rounds; the medians are reported.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Seconds that count, in each round and for each path.
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=3600))]
    seconds: u16,
    /// Seconds of steady load after which memory is looked at; 600 for a published figure.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u16).range(2..))]
    soak_seconds: u16,
    /// Edits of a store's document for each pair of backends; those of a broker's are a fifth, because it is read to its
    /// end each time, and new clusters of Kafka a twentieth.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    swaps: u16,
    /// Folder for the JSON and the SVG.
    #[arg(long, value_name = "FOLDER", default_value = "bench/results")]
    out: PathBuf,
    #[command(subcommand)]
    helper: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// The process of an app or a proxy; started by the bench itself.
    #[command(hide = true)]
    Helper {
        /// Role, wire, value.
        args: Vec<String>,
    },
    /// The control part on a real API server: memory, idle CPU, a thousand claims, edits.
    Control {
        /// The program to measure.
        #[arg(long, value_name = "PATH", default_value = "target/release/mecha-control")]
        program: PathBuf,
        /// Seconds during which nothing happens.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        idle_seconds: u64,
        /// Moves of claims to and fro.
        #[arg(long, value_name = "N", default_value_t = 100)]
        edits: usize,
        /// Sidecars that each of these edits moves; each has a claim of its own.
        #[arg(long, value_name = "N", default_value_t = 1)]
        sidecars: usize,
        /// Measure nothing but the edits.
        #[arg(long)]
        edits_only: bool,
    },
    /// Write the linker script that keeps together what every start runs.
    Layout {
        /// A release build with its symbols.
        program: PathBuf,
        /// It is the control part, not a sidecar.
        #[arg(long)]
        control: bool,
        /// The script.
        script: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Startup,
    State,
    Invoke,
    Grpc,
    Pubsub,
    Connections,
    Soak,
    Swap,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.helper {
        Some(Task::Helper { args }) => serve::run(args),
        Some(Task::Control { program, idle_seconds, edits, sidecars, edits_only }) => {
            let what = control::What {
                program: program.clone(),
                daemon: args.daemons.first().cloned().unwrap_or_default(),
                idle: Duration::from_secs(*idle_seconds),
                edits: *edits,
                sidecars: *sidecars,
                edits_only: *edits_only,
            };
            control::run(&what, &args.out)
        }
        Some(Task::Layout { program, control, script }) => layout::run(program, *control, script),
        None => bench(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("mecha-bench: {e}");
            ExitCode::FAILURE
        }
    }
}

fn bench(args: &Args) -> io::Result<()> {
    let binaries = args.daemons.iter().map(|path| Binary::new(path)).collect::<io::Result<Vec<_>>>()?;
    let effort = if args.quick {
        Effort { rounds: 1, warm_up: Duration::from_millis(300), measured: Duration::from_secs(1), starts: 3 }
    } else {
        Effort {
            rounds: args.rounds.into(),
            warm_up: Duration::from_millis(500),
            measured: Duration::from_secs(args.seconds.into()),
            starts: 21,
        }
    };
    let wanted = |part: Part| args.parts.is_empty() || args.parts.contains(&part);
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let mut results = Results::new(effort);
    let backends = Backends::start();
    if wanted(Part::Startup) {
        results.footprints = scenario::startup::run(&binaries, &backends, folder, effort)?;
    }
    if wanted(Part::State) {
        results.contests.extend(scenario::state::run(&binaries, &backends, folder, effort)?);
    }
    // What comes later may fail; what was measured before it is not lost.
    write(&args.out, &results)?;
    if wanted(Part::Invoke) {
        let (contests, after) = scenario::invoke::http(&binaries, folder, effort)?;
        results.contests.extend(contests);
        results.after_load(after);
    }
    write(&args.out, &results)?;
    if wanted(Part::Grpc) {
        results.contests.extend(scenario::invoke::grpc(&binaries, folder, effort)?);
    }
    write(&args.out, &results)?;
    if wanted(Part::Pubsub) {
        let (contests, deliveries) = scenario::pubsub::run(&binaries, &backends, folder, effort)?;
        results.contests.extend(contests);
        results.deliveries = deliveries;
    }
    write(&args.out, &results)?;
    if wanted(Part::Connections) {
        results.connections = scenario::connections::run(&binaries, folder, effort)?;
    }
    write(&args.out, &results)?;
    if wanted(Part::Soak) {
        let length = if args.quick { 2 } else { args.soak_seconds };
        results.soaks = scenario::soak::run(&binaries, folder, Duration::from_secs(length.into()))?;
    }
    if Part::value_variants().iter().any(|part| *part != Part::Swap && wanted(*part)) {
        results.finish();
        print!("{}", report::table(&results));
        write(&args.out, &results)?;
        println!("\nwritten: {0}/latest.json and {0}/latest.svg", args.out.display());
    }
    if wanted(Part::Swap) {
        let edits = if args.quick { 1 } else { args.swaps };
        let keep = |swaps: &Swaps| {
            fs::create_dir_all(&args.out)?;
            fs::write(args.out.join("swap.json"), serde_json::to_string_pretty(swaps)? + "\n")
        };
        let swaps = scenario::swap::run(&binaries, &backends, folder, edits.into(), &keep)?;
        print!("{}", report::swaps(&swaps));
        println!("\nwritten: {}/swap.json", args.out.display());
    }
    Ok(())
}

/// Nothing replaces the figures of another run before there are some.
fn write(folder: &Path, results: &Results) -> io::Result<()> {
    if results.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    let mut text = serde_json::to_string_pretty(results).map_err(io::Error::other)?;
    text.push('\n');
    fs::write(folder.join("latest.json"), text)?;
    fs::write(folder.join("latest.svg"), svg::draw(results))
}
