//! Keeps the registration as it should be, together with the other replicas.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, PostParams};
use mecha_apiserver::{Failure, FailureKind, Followed, Patience, Role, Selection, call, follow};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::bundle;
use crate::metrics::Metrics;
use crate::options::{Options, Registration};
use crate::registration::{Plan, covers};

/// First pause after a write that failed; each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Least time between two writes, so that a fight with another writer costs little.
const BETWEEN_WRITES: Duration = Duration::from_millis(500);
/// Looks at the registration again although nothing was heard: roots expire silently.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Clones are the same.
#[derive(Clone)]
pub(crate) struct Registrar {
    shared: Arc<Shared>,
}

struct Shared {
    api: Api<DynamicObject>,
    followed: Followed<MutatingWebhookConfiguration>,
    name: String,
    instance: String,
    mode: Registration,
    plan: Plan,
    minor: Arc<AtomicU32>,
    /// The roots of this replica that API servers have to know.
    roots: watch::Sender<Vec<CertificateDer<'static>>>,
    /// It was said that there is no registration to fill in.
    said_missing: AtomicBool,
    metrics: Metrics,
}

impl Registrar {
    pub(crate) fn new(options: &Options, role: &Role, minor: Arc<AtomicU32>, metrics: Metrics) -> Self {
        let resource = ApiResource::erase::<MutatingWebhookConfiguration>(&());
        // By name, so that the right to read one object is enough.
        let selection = Selection { fields: Some(format!("metadata.name={}", options.name)), ..Selection::default() };
        let shared = Shared {
            api: Api::all_with(role.client.clone(), &resource),
            followed: follow(role.client.clone(), &selection, &role.tasks),
            name: options.name.clone(),
            instance: role.instance.clone(),
            mode: options.registration,
            plan: Plan::new(options, &role.namespace),
            minor,
            roots: watch::Sender::new(Vec::new()),
            said_missing: AtomicBool::new(false),
            metrics,
        };
        Self { shared: Arc::new(shared) }
    }

    /// From now on exactly these roots of this replica are to be registered.
    pub(crate) fn hold(&self, roots: Vec<CertificateDer<'static>>) {
        self.shared.roots.send_replace(roots);
    }

    /// Returns when the API server shows the registration with all of the roots.
    pub(crate) async fn held(&self) {
        let mut changes = self.shared.followed.changes();
        while !self.shared.is_right() {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Returns when the API server is found to know no webhooks.
    pub(crate) async fn unknown(&self) {
        let mut changes = self.shared.followed.changes();
        while !self.shared.followed.is_absent() {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Keeps the registration right until it is dropped.
    pub(crate) async fn run(self) {
        let shared = &self.shared;
        let (mut changes, mut roots) = (shared.followed.changes(), shared.roots.subscribe());
        let mut pause = FIRST_PAUSE;
        let mut patience = Patience::new();
        shared.followed.listed().await;
        loop {
            // Nothing can be registered where there is nothing to register with; the watch tells when there is.
            if shared.followed.is_absent() {
                let _ = changes.changed().await;
                continue;
            }
            match shared.reconcile().await {
                Ok(wrote) => {
                    patience.over();
                    pause = FIRST_PAUSE;
                    if wrote {
                        tokio::time::sleep(BETWEEN_WRITES).await;
                    }
                }
                Err(failure) => {
                    // Another replica was faster: that is how they take turns.
                    if failure.kind != FailureKind::Conflict && patience.is_out(failure.kind) {
                        tracing::warn!(
                            registration = shared.name,
                            error = %failure,
                            "the webhook's registration cannot be written; it is tried again"
                        );
                    }
                    tokio::time::sleep(shortened(pause, 2)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    continue;
                }
            }
            tokio::select! {
                _ = changes.changed() => {}
                _ = roots.changed() => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }

    /// Takes the roots of this replica back, once: it answers no more.
    pub(crate) async fn leave(&self) {
        self.hold(Vec::new());
        match self.shared.reconcile().await {
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "the roots of this replica stay registered until they expire"),
        }
    }
}

impl Shared {
    fn is_right(&self) -> bool {
        let stored = self.followed.get("", &self.name);
        let stored = stored.and_then(|stored| serde_json::to_value(&*stored).ok());
        stored.is_some_and(|stored| self.wanted(Some(&stored)).is_some_and(|w| covers(stored.get("webhooks"), &w)))
    }

    /// The list `webhooks` as it should be. `None`: there is nothing that this role may write.
    fn wanted(&self, stored: Option<&Value>) -> Option<Value> {
        let webhooks = stored.and_then(|stored| stored.get("webhooks")).and_then(Value::as_array);
        let bundle = |webhook: &Value| {
            let text = webhook.pointer("/clientConfig/caBundle").and_then(Value::as_str).unwrap_or_default();
            let current = STANDARD.decode(text).unwrap_or_default();
            let roots = self.roots.borrow();
            STANDARD.encode(bundle::merge(&current, &self.instance, &roots, SystemTime::now()))
        };
        match self.mode {
            Registration::Whole => {
                let first = webhooks.and_then(|all| all.first()).unwrap_or(&Value::Null);
                Some(self.plan.webhooks(self.minor.load(Ordering::Relaxed), &bundle(first)))
            }
            Registration::Roots => {
                let mut webhooks = webhooks?.clone();
                for webhook in &mut webhooks {
                    let roots = bundle(webhook);
                    webhook["clientConfig"]["caBundle"] = json!(roots);
                }
                Some(Value::Array(webhooks))
            }
        }
    }

    /// Writes the registration if it is not right; whether it did. A resource version guards each write, so of two
    /// replicas one reads what the other wrote.
    async fn reconcile(&self) -> Result<bool, Failure> {
        if self.is_right() {
            return Ok(false);
        }
        let stored = call(self.api.get_opt(&self.name)).await?;
        let value = stored.as_ref().and_then(|stored| serde_json::to_value(stored).ok());
        let Some(webhooks) = self.wanted(value.as_ref()) else {
            if !self.said_missing.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    registration = self.name,
                    "there is no MutatingWebhookConfiguration of this name, so no pod gets a sidecar; install the chart's"
                );
            }
            return Ok(false);
        };
        self.said_missing.store(false, Ordering::Relaxed);
        match stored {
            Some(_) if covers(value.as_ref().and_then(|value| value.get("webhooks")), &webhooks) => return Ok(false),
            Some(mut stored) => {
                stored.data["webhooks"] = webhooks;
                call(self.api.replace(&self.name, &PostParams::default(), &stored)).await?;
            }
            // A replica that is leaving makes no new one.
            None if self.roots.borrow().is_empty() => return Ok(false),
            None => {
                let document = serde_json::from_value(self.plan.document(&webhooks))
                    .map_err(|e| Failure::from(kube::Error::SerdeError(e)))?;
                call(self.api.create(&PostParams::default(), &document)).await?;
            }
        }
        self.metrics.registration_writes.inc();
        tracing::info!(registration = self.name, "the webhook's registration was written");
        Ok(true)
    }
}

/// `time`, shorter by up to one part of `parts`, by chance.
pub(crate) fn shortened(time: Duration, parts: u32) -> Duration {
    let chance = RandomState::new().build_hasher().finish();
    let most = u64::try_from(time.as_millis()).unwrap_or(u64::MAX) / u64::from(parts.max(1));
    time.saturating_sub(Duration::from_millis(chance.checked_rem(most.max(1)).unwrap_or(0)))
}
