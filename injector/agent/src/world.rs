//! What the API server says, and the documents of each namespace that has sidecars.

use std::collections::BTreeMap;
use std::future::Future as _;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use kube::Client;
use mecha_apiserver::{CapabilityBinding, Followed, Selection, Tasks, cluster_namespace, follow};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;

use crate::document::Kind;
use crate::kinds::{self, Component, Configuration, HttpEndpoint, INJECTED, Pod, Resiliency, Subscription, Written};
use crate::secrets::{Reader, Secrets};
use crate::view::View;
use crate::waits::Said;

/// Changes that come together are looked at together.
const SETTLE: Duration = Duration::from_millis(5);

/// While the first complete set is awaited: how often is looked, and how often is told what is missing.
const LOOK: Duration = Duration::from_millis(20);
const COMPLAIN: Duration = Duration::from_secs(30);

/// What is followed, whatever its kind.
trait Source: Send + Sync {
    fn is_listed(&self) -> bool;
    fn broken(&self) -> Option<String>;
}

impl<K: Send + Sync> Source for Followed<K> {
    fn is_listed(&self) -> bool {
        Followed::is_listed(self)
    }

    fn broken(&self) -> Option<String> {
        Followed::broken(self).map(|(why, _)| why)
    }
}

/// All that the agent follows.
pub(crate) struct World {
    pub(crate) bindings: Followed<CapabilityBinding>,
    pub(crate) pods: Followed<Pod>,
    components: Followed<Written<Component>>,
    subscriptions: Followed<Written<Subscription>>,
    configurations: Followed<Written<Configuration>>,
    resiliencies: Followed<Written<Resiliency>>,
    endpoints: Followed<Written<HttpEndpoint>>,
    reader: Reader,
    spaces: Mutex<BTreeMap<String, Weak<Space>>>,
    /// Grows with each change of any document.
    composed: watch::Sender<u64>,
}

/// One namespace with sidecars.
pub(crate) struct Space {
    pub(crate) secrets: Secrets,
    /// What was said of documents that wait for them.
    pub(crate) said: Said,
    published: watch::Sender<Published>,
}

/// The documents of a namespace at one time.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    pub(crate) view: Arc<View>,
    /// When its change was noticed; `None` for the first.
    pub(crate) since: Option<Instant>,
}

impl World {
    /// Follows everything. Bindings are those of one cluster, in its namespace.
    pub(crate) fn new(client: &Client, cluster: &str, reader: Reader, tasks: &Tasks) -> Self {
        let everywhere = Selection::default();
        let own = Selection { namespace: Some(cluster_namespace(cluster)), ..Selection::default() };
        let injected = Selection { labels: Some(INJECTED.to_owned()), ..Selection::default() };
        Self {
            bindings: follow(client.clone(), &own, tasks),
            pods: follow(client.clone(), &injected, tasks),
            components: follow(client.clone(), &everywhere, tasks),
            subscriptions: follow(client.clone(), &everywhere, tasks),
            configurations: follow(client.clone(), &everywhere, tasks),
            resiliencies: follow(client.clone(), &everywhere, tasks),
            endpoints: follow(client.clone(), &everywhere, tasks),
            reader,
            spaces: Mutex::default(),
            composed: watch::Sender::new(0),
        }
    }

    /// Returns when everything has been read once. It waits for every kind: without one of them sets would not be
    /// complete, and sidecars would close what they miss.
    pub(crate) async fn listed(&self) {
        let all: [(&str, &dyn Source); 7] = [
            ("CapabilityBinding", &self.bindings),
            ("Pod", &self.pods),
            ("Component", &self.components),
            ("Subscription", &self.subscriptions),
            ("Configuration", &self.configurations),
            ("Resiliency", &self.resiliencies),
            ("HTTPEndpoint", &self.endpoints),
        ];
        let mut complain = Instant::now() + COMPLAIN;
        while all.iter().any(|(_, kind)| !kind.is_listed()) {
            tokio::time::sleep(LOOK).await;
            if Instant::now() < complain {
                continue;
            }
            complain = Instant::now() + COMPLAIN;
            for (kind, source) in all.iter().filter(|(_, kind)| !kind.is_listed()) {
                let why = source.broken().unwrap_or_else(|| "the API server has not answered".to_owned());
                tracing::warn!(kind, why, "no sidecar is served before this kind has been read");
            }
        }
    }

