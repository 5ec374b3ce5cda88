//! The way of a pod through the API server to the webhook and back, tried without storing anything.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::Api;
use kube::api::{ApiResource, DynamicObject, PostParams};
use mecha_apiserver::{EventType, Events, Role, call};
use mecha_patch::has_sidecar;
use serde_json::{Value, json};

use crate::metrics::{Check, Metrics};
use crate::options::{CanaryOptions, Options};
use crate::registrar::shortened;
use crate::registration::OLD_LABEL;

/// Tries the way. Clones are the same.
#[derive(Clone)]
pub(crate) struct Canary {
    api: Api<DynamicObject>,
    options: CanaryOptions,
    registration: String,
    events: Events,
    metrics: Metrics,
}

/// Why a pod does not come back injected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The API server created it without asking the webhook.
    #[error(
        "a pod that asks for a sidecar would start without one: the API server did not ask the webhook; \
         look at MutatingWebhookConfiguration {0} and at the labels of the namespace"
    )]
    NotInjected(String),
    /// The API server refused it, in its words.
    #[error("the API server refuses a pod that asks for a sidecar: {0}")]
    Refused(String),
    /// The API server does not answer.
    #[error("the API server cannot be asked: {0}")]
    Unreachable(String),
}

impl Broken {
    /// Whether the API server did not trust the webhook's certificate. Its error has no other form than words.
    pub(crate) fn is_about_trust(&self) -> bool {
        matches!(self, Self::Refused(text) if text.contains("x509:"))
    }
}

impl Canary {
    pub(crate) fn new(options: &Options, role: &Role, events: Events, metrics: Metrics) -> Self {
        let resource = ApiResource::erase::<Pod>(&());
        Self {
            api: Api::namespaced_with(role.client.clone(), &options.canary.namespace, &resource),
            options: options.canary.clone(),
            registration: options.name.clone(),
            events,
            metrics,
        }
    }

    /// Tries once.
    pub(crate) async fn check(&self) -> Result<(), Broken> {
        let result = self.create().await;
        let label = match &result {
            Ok(()) => Check::Injected,
            Err(Broken::NotInjected(_)) => Check::NotInjected,
            Err(Broken::Refused(_)) => Check::Refused,
            Err(Broken::Unreachable(_)) => Check::Unreachable,
        };
        self.metrics.check(label);
        if result.is_ok() {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
            self.metrics.checked.set(now.as_secs_f64());
        }
        result
    }

    async fn create(&self) -> Result<(), Broken> {
        let document =
            serde_json::from_value(pod(&self.options.namespace)).map_err(|e| Broken::Refused(e.to_string()))?;
        let params = PostParams { dry_run: true, ..PostParams::default() };
        match call(self.api.create(&params, &document)).await {
            Ok(made) if has_sidecar(&json!({"spec": made.data["spec"]})) => Ok(()),
            Ok(_) => Err(Broken::NotInjected(self.registration.clone())),
            Err(failure) if failure.passes() && !failure.to_string().contains("webhook") => {
                Err(Broken::Unreachable(failure.to_string()))
            }
            Err(failure) => Err(Broken::Refused(failure.to_string())),
        }
    }

    /// Tries again and again, and tells when it begins and stops to fail.
    pub(crate) async fn run(self) {
        let mut broken = false;
        loop {
            match self.check().await {
                Ok(()) if broken => {
                    broken = false;
                    tracing::info!("pods are injected again");
                    self.tell(EventType::Normal, "InjectionWorks", "Pods that ask for a sidecar get it again.");
                }
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(%error, "the self-check of the injector failed");
                    if !broken && !matches!(error, Broken::Unreachable(_)) {
                        self.tell(EventType::Warning, "InjectionBroken", &format!("The self-check failed: {error}"));
                    }
                    broken = true;
                }
            }
            tokio::time::sleep(shortened(self.options.every, 10)).await;
        }
    }

    fn tell(&self, kind: EventType, reason: &str, note: &str) {
        let about = ObjectReference {
            api_version: Some("admissionregistration.k8s.io/v1".to_owned()),
            kind: Some("MutatingWebhookConfiguration".to_owned()),
            name: Some(self.registration.clone()),
            ..ObjectReference::default()
        };
        self.events.about(kind, about, reason, "Check", note);
    }
}

/// A pod that every profile of Pod Security admits, and that both ways of selection send to the webhook.
fn pod(namespace: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "mecha-canary-",
            "namespace": namespace,
            "labels": {OLD_LABEL.0: OLD_LABEL.1},
            "annotations": {"dapr.io/enabled": "true", "dapr.io/app-id": "mecha-canary"},
        },
        "spec": {
            "serviceAccountName": "default",
            "automountServiceAccountToken": false,
            "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "app",
                "image": "mecha-canary",
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    })
}
