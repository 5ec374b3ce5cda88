//! A headless Service `<app id>-dapr` for each Deployment and StatefulSet whose pods ask for a sidecar.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ObjectReference, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, Client, Resource};
use mecha_apiserver::{
    EventType, Events, Failure, FailureKind, Followed, Leadership, Role, Selection, Term, apply, call, follow,
};
use mecha_patch::Config;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::metrics::Metrics;
use crate::options::Options;
use crate::registration::covers;
use crate::workloads::{App, MANAGED_LABEL, SERVICE_LABEL, Workload};

const MANAGER: &str = "mecha-injector";
/// Changes come in bursts; one look serves those of this time.
const GATHER: Duration = Duration::from_millis(500);
/// Looks again although nothing was heard: the configuration may have changed, or a write failed.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// A Service, as far as it is compared.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Value")]
struct Kept {
    metadata: ObjectMeta,
    said: Value,
}

/// Keeps Services.
pub(crate) struct Services {
    options: Options,
    own_namespace: String,
    client: Client,
    deployments: Followed<Workload<Deployment>>,
    sets: Followed<Workload<StatefulSet>>,
    services: Followed<Kept>,
    config: Arc<ArcSwap<Config>>,
    events: Events,
    metrics: Metrics,
}

/// What people were told about a workload, by its UID, so that they are told once.
type Told = BTreeMap<String, String>;

impl Services {
    pub(crate) fn new(
        options: &Options,
        role: &Role,
        config: Arc<ArcSwap<Config>>,
        events: Events,
        metrics: Metrics,
    ) -> Self {
        let labelled =
            Selection { labels: Some(format!("{}={}", SERVICE_LABEL.0, SERVICE_LABEL.1)), ..Selection::default() };
        Self {
            options: options.clone(),
            own_namespace: role.namespace.clone(),
            client: role.client.clone(),
            deployments: follow(role.client.clone(), &Selection::default(), &role.tasks),
            sets: follow(role.client.clone(), &Selection::default(), &role.tasks),
            services: follow(role.client.clone(), &labelled, &role.tasks),
            config,
            events,
            metrics,
        }
    }

    /// Keeps them while this replica leads, until it is dropped.
    pub(crate) async fn run(self, mut leadership: Leadership) {
        self.deployments.listed().await;
        self.sets.listed().await;
        self.services.listed().await;
        loop {
            let term = leadership.elected().await;
            tokio::select! {
                () = self.lead(&term) => {}
                () = leadership.deposed(&term) => {}
            }
        }
    }

    async fn lead(&self, term: &Term) {
        let mut told = Told::new();
        let (mut deployments, mut sets) = (self.deployments.changes(), self.sets.changes());
        let mut services = self.services.changes();
        loop {
            self.reconcile(term, &mut told).await;
            let go_on = tokio::select! {
                changed = deployments.changed() => changed.is_ok(),
                changed = sets.changed() => changed.is_ok(),
                changed = services.changed() => changed.is_ok(),
                () = tokio::time::sleep(LOOK_AGAIN) => true,
            };
            if !go_on {
                return;
            }
            tokio::time::sleep(GATHER).await;
        }
    }

    fn apps(&self) -> Vec<App> {
        let deployments = self.deployments.all().into_iter().map(|workload| workload.app("Deployment"));
        let sets = self.sets.all().into_iter().map(|workload| workload.app("StatefulSet"));
        let mut apps: Vec<App> = deployments.chain(sets).collect();
        apps.retain(|app| !self.options.skips(&self.own_namespace, &app.namespace));
        apps.sort_by(|a, b| (&a.age, a.kind, &a.name).cmp(&(&b.age, b.kind, &b.name)));
        apps
    }

