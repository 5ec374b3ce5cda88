//! The one table of flags: the parser, `--help` and the reference in the docs
//! are all driven by it.

use mecha_components_api::did_you_mean;

/// What a flag takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FlagValue {
    /// `true` or `false`; bare means true.
    Bool,
    /// Any text.
    Text,
    /// A whole number.
    Int,
    /// A port number; empty means unset.
    Port,
    /// A Go duration such as `30s`.
    Duration,
    /// A Kubernetes quantity such as `4Mi`.
    Quantity,
    /// Comma-separated texts, repeatable.
    List,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// [`FlagValue::Bool`] or a comma-separated list of strict mode's parts.
    Strict,
}

/// Headings of `--help`, in order.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum FlagGroup {
    /// Identity and kind of deployment.
    General,
    /// The app beside the daemon.
    App,
    /// Health of the app.
    AppHealth,
    /// Listeners of the daemon.
    Servers,
    /// Limits of the APIs.
    Limits,
    /// Documents.
    Resources,
    /// Control plane and identity.
    ControlPlane,
    /// Actors and jobs.
    Actors,
    /// Start and stop.
    Lifecycle,
    /// Logs, metrics, profiling.
    Observability,
    /// Our own extensions.
    Mecha,
    /// Print something and exit.
    Actions,
}

/// One flag.
#[derive(Clone, Copy, Debug)]
pub struct FlagDoc {
    /// Name without dashes.
    pub name: &'static str,
    /// Other spellings that mean the same.
    pub aliases: &'static [&'static str],
    /// What it takes.
    pub value: FlagValue,
    /// As the user would write it; empty means unset.
    pub default: &'static str,
    /// Heading in `--help`.
    pub group: FlagGroup,
    /// One sentence.
    pub help: &'static str,
    /// What to use instead, for flags kept for compatibility.
    pub deprecated: Option<&'static str>,
}

impl FlagGroup {
    /// The heading.
    pub const fn title(self) -> &'static str {
        match self {
            FlagGroup::General => "General",
            FlagGroup::App => "App",
            FlagGroup::AppHealth => "App health",
            FlagGroup::Servers => "Servers",
            FlagGroup::Limits => "Limits",
            FlagGroup::Resources => "Resources",
            FlagGroup::ControlPlane => "Control plane",
            FlagGroup::Actors => "Actors and jobs",
            FlagGroup::Lifecycle => "Start and stop",
            FlagGroup::Observability => "Observability",
            FlagGroup::Mecha => "Mecha extensions",
            FlagGroup::Actions => "Actions",
        }
    }
}

