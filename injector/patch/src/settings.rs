//! What the annotations of one pod say, checked.

use crate::annotations::{Annotations, problem};
use crate::config::{Config, Placement};
use crate::pod::Pod;
use crate::{CONTAINER, Problem};

/// Names the folder of pluggable components' sockets to those and to the sidecar.
pub(crate) const SOCKETS_FOLDER_VARIABLE: &str = "DAPR_COMPONENT_SOCKETS_FOLDER";
const DEFAULT_SOCKETS_FOLDER: &str = "/tmp/dapr-components-sockets";
/// Port of the public health and metadata server; Dapr has no annotation for it.
pub(crate) const PUBLIC_PORT: u16 = 3501;
/// Longest DNS label, which the app id must be together with the suffix of its Service.
const DNS_LABEL: usize = 63;
const SERVICE_SUFFIX: &str = "-dapr";

/// The sidecar that a pod asks for.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) app_id: String,
    pub(crate) app_port: Option<u16>,
    pub(crate) app_protocol: &'static str,
    pub(crate) placement: Placement,
    pub(crate) image: String,
    pub(crate) http_port: u16,
    pub(crate) grpc_port: u16,
    pub(crate) internal_port: u16,
    pub(crate) metrics_port: u16,
    pub(crate) enable_metrics: bool,
    pub(crate) liveness: Probe,
    pub(crate) readiness: Probe,
    pub(crate) cpu: Resource,
    pub(crate) memory: Resource,
    pub(crate) seccomp: &'static str,
    /// Plain variables and those from Secrets, in the order of the annotations.
    pub(crate) env: Vec<(String, EnvValue)>,
    pub(crate) api_token_secret: Option<String>,
    pub(crate) app_token_secret: Option<String>,
    /// Volume, path, read-only.
    pub(crate) mounts: Vec<(String, String, bool)>,
    pub(crate) unix_socket_path: Option<String>,
    /// Containers that are pluggable components.
    pub(crate) pluggable: Vec<String>,
    pub(crate) pluggable_folder: Option<String>,
    /// Flags that an annotation maps to as it is.
    pub(crate) flags: Vec<String>,
    pub(crate) as_command: bool,
}

/// A probe of the sidecar: seconds, and failures until it counts.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) delay: u32,
    pub(crate) timeout: u32,
    pub(crate) period: u32,
    pub(crate) threshold: u32,
}

/// Request and limit, as written.
#[derive(Debug)]
pub(crate) struct Resource {
    pub(crate) request: Option<String>,
    pub(crate) limit: Option<String>,
}

/// Where a variable's value comes from.
#[derive(Debug)]
pub(crate) enum EnvValue {
    Plain(String),
    /// Secret and key.
    Secret(String, String),
}

impl Settings {
    pub(crate) fn read(
        annotations: &Annotations<'_>,
        pod: &Pod<'_>,
        config: &Config,
        problems: &mut Vec<Problem>,
        warnings: &mut Vec<String>,
    ) -> Self {
        let a = annotations;
        let app_protocol =
            a.word("app-protocol", &["http", "https", "grpc", "grpcs", "h2c"], problems).unwrap_or("http");
        let enable_metrics = a.switch("enable-metrics", true, problems);
        if a.switch("enable-debug", false, problems) {
            warnings.push("annotation dapr.io/enable-debug has no effect: the image carries no debugger.".to_owned());
        }
        if a.switch("inject-pluggable-components", false, problems) {
            warnings.push(
                "annotation dapr.io/inject-pluggable-components has no effect: put the containers into the pod and \
                 name them in dapr.io/pluggable-components."
                    .to_owned(),
            );
        }
        Self {
            app_id: app_id(a, pod, problems),
            app_port: a.number("app-port", 1, u16::MAX, problems),
            app_protocol,
            placement: placement(a, config, problems),
            image: image(a, config, problems),
            http_port: a.port("http-port", 3500, problems),
            grpc_port: a.port("grpc-port", 50_001, problems),
            internal_port: a.port("internal-grpc-port", 50_002, problems),
            metrics_port: a.port("metrics-port", 9090, problems),
            enable_metrics,
            liveness: probe(a, "liveness", Probe { delay: 180, timeout: 3, period: 10, threshold: 5 }, problems),
            readiness: probe(a, "readiness", Probe { delay: 1, timeout: 1, period: 1, threshold: 5 }, problems),
            cpu: resource(a, "cpu", problems),
            memory: resource(a, "memory", problems),
            seccomp: a
                .word("sidecar-seccomp-profile-type", &["RuntimeDefault", "Unconfined"], problems)
                .unwrap_or("RuntimeDefault"),
            env: env(a, problems),
            api_token_secret: a.text("api-token-secret").map(str::to_owned),
            app_token_secret: a.text("app-token-secret").map(str::to_owned),
            mounts: mounts(a, pod, problems, warnings),
            unix_socket_path: socket_path(a, problems),
            pluggable: a.list("pluggable-components").into_iter().map(str::to_owned).collect(),
            pluggable_folder: a.text("pluggable-components-sockets-folder").map(str::to_owned),
            flags: flags(a, config, problems),
            as_command: pod.tolerates(&config.ignore_entrypoint_tolerations),
        }
    }

