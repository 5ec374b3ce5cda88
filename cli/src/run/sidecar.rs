//! The mechad beside an app: where it is, how it is called, and when it is ready.

use super::ports::Ports;
use super::process::{Process, Stop, describe, find_program};
use super::spec::AppSpec;
use crate::client::{Call, Endpoint};
use crate::error::{CliError, Result};
use crate::home::Home;
use http::Method;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Name of the sidecar's program.
pub(crate) const PROGRAM: &str = "mechad";
/// Names another program, before all other places.
const PROGRAM_VARIABLE: &str = "MECHA_MECHAD";
/// Limit of one look at the sidecar's health.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Time between looks: short at first, as a sidecar is ready within some ten milliseconds.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// How waiting for a sidecar ended.
#[derive(Debug)]
pub(crate) enum Start {
    /// The app may use it.
    Ready,
    /// Somebody asked to stop before.
    Stopped,
    /// It ended by itself.
    Ended(String),
    /// It runs, but not as it should.
    Late,
}

/// The sidecar's program: as `MECHA_MECHAD` says, else beside this program, else in PATH.
pub(crate) fn find() -> Result<PathBuf> {
    let here = Path::new("/");
    if let Some(named) = std::env::var_os(PROGRAM_VARIABLE).filter(|named| !named.is_empty()) {
        let folder = std::env::current_dir().unwrap_or_else(|_| here.to_owned());
        let path = std::env::var_os("PATH");
        return find_program(&named, &folder, path.as_deref()).ok_or_else(|| {
            CliError::new("no-sidecar", format!("{PROGRAM_VARIABLE} names {named:?}, which cannot be run"))
        });
    }
    let beside = std::env::current_exe().ok().and_then(|mecha| mecha.parent().map(|folder| folder.join(PROGRAM)));
    let beside = beside.and_then(|file| find_program(file.as_os_str(), here, None));
    beside.or_else(|| find_program(OsStr::new(PROGRAM), here, std::env::var_os("PATH").as_deref())).ok_or_else(|| {
        CliError::new("no-sidecar", format!("{PROGRAM}, the sidecar, was found neither beside mecha nor in PATH"))
            .hint(format!("install it beside mecha, or name it in {PROGRAM_VARIABLE}"))
    })
}

/// The sidecar's arguments: the flags of daprd, and strict mode.
pub(crate) fn arguments(spec: &AppSpec, ports: &Ports) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::with_capacity(48);
    let mut flag = |name: &str, value: &dyn AsRef<OsStr>| {
        args.push(format!("--{name}").into());
        args.push(value.as_ref().to_owned());
    };
    let number = |number: i64| number.to_string();
    let options = &spec.options;
    flag("app-id", &spec.app_id);
    if let Some(port) = spec.app_port {
        flag("app-port", &number(port.into()));
    }
    flag("app-protocol", &spec.protocol());
    let texts = [
        ("app-channel-address", &spec.app_channel_address),
        ("app-health-check-path", &options.app_health_check_path),
        ("max-body-size", &options.max_body_size),
        ("read-buffer-size", &options.read_buffer_size),
        ("dapr-listen-addresses", &options.dapr_listen_addresses),
        ("placement-host-address", &options.placement_host_address),
        ("scheduler-host-address", &options.scheduler_host_address),
    ];
    for (name, value) in texts {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            flag(name, value);
        }
    }
    let numbers = [
        ("dapr-http-port", ports.http.map(i64::from)),
        ("dapr-grpc-port", ports.grpc.map(i64::from)),
        ("dapr-internal-grpc-port", ports.internal_grpc.map(i64::from)),
        ("metrics-port", Some(ports.metrics.into())),
        ("profile-port", ports.profile.map(i64::from)),
        ("app-max-concurrency", options.app_max_concurrency),
        ("app-health-probe-interval", options.app_health_probe_interval),
        ("app-health-probe-timeout", options.app_health_probe_timeout),
        ("app-health-threshold", options.app_health_threshold),
        ("dapr-http-max-request-size", options.dapr_http_max_request_size),
        ("dapr-http-read-buffer-size", options.dapr_http_read_buffer_size),
    ];
    for (name, value) in numbers {
        if let Some(value) = value {
            flag(name, &number(value));
        }
    }
    if let Some(level) = &options.log_level {
        flag("log-level", &if level == "warning" { "warn" } else { level });
    }
    for folder in &spec.resources {
        flag("resources-path", folder);
    }
    flag("config", &spec.config);
    if let Some(folder) = &spec.unix_domain_socket {
        flag("unix-domain-socket", folder);
    }
    let switches = [
        ("enable-app-health-check", options.enable_app_health_check.then_some(true)),
        ("enable-profiling", options.enable_profiling.then_some(true)),
        ("enable-api-logging", options.enable_api_logging),
        ("mecha-strict", Some(true)),
    ];
    for (name, on) in switches {
        match on {
            Some(true) => args.push(format!("--{name}").into()),
            Some(false) => args.push(format!("--{name}=false").into()),
            None => {}
        }
    }
    args
}

/// What the sidecar's environment holds beyond mecha's own.
pub(crate) fn environment(home: &Home) -> Vec<(OsString, OsString)> {
    let mut env: Vec<(OsString, OsString)> =
        vec![("MECHA_HOME".into(), home.root().into()), ("MECHA_NAME_REGISTRY".into(), home.names().into())];
    if std::env::var_os("DAPR_HOST_IP").is_none() {
        // Sidecars of one machine reach each other whatever network it is in, and no firewall asks.
        env.push(("DAPR_HOST_IP".into(), "127.0.0.1".into()));
    }
    env
}

