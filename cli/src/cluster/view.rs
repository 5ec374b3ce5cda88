//! What a cluster holds of our kinds at one moment, as the hub looks at it, with edits of files on top.

use super::failed;
use crate::error::{CliError, Result};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Client, Resource};
use mecha_apiserver::{CapabilityBinding, EnvironmentClass, FailureKind, Stored, call};
use mecha_decide::{
    Assume, Backend, Blocked, Bound, Choice, Cluster, Consent, Evaluation, Hold, Memory, WaitingMove, World, digest_of,
    waiting_digest,
};
use mecha_resources::kinds::{
    BackendState, CapabilityBindingSpec, Documents, Environment, KindSpec, MoveOutcome, Object,
};
use mecha_resources::{Located, Origin};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Objects of one answer.
const PAGE: u32 = 500;
/// Pages of one kind; more than a hub is made for.
const MAX_PAGES: usize = 1000;
/// The name of the only cluster, which meets every selector.
const LOCAL: &str = "local";

/// Everything that decisions look at.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// Objects as files would hold them, statuses too.
    pub(crate) documents: Documents,
    /// The bindings, with their namespaces.
    pub(crate) bindings: Vec<CapabilityBinding>,
    /// Keys of objects that somebody has deleted, by kind.
    leaving: BTreeSet<(&'static str, String)>,
    /// Components that somebody wrote by hand, as namespace and name.
    components: Vec<(String, String)>,
    /// Classes and backends that files change.
    edited: BTreeSet<(&'static str, String)>,
    /// Objects that are no valid objects of their kind, with the reason.
    pub(crate) unreadable: Vec<String>,
}

/// A plan of one class that waits for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Approval {
    /// The class.
    pub(crate) class: String,
    /// What `mecha swap approve` takes.
    pub(crate) digest: String,
    /// The claims that would move.
    pub(crate) claims: Vec<String>,
}

impl View {
    /// Reads everything. Objects of a kind are read page by page; one that cannot be read stands in nobody's way.
    pub(crate) async fn read(client: &Client) -> Result<Self> {
        let mut view = Self::default();
        view.documents.clusters = view.take(client).await?;
        view.documents.classes = view.take(client).await?;
        view.documents.environments = view.take(client).await?;
        view.documents.backends = view.take(client).await?;
        view.documents.claims = view.take(client).await?;
        view.documents.placements = view.take(client).await?;
        view.bindings = view.stored::<CapabilityBindingSpec>(client).await?;
        let components = ApiResource {
            group: "dapr.io".to_owned(),
            version: "v1alpha1".to_owned(),
            api_version: "dapr.io/v1alpha1".to_owned(),
            kind: "Component".to_owned(),
            plural: "components".to_owned(),
        };
        // A cluster need not know Dapr's kinds.
        if let Some(found) = list(client, &components).await? {
            let place = |meta: ObjectMeta| (meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default());
            view.components = found.into_iter().map(|object| place(object.metadata)).collect();
        }
        Ok(view)
    }

    async fn stored<S: KindSpec>(&mut self, client: &Client) -> Result<Vec<Stored<S>>> {
        let resource = ApiResource::erase::<Stored<S>>(&());
        let found = list(client, &resource).await?;
        let found = found.ok_or_else(|| {
            CliError::new("cluster-kinds", format!("the cluster does not know the kind {}", S::KIND))
                .hint("install the control part, or at least: kubectl apply --server-side -f deploy/crds")
        })?;
        let mut objects = Vec::with_capacity(found.len());
        for object in found {
            let name = object.metadata.name.clone().unwrap_or_default();
            let read = serde_json::to_value(object).and_then(serde_json::from_value::<Stored<S>>);
            match read {
                Ok(object) => objects.push(object),
                Err(error) => self.unreadable.push(format!("{} {name}: {error}", S::KIND)),
            }
        }
        Ok(objects)
    }

    async fn take<S: KindSpec>(&mut self, client: &Client) -> Result<Vec<Located<Object<S>>>> {
        let objects = self.stored::<S>(client).await?;
        let mut out = Vec::with_capacity(objects.len());
        for stored in objects {
            let object = stored.object();
            if stored.meta().deletion_timestamp.is_some() {
                self.leaving.insert((S::KIND, object.key()));
            }
            out.push(Located { origin: Origin { file: "the cluster".into(), document: 0, line: 0 }, value: object });
        }
        Ok(out)
    }

    /// The environments alone.
    pub(crate) async fn environments(client: &Client) -> Result<Vec<Environment>> {
        let found = Self::default().take(client).await?;
        Ok(found.into_iter().map(|environment| environment.value).collect())
    }

