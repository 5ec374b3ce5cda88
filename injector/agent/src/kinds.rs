//! The kinds of dapr.io as objects of the API server, and the pods that have a sidecar.

use std::borrow::Cow;
use std::marker::PhantomData;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::document::Kind;

/// Annotations that sidecars get to see.
const SHOWN_ANNOTATIONS: [&str; 2] = ["mecha.dev/", "dapr.io/"];

/// Which kind of dapr.io.
pub(crate) trait DaprKind: Send + Sync + 'static {
    const KIND: Kind;
}

macro_rules! kinds {
    ($($name:ident)*) => {$(
        #[derive(Debug)]
        pub(crate) struct $name;
        impl DaprKind for $name {
            const KIND: Kind = Kind::$name;
        }
    )*};
}

kinds! { Component Subscription Configuration Resiliency HttpEndpoint }

/// A document as somebody wrote it, without what only the API server needs.
#[derive(Debug)]
pub(crate) struct Written<K> {
    metadata: ObjectMeta,
    /// As sidecars get it, but for the values of secrets.
    pub(crate) body: Value,
    kind: PhantomData<K>,
}

impl<'de, K: DaprKind> Deserialize<'de> for Written<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut object = Map::<String, Value>::deserialize(deserializer)?;
        let metadata = object.remove("metadata").unwrap_or_default();
        let metadata: ObjectMeta = serde_json::from_value(metadata).map_err(D::Error::custom)?;
        // Its writer's bookkeeping is no business of a sidecar, and its changes are none.
        object.remove("status");
        let mut shown = Map::new();
        shown.insert("name".to_owned(), metadata.name.clone().unwrap_or_default().into());
        shown.insert("namespace".to_owned(), metadata.namespace.clone().unwrap_or_default().into());
        let annotations: Map<String, Value> = metadata
            .annotations
            .iter()
            .flatten()
            .filter(|(key, _)| SHOWN_ANNOTATIONS.iter().any(|prefix| key.starts_with(prefix)))
            .map(|(key, value)| (key.clone(), value.clone().into()))
            .collect();
        if !annotations.is_empty() {
            shown.insert("annotations".to_owned(), annotations.into());
        }
        object.insert("metadata".to_owned(), shown.into());
        object.insert("apiVersion".to_owned(), K::KIND.api_version().into());
        object.insert("kind".to_owned(), K::KIND.name().into());
        let metadata = ObjectMeta {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            ..ObjectMeta::default()
        };
        Ok(Self { metadata, body: object.into(), kind: PhantomData })
    }
}

impl<K: DaprKind> Resource for Written<K> {
    type DynamicType = ();
    type Scope = k8s_openapi::NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        K::KIND.name().into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "dapr.io".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        K::KIND.version().into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::KIND.plural().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Label that the injector puts on pods with a sidecar.
pub(crate) const INJECTED: &str = "dapr.io/sidecar-injected=true";
/// Label with the app id of a pod.
const APP_ID: &str = "dapr.io/app-id";

/// A pod with a sidecar, as far as it matters here.
#[derive(Debug)]
pub(crate) struct Pod {
    metadata: ObjectMeta,
    /// Its app id, if its sidecar is to be expected.
    app_id: Option<String>,
}

impl Pod {
    /// The app id of a pod whose sidecar runs; `None` before and after.
    pub(crate) fn app_id(&self) -> Option<&str> {
        self.app_id.as_deref()
    }
}

impl<'de> Deserialize<'de> for Pod {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Default, Deserialize)]
        struct Status {
            phase: Option<String>,
        }
        #[derive(Deserialize)]
        struct Whole {
            metadata: ObjectMeta,
            #[serde(default)]
            status: Status,
        }
        let Whole { metadata, status } = Whole::deserialize(deserializer)?;
        let runs = status.phase.as_deref() == Some("Running") && metadata.deletion_timestamp.is_none();
        let app_id = metadata.labels.as_ref().and_then(|labels| labels.get(APP_ID)).filter(|_| runs).cloned();
        let metadata = ObjectMeta { name: metadata.name, namespace: metadata.namespace, ..ObjectMeta::default() };
        Ok(Self { metadata, app_id })
    }
}

impl Resource for Pod {
    type DynamicType = ();
    type Scope = k8s_openapi::NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Pod".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "pods".into()
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
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_concerns_sidecars_is_kept_of_a_document() {
        let written: Written<Component> = serde_json::from_value(json!({
            "apiVersion": "dapr.io/v1alpha1", "kind": "Component",
            "metadata": {
                "name": "orders", "namespace": "shop", "resourceVersion": "7", "managedFields": [],
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "dapr.io/x": "y"},
            },
            "spec": {"type": "state.in-memory", "version": "v1"}, "scopes": ["cart"], "status": {"a": 1},
        }))
        .unwrap();
        assert_eq!(written.meta().name.as_deref(), Some("orders"));
        assert_eq!(
            written.body,
            json!({
                "apiVersion": "dapr.io/v1alpha1", "kind": "Component",
                "metadata": {"name": "orders", "namespace": "shop", "annotations": {"dapr.io/x": "y"}},
                "spec": {"type": "state.in-memory", "version": "v1"}, "scopes": ["cart"],
            })
        );
    }

    #[test]
    fn only_running_pods_are_expected_to_report() {
        let pod = |phase: &str, deleted: Option<&str>| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": "cart-1", "namespace": "shop", "deletionTimestamp": deleted,
                             "labels": {"dapr.io/app-id": "cart"}},
                "status": {"phase": phase},
            }))
            .unwrap()
        };
        assert_eq!(pod("Running", None).app_id(), Some("cart"));
        assert_eq!(pod("Pending", None).app_id(), None);
        assert_eq!(pod("Succeeded", None).app_id(), None);
        assert_eq!(pod("Running", Some("2026-11-21T03:00:00Z")).app_id(), None);
    }
}
