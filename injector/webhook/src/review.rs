//! One admission review: from the bytes of the question to the bytes of the answer, without any I/O.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mecha_patch::{Config, Denied, Injection, inject};
use serde_json::{Value, json};

/// Where a workload keeps the pods that it will make: group, kind, path.
const TEMPLATES: [(&str, &str, &str); 5] = [
    ("apps", "Deployment", "/spec/template"),
    ("apps", "StatefulSet", "/spec/template"),
    ("apps", "DaemonSet", "/spec/template"),
    ("batch", "Job", "/spec/template"),
    ("batch", "CronJob", "/spec/jobTemplate/spec/template"),
];

const API_VERSION: &str = "admission.k8s.io/v1";
/// Longest warning that API servers pass on in full.
const WARNING_LENGTH: usize = 256;
/// Most warnings of one answer.
const WARNINGS: usize = 16;
/// What a denied pod is to clients: its content is wrong.
const UNPROCESSABLE: u16 = 422;

/// What became of a pod, or of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It gets a patch.
    Injected,
    /// It asks, and has all of it already.
    Whole,
    /// It does not ask.
    NotAsked,
    /// It asks for something that cannot be.
    Denied,
    /// A workload whose pods will be taken.
    Checked,
    /// It is neither a pod that is being created nor a workload: the registration sends too much.
    Misdirected,
}

/// The answer to one review.
#[derive(Clone, Debug)]
pub struct Answer {
    /// An AdmissionReview as JSON.
    pub body: Vec<u8>,
    /// What it says.
    pub verdict: Verdict,
    /// The pod or workload, as `namespace/name`; the name may be the beginning of one.
    pub name: String,
    /// The app id that its sidecar gets; empty where there is none.
    pub app_id: String,
    /// Fields of the pod that are wrong; without their content, fit for a log.
    pub fields: Vec<String>,
}

/// Why a question is none: it gets no AdmissionReview as an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(pub String);

/// Answers the AdmissionReview in `body`.
///
/// A pod gets its patch. A workload is never changed: one whose pods would be refused is refused itself, where a
/// person sees it, and the others hear the warnings of their pods.
///
/// # Errors
/// [`Unreadable`] when it is no AdmissionReview of version v1 with a request.
pub fn answer(body: &[u8], config: &Config) -> Result<Answer, Unreadable> {
    let review: Value =
        serde_json::from_slice(body).map_err(|e| Unreadable(format!("the body is no JSON document: {e}")))?;
    let text = |path: &str| review.pointer(path).and_then(Value::as_str).unwrap_or_default();
    if text("/kind") != "AdmissionReview" || text("/apiVersion") != API_VERSION {
        return Err(Unreadable(format!(
            "the body is no AdmissionReview of {API_VERSION}; set admissionReviewVersions of the webhook to [v1]"
        )));
    }
    let uid = text("/request/uid");
    if uid.is_empty() {
        return Err(Unreadable("the AdmissionReview has no request.uid".to_owned()));
    }
    let namespace = text("/request/namespace");
    let object = review.pointer("/request/object").unwrap_or(&Value::Null);
    let name = ["/metadata/name", "/metadata/generateName"].into_iter().find_map(|path| object.pointer(path)?.as_str());
    let name = name.unwrap_or_default();
    let kind = ["group", "version", "kind"].map(|part| text(&format!("/request/kind/{part}")));
    let said = Said { uid, kind: kind[2], name: format!("{namespace}/{name}") };
    if !object.is_object() || !text("/request/subResource").is_empty() {
        return Ok(said.misdirected());
    }
    Ok(match (kind, text("/request/operation")) {
        (["", "v1", "Pod"], "CREATE") => match inject(object, namespace, config) {
            Ok(injection) => said.injected(injection),
            Err(denied) => said.denied(&denied),
        },
        ([group, "v1", kind], "CREATE" | "UPDATE") => {
            let path = TEMPLATES.iter().find(|(g, k, _)| (*g, *k) == (group, kind)).map(|(_, _, path)| *path);
            let Some(template) = path.and_then(|path| object.pointer(path)) else { return Ok(said.misdirected()) };
            // Pods of a CronJob belong to Jobs, whose names are its own and the minute.
            let named = if kind == "CronJob" { format!("{name}-00000000") } else { name.to_owned() };
            match inject(&first_pod(template, &named), namespace, config) {
                Ok(mut injection) => {
                    if kind == "CronJob" && injection.opted_in && !names_its_app(template) {
                        injection.warnings.push(
                            "without dapr.io/app-id each run has another app id, the name of its Job.".to_owned(),
                        );
                    }
                    said.checked(injection)
                }
                Err(denied) => said.denied(&denied),
            }
        }
        _ => said.misdirected(),
    })
}

