//! Raw values to [`Options`]: defaults, precedence, validation.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use mecha_components_api::{parse_go_duration, parse_quantity};

use super::env::{Env, is_truthy};
use super::flags::{FLAGS, FlagValue, find};
use super::parse::{Raw, parse_bool};
use super::{
    Action, AppHealthOptions, AppProtocol, ControlPlaneOptions, LogOptions, MetricsOptions, Mode, Options, Origins,
    ProfilingOptions, Strict, UsageError,
};
use crate::logging::Level;

const MIB: u64 = 1024 * 1024;
const KIB: u64 = 1024;
const DEFAULT_MAX_BODY: u64 = 4 * MIB;
const DEFAULT_READ_BUFFER: u64 = 4 * KIB;
const DEFAULT_BINDING_PROBE: Duration = Duration::from_secs(3);
const DEFAULT_PROBE_INTERVAL: Duration = Duration::from_secs(5);
const DEFAULT_PROBE_TIMEOUT: Duration = Duration::from_millis(500);
const DEFAULT_HEALTH_THRESHOLD: u32 = 3;
const DEFAULT_GRACE: Duration = Duration::from_secs(5);
const DEFAULT_RECONCILE: Duration = Duration::from_secs(60);
/// More streams than this to one scheduler help nobody.
const MAX_JOB_STREAMS: i64 = 1024;

pub(super) fn resolve(raw: Raw, env: Env) -> Result<Action, UsageError> {
    let mut read = Reader { raw: &raw, errors: raw.errors.clone(), warnings: env.warnings.clone() };
    // Help is for people who got something wrong: it needs a right command line least.
    if read.flag("help") {
        return Ok(Action::Help);
    }
    if read.errors.is_empty() {
        if read.flag("version") {
            return Ok(Action::Version);
        }
        if read.flag("build-info") {
            return Ok(Action::BuildInfo);
        }
        if read.flag("wait") {
            let http_port = read.port("dapr-http-port").unwrap_or_default();
            return finish(read.errors, Action::Wait { http_port });
        }
    }
    let options = options(&mut read, env);
    finish(read.errors, Action::Run(Box::new(options)))
}

fn finish(errors: Vec<String>, action: Action) -> Result<Action, UsageError> {
    if errors.is_empty() { Ok(action) } else { Err(UsageError(errors)) }
}

