//! All objects together: from environments, classes, backends and claims to bindings.

use std::collections::{BTreeMap, BTreeSet};

use mecha_resources::kinds::{
    Access, AppPlacement, Approval, BindingEntry, CapabilityBackend, CapabilityBindingSpec, CapabilityClaim,
    CapabilityKind, CapabilityRule, ClaimReason, Documents, Environment, EnvironmentClass, MAX_ENTRIES, MemberCluster,
    Role, SwapStrategy, TaintEffect,
};
use serde::{Deserialize, Serialize};

use crate::backends::{
    Backend, BackendDecision, Challenger, Choice, ClaimRequest, Current, Hysteresis, decide_backend,
};
use crate::canonical::{Digest, digest_of};
use crate::class::{ClassProblem, connect_to, resolve_class, rule_for, strategy_for};
use crate::clusters::{BALANCE, Cluster, ClusterDecision, Gravity, PlacementRequest, Standing, decide_clusters};
use crate::inventory::Inventory;
use crate::plan::{Blocked, Consent, Hold};
use crate::record::Record;
use crate::render::{Tenant, document_digest, render};

/// What to take for true where nothing has been observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Assume {
    /// Nothing: what no probe and no agent has said is unknown. For the control part.
    Nothing,
    /// What the documents claim: for files on a machine where nothing probes them. Without any
    /// MemberCluster there is one called `local`, which meets every selector.
    Documents,
}

/// Name of the only cluster where none is described.
const LOCAL: &str = "local";

/// What has been bound so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Memory {
    /// By claim, as namespace/name.
    pub claims: BTreeMap<String, Bound>,
    /// Where apps run, by placement, as namespace/name.
    pub placements: BTreeMap<String, Placed>,
    /// The last binding, by namespace@cluster.
    pub bindings: BTreeMap<String, CapabilityBindingSpec>,
    /// Claims that were deleted explicitly; only these leave a binding.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub released: BTreeSet<String>,
}

/// What serves a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// The backend.
    pub backend: String,
    /// Who does better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub challenger: Option<Challenger>,
}

/// Where an app runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// Its clusters.
    pub standing: Vec<Standing>,
    /// Who does better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub challenger: Option<Challenger>,
}

/// Everything that decisions look at.
#[derive(Clone, Debug)]
pub struct World {
    assume: Assume,
    hysteresis: Hysteresis,
    clusters: Inventory<Cluster>,
    backends: Inventory<Backend>,
    offers: BTreeMap<String, CapabilityBackend>,
    classes: BTreeMap<String, EnvironmentClass>,
    environments: BTreeMap<String, Environment>,
    claims: BTreeMap<String, CapabilityClaim>,
    placements: BTreeMap<String, AppPlacement>,
    components: BTreeSet<(String, String)>,
    /// Keys of environments by their namespace; what is wrong in it is only slow.
    spaces: BTreeMap<String, String>,
}

/// What became of one claim.
#[derive(Clone, Debug, PartialEq)]
pub struct ClaimOutcome {
    /// The claim, as namespace/name.
    pub claim: String,
    /// What it asks for.
    pub kind: CapabilityKind,
    /// Its environment, as namespace/name; empty when it has none.
    pub environment: String,
    /// App ids that get it.
    pub scopes: Vec<String>,
    /// Features it asks for, with those of the class.
    pub required: Vec<String>,
    /// How it moves.
    pub strategy: SwapStrategy,
    /// What was decided; `None` where the question could not even be asked.
    pub decision: Option<BackendDecision>,
    /// What is wrong, for a condition.
    pub problem: Option<(ClaimReason, String)>,
    /// What keeps a move from beginning.
    pub blocked: Option<Blocked>,
    /// The backend that sidecars are to have now: the old one while a move is blocked.
    pub backend: Option<String>,
}

/// What became of one placement.
#[derive(Clone, Debug, PartialEq)]
pub struct PlacementOutcome {
    /// The placement, as namespace/name.
    pub placement: String,
    /// What was decided; `None` where its environment has no class.
    pub decision: Option<ClusterDecision>,
}

