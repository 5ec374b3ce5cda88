//! The command line. Flags that the Dapr CLI has keep its names and short forms.

use crate::cluster::ClusterArgs;
use crate::commands::{
    ApplyArgs, DevArgs, EnvironmentArgs, ExplainArgs, ExportArgs, ImportArgs, InjectArgs, PlanArgs, StatusArgs,
    SwapArgs, WaitArgs,
};
use crate::output::Format;
use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Runs apps with the mechad sidecar on this machine, and talks to the ones that run.
#[derive(Debug, Parser)]
#[command(
    name = "mecha",
    version,
    max_term_width = 100,
    after_help = "Examples:\n  \
        mecha run --app-id orders --app-port 6001 -- python3 app.py\n  \
        mecha run -f dapr.yaml\n  \
        mecha list\n  \
        mecha invoke --app-id orders --method health --verb GET\n\n\
        State, logs and default components lie in ~/.mecha (MECHA_HOME names another folder).\n\
        Exit status: 0 done, 1 failed, 2 called wrongly, 3 would change; `mecha run` exits as the app does."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(Box<RunArgs>),
    List(ListArgs),
    Stop(StopArgs),
    Upgrade(UpgradeArgs),
    Logs(LogsArgs),
    Invoke(InvokeArgs),
    Publish(PublishArgs),
    State(StateArgs),
    Components(ComponentsArgs),
    Metadata(MetadataArgs),
    Swap(SwapArgs),
    Dev(DevArgs),
    Plan(PlanArgs),
    Explain(ExplainArgs),
    Apply(ApplyArgs),
    Wait(WaitArgs),
    Status(StatusArgs),
    #[command(alias = "env")]
    Environment(EnvironmentArgs),
    Lint(LintArgs),
    Doctor(DoctorArgs),
    Inject(InjectArgs),
    Export(ExportArgs),
    Import(ImportArgs),
    Version(VersionArgs),
    Completion(CompletionArgs),
}

/// Run an app with a sidecar, or all apps of a multi-app file.
///
/// No container and no init step are needed. When no resources are named, the app's own .dapr/resources folder is
/// used, else ~/.mecha/components with a durable state store `statestore` and a durable broker `pubsub`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mecha run --app-id orders --app-port 6001 -- python3 app.py\n  \
    mecha run -a orders -p 6001 -d ./components -- node app.js\n  \
    mecha run --app-id tools                 (a sidecar without an app)\n  \
    mecha run -f .                           (all apps of ./dapr.yaml)\n\n\
    The app finds its sidecar through DAPR_HTTP_PORT, DAPR_GRPC_PORT, DAPR_HTTP_ENDPOINT and DAPR_GRPC_ENDPOINT.\n\
    Exit status: the app's; of several apps, the first that failed.")]
