//! The process from bound listeners to exit: servers over the current runtime, signals, rebuilds.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener as StdTcp;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use mecha_core::ShutdownRequest;
use mecha_core::health::{Health, Phase};
use mecha_core::metrics::Metrics;
use rustix::process::{Pid, kill_process};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::reload::Reloads;
use super::runtime::{Fixtures, Runtime};
use super::servers::{Server, Servers};
use super::source::{self, Depth};
use super::stop::{self, Cause};
use super::{app_side, documents, fatal};
use crate::cli::{self, Mode, Options};
use crate::handover::{self, Departure, Door, House, Inherited};
use crate::http::public;
use crate::identity::{self, Workload};
use crate::logging::LogLosses;
use crate::peer::Connected;
use crate::ports::{self, Listener as Bound, Listeners};
use crate::serve::{Listener, ServerLimits};

/// Added to `read-buffer-size` for the HTTP/1.1 header limit, as the incumbent does.
const HEADER_SLACK: u64 = 4096;
/// After a forced shutdown by API the answer gets this long to go out.
const FORCED_DELAY: Duration = Duration::from_millis(100);

/// The runtime that requests meet now.
pub(super) struct Live {
    current: ArcSwap<Runtime>,
    replaced: Notify,
}

impl Live {
    /// The runtime of the moment.
    pub(super) fn load(&self) -> Arc<Runtime> {
        self.current.load_full()
    }

    /// Lets requests meet another runtime from now on.
    pub(super) fn replace(&self, next: Arc<Runtime>) {
        self.current.store(next);
        self.replaced.notify_one();
    }
}

impl House for Live {
    fn degraded(&self) -> Vec<String> {
        self.load().core.store.snapshot().degraded.keys().map(ToString::to_string).collect()
    }

    fn failed(&self) {
        self.load().core.metrics.hand_over_failed();
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next signal that ends the process, by its name.
    async fn stop(&mut self) -> &'static str {
        loop {
            if let Some(name) = self.next().await {
                return name;
            }
        }
    }

    /// The next signal: the name of one that ends the process, or `None` for a reload.
    async fn next(&mut self) -> Option<&'static str> {
        tokio::select! {
            _ = self.interrupt.recv() => Some("interrupt"),
            _ = self.terminate.recv() => Some("terminated"),
            _ = self.hangup.recv() => None,
        }
    }
}