/// What became of everything.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// By claim.
    pub claims: Vec<ClaimOutcome>,
    /// By placement.
    pub placements: Vec<PlacementOutcome>,
    /// Environments without a class, with the reason in words.
    pub unresolved: Vec<(String, String)>,
    /// One for each environment and cluster that has something bound.
    pub bindings: Vec<CapabilityBindingSpec>,
    /// Digest of what was decided; the same decision has the same digest on a laptop and in the control part.
    pub digest: Digest,
    /// To be passed in next time.
    pub memory: Memory,
}

impl World {
    /// An empty world.
    #[must_use]
    pub fn new(assume: Assume) -> Self {
        Self {
            assume,
            hysteresis: Hysteresis::default(),
            clusters: Inventory::new(),
            backends: Inventory::new(),
            offers: BTreeMap::new(),
            classes: BTreeMap::new(),
            environments: BTreeMap::new(),
            claims: BTreeMap::new(),
            placements: BTreeMap::new(),
            components: BTreeSet::new(),
            spaces: BTreeMap::new(),
        }
    }

    /// The world that `documents` describe.
    #[must_use]
    pub fn from_documents(documents: &Documents, assume: Assume) -> Self {
        let mut world = Self::new(assume);
        for cluster in &documents.clusters {
            world.put_cluster(&cluster.value);
        }
        if world.clusters.is_empty() && assume == Assume::Documents {
            let attributes = [("name".to_owned(), LOCAL.to_owned())].into();
            let local =
                Cluster { accepted: true, available: Some(true), everywhere: true, attributes, ..Cluster::default() };
            world.clusters.insert(LOCAL, local);
        }
        for backend in &documents.backends {
            world.put_backend(&backend.value);
        }
        world.classes.extend(documents.classes.iter().map(|c| (c.value.name().to_owned(), c.value.clone())));
        for environment in &documents.environments {
            world.put_environment(environment.value.clone());
        }
        world.claims.extend(documents.claims.iter().map(|c| (c.value.key(), c.value.clone())));
        world.placements.extend(documents.placements.iter().map(|p| (p.value.key(), p.value.clone())));
        for other in documents.others.iter().filter(|o| o.value.kind == "Component") {
            let metadata = &other.value.document.expose()["metadata"];
            let text = |name: &str| metadata[name].as_str().unwrap_or_default().to_owned();
            world.components.insert((text("namespace"), text("name")));
        }
        world
    }

    /// Adds or replaces a cluster.
    pub fn put_cluster(&mut self, object: &MemberCluster) {
        let mut cluster = Cluster::of(object);
        if self.assume == Assume::Documents {
            cluster.available = cluster.available.or(Some(true));
        }
        self.clusters.insert(object.name(), cluster);
    }

    /// Adds or replaces a cluster with facts beyond its object.
    pub fn put_cluster_facts(&mut self, name: &str, cluster: Cluster) {
        self.clusters.insert(name, cluster);
    }

    /// Adds or replaces a backend.
    pub fn put_backend(&mut self, object: &CapabilityBackend) {
        let mut backend = Backend::of(object);
        if self.assume == Assume::Documents && backend.verified.is_none() {
            backend.verified = Some(object.spec.features.iter().cloned().collect());
        }
        self.put_backend_facts(object, backend);
    }

    /// Adds or replaces a backend with facts beyond its object.
    pub fn put_backend_facts(&mut self, object: &CapabilityBackend, facts: Backend) {
        self.backends.insert(object.name(), facts);
        self.offers.insert(object.name().to_owned(), object.clone());
    }

    /// Adds or replaces a class.
    pub fn put_class(&mut self, object: EnvironmentClass) {
        self.classes.insert(object.name().to_owned(), object);
    }

    /// Adds or replaces an environment.
    pub fn put_environment(&mut self, object: Environment) {
        let key = object.key();
        let first = self.spaces.entry(self.namespace_of(&object)).or_insert_with(|| key.clone());
        if key < *first {
            first.clone_from(&key);
        }
        self.environments.insert(key, object);
    }

    /// Adds or replaces a claim.
    pub fn put_claim(&mut self, object: CapabilityClaim) {
        self.claims.insert(object.key(), object);
    }

    /// Adds or replaces a placement.
    pub fn put_placement(&mut self, object: AppPlacement) {
        self.placements.insert(object.key(), object);
    }

