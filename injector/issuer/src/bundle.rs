//! Publishes the trust bundle: a ConfigMap in every namespace whose pods need it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource};
use mecha_apiserver::{Failure, FailureKind, Followed, call};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;

use crate::metrics::Metrics;
use crate::roots::Numbered;
use crate::{BUNDLE_CONFIG_MAP, BUNDLE_KEY};

/// Who owns the fields of the ConfigMap.
const MANAGER: &str = "mecha-issuer";
/// The number of the bundle, so that a replica that is behind does not put an older one back.
const NUMBER: &str = "mecha.dev/bundle-number";
/// Writes at once.
const AT_ONCE: usize = 8;
/// First and longest pause after a write that failed.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Time in which the watch tells of a write of ours; then it is looked at again.
const ECHO: Duration = Duration::from_secs(10);

/// What all namespaces have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Published {
    /// The bundle.
    pub(crate) number: u64,
    /// Since when all of them have it; `None` while one has not.
    pub(crate) complete: Option<SystemTime>,
}

/// An injected pod, of which only the namespace matters. Nothing else of it is kept in memory.
#[derive(Clone, Debug)]
pub(crate) struct InjectedPod {
    metadata: ObjectMeta,
}

impl<'de> Deserialize<'de> for InjectedPod {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Whole {
            metadata: Place,
        }
        #[derive(Deserialize)]
        struct Place {
            name: Option<String>,
            namespace: Option<String>,
        }
        let Whole { metadata: Place { name, namespace } } = Whole::deserialize(deserializer)?;
        Ok(Self { metadata: ObjectMeta { name, namespace, ..ObjectMeta::default() } })
    }
}

impl Resource for InjectedPod {
    type DynamicType = ();
    type Scope = <Pod as Resource>::Scope;

    fn kind(dt: &()) -> std::borrow::Cow<'_, str> {
        <Pod as Resource>::kind(dt)
    }

    fn group(dt: &()) -> std::borrow::Cow<'_, str> {
        <Pod as Resource>::group(dt)
    }

    fn version(dt: &()) -> std::borrow::Cow<'_, str> {
        <Pod as Resource>::version(dt)
    }

    fn plural(dt: &()) -> std::borrow::Cow<'_, str> {
        <Pod as Resource>::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Keeps the ConfigMaps.
pub(crate) struct Publisher {
    pub(crate) client: Client,
    pub(crate) control_namespace: String,
    pub(crate) pods: Followed<InjectedPod>,
    pub(crate) namespaces: Followed<Namespace>,
    pub(crate) maps: Followed<ConfigMap>,
    pub(crate) bundle: watch::Receiver<Numbered>,
    pub(crate) published: watch::Sender<Published>,
    pub(crate) metrics: Arc<Metrics>,
}

/// Writes of ours that the watch has not told of yet: the bundle's number, and when.
type Written = BTreeMap<String, (u64, Instant)>;

impl Publisher {
    pub(crate) async fn run(mut self) {
        self.pods.listed().await;
        self.namespaces.listed().await;
        self.maps.listed().await;
        let mut changes = (self.pods.changes(), self.namespaces.changes(), self.maps.changes());
        let mut written = Written::new();
        let mut pause = FIRST_PAUSE;
        loop {
            let wanted = self.bundle.borrow_and_update().clone();
            let behind = self.write_where_needed(&wanted, &mut written).await;
            self.metrics.behind.set(behind.try_into().unwrap_or(i64::MAX));
            self.published.send_if_modified(|now| {
                let since = if now.number == wanted.number { now.complete } else { None };
                let complete = (behind == 0).then(|| since.unwrap_or_else(SystemTime::now));
                let then = Published { number: wanted.number, complete };
                let changed = *now != then;
                *now = then;
                changed
            });
            let wait = if behind > 0 { pause } else { ECHO };
            pause = if behind > 0 { (2 * pause).min(LONGEST_PAUSE) } else { FIRST_PAUSE };
            let retry = behind > 0 || !written.is_empty();
            tokio::select! {
                _ = changes.0.changed() => {}
                _ = changes.1.changed() => {}
                _ = changes.2.changed() => {}
                _ = self.bundle.changed() => {}
                () = tokio::time::sleep(wait), if retry => {}
            }
        }
    }

    /// Writes the bundle where it is not, and counts the namespaces that have not got it afterwards.
    async fn write_where_needed(&self, wanted: &Numbered, written: &mut Written) -> usize {
        let pem = wanted.bundle.to_pem();
        written.retain(|_, (number, at)| *number == wanted.number && at.elapsed() < ECHO);
        let mut due = Vec::new();
        for namespace in self.wanted_namespaces() {
            let map = self.maps.get(&namespace, BUNDLE_CONFIG_MAP);
            let has = map.as_ref().and_then(|map| map.data.as_ref()?.get(BUNDLE_KEY));
            if has == Some(&pem) {
                written.remove(&namespace);
                continue;
            }
            if map.as_ref().is_some_and(|map| number_of(map) > wanted.number) {
                // The Secret's news will come to this replica as well.
                continue;
            }
            if !written.contains_key(&namespace) {
                due.push((namespace, map.and_then(|map| map.metadata.resource_version.clone())));
            }
        }
        let writes = due.into_iter().map(|(namespace, version)| {
            let pem = &pem;
            async move {
                let answer = self.write(&namespace, version, pem, wanted.number).await;
                (namespace, answer)
            }
        });
        let answers: Vec<_> = futures_util::stream::iter(writes).buffer_unordered(AT_ONCE).collect().await;
        let mut behind = 0;
        for (namespace, answer) in answers {
            match answer {
                Ok(()) => {
                    written.insert(namespace, (wanted.number, Instant::now()));
                }
                Err(failure) if ends(&failure) => tracing::debug!(namespace, "the namespace ends; it gets no bundle"),
                Err(error) => {
                    tracing::warn!(namespace, %error, "the trust bundle could not be written; it is tried again");
                    behind += 1;
                }
            }
        }
        behind
    }

    fn wanted_namespaces(&self) -> BTreeSet<String> {
        let pods = self.pods.all().into_iter().filter_map(|pod| pod.metadata.namespace.clone());
        let labelled = self.namespaces.all();
        let labelled = labelled.iter().filter(|namespace| namespace.metadata.deletion_timestamp.is_none());
        let mut wanted: BTreeSet<String> = pods.collect();
        wanted.extend(labelled.filter_map(|namespace| namespace.metadata.name.clone()));
        wanted.insert(self.control_namespace.clone());
        wanted
    }

    /// `version` is the one that was read: a map that has changed since is looked at again first.
    async fn write(&self, namespace: &str, version: Option<String>, pem: &str, number: u64) -> Result<(), Failure> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let mut map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": BUNDLE_CONFIG_MAP,
                "labels": {"app.kubernetes.io/part-of": "mecha"},
                "annotations": {NUMBER: number.to_string()},
            },
            "data": {BUNDLE_KEY: pem},
        });
        if let Some(version) = version {
            map["metadata"]["resourceVersion"] = version.into();
        }
        call(api.patch(BUNDLE_CONFIG_MAP, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&map))).await?;
        Ok(())
    }
}

fn number_of(map: &ConfigMap) -> u64 {
    let number = map.metadata.annotations.as_ref().and_then(|a| a.get(NUMBER)?.parse().ok());
    number.unwrap_or(0)
}

/// Whether the namespace is gone or on its way.
fn ends(failure: &Failure) -> bool {
    match failure.kind {
        FailureKind::NotFound => true,
        FailureKind::Forbidden => failure.to_string().contains("being terminated"),
        _ => false,
    }
}
