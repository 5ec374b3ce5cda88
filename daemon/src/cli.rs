//! Command line and environment of the daemon.
//!
//! [`command`] turns both into an [`Action`]; [`Options`] holds every setting
//! validated and with its default in place, so nothing later asks again. All
//! mistakes are reported together.

mod address;
mod env;
mod flags;
mod help;
mod parse;
mod resolve;
#[cfg(test)]
mod tests;

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

pub use address::{BoundPorts, host_address, host_name, overlay, stable_peer_port};
pub use env::{Env, is_truthy};
pub use flags::{FLAGS, FlagDoc, FlagGroup, FlagValue};
pub use help::{GIT_COMMIT, MECHA_VERSION, RUNTIME_VERSION, build_info, help, placeholder, version};

use crate::logging::Level;

/// What the command line asks for.
#[derive(Debug)]
pub enum Action {
    /// Run the daemon.
    Run(Box<Options>),
    /// Print [`version`], exit 0.
    Version,
    /// Print [`build_info`], exit 0.
    BuildInfo,
    /// Print [`help`], exit 0.
    Help,
    /// Poll `/v1.0/healthz/outbound` on this port of the loopback address until
    /// it answers 2xx, 60 s at most; exit 0 in both cases.
    Wait {
        /// HTTP API port of the daemon waited for.
        http_port: u16,
    },
}

/// Everything wrong with a command line, one line each.
#[derive(Debug, Eq, PartialEq)]
pub struct UsageError(pub Vec<String>);

/// Where the daemon runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Documents from disk, no control plane.
    Standalone,
    /// Documents and identity from a control plane.
    Kubernetes,
}

/// How the app is called.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AppProtocol {
    /// HTTP/1.1.
    Http,
    /// HTTP over TLS, certificate not verified.
    Https,
    /// HTTP/2 with prior knowledge.
    H2c,
    /// gRPC.
    Grpc,
    /// gRPC over TLS, certificate not verified.
    Grpcs,
}

/// Metrics endpoint.
#[derive(Clone, Debug)]
pub struct MetricsOptions {
    /// Whether the port is served.
    pub enabled: bool,
    /// Port.
    pub port: u16,
    /// Address.
    pub listen_address: String,
}

/// Diagnostics endpoint.
#[derive(Clone, Copy, Debug)]
pub struct ProfilingOptions {
    /// Whether the port is served.
    pub enabled: bool,
    /// Port.
    pub port: u16,
}

/// Health checks of the app.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AppHealthOptions {
    /// Probed path, HTTP apps only.
    pub path: String,
    /// Between probes.
    pub interval: Duration,
    /// Of one probe; never longer than the interval.
    pub timeout: Duration,
    /// Failures in a row that make the app unhealthy; at least 1.
    pub threshold: u32,
}

/// Control plane and identity.
#[derive(Clone, Debug)]
pub struct ControlPlaneOptions {
    /// Operator, `host:port`; empty when unset.
    pub address: String,
    /// Certificate authority, `host:port`; empty when unset.
    pub sentry_address: String,
    /// Trust domain of the control plane.
    pub trust_domain: String,
    /// Namespace of the control plane.
    pub namespace: String,
    /// Extra JWT audiences.
    pub jwt_audiences: Vec<String>,
    /// Whether peers talk over mTLS.
    pub mtls: bool,
}

/// Who may call from a browser.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origins {
    /// CORS is off.
    Off,
    /// Any origin.
    Any,
    /// These origins.
    List(Vec<String>),
}

/// Where and how logs are written.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Least severe lines written.
    pub level: Level,
    /// One JSON object per line.
    pub json: bool,
    /// Appended to, instead of standard output.
    pub file: Option<PathBuf>,
}

/// The parts of strict mode, each on its own switch.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Strict {
    /// API listeners on loopback when no address is given.
    pub loopback: bool,
    /// `Host` and `Origin` are checked on the API ports.
    pub host_check: bool,
    /// A failed component, document or reload degrades instead of ending the process.
    pub degrade: bool,
    /// No undeclared URL targets, never link-local or metadata addresses.
    pub url_targets: bool,
    /// Secret scopes hold for `secretKeyRef` too.
    pub secret_scopes: bool,
    /// Peers cannot call subscription routes and `/dapr/*` of the app.
    pub app_routes: bool,
    /// SQLite with `synchronous=FULL`: how the stores always run, so it changes nothing.
    pub sqlite_full: bool,
    /// API rules without version or protocol match any.
    pub api_rules: bool,
}