pub(crate) struct RunArgs {
    /// Id of the app; others call it by this name [default: name of the folder]
    #[arg(long, short = 'a', value_name = "ID")]
    pub(crate) app_id: Option<String>,
    /// Port the app listens on; leave it out for an app that only calls
    #[arg(long, short = 'p', value_name = "PORT", allow_negative_numbers = true, value_parser = optional_port)]
    pub(crate) app_port: Option<OptionalPort>,
    /// Start all apps of this multi-app file (or of dapr.yaml in this folder)
    #[arg(long, short = 'f', value_name = "FILE", value_hint = ValueHint::AnyPath,
        conflicts_with_all = ["app_id", "app_port", "command"])]
    pub(crate) run_file: Option<PathBuf>,
    /// HTTP API port of the sidecar [default: a free one]
    #[arg(long, short = 'H', value_name = "PORT", allow_negative_numbers = true, value_parser = optional_port)]
    pub(crate) dapr_http_port: Option<OptionalPort>,
    /// gRPC API port of the sidecar [default: a free one]
    #[arg(long, short = 'G', value_name = "PORT", allow_negative_numbers = true, value_parser = optional_port)]
    pub(crate) dapr_grpc_port: Option<OptionalPort>,
    /// Port for other sidecars [default: a stable one per app]
    #[arg(long, short = 'I', value_name = "PORT", allow_negative_numbers = true, value_parser = optional_port)]
    pub(crate) dapr_internal_grpc_port: Option<OptionalPort>,
    /// Metrics port of the sidecar [default: a free one]
    #[arg(long, short = 'M', value_name = "PORT", allow_negative_numbers = true, value_parser = optional_port)]
    pub(crate) metrics_port: Option<OptionalPort>,
    /// Diagnostics port, with --enable-profiling [default: a free one]
    #[arg(long, value_name = "PORT", allow_negative_numbers = true, value_parser = optional_port)]
    pub(crate) profile_port: Option<OptionalPort>,
    /// Folder with component and other resource files; may be repeated
    #[arg(long, short = 'd', alias = "components-path", value_name = "DIR", value_delimiter = ',',
        value_hint = ValueHint::DirPath)]
    pub(crate) resources_path: Vec<PathBuf>,
    /// Environment whose documents `mecha dev` decides; takes the place of the default resources
    #[arg(long, value_name = "NAME", conflicts_with = "run_file")]
    pub(crate) environment: Option<String>,
    /// Configuration file
    #[arg(long, short = 'c', value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    /// Listen on unix sockets in this folder instead of API ports
    #[arg(long, short = 'u', value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) unix_domain_socket: Option<PathBuf>,
    /// Address the app listens on
    #[arg(long, value_name = "HOST")]
    pub(crate) app_channel_address: Option<String>,
    #[command(flatten)]
    pub(crate) options: SidecarOptions,
    /// Seconds an app may take to end before it is killed
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) stop_grace_seconds: u64,
    /// Seconds a sidecar may take to become ready
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) start_timeout_seconds: u64,
    /// The app's command; put `--` before it
    #[arg(trailing_var_arg = true, value_name = "COMMAND",
        value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
}

/// Options handed to the sidecar; a multi-app file may set each for one app or for all.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub(crate) struct SidecarOptions {
    /// Protocol the app speaks: http, https, grpc, grpcs or h2c [default: http]
    #[arg(long, short = 'P', value_name = "PROTOCOL", ignore_case = true,
        value_parser = ["http", "https", "grpc", "grpcs", "h2c"])]
    pub(crate) app_protocol: Option<String>,
    /// The app serves TLS
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true",
        action = clap::ArgAction::Set, value_name = "BOOL")]
    pub(crate) app_ssl: bool,
    /// Calls the app takes at once [default: no limit]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) app_max_concurrency: Option<i64>,
    /// Check the app's health and hold back work while it is not healthy
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true",
        action = clap::ArgAction::Set, value_name = "BOOL", hide_possible_values = true,
        hide_default_value = true)]
    pub(crate) enable_app_health_check: bool,
    /// Path of the app's health check [default: /healthz]
    #[arg(long, value_name = "PATH")]
    pub(crate) app_health_check_path: Option<String>,
    /// Seconds between health checks
    #[arg(long, value_name = "SECONDS")]
    pub(crate) app_health_probe_interval: Option<i64>,
    /// Milliseconds a health check may take
    #[arg(long, value_name = "MILLISECONDS")]
    pub(crate) app_health_probe_timeout: Option<i64>,
    /// Failed health checks until the app counts as unhealthy
    #[arg(long, value_name = "N")]
    pub(crate) app_health_threshold: Option<i64>,
    /// Log level of the sidecar; also shows its whole log here [default: warnings and errors are shown]
    #[arg(long, value_name = "LEVEL", ignore_case = true,
        value_parser = ["debug", "info", "warn", "warning", "error", "fatal"])]
    pub(crate) log_level: Option<String>,
    /// Log each API call
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) enable_api_logging: Option<bool>,
    /// Largest request body, such as 4Mi
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) max_body_size: Option<String>,
    /// Largest request header block, such as 4Ki
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) read_buffer_size: Option<String>,
    /// The old form of --max-body-size, in MiB
    #[arg(long, value_name = "MIB", hide = true, allow_negative_numbers = true)]
    pub(crate) dapr_http_max_request_size: Option<i64>,
    /// The old form of --read-buffer-size, in KiB
    #[arg(long, value_name = "KIB", hide = true, allow_negative_numbers = true)]
    pub(crate) dapr_http_read_buffer_size: Option<i64>,
    /// Addresses the API listens on [default: loopback]
    #[arg(long, value_name = "ADDRESSES")]
    pub(crate) dapr_listen_addresses: Option<String>,
    /// Serve diagnostics on --profile-port
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true",
        action = clap::ArgAction::Set, value_name = "BOOL", hide_possible_values = true,
        hide_default_value = true)]
    pub(crate) enable_profiling: bool,
    /// Placement service for actors
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) placement_host_address: Option<String>,
    /// Scheduler service for jobs
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) scheduler_host_address: Option<String>,
}

