//! Which workload sends a request: what the API server says of its token and its pod.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, PostParams};
use kube::{Api, Client};
use mecha_apiserver::{Failure, FailureKind, call};
use mecha_identity::SpiffeId;
use mecha_proto::sentry::SignCertificateRequest;
use mecha_proto::sentry::sign_certificate_request::TokenValidator;

/// Longest token that is asked about; projected tokens have about 1 KiB.
const MAX_TOKEN: usize = 16 * 1024;
/// Trust domain of workloads whose Configuration names none.
const DEFAULT_TRUST_DOMAIN: &str = "public";
/// Ids of the control part; in its own namespace nobody has one just by an annotation.
const CONTROL_PARTS: &[&str] = &["dapr-operator", "dapr-sentry", "dapr-injector", "dapr-placement", "dapr-scheduler"];
/// Where the app id of a pod is, in the order in which it counts. Injection sets the label to what the sidecar
/// was started with.
const APP_ID_LABEL: &str = "dapr.io/app-id";
const APP_ID_ANNOTATIONS: &[&str] = &["mecha.dev/app-id", "dapr.io/app-id"];
const CONFIG_ANNOTATIONS: &[&str] = &["mecha.dev/config", "dapr.io/config"];

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Why a request gets no certificate; the word is a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Reason {
    Validator,
    Token,
    Pod,
    Identity,
    Configuration,
    Request,
    Busy,
    Unavailable,
}

impl Reason {
    pub(crate) const ALL: [Self; 8] = [
        Self::Validator,
        Self::Token,
        Self::Pod,
        Self::Identity,
        Self::Configuration,
        Self::Request,
        Self::Busy,
        Self::Unavailable,
    ];

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Validator => "validator",
            Self::Token => "token",
            Self::Pod => "pod",
            Self::Identity => "identity",
            Self::Configuration => "configuration",
            Self::Request => "request",
            Self::Busy => "busy",
            Self::Unavailable => "unavailable",
        }
    }

    const fn code(self) -> tonic::Code {
        match self {
            Self::Validator | Self::Request => tonic::Code::InvalidArgument,
            Self::Token => tonic::Code::Unauthenticated,
            Self::Pod | Self::Identity => tonic::Code::PermissionDenied,
            Self::Configuration => tonic::Code::FailedPrecondition,
            Self::Busy => tonic::Code::ResourceExhausted,
            Self::Unavailable => tonic::Code::Unavailable,
        }
    }
}

/// A request that gets no certificate. The text is for whoever sent it and never holds a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    pub(crate) fn status(&self) -> tonic::Status {
        tonic::Status::new(self.reason.code(), self.message.clone())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// What an authenticated token says.
#[derive(Debug, PartialEq, Eq)]
struct Bearer {
    namespace: String,
    account: String,
    pod: String,
    pod_uid: String,
}

/// Who may be what; asks one API server.
#[derive(Clone)]
pub(crate) struct Workloads {
    pub(crate) client: Client,
    /// Audiences of which a token must have one.
    pub(crate) audiences: Vec<String>,
    pub(crate) control_namespace: String,
    pub(crate) control_trust_domain: String,
    /// Service accounts of the control namespace, and the ids of the control part that they may have.
    pub(crate) control_accounts: BTreeMap<String, Vec<String>>,
}

impl Workloads {
    /// The id that the sender of `request` has proven to have.
    pub(crate) async fn identify(&self, request: &SignCertificateRequest) -> Result<SpiffeId, Refusal> {
        check_form(request)?;
        let bearer = self.review(&request.token).await?;
        if bearer.namespace != request.namespace {
            return Err(Refusal::new(
                Reason::Identity,
                format!("the token is of namespace {}, the request of {}", bearer.namespace, request.namespace),
            ));
        }
        let pod = self.pod_of(&bearer).await?;
        let (trust_domain, id) =
            if bearer.namespace == self.control_namespace && CONTROL_PARTS.contains(&request.id.as_str()) {
                self.check_control(&bearer, &request.id)?;
                (self.control_trust_domain.clone(), request.id.as_str())
            } else {
                let app_id = app_id(&pod);
                if app_id != request.id {
                    return Err(Refusal::new(
                        Reason::Identity,
                        format!(
                            "the app id of pod {}/{} is {app_id}, the request is for {}",
                            bearer.namespace, bearer.pod, request.id
                        ),
                    ));
                }
                (self.trust_domain(&bearer, &pod).await?, request.id.as_str())
            };
        SpiffeId::workload(&trust_domain, &bearer.namespace, id)
            .map_err(|e| Refusal::new(Reason::Identity, format!("no certificate can be for {id}: {e}")))
    }

