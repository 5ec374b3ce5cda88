//! Workloads whose pods ask for a sidecar, and the Service that each of them gets.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hasher as _};
use std::marker::PhantomData;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use mecha_patch::{CONTAINER, Config, LABEL_APP_ID, LABEL_METRICS, asks, inject};
use serde::Deserialize;
use serde_json::{Value, json};

/// Behind the app id, in the name of its Service.
const SUFFIX: &str = "-dapr";
/// Label of every such Service, ours and those of Dapr's operator.
pub(crate) const SERVICE_LABEL: (&str, &str) = ("dapr.io/enabled", "true");
/// Label of those that this role made.
pub(crate) const MANAGED_LABEL: (&str, &str) = ("app.kubernetes.io/managed-by", "mecha");
/// Annotation with a digest of what was written, so that what is wanted no more is seen as well.
const WRITTEN: &str = "mecha.dev/written";

/// A Deployment or a StatefulSet: who it is, and the template of its pods if they ask for a sidecar.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Value", bound = "")]
pub(crate) struct Workload<K> {
    metadata: ObjectMeta,
    template: Option<Template>,
    kind: PhantomData<fn() -> K>,
}

#[derive(Clone, Debug)]
struct Template {
    pod: Value,
    selector: Value,
}

/// A workload without its type.
#[derive(Clone, Debug)]
pub(crate) struct App {
    pub(crate) kind: &'static str,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    /// Older first; then by kind and name.
    pub(crate) age: String,
    template: Option<Template>,
}

impl<K> From<Value> for Workload<K> {
    fn from(object: Value) -> Self {
        let at = |path: &str| object.pointer(path).cloned().unwrap_or_default();
        let kept = json!({
            "name": at("/metadata/name"), "namespace": at("/metadata/namespace"), "uid": at("/metadata/uid"),
            "creationTimestamp": at("/metadata/creationTimestamp"),
        });
        let going = !at("/metadata/deletionTimestamp").is_null();
        let pod = object.pointer("/spec/template").filter(|pod| asks(pod).unwrap_or(true) && !going);
        let template = pod.map(|pod| Template { pod: pod.clone(), selector: at("/spec/selector/matchLabels") });
        Self { metadata: serde_json::from_value(kept).unwrap_or_default(), template, kind: PhantomData }
    }
}

impl<K> Workload<K> {
    pub(crate) fn app(&self, kind: &'static str) -> App {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        App {
            kind,
            namespace: text(&self.metadata.namespace),
            name: text(&self.metadata.name),
            uid: text(&self.metadata.uid),
            age: self.metadata.creation_timestamp.as_ref().map(|at| at.0.to_string()).unwrap_or_default(),
            template: self.template.clone(),
        }
    }
}

impl<K: Resource<DynamicType = ()>> Resource for Workload<K> {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl App {
    /// The Service of the app, by the sidecar that its pods get; `None` when they ask for none.
    ///
    /// # Errors
    /// Why its pods will be denied.
    pub(crate) fn service(&self, config: &Config) -> Option<Result<Value, String>> {
        let template = self.template.as_ref()?;
        let mut pod = template.pod.clone();
        if !pod["metadata"].is_object() {
            return None;
        }
        // As a pod of this workload would be, for the app id that falls back to its name.
        pod["metadata"]["ownerReferences"] = json!([{"kind": self.kind, "name": self.name, "controller": true}]);
        Some(match inject(&pod, &self.namespace, config) {
            Ok(injection) => Ok(self.document(&injection.pod, &template.selector, &injection.service_annotations)),
            Err(denied) => Err(denied.to_string()),
        })
    }

