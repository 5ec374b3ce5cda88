//! What is remembered of a pod: little, since there are many.

use std::borrow::Cow;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use mecha_patch::{asks, has_sidecar};
use serde::Deserialize;
use serde_json::{Value, json};

/// A pod, seen from how it got its sidecar.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Value")]
pub(crate) struct Seen {
    metadata: ObjectMeta,
    /// It asks for a sidecar, has none, and runs or is going to.
    pub(crate) bare: bool,
}

impl Seen {
    /// What makes it again when it is gone. Not a Node: its kubelet starts static pods, which nobody injects.
    pub(crate) fn controller(&self) -> Option<&OwnerReference> {
        let mut owners = self.metadata.owner_references.as_ref()?.iter();
        owners.find(|owner| owner.controller == Some(true) && owner.kind != "Node")
    }

    pub(crate) fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    pub(crate) fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    pub(crate) fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }
}

impl From<Value> for Seen {
    fn from(pod: Value) -> Self {
        let bare = is_bare(&pod);
        let meta = |key: &str| pod.pointer(&format!("/metadata/{key}")).cloned().unwrap_or_default();
        let mut kept = json!({"name": meta("name"), "namespace": meta("namespace"), "uid": meta("uid")});
        if bare {
            kept["ownerReferences"] = meta("ownerReferences");
        }
        Self { metadata: serde_json::from_value(kept).unwrap_or_default(), bare }
    }
}

/// Whether a pod asks for a sidecar, has none in either list of containers, and is neither over nor going.
pub(crate) fn is_bare(pod: &Value) -> bool {
    let over = pod.pointer("/status/phase").is_some_and(|phase| phase == "Succeeded" || phase == "Failed");
    let going = pod.pointer("/metadata/deletionTimestamp").is_some_and(|at| !at.is_null());
    !over && !going && asks(pod).unwrap_or(true) && !has_sidecar(pod)
}

impl Resource for Seen {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        Pod::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        Pod::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        Pod::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        Pod::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_bare_when_neither_list_of_containers_has_the_sidecar() {
        let pod = json!({
            "metadata": {"name": "a", "annotations": {"dapr.io/enabled": "yes"}, "labels": {"dapr.io/sidecar-injected": "true"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "a", "uid": "1", "controller": true}]},
            "spec": {"containers": [{"name": "app"}]},
        });
        let seen = Seen::from(pod.clone());
        assert!(seen.bare);
        assert_eq!(seen.controller().unwrap().kind, "ReplicaSet");
        for (path, value) in [
            ("containers", json!([{"name": "app"}, {"name": "daprd"}])),
            ("initContainers", json!([{"name": "daprd", "restartPolicy": "Always"}])),
        ] {
            let mut injected = pod.clone();
            injected["spec"][path] = value;
            assert!(!is_bare(&injected), "{path}");
        }
        for (path, value) in [
            ("/metadata/annotations", json!({"dapr.io/enabled": "yes", "mecha.dev/enabled": "no"})),
            ("/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z")),
            ("/status/phase", json!("Succeeded")),
        ] {
            let mut other = pod.clone();
            let (parent, key) = path.rsplit_once('/').unwrap();
            if other.pointer(parent).is_none() {
                other["status"] = json!({});
            }
            other.pointer_mut(parent).unwrap()[key] = value;
            assert!(!is_bare(&other), "{path}");
        }
    }
}