/// The environment through which the app finds its sidecar; the app's own variables win.
pub(crate) fn app_environment(spec: &AppSpec, ports: &Ports) -> Vec<(OsString, OsString)> {
    let mut env: Vec<(OsString, OsString)> = Vec::with_capacity(16 + spec.env.len());
    let mut set = |key: &str, value: String| env.push((key.into(), value.into()));
    set("APP_ID", spec.app_id.clone());
    set("APP_PROTOCOL", spec.protocol().to_owned());
    if let Some(port) = spec.app_port {
        set("APP_PORT", port.to_string());
    }
    if let Some(address) = &spec.app_channel_address {
        set("APP_CHANNEL_ADDRESS", address.clone());
    }
    if let Some(port) = ports.http {
        set("DAPR_HTTP_PORT", port.to_string());
        set("DAPR_HTTP_ENDPOINT", format!("http://127.0.0.1:{port}"));
    }
    if let Some(port) = ports.grpc {
        set("DAPR_GRPC_PORT", port.to_string());
        // With a scheme, because the .NET SDK takes nothing else.
        set("DAPR_GRPC_ENDPOINT", format!("http://127.0.0.1:{port}"));
    }
    if let Some(folder) = &spec.unix_domain_socket {
        let socket = folder.join(format!("dapr-{}-grpc.socket", spec.app_id));
        set("DAPR_GRPC_ENDPOINT", format!("unix://{}", socket.display()));
    }
    set("DAPR_METRICS_PORT", ports.metrics.to_string());
    if std::env::var_os("PYTHONUNBUFFERED").is_none() {
        // Output goes to a pipe, and Python would hold it back until the end.
        set("PYTHONUNBUFFERED", "1".to_owned());
    }
    for (key, value) in &spec.env {
        set(key, value.clone());
    }
    env
}

/// The API of a sidecar with these ports.
pub(crate) fn endpoint(spec: &AppSpec, ports: &Ports) -> Endpoint {
    match (&spec.unix_domain_socket, ports.http) {
        (Some(folder), _) => Endpoint::socket(folder, &spec.app_id),
        (None, port) => Endpoint::Tcp(port.unwrap_or_default()),
    }
}

/// Waits until the sidecar serves its outbound APIs: from then on the app may use it.
pub(crate) async fn wait_ready(
    process: &mut Process,
    endpoint: &Endpoint,
    limit: Duration,
    stop: &mut watch::Receiver<Stop>,
) -> Start {
    let deadline = Instant::now() + limit;
    let mut pause = FIRST_PAUSE;
    loop {
        let probe = async {
            tokio::time::sleep(pause).await;
            let call = Call::new(Method::GET, "/v1.0/healthz/outbound");
            call.send(endpoint, PROBE_TIMEOUT).await.is_ok_and(|answer| answer.status.is_success())
        };
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop != Stop::No) => return Start::Stopped,
            status = process.wait() => {
                return Start::Ended(status.map_or_else(|error| error.to_string(), describe));
            }
            ready = probe => if ready { return Start::Ready },
            () = tokio::time::sleep_until(deadline) => return Start::Late,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::SidecarOptions;
    use crate::run::runfile::tests::spec;

    const PORTS: Ports =
        Ports { http: Some(3500), grpc: Some(50001), internal_grpc: None, metrics: 9090, profile: None };

    fn line(spec: &AppSpec) -> String {
        let args = arguments(spec, &PORTS);
        args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_plain_app_gives_a_plain_call() {
        assert_eq!(
            line(&AppSpec { app_port: Some(6001), ..spec("orders") }),
            "--app-id orders --app-port 6001 --app-protocol http --dapr-http-port 3500 --dapr-grpc-port 50001 \
             --metrics-port 9090 --resources-path /resources --config /config.yaml --mecha-strict"
        );
    }

    #[test]
    fn options_become_flags() {
        let options = SidecarOptions {
            app_protocol: Some("grpc".into()),
            app_ssl: true,
            app_max_concurrency: Some(-1),
            log_level: Some("warning".into()),
            enable_api_logging: Some(false),
            enable_app_health_check: true,
            app_health_check_path: Some("/health".into()),
            max_body_size: Some("16Mi".into()),
            ..SidecarOptions::default()
        };
        let line = line(&AppSpec { options, ..spec("orders") });
        for part in [
            "--app-protocol grpcs",
            "--app-max-concurrency -1",
            "--log-level warn ",
            "--enable-api-logging=false",
            "--enable-app-health-check ",
            "--app-health-check-path /health",
            "--max-body-size 16Mi",
        ] {
            assert!(line.contains(part), "{part:?} is not in {line}");
        }
    }

    #[test]
    fn the_app_finds_its_sidecar_and_may_override_everything() {
        let mut app = AppSpec { app_port: Some(6001), ..spec("orders") };
        app.env.insert("APP_PORT".into(), "7001".into());
        let env = app_environment(&app, &PORTS);
        let last = |key: &str| env.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v.to_string_lossy().into_owned());
        assert_eq!(last("APP_ID").as_deref(), Some("orders"));
        assert_eq!(last("APP_PORT").as_deref(), Some("7001"));
        assert_eq!(last("DAPR_HTTP_PORT").as_deref(), Some("3500"));
        assert_eq!(last("DAPR_GRPC_ENDPOINT").as_deref(), Some("http://127.0.0.1:50001"));
        assert_eq!(last("DAPR_METRICS_PORT").as_deref(), Some("9090"));
    }
}
