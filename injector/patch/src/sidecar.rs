//! The sidecar's container, its volumes, and its place in the pod.

use serde_json::{Value, json};

use crate::CONTAINER;
use crate::config::{Config, Placement};
use crate::edit::Editor;
use crate::pod::is_mesh;
use crate::settings::{EnvValue, PUBLIC_PORT, Probe, Resource, SOCKETS_FOLDER_VARIABLE, Settings};

pub(crate) const SOCKET_VOLUME: &str = "dapr-unix-domain-socket";
const SOCKET_FOLDER: &str = "/var/run/dapr-sockets";
pub(crate) const COMPONENTS_VOLUME: &str = "dapr-components-unix-domain-socket";
const TOKEN_VOLUME: &str = "dapr-identity-token";
const TOKEN_FOLDER: &str = "/var/run/secrets/dapr.io/sentrytoken";
/// Seconds a projected token lives; the kubelet renews it in time.
const TOKEN_SECONDS: u32 = 7200;
const TRUST_VOLUME: &str = "mecha-trust-bundle";
const TRUST_FOLDER: &str = "/var/run/secrets/mecha.dev/trust";
const SNAPSHOT_VOLUME: &str = "mecha-snapshot";
const SNAPSHOT_FOLDER: &str = "/var/run/mecha/snapshot";
/// Most the last good documents may take of the node's memory.
const SNAPSHOT_LIMIT: &str = "16Mi";
/// Seconds the listeners have to appear before the kubelet starts the sidecar anew.
const START_LIMIT: u32 = 120;

/// Puts the sidecar and its volumes into the pod, or where it should be.
pub(crate) fn place(editor: &mut Editor, settings: &Settings, namespace: &str, config: &Config) {
    for volume in volumes(settings, config) {
        editor.volume(volume);
    }
    let container = container(settings, namespace, config);
    if editor.named("/spec/containers", CONTAINER).is_some() {
        return;
    }
    let inits = "/spec/initContainers";
    if let Some(at) = editor.named(inits, CONTAINER) {
        // A mesh's webhook that ran after ours may have put its proxy behind the sidecar.
        if last_mesh(editor, inits).is_some_and(|mesh| mesh > at)
            && let Some(ours) = editor.remove(inits, at)
        {
            let index = last_mesh(editor, inits).map_or(0, |mesh| mesh + 1);
            editor.insert(inits, index, ours);
        }
        return;
    }
    match settings.placement {
        Placement::Native => {
            let index = last_mesh(editor, inits).map_or(0, |mesh| mesh + 1);
            editor.insert(inits, index, container);
        }
        Placement::Classic => editor.insert("/spec/containers", usize::MAX, container),
    }
}

pub(crate) fn components_mount(settings: &Settings) -> Value {
    json!({"name": COMPONENTS_VOLUME, "mountPath": settings.sockets_folder()})
}

fn last_mesh(editor: &Editor, list: &str) -> Option<usize> {
    editor.at(list)?.as_array()?.iter().rposition(|container| container["name"].as_str().is_some_and(is_mesh))
}

