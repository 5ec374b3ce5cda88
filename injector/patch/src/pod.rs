//! Reading a pod as JSON.

use serde_json::Value;

use crate::{CONTAINER, LABEL_INJECTED, Problem};

/// Containers of service meshes, native sidecars and set-up steps alike. The mesh's network
/// must be there before the sidecar calls anybody.
const MESH: &[&str] = &[
    "istio-init",
    "istio-validation",
    "istio-proxy",
    "linkerd-init",
    "linkerd-network-validator",
    "linkerd-proxy",
    "kuma-init",
    "kuma-validation",
    "kuma-sidecar",
    "consul-connect-inject-init",
    "consul-dataplane",
    "osm-init",
    "envoy",
    "cilium-envoy",
];

/// Whether a container of this name belongs to a service mesh.
pub(crate) fn is_mesh(name: &str) -> bool {
    MESH.contains(&name)
}

/// A pod, read.
pub(crate) struct Pod<'a>(&'a Value);

impl<'a> Pod<'a> {
    pub(crate) fn new(json: &'a Value) -> Self {
        Self(json)
    }

    pub(crate) fn json(&self) -> &'a Value {
        self.0
    }

    /// What keeps a sidecar from being put into it. API servers send no such pods, files may.
    pub(crate) fn shape(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut wrong = |field: String, message: &str, next: &str| {
            problems.push(Problem { field, message: message.to_owned(), next: next.to_owned() });
        };
        if !self.0.get("spec").is_some_and(Value::is_object) {
            wrong("spec".to_owned(), "is no object", "Write the containers of the pod there");
        }
        for list in ["containers", "initContainers"] {
            for (index, container) in self.list(&format!("/spec/{list}")).enumerate() {
                if !container.is_object() {
                    wrong(format!("{list}[{index}]"), "is no container", "Give it a name and an image, or remove it");
                }
            }
        }
        problems
    }

    fn list(&self, path: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
        self.0.pointer(path).and_then(Value::as_array).into_iter().flatten()
    }

    fn containers(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        self.list("/spec/containers").chain(self.list("/spec/initContainers"))
    }

    /// The workload the pod belongs to, else the pod: what people call the app.
    pub(crate) fn owner_or_name(&self) -> String {
        let text = |path: &str| self.0.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let mut owners = self.list("/metadata/ownerReferences");
        if let Some(owner) = owners.find(|owner| owner["controller"] == true) {
            let name = owner["name"].as_str().unwrap_or_default();
            // A ReplicaSet is the Deployment's name and the hash of the template.
            let hash = text("/metadata/labels/pod-template-hash");
            return match name.strip_suffix(hash).and_then(|stem| stem.strip_suffix('-')) {
                Some(deployment) if owner["kind"] == "ReplicaSet" && !hash.is_empty() => deployment.to_owned(),
                _ => name.to_owned(),
            };
        }
        match text("/metadata/name") {
            "" => text("/metadata/generateName").trim_end_matches('-').to_owned(),
            name => name.to_owned(),
        }
    }

    pub(crate) fn host_network(&self) -> bool {
        self.0.pointer("/spec/hostNetwork") == Some(&Value::Bool(true))
    }

    pub(crate) fn has_volume(&self, name: &str) -> bool {
        self.volume(name).is_some()
    }

    pub(crate) fn volume(&self, name: &str) -> Option<&'a Value> {
        self.list("/spec/volumes").find(|volume| volume["name"] == name)
    }

    /// It ends by itself, as the pods of Jobs do.
    pub(crate) fn ends(&self) -> bool {
        let policy = self.0.pointer("/spec/restartPolicy").and_then(Value::as_str);
        policy.is_some_and(|policy| policy != "Always")
    }

    /// The field that asks for a node of another operating system than Linux.
    pub(crate) fn foreign_system(&self) -> Option<&'static str> {
        let foreign = |path: &str| self.0.pointer(path).and_then(Value::as_str).is_some_and(|system| system != "linux");
        [("/spec/os/name", "spec.os"), ("/spec/nodeSelector/kubernetes.io~1os", "spec.nodeSelector")]
            .into_iter()
            .find_map(|(path, field)| foreign(path).then_some(field))
    }

    /// The app's container, by name, that has another volume than `volume` at `path`; of those that `which` picks.
    pub(crate) fn mounts_else(&self, volume: &str, path: &str, which: impl Fn(&str) -> bool) -> Option<&'a str> {
        self.containers().find_map(|container| {
            let name = container["name"].as_str().unwrap_or_default();
            let mut mounts = container["volumeMounts"].as_array().into_iter().flatten();
            let else_there = mounts.any(|mount| mount["mountPath"] == path && mount["name"] != volume);
            (else_there && name != CONTAINER && !is_mesh(name) && which(name)).then_some(name)
        })
    }

    /// The container, not the sidecar, that has the port.
    pub(crate) fn uses_port(&self, port: u16) -> Option<&'a str> {
        self.containers().filter(|c| c["name"] != CONTAINER).find_map(|container| {
            let mut ports = container["ports"].as_array()?.iter();
            ports
                .any(|p| p["containerPort"] == port && p["protocol"].as_str().is_none_or(|p| p == "TCP"))
                .then(|| container["name"].as_str().unwrap_or_default())
        })
    }

    /// A container has the sidecar's name, and the pod does not say that it was injected.
    pub(crate) fn injected_by_nobody(&self) -> bool {
        let labels = self.0.pointer("/metadata/labels");
        let injected = labels.and_then(|labels| labels.get(LABEL_INJECTED)).is_some_and(|label| label == "true");
        !injected && self.has_sidecar()
    }

    pub(crate) fn has_sidecar(&self) -> bool {
        self.has_container(CONTAINER)
    }

    pub(crate) fn has_container(&self, name: &str) -> bool {
        self.containers().any(|container| container["name"] == name)
    }

    pub(crate) fn tolerates(&self, keys: &[String]) -> bool {
        self.list("/spec/tolerations")
            .filter_map(|toleration| toleration["key"].as_str())
            .any(|key| keys.iter().any(|known| known == key))
    }
}
