//! What is to be written, and writing it while the lease holds.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource};
use mecha_apiserver::trace::Tracer;
use mecha_apiserver::{CapabilityBinding, EventType, Events, Failure, FailureKind, Stored, Term, call};
use mecha_resources::kinds::{CapabilityClaimSpec, KindSpec, MoveOutcome};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::metrics::Metrics;
use crate::traces;

/// Owner of the fields that the hub writes.
pub(crate) const MANAGER: &str = "mecha-hub";
/// Annotation of a CONNECT-TO namespace: its environment, as namespace/name.
pub(crate) const OWNER: &str = "mecha.dev/environment";

/// Requests that are under way at a time: enough that the API server never waits for the hub, and few enough that it
/// still serves others.
const AT_ONCE: usize = 16;

/// One write. Doing it twice is the same as doing it once.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    target: Target,
    change: Change,
    /// What to tell people when it has happened.
    news: Vec<News>,
}

#[derive(Clone, Debug, PartialEq)]
struct Target {
    resource: ApiResource,
    namespace: String,
    name: String,
}

#[derive(Clone, Debug)]
enum Change {
    /// There is to be such an object; one that is there already stays.
    Create(Value),
    /// A namespace that has to belong to an environment.
    Namespace { owner: String },
    /// The object as it was read, with another content.
    Replace(Value),
    /// The whole of what the hub says in the status.
    Status { status: Value, version: Option<String> },
    /// The finalizers of the object as it was read.
    Finalizers { finalizers: Vec<String>, version: Option<String> },
    /// It is to go.
    Delete { uid: Option<String> },
}

/// Something for people to know.
#[derive(Clone, Debug)]
pub(crate) enum News {
    Event {
        about: Box<ObjectReference>,
        kind: EventType,
        reason: &'static str,
        action: &'static str,
        note: String,
    },
    /// A claim was bound so many seconds after it was made.
    Bound(f64),
    /// A move ended.
    Moved(MoveOutcome),
}

/// Why a row of writes has ended early.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// The lease no longer holds.
    Deposed,
    /// The API server does not take the write.
    Refused(String, Failure),
    /// A namespace belongs to somebody else.
    Foreign { namespace: String },
}

impl Write {
    fn new(target: Target, change: Change) -> Self {
        Self { target, change, news: Vec::new() }
    }

    pub(crate) fn create<S: KindSpec>(object: &Stored<S>) -> Self {
        Self::new(Target::of(object), Change::Create(value(object)))
    }

    /// `object` was read, or made anew; its resource version keeps a late write out.
    pub(crate) fn replace(object: &CapabilityBinding) -> Self {
        Self::new(Target::of(object), Change::Replace(value(object)))
    }

    pub(crate) fn namespace(name: &str, owner: Option<String>) -> Self {
        let target = Target {
            resource: ApiResource::erase::<k8s_openapi::api::core::v1::Namespace>(&()),
            namespace: String::new(),
            name: name.to_owned(),
        };
        let (key, maker) = crate::view::MANAGED_BY;
        let labels = BTreeMap::from([(key, maker)]);
        let change = match owner {
            Some(owner) => Change::Namespace { owner },
            None => Change::Create(json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels},
            })),
        };
        Self::new(target, change)
    }

    pub(crate) fn delete_namespace(name: &str) -> Self {
        let mut write = Self::namespace(name, None);
        write.change = Change::Delete { uid: None };
        write
    }

    /// The status as a whole, of an object whose status nobody else writes.
    pub(crate) fn status<S: KindSpec>(object: &Stored<S>, status: &S::Status) -> Self {
        let version = object.metadata.resource_version.clone();
        Self::new(Target::of(object), Change::Status { status: value(status), version })
    }

    /// A part of the status of an object to whose status others write too.
    pub(crate) fn part_of_status<S: KindSpec>(object: &Stored<S>, status: Value) -> Self {
        Self::new(Target::of(object), Change::Status { status, version: None })
    }

    /// With or without one finalizer.
    pub(crate) fn finalizer<S: KindSpec>(object: &Stored<S>, finalizer: &str, wanted: bool) -> Self {
        let mut finalizers = object.metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|f| f != finalizer);
        if wanted {
            finalizers.push(finalizer.to_owned());
        }
        let version = object.metadata.resource_version.clone();
        Self::new(Target::of(object), Change::Finalizers { finalizers, version })
    }

    pub(crate) fn delete<S: KindSpec>(object: &Stored<S>) -> Self {
        Self::new(Target::of(object), Change::Delete { uid: object.metadata.uid.clone() })
    }

    pub(crate) fn tells(mut self, news: impl IntoIterator<Item = News>) -> Self {
        self.news.extend(news);
        self
    }

    /// What is written about one claim does not depend on what is written about another.
    fn is_about_a_claim(&self) -> bool {
        self.target.resource.kind == CapabilityClaimSpec::KIND
    }

    /// Whether it is a binding that is written for the decision of this context.
    pub(crate) fn is_for(&self, traceparent: &str) -> bool {
        matches!(&self.change, Change::Replace(object) if traces::marked(object) == Some(traceparent))
    }

    fn shown(&self) -> String {
        let Target { resource, namespace, name } = &self.target;
        let slash = if namespace.is_empty() { "" } else { "/" };
        format!("{} {namespace}{slash}{name}", resource.kind)
    }
}

