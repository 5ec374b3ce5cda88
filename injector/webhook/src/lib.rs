//! The injector role: adds the sidecar to opted-in pods, and keeps that working.
//!
//! - [`review::answer`] turns an admission review into its answer, without any I/O; `server` serves it over HTTPS.
//! - `settings` keeps the configuration current, so that answers ask nobody.
//! - `certificate`, `bundle`, `registrar` and `rotation` make API servers trust the webhook, without a Secret.
//! - `canary` tries the whole way each minute; `repair` looks after pods that were not injected.
//! - `services` keeps a headless Service per app.

mod bundle;
mod canary;
mod certificate;
mod metrics;
mod options;
mod pods;
mod registrar;
mod registration;
mod repair;
pub mod review;
mod rotation;
mod server;
mod services;
mod settings;
mod workloads;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use mecha_apiserver::{Events, Leadership, Patience, Role};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::canary::Canary;
pub use crate::certificate::CertificateError;
use crate::metrics::Metrics;
pub use crate::options::{CanaryOptions, CertificateOptions, Options, Reach, Registration, RepairOptions};
use crate::registrar::Registrar;
use crate::repair::Repair;
use crate::rotation::Rotation;
use crate::server::Webhook;
use crate::services::Services;
use crate::settings::{Settings, follow_version, minor_version};

/// The lease of the replica that checks, repairs and keeps Services.
const LEASE: &str = "mecha-injector";
/// Pause before an API server that did not tell its version is asked again.
const VERSION_PAUSE: Duration = Duration::from_secs(1);

/// Why the role cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The address cannot be listened on.
    #[error("the webhook cannot listen on {address}: {source}; choose another address or end what holds it")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// No key or certificate can be made.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// Runs the role until its tasks are told to end. An API server that is away is waited for.
///
/// # Errors
/// [`RunError`] when it cannot start.
pub async fn run(options: Options, role: Role) -> Result<(), RunError> {
    let configured = role.ready.wait_for("the configuration of the injector");
    let trusted = role.ready.wait_for("the registration of the webhook");
    let metrics = Metrics::register(&mut role.metrics.lock());
    let events = Events::new(&role, "mecha-injector");
    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(|source| RunError::Listen { address: options.listen, source })?;

    // The version decides where sidecars go and how pods are picked: nothing begins without it.
    let Some(minor) = first_version(&options, &role).await else { return Ok(()) };
    let minor = Arc::new(AtomicU32::new(minor));
    if options.kubernetes_minor.is_none() {
        role.tasks.run("version", follow_version(role.client.clone(), minor.clone()));
    }
    let (settings, config) = Settings::new(&options, &role, minor.clone(), events.clone(), metrics.clone());
    role.tasks.run("configuration", settings.run(configured));

    let canary = Canary::new(&options, &role, events.clone(), metrics.clone());
    let registrar = Registrar::new(&options, &role, minor.clone(), metrics.clone());
    let names = (role.instance.as_str(), role.namespace.as_str());
    let (rotation, serving) = Rotation::new(&options, names, registrar.clone(), canary.clone(), metrics.clone())?;
    role.tasks.run("registration", registrar.clone().run());
    let trusted_by_servers = rotation.trusted();
    role.tasks.run("certificates", rotation.run(trusted));

    let leadership = Leadership::campaign(&role, LEASE, options.lease);
    role.tasks.run("canary", lead_canary(canary.clone(), leadership.clone(), trusted_by_servers));
    let facts = (config.clone(), minor.clone());
    let repair = Repair::new(&options, &role, facts, canary, events.clone(), metrics.clone());
    role.tasks.run("repair", repair.run(leadership.clone()));
    if options.services {
        let services = Services::new(&options, &role, config.clone(), events, metrics.clone());
        role.tasks.run("services", services.run(leadership));
    }

    // The server ends last: API servers and Services notice late that a replica goes.
    let stop = CancellationToken::new();
    let webhook = Webhook::new(config, metrics, options.tracer.clone()).serve(listener, serving, stop.clone());
    let stopping = role.tasks.stopping().clone();
    let linger = options.linger;
    let end = async {
        stopping.cancelled().await;
        tokio::time::sleep(linger).await;
        stop.cancel();
    };
    tokio::join!(webhook, end);
    registrar.leave().await;
    Ok(())
}

async fn first_version(options: &Options, role: &Role) -> Option<u32> {
    if let Some(minor) = options.kubernetes_minor {
        return Some(minor);
    }
    let ask = async {
        let mut patience = Patience::new();
        loop {
            match minor_version(&role.client).await {
                Ok(minor) => return minor,
                Err(error) if patience.is_out(error.kind) => {
                    tracing::warn!(%error, "the API server does not tell its version; it is asked again");
                }
                Err(_) => {}
            }
            tokio::time::sleep(VERSION_PAUSE).await;
        }
    };
    role.tasks.stopping().run_until_cancelled(ask).await
}

/// Checks while this replica leads: one answer for all of them is enough.
async fn lead_canary(canary: Canary, mut leadership: Leadership, mut trusted: watch::Receiver<bool>) {
    if trusted.wait_for(|trusted| *trusted).await.is_err() {
        return;
    }
    loop {
        let term = leadership.elected().await;
        tokio::select! {
            () = canary.clone().run() => {}
            () = leadership.deposed(&term) => {}
        }
    }
}