    /// Adds a Component that somebody wrote by hand; claims of its name in its namespace give way to it.
    pub fn put_component(&mut self, namespace: &str, name: &str) {
        self.components.insert((namespace.to_owned(), name.to_owned()));
    }

    /// The class of an environment.
    ///
    /// # Errors
    /// None or several fit.
    pub fn class_of(&self, environment: &Environment) -> Result<&EnvironmentClass, ClassProblem> {
        resolve_class(environment, &self.classes)
    }

    /// The clusters of an environment: those of its status, else all that its class allows and no taint keeps away.
    #[must_use]
    pub fn clusters_for(&self, environment: &Environment) -> BTreeSet<String> {
        let given = environment.status.as_ref().map(|s| s.clusters.as_slice()).unwrap_or_default();
        if !given.is_empty() {
            return given.iter().map(|c| c.name.clone()).collect();
        }
        let Ok(class) = self.class_of(environment) else { return BTreeSet::new() };
        let allowed = |cluster: &Cluster| {
            let selected = class.spec.cluster_selector.as_ref().is_none_or(|s| s.matches(&cluster.labels));
            let kept_away = cluster.taints.iter().any(|taint| taint.effect != TaintEffect::PreferNoBindings);
            cluster.accepted && cluster.available != Some(false) && !kept_away && (selected || cluster.everywhere)
        };
        self.clusters.iter().filter(|(_, c)| allowed(c)).map(|(name, _)| name.to_owned()).collect()
    }

    /// When a better candidate is worth a move.
    pub fn set_hysteresis(&mut self, hysteresis: Hysteresis) {
        self.hysteresis = hysteresis;
    }

    /// The environments.
    pub fn environments(&self) -> impl Iterator<Item = &Environment> {
        self.environments.values()
    }

    /// The claims, as namespace/name.
    pub fn claims(&self) -> impl Iterator<Item = (&str, &CapabilityClaim)> {
        self.claims.iter().map(|(key, claim)| (key.as_str(), claim))
    }

    /// A backend object by name.
    #[must_use]
    pub fn backend(&self, name: &str) -> Option<&CapabilityBackend> {
        self.offers.get(name)
    }

    /// What the statuses of claims and placements say is bound; bindings are not among it.
    #[must_use]
    pub fn memory(&self) -> Memory {
        let mut memory = Memory::default();
        for (key, claim) in &self.claims {
            if let Some(status) = claim.status.as_ref().filter(|s| !s.backend.is_empty()) {
                memory.claims.insert(key.clone(), Bound { backend: status.backend.clone(), challenger: None });
            }
        }
        for (key, placement) in &self.placements {
            if let Some(status) = placement.status.as_ref().filter(|s| !s.decisions.is_empty()) {
                let standing = |d: &mecha_resources::kinds::PlacementDecision| Standing {
                    cluster: d.cluster.clone(),
                    replicas: d.replicas,
                };
                let standing = status.decisions.iter().map(standing).collect();
                memory.placements.insert(key.clone(), Placed { standing, challenger: None });
            }
        }
        memory
    }

    /// The namespace of an environment's claims.
    #[must_use]
    pub fn namespace_of(&self, environment: &Environment) -> String {
        let given = environment.status.as_ref().map(|s| s.connect_to.as_str()).filter(|name| !name.is_empty());
        given.map_or_else(|| connect_to(environment), str::to_owned)
    }

    /// The environment that a namespace belongs to.
    #[must_use]
    pub fn environment_of(&self, namespace: &str) -> Option<&Environment> {
        let owns = |e: &&Environment| self.namespace_of(e) == namespace;
        let known = self.spaces.get(namespace).and_then(|key| self.environments.get(key)).filter(owns);
        let owner = known.or_else(|| self.environments.values().find(owns));
        if owner.is_some() || self.assume == Assume::Nothing {
            return owner;
        }
        // People who write files name the environment, or have just one and name nothing.
        let mut named = self.environments.values().filter(|e| e.name() == namespace);
        if let (Some(one), None) = (named.next(), named.next()) {
            return Some(one);
        }
        let mut beside = self.environments.values().filter(|e| e.namespace() == namespace);
        match (beside.next(), beside.next()) {
            (Some(one), None) => Some(one),
            _ => None,
        }
    }