impl Target {
    fn of<S: KindSpec>(object: &Stored<S>) -> Self {
        Self {
            resource: ApiResource::erase::<Stored<S>>(&()),
            namespace: object.metadata.namespace.clone().unwrap_or_default(),
            name: object.metadata.name.clone().unwrap_or_default(),
        }
    }
}

/// The writes of a row in steps, and in each step lanes that go side by side: one for each of the claims that follow
/// upon each other.
fn steps(writes: Vec<Write>) -> Vec<Vec<Vec<Write>>> {
    let mut steps: Vec<Vec<Vec<Write>>> = Vec::new();
    for write in writes {
        let lane = steps.last_mut().and_then(|lanes| lanes.last_mut());
        match lane {
            Some(lane) if lane.last().is_some_and(|last| last.target == write.target) => lane.push(write),
            Some(lane) if write.is_about_a_claim() && lane.last().is_some_and(Write::is_about_a_claim) => {
                if let Some(lanes) = steps.last_mut() {
                    lanes.push(vec![write]);
                }
            }
            _ => steps.push(vec![vec![write]]),
        }
    }
    steps
}

fn value<T: Serialize>(value: &T) -> Value {
    // Text keys only: this cannot fail.
    serde_json::to_value(value).unwrap_or_default()
}

impl News {
    pub(crate) fn event<K: Resource<DynamicType = ()>>(
        about: &K,
        kind: EventType,
        reason: &'static str,
        action: &'static str,
        note: String,
    ) -> Self {
        Self::Event { about: Box::new(about.object_ref(&())), kind, reason, action, note }
    }
}

/// Writes for one leader.
pub(crate) struct Writer {
    client: Client,
    events: Events,
    pub(crate) metrics: Metrics,
    tracer: Tracer,
    /// First come, first served: the first steps of all rows go before the later ones of any.
    room: Semaphore,
}

