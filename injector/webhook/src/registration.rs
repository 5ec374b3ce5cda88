//! What the API server is told about the webhook.

use mecha_patch::asks;
use serde_json::{Value, json};

use crate::options::{Options, Reach};

/// Names of the webhooks, which API servers put into their errors.
pub(crate) const WEBHOOK: &str = "pods.injector.mecha.dev";
const EARLY_WEBHOOK: &str = "workloads.injector.mecha.dev";
/// Path of the webhook.
pub(crate) const PATH: &str = "/mutate";
/// First minor version of Kubernetes 1 whose API server picks pods by expression.
const EXPRESSIONS_SINCE: u32 = 30;
/// Older ones pick pods that carry this label.
pub(crate) const OLD_LABEL: (&str, &str) = ("mecha.dev/enabled", "true");
/// Longest time an API server waits for an answer.
pub(crate) const TIMEOUT_SECONDS: u32 = 3;
/// The same for a workload: it is told early what its pods would be told, and must not wait long for that.
const EARLY_TIMEOUT_SECONDS: u32 = 2;
/// The template of the pods of `object` in expressions; where there is none nothing asks.
const TEMPLATE: &str = "(object.kind == 'CronJob' ? object.spec.?jobTemplate.?spec.?template : object.spec.?template)";
/// The words that mean no, as `mecha_patch` reads them; everything else is for the webhook to judge.
const NO: [&str; 7] = ["", "n", "no", "false", "f", "off", "0"];

/// What the registration says beside the roots.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    name: String,
    reach: Reach,
    own_namespace: String,
    skipped: Vec<String>,
}

impl Plan {
    pub(crate) fn new(options: &Options, own_namespace: &str) -> Self {
        Self {
            name: options.name.clone(),
            reach: options.reach.clone(),
            own_namespace: own_namespace.to_owned(),
            skipped: options.skipped(own_namespace).map(str::to_owned).collect(),
        }
    }

    /// The list `webhooks`; `bundle` is base64 of the roots.
    pub(crate) fn webhooks(&self, minor: u32, bundle: &str) -> Value {
        let mut client = match &self.reach {
            Reach::Service { name, port } => {
                json!({"service": {"name": name, "namespace": self.own_namespace, "path": PATH, "port": port}})
            }
            Reach::Url { url, .. } => json!({"url": url}),
        };
        client["caBundle"] = json!(bundle);
        let old = !by_expression(minor);
        let (conditions, objects) = if old {
            (json!([]), json!({"matchLabels": {OLD_LABEL.0: OLD_LABEL.1}}))
        } else {
            (json!([{"name": "asks-for-a-sidecar", "expression": expression("object")}]), json!({}))
        };
        let mut pods = json!({
            "name": WEBHOOK,
            "rules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"],
                "scope": "Namespaced",
            }],
            // An opted-in pod without its sidecar is worse than an error that somebody reads.
            "failurePolicy": "Fail",
            "matchConditions": conditions,
            "objectSelector": objects,
            "reinvocationPolicy": "IfNeeded",
            "timeoutSeconds": TIMEOUT_SECONDS,
        });
        let mut workloads = json!({
            "name": EARLY_WEBHOOK,
            "rules": [
                {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"],
                 "resources": ["deployments", "statefulsets", "daemonsets"], "scope": "Namespaced"},
                {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"],
                 "resources": ["jobs", "cronjobs"], "scope": "Namespaced"},
            ],
            // The webhook of the pods has the last word.
            "failurePolicy": "Ignore",
            "matchConditions": [
                {"name": "asks-for-a-sidecar", "expression": expression(TEMPLATE)},
                {"name": "makes-other-pods-than-before", "expression": changed()},
            ],
            "reinvocationPolicy": "Never",
            "timeoutSeconds": EARLY_TIMEOUT_SECONDS,
        });
        for webhook in [&mut pods, &mut workloads] {
            webhook["clientConfig"] = client.clone();
            webhook["matchPolicy"] = json!("Equivalent");
            webhook["namespaceSelector"] = json!({"matchExpressions": [
                {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": self.skipped},
            ]});
            webhook["sideEffects"] = json!("None");
            webhook["admissionReviewVersions"] = json!(["v1"]);
        }
        // Older servers cannot tell which workloads ask.
        if old { json!([pods]) } else { json!([pods, workloads]) }
    }

    /// A new registration.
    pub(crate) fn document(&self, webhooks: &Value) -> Value {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": self.name, "labels": {"app.kubernetes.io/managed-by": "mecha"}},
            "webhooks": webhooks,
        })
    }
}

/// Whether API servers of this version send only pods that ask; else only those with [`OLD_LABEL`].
pub(crate) fn by_expression(minor: u32) -> bool {
    minor >= EXPRESSIONS_SINCE
}

/// Whether the API server would send this pod to the webhook, its namespace aside.
pub(crate) fn is_sent(pod: &Value, minor: u32) -> bool {
    let asks = asks(pod).unwrap_or(true);
    let labels = pod.pointer("/metadata/labels");
    asks && (by_expression(minor) || labels.and_then(|all| all.get(OLD_LABEL.0)).is_some_and(|l| l == OLD_LABEL.1))
}

/// True where `pod`, an expression, asks for a sidecar or says something unclear about it. It cannot fail: with
/// `failurePolicy: Fail` an expression that does would refuse the pod.
fn expression(pod: &str) -> String {
    let text =
        |prefix: &str| format!("{pod}.?metadata.?annotations[?'{prefix}/enabled'].orValue('').trim().lowerAscii()");
    let (ours, daprs) = (text("mecha.dev"), text("dapr.io"));
    let no: Vec<String> = NO.iter().map(|word| format!("'{word}'")).collect();
    format!("!(({ours} != '' ? {ours} : {daprs}) in [{}])", no.join(", "))
}