    async fn reconcile(&self, term: &Term, told: &mut Told) {
        let config = self.config.load_full();
        let apps = self.apps();
        let mut wanted: BTreeMap<(String, String), (&App, Value)> = BTreeMap::new();
        let mut undecided = BTreeSet::new();
        let mut notes: Vec<(&App, &str, String)> = Vec::new();
        for app in &apps {
            let service = match app.service(&config) {
                None => continue,
                Some(Ok(service)) => service,
                Some(Err(why)) => {
                    undecided.insert(app.uid.as_str());
                    notes.push((app, "SidecarRefused", format!("Its pods will be refused: {why}")));
                    continue;
                }
            };
            let name = service["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            // The oldest keeps it, so that two of one app id do not take it from each other.
            match wanted.get(&(app.namespace.clone(), name.clone())) {
                Some((other, _)) => notes.push((app, "ServiceTaken", taken(&name, other.kind, &other.name))),
                None => {
                    wanted.insert((app.namespace.clone(), name), (app, service));
                }
            }
        }
        let mut kept = 0;
        for ((namespace, name), (app, service)) in &wanted {
            let there = self.services.get(namespace, name);
            if there.is_some_and(|there| covers(Some(&there.said), &compared(service))) {
                kept += 1;
                continue;
            }
            if !term.holds() {
                return;
            }
            match self.write(app, namespace, name, service).await {
                Ok(None) => kept += 1,
                Ok(Some(note)) => notes.push((app, "ServiceTaken", note)),
                // It is for the owner of the workload to change.
                Err(error) if error.kind == FailureKind::Invalid => {
                    notes.push((app, "ServiceRefused", format!("The API server refuses its Service: {error}")));
                }
                Err(error) => {
                    tracing::warn!(namespace, service = name, %error, "a Service cannot be written; it is tried again");
                }
            }
        }
        self.metrics.services.set(kept);
        self.remove(term, &apps, &wanted, &undecided).await;
        self.tell(told, &apps, &notes);
    }

    /// Writes a Service, unless it belongs to somebody else: then the words for that.
    async fn write(&self, app: &App, namespace: &str, name: &str, service: &Value) -> Result<Option<String>, Failure> {
        let api: Api<Service> = Api::namespaced(self.client.clone(), namespace);
        if let Some(there) = call(api.get_opt(name)).await? {
            let owners = there.metadata.owner_references.unwrap_or_default();
            match owners.iter().find(|owner| owner.controller == Some(true)) {
                Some(owner) if owner.uid == app.uid => {}
                Some(owner) => return Ok(Some(taken(name, &owner.kind, &owner.name))),
                None => return Ok(Some(taken(name, "nobody of ours", ""))),
            }
        }
        apply(&api, name, MANAGER, service).await?;
        tracing::info!(namespace, service = name, "the Service of an app was written");
        Ok(None)
    }

    /// Deletes Services of ours whose workload is there and wants them no more. Those of a workload that is gone are
    /// collected with it.
    async fn remove(
        &self,
        term: &Term,
        apps: &[App],
        wanted: &BTreeMap<(String, String), (&App, Value)>,
        undecided: &BTreeSet<&str>,
    ) {
        let living: BTreeSet<&str> = apps.iter().map(|app| app.uid.as_str()).collect();
        for service in self.services.all() {
            let (Some(namespace), Some(name), Some(owner)) =
                (&service.metadata.namespace, &service.metadata.name, service.owner())
            else {
                continue;
            };
            let still = wanted.get(&(namespace.clone(), name.clone())).is_some_and(|(app, _)| app.uid == owner);
            if still || !service.is_ours() || !living.contains(owner) || undecided.contains(owner) {
                continue;
            }
            if !term.holds() {
                return;
            }
            let uid = service.metadata.uid.clone();
            let params = DeleteParams {
                preconditions: Some(Preconditions { uid, resource_version: None }),
                ..DeleteParams::default()
            };
            let api: Api<Service> = Api::namespaced(self.client.clone(), namespace);
            match call(api.delete(name, &params)).await {
                Ok(_) => tracing::info!(namespace, service = name, "the Service of an app that opted out was deleted"),
                Err(error) if matches!(error.kind, FailureKind::NotFound | FailureKind::Conflict) => {}
                Err(error) => tracing::warn!(namespace, service = name, %error, "a Service cannot be deleted"),
            }
        }
    }

    fn tell(&self, told: &mut Told, apps: &[App], notes: &[(&App, &str, String)]) {
        let living: BTreeSet<&str> = apps.iter().map(|app| app.uid.as_str()).collect();
        told.retain(|uid, _| living.contains(uid.as_str()));
        for (app, reason, note) in notes {
            if told.get(&app.uid) == Some(note) {
                continue;
            }
            tracing::warn!(
                namespace = app.namespace,
                kind = app.kind,
                name = app.name,
                reason,
                "a workload needs a look"
            );
            let about = ObjectReference {
                api_version: Some("apps/v1".to_owned()),
                kind: Some(app.kind.to_owned()),
                namespace: Some(app.namespace.clone()),
                name: Some(app.name.clone()),
                uid: Some(app.uid.clone()),
                ..ObjectReference::default()
            };
            self.events.about(EventType::Warning, about, reason, "Inject", note);
            told.insert(app.uid.clone(), note.clone());
        }
    }
}

fn taken(service: &str, kind: &str, name: &str) -> String {
    format!(
        "The Service {service} belongs to {kind} {name}, so this workload gets none; give one of them another \
         dapr.io/app-id."
    )
}

/// What of a Service is compared.
fn compared(service: &Value) -> Value {
    json!({
        "labels": service["metadata"]["labels"], "annotations": service["metadata"]["annotations"],
        "spec": service["spec"],
    })
}

impl Kept {
    fn owner(&self) -> Option<&str> {
        let mut owners = self.metadata.owner_references.as_ref()?.iter();
        Some(&owners.find(|owner| owner.controller == Some(true))?.uid)
    }

    fn is_ours(&self) -> bool {
        self.said["labels"][MANAGED_LABEL.0] == MANAGED_LABEL.1
    }
}

impl From<Value> for Kept {
    fn from(service: Value) -> Self {
        let meta = |key: &str| service["metadata"][key].clone();
        let kept = json!({
            "name": meta("name"), "namespace": meta("namespace"), "uid": meta("uid"),
            "ownerReferences": meta("ownerReferences"),
        });
        Self { metadata: serde_json::from_value(kept).unwrap_or_default(), said: compared(&service) }
    }
}

impl Resource for Kept {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        Service::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        Service::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        Service::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        Service::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