impl Writer {
    pub(crate) fn new(client: Client, events: Events, metrics: Metrics, tracer: Tracer) -> Self {
        Self { client, events, metrics, tracer, room: Semaphore::new(AT_ONCE) }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Writes a row in its order, up to the first step in which something fails. Gives the keys of the bindings that
    /// were written.
    pub(crate) async fn row(&self, term: &Term, writes: Vec<Write>) -> (Vec<String>, Option<Stopped>) {
        let mut bindings = Vec::new();
        for lanes in steps(writes) {
            let lanes = stream::iter(lanes).map(|lane| self.lane(term, lane)).buffer_unordered(AT_ONCE);
            let mut ended: Vec<(Vec<String>, Option<Stopped>)> = lanes.collect().await;
            bindings.extend(ended.iter_mut().flat_map(|(written, _)| std::mem::take(written)));
            if let Some(stopped) = ended.into_iter().find_map(|(_, stopped)| stopped) {
                return (bindings, Some(stopped));
            }
        }
        (bindings, None)
    }

    async fn lane(&self, term: &Term, writes: Vec<Write>) -> (Vec<String>, Option<Stopped>) {
        let mut bindings = Vec::new();
        for write in writes {
            let Ok(_room) = self.room.acquire().await else { return (bindings, Some(Stopped::Deposed)) };
            if !term.holds() {
                return (bindings, Some(Stopped::Deposed));
            }
            // On the heap, so that those that wait for room take little.
            if let Err(stopped) = Box::pin(self.one(&write)).await {
                self.metrics.write(false);
                return (bindings, Some(stopped));
            }
            self.metrics.write(true);
            if matches!(write.change, Change::Replace(_)) {
                bindings.push(format!("{}/{}", write.target.namespace, write.target.name));
            }
            for news in write.news {
                self.tell(news);
            }
        }
        (bindings, None)
    }

    async fn one(&self, write: &Write) -> Result<(), Stopped> {
        let Target { resource, namespace, name } = &write.target;
        let api: Api<DynamicObject> = if namespace.is_empty() {
            Api::all_with(self.client.clone(), resource)
        } else {
            Api::namespaced_with(self.client.clone(), namespace, resource)
        };
        let post = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let refused = |failure| Stopped::Refused(write.shown(), failure);
        let typed = |value: &Value| serde_json::from_value::<DynamicObject>(value.clone());
        let gone_is_fine = |failure: Failure| match failure.kind {
            FailureKind::NotFound => Ok(()),
            _ => Err(refused(failure)),
        };
        match &write.change {
            Change::Create(object) => {
                let Ok(object) = typed(object) else { return Ok(()) };
                match call(api.create(&post, &object)).await {
                    Err(failure) if failure.kind == FailureKind::Conflict => Ok(()),
                    answer => answer.map(|_| ()).map_err(refused),
                }
            }
            Change::Namespace { owner } => self.namespace(&api, name, owner).await,
            Change::Replace(object) => {
                let mut span = traces::write(&self.tracer, object);
                let Ok(object) = typed(object) else { return Ok(()) };
                let answer = match object.metadata.resource_version {
                    Some(_) => call(api.replace(name, &post, &object)).await,
                    None => call(api.create(&post, &object)).await,
                };
                if answer.is_err() {
                    span.fail("the API server refused it");
                }
                answer.map(|_| ()).map_err(refused)
            }
            Change::Status { status, version } => {
                let mut metadata = json!({"name": name});
                if let Some(version) = version {
                    metadata["resourceVersion"] = json!(version);
                }
                let body = json!({
                    "apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, "status": status,
                });
                let params = PatchParams::apply(MANAGER).force();
                let answer = call(api.patch_status(name, &params, &Patch::Apply(&body))).await;
                answer.map(|_| ()).or_else(gone_is_fine)
            }
            Change::Finalizers { finalizers, version } => {
                let body = json!({"metadata": {"finalizers": finalizers, "resourceVersion": version}});
                let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
                let answer = call(api.patch(name, &params, &Patch::Merge(&body))).await;
                answer.map(|_| ()).or_else(gone_is_fine)
            }
            Change::Delete { uid } => {
                let preconditions = Preconditions { uid: uid.clone(), resource_version: None };
                let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                call(api.delete(name, &params)).await.map(|_| ()).or_else(gone_is_fine)
            }
        }
    }

    /// Makes a namespace, or takes over the one that names its environment already.
    async fn namespace(&self, api: &Api<DynamicObject>, name: &str, owner: &str) -> Result<(), Stopped> {
        let refused = |failure| Stopped::Refused(format!("Namespace {name}"), failure);
        let (key, maker) = crate::view::MANAGED_BY;
        let metadata = json!({"name": name, "labels": {(key): maker}, "annotations": {(OWNER): owner}});
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
        let Ok(object) = serde_json::from_value::<DynamicObject>(body) else { return Ok(()) };
        match call(api.create(&PostParams::default(), &object)).await {
            Ok(_) => return Ok(()),
            Err(failure) if failure.kind != FailureKind::Conflict => return Err(refused(failure)),
            Err(_) => {}
        }
        let there = call(api.get(name)).await.map_err(refused)?;
        let named = there.metadata.annotations.as_ref().and_then(|a| a.get(OWNER));
        if named.map(String::as_str) != Some(owner) {
            return Err(Stopped::Foreign { namespace: name.to_owned() });
        }
        let label = json!({"metadata": {"labels": {(key): maker}}});
        call(api.patch(name, &PatchParams::default(), &Patch::Merge(&label))).await.map(|_| ()).map_err(refused)
    }

    fn tell(&self, news: News) {
        match news {
            News::Event { about, kind, reason, action, note } => {
                self.events.about(kind, *about, reason, action, &note);
            }
            News::Bound(seconds) => self.metrics.bound(seconds),
            News::Moved(outcome) => self.metrics.moved(outcome),
        }
    }
}