/// True for a workload whose pods are new: one that runs may still be scaled and deleted whatever its template says.
fn changed() -> String {
    format!("request.operation == 'CREATE' || {TEMPLATE} != {}", TEMPLATE.replace("object.", "oldObject."))
}

/// Whether `actual` says all that `wanted` says, as far as `wanted` goes; lists are of equal length, and what is empty
/// in `wanted` is empty or absent.
pub(crate) fn covers(actual: Option<&Value>, wanted: &Value) -> bool {
    let empty = |value: &Value| match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Null => true,
        _ => false,
    };
    if empty(wanted) {
        return actual.is_none_or(empty);
    }
    match (actual, wanted) {
        (Some(Value::Object(actual)), Value::Object(wanted)) => {
            wanted.iter().all(|(key, value)| covers(actual.get(key), value))
        }
        (Some(Value::Array(actual)), Value::Array(wanted)) => {
            actual.len() == wanted.len() && actual.iter().zip(wanted).all(|(a, w)| covers(Some(a), w))
        }
        (actual, wanted) => actual == Some(wanted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let options = Options { skipped_namespaces: vec!["build".to_owned()], ..Options::default() };
        Plan::new(&options, "mecha-system")
    }

    #[test]
    fn the_words_for_no_are_those_of_the_patch() {
        for word in NO.iter().filter(|word| !word.is_empty()) {
            for text in [(*word).to_owned(), word.to_uppercase(), format!(" {word}\t")] {
                let pod = json!({"metadata": {"annotations": {"dapr.io/enabled": text}}});
                assert_eq!(asks(&pod), Ok(false), "'{text}'");
            }
        }
        for word in ["y", "yes", "true", "t", "on", "1"] {
            assert!(!NO.contains(&word), "{word}");
        }
    }

    #[test]
    fn only_pods_outside_the_control_parts_namespaces_are_sent() {
        let webhooks = plan().webhooks(36, "");
        let selector = &webhooks[0]["namespaceSelector"]["matchExpressions"][0];
        assert_eq!(selector["values"], json!(["kube-system", "mecha-system", "build"]));
        assert_eq!(webhooks[0]["failurePolicy"], "Fail");
        assert_eq!(webhooks[0]["clientConfig"]["service"]["namespace"], "mecha-system");
        assert_eq!(webhooks[1]["failurePolicy"], "Ignore", "the early word is no condition");
        assert_eq!(webhooks[1]["namespaceSelector"], webhooks[0]["namespaceSelector"]);
    }

    #[test]
    fn what_the_chart_registers_is_what_the_role_would() {
        let manifests = include_str!("../../../deploy/manifests/mecha.yaml");
        let documents: Vec<Value> = serde_saphyr::from_multiple(manifests).unwrap();
        let registered = documents.iter().find(|d| d["kind"] == "MutatingWebhookConfiguration").unwrap();
        let options =
            Options { reach: Reach::Service { name: "mecha-injector".to_owned(), port: 443 }, ..Options::default() };
        let mut wanted = Plan::new(&options, "mecha-system").webhooks(30, "");
        // The roots are the role's to write, wherever the rest comes from.
        for webhook in wanted.as_array_mut().unwrap() {
            webhook["clientConfig"].as_object_mut().unwrap().remove("caBundle");
        }
        assert!(covers(registered.get("webhooks"), &wanted), "{registered:#}\nis not\n{wanted:#}");
    }

    #[test]
    fn older_api_servers_pick_pods_by_label() {
        let pod = |labels: Value| json!({"metadata": {"labels": labels, "annotations": {"dapr.io/enabled": "yes"}}});
        let labelled = pod(json!({"mecha.dev/enabled": "true"}));
        assert_eq!(plan().webhooks(29, "")[0]["objectSelector"]["matchLabels"], json!({"mecha.dev/enabled": "true"}));
        assert_eq!(plan().webhooks(29, "")[0]["matchConditions"], json!([]));
        assert_eq!(
            [is_sent(&labelled, 29), is_sent(&pod(json!({})), 29), is_sent(&pod(json!({})), 30)],
            [true, false, true]
        );
    }

    #[test]
    fn what_somebody_changed_is_seen_and_what_the_server_filled_in_is_not() {
        let wanted = plan().webhooks(36, "cm9vdA==");
        let mut stored = wanted.clone();
        stored[0]["clientConfig"]["service"]["filled-in"] = json!(1);
        stored[0].as_object_mut().unwrap().remove("objectSelector");
        assert!(covers(Some(&stored), &wanted));
        for (path, value) in [
            ("/0/failurePolicy", json!("Ignore")),
            ("/0/matchConditions/0/expression", json!("false")),
            ("/0/rules/0/operations", json!(["CREATE", "UPDATE"])),
            ("/0/clientConfig/caBundle", json!("")),
        ] {
            let mut changed = stored.clone();
            *changed.pointer_mut(path).unwrap() = value;
            assert!(!covers(Some(&changed), &wanted), "{path}");
        }
        let mut narrowed = stored.clone();
        narrowed[0]["objectSelector"] = json!({"matchLabels": {"a": "b"}});
        assert!(!covers(Some(&narrowed), &wanted));
        let mut shortened = stored.clone();
        shortened.as_array_mut().unwrap().pop();
        assert!(!covers(Some(&shortened), &wanted));
        let mut doubled = stored;
        let first = doubled[0].clone();
        doubled.as_array_mut().unwrap().push(first);
        assert!(!covers(Some(&doubled), &wanted));
    }
}