    pub(crate) fn sockets_folder(&self) -> &str {
        self.pluggable_folder.as_deref().unwrap_or(DEFAULT_SOCKETS_FOLDER)
    }

    /// The sidecar's ports with their names.
    pub(crate) fn ports(&self) -> Vec<(&'static str, u16)> {
        let mut ports = vec![
            ("dapr-http", self.http_port),
            ("dapr-grpc", self.grpc_port),
            ("dapr-internal", self.internal_port),
            ("dapr-public", PUBLIC_PORT),
        ];
        if self.enable_metrics {
            ports.push(("dapr-metrics", self.metrics_port));
        }
        ports
    }
}

fn app_id(a: &Annotations<'_>, pod: &Pod<'_>, problems: &mut Vec<Problem>) -> String {
    let (field, id) = match a.find("app-id") {
        Some((key, text)) => (format!("annotation {key}"), text.to_owned()),
        None => ("metadata.name".to_owned(), pod.owner_or_name()),
    };
    let label = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let longest = DNS_LABEL - SERVICE_SUFFIX.len();
    if id.is_empty() || id.len() > longest || !id.bytes().all(label) || id.starts_with('-') {
        problems.push(Problem {
            field,
            message: format!("gives the app id '{id}', which cannot name a Service with {SERVICE_SUFFIX} behind it"),
            next: format!(
                "Set dapr.io/app-id to 1 to {longest} lower-case letters, digits and dashes, not beginning with a dash."
            ),
        });
    }
    id
}

fn placement(a: &Annotations<'_>, config: &Config, problems: &mut Vec<Problem>) -> Placement {
    match a.maybe_switch("enable-native-sidecar", problems) {
        Some(false) => Placement::Classic,
        Some(true) if !config.knows_native_sidecars() => {
            problems.push(problem(
                "dapr.io/enable-native-sidecar",
                format!("is true, and this cluster is Kubernetes 1.{}", config.kubernetes_minor),
                "Remove it, or update the cluster to 1.29 or newer.",
            ));
            Placement::Classic
        }
        Some(true) => Placement::Native,
        None if config.knows_native_sidecars() => Placement::Native,
        None => Placement::Classic,
    }
}

fn image(a: &Annotations<'_>, config: &Config, problems: &mut Vec<Problem>) -> String {
    if let Some(image) = a.text("sidecar-image") {
        return image.to_owned();
    }
    let Some((key, ring)) = a.find("ring") else { return config.image.clone() };
    config.rings.get(ring).cloned().unwrap_or_else(|| {
        let known: Vec<&str> = config.rings.keys().map(String::as_str).collect();
        let next = if known.is_empty() {
            "Remove it: this cluster has no rings.".to_owned()
        } else {
            format!("Write one of {}.", known.join(", "))
        };
        problems.push(problem(&key, format!("names the unknown ring '{ring}'"), &next));
        config.image.clone()
    })
}

fn probe(a: &Annotations<'_>, name: &str, default: Probe, problems: &mut Vec<Problem>) -> Probe {
    let key = |part: &str| format!("sidecar-{name}-probe-{part}");
    Probe {
        delay: a.number(&key("delay-seconds"), 0, 86_400, problems).unwrap_or(default.delay),
        timeout: a.number(&key("timeout-seconds"), 1, 86_400, problems).unwrap_or(default.timeout),
        period: a.number(&key("period-seconds"), 1, 86_400, problems).unwrap_or(default.period),
        threshold: a.number(&key("threshold"), 1, 86_400, problems).unwrap_or(default.threshold),
    }
}

fn resource(a: &Annotations<'_>, name: &str, problems: &mut Vec<Problem>) -> Resource {
    let mut read = |part: &str| a.quantity(&format!("sidecar-{name}-{part}"), problems).map(str::to_owned);
    Resource { request: read("request"), limit: read("limit") }
}