    /// Decides everything. `now_ms` is the time on the clock of [`Challenger::since_ms`].
    #[must_use]
    pub fn evaluate(&self, before: &Memory, consent: &Consent, now_ms: u64) -> Evaluation {
        let mut memory = Memory { bindings: before.bindings.clone(), ..Memory::default() };
        let mut unresolved = Vec::new();
        for (key, environment) in &self.environments {
            if let Err(problem) = resolve_class(environment, &self.classes) {
                unresolved.push((key.clone(), problem.to_string()));
            }
        }
        let placements = self.placed(before, &mut memory, now_ms);
        let mut backends = self.backends.clone();
        self.count_bound(before, &mut backends);
        let mut claims = Vec::with_capacity(self.claims.len());
        let mut targets_of = BTreeMap::new();
        for (key, claim) in &self.claims {
            let targets = self.targets(claim, &placements);
            let outcome = self.claim(key, claim, &targets, before, &mut backends, consent, now_ms);
            targets_of.insert(key.as_str(), targets);
            claims.push(outcome);
        }
        let bindings = self.bindings(&mut claims, &targets_of, before);
        for outcome in &claims {
            let challenger = outcome.decision.as_ref().and_then(|d| d.challenger.clone());
            if let Some(backend) = &outcome.backend {
                memory.claims.insert(outcome.claim.clone(), Bound { backend: backend.clone(), challenger });
            }
        }
        // What nobody sees stays bound.
        for (key, bound) in &before.claims {
            if !self.claims.contains_key(key) && !before.released.contains(key) {
                memory.claims.insert(key.clone(), bound.clone());
            }
        }
        for binding in &bindings {
            memory.bindings.insert(format!("{}@{}", binding.namespace, binding.cluster), binding.clone());
        }
        let digest = digest_of(&bindings.iter().map(|b| (&b.environment, &b.cluster, &b.digest)).collect::<Vec<_>>());
        Evaluation { claims, placements, unresolved, bindings, digest, memory }
    }

    /// Claims that are bound but not counted in a status count too.
    fn count_bound(&self, before: &Memory, backends: &mut Inventory<Backend>) {
        let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
        for bound in before.claims.values() {
            *counts.entry(&bound.backend).or_default() += 1;
        }
        for (name, count) in counts {
            if let Some(backend) = self.backends.get(name).filter(|b| b.bound < count) {
                backends.insert(name, Backend { bound: count, ..backend.clone() });
            }
        }
    }

    fn placed(&self, before: &Memory, memory: &mut Memory, now_ms: u64) -> Vec<PlacementOutcome> {
        let counted = self.counted(before);
        let clusters = counted.as_ref().unwrap_or(&self.clusters);
        self.placements.iter().map(|(k, p)| self.place(k, p, clusters, before, memory, now_ms)).collect()
    }

    /// The clusters with the number of apps on each, where a placement asks for balance.
    fn counted(&self, before: &Memory) -> Option<Inventory<Cluster>> {
        let asks = |placement: &AppPlacement| placement.spec.hints.iter().any(|hint| hint.prefer == BALANCE);
        self.placements.values().any(asks).then(|| {
            let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
            for standing in before.placements.values().flat_map(|placed| &placed.standing) {
                *counts.entry(&standing.cluster).or_default() += 1;
            }
            let mut clusters = self.clusters.clone();
            for (name, placements) in counts {
                if let Some(cluster) = self.clusters.get(name) {
                    clusters.insert(name, Cluster { placements, ..cluster.clone() });
                }
            }
            clusters
        })
    }