/// Every setting of the process, resolved.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the daemon runs.
    pub mode: Mode,
    /// The app's id; empty only in kubernetes mode without one.
    pub app_id: String,
    /// Port of the app; `None`: the app is not called.
    pub app_port: Option<u16>,
    /// How the app is called.
    pub app_protocol: AppProtocol,
    /// Host of the app.
    pub app_channel_address: String,
    /// Calls in flight to the app over all channels; `None`: no limit.
    pub app_max_concurrency: Option<NonZeroUsize>,
    /// Limit of the OPTIONS probe of an input binding.
    pub app_binding_options_timeout: Duration,
    /// Do not ask the app for its configuration.
    pub skip_app_config: bool,
    /// Do not ask the app for its subscriptions.
    pub skip_app_subscriptions: bool,
    /// Health checks of the app; `None`: off.
    pub app_health: Option<AppHealthOptions>,
    /// HTTP API port; 0: any free one.
    pub http_port: u16,
    /// gRPC API port; 0: any free one.
    pub grpc_port: u16,
    /// Addresses of both API servers, never empty; `""` means all.
    pub listen_addresses: Vec<String>,
    /// Peer port; `None`: [`stable_peer_port`], else any free one.
    pub internal_grpc_port: Option<u16>,
    /// Address of the peer server; `""` means all.
    pub internal_grpc_listen_address: String,
    /// Port of the public server; `None`: off.
    pub public_port: Option<u16>,
    /// Address of the public server; `""` means all.
    pub public_listen_address: String,
    /// Folder of the API sockets, which replace TCP.
    pub unix_domain_socket: Option<PathBuf>,
    /// CORS.
    pub allowed_origins: Origins,
    /// Largest request body, bytes.
    pub max_body_size: u64,
    /// Largest block of request headers, bytes.
    pub read_buffer_size: u64,
    /// Metrics endpoint.
    pub metrics: MetricsOptions,
    /// Diagnostics endpoint.
    pub profiling: ProfilingOptions,
    /// Folders with documents.
    pub resources_paths: Vec<PathBuf>,
    /// Configuration files, or one name in kubernetes mode.
    pub configs: Vec<String>,
    /// How often all documents are listed again.
    pub reconcile_interval: Duration,
    /// Leave out the built-in secret store.
    pub disable_builtin_k8s_secret_store: bool,
    /// Control plane and identity.
    pub control_plane: ControlPlaneOptions,
    /// Placement services, `host:port`.
    pub placement_addresses: Vec<String>,
    /// Schedulers, `host:port`.
    pub scheduler_addresses: Vec<String>,
    /// DNS names of all schedulers; only when no address is given.
    pub scheduler_dns: Vec<String>,
    /// Job streams per scheduler.
    pub scheduler_job_streams: u32,
    /// Limit of one round of placement updates.
    pub actors_disseminate_timeout: Duration,
    /// Most time a stop may take; `None`: no limit.
    pub graceful_shutdown: Option<Duration>,
    /// Keep serving this long after a signal.
    pub block_shutdown: Option<Duration>,
    /// Log API calls; `None`: as the Configuration says.
    pub api_logging: Option<bool>,
    /// Where logs go.
    pub log: LogOptions,
    /// Strict mode.
    pub strict: Strict,
    /// Socket of the hand-over to a successor; `None`: off.
    pub handover: Option<PathBuf>,
    /// Take over from the daemon at [`Options::handover`].
    pub takeover: bool,
    /// `MECHA_HOME`.
    pub home: Option<PathBuf>,
    /// The environment.
    pub env: Env,
    /// What to log once logging works: deprecated flags, ignored arguments.
    pub warnings: Vec<String>,
}

/// Reads the arguments, without the program's name.
pub fn command<S: AsRef<str>>(args: &[S], env: Env) -> Result<Action, UsageError> {
    resolve::resolve(parse::parse(args), env)
}

impl AppProtocol {
    /// The word used for it on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            AppProtocol::Http => "http",
            AppProtocol::Https => "https",
            AppProtocol::H2c => "h2c",
            AppProtocol::Grpc => "grpc",
            AppProtocol::Grpcs => "grpcs",
        }
    }

    /// Whether the app is a gRPC server.
    pub const fn is_grpc(self) -> bool {
        matches!(self, AppProtocol::Grpc | AppProtocol::Grpcs)
    }

    /// Whether the app is called over TLS.
    pub const fn is_tls(self) -> bool {
        matches!(self, AppProtocol::Https | AppProtocol::Grpcs)
    }
}

impl fmt::Display for AppProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Strict {
    /// All parts on.
    pub const ALL: Strict = Strict {
        loopback: true,
        host_check: true,
        degrade: true,
        url_targets: true,
        secret_scopes: true,
        app_routes: true,
        sqlite_full: true,
        api_rules: true,
    };
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for UsageError {}
