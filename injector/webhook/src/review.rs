//! One admission review: from the bytes of the question to the bytes of the answer, without any I/O.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mecha_patch::{Config, Denied, Injection, inject};
use serde_json::{Value, json};

const API_VERSION: &str = "admission.k8s.io/v1";
/// Longest warning that API servers pass on in full.
const WARNING_LENGTH: usize = 256;
/// Most warnings of one answer.
const WARNINGS: usize = 16;
/// What a denied pod is to clients: its content is wrong.
const UNPROCESSABLE: u16 = 422;

/// What became of a pod.
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
    /// It is no pod that is being created: the registration sends too much.
    Misdirected,
}

/// The answer to one review.
#[derive(Clone, Debug)]
pub struct Answer {
    /// An AdmissionReview as JSON.
    pub body: Vec<u8>,
    /// What it says.
    pub verdict: Verdict,
    /// The pod, as `namespace/name`; the name may be the beginning of one.
    pub pod: String,
    /// Fields of the pod that are wrong; without their content, fit for a log.
    pub fields: Vec<String>,
}

/// Why a question is none: it gets no AdmissionReview as an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(pub String);

/// Answers the AdmissionReview in `body`.
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
    let pod = review.pointer("/request/object").unwrap_or(&Value::Null);
    let name = ["/metadata/name", "/metadata/generateName"].into_iter().find_map(|path| pod.pointer(path)?.as_str());
    let said = Said { uid, pod: format!("{namespace}/{}", name.unwrap_or_default()) };
    let is_pod = text("/request/kind/kind") == "Pod"
        && text("/request/kind/group").is_empty()
        && text("/request/kind/version") == "v1"
        && text("/request/subResource").is_empty()
        && text("/request/operation") == "CREATE";
    if !is_pod || !pod.is_object() {
        return Ok(said.misdirected());
    }
    Ok(match inject(pod, namespace, config) {
        Ok(injection) => said.allowed(injection),
        Err(denied) => said.denied(&denied),
    })
}

struct Said<'a> {
    uid: &'a str,
    pod: String,
}

impl Said<'_> {
    fn allowed(self, injection: Injection) -> Answer {
        let verdict = match (injection.opted_in, injection.patch.is_empty()) {
            (false, _) => Verdict::NotAsked,
            (true, true) => Verdict::Whole,
            (true, false) => Verdict::Injected,
        };
        let mut response = json!({"uid": self.uid, "allowed": true});
        if !injection.patch.is_empty() {
            response["patchType"] = json!("JSONPatch");
            // Operations are strings and JSON values, which always have a form as bytes.
            response["patch"] = json!(STANDARD.encode(serde_json::to_vec(&injection.patch).unwrap_or_default()));
        }
        if !injection.warnings.is_empty() {
            let warnings: Vec<&str> = injection.warnings.iter().take(WARNINGS).map(|text| cut(text)).collect();
            response["warnings"] = json!(warnings);
        }
        self.finish(response, verdict, Vec::new())
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
                "details": {"kind": "Pod", "causes": causes},
            },
        });
        let fields = denied.problems.iter().map(|problem| problem.field.clone()).collect();
        self.finish(response, Verdict::Denied, fields)
    }

    fn misdirected(self) -> Answer {
        let message = "this webhook looks at pods that are created, and at nothing else; repair the rules of its \
                       MutatingWebhookConfiguration";
        let response = json!({
            "uid": self.uid,
            "allowed": false,
            "status": {"status": "Failure", "code": 400, "reason": "BadRequest", "message": message},
        });
        self.finish(response, Verdict::Misdirected, Vec::new())
    }

    fn finish(self, response: Value, verdict: Verdict, fields: Vec<String>) -> Answer {
        let review = json!({"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response});
        Answer { body: review.to_string().into_bytes(), verdict, pod: self.pod, fields }
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
            ("/request/object", Value::Null),
        ] {
            let mut review = review(&pod(json!({"dapr.io/enabled": "true"})));
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
            let review = review(&object).to_string();
            let answer = answer(review.as_bytes(), &Config::default()).unwrap();
            let body: Value = serde_json::from_slice(&answer.body).unwrap();
            prop_assert_eq!(&body["response"]["uid"], "u1");
        }
    }
}