/// Whether the author of a template says the app id.
fn names_its_app(template: &Value) -> bool {
    ["mecha.dev~1app-id", "dapr.io~1app-id"].iter().any(|key| {
        let id = template.pointer(&format!("/metadata/annotations/{key}")).and_then(Value::as_str);
        id.is_some_and(|id| !id.trim().is_empty())
    })
}

/// A pod as the workload called `name` would make it.
fn first_pod(template: &Value, name: &str) -> Value {
    let mut pod = template.clone();
    // What is no object is for the API server to refuse.
    if let Some(pod) = pod.as_object_mut()
        && let Some(metadata) = pod.entry("metadata").or_insert_with(|| json!({})).as_object_mut()
    {
        // Where the app id is not given it is the workload's name.
        metadata.insert("name".to_owned(), json!(name));
    }
    pod
}

struct Said<'a> {
    uid: &'a str,
    kind: &'a str,
    name: String,
}

impl Said<'_> {
    fn injected(self, injection: Injection) -> Answer {
        let verdict = match (injection.opted_in, injection.patch.is_empty()) {
            (false, _) => Verdict::NotAsked,
            (true, true) => Verdict::Whole,
            (true, false) => Verdict::Injected,
        };
        let mut response = self.allowed(&injection);
        if !injection.patch.is_empty() {
            response["patchType"] = json!("JSONPatch");
            // Operations are strings and JSON values, which always have a form as bytes.
            response["patch"] = json!(STANDARD.encode(serde_json::to_vec(&injection.patch).unwrap_or_default()));
        }
        self.finish(response, verdict, app_id(injection.pod), Vec::new())
    }

    fn checked(self, injection: Injection) -> Answer {
        let verdict = if injection.opted_in { Verdict::Checked } else { Verdict::NotAsked };
        let response = self.allowed(&injection);
        self.finish(response, verdict, app_id(injection.pod), Vec::new())
    }

    fn allowed(&self, injection: &Injection) -> Value {
        let mut response = json!({"uid": self.uid, "allowed": true});
        if !injection.warnings.is_empty() {
            let warnings: Vec<&str> = injection.warnings.iter().take(WARNINGS).map(|text| cut(text)).collect();
            response["warnings"] = json!(warnings);
        }
        response
    }

    fn denied(self, denied: &Denied) -> Answer {
        let causes: Vec<Value> = denied
            .problems
            .iter()
            .map(|problem| {
                json!({
                    "reason": "FieldValueInvalid",
                    "field": problem.field,
                    "message": format!("{}. {}", problem.message, problem.next),
                })
            })
            .collect();
        let response = json!({
            "uid": self.uid,
            "allowed": false,
            "status": {
                "status": "Failure",
                "code": UNPROCESSABLE,
                "reason": "Invalid",
                "message": denied.to_string(),
                "details": {"kind": self.kind, "name": self.name.rsplit('/').next(), "causes": causes},
            },
        });
        let fields = denied.problems.iter().map(|problem| problem.field.clone()).collect();
        self.finish(response, Verdict::Denied, String::new(), fields)
    }

    fn misdirected(self) -> Answer {
        let message = "this webhook looks at pods that are created and at the templates of workloads, and at nothing else; \
                       repair the rules of its MutatingWebhookConfiguration";
        let response = json!({
            "uid": self.uid,
            "allowed": false,
            "status": {"status": "Failure", "code": 400, "reason": "BadRequest", "message": message},
        });
        self.finish(response, Verdict::Misdirected, String::new(), Vec::new())
    }

    fn finish(self, response: Value, verdict: Verdict, app_id: String, fields: Vec<String>) -> Answer {
        let review = json!({"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response});
        Answer { body: review.to_string().into_bytes(), verdict, name: self.name, app_id, fields }
    }
}

/// The app id of a pod that was injected, which its label says.
fn app_id(mut pod: Value) -> String {
    match pod.pointer_mut("/metadata/labels/dapr.io~1app-id").map(Value::take) {
        Some(Value::String(app_id)) => app_id,
        _ => String::new(),
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(WARNING_LENGTH)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn review(pod: &Value) -> Value {
        json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "u1", "operation": "CREATE", "namespace": "shop",
                "kind": {"group": "", "version": "v1", "kind": "Pod"}, "object": pod,
            },
        })
    }

    fn pod(annotations: Value) -> Value {
        json!({"metadata": {"name": "orders", "annotations": annotations}, "spec": {"containers": [{"name": "app"}]}})
    }

    fn answered(review: &Value) -> (Value, Verdict) {
        let answer = answer(review.to_string().as_bytes(), &Config::default()).unwrap();
        (serde_json::from_slice(&answer.body).unwrap(), answer.verdict)
    }

    #[test]
    fn an_opted_in_pod_gets_the_patch_of_the_pure_function() {
        let pod = pod(json!({"dapr.io/enabled": "true"}));
        let (body, verdict) = answered(&review(&pod));
        assert_eq!((body["kind"].as_str(), verdict), (Some("AdmissionReview"), Verdict::Injected));
        let response = &body["response"];
        assert_eq!((&response["uid"], &response["allowed"]), (&json!("u1"), &json!(true)));
        assert_eq!(response["patchType"], "JSONPatch");
        let patch: Value =
            serde_json::from_slice(&STANDARD.decode(response["patch"].as_str().unwrap()).unwrap()).unwrap();
        let expected = inject(&pod, "shop", &Config::default()).unwrap().patch;
        assert_eq!(patch, serde_json::to_value(expected).unwrap());
    }

    #[test]
    fn other_pods_get_no_patch() {
        let (body, verdict) = answered(&review(&pod(json!({}))));
        assert_eq!(verdict, Verdict::NotAsked);
        assert_eq!(body["response"], json!({"uid": "u1", "allowed": true}));
    }

    #[test]
    fn a_denial_names_every_wrong_annotation_in_words_and_as_causes() {
        let wrong = pod(json!({"dapr.io/enabled": "true", "dapr.io/app-port": "http", "dapr.io/log-level": "loud"}));
        let (body, verdict) = answered(&review(&wrong));
        assert_eq!(verdict, Verdict::Denied);
        let status = &body["response"]["status"];
        assert_eq!((&body["response"]["allowed"], &status["code"]), (&json!(false), &json!(422)));
        for (index, key) in ["annotation dapr.io/app-port", "annotation dapr.io/log-level"].into_iter().enumerate() {
            assert!(status["message"].as_str().unwrap().contains(key), "{status}");
            assert_eq!(status["details"]["causes"][index]["field"], key);
        }
    }

    fn workload(group: &str, kind: &str, spec: Value) -> Value {
        let mut review = review(&json!({"metadata": {"name": "orders"}, "spec": spec}));
        review["request"]["kind"] = json!({"group": group, "version": "v1", "kind": kind});
        review
    }

    #[test]
    fn a_workload_is_refused_for_what_its_pods_would_be_and_never_changed() {
        let mut good = pod(json!({"dapr.io/enabled": "true", "dapr.io/app-id": "a", "dapr.io/app-port": "80"}));
        good["metadata"].as_object_mut().unwrap().remove("name");
        let bad = pod(json!({"dapr.io/enabled": "true", "dapr.io/app-port": "http"}));
        for (group, kind, path) in TEMPLATES {
            let spec = |template: &Value| match path {
                "/spec/template" => json!({"template": template}),
                _ => json!({"jobTemplate": {"spec": {"template": template}}}),
            };
            for operation in ["CREATE", "UPDATE"] {
                let of = |template: &Value| {
                    let mut review = workload(group, kind, spec(template));
                    review["request"]["operation"] = json!(operation);
                    answered(&review)
                };
                assert_eq!(of(&pod(json!({}))).1, Verdict::NotAsked);
                let (body, verdict) = of(&good);
                assert_eq!((verdict, &body["response"]), (Verdict::Checked, &json!({"uid": "u1", "allowed": true})));
                let (body, verdict) = of(&bad);
                assert_eq!((verdict, &body["response"]["allowed"]), (Verdict::Denied, &json!(false)), "{kind}");
                let details = &body["response"]["status"]["details"];
                assert_eq!(
                    (&details["kind"], &details["causes"][0]["field"]),
                    (&json!(kind), &json!("annotation dapr.io/app-port"))
                );
            }
        }
        let cron = |name: &str, annotations: Value| {
            let template = json!({"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "app"}]}});
            let mut review = workload("batch", "CronJob", json!({"jobTemplate": {"spec": {"template": template}}}));
            review["request"]["object"]["metadata"]["name"] = json!(name);
            answered(&review)
        };
        let enabled = json!({"dapr.io/enabled": "true"});
        let (body, verdict) = cron("nightly", enabled.clone());
        let warning = body["response"]["warnings"][0].as_str().unwrap();
        assert!(verdict == Verdict::Checked && warning.contains("dapr.io/app-id"), "{warning}");
        assert_eq!(cron(&"n".repeat(50), enabled).1, Verdict::Denied, "the names of its Jobs are longer");
        let named = json!({"dapr.io/enabled": "true", "dapr.io/app-id": "nightly"});
        let (body, verdict) = cron(&"n".repeat(50), named);
        assert_eq!((verdict, &body["response"]["warnings"]), (Verdict::Checked, &Value::Null));

        let replica_set = workload("apps", "ReplicaSet", json!({"template": good}));
        assert_eq!(answered(&replica_set).1, Verdict::Misdirected);
    }

    #[test]
    fn warnings_are_passed_on_and_bounded() {
        let names: Vec<String> = (0..40).map(|n| format!("{}{n}:/mnt/{n}", "v".repeat(300))).collect();
        let (body, _) =
            answered(&review(&pod(json!({"dapr.io/enabled": "true", "dapr.io/volume-mounts": names.join(",")}))));
        let warnings = body["response"]["warnings"].as_array().unwrap();
        assert_eq!(warnings.len(), WARNINGS);
        assert!(warnings.iter().all(|warning| warning.as_str().unwrap().len() <= WARNING_LENGTH));
    }

    #[test]
    fn what_is_no_pod_being_created_is_refused_with_the_place_to_repair() {
        for (path, value) in [
            ("/request/operation", json!("UPDATE")),
            ("/request/kind/kind", json!("Deployment")),
            ("/request/subResource", json!("status")),
            ("/request/object", Value::Null),
        ] {
            let mut review = review(&pod(json!({"dapr.io/enabled": "true"})));
            review["request"]["subResource"] = json!("");
            *review.pointer_mut(path).unwrap() = value;
            let (body, verdict) = answered(&review);
            assert_eq!(verdict, Verdict::Misdirected);
            assert!(body["response"]["status"]["message"].as_str().unwrap().contains("MutatingWebhookConfiguration"));
        }
    }

    #[test]
    fn what_is_no_review_of_version_one_is_unreadable() {
        let mut old = review(&pod(json!({})));
        old["apiVersion"] = json!("admission.k8s.io/v1beta1");
        let deep = "[".repeat(100_000);
        for body in [old.to_string(), "{}".to_owned(), String::new(), "nonsense".to_owned(), deep] {
            assert!(answer(body.as_bytes(), &Config::default()).is_err(), "{body:.80}");
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z/.~0]{0,12}".prop_map(Value::from),
        ];
        let key = prop::sample::select(vec![
            "metadata",
            "spec",
            "annotations",
            "labels",
            "containers",
            "initContainers",
            "name",
            "env",
            "volumes",
            "dapr.io/enabled",
            "dapr.io/env",
            "ports",
            "ownerReferences",
            "volumeMounts",
        ]);
        leaf.prop_recursive(5, 64, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(key.clone().prop_map(str::to_owned), inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_object_gets_an_answer(mut object in any_json()) {
            if object.is_object() {
                if !object["metadata"].is_object() {
                    object["metadata"] = json!({});
                }
                if !object["metadata"]["annotations"].is_object() {
                    object["metadata"]["annotations"] = json!({});
                }
                object["metadata"]["annotations"]["dapr.io/enabled"] = json!("true");
            }
            for review in [review(&object), workload("batch", "Job", json!({"template": object}))] {
                let answer = answer(review.to_string().as_bytes(), &Config::default()).unwrap();
                let body: Value = serde_json::from_slice(&answer.body).unwrap();
                prop_assert_eq!(&body["response"]["uid"], "u1");
            }
        }
    }
}