/// `K=v,K2=v2`: a comma belongs to the value unless a name and `=` follow it.
fn env(a: &Annotations<'_>, problems: &mut Vec<Problem>) -> Vec<(String, EnvValue)> {
    let mut all: Vec<(String, EnvValue)> = Vec::new();
    let mut add = |key: &str, name: &str, value: EnvValue, problems: &mut Vec<Problem>| {
        if !is_variable(name) {
            problems.push(problem(key, format!("holds '{name}', not a variable's name"), "Write NAME=value."));
        } else if all.iter().any(|(present, _)| present == name) {
            problems.push(problem(key, format!("sets {name} twice"), "Keep one of them."));
        } else {
            all.push((name.to_owned(), value));
        }
    };
    if let Some((key, text)) = a.find("env") {
        for (name, value) in assignments(text) {
            add(&key, name, EnvValue::Plain(value.to_owned()), problems);
        }
    }
    if let Some((key, _)) = a.find("env-from-secret") {
        for part in a.list("env-from-secret") {
            let (name, source) = part.split_once('=').unwrap_or((part, ""));
            let (secret, entry) = source.split_once(':').unwrap_or((source, source));
            if secret.trim().is_empty() || entry.trim().is_empty() {
                problems.push(problem(&key, format!("holds '{part}'"), "Write NAME=secret or NAME=secret:key."));
                continue;
            }
            add(&key, name.trim(), EnvValue::Secret(secret.trim().to_owned(), entry.trim().to_owned()), problems);
        }
    }
    all
}

fn assignments(text: &str) -> Vec<(&str, &str)> {
    let mut parts: Vec<&str> = Vec::new();
    let mut start = 0;
    for (at, _) in text.match_indices(',') {
        let begins = text[at + 1..].trim_start().split_once('=').is_some_and(|(name, _)| is_variable(name));
        if begins {
            parts.push(&text[start..at]);
            start = at + 1;
        }
    }
    parts.push(&text[start..]);
    parts.into_iter().map(|part| part.trim().split_once('=').unwrap_or((part.trim(), ""))).collect()
}

