//! Everything that the hub looks at, followed and at one moment.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::select_all;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use mecha_apiserver::{
    AppPlacement, CapabilityBackend, CapabilityBinding, CapabilityClaim, Environment, EnvironmentClass, Followed,
    MemberCluster, Role, Selection, Stored, follow,
};
use mecha_resources::kinds::KindSpec;
use serde::Deserialize;
use tokio::sync::watch;

/// Label of what the hub has made, and its value.
pub(crate) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "mecha-hub");

/// A Component that somebody wrote by hand. What it says is never kept: it may hold secrets.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct HandWritten {
    metadata: ObjectMeta,
}

impl Resource for HandWritten {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Component".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "dapr.io".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1alpha1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "components".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Everything, at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) clusters: Vec<Arc<MemberCluster>>,
    pub(crate) classes: Vec<Arc<EnvironmentClass>>,
    pub(crate) environments: Vec<Arc<Environment>>,
    pub(crate) backends: Vec<Arc<CapabilityBackend>>,
    pub(crate) claims: Vec<Arc<CapabilityClaim>>,
    pub(crate) placements: Vec<Arc<AppPlacement>>,
    /// By the environment's namespace.
    pub(crate) bindings: BTreeMap<String, Vec<Arc<CapabilityBinding>>>,
    /// Namespaces that hold bindings, whoever made them: that of the control part's own cluster comes with the
    /// installation, together with the rights of the agent in it.
    pub(crate) homes: BTreeSet<String>,
    /// Namespaces that the hub has made, and whether they are going.
    pub(crate) namespaces: BTreeMap<String, bool>,
    /// Components written by hand, as namespace and name.
    pub(crate) components: Vec<(String, String)>,
}

impl View {
    /// The claim `namespace/name`.
    pub(crate) fn claim(&self, key: &str) -> Option<&Arc<CapabilityClaim>> {
        let key = key.split_once('/')?;
        let found = self.claims.binary_search_by(|claim| (claim.namespace(), claim.name()).cmp(&key)).ok()?;
        self.claims.get(found)
    }

    /// The claims of a namespace.
    pub(crate) fn claims_in(&self, namespace: &str) -> &[Arc<CapabilityClaim>] {
        let from = self.claims.partition_point(|claim| claim.namespace() < namespace);
        let to = self.claims.partition_point(|claim| claim.namespace() <= namespace);
        self.claims.get(from..to).unwrap_or_default()
    }

    /// The bindings of an environment's namespace.
    pub(crate) fn bindings_of(&self, namespace: &str) -> &[Arc<CapabilityBinding>] {
        self.bindings.get(namespace).map(Vec::as_slice).unwrap_or_default()
    }

    /// All bindings.
    pub(crate) fn all_bindings(&self) -> impl Iterator<Item = &Arc<CapabilityBinding>> {
        self.bindings.values().flatten()
    }
}

/// The same, followed.
pub(crate) struct Watches {
    clusters: Followed<MemberCluster>,
    classes: Followed<EnvironmentClass>,
    environments: Followed<Environment>,
    backends: Followed<CapabilityBackend>,
    claims: Followed<CapabilityClaim>,
    placements: Followed<AppPlacement>,
    bindings: Followed<CapabilityBinding>,
    namespaces: Followed<Namespace>,
    components: Followed<HandWritten>,
    changes: Vec<watch::Receiver<u64>>,
}

impl Watches {
    pub(crate) fn start(role: &Role) -> Self {
        fn all<S: KindSpec>(role: &Role) -> Followed<Stored<S>> {
            follow(role.client.clone(), &Selection::default(), &role.tasks)
        }
        let managed = Selection { labels: Some(format!("{}={}", MANAGED_BY.0, MANAGED_BY.1)), ..Selection::default() };
        let mut watches = Self {
            clusters: all(role),
            classes: all(role),
            environments: all(role),
            backends: all(role),
            claims: all(role),
            placements: all(role),
            bindings: all(role),
            namespaces: follow(role.client.clone(), &managed, &role.tasks),
            components: follow(role.client.clone(), &Selection::default(), &role.tasks),
            changes: Vec::new(),
        };
        watches.changes = vec![
            watches.clusters.changes(),
            watches.classes.changes(),
            watches.environments.changes(),
            watches.backends.changes(),
            watches.claims.changes(),
            watches.placements.changes(),
            watches.bindings.changes(),
            watches.namespaces.changes(),
            watches.components.changes(),
        ];
        watches
    }

    /// Returns when a first complete set of each kind is there.
    pub(crate) async fn listed(&self) {
        self.clusters.listed().await;
        self.classes.listed().await;
        self.environments.listed().await;
        self.backends.listed().await;
        self.claims.listed().await;
        self.placements.listed().await;
        self.bindings.listed().await;
        self.namespaces.listed().await;
        self.components.listed().await;
    }

    /// What is known now; what changes from here on is news.
    pub(crate) fn look(&mut self) -> View {
        for changes in &mut self.changes {
            changes.borrow_and_update();
        }
        let name = |meta: &ObjectMeta| meta.name.clone().unwrap_or_default();
        let mut bindings = BTreeMap::<String, Vec<_>>::new();
        let mut homes = BTreeSet::new();
        for binding in self.bindings.all() {
            if !homes.contains(binding.namespace()) {
                homes.insert(binding.namespace().to_owned());
            }
            bindings.entry(binding.spec.namespace.clone()).or_default().push(binding);
        }
        let namespaces = self.namespaces.all();
        let components = self.components.all();
        View {
            clusters: self.clusters.all(),
            classes: self.classes.all(),
            environments: self.environments.all(),
            backends: self.backends.all(),
            claims: self.claims.all(),
            placements: self.placements.all(),
            bindings,
            homes,
            namespaces: namespaces
                .iter()
                .map(|n| (name(&n.metadata), n.metadata.deletion_timestamp.is_some()))
                .collect(),
            components: components
                .iter()
                .map(|c| (c.metadata.namespace.clone().unwrap_or_default(), name(&c.metadata)))
                .collect(),
        }
    }

    /// Returns when something has changed since the last look.
    pub(crate) async fn changed(&mut self) {
        let waits = self.changes.iter_mut().map(|changes| changes.changed().boxed());
        let (answer, _, _) = select_all(waits).await;
        if answer.is_err() {
            // The watches have ended, and with them the role.
            std::future::pending::<()>().await;
        }
    }
}

/// What the hub asks of every object again and again.
pub(crate) trait Facts {
    /// Its name.
    fn name(&self) -> &str;
    /// Its namespace; empty for cluster-wide kinds.
    fn namespace(&self) -> &str;
    /// `namespace/name`, or the name alone.
    fn key(&self) -> String {
        if self.namespace().is_empty() {
            self.name().to_owned()
        } else {
            format!("{}/{}", self.namespace(), self.name())
        }
    }
    /// Whether somebody has deleted it.
    fn leaving(&self) -> bool;
    /// Whether it has the finalizer.
    fn has_finalizer(&self, finalizer: &str) -> bool;
}

impl<K: Resource<DynamicType = ()>> Facts for K {
    fn name(&self) -> &str {
        self.meta().name.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.meta().namespace.as_deref().unwrap_or_default()
    }

    fn leaving(&self) -> bool {
        self.meta().deletion_timestamp.is_some()
    }

    fn has_finalizer(&self, finalizer: &str) -> bool {
        self.meta().finalizers.iter().flatten().any(|f| f == finalizer)
    }
}