/// Runs the daemon: over sockets of its own, or over those of the daemon that it replaces.
pub(super) async fn run(options: Options, log_losses: LogLosses) -> ExitCode {
    // Before anything slow: a taken port is a clear error at once.
    let (mut predecessor, inherited) = match &options.handover {
        Some(path) if options.takeover => match handover::take_over(path, &options).await {
            Ok((predecessor, inherited)) => (Some(predecessor), inherited),
            Err(e) => return fatal(&e.to_string()),
        },
        _ => (None, Vec::new()),
    };
    let listeners = match Listeners::bind_beside(&options, inherited) {
        Ok(listeners) => listeners,
        Err(e) => return fatal(&e.to_string()),
    };

    let began = Instant::now();
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(e) => return fatal(&format!("listening for signals failed: {e}")),
    };
    for warning in &listeners.warnings {
        tracing::warn!(target: "dapr.runtime", "{warning}");
    }
    announce(&options);
    let workload = tokio::select! {
        workload = workload(&options) => workload,
        name = signals.stop() => {
            tracing::info!(target: "dapr.runtime", "Received signal '{name}'; beginning shutdown");
            return ExitCode::SUCCESS;
        }
    };
    let workload = match workload {
        Ok(workload) => workload,
        Err(e) => return fatal(&e),
    };
    let health = Arc::new(Health::new(options.app_id.as_str().into(), vec!["app"]));
    let fix = Fixtures {
        host_address: cli::host_address(options.env.host_ip.as_deref()),
        ports: listeners.ports,
        options: Arc::new(options),
        health: health.clone(),
        workload,
        log_losses,
    };
    let source = match source::open(&fix.options, fix.vars(), fix.workload.clone()) {
        Ok(source) => source,
        Err(e) => return fatal(&e.to_string()),
    };
    let building = async {
        let set = source.list(Depth::Everything).await.map_err(|e| e.to_string())?;
        set.configuration_fault.clone().map_or(Ok(()), Err)?;
        let documents = documents::select(set, &fix.options);
        documents::report(&documents.findings);
        Ok::<_, String>((Runtime::build(&fix, &documents, None).await?, documents))
    };
    let built = tokio::select! {
        built = building => built,
        name = signals.stop() => {
            tracing::info!(target: "dapr.runtime", "Received signal '{name}'; beginning shutdown");
            return ExitCode::SUCCESS;
        }
    };
    let (runtime, documents) = match built {
        Ok((runtime, documents)) => (Arc::new(runtime), documents),
        Err(e) => return fatal(&e),
    };
    if let Some(text) = predecessor.as_ref().and_then(|p| worse(&runtime, &p.degraded)) {
        runtime.close().await;
        return fatal(&text);
    }
    let live = Arc::new(Live { current: ArcSwap::new(runtime.clone()), replaced: Notify::new() });
    health.outbound_ready();
    if predecessor.as_ref().is_some_and(|p| p.ready) {
        // To clients this is one sidecar, which is ready all the time.
        health.reached("app");
        health.enter(Phase::Ready);
    }
    let duplicates = match fix.options.handover.as_ref().map(|_| listeners.duplicates()).transpose() {
        Ok(duplicates) => duplicates,
        Err(e) => return fatal(&format!("duplicating the listening sockets failed: {e}")),
    };
    let servers = match start(&fix, listeners, &live) {
        Ok(servers) => servers,
        Err(e) => return fatal(&format!("starting the servers failed: {e}")),
    };
    if let Some(predecessor) = &mut predecessor {
        let replaced = tokio::select! {
            replaced = predecessor.replace() => replaced.map_err(|e| e.to_string()),
            name = signals.stop() => Err(format!("received signal '{name}' before the daemon before let go")),
        };
        if let Err(e) = replaced {
            tracing::error!(target: "dapr.runtime", "Fatal error from runtime: {e}");
            return stop::run(&fix, runtime, servers, Cause::Failure).await;
        }
        tracing::info!(target: "dapr.runtime", "took over from a daemon of version {}", predecessor.version);
        runtime.core.metrics.took_over(predecessor.since.elapsed());
    }
    runtime.name.begin();
    let door = match door(&fix, &live, duplicates) {
        Ok(door) => door,
        Err(e) if predecessor.is_none() => {
            tracing::error!(target: "dapr.runtime", "Fatal error from runtime: {e}");
            return stop::run(&fix, runtime, servers, Cause::Failure).await;
        }
        Err(e) => {
            // The daemon before is gone: what serves must go on.
            tracing::error!(target: "dapr.runtime", "no successor can take over from this daemon: {e}");
            None
        }
    };
    let options = fix.options.clone();
    let attached = tokio::spawn(async move {
        if let Some(predecessor) = predecessor {
            let since = predecessor.since;
            predecessor.settled().await;
            runtime.core.metrics.took_over_inputs(since.elapsed());
        }
        app_side::attach(runtime, options, began).await;
    });
    let reloads = Reloads::start(fix.clone(), live.clone(), source, documents, attached);
    drive(fix, live, servers, signals, reloads, door).await
}

/// What does not run here and did in the daemon before. Strict mode would serve without it, but not
/// in place of a daemon that has it.
fn worse(runtime: &Runtime, degraded_before: &[String]) -> Option<String> {
    let snapshot = runtime.core.store.snapshot();
    let missing = snapshot.degraded.iter().find(|(name, _)| !degraded_before.iter().any(|d| **d == ***name));
    let (name, why) = missing?;
    Some(format!("component {name} does not start here, the running daemon goes on: {}", why.cause))
}

