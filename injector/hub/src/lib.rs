//! The hub role: decides, writes bindings, drives moves.
//!
//! One replica leads. It looks at everything at once (`view`), works out without any I/O what should be written
//! (`turn`), and writes that (`write`) while its lease holds. What it has written comes back by its watches and
//! makes the next turn, until a turn writes nothing. It keeps nothing that decides: statuses and CapabilityBindings
//! are its memory, so a successor goes on where it was, whatever write was the last.
//!
//! People steer it by the objects alone:
//! - `approvedSwap` of an EnvironmentClass agrees to the plan that its status names.
//! - The annotations [`ABORT`] and [`PROCEED`] of a CapabilityBinding name claims, separated by commas, whose move
//!   is to go back, or to go on though the old backend is not empty. A class that is edited back aborts as well.

mod backends;
mod bindings;
mod claims;
mod classes;
mod clusters;
mod conditions;
mod decide;
mod environments;
mod lead;
mod metrics;
mod placements;
mod swaps;
mod traces;
mod turn;
mod view;
mod write;

use std::time::Duration;

pub use bindings::{ABORT, PROCEED};
use mecha_apiserver::trace::Tracer;
use mecha_apiserver::{Role, Timing};
pub use mecha_decide::Hysteresis;

/// How the hub works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the MemberCluster that the control part runs in; made where it is missing.
    pub cluster_name: String,
    /// Longest time between two looks at everything; changes are looked at when they happen.
    pub resync: Duration,
    /// When a better backend is worth a move.
    pub hysteresis: Hysteresis,
    /// How long the lease of the leader holds.
    pub lease: Timing,
    /// Starts the spans of decisions and of what is written for them.
    pub tracer: Tracer,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cluster_name: "local".to_owned(),
            resync: Duration::from_secs(60),
            hysteresis: Hysteresis::default(),
            lease: Timing::default(),
            tracer: Tracer::off(),
        }
    }
}

/// Why the hub cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The name makes no namespace.
    #[error("'{0}' is no name for a cluster: use at most 49 lower-case letters, digits and hyphens, as in eu-1")]
    ClusterName(String),
}

/// Runs until the role's tasks are told to stop.
///
/// # Errors
/// The options make no sense; everything else is waited for and said in logs and metrics.
pub async fn run(options: Options, role: Role) -> Result<(), RunError> {
    let name = &options.cluster_name;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 49 || !name.chars().all(plain) || name.starts_with('-') || name.ends_with('-') {
        return Err(RunError::ClusterName(name.clone()));
    }
    lead::run(options, role).await;
    Ok(())
}
