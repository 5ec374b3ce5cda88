//! The environment the daemon reads, once, through a lookup that tests replace.

use std::path::PathBuf;
use std::time::Duration;

use mecha_components_api::{Secret, parse_go_duration};
use mecha_otlp::OtelEnv;

/// Peer connections without a call are closed after this long.
const DEFAULT_PEER_IDLE: Duration = Duration::from_secs(180);

/// How often idle peer connections are looked for.
const DEFAULT_PEER_SWEEP: Duration = Duration::from_secs(45);

/// How long a start waits for the control plane when there is a snapshot: a restart of the agent, and no more.
const DEFAULT_SNAPSHOT_WAIT: Duration = Duration::from_secs(10);

/// The oldest snapshot that a start uses.
const DEFAULT_SNAPSHOT_MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// Everything the daemon takes from its environment. An empty variable counts
/// as unset.
#[derive(Clone, Debug)]
pub struct Env {
    /// `DAPR_API_TOKEN`: asked from API callers.
    pub api_token: Option<Secret>,
    /// `APP_API_TOKEN`: sent to the app with every call.
    pub app_token: Option<Secret>,
    /// `NAMESPACE`. Unset means `default` for identity, and that documents on
    /// disk are not filtered by namespace.
    pub namespace: Option<String>,
    /// `POD_NAME`.
    pub pod_name: Option<String>,
    /// `DAPR_HOST_IP`: address announced to others.
    pub host_ip: Option<String>,
    /// `DAPR_TRUST_ANCHORS`: PEM roots.
    pub trust_anchors: Option<String>,
    /// `MECHA_TRUST_ANCHORS_FILE`: file with PEM roots, followed; counts before `DAPR_TRUST_ANCHORS`
    /// once it is there.
    pub trust_anchors_file: Option<PathBuf>,
    /// `DAPR_SENTRY_TOKEN_FILE`.
    pub sentry_token_file: Option<PathBuf>,
    /// `SENTRY_LOCAL_IDENTITY`.
    pub sentry_local_identity: Option<String>,
    /// `DAPR_CONTROLPLANE_NAMESPACE`.
    pub control_plane_namespace: Option<String>,
    /// `DAPR_CONTROLPLANE_TRUST_DOMAIN`.
    pub control_plane_trust_domain: Option<String>,
    /// `DAPR_SCHEDULER_HOST_ADDRESS_DNS_A`.
    pub scheduler_dns: Vec<String>,
    /// `DAPR_ENV_KEYS`: what `envRef` may read.
    pub env_ref_keys: Vec<String>,
    /// `DAPR_COMPONENTS_SOCKETS_FOLDER`, or its default.
    pub component_sockets_dir: PathBuf,
    /// `DAPR_GRPC_MAX_CONN_IDLE`.
    pub peer_idle: Duration,
    /// `DAPR_GRPC_CONN_COLLECTOR_INTERVAL`.
    pub peer_sweep: Duration,
    /// `DAPR_HTTP_DISABLE_H2C`.
    pub disable_h2c: bool,
    /// `KUBERNETES_SERVICE_HOST` is set.
    pub in_kubernetes: bool,
    /// `KUBECONFIG`.
    pub kubeconfig: Option<String>,
    /// `MECHA_STRICT`.
    pub mecha_strict: Option<String>,
    /// `MECHA_HOME`, else `.mecha` in the home folder if there is one.
    pub mecha_home: Option<PathBuf>,
    /// What a start may use while the control plane is away.
    pub snapshot: SnapshotEnv,
    /// OpenTelemetry's own variables.
    pub otel: OtelEnv,
    /// Mistakes that do not stop the daemon; to be logged.
    pub warnings: Vec<String>,
}

/// `MECHA_SNAPSHOT_*`.
#[derive(Clone, Debug)]
pub struct SnapshotEnv {
    /// `MECHA_SNAPSHOT_FOLDER`: where the agent's signed snapshot is kept; nothing is kept without it.
    pub folder: Option<PathBuf>,
    /// `MECHA_SNAPSHOT_WAIT`: how long a start waits for the control plane before it uses the snapshot.
    pub wait: Duration,
    /// `MECHA_SNAPSHOT_MAX_AGE`: the oldest snapshot that a start uses.
    pub max_age: Duration,
}

impl Default for SnapshotEnv {
    fn default() -> Self {
        Self { folder: None, wait: DEFAULT_SNAPSHOT_WAIT, max_age: DEFAULT_SNAPSHOT_MAX_AGE }
    }
}