fn options(read: &mut Reader<'_>, env: Env) -> Options {
    read.note_deprecated();
    let mode = match read.choice("mode") {
        "kubernetes" => Mode::Kubernetes,
        _ => Mode::Standalone,
    };
    let app_id = read.text("app-id").to_owned();
    if mode == Mode::Standalone {
        if app_id.is_empty() {
            read.errors.push("parameter app-id cannot be empty".to_owned());
        } else if app_id.contains('.') {
            read.errors.push("parameter app-id cannot contain dots".to_owned());
        }
    }
    // It becomes part of a socket's file name and of header values.
    if app_id.contains('/') || app_id.chars().any(char::is_control) {
        read.errors.push("parameter app-id cannot contain slashes or control characters".to_owned());
    }
    let app_port = read.port("app-port").filter(|port| *port != 0);
    let http_port = read.port("dapr-http-port").unwrap_or_default();
    let grpc_port = read.port("dapr-grpc-port").unwrap_or_default();
    let public_port = read.port("dapr-public-port");
    let internal_grpc_port = read.port("dapr-internal-grpc-port");
    read.port_conflicts(app_port, http_port, grpc_port, public_port, internal_grpc_port);
    let strict = read.strict(env.mecha_strict.as_deref());
    let unix_domain_socket = Some(read.text("unix-domain-socket")).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let listen_addresses = read.listen_addresses(strict);
    let handover = Some(read.text("mecha-handover")).filter(|path| !path.is_empty()).map(PathBuf::from);
    let takeover = read.flag("mecha-takeover");
    if takeover && handover.is_none() {
        read.errors.push("--mecha-takeover needs --mecha-handover, the socket of the daemon that runs".to_owned());
    }
    let scheduler_addresses = read.raw.list("scheduler-host-address");
    let block_shutdown = read.raw.last("dapr-block-shutdown-duration").filter(|text| !text.is_empty());
    let block_shutdown = block_shutdown.is_some().then(|| read.duration("dapr-block-shutdown-duration")).flatten();
    Options {
        mode,
        app_port,
        app_protocol: read.app_protocol(),
        app_channel_address: read.text_or_default("app-channel-address"),
        app_max_concurrency: usize::try_from(read.int("app-max-concurrency")).ok().and_then(NonZeroUsize::new),
        app_binding_options_timeout: read
            .duration("app-binding-options-timeout")
            .filter(|limit| !limit.is_zero())
            .unwrap_or(DEFAULT_BINDING_PROBE),
        skip_app_config: read.skips("config"),
        skip_app_subscriptions: read.skips("subscribe"),
        app_health: read.app_health(),
        http_port,
        grpc_port,
        listen_addresses,
        internal_grpc_port,
        internal_grpc_listen_address: address(read.text("dapr-internal-grpc-listen-address")),
        public_port,
        public_listen_address: address(read.text("dapr-public-listen-address")),
        unix_domain_socket,
        allowed_origins: read.origins(),
        max_body_size: read.size("max-body-size", "dapr-http-max-request-size", MIB, DEFAULT_MAX_BODY),
        read_buffer_size: read.size("read-buffer-size", "dapr-http-read-buffer-size", KIB, DEFAULT_READ_BUFFER),
        metrics: MetricsOptions {
            enabled: read.flag("enable-metrics"),
            port: read.port("metrics-port").unwrap_or_default(),
            listen_address: address(&read.text_or_default("metrics-listen-address")),
        },
        profiling: ProfilingOptions {
            enabled: read.flag("enable-profiling"),
            port: read.port("profile-port").unwrap_or_default(),
        },
        resources_paths: read.raw.list("resources-path").into_iter().map(PathBuf::from).collect(),
        configs: read.raw.list("config"),
        reconcile_interval: read
            .duration("hot-reload-reconcile-interval")
            .filter(|interval| !interval.is_zero())
            .unwrap_or(DEFAULT_RECONCILE),
        disable_builtin_k8s_secret_store: read.flag("disable-builtin-k8s-secret-store"),
        control_plane: ControlPlaneOptions {
            address: read.text("control-plane-address").to_owned(),
            sentry_address: read.text("sentry-address").to_owned(),
            trust_domain: read.or_env("control-plane-trust-domain", env.control_plane_trust_domain.as_deref()),
            namespace: read.or_env("control-plane-namespace", env.control_plane_namespace.as_deref()),
            jwt_audiences: read.raw.list("sentry-request-jwt-audiences"),
            mtls: if read.raw.is_given("enable-mtls") { read.flag("enable-mtls") } else { mode == Mode::Kubernetes },
        },
        placement_addresses: read.raw.list("placement-host-address"),
        scheduler_dns: if scheduler_addresses.is_empty() { env.scheduler_dns.clone() } else { Vec::new() },
        scheduler_addresses,
        scheduler_job_streams: read.job_streams(),
        actors_disseminate_timeout: read.disseminate_timeout(),
        graceful_shutdown: match read.int("dapr-graceful-shutdown-seconds") {
            0 => None,
            seconds => Some(u64::try_from(seconds).map_or(DEFAULT_GRACE, Duration::from_secs)),
        },
        block_shutdown,
        api_logging: read.raw.is_given("enable-api-logging").then(|| read.flag("enable-api-logging")),
        log: LogOptions {
            level: Level::parse(read.choice("log-level")).unwrap_or(Level::Info),
            json: read.flag("log-as-json"),
            file: Some(read.text("log-file")).filter(|file| !file.is_empty()).map(PathBuf::from),
        },
        strict,
        handover,
        takeover,
        home: env.mecha_home.clone(),
        warnings: std::mem::take(&mut read.warnings),
        app_id,
        env,
    }
}