    fn place(
        &self,
        key: &str,
        placement: &AppPlacement,
        clusters: &Inventory<Cluster>,
        before: &Memory,
        memory: &mut Memory,
        now_ms: u64,
    ) -> PlacementOutcome {
        let class = self.environment_of(placement.namespace()).and_then(|e| resolve_class(e, &self.classes).ok());
        let placed = before.placements.get(key).cloned().unwrap_or_default();
        let Some(class) = class else {
            memory.placements.insert(key.to_owned(), placed);
            return PlacementOutcome { placement: key.to_owned(), decision: None };
        };
        let app = &placement.spec.app_id;
        let mine = self.claims.iter().filter(|(_, c)| {
            c.namespace() == placement.namespace() && (c.spec.scopes.is_empty() || c.spec.scopes.contains(app))
        });
        let used: BTreeSet<&str> =
            mine.filter_map(|(key, _)| before.claims.get(key)).map(|bound| bound.backend.as_str()).collect();
        let gravity = used.into_iter().filter_map(|name| {
            let backend = self.backends.get(name)?;
            let topology = backend.spec.topology.clone().unwrap_or_default();
            Some(Gravity {
                backend: name.to_owned(),
                region: topology.region,
                reachable_from: topology.reachable_from,
                unreachable: backend.unreachable.clone(),
                latency_us: backend.latency_us.clone(),
            })
        });
        let request = PlacementRequest {
            spec: placement.spec.clone(),
            class_selector: class.spec.cluster_selector.clone(),
            apis: BTreeSet::new(),
            backends: gravity.collect(),
            current: placed.standing,
            challenger: placed.challenger,
            hysteresis: self.hysteresis,
        };
        let decision = decide_clusters(&request, clusters, now_ms);
        let standing = |c: &crate::clusters::Chosen| Standing { cluster: c.cluster.clone(), replicas: c.replicas };
        let placed = Placed {
            standing: decision.selected.iter().map(standing).collect(),
            challenger: decision.challenger.clone(),
        };
        memory.placements.insert(key.to_owned(), placed);
        PlacementOutcome { placement: key.to_owned(), decision: Some(decision) }
    }

    /// Clusters that need a claim: where its apps are placed, else all of its environment; none when that is not known.
    fn targets(&self, claim: &CapabilityClaim, placements: &[PlacementOutcome]) -> BTreeSet<String> {
        let mut targets = BTreeSet::new();
        for outcome in placements {
            let Some(placement) = self.placements.get(&outcome.placement) else { continue };
            let scoped = claim.spec.scopes.is_empty() || claim.spec.scopes.contains(&placement.spec.app_id);
            if placement.namespace() == claim.namespace() && scoped {
                let Some(decision) = &outcome.decision else { return BTreeSet::new() };
                targets.extend(decision.selected.iter().map(|c| c.cluster.clone()));
            }
        }
        if targets.is_empty()
            && let Some(environment) = self.environment_of(claim.namespace())
        {
            targets = self.clusters_for(environment);
        }
        targets
    }