impl FlagDoc {
    const fn alias(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    const fn deprecated(mut self, instead: &'static str) -> Self {
        self.deprecated = Some(instead);
        self
    }
}

const fn flag(
    name: &'static str,
    value: FlagValue,
    default: &'static str,
    group: FlagGroup,
    help: &'static str,
) -> FlagDoc {
    FlagDoc { name, aliases: &[], value, default, group, help, deprecated: None }
}

use FlagGroup::{
    Actions, Actors, App, AppHealth, ControlPlane, General, Lifecycle, Limits, Mecha, Observability, Resources, Servers,
};
use FlagValue::{Bool, Choice, Duration, Int, List, Port, Quantity, Strict, Text};

/// Every flag, in the order `--help` shows them within their group.
pub const FLAGS: &[FlagDoc] = &[
    flag("mode", Choice(&["standalone", "kubernetes"]), "standalone", General, "Where the daemon runs."),
    flag("app-id", Text, "", General, "Unique id of the app; required in standalone mode, without dots."),
    flag("app-port", Port, "", App, "Port the app listens on; unset: no calls to the app."),
    flag("app-protocol", Choice(&["http", "https", "grpc", "grpcs", "h2c"]), "http", App, "Protocol the app speaks."),
    flag("app-channel-address", Text, "127.0.0.1", App, "Host the app listens on."),
    flag("app-max-concurrency", Int, "-1", App, "Calls in flight to the app at a time; 0 or less: no limit."),
    flag("app-ssl", Bool, "false", App, "Call the app over TLS.").deprecated("--app-protocol https or grpcs"),
    flag(
        "app-binding-options-timeout",
        Duration,
        "3s",
        App,
        "Limit of the OPTIONS probe that asks whether the app wants an input binding; 0 or less: the default.",
    ),
    flag("disable-init-endpoints", List, "", App, "Calls to leave out when the app starts: config, subscribe."),
    flag(
        "enable-app-health-check",
        Bool,
        "false",
        AppHealth,
        "Probe the app and pause its input while it is unhealthy.",
    ),
    flag("app-health-check-path", Text, "/healthz", AppHealth, "Path probed; HTTP apps only."),
    flag("app-health-probe-interval", Int, "5", AppHealth, "Seconds between probes; 0 or less: the default."),
    flag(
        "app-health-probe-timeout",
        Int,
        "500",
        AppHealth,
        "Milliseconds until a probe has failed; 0 or less: the default.",
    ),
    flag(
        "app-health-threshold",
        Int,
        "3",
        AppHealth,
        "Failures in a row that make the app unhealthy; 0 or less: the default.",
    ),
    flag("dapr-http-port", Port, "3500", Servers, "Port of the HTTP API."),
    flag("dapr-grpc-port", Port, "50001", Servers, "Port of the gRPC API."),
    flag("dapr-listen-addresses", List, "", Servers, "Addresses both APIs listen on; unset: all."),
    flag(
        "dapr-internal-grpc-port",
        Port,
        "",
        Servers,
        "Port for other sidecars; unset: one that stays the same over restarts.",
    ),
    flag("dapr-internal-grpc-listen-address", Text, "", Servers, "Address other sidecars reach; unset: all."),
    flag(
        "dapr-public-port",
        Port,
        "",
        Servers,
        "Port of an extra HTTP server with health and metadata only; unset: off.",
    ),
    flag("dapr-public-listen-address", Text, "", Servers, "Address of the public port; unset: all."),
    flag(
        "unix-domain-socket",
        Text,
        "",
        Servers,
        "Folder for dapr-<app-id>-http.socket and dapr-<app-id>-grpc.socket; the APIs listen there instead of on TCP.",
    ),
    flag("allowed-origins", List, "", Servers, "Origins allowed by CORS, or *; unset: CORS is off."),
    flag("max-body-size", Quantity, "4Mi", Limits, "Largest request body; -1: the default."),
    flag("read-buffer-size", Quantity, "4Ki", Limits, "Largest block of request headers; -1: the default."),
    flag("dapr-http-max-request-size", Int, "-1", Limits, "Largest request body in MiB.").deprecated("--max-body-size"),
    flag("dapr-http-read-buffer-size", Int, "-1", Limits, "Largest block of request headers in KiB.")
        .deprecated("--read-buffer-size"),
    flag("resources-path", List, "", Resources, "Folder with components and other documents; repeatable.")
        .alias(&["components-path"]),
    flag(
        "config",
        List,
        "",
        Resources,
        "Configuration file (standalone) or name (kubernetes); repeatable, the last wins.",
    ),
    flag(
        "hot-reload-reconcile-interval",
        Duration,
        "0s",
        Resources,
        "How often all documents are listed again; 0: 60s.",
    ),
    flag("disable-builtin-k8s-secret-store", Bool, "false", Resources, "Leave out the secret store `kubernetes`."),
    flag("control-plane-address", Text, "", ControlPlane, "host:port of the operator."),
    flag("sentry-address", Text, "", ControlPlane, "host:port of the certificate authority."),
    flag(
        "control-plane-trust-domain",
        Text,
        "localhost",
        ControlPlane,
        "Trust domain of the control plane; else DAPR_CONTROLPLANE_TRUST_DOMAIN.",
    ),
    flag(
        "control-plane-namespace",
        Text,
        "default",
        ControlPlane,
        "Namespace of the control plane; else DAPR_CONTROLPLANE_NAMESPACE.",
    ),
    flag(
        "sentry-request-jwt-audiences",
        List,
        "",
        ControlPlane,
        "Extra audiences of the JWT asked from the authority.",
    ),
    flag(
        "enable-mtls",
        Bool,
        "false",
        ControlPlane,
        "Encrypt traffic between sidecars; on in kubernetes mode unless given as false.",
    ),
    flag("placement-host-address", List, "", Actors, "host:port of the placement service."),
    flag("scheduler-host-address", List, "", Actors, "host:port of the scheduler service."),
    flag("scheduler-job-streams", Int, "3", Actors, "Job streams kept open to each scheduler."),
    flag(
        "actors-disseminate-timeout",
        Duration,
        "30s",
        Actors,
        "Limit of one round of placement updates; more than 0.",
    ),
    flag("actors-service", Text, "", Actors, "Ignored.").deprecated("--placement-host-address"),
    flag("reminders-service", Text, "", Actors, "Ignored.").deprecated("--scheduler-host-address"),
    flag(
        "dapr-graceful-shutdown-seconds",
        Int,
        "5",
        Lifecycle,
        "Most time a stop may take; 0: no limit, less: the default.",
    ),
    flag(
        "dapr-block-shutdown-duration",
        Duration,
        "",
        Lifecycle,
        "After a signal, keep serving for this long or until the app is unhealthy.",
    ),
    flag(
        "log-level",
        Choice(&["debug", "info", "warn", "error", "fatal"]),
        "info",
        Observability,
        "Least severe lines written.",
    ),
    flag("log-as-json", Bool, "false", Observability, "One JSON object per line."),
    flag("log-file", Text, "", Observability, "Append logs to this file; nothing goes to standard output then."),
    flag("enable-api-logging", Bool, "", Observability, "Log each API call; unset: as the Configuration says."),
    flag("enable-metrics", Bool, "true", Observability, "Serve Prometheus metrics."),
    flag("metrics-port", Port, "9090", Observability, "Port of the metrics."),
    flag("metrics-listen-address", Text, "0.0.0.0", Observability, "Address of the metrics port."),
    flag("enable-profiling", Bool, "false", Observability, "Serve the diagnostics port."),
    flag("profile-port", Port, "7777", Observability, "Port of the diagnostics server."),
    flag(
        "mecha-strict",
        Strict,
        "false",
        Mecha,
        "Safer defaults; all, or parts: loopback, host-check, degrade, url-targets, secret-scopes, app-routes, sqlite-full, \
         api-rules. Else MECHA_STRICT.",
    ),
    flag(
        "mecha-handover",
        Text,
        "",
        Mecha,
        "Unix socket at which this daemon hands its listening sockets over to a successor; unset: none.",
    ),
    flag(
        "mecha-takeover",
        Bool,
        "false",
        Mecha,
        "Take the listening sockets over from the daemon at --mecha-handover, which then leaves.",
    ),
    flag("version", Bool, "false", Actions, "Print the version."),
    flag("build-info", Bool, "false", Actions, "Print version and commit."),
    flag("wait", Bool, "false", Actions, "Wait until a daemon on --dapr-http-port can be used, 60s at most."),
    flag("help", Bool, "false", Actions, "Print this text.").alias(&["h"]),
];

/// Finds a flag by name or alias.
pub(super) fn find(name: &str) -> Option<&'static FlagDoc> {
    FLAGS.iter().find(|flag| flag.name == name || flag.aliases.contains(&name))
}