/// A port, or "choose one" (0 and negative numbers, as in the Dapr CLI).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OptionalPort(pub(crate) Option<u16>);

/// Reads a port; 0 and below stand for "none named".
pub(crate) fn port_from(number: i64) -> Result<Option<u16>, String> {
    match u16::try_from(number) {
        Ok(0) => Ok(None),
        Ok(port) => Ok(Some(port)),
        Err(_) if number < 0 => Ok(None),
        Err(_) => Err(format!("{number} is no port (1 to 65535)")),
    }
}

fn optional_port(text: &str) -> Result<OptionalPort, String> {
    let number: i64 = text.parse().map_err(|_| "a port is a number from 1 to 65535".to_owned())?;
    port_from(number).map(OptionalPort)
}

/// Show the apps that run on this machine.
#[derive(Debug, Args)]
#[command(alias = "ls", after_help = "Examples:\n  mecha list\n  mecha list -o json")]
pub(crate) struct ListArgs {
    /// Format of the answer
    #[arg(long, short, value_enum, default_value_t)]
    pub(crate) output: Format,
}

/// Stop apps and their sidecars.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mecha stop --app-id orders\n  mecha stop orders stock\n  mecha stop -f dapr.yaml\n  mecha stop --all")]
pub(crate) struct StopArgs {
    /// Id of an app to stop; may be repeated
    #[arg(long = "app-id", short = 'a', value_name = "ID")]
    pub(crate) app_ids: Vec<String>,
    /// Ids of apps to stop
    #[arg(value_name = "ID")]
    pub(crate) ids: Vec<String>,
    /// Stop all apps started from this multi-app file
    #[arg(long, short = 'f', value_name = "FILE", conflicts_with_all = ["app_ids", "ids"])]
    pub(crate) run_file: Option<PathBuf>,
    /// Stop everything `mecha run` runs
    #[arg(long, conflicts_with_all = ["app_ids", "ids", "run_file"])]
    pub(crate) all: bool,
    /// How long to wait for the end, such as 30s
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub(crate) timeout: Duration,
}

/// Replace running sidecars in place, for example after an installation of a newer version.
///
/// A new sidecar is built beside the running one, takes its listening sockets over and lets it finish its calls: no
/// connection is refused, no request fails, the app notices nothing. When the new one does not get ready, the old one
/// goes on.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mecha upgrade --app-id orders\n  mecha upgrade --all\n  mecha upgrade orders --mechad ./target/release/mechad")]
pub(crate) struct UpgradeArgs {
    /// Id of an app whose sidecar is replaced; may be repeated
    #[arg(long = "app-id", short = 'a', value_name = "ID")]
    pub(crate) app_ids: Vec<String>,
    /// Ids of apps
    #[arg(value_name = "ID")]
    pub(crate) ids: Vec<String>,
    /// The sidecars of everything `mecha run` runs, one after the other
    #[arg(long, conflicts_with_all = ["app_ids", "ids"])]
    pub(crate) all: bool,
    /// The program to run from now on [default: as `mecha run` finds it]
    #[arg(long, value_name = "FILE")]
    pub(crate) mechad: Option<PathBuf>,
    /// How long one replacement may take, such as 30s
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = duration)]
    pub(crate) timeout: Duration,
}