    fn compose(&self, namespace: &str) -> View {
        let bindings: Vec<_> =
            self.bindings.all().into_iter().filter(|binding| binding.spec.namespace == namespace).collect();
        let written = of(&self.components, namespace)
            .chain(of(&self.subscriptions, namespace))
            .chain(of(&self.configurations, namespace))
            .chain(of(&self.resiliencies, namespace))
            .chain(of(&self.endpoints, namespace));
        View::compose(namespace, &bindings, written)
    }

    /// The namespace `name`, kept current while the answer is held.
    pub(crate) fn enter(&self, name: &str) -> Arc<Space> {
        let mut spaces = self.spaces.lock();
        if let Some(space) = spaces.get(name).and_then(Weak::upgrade) {
            return space;
        }
        spaces.retain(|_, space| space.strong_count() > 0);
        let published = Published { view: Arc::new(self.compose(name)), since: None };
        let space = Arc::new(Space {
            secrets: Secrets::new(name, self.reader.clone()),
            said: Said::default(),
            published: watch::Sender::new(published),
        });
        spaces.insert(name.to_owned(), Arc::downgrade(&space));
        space
    }

    /// The documents of `namespace` now.
    pub(crate) fn view(&self, namespace: &str) -> Arc<View> {
        let space = self.spaces.lock().get(namespace).and_then(Weak::upgrade);
        space.map_or_else(|| Arc::new(self.compose(namespace)), |space| space.published.borrow().view.clone())
    }

    /// Changes whenever documents may have, after namespaces with sidecars are current again.
    pub(crate) fn composed(&self) -> watch::Receiver<u64> {
        self.composed.subscribe()
    }

    /// Keeps the namespaces with sidecars current, for ever.
    pub(crate) async fn run(&self) {
        let mut changes = [
            self.bindings.changes(),
            self.components.changes(),
            self.subscriptions.changes(),
            self.configurations.changes(),
            self.resiliencies.changes(),
            self.endpoints.changes(),
        ];
        loop {
            any(&mut changes).await;
            let since = Some(Instant::now());
            tokio::time::sleep(SETTLE).await;
            changes.iter_mut().for_each(|change| drop(change.borrow_and_update()));
            let spaces: Vec<_> = self.spaces.lock().values().filter_map(Weak::upgrade).collect();
            for space in spaces {
                let view = Arc::new(self.compose(space.secrets.namespace()));
                space.published.send_if_modified(|published| {
                    let changed = published.view != view;
                    if changed {
                        *published = Published { view, since };
                    }
                    changed
                });
                tokio::task::yield_now().await;
            }
            self.composed.send_modify(|version| *version += 1);
        }
    }
}

impl Space {
    /// Its documents, and whenever they change.
    pub(crate) fn published(&self) -> watch::Receiver<Published> {
        self.published.subscribe()
    }
}

fn of<K: kinds::DaprKind>(followed: &Followed<Written<K>>, namespace: &str) -> impl Iterator<Item = (Kind, Value)> {
    followed.within(namespace).into_iter().map(|written| (K::KIND, written.body.clone()))
}

/// Returns when one of them has changed.
pub(crate) async fn any(changes: &mut [watch::Receiver<u64>]) {
    let mut waits: Vec<_> = changes.iter_mut().map(|change| Box::pin(change.changed())).collect();
    std::future::poll_fn(|cx| {
        let ready = waits.iter_mut().any(|wait| matches!(pin!(wait).poll(cx), Poll::Ready(Ok(()))));
        if ready { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}