    async fn review(&self, token: &str) -> Result<Bearer, Refusal> {
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(self.audiences.clone()) };
        let asked = TokenReview { spec, ..TokenReview::default() };
        let review =
            call(api.create(&PostParams::default(), &asked)).await.map_err(|e| unavailable("the token", &e))?;
        let status = review.status.unwrap_or_default();
        let audiences = status.audiences.unwrap_or_default();
        if status.authenticated != Some(true) || !audiences.iter().any(|a| self.audiences.contains(a)) {
            let why = status.error.unwrap_or_else(|| "it is not accepted".to_owned());
            return Err(Refusal::new(
                Reason::Token,
                format!(
                    "the API server does not authenticate the token for audience {}: {why}; send the projected token \
                     of the running pod",
                    self.audiences.join(" or ")
                ),
            ));
        }
        bearer(&status.user.unwrap_or_default())
    }

    /// The pod that the token is bound to, if it is still the same one. Tokens outlive their pod by some seconds.
    async fn pod_of(&self, bearer: &Bearer) -> Result<Pod, Refusal> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &bearer.namespace);
        let found = call(api.get_opt(&bearer.pod)).await.map_err(|e| unavailable("the pod", &e))?;
        let refuse = |why: &str| {
            let Bearer { namespace, pod, .. } = bearer;
            Refusal::new(Reason::Pod, format!("the token is of pod {namespace}/{pod}, {why}"))
        };
        let pod = found.ok_or_else(|| refuse("which is gone"))?;
        if pod.metadata.uid.as_deref() != Some(bearer.pod_uid.as_str()) {
            return Err(refuse("which was replaced by another of its name"));
        }
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
        if account != bearer.account {
            return Err(refuse("which runs as another service account"));
        }
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        if matches!(phase, "Succeeded" | "Failed") {
            return Err(refuse("which has ended"));
        }
        Ok(pod)
    }

    fn check_control(&self, bearer: &Bearer, id: &str) -> Result<(), Refusal> {
        let allowed = self.control_accounts.get(&bearer.account);
        if allowed.is_some_and(|ids| ids.iter().any(|allowed| allowed == id)) {
            return Ok(());
        }
        Err(Refusal::new(
            Reason::Identity,
            format!("service account {}/{} may not have the control part's id {id}", bearer.namespace, bearer.account),
        ))
    }

    /// What the pod's Configuration names; the field of the request is for other validators.
    async fn trust_domain(&self, bearer: &Bearer, pod: &Pod) -> Result<String, Refusal> {
        let annotations = pod.metadata.annotations.as_ref();
        let name = CONFIG_ANNOTATIONS.iter().find_map(|key| annotations?.get(*key)).filter(|name| !name.is_empty());
        let Some(name) = name else { return Ok(DEFAULT_TRUST_DOMAIN.to_owned()) };
        let kind = ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk("dapr.io", "v1alpha1", "Configuration"),
            "configurations",
        );
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &bearer.namespace, &kind);
        let found = call(api.get_opt(name)).await.map_err(|e| unavailable("the Configuration", &e))?;
        let Some(configuration) = found else {
            return Err(Refusal::new(
                Reason::Configuration,
                format!(
                    "pod {}/{} names the Configuration {name}, which is not in its namespace; make it, or remove the \
                     annotation",
                    bearer.namespace, bearer.pod
                ),
            ));
        };
        let named = configuration.data.pointer("/spec/accessControl/trustDomain").and_then(|v| v.as_str());
        Ok(named.filter(|domain| !domain.is_empty()).unwrap_or(DEFAULT_TRUST_DOMAIN).to_owned())
    }
}

