//! What a pod must get so that it runs with the mechad sidecar.
//!
//! [`inject`] is one pure function from a pod and the cluster's [`Config`] to a JSON patch
//! (RFC 6902). The admission webhook, `mecha inject` and the tests call the same function, so
//! what a person reads offline is what the API server gets. Applied to its own result it
//! yields an empty patch, and it converges when another webhook changes the pod in between:
//! only what is missing is added.
//!
//! Pods are plain JSON here, not typed: a field of a newer Kubernetes passes through untouched.
//! Annotations, container and volume names are those of Dapr 1.18's injector; each
//! `dapr.io/KEY` may also be written `mecha.dev/KEY`, which wins.

mod annotations;
mod config;
mod edit;
mod pod;
mod settings;
mod sidecar;

use std::fmt;

use serde_json::{Value, json};

use crate::annotations::Annotations;
pub use crate::config::{Addresses, Config, Placement, Telemetry};
use crate::edit::Editor;
pub use crate::edit::{Op, Operation};
use crate::pod::Pod;
use crate::settings::Settings;

/// Name of the sidecar's container, as clients of Dapr know it.
pub const CONTAINER: &str = "daprd";
/// Label of every injected pod.
pub const LABEL_INJECTED: &str = "dapr.io/sidecar-injected";
/// Label with the app id.
pub const LABEL_APP_ID: &str = "dapr.io/app-id";
/// Label that says whether metrics are served.
pub const LABEL_METRICS: &str = "dapr.io/metrics-enabled";

/// What [`inject`] found and did.
#[derive(Clone, Debug, PartialEq)]
pub struct Injection {
    /// The operations, in order; empty when nothing is to be done.
    pub patch: Vec<Op>,
    /// The pod after them.
    pub pod: Value,
    /// The pod asks for a sidecar.
    pub opted_in: bool,
    /// What a person should hear although the pod is admitted.
    pub warnings: Vec<String>,
    /// Annotations that the author wants on the Service of the app.
    pub service_annotations: Vec<(String, String)>,
}

/// Why a pod is refused. All reasons are given at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// One or more.
    pub problems: Vec<Problem>,
}

/// One mistake: where it is, what is wrong, what to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The annotation or the field of the pod.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
    /// The next step.
    pub next: String,
}

/// What the pod must get.
///
/// `namespace` is the one of the admission request: the pod itself often does not name it yet.
///
/// # Errors
///
/// [`Denied`] when the pod asks for a sidecar and an annotation is wrong, or it cannot have
/// one: a port or a name is taken, it runs in the node's network, or it is no pod at all. A
/// pod that does not ask is never denied.
pub fn inject(pod: &Value, namespace: &str, config: &Config) -> Result<Injection, Denied> {
    if !asks(pod)? {
        let pod = pod.clone();
        return Ok(Injection {
            patch: Vec::new(),
            pod,
            opted_in: false,
            warnings: Vec::new(),
            service_annotations: Vec::new(),
        });
    }
    let annotations = Annotations::of(pod);
    let pod = Pod::new(pod);
    let mut problems = pod.shape();
    if !problems.is_empty() {
        return Err(Denied::new(problems));
    }
    let mut warnings = Vec::new();
    let settings = Settings::read(&annotations, &pod, config, &mut problems, &mut warnings);
    pod.check(&settings, config, &annotations, &mut problems);
    if !problems.is_empty() {
        return Err(Denied::new(problems));
    }
    let mut editor = Editor::new(pod.json());
    sidecar::place(&mut editor, &settings, namespace, config);
    apps(&mut editor, &settings);
    labels(&mut editor, &settings);
    let (patch, pod) = editor.finish();
    Ok(Injection { patch, pod, opted_in: true, warnings, service_annotations: settings.service_annotations })
}

/// Whether a pod asks for a sidecar; only its annotations are looked at.
///
/// # Errors
///
/// [`Denied`] names the annotation when it says neither yes nor no.
pub fn asks(pod: &Value) -> Result<bool, Denied> {
    let mut problems = Vec::new();
    let asks = Annotations::of(pod).switch("enabled", false, &mut problems);
    if problems.is_empty() { Ok(asks) } else { Err(Denied::new(problems)) }
}

/// Whether a container of the pod, of either list, has the sidecar's name.
#[must_use]
pub fn has_sidecar(pod: &Value) -> bool {
    Pod::new(pod).has_sidecar()
}

/// Gives the app's containers what they need to find the sidecar.
fn apps(editor: &mut Editor, settings: &Settings) {
    for list in ["containers", "initContainers"] {
        let count = editor.len(&format!("/spec/{list}"));
        for index in 0..count {
            let at = format!("/spec/{list}/{index}");
            let name = editor.text(&format!("{at}/name"));
            if name == CONTAINER || pod::is_mesh(&name) {
                continue;
            }
            if settings.pluggable.contains(&name) {
                editor.env(&at, json!({"name": settings::SOCKETS_FOLDER_VARIABLE, "value": settings.sockets_folder()}));
                editor.mount(&at, sidecar::components_mount(settings));
                continue;
            }
            editor.env(&at, json!({"name": "DAPR_HTTP_PORT", "value": settings.http_port.to_string()}));
            editor.env(&at, json!({"name": "DAPR_GRPC_PORT", "value": settings.grpc_port.to_string()}));
            editor.env(&at, json!({"name": "APP_PROTOCOL", "value": settings.app_protocol}));
            if let Some(path) = &settings.unix_socket_path {
                editor.mount(&at, json!({"name": sidecar::SOCKET_VOLUME, "mountPath": path}));
            }
        }
    }
}

fn labels(editor: &mut Editor, settings: &Settings) {
    editor.label(LABEL_INJECTED, "true");
    editor.label(LABEL_APP_ID, &settings.app_id);
    editor.label(LABEL_METRICS, if settings.enable_metrics { "true" } else { "false" });
}

impl Denied {
    fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort();
        problems.dedup();
        Self { problems }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the pod cannot get its sidecar: ")?;
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Denied {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}. {}", self.field, self.message, self.next)
    }
}

#[cfg(test)]
mod tests;
