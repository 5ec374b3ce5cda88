//! What the annotations of one pod say, checked.

use serde_json::Value;

use crate::annotations::{Annotations, problem, quantity};
use crate::config::{Config, Placement};
use crate::pod::Pod;
use crate::{CONTAINER, Problem, sidecar};

/// Names the folder of pluggable components' sockets to those and to the sidecar.
pub(crate) const SOCKETS_FOLDER_VARIABLE: &str = "DAPR_COMPONENT_SOCKETS_FOLDER";
const DEFAULT_SOCKETS_FOLDER: &str = "/tmp/dapr-components-sockets";
/// Port of the public health and metadata server; Dapr has no annotation for it.
pub(crate) const PUBLIC_PORT: u16 = 3501;
/// Longest DNS label, which the app id must be together with the suffix of its Service.
const DNS_LABEL: usize = 63;
const SERVICE_SUFFIX: &str = "-dapr";
/// Bytes that the daemon takes as a size of requests.
const LARGEST_SIZE: f64 = 9e15;

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
    /// Annotations that the author wants on the app's Service.
    pub(crate) service_annotations: Vec<(String, String)>,
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
        warnings.extend(a.unknown().map(|key| format!("annotation {key} is not known and has no effect.")));
        let placement = placement(a, config, problems);
        if placement == Placement::Classic && pod.ends() {
            let instead =
                if config.knows_native_sidecars() { ", or take dapr.io/enable-native-sidecar off" } else { "" };
            warnings.push(format!(
                "the sidecar is an ordinary container and does not end by itself, so neither does the pod: let the app \
                 call POST http://localhost:$DAPR_HTTP_PORT/v1.0/shutdown when it is done{instead}."
            ));
        }
        Self {
            app_id: app_id(a, pod, problems),
            // 0 is how charts say that there is none.
            app_port: a.number("app-port", 0, u16::MAX, problems).filter(|port| *port != 0),
            app_protocol,
            placement,
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
            api_token_secret: token_secret(a, "api-token-secret", problems),
            app_token_secret: token_secret(a, "app-token-secret", problems),
            mounts: mounts(a, pod, problems, warnings),
            unix_socket_path: socket_path(a, problems),
            pluggable: pluggable(a, pod, warnings),
            pluggable_folder: a.text("pluggable-components-sockets-folder").map(str::to_owned),
            flags: flags(a, config, problems),
            as_command: pod.tolerates(&config.ignore_entrypoint_tolerations),
            service_annotations: service_annotations(a, problems),
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
    // It is a label as well, whose values begin and end with a letter or digit.
    if id.is_empty() || id.len() > longest || !id.bytes().all(label) || id.starts_with('-') || id.ends_with('-') {
        problems.push(Problem {
            field,
            message: format!("gives the app id '{id}', which cannot be a label and name a Service with {SERVICE_SUFFIX} behind it"),
            next: format!(
                "Set dapr.io/app-id to 1 to {longest} lower-case letters, digits and dashes, with no dash at either end."
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
    let resource = Resource { request: read("request"), limit: read("limit") };
    if let (Some(request), Some(limit)) = (&resource.request, &resource.limit)
        && quantity(request) > quantity(limit)
    {
        let message = format!("is {request}, more than the limit of {limit}");
        problems.push(problem(&format!("dapr.io/sidecar-{name}-request"), message, "Ask for less, or allow more."));
    }
    resource
}

/// `key=value,key2=value2`, as Dapr reads them.
fn service_annotations(a: &Annotations<'_>, problems: &mut Vec<Problem>) -> Vec<(String, String)> {
    let Some((key, _)) = a.find("sidecar-svc-annotations") else { return Vec::new() };
    let mut all = Vec::new();
    for part in a.list("sidecar-svc-annotations") {
        match part.split_once('=').map(|(name, value)| (name.trim(), value.trim())) {
            Some((name, value)) if is_qualified(name) => all.push((name.to_owned(), value.to_owned())),
            _ => {
                problems.push(problem(&key, format!("holds '{part}'"), "Write KEY=value, such as example.com/team=a."))
            }
        }
    }
    all
}

/// The key of a label or an annotation: a name, perhaps behind a domain and a slash.
fn is_qualified(key: &str) -> bool {
    let (domain, name) = key.split_once('/').map_or((None, key), |(domain, name)| (Some(domain), name));
    let edges = |text: &str| {
        let bytes = text.as_bytes();
        [bytes.first(), bytes.last()].iter().all(|edge| edge.is_some_and(u8::is_ascii_alphanumeric))
    };
    name.len() <= DNS_LABEL
        && edges(name)
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && domain.is_none_or(is_object_name)
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
            let fits = is_object_name(secret.trim()) && is_secret_key(entry.trim());
            if !fits {
                problems.push(problem(&key, format!("holds '{part}'"), "Write NAME=secret or NAME=secret:key."));
                continue;
            }
            add(&key, name.trim(), EnvValue::Secret(secret.trim().to_owned(), entry.trim().to_owned()), problems);
        }
    }
    all
}

/// A Secret whose key `token` is meant.
fn token_secret(a: &Annotations<'_>, key: &str, problems: &mut Vec<Problem>) -> Option<String> {
    let (key, name) = a.find(key)?;
    if !is_object_name(name) {
        problems.push(problem(&key, format!("is '{name}'"), "Write the name of a Secret."));
    }
    Some(name.to_owned())
}

fn pluggable(a: &Annotations<'_>, pod: &Pod<'_>, warnings: &mut Vec<String>) -> Vec<String> {
    let names = a.list("pluggable-components");
    for name in names.iter().filter(|name| !pod.has_container(name)) {
        warnings.push(format!(
            "annotation dapr.io/pluggable-components names the container '{name}', which the pod does not have."
        ));
    }
    names.into_iter().map(str::to_owned).collect()
}

/// The name of a Secret, as API servers take it.
fn is_object_name(name: &str) -> bool {
    let edges = |part: &str| {
        let bytes = part.as_bytes();
        [bytes.first(), bytes.last()].iter().all(|edge| edge.is_some_and(|b| *b != b'-'))
    };
    name.len() <= 253
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
        && name.split('.').all(edges)
}

fn is_secret_key(key: &str) -> bool {
    let fits = key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    !key.is_empty() && key.len() <= 253 && fits
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
            // A colon in a path is none that API servers take.
            let fits =
                |(volume, path): &(&str, &str)| !volume.is_empty() && path.starts_with('/') && !path.contains(':');
            let Some((volume, path)) = part.split_once(':').filter(fits) else {
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
    let levels = ["debug", "info", "warn", "warning", "error", "fatal"];
    flag("log-level", a.word("log-level", &levels, problems).unwrap_or("info").to_owned());
    for key in ["config", "app-channel-address", "sentry-request-jwt-audiences"] {
        if let Some(text) = a.text(key) {
            flag(key, text.to_owned());
        }
    }
    // A round without time would never end; the others take 0 for their default.
    for (key, least) in [("actors-disseminate-timeout", f64::MIN_POSITIVE), ("app-binding-options-timeout", f64::MIN)] {
        if let Some(text) = a.duration(key, least, problems) {
            flag(key, text.to_owned());
        }
    }
    if let Some((key, text)) = a.find("disable-init-endpoints") {
        for word in a.list("disable-init-endpoints").into_iter().filter(|word| !["config", "subscribe"].contains(word))
        {
            problems.push(problem(&key, format!("holds '{word}'"), "Write config, subscribe or both."));
        }
        flag("disable-init-endpoints", text.to_owned());
    }
    for (key, own) in [
        ("placement-host-address", &config.addresses.placement),
        ("scheduler-host-address", &config.addresses.scheduler),
    ] {
        if let Some(text) = a.address(key, own) {
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
    if let Some(text) = a.duration("block-shutdown-duration", f64::MIN, problems) {
        flag("dapr-block-shutdown-duration", text.to_owned());
    }
    size(a, ["max-body-size", "http-max-request-size"], "dapr-http-max-request-size", problems, &mut flag);
    size(a, ["read-buffer-size", "http-read-buffer-size"], "dapr-http-read-buffer-size", problems, &mut flag);
    if a.switch("enable-app-health-check", false, problems) {
        flag("app-health-check-path", a.text("app-health-check-path").unwrap_or("/healthz").to_owned());
        let mut health = |key: &str, default: i32| {
            // 0 and less mean the default, as on the command line.
            let given = a.number(key, i32::MIN, i32::MAX, problems).filter(|n| *n > 0).unwrap_or(default);
            flag(key, given.to_string());
            i64::from(given)
        };
        let interval = health("app-health-probe-interval", 5);
        let timeout = health("app-health-probe-timeout", 500);
        health("app-health-threshold", 3);
        if timeout > interval * 1000 {
            let message = format!("is {timeout} ms, longer than the {interval} s between two probes");
            problems.push(problem("dapr.io/app-health-probe-timeout", message, "Wait less, or probe less often."));
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
    let wrong =
        |key: &str, text: &str| problem(key, format!("is '{text}'"), "Write a size above 0, or -1 for the default.");
    // -1 is the default, whatever that is.
    if let Some((full, text)) = a.find(key).filter(|(_, text)| *text != "-1") {
        match a.quantity(key, problems).map(|text| (quantity(text), text.contains(['n', 'u', 'm', 'e', 'E', 'P']))) {
            // What the daemon counts bytes by.
            Some((Some(bytes), false)) if bytes > 0.0 && bytes < LARGEST_SIZE => flag(key, text.to_owned()),
            Some(_) => problems.push(wrong(&full, text)),
            None => {}
        }
    } else if a.text(key).is_none()
        && let Some(n) = a.number::<i64>(old, -1, i64::from(i32::MAX), problems).filter(|n| *n != -1)
    {
        match n {
            0 => problems.push(wrong(&format!("dapr.io/{old}"), "0")),
            n => flag(old_flag, n.to_string()),
        }
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
        if let Some(field) = self.foreign_system() {
            problems.push(Problem {
                field: field.to_owned(),
                message: "asks for a node of another system, and the sidecar is a program for Linux".to_owned(),
                next: "Run the pod on Linux, or leave out dapr.io/enabled.".to_owned(),
            });
        }
        self.check_volumes(settings, config, problems);
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

    /// Volumes and paths that two want to have.
    fn check_volumes(&self, settings: &Settings, config: &Config, problems: &mut Vec<Problem>) {
        let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        // An injected pod has the volumes of the configuration that counted then.
        for ours in sidecar::volumes(settings, config).into_iter().filter(|_| !self.has_sidecar()) {
            let name = text(&ours, "name");
            if self.volume(&name).is_some_and(|theirs| !says(theirs, &ours)) {
                problems.push(Problem {
                    field: format!("volumes[{name}]"),
                    message: "has the name of a volume that the sidecar brings along".to_owned(),
                    next: "Rename it.".to_owned(),
                });
            }
        }
        let all = sidecar::mounts(settings, config);
        for (volume, path, read_only) in &settings.mounts {
            if all.iter().filter(|mount| mount["mountPath"] == **path).count() > 1 {
                let key = if *read_only { "volume-mounts" } else { "volume-mounts-rw" };
                problems.push(problem(
                    &format!("dapr.io/{key}"),
                    format!("mounts '{volume}' at {path}, where the sidecar has something else"),
                    "Choose another path.",
                ));
            }
        }
        let is_component = |name: &str| settings.pluggable.iter().any(|known| known == name);
        let socket = settings.unix_socket_path.as_deref().map(|path| (sidecar::SOCKET_VOLUME, path, false));
        let components = Some((sidecar::COMPONENTS_VOLUME, settings.sockets_folder(), true));
        for (volume, path, of_components) in socket.into_iter().chain(components) {
            if let Some(container) = self.mounts_else(volume, path, |name| is_component(name) == of_components) {
                problems.push(Problem {
                    field: format!("containers[{container}].volumeMounts"),
                    message: format!("has {path}, where the sockets of the sidecar would be"),
                    next: "Choose another path there, or for the sockets.".to_owned(),
                });
            }
        }
    }
}

/// Whether `theirs` says all that `ours` says; API servers fill in more.
fn says(theirs: &Value, ours: &Value) -> bool {
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            ours.iter().all(|(key, value)| theirs.get(key).is_some_and(|theirs| says(theirs, value)))
        }
        (Value::Array(theirs), Value::Array(ours)) => {
            theirs.len() == ours.len() && theirs.iter().zip(ours).all(|(theirs, ours)| says(theirs, ours))
        }
        _ => theirs == ours,
    }
}
