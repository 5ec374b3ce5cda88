//! What other replicas of the agent hear from their sidecars.
//!
//! The replica that leads writes the status of bindings; each other one tells what it hears in a ConfigMap of its
//! own, which the leader reads. One that has not been renewed for a while, by the reader's clock, is of a replica that
//! is no more: it counts no longer, and is deleted later.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use mecha_apiserver::{Followed, Role, Selection, apply, delete, follow};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::sidecars::{Sidecar, Sidecars};

/// Label of such ConfigMaps.
const LABEL: &str = "mecha.dev/agent-reports";
/// Owner of their fields.
const MANAGER: &str = "mecha-agent";
/// Key of the reports in it.
const KEY: &str = "reports";
/// Largest text in a ConfigMap; the API server takes 1 MiB in all.
const MAX_TEXT: usize = 900 << 10;
/// One is written again after so long, though nothing has changed.
const RENEW: Duration = Duration::from_secs(10);
/// One that has not changed for so long counts no more, and then is deleted.
const DEAD: (Duration, Duration) = (Duration::from_secs(35), Duration::from_secs(120));

/// What a replica hears in one namespace.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Heard {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sidecars: Vec<Sidecar>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    stock: BTreeMap<String, usize>,
}

type Reports = BTreeMap<String, Heard>;

/// The other replicas, and how this one tells them.
pub(crate) struct Peers {
    api: Api<ConfigMap>,
    own: String,
    sidecars: Arc<Sidecars>,
    maps: Followed<ConfigMap>,
    /// What each told last, its version, and when that was first seen.
    known: Mutex<BTreeMap<String, Known>>,
    told: Mutex<Option<(String, Instant)>>,
}

struct Known {
    version: Option<String>,
    since: Instant,
    reports: Reports,
}

impl Peers {
    pub(crate) fn join(role: &Role, sidecars: Arc<Sidecars>) -> Self {
        let selection = Selection {
            namespace: Some(role.namespace.clone()),
            labels: Some(LABEL.to_owned()),
            ..Selection::default()
        };
        Self {
            api: Api::namespaced(role.client.clone(), &role.namespace),
            own: format!("mecha-agent-{}", name_part(&role.instance)),
            sidecars,
            maps: follow(role.client.clone(), &selection, &role.tasks),
            known: Mutex::default(),
            told: Mutex::default(),
        }
    }

    /// Changes whenever another replica has told something.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.maps.changes()
    }

    /// Reads what the others have told by now; `false` before it is known who they are. Deletes what is left of
    /// those that are no more.
    pub(crate) async fn listen(&self) -> bool {
        if !self.maps.is_listed() {
            return false;
        }
        let mut dead = Vec::new();
        {
            let mut known = self.known.lock();
            let maps = self.maps.all();
            let names: BTreeSet<_> = maps.iter().filter_map(|map| map.metadata.name.clone()).collect();
            known.retain(|name, _| names.contains(name));
            for map in maps {
                let name = map.metadata.name.clone().unwrap_or_default();
                if name == self.own {
                    continue;
                }
                let version = map.metadata.resource_version.clone();
                if known.get(&name).is_none_or(|known| known.version != version) {
                    let text = map.data.as_ref().and_then(|data| data.get(KEY)).map_or("{}", String::as_str);
                    let reports = serde_json::from_str(text).unwrap_or_else(|error| {
                        tracing::warn!(name, %error, "what another replica of the agent tells cannot be read");
                        Reports::new()
                    });
                    known.insert(name, Known { version, since: Instant::now(), reports });
                } else if known.get(&name).is_some_and(|known| known.since.elapsed() > DEAD.1) {
                    dead.push(name);
                }
            }
        }
        for name in dead {
            if let Err(error) = delete(&self.api, &name).await {
                tracing::debug!(name, %error, "what is left of another replica could not be deleted");
            }
        }
        true
    }

    /// Adds the sidecars of `namespace` that others serve.
    pub(crate) fn add(&self, namespace: &str, sidecars: &mut Vec<Sidecar>, stock: &mut BTreeMap<String, usize>) {
        let known = self.known.lock();
        let alive = known.values().filter(|known| known.since.elapsed() < DEAD.0);
        for heard in alive.filter_map(|known| known.reports.get(namespace)) {
            merge(sidecars, &heard.sidecars);
            for (app, count) in &heard.stock {
                *stock.entry(app.clone()).or_default() += count;
            }
        }
    }

    /// Tells the leader what this replica hears, where that has changed or is due.
    pub(crate) async fn tell(&self) {
        let namespaces = self.sidecars.namespaces();
        let mut reports = Reports::new();
        for namespace in namespaces {
            let (mut sidecars, stock) = self.sidecars.within(&namespace);
            sidecars.retain(|sidecar| sidecar.connected);
            reports.insert(namespace, Heard { sidecars, stock });
        }
        let mut text = json!(reports).to_string();
        if text.len() > MAX_TEXT {
            tracing::warn!(bytes = text.len(), "too many sidecars for one ConfigMap; they count as silent");
            text = "{}".to_owned();
        }
        if reports.is_empty() && self.told.lock().is_none() {
            return;
        }
        let due = |(before, at): &(String, Instant)| *before != text || at.elapsed() >= RENEW;
        if !self.told.lock().as_ref().is_none_or(due) {
            return;
        }
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": self.own,
                "labels": {LABEL: "true"},
                // So that it changes, though nothing else has.
                "annotations": {"mecha.dev/renewed": jiff::Timestamp::now().to_string()},
            },
            "data": {KEY: text},
        });
        match apply(&self.api, &self.own, MANAGER, &map).await {
            Ok(_) => *self.told.lock() = Some((text, Instant::now())),
            Err(error) => tracing::debug!(%error, "the leader could not be told of sidecars; it is tried again"),
        }
    }

    /// The leader tells by writing the status; what it told before would only grow old.
    pub(crate) async fn retract(&self) {
        let told = self.told.lock().take().is_some();
        if told && let Err(error) = delete(&self.api, &self.own).await {
            tracing::debug!(%error, "what was told to the leader before could not be deleted");
        }
    }
}

/// An instance as part of an object's name; those that are names of pods stay as they are.
fn name_part(instance: &str) -> String {
    let lower = instance.to_ascii_lowercase();
    let part: String = lower.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(200).collect();
    part.trim_matches('-').to_owned()
}

/// Adds `others` to `own`. A sidecar that both know is where it is connected.
fn merge(own: &mut Vec<Sidecar>, others: &[Sidecar]) {
    for other in others {
        match own.iter_mut().find(|known| known.app_id == other.app_id && known.instance == other.instance) {
            None => own.push(other.clone()),
            Some(known) if !known.connected => known.clone_from(other),
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_counts_where_it_is_connected() {
        let sidecar = |instance: &str, connected: bool, missing: &str| Sidecar {
            app_id: "cart".into(),
            instance: instance.into(),
            connected,
            missing: BTreeMap::from([("orders".to_owned(), missing.to_owned())]),
            ..Sidecar::default()
        };
        let mut own = vec![sidecar("a", true, "own"), sidecar("b", false, "own")];
        merge(&mut own, &[sidecar("a", true, "other"), sidecar("b", true, "other"), sidecar("c", true, "other")]);
        let from: Vec<_> = own.iter().map(|s| (s.instance.as_str(), s.missing["orders"].as_str())).collect();
        assert_eq!(from, [("a", "own"), ("b", "other"), ("c", "other")]);
    }
}