/// Opens the way for a successor, where the options name one.
fn door(fix: &Fixtures, live: &Arc<Live>, sockets: Option<Vec<Inherited>>) -> Result<Option<Door>, String> {
    let (Some(path), Some(sockets)) = (&fix.options.handover, sockets) else { return Ok(None) };
    let options = &fix.options;
    let opened = Door::open(path, &options.app_id, options.env.namespace(), fix.health.clone(), live.clone(), sockets);
    opened.map(Some).map_err(|e| format!("cannot listen on {} (--mecha-handover): {e}", path.display()))
}

/// The next successor that serves.
async fn departure(door: &mut Option<Door>) -> Departure {
    match door {
        Some(door) => door.departure().await,
        None => std::future::pending().await,
    }
}

/// The lines that say what starts.
fn announce(options: &Options) {
    match options.mode {
        Mode::Standalone => tracing::info!(target: "dapr.runtime", "standalone mode configured"),
        Mode::Kubernetes => tracing::info!(target: "dapr.runtime", "Kubernetes mode configured"),
    }
    tracing::info!(target: "dapr.runtime", "app id: {}", options.app_id);
}

/// The identity of this process, where the options ask for one.
async fn workload(options: &Options) -> Result<Option<Arc<Workload>>, String> {
    match identity::Settings::from_options(options)? {
        Some(settings) => Workload::start(settings).await.map(Some),
        None => {
            tracing::info!(
                target: "dapr.runtime",
                "mTLS is disabled. Skipping certificate request and tls validation"
            );
            Ok(None)
        }
    }
}

/// Follows signals, shutdown requests and rebuilds until the process ends.
async fn drive(
    fix: Fixtures,
    live: Arc<Live>,
    servers: Servers,
    mut signals: Signals,
    reloads: Reloads,
    mut door: Option<Door>,
) -> ExitCode {
    loop {
        let runtime = live.current.load_full();
        let mut requests = runtime.core.shutdown_requests();
        drop(runtime);
        let cause = tokio::select! {
            signal = signals.next() => if let Some(name) = signal {
                tracing::info!(target: "dapr.runtime", "Received signal '{name}'; beginning shutdown");
                Cause::Signal
            } else {
                reloads.hang_up();
                continue;
            },
            () = live.replaced.notified() => continue,
            mut successor = departure(&mut door) => {
                if let Err(e) = successor.leave().await {
                    tracing::warn!(target: "dapr.runtime", "the successor is gone, this process goes on: {e}");
                    continue;
                }
                reloads.end().await;
                let runtime = live.current.load_full();
                runtime.name.hand_on();
                let (heir, requests) = (successor.heir(), runtime.core.shutdown_requests());
                let leaving = stop::hand_over(&fix, runtime, servers, successor);
                if let Some(door) = door {
                    door.leave();
                }
                return tokio::select! {
                    code = left(leaving, &mut signals, fix.options.graceful_shutdown) => code,
                    never = pass_on(requests, heir) => match never {},
                };
            }
            asked = requests.wait_for(|r| *r != ShutdownRequest::None) => match asked.map(|r| *r) {
                Ok(ShutdownRequest::Forced) => return forced().await,
                Ok(ShutdownRequest::Failed) => Cause::Failure,
                // Its runtime was replaced and is gone: the next one's requests count.
                Err(_) => continue,
                Ok(_) => Cause::Api,
            }
        };
        reloads.end().await;
        // Its duplicates would keep the sockets open when the servers have closed theirs.
        drop(door);
        let runtime = live.current.load_full();
        let mut requests = runtime.core.shutdown_requests();
        return tokio::select! {
            code = stop::run(&fix, runtime, servers, cause) => code,
            name = signals.stop() => at_once(name),
            Ok(_) = requests.wait_for(|r| *r == ShutdownRequest::Forced) => forced().await,
        };
    }
}

/// Ends beside a successor. A first signal bounds what is left to the time of a stop, a second one ends it at once.
async fn left(leaving: impl Future<Output = ExitCode>, signals: &mut Signals, limit: Option<Duration>) -> ExitCode {
    let mut leaving = std::pin::pin!(leaving);
    let name = tokio::select! {
        code = leaving.as_mut() => return code,
        name = signals.stop() => name,
    };
    tracing::info!(target: "dapr.runtime", "Received signal '{name}'; beginning shutdown");
    let in_time = async {
        match limit {
            Some(limit) => timeout(limit, leaving).await.ok(),
            None => Some(leaving.await),
        }
    };
    tokio::select! {
        code = in_time => code.unwrap_or_else(|| {
            tracing::error!(target: "dapr.runtime", "Graceful shutdown timeout exceeded, forcing shutdown");
            ExitCode::FAILURE
        }),
        name = signals.stop() => at_once(name),
    }
}

