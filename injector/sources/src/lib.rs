//! Where the connection data of backends comes from, and whether the backends do what they say.
//!
//! For each CapabilityBackend the source is followed: a Secret, a Provisioned Service of the Service Binding
//! specification, or a Crossplane resource with its connection Secret. The backend's condition `Ready` says what is
//! lacking, and `verifiedFeatures` what was proven. For each document that names a Secret of ours, that Secret is
//! written from the source, and again when the source's values change, so that sidecars get them.
//!
//! Only the bindings of its own cluster are read, in the namespace `mecha-cluster-<name>`.
//!
//! One replica leads and writes. A source that goes takes nothing away: the condition says so, and what was written
//! stays until no document names it.

mod backends;
mod lead;
mod metrics;
mod objects;
mod probe;
mod secrets;
mod source;
mod template;

use std::path::PathBuf;
use std::time::Duration;

use mecha_apiserver::trace::Tracer;
use mecha_apiserver::{Role, Timing};

/// Owner of the fields that are written here, and value of the label of what is made here.
const MANAGER: &str = "mecha-sources";
/// Label of what is made here.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// ConfigMap with the names of the Secrets made in a namespace.
const LEDGER: &str = "mecha-secrets";
/// The lease of the replica that writes.
const LEASE: &str = "mecha-sources";

/// How sources are looked after.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the MemberCluster that this runs in: Secrets are written for its bindings.
    pub cluster_name: String,
    /// How long a Secret stays after the last document that named it.
    pub retain: Duration,
    /// Program that proves features, such as `mechad`; without one the claimed features are taken as true, and the
    /// status says so.
    pub probe_program: Option<PathBuf>,
    /// Time between two probes of a backend whose spec and values have not changed.
    pub probe_every: Duration,
    /// Longest run of a probe.
    pub probe_limit: Duration,
    /// How long the lease of the leader holds.
    pub lease: Timing,
    /// Makes the spans of what is resolved, probed and written.
    pub tracer: Tracer,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cluster_name: "local".to_owned(),
            retain: Duration::from_secs(3600),
            probe_program: None,
            probe_every: Duration::from_secs(3600),
            probe_limit: Duration::from_secs(60),
            lease: Timing::default(),
            tracer: Tracer::off(),
        }
    }
}

/// Why sources are not looked after.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The program that proves features is not there.
    #[error("the probe program {} is no file; install it or leave it unset", .0.display())]
    ProbeProgram(PathBuf),
}

/// Looks after sources until the role ends.
///
/// # Errors
/// An option is wrong. What the API server does not do is tried again, for ever.
pub async fn run(options: Options, role: Role) -> Result<(), RunError> {
    if let Some(program) = options.probe_program.as_ref().filter(|program| !program.is_file()) {
        return Err(RunError::ProbeProgram(program.clone()));
    }
    let stop = role.tasks.stopping().clone();
    let _ = stop.run_until_cancelled(lead::lead(options, role)).await;
    Ok(())
}