    /// Puts the documents of files in the place of the objects of their names; what the control part said of those
    /// stays.
    pub(crate) fn edit(&mut self, files: &Documents) {
        let mut edited = BTreeSet::new();
        lay_over(&mut self.documents.clusters, &files.clusters, &mut edited);
        lay_over(&mut self.documents.classes, &files.classes, &mut edited);
        lay_over(&mut self.documents.environments, &files.environments, &mut edited);
        lay_over(&mut self.documents.backends, &files.backends, &mut edited);
        lay_over(&mut self.documents.claims, &files.claims, &mut edited);
        lay_over(&mut self.documents.placements, &files.placements, &mut edited);
        self.edited.extend(edited);
    }

    /// The world, as the hub sees it.
    pub(crate) fn world(&self) -> World {
        let mut documents = self.documents.clone();
        let leaves = |kind: &'static str, key: String| self.leaving.contains(&(kind, key));
        documents.claims.retain(|claim| !leaves("CapabilityClaim", claim.value.key()));
        documents.placements.retain(|placement| !leaves("AppPlacement", placement.value.key()));
        let mut world = World::from_documents(&documents, Assume::Nothing);
        if let [only] = documents.clusters.as_slice()
            && only.value.name() == LOCAL
        {
            let mut facts = Cluster::of(&only.value);
            facts.everywhere = true;
            world.put_cluster_facts(LOCAL, facts);
        }
        for backend in documents.backends.iter().filter(|b| leaves("CapabilityBackend", b.value.key())) {
            let mut facts = Backend::of(&backend.value);
            if matches!(facts.spec.state, None | Some(BackendState::Active)) {
                facts.spec.state = Some(BackendState::Cordoned);
            }
            world.put_backend_facts(&backend.value, facts);
        }
        for (namespace, name) in &self.components {
            world.put_component(namespace, name);
        }
        world
    }

    /// Decides as the hub does, with what is bound and what was agreed to. Nothing is written.
    pub(crate) fn evaluate(&self, world: &World, empty_ok: bool, now_ms: u64) -> Evaluation {
        let (memory, consent) = self.before(world, empty_ok);
        world.evaluate(&memory, &consent, now_ms)
    }

    /// What is bound, and what was agreed to.
    pub(crate) fn before(&self, world: &World, empty_ok: bool) -> (Memory, Consent) {
        let memory = self.memory(world);
        let consent = Consent { empty_ok, ..self.consent(world, &memory) };
        (memory, consent)
    }

    /// What is bound: bindings say so, and statuses where there is no binding.
    fn memory(&self, world: &World) -> Memory {
        let mut memory = world.memory();
        for binding in &self.bindings {
            let spec = &binding.spec;
            for entry in &spec.entries {
                let key = format!("{}/{}", spec.namespace, entry.claim);
                memory.claims.insert(key, Bound { backend: entry.backend.clone(), challenger: None });
            }
            memory.bindings.insert(format!("{}@{}", spec.namespace, spec.cluster), spec.clone());
        }
        let released = self.leaving.iter().filter(|(kind, _)| *kind == "CapabilityClaim");
        memory.released = released.map(|(_, key)| key.clone()).collect();
        for released in &memory.released {
            memory.claims.remove(released);
        }
        memory
    }

    fn consent(&self, world: &World, memory: &Memory) -> Consent {
        let mut consent = Consent::default();
        let moving: BTreeSet<String> = self.moves().map(|(key, _, _)| key).collect();
        for (key, claim) in world.claims() {
            if moving.contains(key) {
                consent.held.insert(key.to_owned(), Hold::Moving);
                continue;
            }
            let class = world.environment_of(claim.namespace()).and_then(|e| world.class_of(e).ok());
            let Some(class) = class else { continue };
            let last = claim.status.as_ref().and_then(|status| status.history.first());
            if let Some(last) = last.filter(|last| last.outcome == MoveOutcome::RolledBack)
                && self.cause(class.name(), class.metadata.generation, &last.to).as_deref() == Some(&last.cause)
            {
                consent.held.insert(key.to_owned(), Hold::RolledBack { to: last.to.clone() });
            }
            let approved = class.status.as_ref().and_then(|s| s.approved.as_ref());
            let agreed = approved.filter(|plan| class.spec.approved_swap.as_ref() == Some(&plan.digest));
            let at = memory.claims.get(key).map(|bound| bound.backend.as_str());
            for way in agreed.into_iter().flat_map(|plan| &plan.moves).filter(|m| Some(m.from.as_str()) == at) {
                consent.moves.insert((key.to_owned(), way.from.clone(), way.to.clone()));
            }
        }
        consent
    }