/// Whoever asks this process to shut down over a connection from before means the sidecar, which is the successor now.
async fn pass_on(mut requests: watch::Receiver<ShutdownRequest>, heir: Option<Pid>) -> Infallible {
    let asked = |r: &ShutdownRequest| matches!(r, ShutdownRequest::Graceful | ShutdownRequest::Forced);
    if let (Ok(_), Some(heir)) = (requests.wait_for(asked).await, heir) {
        tracing::info!(target: "dapr.runtime", "the successor is told to shut down");
        if let Err(e) = kill_process(heir, rustix::process::Signal::TERM) {
            tracing::warn!(target: "dapr.runtime", "the successor does not hear of it: {e}");
        }
    }
    std::future::pending().await
}

/// A signal that finds a stop under way.
fn at_once(name: &str) -> ExitCode {
    tracing::error!(target: "dapr.runtime", "Received signal '{name}' during shutdown; exiting immediately");
    ExitCode::FAILURE
}

/// A forced shutdown by API.
async fn forced() -> ExitCode {
    tracing::warn!(
        target: "dapr.runtime",
        "Force shutdown requested, exiting immediately without graceful shutdown"
    );
    tokio::time::sleep(FORCED_DELAY).await;
    ExitCode::FAILURE
}

fn start(fix: &Fixtures, listeners: Listeners, live: &Arc<Live>) -> io::Result<Servers> {
    let options = &fix.options;
    let Listeners { http, grpc, internal, public: public_listener, metrics, profiling, .. } = listeners;
    let mut servers = Servers::new();
    let header_bytes = usize::try_from(options.read_buffer_size + HEADER_SLACK).unwrap_or(usize::MAX);
    let api_limits = ServerLimits {
        header_bytes,
        header_list_bytes: u32::try_from(options.read_buffer_size.saturating_mul(1024)).unwrap_or(u32::MAX),
        http1_only: options.env.disable_h2c,
        ..ServerLimits::default()
    };
    tracing::info!(
        target: "dapr.runtime.http",
        "The request body size parameter is: {} bytes", options.max_body_size
    );
    if options.env.api_token.is_some() {
        tracing::info!(target: "dapr.runtime.http", "Enabled token authentication on HTTP server");
        tracing::info!(target: "dapr.runtime.grpc", "Enabled token authentication on gRPC server");
    }
    if options.allowed_origins != cli::Origins::Off {
        tracing::info!(target: "dapr.runtime.http", "Enabled CORS HTTP middleware");
    }
    for bound in http {
        match &bound {
            Bound::Tcp(_) => {
                tracing::info!(target: "dapr.runtime.http", "HTTP server listening on TCP address: {bound}");
            }
            Bound::Unix(..) => {
                tracing::info!(target: "dapr.runtime.http", "HTTP server listening on UNIX socket: {bound}");
            }
        }
        let listener = usable(bound, &mut servers.sockets)?;
        let live = live.clone();
        let service = service_fn(move |req: Request<Incoming>| {
            let http = live.current.load().fronts.load().http.clone();
            async move { http.handle(req).await }
        });
        servers.apis.serve("HTTP API", listener, service, api_limits);
    }
    tracing::info!(target: "dapr.runtime", "HTTP server is running on port {}", options.http_port);
    let grpc_limits = crate::grpc::limits(u32::try_from(options.read_buffer_size).unwrap_or(u32::MAX));
    for bound in grpc {
        let listener = usable(bound, &mut servers.sockets)?;
        let live = live.clone();
        let service = service_fn(move |req: Request<Incoming>| {
            let grpc = live.current.load().fronts.load().grpc.clone();
            async move { Service::call(&grpc, req).await }
        });
        servers.apis.serve("gRPC API", listener, service, grpc_limits);
    }
    tracing::info!(target: "dapr.runtime.grpc.api", "API gRPC server is running on port {}", options.grpc_port);
    if let Some(listener) = public_listener {
        let live = live.clone();
        let service = service_fn(move |req: Request<Incoming>| {
            let core = live.current.load().core.clone();
            async move { public(core, req).await }
        });
        let limits = ServerLimits { http1_only: true, ..api_limits };
        servers.apis.serve("public HTTP", Listener::Tcp(tcp(listener)?), service, limits);
    }
    if let Some(listener) = profiling {
        let service = service_fn(|_: Request<Incoming>| async { Ok::<_, Infallible>(crate::http::no_profiles()) });
        let limits = ServerLimits { http1_only: true, ..api_limits };
        servers.apis.serve("profiling", Listener::Tcp(tcp(listener)?), service, limits);
    }
    let address = internal.local_addr()?;
    tracing::info!(
        target: "dapr.runtime.grpc.internal",
        "Internal gRPC server is running on {}:{}", options.internal_grpc_listen_address, address.port()
    );
    serve_peers(&servers.peers, Listener::Tcp(tcp(internal)?), fix.workload.as_ref(), live, grpc_limits);
    if let Some(listener) = metrics {
        tracing::info!(target: "dapr.metrics", "metrics server started on {}", listener.local_addr()?);
        let (live, workload, log_losses) = (live.clone(), fix.workload.clone(), fix.log_losses.clone());
        let scrape: Arc<dyn Fn() -> String + Send + Sync> = Arc::new(move || {
            if let Some(workload) = &workload {
                workload.refresh();
            }
            let runtime = live.current.load();
            log_losses.count_in(&runtime.core.metrics);
            Metrics::encode(&runtime.core.metrics)
        });
        let stop = servers.metrics.stopping().clone();
        servers.metrics.spawn("metrics server", async move {
            if let Err(e) = ports::serve_metrics(listener, scrape, stop).await {
                tracing::error!(target: "dapr.metrics", "the metrics server ended: {e}");
            }
        });
    }
    Ok(servers)
}

