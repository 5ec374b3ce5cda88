//! `mecha-control`, the control part: roles by subcommand.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The control part of Mecha.
#[derive(Debug, Parser)]
#[command(
    name = "mecha-control",
    version,
    about = "The control part of Mecha: injects sidecars, decides backends, delivers documents",
    after_help = "This version has no role built yet. Sidecars do not need the control part: \
                  mechad runs from files, and `mecha run` sets it up on one machine."
)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

/// A role of the control part; each runs as its own Deployment.
#[derive(Clone, Copy, Debug, Subcommand)]
enum Role {
    /// Decides which backend serves a claim, and explains it.
    Hub,
    /// Pulls decisions into one cluster and delivers documents to its sidecars.
    Agent,
    /// Adds the sidecar to opted-in pods.
    Injector,
    /// All roles in one process, for trying it out.
    All,
}

/// Exit status of a command that cannot be carried out.
const UNAVAILABLE: u8 = 1;

fn main() -> ExitCode {
    let name = match Cli::parse().role {
        Role::Hub => "hub",
        Role::Agent => "agent",
        Role::Injector => "injector",
        Role::All => "all",
    };
    eprintln!(
        "error[role-unavailable]: version {} does not contain the role '{name}'. \
         Use mechad with files (--resources-path), or `mecha run` on one machine.",
        env!("CARGO_PKG_VERSION")
    );
    ExitCode::from(UNAVAILABLE)
}