pub(crate) fn volumes(settings: &Settings, config: &Config) -> Vec<Value> {
    let memory = json!({"medium": "Memory"});
    let mut volumes = vec![
        json!({"name": TOKEN_VOLUME, "projected": {"defaultMode": 0o644, "sources": [{"serviceAccountToken": {
            "audience": config.token_audience, "expirationSeconds": TOKEN_SECONDS, "path": "token"}}]}}),
        json!({"name": SNAPSHOT_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": SNAPSHOT_LIMIT}}),
    ];
    if !config.trust_bundle_config_map.is_empty() {
        // Optional, or a namespace that is still without it could start no pod.
        volumes.push(json!({"name": TRUST_VOLUME,
            "configMap": {"name": config.trust_bundle_config_map, "optional": true}}));
    }
    if settings.unix_socket_path.is_some() {
        volumes.push(json!({"name": SOCKET_VOLUME, "emptyDir": memory}));
    }
    if !settings.pluggable.is_empty() {
        volumes.push(json!({"name": COMPONENTS_VOLUME, "emptyDir": {}}));
    }
    volumes
}

fn container(settings: &Settings, namespace: &str, config: &Config) -> Value {
    let mut container = json!({
        "name": CONTAINER,
        "image": settings.image,
        "imagePullPolicy": config.image_pull_policy,
        "args": args(settings, config),
        "env": env(settings, namespace, config),
        "ports": settings.ports().iter()
            .map(|(name, port)| json!({"name": name, "containerPort": port, "protocol": "TCP"})).collect::<Vec<_>>(),
        "volumeMounts": mounts(settings, config),
        "securityContext": security(settings, config),
        // The pod's author sees readiness of app and sidecar together.
        "readinessProbe": probe(&settings.readiness, json!({"path": "/v1.0/healthz", "port": PUBLIC_PORT})),
        // A sidecar that waits for its app is alive: only its listener counts.
        "livenessProbe": liveness(&settings.liveness),
    });
    if settings.placement == Placement::Native {
        container["restartPolicy"] = json!("Always");
        // The app's containers start once this has passed.
        container["startupProbe"] =
            json!({"tcpSocket": {"port": PUBLIC_PORT}, "periodSeconds": 1, "failureThreshold": START_LIMIT});
    }
    if settings.as_command {
        container["command"] = json!(["/mechad"]);
    }
    let resources = resources(&settings.cpu, &settings.memory);
    if resources != json!({}) {
        container["resources"] = resources;
    }
    container
}

fn args(settings: &Settings, config: &Config) -> Vec<String> {
    let mut args: Vec<String> = Vec::new();
    let mut flag = |name: &str, value: &str| args.extend([format!("--{name}"), value.to_owned()]);
    flag("mode", "kubernetes");
    flag("app-id", &settings.app_id);
    if let Some(port) = settings.app_port {
        flag("app-port", &port.to_string());
    }
    flag("app-protocol", settings.app_protocol);
    flag("dapr-http-port", &settings.http_port.to_string());
    flag("dapr-grpc-port", &settings.grpc_port.to_string());
    flag("dapr-internal-grpc-port", &settings.internal_port.to_string());
    flag("dapr-public-port", &PUBLIC_PORT.to_string());
    for (name, address) in
        [("control-plane-address", &config.addresses.operator), ("sentry-address", &config.addresses.sentry)]
    {
        if !address.is_empty() {
            flag(name, address);
        }
    }
    if settings.unix_socket_path.is_some() {
        flag("unix-domain-socket", SOCKET_FOLDER);
    }
    if settings.enable_metrics {
        flag("metrics-port", &settings.metrics_port.to_string());
        args.push("--enable-metrics".to_owned());
    } else {
        args.push("--enable-metrics=false".to_owned());
    }
    args.extend(settings.flags.iter().cloned());
    args
}

fn env(settings: &Settings, namespace: &str, config: &Config) -> Vec<Value> {
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    let secret = |name: &str, key: &str| json!({"secretKeyRef": {"name": name, "key": key}});
    let mut env = vec![
        json!({"name": "NAMESPACE", "value": namespace}),
        json!({"name": "POD_NAME", "valueFrom": field("metadata.name")}),
        json!({"name": "DAPR_HOST_IP", "valueFrom": field("status.podIP")}),
        json!({"name": "DAPR_CONTROLPLANE_NAMESPACE", "value": config.control_plane_namespace}),
        json!({"name": "DAPR_CONTROLPLANE_TRUST_DOMAIN", "value": config.trust_domain}),
        json!({"name": "MECHA_SNAPSHOT_FOLDER", "value": SNAPSHOT_FOLDER}),
    ];
    if !config.trust_anchors.is_empty() {
        env.push(json!({"name": "DAPR_TRUST_ANCHORS", "value": config.trust_anchors}));
    }
    if !config.trust_bundle_config_map.is_empty() {
        env.push(json!({"name": "MECHA_TRUST_ANCHORS_FILE", "value": format!("{TRUST_FOLDER}/ca.crt")}));
    }
    for (name, value) in config.telemetry.of(namespace) {
        if !settings.env.iter().any(|(own, _)| own == name) {
            env.push(json!({"name": name, "value": value}));
        }
    }
    for (name, value) in &settings.env {
        env.push(match value {
            EnvValue::Plain(text) => json!({"name": name, "value": text}),
            EnvValue::Secret(from, key) => json!({"name": name, "valueFrom": secret(from, key)}),
        });
    }
    if !settings.env.is_empty() {
        let keys: Vec<&str> = settings.env.iter().map(|(name, _)| name.as_str()).collect();
        env.push(json!({"name": "DAPR_ENV_KEYS", "value": keys.join(" ")}));
    }
    for (name, from) in [("DAPR_API_TOKEN", &settings.api_token_secret), ("APP_API_TOKEN", &settings.app_token_secret)]
    {
        if let Some(from) = from {
            env.push(json!({"name": name, "valueFrom": secret(from, "token")}));
        }
    }
    if !settings.pluggable.is_empty() {
        env.push(json!({"name": SOCKETS_FOLDER_VARIABLE, "value": settings.sockets_folder()}));
    }
    without_hidden(env)
}

/// Of several of one name the last counts, as at the kubelet; two of a name fail a server-side apply.
fn without_hidden(env: Vec<Value>) -> Vec<Value> {
    let hidden = |at: usize| env[at + 1..].iter().any(|later| later["name"] == env[at]["name"]);
    (0..env.len()).filter(|at| !hidden(*at)).map(|at| env[at].clone()).collect()
}

pub(crate) fn mounts(settings: &Settings, config: &Config) -> Vec<Value> {
    let mut mounts = vec![
        json!({"name": TOKEN_VOLUME, "mountPath": TOKEN_FOLDER, "readOnly": true}),
        json!({"name": SNAPSHOT_VOLUME, "mountPath": SNAPSHOT_FOLDER}),
    ];
    if !config.trust_bundle_config_map.is_empty() {
        mounts.push(json!({"name": TRUST_VOLUME, "mountPath": TRUST_FOLDER, "readOnly": true}));
    }
    for (volume, path, read_only) in &settings.mounts {
        let mut mount = json!({"name": volume, "mountPath": path});
        if *read_only {
            mount["readOnly"] = json!(true);
        }
        mounts.push(mount);
    }
    if settings.unix_socket_path.is_some() {
        mounts.push(json!({"name": SOCKET_VOLUME, "mountPath": SOCKET_FOLDER}));
    }
    if !settings.pluggable.is_empty() {
        mounts.push(components_mount(settings));
    }
    mounts
}

/// What Pod Security's profile `restricted` asks of a container.
fn security(settings: &Settings, config: &Config) -> Value {
    let mut security = json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": settings.seccomp},
    });
    if config.run_as_user != 0 {
        security["runAsUser"] = json!(config.run_as_user);
        security["runAsGroup"] = json!(config.run_as_user);
    }
    security
}

fn probe(probe: &Probe, http_get: Value) -> Value {
    json!({
        "httpGet": http_get,
        "initialDelaySeconds": probe.delay,
        "timeoutSeconds": probe.timeout,
        "periodSeconds": probe.period,
        "failureThreshold": probe.threshold,
    })
}

fn liveness(probe: &Probe) -> Value {
    json!({
        "tcpSocket": {"port": PUBLIC_PORT},
        "initialDelaySeconds": probe.delay,
        "timeoutSeconds": probe.timeout,
        "periodSeconds": probe.period,
        "failureThreshold": probe.threshold,
    })
}

fn resources(cpu: &Resource, memory: &Resource) -> Value {
    let mut resources = json!({});
    for (part, cpu, memory) in [("requests", &cpu.request, &memory.request), ("limits", &cpu.limit, &memory.limit)] {
        for (name, value) in [("cpu", cpu), ("memory", memory)] {
            if let Some(value) = value {
                resources[part][name] = json!(value);
            }
        }
    }
    resources
}