/// The peer server: over mTLS where sidecars talk so, each connection with the identity that it
/// has proved.
fn serve_peers(
    peers: &Server,
    listener: Listener,
    workload: Option<&Arc<Workload>>,
    live: &Arc<Live>,
    limits: ServerLimits,
) {
    let live = live.clone();
    let service = move |connected: Connected| {
        let (live, connected) = (live.clone(), Arc::new(connected));
        service_fn(move |req: Request<Incoming>| {
            let peers = live.current.load().fronts.load().peers.clone();
            let connected = connected.clone();
            async move { Ok::<_, Infallible>(peers.handle(&connected, req).await) }
        })
    };
    let Some(workload) = workload.filter(|w| w.secures_peers()) else {
        return peers.serve("peer server", listener, service(Connected::default()), limits);
    };
    let acceptor = identity::acceptor(workload);
    let open = move |stream| {
        let (accepted, service) = (identity::accept(acceptor.clone(), stream), service.clone());
        async move { accepted.await.map(|(stream, connected)| (stream, service(connected))) }
    };
    peers.serve_each("peer server", listener, open, limits);
}

fn usable(bound: Bound, sockets: &mut Vec<ports::SocketFile>) -> io::Result<Listener> {
    match bound {
        Bound::Tcp(listener) => Ok(Listener::Tcp(tcp(listener)?)),
        Bound::Unix(listener, file) => {
            sockets.push(file);
            listener.set_nonblocking(true)?;
            Ok(Listener::Unix(tokio::net::UnixListener::from_std(listener)?))
        }
    }
}

fn tcp(listener: StdTcp) -> io::Result<tokio::net::TcpListener> {
    listener.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(listener)
}

/// Enters a phase, in health and log.
pub(super) fn enter(health: &Health, phase: Phase) {
    health.enter(phase);
    tracing::debug!(target: "dapr.runtime", "phase: {}", phase.as_str());
}