    #[allow(clippy::too_many_arguments, reason = "one step of evaluate, cut out for its length")]
    fn claim(
        &self,
        key: &str,
        claim: &CapabilityClaim,
        targets: &BTreeSet<String>,
        before: &Memory,
        backends: &mut Inventory<Backend>,
        consent: &Consent,
        now_ms: u64,
    ) -> ClaimOutcome {
        let bound = before.claims.get(key);
        let mut outcome = ClaimOutcome {
            claim: key.to_owned(),
            kind: claim.spec.kind,
            environment: String::new(),
            scopes: claim.spec.scopes.clone(),
            required: claim.spec.features.clone(),
            strategy: SwapStrategy::Immediate,
            decision: None,
            problem: None,
            blocked: None,
            backend: bound.map(|b| b.backend.clone()),
        };
        let Some(environment) = self.environment_of(claim.namespace()) else {
            let message = format!("namespace {} belongs to no Environment; see its CONNECT-TO", claim.namespace());
            outcome.problem = Some((ClaimReason::NoEnvironment, message));
            return outcome;
        };
        outcome.environment = environment.key();
        let class = match resolve_class(environment, &self.classes) {
            Ok(class) => class,
            Err(problem) => {
                outcome.problem = Some((ClaimReason::ClassUnresolved, problem.to_string()));
                return outcome;
            }
        };
        let Some(rule) = rule_for(class, claim.spec.kind, claim.name()) else {
            let message = format!(
                "EnvironmentClass {} has no rule for kind {} and name {}; add one to spec.capabilities",
                class.name(),
                claim.spec.kind,
                claim.name()
            );
            outcome.problem = Some((ClaimReason::NoRule, message));
            return outcome;
        };
        let namespaces = [claim.namespace(), self.namespace_of(environment).as_str(), ""].map(str::to_owned);
        if namespaces.into_iter().any(|ns| self.components.contains(&(ns, claim.name().to_owned()))) {
            let message = format!("a Component called {} is there already and wins; rename one of them", claim.name());
            outcome.problem = Some((ClaimReason::Shadowed, message));
            outcome.backend = None;
            return outcome;
        }
        outcome.strategy = strategy_for(rule);
        let request = self.request(claim, rule, targets, bound);
        outcome.required = in_order(claim.spec.kind, &request.features);
        let decision = decide_backend(&request, backends, &self.clusters, now_ms);
        match &decision.choice {
            Choice::Bind { to } => outcome.backend = Some(to.clone()),
            Choice::Move { from, to, .. } => {
                outcome.blocked = blocked(claim, rule, from, to, consent);
                outcome.backend = Some(if outcome.blocked.is_some() { from.clone() } else { to.clone() });
            }
            Choice::Stay { .. } => {}
            Choice::Pending => {
                let tightest = decision.explanation.tightest.as_ref();
                let why = tightest.map_or_else(|| "there is no CapabilityBackend".to_owned(), |t| t.message.clone());
                outcome.problem = Some((ClaimReason::NoCandidate, format!("no backend would do: {why}")));
            }
        }
        // A place that is taken now is not free for the next claim.
        if let (Choice::Bind { to } | Choice::Move { to, .. }, None) = (&decision.choice, &outcome.blocked)
            && let Some(backend) = backends.get(to).filter(|b| b.spec.capacity.is_some())
        {
            let backend = Backend { bound: backend.bound.saturating_add(1), ..backend.clone() };
            backends.insert(to.clone(), backend);
        }
        outcome.decision = Some(decision);
        outcome
    }

    /// What a claim asks for, with what its class adds.
    fn request(
        &self,
        claim: &CapabilityClaim,
        rule: &CapabilityRule,
        targets: &BTreeSet<String>,
        bound: Option<&Bound>,
    ) -> ClaimRequest {
        ClaimRequest {
            kind: claim.spec.kind,
            selector: rule.backend_selector.clone(),
            features: claim.spec.features.iter().chain(&rule.require).cloned().collect(),
            constraints: claim.spec.constraints.clone(),
            hints: claim.spec.hints.clone(),
            tenancy: rule.tenancy,
            targets: targets.clone(),
            current: bound.map(|b| Current { backend: b.backend.clone(), challenger: b.challenger.clone() }),
            hysteresis: self.hysteresis,
        }
    }

    /// The decision of [`Self::evaluate`] about one claim with everything that it looked at, to be replayed elsewhere;
    /// `None` where there was nothing to decide.
    #[must_use]
    pub fn record(&self, wanted: &str, before: &Memory, consent: &Consent, now_ms: u64) -> Option<Record> {
        let placements = self.placed(before, &mut Memory::default(), now_ms);
        let mut backends = self.backends.clone();
        self.count_bound(before, &mut backends);
        // Those that come before it take places.
        for (key, claim) in self.claims.iter().take_while(|(key, _)| key.as_str() < wanted) {
            let targets = self.targets(claim, &placements);
            let _ = self.claim(key, claim, &targets, before, &mut backends, consent, now_ms);
        }
        let claim = self.claims.get(wanted)?;
        let targets = self.targets(claim, &placements);
        let outcome = self.claim(wanted, claim, &targets, before, &mut backends.clone(), consent, now_ms);
        outcome.decision?;
        let class = resolve_class(self.environment_of(claim.namespace())?, &self.classes).ok()?;
        let rule = rule_for(class, claim.spec.kind, claim.name())?;
        let request = self.request(claim, rule, &targets, before.claims.get(wanted));
        Some(Record::of_backend(request, backends, self.clusters.clone(), now_ms).0)
    }