/// Show what an app and its sidecar printed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mecha logs --app-id orders\n  mecha logs orders --sidecar -n 20 --follow")]
pub(crate) struct LogsArgs {
    /// Id of the app
    #[arg(long, short = 'a', value_name = "ID", required_unless_present = "id")]
    pub(crate) app_id: Option<String>,
    /// Id of the app
    #[arg(value_name = "ID", conflicts_with = "app_id")]
    pub(crate) id: Option<String>,
    /// The sidecar's log instead of the app's output
    #[arg(long)]
    pub(crate) sidecar: bool,
    /// Only the last lines
    #[arg(long, short = 'n', value_name = "LINES")]
    pub(crate) tail: Option<usize>,
    /// Go on until the app ends
    #[arg(long, short = 'F')]
    pub(crate) follow: bool,
}

/// Which sidecar to talk to.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Through {
    /// HTTP port of a sidecar that `mecha run` did not start
    #[arg(long, value_name = "PORT", conflicts_with = "unix_domain_socket")]
    pub(crate) dapr_http_port: Option<u16>,
    /// Folder with the sidecar's sockets, when it listens on those
    #[arg(long, short = 'u', value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) unix_domain_socket: Option<PathBuf>,
    /// How long to wait for the answer, such as 500ms or 1m
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    pub(crate) timeout: Duration,
}

/// Where the body of a request comes from.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Data {
    /// The data itself
    #[arg(long, short = 'd', value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "data_file")]
    pub(crate) data: Option<String>,
    /// A file with the data; - is standard input
    #[arg(long, short = 'f', value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) data_file: Option<PathBuf>,
}

/// Call a method of an app through its sidecar.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mecha invoke --app-id orders --method health --verb GET\n  \
    mecha invoke -a orders -m checkout -d '{\"item\":\"book\"}'\n\n\
    Exit status: 0 for an answer below 400, else 1. The answer's body goes to standard output as it is.")]
pub(crate) struct InvokeArgs {
    /// Id of the app to call
    #[arg(long, short = 'a', value_name = "ID")]
    pub(crate) app_id: String,
    /// Method (path) to call; may hold a query
    #[arg(long, short = 'm', value_name = "METHOD")]
    pub(crate) method: String,
    /// HTTP verb
    #[arg(long, short = 'v', value_name = "VERB", default_value = "POST")]
    pub(crate) verb: String,
    /// Request header, such as 'x-tenant: blue'; may be repeated
    #[arg(long = "header", value_name = "NAME: VALUE")]
    pub(crate) headers: Vec<String>,
    #[command(flatten)]
    pub(crate) data: Data,
    #[command(flatten)]
    pub(crate) through: Through,
}

/// Publish an event to a topic, as a running app.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mecha publish --publish-app-id orders --pubsub pubsub --topic placed --data '{\"id\":1}'\n  \
    mecha publish -i orders -p pubsub -t placed -d hello --metadata '{\"ttlInSeconds\":\"60\"}'")]
pub(crate) struct PublishArgs {
    /// Id of the app that publishes
    #[arg(long, short = 'i', value_name = "ID")]
    pub(crate) publish_app_id: String,
    /// Name of the pub/sub component
    #[arg(long, short = 'p', value_name = "NAME")]
    pub(crate) pubsub: String,
    /// Topic
    #[arg(long, short = 't', value_name = "TOPIC")]
    pub(crate) topic: String,
    /// Metadata of the event as a JSON object
    #[arg(long, short = 'm', value_name = "JSON")]
    pub(crate) metadata: Option<String>,
    /// Content type [default: from the data: a CloudEvent, JSON or text]
    #[arg(long, value_name = "TYPE")]
    pub(crate) content_type: Option<String>,
    #[command(flatten)]
    pub(crate) data: Data,
    #[command(flatten)]
    pub(crate) through: Through,
}

/// Read and write an app's state.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mecha state set --app-id orders order-1 '{\"status\":\"paid\"}'\n  \
    mecha state get --app-id orders order-1\n  \
    mecha state delete --app-id orders order-1")]
pub(crate) struct StateArgs {
    #[command(subcommand)]
    pub(crate) action: StateAction,
}