    fn document(&self, pod: &Value, selector: &Value, more: &[(String, String)]) -> Value {
        let label = |key: &str| pod["metadata"]["labels"][key].as_str().unwrap_or_default();
        let app_id = label(LABEL_APP_ID);
        let lists = [&pod["spec"]["initContainers"], &pod["spec"]["containers"]];
        let sidecar = lists.into_iter().filter_map(Value::as_array).flatten().find(|c| c["name"] == CONTAINER);
        let port = |name: &str, default: u64| {
            let ports = sidecar.and_then(|sidecar| sidecar["ports"].as_array()).into_iter().flatten();
            ports
                .into_iter()
                .find(|port| port["name"] == name)
                .map_or(default, |p| p["containerPort"].as_u64().unwrap_or(default))
        };
        let (grpc, internal) = (port("dapr-grpc", 50_001), port("dapr-internal", 50_002));
        let metrics = port("dapr-metrics", 9090);
        let entry = |name: &str, port: u64, target: u64| json!({"name": name, "protocol": "TCP", "port": port, "targetPort": target});
        let mut annotations = json!({});
        if label(LABEL_METRICS) == "true" {
            annotations["prometheus.io/probe"] = json!("true");
            annotations["prometheus.io/scrape"] = json!("true");
            annotations["prometheus.io/port"] = json!(metrics.to_string());
            annotations["prometheus.io/path"] = json!("/");
        }
        for (key, value) in more {
            annotations[key] = json!(value);
        }
        annotations["dapr.io/app-id"] = json!(app_id);
        let mut service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": format!("{app_id}{SUFFIX}"),
                "namespace": self.namespace,
                "labels": {SERVICE_LABEL.0: SERVICE_LABEL.1, MANAGED_LABEL.0: MANAGED_LABEL.1},
                "annotations": annotations,
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": self.kind, "name": self.name, "uid": self.uid,
                    "controller": true, "blockOwnerDeletion": false,
                }],
            },
            "spec": {
                "clusterIP": "None",
                "selector": selector,
                // Numbers are those of Dapr's operator, targets those of the pod.
                "ports": [
                    entry("dapr-http", 80, port("dapr-http", 3500)),
                    entry("dapr-grpc", 50_001, grpc),
                    entry("dapr-internal", 50_002, internal),
                    entry("dapr-metrics", metrics, metrics),
                ],
            },
        });
        let mut hasher = DefaultHasher::new();
        hasher.write(service.to_string().as_bytes());
        service["metadata"]["annotations"][WRITTEN] = json!(format!("{:016x}", hasher.finish()));
        service
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;

    use super::*;

    fn app(annotations: Value) -> App {
        let workload: Workload<Deployment> = serde_json::from_value(json!({
            "metadata": {"name": "orders", "namespace": "shop", "uid": "u", "managedFields": []},
            "spec": {
                "selector": {"matchLabels": {"app": "orders"}},
                "template": {"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "app"}]}},
            },
        }))
        .unwrap();
        workload.app("Deployment")
    }

    #[test]
    fn the_service_says_what_daprs_operator_says() {
        let annotations = json!({"dapr.io/enabled": "true", "dapr.io/app-id": "cart", "dapr.io/metrics-port": "9100"});
        let mut service = app(annotations).service(&Config::default()).unwrap().unwrap();
        assert_eq!(service["metadata"]["name"], "cart-dapr");
        service["metadata"]["annotations"].as_object_mut().unwrap().remove(WRITTEN);
        assert_eq!(
            service["metadata"]["annotations"],
            json!({
                "dapr.io/app-id": "cart", "prometheus.io/probe": "true", "prometheus.io/scrape": "true",
                "prometheus.io/port": "9100", "prometheus.io/path": "/",
            })
        );
        let ports: Vec<(&str, u64, u64)> = service["spec"]["ports"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| (p["name"].as_str().unwrap(), p["port"].as_u64().unwrap(), p["targetPort"].as_u64().unwrap()))
            .collect();
        assert_eq!(
            ports,
            [
                ("dapr-http", 80, 3500),
                ("dapr-grpc", 50001, 50001),
                ("dapr-internal", 50002, 50002),
                ("dapr-metrics", 9100, 9100)
            ]
        );
        assert_eq!(
            (&service["spec"]["clusterIP"], &service["spec"]["selector"]),
            (&json!("None"), &json!({"app": "orders"}))
        );
    }

    #[test]
    fn it_follows_the_sidecar_that_the_pods_get() {
        let annotations =
            json!({"mecha.dev/enabled": "yes", "dapr.io/http-port": "3600", "dapr.io/enable-metrics": "false"});
        let mut service = app(annotations).service(&Config::default()).unwrap().unwrap();
        assert_eq!(service["metadata"]["name"], "orders-dapr", "the app id falls back to the workload");
        let written = service["metadata"]["annotations"].as_object_mut().unwrap().remove(WRITTEN);
        let with_metrics = app(json!({"mecha.dev/enabled": "yes", "dapr.io/http-port": "3600"}));
        let with_metrics = with_metrics.service(&Config::default()).unwrap().unwrap();
        assert_ne!(Some(&with_metrics["metadata"]["annotations"][WRITTEN]), written.as_ref());
        assert_eq!(service["metadata"]["annotations"], json!({"dapr.io/app-id": "orders"}));
        assert_eq!(service["spec"]["ports"][0]["targetPort"], 3600);
        assert!(app(json!({})).service(&Config::default()).is_none());
        let own = "example.com/team=a, prometheus.io/scrape=false,dapr.io/app-id=other";
        let asked = json!({"dapr.io/enabled": "true", "dapr.io/sidecar-svc-annotations": own});
        let service = app(asked).service(&Config::default()).unwrap().unwrap();
        let annotations = &service["metadata"]["annotations"];
        for (key, value) in [("example.com/team", "a"), ("prometheus.io/scrape", "false"), ("dapr.io/app-id", "orders")]
        {
            assert_eq!(annotations[key], value, "{annotations}");
        }
        let wrong = json!({"dapr.io/enabled": "true", "dapr.io/app-port": "http"});
        assert!(app(wrong).service(&Config::default()).unwrap().unwrap_err().contains("dapr.io/app-port"));
    }
}