    /// What sidecars get. A claim whose document cannot be made keeps the one it has.
    fn bindings(
        &self,
        claims: &mut [ClaimOutcome],
        targets_of: &BTreeMap<&str, BTreeSet<String>>,
        before: &Memory,
    ) -> Vec<CapabilityBindingSpec> {
        let mut bindings: Vec<CapabilityBindingSpec> = Vec::new();
        // Claims without an entry in one cluster, which may have one in another.
        let mut unmade: Vec<usize> = Vec::new();
        for (key, environment) in &self.environments {
            let namespace = self.namespace_of(environment);
            let mine: Vec<usize> =
                claims.iter().enumerate().filter(|(_, c)| c.environment == *key).map(|(i, _)| i).collect();
            let held = before.bindings.values().filter(|b| b.environment == *key).map(|b| b.cluster.clone());
            let needed = mine.iter().filter_map(|i| targets_of.get(claims[*i].claim.as_str())).flatten().cloned();
            let clusters: BTreeSet<String> = needed.chain(held).collect();
            for cluster in clusters {
                let last = before.bindings.get(&format!("{namespace}@{cluster}"));
                let next = last.map_or(1, |b| b.revision.saturating_add(1));
                let tenant = Tenant { environment: key, namespace: &namespace, cluster: &cluster };
                let mut entries: Vec<(BindingEntry, Digest)> = Vec::new();
                for index in &mine {
                    let outcome = &mut claims[*index];
                    let had = |name: &str| last.and_then(|b| b.entries.iter().find(|e| e.claim == name));
                    let Some(claim) = self.claims.get(&outcome.claim) else { continue };
                    let targets = targets_of.get(outcome.claim.as_str()).filter(|targets| !targets.is_empty());
                    let previous = had(claim.name());
                    // Both sides of a move stay as they are until it has ended.
                    if let Some(moving) = previous.filter(|p| p.swap.is_some()) {
                        entries.push(kept(moving));
                        continue;
                    }
                    let Some(backend) = outcome.backend.clone() else { continue };
                    match targets {
                        Some(targets) if targets.contains(&cluster) => {}
                        Some(_) => continue,
                        // Where it is to be is not known, which is no reason to take it away.
                        None => {
                            entries.extend(previous.map(kept));
                            continue;
                        }
                    }
                    match self.entry(claim, &backend, tenant, previous, next) {
                        Ok(Some(entry)) => entries.push(entry),
                        Ok(None) => entries.extend(previous.map(kept)),
                        Err(message) => {
                            outcome.blocked = Some(Blocked::TemplateInvalid(message));
                            entries.extend(previous.map(kept));
                            match previous {
                                Some(previous) => outcome.backend = Some(previous.backend.clone()),
                                None => unmade.push(*index),
                            }
                        }
                    }
                }
                // Claims that are not among the inputs: absence is not deletion.
                for old in last.map(|b| b.entries.as_slice()).unwrap_or_default() {
                    let gone = |ns: &str| {
                        let key = format!("{ns}/{}", old.claim);
                        !self.claims.contains_key(&key) && !before.released.contains(&key)
                    };
                    let known = mine.iter().any(|i| claims[*i].claim.rsplit('/').next() == Some(old.claim.as_str()));
                    let spaces = [namespace.as_str(), environment.name(), environment.namespace()];
                    if !known && spaces.into_iter().all(gone) {
                        entries.push(kept(old));
                    }
                }
                entries.sort_by(|a, b| a.0.claim.cmp(&b.0.claim));
                if entries.len() > MAX_ENTRIES {
                    // Those that are bound stay; of the others the first by name find room.
                    let had = |e: &BindingEntry| last.is_some_and(|b| b.entries.iter().any(|o| o.claim == e.claim));
                    entries.sort_by(|a, b| (!had(&a.0), &a.0.claim).cmp(&(!had(&b.0), &b.0.claim)));
                    let left_out: BTreeSet<String> =
                        entries.split_off(MAX_ENTRIES).into_iter().map(|(entry, _)| entry.claim).collect();
                    entries.sort_by(|a, b| a.0.claim.cmp(&b.0.claim));
                    for index in &mine {
                        let outcome = &mut claims[*index];
                        if outcome.claim.rsplit('/').next().is_some_and(|name| left_out.contains(name)) {
                            let message = format!(
                                "environment {key} has {MAX_ENTRIES} claims in cluster {cluster}, which is the limit; \
                                 delete one, or put this claim into another environment"
                            );
                            outcome.problem = Some((ClaimReason::NoCandidate, message));
                            unmade.push(*index);
                        }
                    }
                }
                if entries.is_empty() && last.is_none() {
                    continue;
                }
                let digest = decided_digest(&entries).to_string();
                let entries: Vec<_> = entries.into_iter().map(|(entry, _)| entry).collect();
                let revision = match last {
                    Some(last) if last.entries == entries => last.revision,
                    _ => next,
                };
                bindings.push(CapabilityBindingSpec {
                    environment: key.clone(),
                    namespace: namespace.clone(),
                    cluster,
                    revision,
                    leader_epoch: last.map_or(0, |b| b.leader_epoch),
                    digest,
                    entries,
                });
            }
        }
        for index in unmade {
            let outcome = &mut claims[index];
            let name = outcome.claim.rsplit('/').next().unwrap_or_default();
            let mut mine = bindings.iter().filter(|binding| binding.environment == outcome.environment);
            if !mine.any(|binding| binding.entries.iter().any(|entry| entry.claim == name)) {
                outcome.backend = None;
            }
        }
        bindings
    }