    /// What asked for a move, as the hub names it; `None` when files change it.
    fn cause(&self, class: &str, generation: Option<i64>, to: &str) -> Option<String> {
        let changed = |kind, name: &str| self.edited.contains(&(kind, name.to_owned()));
        if changed("EnvironmentClass", class) || changed("CapabilityBackend", to) {
            return None;
        }
        let backend = self.documents.backends.iter().find(|backend| backend.value.name() == to);
        let of_backend = backend.and_then(|backend| backend.value.metadata.generation);
        Some(digest_of(&(class, generation, to, of_backend)).to_string())
    }

    /// Claims on the move, with their binding and entry's number.
    pub(crate) fn moves(&self) -> impl Iterator<Item = (String, &CapabilityBinding, usize)> {
        self.bindings.iter().flat_map(|binding| {
            let moving = binding.spec.entries.iter().enumerate().filter(|(_, entry)| entry.swap.is_some());
            moving.map(move |(index, entry)| (format!("{}/{}", binding.spec.namespace, entry.claim), binding, index))
        })
    }
}

/// The plans that would wait for a person, one for each class that asks for approval.
pub(crate) fn approvals(world: &World, evaluation: &Evaluation) -> Vec<Approval> {
    let environments: BTreeMap<String, String> = world
        .environments()
        .filter_map(|environment| Some((environment.key(), world.class_of(environment).ok()?.name().to_owned())))
        .collect();
    let mut waiting: BTreeMap<&String, Vec<WaitingMove<'_>>> = BTreeMap::new();
    for outcome in &evaluation.claims {
        let Some(Choice::Move { from, to, .. }) = outcome.decision.as_ref().map(|d| &d.choice) else { continue };
        if outcome.blocked == Some(Blocked::AwaitingApproval)
            && let Some(class) = environments.get(&outcome.environment)
        {
            waiting.entry(class).or_default().push((
                outcome.claim.as_str(),
                from.as_str(),
                to.as_str(),
                outcome.strategy,
            ));
        }
    }
    let approval = |(class, moves): (&String, Vec<WaitingMove<'_>>)| Approval {
        class: class.clone(),
        claims: moves.iter().map(|(claim, ..)| (*claim).to_owned()).collect(),
        digest: waiting_digest(class, &moves).to_string(),
    };
    waiting.into_iter().map(approval).collect()
}

fn lay_over<S: KindSpec>(
    objects: &mut Vec<Located<Object<S>>>,
    files: &[Located<Object<S>>],
    edited: &mut BTreeSet<(&'static str, String)>,
) {
    for file in files {
        let key = file.value.key();
        match objects.iter_mut().find(|object| object.value.key() == key) {
            Some(object) => {
                let same = serde_json::to_value(&object.value.spec).ok() == serde_json::to_value(&file.value.spec).ok();
                let mut value = file.value.clone();
                value.status = object.value.status.take();
                value.metadata.generation = object.value.metadata.generation;
                if !same {
                    edited.insert((S::KIND, key));
                }
                *object = Located { origin: file.origin.clone(), value };
            }
            None => {
                edited.insert((S::KIND, key));
                objects.push(file.clone());
            }
        }
    }
}

/// All objects of a kind, in every namespace; `None` where the cluster does not know the kind.
pub(crate) async fn list(client: &Client, resource: &ApiResource) -> Result<Option<Vec<DynamicObject>>> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), resource);
    let what = format!("reading the {} of the cluster", resource.plural);
    let mut found = Vec::new();
    let mut next: Option<String> = None;
    for _ in 0..MAX_PAGES {
        let mut params = ListParams::default().limit(PAGE);
        params.continue_token = next.take();
        let page = match call(api.list(&params)).await {
            Ok(page) => page,
            Err(failure) if failure.kind == FailureKind::NotFound => return Ok(None),
            Err(failure) => return Err(failed(&what, &failure)),
        };
        next = page.metadata.continue_.clone().filter(|token| !token.is_empty());
        found.extend(page.items);
        if next.is_none() {
            return Ok(Some(found));
        }
    }
    Err(CliError::new(
        "cluster-too-large",
        format!("{what}: there are more than {} of them", MAX_PAGES * PAGE as usize),
    ))
}

/// A class as it is stored.
pub(crate) async fn class(client: &Client, name: &str) -> Result<EnvironmentClass> {
    let api: Api<EnvironmentClass> = Api::all_with(client.clone(), &());
    match call(api.get(name)).await {
        Ok(class) => Ok(class),
        Err(failure) if failure.kind == FailureKind::NotFound => {
            Err(CliError::usage("unknown-class", format!("no EnvironmentClass is called {name}"))
                .hint("kubectl get environmentclasses"))
        }
        Err(failure) => Err(failed(&format!("reading EnvironmentClass {name}"), &failure)),
    }
}