/// Whose state, and in which store.
#[derive(Args, Clone, Debug)]
pub(crate) struct StateTarget {
    /// Id of the app whose state it is
    #[arg(long, short = 'a', value_name = "ID", required_unless_present = "dapr_http_port")]
    pub(crate) app_id: Option<String>,
    /// Name of the state store component
    #[arg(long, short = 's', value_name = "NAME", default_value = "statestore")]
    pub(crate) store: String,
    #[command(flatten)]
    pub(crate) through: Through,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StateAction {
    /// Print the value of a key; exit status 1 if there is none
    #[command(after_help = "Example:\n  mecha state get --app-id orders order-1 -o json")]
    Get {
        /// Key
        key: String,
        /// `table` prints the bare value, the others key, value and ETag
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
        #[command(flatten)]
        target: StateTarget,
    },
    /// Store a value: JSON as it is, anything else as a JSON string
    #[command(after_help = "Example:\n  mecha state set --app-id orders order-1 '{\"status\":\"paid\"}' --ttl 1h")]
    Set {
        /// Key
        key: String,
        /// Value; left out with --data-file
        #[arg(required_unless_present = "data_file", allow_hyphen_values = true)]
        value: Option<String>,
        /// A file with the value; - is standard input
        #[arg(long, short = 'f', value_name = "FILE", conflicts_with = "value")]
        data_file: Option<PathBuf>,
        /// Only if the stored value still has this ETag
        #[arg(long, value_name = "ETAG")]
        etag: Option<String>,
        /// Forget the value after this time, such as 90s or 1h
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        ttl: Option<Duration>,
        #[command(flatten)]
        target: StateTarget,
    },
    /// Delete a key; one that does not exist is fine
    #[command(after_help = "Example:\n  mecha state delete --app-id orders order-1")]
    Delete {
        /// Key
        key: String,
        /// Only if the stored value still has this ETag
        #[arg(long, value_name = "ETAG")]
        etag: Option<String>,
        #[command(flatten)]
        target: StateTarget,
    },
}

/// Show the components of the running apps.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mecha components\n  mecha components --app-id orders -o yaml")]
pub(crate) struct ComponentsArgs {
    /// Only this app
    #[arg(long, short = 'a', value_name = "ID")]
    pub(crate) app_id: Option<String>,
    /// Only components with this name
    #[arg(long, short = 'n', value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Format of the answer
    #[arg(long, short, value_enum, default_value_t)]
    pub(crate) output: Format,
    #[command(flatten)]
    pub(crate) through: Through,
}

/// Show everything a sidecar tells about itself.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mecha metadata --app-id orders -o yaml")]
pub(crate) struct MetadataArgs {
    /// Id of the app
    #[arg(long, short = 'a', value_name = "ID", required_unless_present = "dapr_http_port")]
    pub(crate) app_id: Option<String>,
    /// Format of the answer; `table` is an overview
    #[arg(long, short, value_enum, default_value_t)]
    pub(crate) output: Format,
    #[command(flatten)]
    pub(crate) through: Through,
}

/// Check resource files and multi-app files without starting anything.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mecha lint ./components\n  mecha lint dapr.yaml components/pubsub.yaml\n\n\
    Exit status: 0 without findings, 1 with errors or unknown keys.")]
pub(crate) struct LintArgs {
    /// Files and folders
    #[arg(value_name = "PATH", required = true, value_hint = ValueHint::AnyPath)]
    pub(crate) paths: Vec<PathBuf>,
    /// Format of the answer
    #[arg(long, short, value_enum, default_value_t)]
    pub(crate) output: Format,
}

/// Check whether this machine can run apps, or whether a cluster can; say what is missing.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mecha doctor\n  mecha doctor --cluster\n  mecha doctor --context production -o json"
)]
pub(crate) struct DoctorArgs {
    /// Check the cluster of the kubeconfig instead of this machine; --kubeconfig and --context say the same
    #[arg(long)]
    pub(crate) cluster: bool,
    /// Namespace of the control part
    #[arg(long, value_name = "NAME", default_value = crate::cluster::health::NAMESPACE)]
    pub(crate) control_namespace: String,
    /// Format of the answer
    #[arg(long, short, value_enum, default_value_t)]
    pub(crate) output: Format,
    #[command(flatten)]
    pub(crate) access: ClusterArgs,
}