fn is_variable(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn mounts(
    a: &Annotations<'_>,
    pod: &Pod<'_>,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) -> Vec<(String, String, bool)> {
    let mut mounts = Vec::new();
    for (key, read_only) in [("volume-mounts", true), ("volume-mounts-rw", false)] {
        for part in a.list(key) {
            let Some((volume, path)) = part.split_once(':').filter(|(v, p)| !v.is_empty() && p.starts_with('/')) else {
                problems.push(problem(&format!("dapr.io/{key}"), format!("holds '{part}'"), "Write volume:/path."));
                continue;
            };
            // Dapr goes on without the volume, so pods that live with that today must, too.
            if pod.has_volume(volume) {
                mounts.push((volume.to_owned(), path.to_owned(), read_only));
            } else {
                warnings.push(format!(
                    "annotation dapr.io/{key} names the volume '{volume}', which the pod does not have; it is not mounted."
                ));
            }
        }
    }
    mounts
}

fn socket_path(a: &Annotations<'_>, problems: &mut Vec<Problem>) -> Option<String> {
    let (key, path) = a.find("unix-domain-socket-path")?;
    if !path.starts_with('/') {
        problems.push(problem(&key, format!("is '{path}'"), "Write an absolute path, such as /tmp/dapr."));
    }
    Some(path.to_owned())
}

/// Annotations that are flags of the daemon, in the form of its command line. Values that the
/// daemon would refuse are refused here, where the author sees it.
fn flags(a: &Annotations<'_>, config: &Config, problems: &mut Vec<Problem>) -> Vec<String> {
    let mut flags = Vec::new();
    let mut flag = |name: &str, value: String| flags.extend([format!("--{name}"), value]);
    let level = a.word("log-level", &["debug", "info", "warn", "error", "fatal"], problems).unwrap_or("info");
    flag("log-level", level.to_owned());
    for key in ["config", "app-channel-address", "actors-disseminate-timeout", "app-binding-options-timeout"] {
        if let Some(text) = a.text(key) {
            flag(key, text.to_owned());
        }
    }
    for key in ["disable-init-endpoints", "sentry-request-jwt-audiences"] {
        if let Some(text) = a.text(key) {
            flag(key, text.to_owned());
        }
    }
    for (key, own) in [
        ("placement-host-address", &config.addresses.placement),
        ("scheduler-host-address", &config.addresses.scheduler),
    ] {
        if let Some(text) = a.text(key).or(Some(own.as_str()).filter(|own| !own.is_empty())) {
            flag(key, text.to_owned());
        }
    }
    let listen = a.text("sidecar-listen-addresses").unwrap_or("[::1],127.0.0.1");
    flag("dapr-listen-addresses", listen.to_owned());
    if let Some(n) = a.number::<i64>("app-max-concurrency", -1, i64::from(i32::MAX), problems) {
        flag("app-max-concurrency", n.to_string());
    }
    let seconds = a.number::<i64>("graceful-shutdown-seconds", -1, i64::from(i32::MAX), problems).unwrap_or(-1);
    flag("dapr-graceful-shutdown-seconds", seconds.to_string());
    if let Some(text) = a.text("block-shutdown-duration") {
        flag("dapr-block-shutdown-duration", text.to_owned());
    }
    size(a, ["max-body-size", "http-max-request-size"], "dapr-http-max-request-size", problems, &mut flag);
    size(a, ["read-buffer-size", "http-read-buffer-size"], "dapr-http-read-buffer-size", problems, &mut flag);
    if a.switch("enable-app-health-check", false, problems) {
        flag("app-health-check-path", a.text("app-health-check-path").unwrap_or("/healthz").to_owned());
        for (key, default) in
            [("app-health-probe-interval", 5_u32), ("app-health-probe-timeout", 500), ("app-health-threshold", 3)]
        {
            flag(key, a.number(key, 1, u32::MAX, problems).unwrap_or(default).to_string());
        }
        flags.push("--enable-app-health-check".to_owned());
    }
    for (key, name) in [
        ("log-as-json", "log-as-json"),
        ("app-ssl", "app-ssl"),
        ("disable-builtin-k8s-secret-store", "disable-builtin-k8s-secret-store"),
        ("enable-profiling", "enable-profiling"),
    ] {
        if a.switch(key, false, problems) {
            flags.push(format!("--{name}"));
        }
    }
    // Three-valued: without it the Configuration decides.
    if let Some(on) = a.maybe_switch("enable-api-logging", problems) {
        flags.push(format!("--enable-api-logging={on}"));
    }
    if a.switch("strict", config.strict, problems) {
        flags.push("--mecha-strict".to_owned());
    }
    if config.mtls {
        flags.push("--enable-mtls".to_owned());
    }
    flags
}

/// A size under its name of today, else under the old one, which counts in units of its own.
fn size(
    a: &Annotations<'_>,
    [key, old]: [&'static str; 2],
    old_flag: &str,
    problems: &mut Vec<Problem>,
    flag: &mut impl FnMut(&str, String),
) {
    if let Some(text) = a.quantity(key, problems) {
        flag(key, text.to_owned());
    } else if a.text(key).is_none()
        && let Some(n) = a.number::<i64>(old, -1, i64::from(i32::MAX), problems)
    {
        flag(old_flag, n.to_string());
    }
}

impl Pod<'_> {
    /// What would make the sidecar fail in this pod, found before it is there.
    pub(crate) fn check(&self, settings: &Settings, config: &Config, a: &Annotations<'_>, problems: &mut Vec<Problem>) {
        if self.host_network() && !a.switch("allow-host-network", false, problems) {
            problems.push(Problem {
                field: "spec.hostNetwork".to_owned(),
                message: "is true, so the sidecar's ports would be the node's".to_owned(),
                next:
                    "Set it to false, or pick free ports by annotations and set mecha.dev/allow-host-network to true."
                        .to_owned(),
            });
        }
        if self.injected_by_nobody() {
            problems.push(Problem {
                field: "spec.containers".to_owned(),
                message: format!("has a container named {CONTAINER} that no injector put there"),
                next: "Rename it, or leave out dapr.io/enabled: the name is the sidecar's.".to_owned(),
            });
        }
        let ports = settings.ports();
        for (i, (name, port)) in ports.iter().enumerate() {
            if let Some((other, _)) = ports[..i].iter().find(|(_, taken)| taken == port) {
                problems.push(Problem {
                    field: format!("port {port}"),
                    message: format!("is meant for both {other} and {name}"),
                    next: "Give one of them another port by annotation.".to_owned(),
                });
            }
            if settings.app_port == Some(*port) {
                problems.push(problem(
                    "dapr.io/app-port",
                    format!("is {port}, the sidecar's own port {name}"),
                    "Give the app or the sidecar another port.",
                ));
            }
            if let Some(container) = self.uses_port(*port) {
                problems.push(Problem {
                    field: format!("containers[{container}].ports"),
                    message: format!("has {port}, which the sidecar needs as {name}"),
                    next: "Give the app or the sidecar another port.".to_owned(),
                });
            }
        }
        if config.image.is_empty() && settings.image.is_empty() {
            problems.push(Problem {
                field: "injector configuration, image".to_owned(),
                message: "is empty".to_owned(),
                next: "Name the sidecar's image there, or in dapr.io/sidecar-image.".to_owned(),
            });
        }
    }
}