/// Reads values and collects what is wrong with them.
struct Reader<'a> {
    raw: &'a Raw,
    errors: Vec<String>,
    warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    /// The value as given, else the table's default.
    fn text(&self, name: &str) -> &'a str {
        self.raw.last(name).unwrap_or_else(|| find(name).map_or("", |flag| flag.default))
    }

    /// As [`Reader::text`]; an empty value counts as not given.
    fn text_or_default(&self, name: &str) -> String {
        let given = self.raw.last(name).filter(|text| !text.is_empty());
        given.unwrap_or_else(|| find(name).map_or("", |flag| flag.default)).to_owned()
    }

    fn or_env(&self, name: &str, env: Option<&str>) -> String {
        match env {
            Some(value) if !self.raw.is_given(name) => value.to_owned(),
            _ => self.text(name).to_owned(),
        }
    }

    fn bad(&mut self, name: &str, value: &str, why: &str) {
        self.errors.push(format!("invalid argument {value:?} for \"--{name}\" flag: {why}"));
    }

    fn flag(&mut self, name: &str) -> bool {
        let text = self.text(name);
        if text.is_empty() && !self.raw.is_given(name) {
            return false;
        }
        parse_bool(text).unwrap_or_else(|| {
            self.bad(name, text, "expected true or false");
            false
        })
    }

    fn int(&mut self, name: &str) -> i64 {
        let text = self.text(name);
        text.parse().unwrap_or_else(|_| {
            self.bad(name, text, "expected a whole number");
            0
        })
    }

    fn port(&mut self, name: &str) -> Option<u16> {
        let text = self.text(name);
        if text.is_empty() {
            return None;
        }
        match text.parse() {
            Ok(port) => Some(port),
            Err(_) => {
                self.bad(name, text, "expected a port number from 0 to 65535");
                None
            }
        }
    }

    /// Zero for negative durations.
    fn duration(&mut self, name: &str) -> Option<Duration> {
        let text = self.text(name);
        let positive = text.strip_prefix('-');
        // A number without unit is a mistake in Go, except 0.
        let has_unit =
            text.contains(|c: char| c.is_ascii_alphabetic()) || text.trim_matches(['0', '+', '-']).is_empty();
        match parse_go_duration(positive.unwrap_or(text), Duration::from_secs(1)).filter(|_| has_unit) {
            Some(_) if positive.is_some() => Some(Duration::ZERO),
            Some(value) => Some(value),
            None => {
                self.bad(name, text, "expected a duration such as 500ms, 30s or 1m30s");
                None
            }
        }
    }

    fn choice(&mut self, name: &str) -> &'a str {
        let text = self.text(name);
        let Some(FlagValue::Choice(words)) = find(name).map(|flag| flag.value) else { return text };
        // Dapr's log package also knows "warning".
        let known =
            words.iter().any(|word| word.eq_ignore_ascii_case(text)) || (name == "log-level" && text == "warning");
        if !known {
            self.errors.push(format!("invalid value for '{name}': {text} (expected one of {})", words.join(", ")));
        }
        text
    }

    fn note_deprecated(&mut self) {
        for flag in FLAGS {
            if let Some(instead) = flag.deprecated
                && self.raw.is_given(flag.name)
            {
                self.warnings.push(format!("The '{}' flag is deprecated; use {instead} instead", flag.name));
            }
        }
        if !self.raw.extra.is_empty() {
            self.warnings.push(format!("ignored arguments that belong to no flag: {}", self.raw.extra.join(" ")));
        }
    }

    fn port_conflicts(&mut self, app: Option<u16>, http: u16, grpc: u16, public: Option<u16>, internal: Option<u16>) {
        let Some(app) = app else { return };
        let servers = [
            ("dapr-http-port", Some(http)),
            ("dapr-grpc-port", Some(grpc)),
            ("dapr-public-port", public),
            ("dapr-internal-grpc-port", internal),
        ];
        for (name, _) in servers.iter().filter(|(_, port)| *port == Some(app)) {
            self.errors.push(format!("the '{name}' argument value {app} conflicts with 'app-port'"));
        }
    }

    fn app_protocol(&mut self) -> AppProtocol {
        let text = self.text_or_default("app-protocol").to_ascii_lowercase();
        let ssl = self.flag("app-ssl");
        match (text.as_str(), ssl) {
            ("http", false) => AppProtocol::Http,
            ("http", true) | ("https", _) => AppProtocol::Https,
            ("grpc", false) => AppProtocol::Grpc,
            ("grpc", true) | ("grpcs", _) => AppProtocol::Grpcs,
            ("h2c", _) => AppProtocol::H2c,
            _ => {
                self.errors.push(format!("invalid value for 'app-protocol': {text}"));
                AppProtocol::Http
            }
        }
    }

    fn app_health(&mut self) -> Option<AppHealthOptions> {
        let enabled = self.flag("enable-app-health-check");
        let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
        let interval =
            positive(self.int("app-health-probe-interval")).map_or(DEFAULT_PROBE_INTERVAL, Duration::from_secs);
        let timeout =
            positive(self.int("app-health-probe-timeout")).map_or(DEFAULT_PROBE_TIMEOUT, Duration::from_millis);
        let threshold = self.int("app-health-threshold");
        if timeout > interval {
            self.errors
                .push("value for 'health-probe-timeout' must be smaller than 'health-probe-interval'".to_owned());
        }
        let path = self.text_or_default("app-health-check-path");
        enabled.then(|| AppHealthOptions {
            path: if path.starts_with('/') { path } else { format!("/{path}") },
            interval,
            timeout,
            threshold: u32::try_from(threshold).ok().filter(|n| *n > 0).unwrap_or(DEFAULT_HEALTH_THRESHOLD),
        })
    }

    fn skips(&mut self, what: &str) -> bool {
        const KNOWN: [&str; 2] = ["config", "subscribe"];
        let list = self.raw.list("disable-init-endpoints");
        // Asked once per word; the mistake is reported with the first.
        if what == KNOWN[0] {
            for unknown in list.iter().filter(|word| !KNOWN.contains(&word.as_str())) {
                self.bad("disable-init-endpoints", unknown, "expected config or subscribe");
            }
        }
        list.iter().any(|word| word == what)
    }

    fn listen_addresses(&mut self, strict: Strict) -> Vec<String> {
        let mut addresses: Vec<String> =
            self.raw.list("dapr-listen-addresses").iter().map(|text| address(text)).collect();
        if addresses.is_empty() {
            addresses =
                if strict.loopback { vec!["127.0.0.1".to_owned(), "::1".to_owned()] } else { vec![String::new()] };
        }
        addresses
    }

    fn origins(&self) -> Origins {
        let list = self.raw.list("allowed-origins");
        if list.is_empty() {
            Origins::Off
        } else if list.iter().any(|origin| origin == "*") {
            Origins::Any
        } else {
            Origins::List(list)
        }
    }

    /// A size by its flag, else by the deprecated one in `unit`s, else the default.
    fn size(&mut self, name: &str, old: &str, unit: u64, default: u64) -> u64 {
        if let Some(text) = self.raw.last(name) {
            return match parse_quantity(text) {
                _ if text == "-1" => default,
                Some(bytes) if bytes > 0 => bytes,
                _ => {
                    self.bad(name, text, "expected a size such as 4Mi or 4194304, or -1 for the default");
                    default
                }
            };
        }
        if !self.raw.is_given(old) {
            return default;
        }
        match self.int(old) {
            -1 => default,
            n => u64::try_from(n).ok().filter(|n| *n > 0).and_then(|n| n.checked_mul(unit)).unwrap_or_else(|| {
                self.bad(old, &n.to_string(), "expected a positive number, or -1 for the default");
                default
            }),
        }
    }

    fn job_streams(&mut self) -> u32 {
        match self.int("scheduler-job-streams") {
            n @ 1..=MAX_JOB_STREAMS => n as u32,
            n => {
                self.bad("scheduler-job-streams", &n.to_string(), "expected a number from 1 to 1024");
                1
            }
        }
    }

    fn disseminate_timeout(&mut self) -> Duration {
        let name = "actors-disseminate-timeout";
        match self.duration(name) {
            Some(Duration::ZERO) => {
                let text = self.text(name);
                self.bad(name, text, "must be greater than 0");
                Duration::ZERO
            }
            Some(timeout) => timeout,
            None => Duration::ZERO,
        }
    }

    /// The flag wins over the variable, as a whole.
    fn strict(&mut self, env: Option<&str>) -> Strict {
        let name = "mecha-strict";
        let given = self.raw.last(name);
        let (text, source) = match (given, env) {
            (Some(text), _) => (text, "\"--mecha-strict\" flag"),
            (None, Some(text)) => (text, "MECHA_STRICT"),
            (None, None) => return Strict::default(),
        };
        if is_truthy(text) {
            return Strict::ALL;
        }
        let mut strict = Strict::default();
        if text.is_empty() || ["n", "no", "false", "f", "off", "0"].iter().any(|no| text.eq_ignore_ascii_case(no)) {
            return strict;
        }
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            match part {
                "loopback" => strict.loopback = true,
                "host-check" => strict.host_check = true,
                "degrade" => strict.degrade = true,
                "url-targets" => strict.url_targets = true,
                "secret-scopes" => strict.secret_scopes = true,
                "app-routes" => strict.app_routes = true,
                "sqlite-full" => strict.sqlite_full = true,
                "api-rules" => strict.api_rules = true,
                other => self.errors.push(format!(
                    "invalid argument {other:?} for {source}: expected true, false or parts of loopback, host-check, \
                     degrade, url-targets, secret-scopes, app-routes, sqlite-full, api-rules"
                )),
            }
        }
        strict
    }
}

/// `[::1]` is how Dapr's injector writes `::1`.
fn address(text: &str) -> String {
    let text = text.trim();
    text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text).to_owned()
}
