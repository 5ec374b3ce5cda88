//! The command line of `mecha-control`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// The control part of Mecha: injects sidecars, decides backends, delivers documents.
///
/// Sidecars do not need it to go on: what they have keeps running while every role is away.
#[derive(Debug, Parser)]
#[command(name = "mecha-control", version)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) role: RoleArgs,
}

/// What every role takes.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// The kubeconfig file [default: KUBECONFIG, the home folder's, or the pod's service account]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig [default: its current one]
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Namespace of the control part
    #[arg(long, global = true, env = "POD_NAMESPACE", default_value = "mecha-system", value_name = "NAME")]
    pub(crate) namespace: String,
    /// Name of this replica [default: the host's name and the number of the process]
    #[arg(long, global = true, env = "POD_NAME", value_name = "NAME")]
    pub(crate) instance: Option<String>,
    /// Where /healthz, /readyz and /metrics are
    #[arg(long, global = true, default_value = "0.0.0.0:9090", value_name = "ADDRESS")]
    pub(crate) ops_address: SocketAddr,
    /// Longest time that a stop may take, in seconds
    #[arg(long, global = true, default_value_t = 20, value_name = "SECONDS")]
    pub(crate) drain_seconds: u64,
    /// Least important lines that are written
    #[arg(long, global = true, value_enum, default_value_t = Level::Info, value_name = "LEVEL")]
    pub(crate) log_level: Level,
    /// Write log lines as JSON
    #[arg(long, global = true)]
    pub(crate) log_as_json: bool,
    /// OTLP collector that gets traces [default: OTEL_EXPORTER_OTLP_ENDPOINT; without both nothing is traced]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) trace_endpoint: Option<String>,
    /// How the collector is spoken to [default: OTEL_EXPORTER_OTLP_PROTOCOL, or grpc]
    #[arg(long, global = true, value_enum, value_name = "PROTOCOL")]
    pub(crate) trace_protocol: Option<TraceProtocol>,
    /// Share of what a role does that is traced, such as decisions and admissions, from 0 to 1 [default: OTEL_TRACES_SAMPLER, or 1]
    #[arg(long, global = true, value_name = "SHARE")]
    pub(crate) trace_share: Option<f64>,
}

/// The ways of OTLP.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum TraceProtocol {
    Grpc,
    Http,
}

/// Importance of log lines.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

impl Level {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// A role of the control part; each runs as its own Deployment.
#[derive(Debug, Subcommand)]
pub(crate) enum RoleArgs {
    /// Decides which backend serves a claim, explains it, and drives swaps
    Hub(HubArgs),
    /// Delivers documents to the sidecars of a cluster and issues their certificates
    Agent(AgentArgs),
    /// Adds the sidecar to opted-in pods, and keeps that working
    Injector(InjectorArgs),
    /// All roles in one process, for trying it out
    All {
        #[command(flatten)]
        hub: HubArgs,
        #[command(flatten)]
        agent: AgentArgs,
        #[command(flatten)]
        injector: InjectorArgs,
    },
}

impl RoleArgs {
    /// What a collector of traces calls the program.
    pub(crate) const fn service(&self) -> &'static str {
        match self {
            Self::Hub(_) => "mecha-hub",
            Self::Agent(_) => "mecha-agent",
            Self::Injector(_) => "mecha-injector",
            Self::All { .. } => "mecha-control",
        }
    }
}

/// What the hub takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct HubArgs {
    /// Name of the cluster that the control part runs in
    #[arg(long, default_value = "local", value_name = "NAME")]
    pub(crate) cluster: String,
    /// Points by which another backend must be better before a claim moves to it
    #[arg(long, default_value_t = 10, value_name = "POINTS")]
    pub(crate) min_gain: u32,
    /// How long it must stay better, in seconds
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    pub(crate) hold_seconds: u64,
}

/// What the agent takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct AgentArgs {
    /// Where sidecars connect for their documents
    #[arg(long, default_value = "[::]:6500", value_name = "ADDRESS")]
    pub(crate) agent_address: SocketAddr,
    /// Name of the cluster whose documents it delivers
    #[arg(long, default_value = "local", value_name = "NAME")]
    pub(crate) agent_cluster: String,
    /// Where sidecars ask for their certificates
    #[arg(long, default_value = "[::]:50001", value_name = "ADDRESS")]
    pub(crate) issuer_address: SocketAddr,
    /// Trust domain of the control part
    #[arg(long, default_value = "cluster.local", value_name = "DOMAIN")]
    pub(crate) trust_domain: String,
    /// Program that proves what backends can do, such as mechad [default: what they claim counts, and is marked so]
    #[arg(long, value_name = "FILE")]
    pub(crate) probe_program: Option<PathBuf>,
    /// Life of a sidecar's certificate, in seconds
    #[arg(long, default_value_t = 24 * 3600, value_name = "SECONDS")]
    pub(crate) certificate_seconds: u64,
    /// Time between the publication of a new root and its first signature, in seconds
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub(crate) root_publish_seconds: u64,
}

/// What the injector takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct InjectorArgs {
    /// Where the webhook listens
    #[arg(long, default_value = "0.0.0.0:9443", value_name = "ADDRESS")]
    pub(crate) webhook_address: SocketAddr,
    /// How an API server outside reaches the webhook, as https://HOST:PORT [default: by a Service]
    #[arg(long, value_name = "URL")]
    pub(crate) webhook_url: Option<String>,
    /// Service of the webhook
    #[arg(long, default_value = "mecha-injector", value_name = "NAME")]
    pub(crate) webhook_service: String,
    /// Who writes the webhook's registration: this role, or somebody else such as a chart
    #[arg(long, value_enum, default_value_t = Registrar::Injector, value_name = "WHO")]
    pub(crate) registration: Registrar,
    /// Namespaces that are never injected, beside kube-system and the control part's
    #[arg(long = "skip-namespace", value_name = "NAME")]
    pub(crate) skipped_namespaces: Vec<String>,
    /// Only report pods that should have a sidecar and have none; do not evict them
    #[arg(long)]
    pub(crate) report_only: bool,
    /// Namespace of the pod that tries the webhook each minute, without being stored
    #[arg(long, default_value = "default", value_name = "NAME")]
    pub(crate) canary_namespace: String,
}

/// Who writes the MutatingWebhookConfiguration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Registrar {
    /// This role, all of it
    Injector,
    /// Somebody else; this role fills in the roots
    Chart,
}