fn check_form(request: &SignCertificateRequest) -> Result<(), Refusal> {
    let validator = TokenValidator::try_from(request.token_validator).unwrap_or(TokenValidator::Unknown);
    if validator != TokenValidator::Kubernetes {
        return Err(Refusal::new(
            Reason::Validator,
            format!(
                "token validator {} is not served here; run in a pod with the projected token, which goes with \
                 KUBERNETES",
                validator.as_str_name()
            ),
        ));
    }
    if request.token.is_empty() || request.token.len() > MAX_TOKEN {
        return Err(Refusal::new(Reason::Token, "the request carries no token, or one that is too long"));
    }
    if request.id.is_empty() || request.namespace.is_empty() {
        return Err(Refusal::new(Reason::Request, "the request names no app id or no namespace"));
    }
    Ok(())
}

fn bearer(user: &UserInfo) -> Result<Bearer, Refusal> {
    let name = user.username.as_deref().unwrap_or_default();
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let Some((namespace, account)) = account else {
        return Err(Refusal::new(Reason::Token, "the token is not of a service account"));
    };
    let extra = |key: &str| {
        let values = user.extra.as_ref()?.get(key)?;
        values.first().filter(|value| !value.is_empty()).cloned()
    };
    let (Some(pod), Some(pod_uid)) = (extra(POD_NAME), extra(POD_UID)) else {
        return Err(Refusal::new(
            Reason::Token,
            format!("the token of service account {namespace}/{account} is not bound to a pod; send the projected one"),
        ));
    };
    Ok(Bearer { namespace: namespace.to_owned(), account: account.to_owned(), pod, pod_uid })
}

fn app_id(pod: &Pod) -> &str {
    let annotation = |key: &&str| pod.metadata.annotations.as_ref()?.get(*key);
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(APP_ID_LABEL));
    let named = label.or_else(|| APP_ID_ANNOTATIONS.iter().find_map(annotation));
    // Without injection a pod's own name counts, as everywhere.
    named.or(pod.metadata.name.as_ref()).map_or("", String::as_str)
}

fn unavailable(what: &str, failure: &Failure) -> Refusal {
    if failure.kind == FailureKind::Forbidden {
        tracing::error!(error = %failure, "the issuer lacks a right; compare its ClusterRole with the one installed");
    }
    Refusal::new(Reason::Unavailable, format!("{what} could not be looked up at the API server: {failure}; try again"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

    use serde_json::json;

    use super::*;

    #[test]
    fn only_tokens_bound_to_a_pod_count() {
        let user = |value: serde_json::Value| bearer(&serde_json::from_value(value).unwrap());
        let name = "system:serviceaccount:shop:orders";
        let bound = json!({"username": name, "extra": {POD_NAME: ["orders-1"], POD_UID: ["u"]}});
        let found = user(bound).unwrap();
        assert_eq!(
            (found.namespace.as_str(), found.account.as_str(), found.pod.as_str()),
            ("shop", "orders", "orders-1")
        );
        for other in [
            json!({"username": name}),
            json!({"username": name, "extra": {POD_NAME: ["orders-1"]}}),
            json!({"username": name, "extra": {POD_NAME: [""], POD_UID: [""]}}),
            json!({"username": "admin", "extra": {POD_NAME: ["orders-1"], POD_UID: ["u"]}}),
            json!({}),
        ] {
            assert_eq!(user(other.clone()).unwrap_err().reason, Reason::Token, "{other}");
        }
    }

    #[test]
    fn the_app_id_is_what_injection_said() {
        let pod = |value: serde_json::Value| serde_json::from_value::<Pod>(json!({"metadata": value})).unwrap();
        assert_eq!(app_id(&pod(json!({"name": "p"}))), "p");
        let annotated = json!({"name": "p", "annotations": {"dapr.io/app-id": "a", "mecha.dev/app-id": "b"}});
        assert_eq!(app_id(&pod(annotated)), "b");
        let labelled = json!({"name": "p", "labels": {"dapr.io/app-id": "l"}, "annotations": {"dapr.io/app-id": "a"}});
        assert_eq!(app_id(&pod(labelled)), "l");
    }
}