    /// The entry for a claim; `None` when its backend is not among the inputs.
    fn entry(
        &self,
        claim: &CapabilityClaim,
        backend: &str,
        tenant: Tenant<'_>,
        previous: Option<&BindingEntry>,
        next: i64,
    ) -> Result<Option<(BindingEntry, Digest)>, String> {
        let Some(offer) = self.offers.get(backend) else { return Ok(None) };
        let at =
            |revision| render(claim, offer, tenant, revision).map_err(|e| format!("CapabilityBackend {backend}: {e}"));
        let mut revision = previous.map_or(next, |p| p.revision);
        let mut component = at(revision)?;
        if previous.is_some_and(|p| p.document != component.to_json()) {
            revision = next;
            component = at(revision)?;
        }
        let entry = BindingEntry {
            claim: claim.name().to_owned(),
            backend: backend.to_owned(),
            role: Role::Active,
            fencing_epoch: previous.map_or(0, |p| p.fencing_epoch),
            access: Access::ReadWrite,
            revision,
            swap: previous.and_then(|p| p.swap.clone()),
            document: component.to_json(),
            previous_document: None,
        };
        Ok(Some((entry, component.digest())))
    }
}

fn kept(entry: &BindingEntry) -> (BindingEntry, Digest) {
    (entry.clone(), document_digest(&entry.document))
}

/// The digest of a binding with these entries, in the order of their claims: of what was decided, at no revision.
#[must_use]
pub fn entries_digest(entries: &[BindingEntry]) -> Digest {
    let entries: Vec<_> = entries.iter().map(kept).collect();
    decided_digest(&entries)
}

fn decided_digest(entries: &[(BindingEntry, Digest)]) -> Digest {
    let decided: Vec<_> = entries.iter().map(|(e, d)| (&e.claim, &e.backend, e.role, e.access, d)).collect();
    digest_of(&decided)
}

/// Features in the order of their closed list.
fn in_order(kind: CapabilityKind, features: &BTreeSet<String>) -> Vec<String> {
    kind.features().iter().filter(|f| features.contains(**f)).map(|f| (*f).to_owned()).collect()
}

/// What keeps a move from beginning.
fn blocked(claim: &CapabilityClaim, rule: &CapabilityRule, from: &str, to: &str, consent: &Consent) -> Option<Blocked> {
    match consent.held.get(&claim.key()) {
        Some(Hold::Moving) => return Some(Blocked::Moving),
        Some(Hold::RolledBack { to: held }) if held == to => return Some(Blocked::RolledBack),
        _ => {}
    }
    let swap = rule.swap.as_ref();
    let empty_ok = consent.empty_ok || swap.is_some_and(|s| s.empty_ok);
    if claim.spec.kind == CapabilityKind::State && !empty_ok {
        return Some(Blocked::EmptyNotAllowed);
    }
    let manual = swap.and_then(|s| s.approval) == Some(Approval::Manual);
    let approved = consent.all || consent.moves.contains(&(claim.key(), from.to_owned(), to.to_owned()));
    (manual && !approved).then_some(Blocked::AwaitingApproval)
}