/// Show the versions of mecha and of the sidecar it starts.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mecha version -o json")]
pub(crate) struct VersionArgs {
    /// Format of the answer
    #[arg(long, short, value_enum, default_value_t)]
    pub(crate) output: Format,
}

/// Print a completion script for a shell.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    source <(mecha completion bash)\n  \
    mecha completion zsh > \"${fpath[1]}/_mecha\"\n  \
    mecha completion fish > ~/.config/fish/completions/mecha.fish")]
pub(crate) struct CompletionArgs {
    /// Shell
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

/// Reads `500ms`, `30s`, `2m`, `1h` or a bare number of seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let wrong = || format!("{text:?} is no duration; write 500ms, 30s, 2m or 1h");
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = |factor: u64| number.checked_mul(factor).map(Duration::from_secs).ok_or_else(wrong);
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "" | "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3600),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn run(args: &[&str]) -> RunArgs {
        match Cli::try_parse_from([&["mecha", "run"], args].concat()).unwrap().command {
            Command::Run(run) => *run,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn short_forms_are_those_of_the_dapr_cli() {
        let args = run(&[
            "-a",
            "orders",
            "-p",
            "6001",
            "-P",
            "grpc",
            "-H",
            "3500",
            "-G",
            "50001",
            "-I",
            "50002",
            "-M",
            "9090",
            "-d",
            "a,b",
            "-d",
            "c",
            "-c",
            "config.yaml",
            "-u",
            "/tmp",
            "--",
            "python3",
            "-m",
            "app",
            "-p",
            "1",
        ]);
        assert_eq!(args.app_id.as_deref(), Some("orders"));
        assert_eq!(args.app_port, Some(OptionalPort(Some(6001))));
        assert_eq!(args.options.app_protocol.as_deref(), Some("grpc"));
        assert_eq!(args.dapr_http_port, Some(OptionalPort(Some(3500))));
        assert_eq!(args.dapr_grpc_port, Some(OptionalPort(Some(50001))));
        assert_eq!(args.dapr_internal_grpc_port, Some(OptionalPort(Some(50002))));
        assert_eq!(args.metrics_port, Some(OptionalPort(Some(9090))));
        assert_eq!(args.resources_path, ["a", "b", "c"].map(PathBuf::from));
        assert_eq!(args.config, Some(PathBuf::from("config.yaml")));
        assert_eq!(args.unix_domain_socket, Some(PathBuf::from("/tmp")));
        assert_eq!(args.command, ["python3", "-m", "app", "-p", "1"].map(OsString::from));
    }

    #[test]
    fn a_command_needs_no_dashes_before_it() {
        let args = run(&["--app-id", "a", "node", "app.js", "--app-port", "1"]);
        assert_eq!(args.command, ["node", "app.js", "--app-port", "1"].map(OsString::from));
        assert_eq!(args.app_port, None);
    }

    #[test]
    fn switches_take_a_value_behind_an_equals_sign() {
        assert!(run(&["--enable-app-health-check"]).options.enable_app_health_check);
        assert!(run(&["--enable-app-health-check=true", "x"]).options.enable_app_health_check);
        assert!(!run(&["--enable-app-health-check=false"]).options.enable_app_health_check);
        assert_eq!(run(&["--enable-api-logging", "x"]).options.enable_api_logging, Some(true));
        assert_eq!(run(&["x"]).options.enable_api_logging, None);
    }

    #[test]
    fn minus_one_means_no_port() {
        assert_eq!(run(&["--app-port", "-1"]).app_port, Some(OptionalPort(None)));
        assert!(Cli::try_parse_from(["mecha", "run", "--app-port", "65536"]).is_err());
    }

    #[test]
    fn a_multi_app_file_names_its_own_apps() {
        assert!(Cli::try_parse_from(["mecha", "run", "-f", "x.yaml", "--app-id", "a"]).is_err());
    }

    #[test]
    fn durations_carry_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        assert!(duration("1 day").is_err());
        assert!(duration("99999999999999999999h").is_err());
    }
}