impl Env {
    /// Reads all variables.
    pub fn read(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let mut warnings = Vec::new();
        let mut duration = |name: &str, default: Duration| match get(name) {
            None => default,
            Some(text) => match parse_go_duration(&text, Duration::from_secs(1)) {
                Some(value) if !value.is_zero() => value,
                _ => {
                    warnings.push(format!("{name}: {text:?} is not a duration such as 3m; using {default:?}"));
                    default
                }
            },
        };
        let peer_idle = duration("DAPR_GRPC_MAX_CONN_IDLE", DEFAULT_PEER_IDLE);
        let peer_sweep = duration("DAPR_GRPC_CONN_COLLECTOR_INTERVAL", DEFAULT_PEER_SWEEP);
        let snapshot = SnapshotEnv {
            folder: get("MECHA_SNAPSHOT_FOLDER").map(PathBuf::from),
            wait: duration("MECHA_SNAPSHOT_WAIT", DEFAULT_SNAPSHOT_WAIT),
            max_age: duration("MECHA_SNAPSHOT_MAX_AGE", DEFAULT_SNAPSHOT_MAX_AGE),
        };
        let component_sockets_dir = get("DAPR_COMPONENTS_SOCKETS_FOLDER")
            .or_else(|| get("DAPR_COMPONENT_SOCKETS_FOLDER"))
            .map(PathBuf::from)
            .unwrap_or_else(|| {
                PathBuf::from(get("TMPDIR").unwrap_or_else(|| "/tmp".to_owned())).join("dapr-components-sockets")
            });
        let mecha_home = get("MECHA_HOME")
            .map(PathBuf::from)
            .or_else(|| get("HOME").or_else(|| get("USERPROFILE")).map(|home| PathBuf::from(home).join(".mecha")));
        let otel = OtelEnv::read(&get, &mut warnings);
        Self {
            api_token: get("DAPR_API_TOKEN").map(Secret::new),
            app_token: get("APP_API_TOKEN").map(Secret::new),
            namespace: get("NAMESPACE"),
            pod_name: get("POD_NAME"),
            host_ip: get("DAPR_HOST_IP"),
            trust_anchors: get("DAPR_TRUST_ANCHORS"),
            trust_anchors_file: get("MECHA_TRUST_ANCHORS_FILE").map(PathBuf::from),
            sentry_token_file: get("DAPR_SENTRY_TOKEN_FILE").map(PathBuf::from),
            sentry_local_identity: get("SENTRY_LOCAL_IDENTITY"),
            control_plane_namespace: get("DAPR_CONTROLPLANE_NAMESPACE"),
            control_plane_trust_domain: get("DAPR_CONTROLPLANE_TRUST_DOMAIN"),
            scheduler_dns: split(get("DAPR_SCHEDULER_HOST_ADDRESS_DNS_A"), ','),
            env_ref_keys: split(get("DAPR_ENV_KEYS"), ' '),
            component_sockets_dir,
            peer_idle,
            peer_sweep,
            disable_h2c: get("DAPR_HTTP_DISABLE_H2C").is_some_and(|value| is_truthy(&value)),
            in_kubernetes: get("KUBERNETES_SERVICE_HOST").is_some(),
            kubeconfig: get("KUBECONFIG"),
            mecha_strict: get("MECHA_STRICT"),
            mecha_home,
            snapshot,
            otel,
            warnings,
        }
    }

    /// Reads the process's own environment. Variables that are not UTF-8 count as unset.
    pub fn from_process() -> Self {
        Self::read(|name| std::env::var(name).ok())
    }

    /// The namespace as identity: `default` when none is set.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }
}

/// The texts that mean yes wherever the daemon reads one.
pub fn is_truthy(text: &str) -> bool {
    ["y", "yes", "true", "t", "on", "1"].iter().any(|yes| text.trim().eq_ignore_ascii_case(yes))
}

fn split(text: Option<String>, at: char) -> Vec<String> {
    let text = text.unwrap_or_default();
    text.split(at).map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Env {
        Env::read(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn an_empty_environment_is_enough() {
        let env = env(&[]);
        assert_eq!(env.namespace(), "default");
        assert_eq!(env.namespace, None);
        assert_eq!(env.component_sockets_dir, PathBuf::from("/tmp/dapr-components-sockets"));
        assert_eq!((env.peer_idle, env.peer_sweep), (Duration::from_secs(180), Duration::from_secs(45)));
        assert_eq!(env.mecha_home, None);
        assert!(env.warnings.is_empty());
    }

    #[test]
    fn variables_are_read() {
        let env = env(&[
            ("NAMESPACE", "shop"),
            ("DAPR_API_TOKEN", ""),
            ("APP_API_TOKEN", "t0ken"),
            ("DAPR_ENV_KEYS", "A  B"),
            ("DAPR_SCHEDULER_HOST_ADDRESS_DNS_A", "a:1, b:2"),
            ("DAPR_COMPONENT_SOCKETS_FOLDER", "/sockets"),
            ("DAPR_GRPC_MAX_CONN_IDLE", "1s"),
            ("DAPR_GRPC_CONN_COLLECTOR_INTERVAL", "soon"),
            ("DAPR_HTTP_DISABLE_H2C", "Yes"),
            ("HOME", "/home/u"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4317"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces:4317"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
        ]);
        assert_eq!(env.namespace(), "shop");
        assert!(env.api_token.is_none());
        assert_eq!(env.app_token.as_ref().unwrap().expose(), "t0ken");
        assert!(!format!("{env:?}").contains("t0ken"));
        assert_eq!(env.env_ref_keys, ["A", "B"]);
        assert_eq!(env.scheduler_dns, ["a:1", "b:2"]);
        assert_eq!(env.component_sockets_dir, PathBuf::from("/sockets"));
        assert_eq!((env.peer_idle, env.peer_sweep), (Duration::from_secs(1), DEFAULT_PEER_SWEEP));
        assert_eq!(env.warnings.len(), 1);
        assert!(env.warnings[0].contains("DAPR_GRPC_CONN_COLLECTOR_INTERVAL"));
        assert!(env.disable_h2c);
        assert_eq!(env.mecha_home, Some(PathBuf::from("/home/u/.mecha")));
        assert_eq!(env.otel.endpoint.as_deref(), Some("http://traces:4317"));
        assert_eq!(env.otel.timeout, Some(Duration::from_millis(250)));
    }

    #[test]
    fn truthy_texts() {
        for yes in ["y", "YES", "true", "T", "on", "1", " On "] {
            assert!(is_truthy(yes), "{yes}");
        }
        for no in ["", "0", "no", "off", "false", "2", "enabled"] {
            assert!(!is_truthy(no), "{no}");
        }
    }
}
