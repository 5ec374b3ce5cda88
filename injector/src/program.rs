//! Starts the roles, waits for a signal or the end of one, drains.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mecha_apiserver::{Access, Readiness, Role, Tasks, connect};
use parking_lot::Mutex;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::cli::{Cli, Common};
use crate::ops::{self, Ops};
use crate::roles;
use crate::telemetry::Telemetry;

/// Threads that run tasks: roles wait most of the time.
const THREADS: usize = 2;

/// What the last spans get of the time of a stop: so much even when nothing is left of it, and no more.
const SHORTEST_FLUSH: Duration = Duration::from_millis(200);
const LONGEST_FLUSH: Duration = Duration::from_secs(3);

/// Why the program ends with a failure.
#[derive(Debug)]
pub(crate) struct Failed {
    /// Stable word for scripts and searches.
    pub(crate) code: &'static str,
    message: String,
}

impl Failed {
    pub(crate) fn new(code: &'static str, message: impl fmt::Display) -> Self {
        Self { code, message: message.to_string() }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Runs until a signal comes or a role fails.
///
/// # Errors
/// What could not be started, or which role failed and why.
pub(crate) fn run(cli: Cli) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .map_err(|e| Failed::new("runtime", format!("no threads can be started: {e}")))?;
    let ended = runtime.block_on(serve(cli));
    // What still runs after the drain has had its time.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

async fn serve(cli: Cli) -> Result<(), Failed> {
    let signals = |e| Failed::new("signals", format!("signals cannot be received: {e}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(signals)?;
    let tasks = Tasks::new();
    let telemetry = Telemetry::start(&cli.common, cli.role.service())?;
    let role = role(&cli.common, tasks.clone()).await?;
    // First of all: a program that cannot be asked how it is has no use for an operator.
    let listening = Ops { ready: role.ready.clone(), metrics: role.metrics.clone() };
    let address = ops::serve(cli.common.ops_address, listening, &tasks)
        .await
        .map_err(|e| Failed::new("listen", format!("--ops-address {}: {e}", cli.common.ops_address)))?;
    tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), instance = role.instance, "health and metrics are served");
    let mut running = JoinSet::new();
    roles::start(cli.role, &role, &telemetry.tracer(), &mut running)?;
    let ended = tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        Some(first) = running.join_next() => first.unwrap_or_else(|e| Err(Failed::new("role", e))),
    };
    tracing::info!("stopping");
    let limit = Duration::from_secs(cli.common.drain_seconds);
    let stopped = Instant::now();
    tasks.stopping().cancel();
    let drained = tokio::time::timeout(limit, async {
        while running.join_next().await.is_some() {}
        tasks.drain().await;
    });
    if drained.await.is_err() {
        tracing::warn!("not everything ended within {limit:?}");
    }
    telemetry.shutdown(limit.saturating_sub(stopped.elapsed()).clamp(SHORTEST_FLUSH, LONGEST_FLUSH)).await;
    ended
}

async fn role(common: &Common, tasks: Tasks) -> Result<Role, Failed> {
    let access = Access { kubeconfig: common.kubeconfig.clone(), context: common.context.clone() };
    let client = connect(&access).await.map_err(|e| Failed::new("api-server", e))?;
    let mut metrics = Registry::default();
    let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    metrics.register("mecha_control_build", "Version of the control part", version);
    let instance = common.instance.clone().unwrap_or_else(|| {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        format!("{host}-{}", std::process::id())
    });
    Ok(Role {
        client,
        namespace: common.namespace.clone(),
        instance,
        tasks,
        metrics: Arc::new(Mutex::new(metrics)),
        ready: Readiness::default(),
    })
}