/// The known name a wrong one was probably meant to be.
pub(super) fn closest(wrong: &str) -> Option<&'static str> {
    // Longer texts are no typing mistakes, and the search is quadratic.
    if wrong.len() > 64 {
        return None;
    }
    let names = FLAGS.iter().flat_map(|flag| std::iter::once(flag.name).chain(flag.aliases.iter().copied()));
    did_you_mean(&wrong.replace('_', "-"), names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_well_formed() {
        let mut seen = std::collections::HashSet::new();
        for flag in FLAGS {
            assert!(seen.insert(flag.name), "{}", flag.name);
            assert!(flag.name.bytes().all(|c| c.is_ascii_lowercase() || c == b'-' || c.is_ascii_digit()));
            assert!(flag.help.ends_with('.'), "{}", flag.name);
            for alias in flag.aliases {
                assert!(seen.insert(alias), "{alias}");
            }
        }
    }

    #[test]
    fn near_misses_are_suggested_and_far_ones_are_not() {
        assert_eq!(closest("app-idd"), Some("app-id"));
        assert_eq!(closest("app_port"), Some("app-port"));
        assert_eq!(closest("resource-path"), Some("resources-path"));
        assert_eq!(closest("component-path"), Some("components-path"));
        assert_eq!(closest("frobnicate"), None);
        assert_eq!(closest(&"x".repeat(1000)), None);
    }
}
