//! From Component documents to running components: resolve, prepare, build, publish.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mecha_components_api::{
    BuildCx, Clock, ConfigErrors, Error, Lookup, Metadata, OutputBinding, Prepared, Registration, Registry,
};
use mecha_resources::{Component, ResolveCx, SecretQuery, resolve, unique_names};

use crate::core::Core;
use crate::cx::{Cx, Front};
use crate::keys::KeyScheme;
use crate::metrics::OpBlock;
use crate::ops::{Operation, Ops};
use crate::policies::{ComponentKind, Guarded, Policies};
use crate::pubsub::scopes::TopicScopes;
use crate::store::{Block, Degraded, Found, Handle, Info, Snapshot, TopicRules};

/// First pause before a failed component is tried again (strict mode).
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// Longest pause between such tries.
const RETRY_MOST: Duration = Duration::from_secs(30);

const STATE_KEYS: &[&str] = &[
    "keyPrefix",
    "actorStateStore",
    "outboxPublishPubsub",
    "outboxPublishTopic",
    "outboxPubsub",
    "outboxDiscardWhenMissingState",
    "primaryEncryptionKey",
    "secondaryEncryptionKey",
];
/// Features of a state store that are not built: automatic encryption and the outbox.
const UNBUILT_STATE_KEYS: &[&str] =
    &["primaryEncryptionKey", "secondaryEncryptionKey", "outboxPublishPubsub", "outboxPublishTopic"];
const PUBSUB_KEYS: &[&str] =
    &["consumerID", "allowedTopics", "publishingScopes", "subscriptionScopes", "protectedTopics"];
const BINDING_KEYS: &[&str] = &["direction", "route"];
const LOCK_KEYS: &[&str] = &["keyPrefix"];

/// Reads one environment variable.
pub type EnvLookup = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// What loading needs besides the runtime itself.
pub struct LoaderCx {
    /// Strict mode: degrade instead of failing.
    pub strict: bool,
    /// Secret scopes hold for `secretKeyRef` too.
    pub scoped_secrets: bool,
    /// Components are told to take their safer defaults.
    pub strict_components: bool,
    /// Folder for data of this user on this machine.
    pub home: PathBuf,
    /// Wall clock.
    pub clock: Arc<dyn Clock>,
    /// Environment, for `envRef`.
    pub env: EnvLookup,
    /// Secret store of documents that name none: `kubernetes` there, else empty.
    pub default_secret_store: String,
    /// `type[/version]` entries that are refused.
    pub denied: Vec<String>,
    /// Says of a type that this build leaves out which feature it needs.
    pub left_out: fn(&str) -> Option<&'static str>,
}

impl fmt::Debug for LoaderCx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoaderCx").field("strict", &self.strict).field("home", &self.home).finish_non_exhaustive()
    }
}

/// Loads components into a runtime.
pub struct Loader {
    core: Arc<Core>,
    registry: Registry,
    policies: Arc<Policies>,
    cx: LoaderCx,
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader").field("cx", &self.cx).finish_non_exhaustive()
    }
}

/// A component that failed and may not be ignored.
#[derive(Debug)]
pub struct LoadFailure(String);

impl fmt::Display for LoadFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LoadFailure {}

/// Why one component does not run.
#[derive(Debug)]
struct Failure {
    /// Tag of the log line.
    tag: &'static str,
    /// Label of the failure metric.
    reason: &'static str,
    cause: String,
    /// Another try cannot help until the document changes.
    lasting: bool,
}

impl Failure {
    fn creation(cause: String) -> Self {
        Self { tag: "CREATE_COMPONENT_FAILURE", reason: "creation", cause, lasting: true }
    }

    fn init(component: &Component, cause: impl fmt::Display, lasting: bool) -> Self {
        let cause = format!("initialization error occurred for {}: {cause}", component.log_name());
        Self { tag: "INIT_COMPONENT_FAILURE", reason: "init", cause, lasting }
    }
}

impl Loader {
    /// A loader for `core`.
    #[must_use]
    pub fn new(core: Arc<Core>, registry: Registry, policies: Arc<Policies>, cx: LoaderCx) -> Self {
        Self { core, registry, policies, cx }
    }

    /// The registered components.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Loads the components of a start: secret stores first; a component waits for the store its
    /// secrets come from, without holding the others up.
    ///
    /// # Errors
    /// Bare mode: duplicate names, or a component that failed without `ignoreErrors`.
    pub async fn load_all(self: &Arc<Self>, documents: Vec<Component>) -> Result<(), LoadFailure> {
        let mut components: Vec<Component> = documents.into_iter().filter(|c| self.permitted(c)).collect();
        if let Err(duplicates) = unique_names(&components) {
            if !self.cx.strict {
                return Err(LoadFailure(duplicates.to_string()));
            }
            tracing::error!(target: "dapr.runtime", "{duplicates}; the first one of each name is used");
            let mut seen = std::collections::HashSet::new();
            components.retain(|c| seen.insert(c.meta.name.clone()));
        }
        // Stable: within one block the order of the files stays.
        components.sort_by_key(|c| block(&c.kind).map_or(1, |b| usize::from(b != Block::Secret)));
        let mut waiting: VecDeque<Component> = components.into();
        let mut idle_rounds = 0;
        while let Some(component) = waiting.pop_front() {
            if let Some(store) = self.missing_store(&component) {
                idle_rounds += 1;
                waiting.push_back(component);
                if idle_rounds >= waiting.len() {
                    self.park(waiting, &store).await;
                    break;
                }
                continue;
            }
            idle_rounds = 0;
            self.load(component).await?;
        }
        Ok(())
    }

    /// Loads one component, or reports why not.
    async fn load(self: &Arc<Self>, component: Component) -> Result<(), LoadFailure> {
        let name = component.log_name();
        let Err(failure) = self.init(&component).await else { return Ok(()) };
        let text = format!("Failed to init component {name}: [{}]: {}", failure.tag, failure.cause);
        tracing::error!(target: "dapr.runtime.processor", "{text}");
        self.core.metrics.component_failed(&component.kind, &component.meta.name, failure.reason);
        let processed =
            format!("process component {} error: [{}]: {}", component.meta.name, failure.tag, failure.cause);
        if self.cx.strict {
            self.degrade(&component, &failure).await;
            if !failure.lasting {
                self.clone().try_again(component);
            }
            return Ok(());
        }
        if component.ignore_errors {
            tracing::error!(target: "dapr.runtime.processor", "Ignoring error processing component: {processed}");
            return Ok(());
        }
        tracing::warn!(
            target: "dapr.runtime.processor",
            "Error processing component, daprd will exit gracefully: {processed}"
        );
        Err(LoadFailure(processed))
    }

    /// Keeps trying a failed component in the background until it runs or the runtime stops.
    fn try_again(self: Arc<Self>, component: Component) {
        let tasks = self.core.tasks.clone();
        tasks.spawn("component retry", async move {
            let mut pause = RETRY_FIRST;
            loop {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = self.core.tasks.stopping().cancelled() => return,
                }
                pause = (pause * 2).min(RETRY_MOST);
                match self.init(&component).await {
                    Ok(()) => return,
                    Err(failure) => {
                        tracing::warn!(
                            target: "dapr.runtime.processor",
                            "component {} is still not ready, next try in {pause:?}: {}",
                            component.log_name(),
                            failure.cause
                        );
                        self.core.metrics.component_failed(&component.kind, &component.meta.name, failure.reason);
                        self.degrade(&component, &failure).await;
                    }
                }
            }
        });
    }

    async fn degrade(&self, component: &Component, failure: &Failure) {
        let Some(block) = block(&component.kind) else { return };
        let degraded = Degraded { info: info(component, Vec::new()), block, cause: failure.cause.as_str().into() };
        self.core.store.edit(|s| s.degraded.insert(component.meta.name.as_str().into(), degraded)).await;
    }

    /// Components whose secret store does not run: they start when it does.
    async fn park(self: &Arc<Self>, components: VecDeque<Component>, store: &str) {
        for component in components {
            let store = self.missing_store(&component).unwrap_or_else(|| store.to_owned());
            let name = component.meta.name.clone();
            tracing::warn!(
                target: "dapr.runtime.processor",
                "Component {name} references a secret store that isn't loaded: {store}"
            );
            let cause = format!("it waits for secret store '{store}', which is not loaded");
            let failure = Failure { tag: "INIT_COMPONENT_FAILURE", reason: "init", cause, lasting: false };
            self.degrade(&component, &failure).await;
            let me = self.clone();
            self.core.tasks.spawn("component waiting for secrets", async move {
                let mut pause = RETRY_FIRST;
                while me.missing_store(&component).is_some() {
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = me.core.tasks.stopping().cancelled() => return,
                    }
                    pause = (pause * 2).min(RETRY_MOST);
                }
                if me.load(component).await.is_err() {
                    me.core.request_failure();
                }
            });
        }
    }

    fn permitted(&self, component: &Component) -> bool {
        let version = if component.version.is_empty() { "v1" } else { &component.version };
        let refused = self.cx.denied.iter().any(|rule| match rule.split_once('/') {
            Some((kind, v)) => kind.eq_ignore_ascii_case(&component.kind) && v.eq_ignore_ascii_case(version),
            None => rule.eq_ignore_ascii_case(&component.kind),
        });
        if refused {
            tracing::warn!(
                target: "dapr.runtime",
                "component '{}' cannot be loaded because components of type '{}' are not allowed",
                component.meta.name,
                component.log_name()
            );
        }
        !refused
    }

    fn missing_store(&self, component: &Component) -> Option<String> {
        let store = component.waits_for(&self.cx.default_secret_store)?;
        (!matches!(self.core.store.secrets(store), Found::Running(_))).then(|| store.to_owned())
    }

    async fn init(&self, component: &Component) -> Result<(), Failure> {
        let block =
            block(&component.kind).ok_or_else(|| Failure::creation(format!("incorrect type {}", component.kind)))?;
        let md = self.metadata(component).await?;
        match block {
            Block::State => self.init_state(component, &md).await,
            Block::PubSub => self.init_pubsub(component, md).await,
            Block::Secret => self.init_secrets(component, &md).await,
            Block::Configuration => self.init_configuration(component, &md).await,
            Block::Lock => self.init_lock(component, &md).await,
            Block::Binding => self.init_binding(component, &md).await,
        }?;
        self.core.metrics.component_loaded();
        self.core.metrics.component_initialised(&component.kind);
        tracing::info!(target: "dapr.runtime.processor", "Component loaded: {}", component.log_name());
        Ok(())
    }

    /// The document's metadata with secrets, variables and templates filled in.
    async fn metadata(&self, component: &Component) -> Result<Metadata, Failure> {
        let mut secrets: HashMap<(String, String, String), String> = HashMap::new();
        let cx = Cx::new(Front::Http);
        for query in component.secret_refs(&self.cx.default_secret_store) {
            let SecretQuery { store, name, key } = query;
            let Found::Running(h) = self.core.store.secrets(store) else { continue };
            if self.cx.scoped_secrets && !self.core.secrets.allows(store, name) {
                tracing::error!(
                    target: "dapr.runtime.processor",
                    "Error getting secret: access denied by policy to get \"{name}\" from \"{store}\""
                );
                continue;
            }
            let none = Metadata::new();
            match h.ops.run(&cx, Operation::Get, true, || h.inner.get(name, &none)).await {
                Ok(found) => {
                    // A store with one value per secret names it like the secret.
                    if let Some(value) = found.get(key).or_else(|| found.get(name)) {
                        secrets.insert((store.into(), name.into(), key.into()), value.expose().to_owned());
                    }
                }
                Err(e) => tracing::error!(target: "dapr.runtime.processor", "Error getting secret: {e}"),
            }
        }
        let env_keys = (self.cx.env)("DAPR_ENV_KEYS");
        let me = &self.core.me;
        let resolved = resolve(
            component,
            &ResolveCx {
                app_id: &me.app_id,
                namespace: &me.namespace,
                pod_name: (!me.pod_name.is_empty()).then_some(me.pod_name.as_ref()),
                env_keys: env_keys.as_deref(),
                default_store: &self.cx.default_secret_store,
                env: &*self.cx.env,
                secrets: &|q| secrets.get(&(q.store.into(), q.name.into(), q.key.into())).cloned(),
            },
        )
        .map_err(|e| Failure::init(component, e, true))?;
        for note in &resolved.notes {
            tracing::warn!(target: "dapr.runtime.processor", "component {}: {note}", component.meta.name);
        }
        Ok(resolved.values.into_iter().collect())
    }

    fn build_cx(&self, component: &Component) -> BuildCx {
        BuildCx {
            name: component.meta.name.as_str().into(),
            app_id: self.core.me.app_id.clone(),
            namespace: self.core.me.namespace.clone(),
            strict: self.cx.strict_components,
            home: self.cx.home.clone(),
            clock: self.cx.clock.clone(),
        }
    }

    /// Looks the type up and reads the metadata.
    fn prepare<C: ?Sized + 'static>(
        &self,
        list: &[Registration<C>],
        what: &str,
        component: &Component,
        md: &Metadata,
        common: &[&'static str],
    ) -> Result<Box<dyn Prepared<C>>, Failure> {
        let version = if component.version.is_empty() { "v1" } else { &component.version };
        let reg = match Registry::find(list, &component.kind, &component.version) {
            Lookup::Found(reg) => reg,
            Lookup::WrongVersion(reg) => {
                return Err(Failure::creation(format!(
                    "couldn't find {what} {}/{version} (known versions: {})",
                    component.kind,
                    reg.versions.join(", ")
                )));
            }
            Lookup::Unknown => {
                let hint = match (self.cx.left_out)(&component.kind) {
                    Some(feature) => format!(" (this build was made without the feature '{feature}')"),
                    None => {
                        let mut known: Vec<&str> = list.iter().map(|r| r.kind).collect();
                        known.sort_unstable();
                        format!(" (known: {})", known.join(", "))
                    }
                };
                return Err(Failure::creation(format!("couldn't find {what} {}/{version}{hint}", component.kind)));
            }
        };
        for (key, near) in reg.unknown_keys(md, common) {
            let known: Vec<&str> = reg.fields.iter().map(|f| f.name).collect();
            let near = near.map_or_else(String::new, |n| format!(" Did you mean '{n}'?"));
            tracing::warn!(
                target: "dapr.runtime.processor",
                "component {}: metadata key '{key}' is not known and ignored.{near} Known keys: {}",
                component.log_name(),
                known.join(", ")
            );
        }
        (reg.prepare)(md, version).map_err(|e: ConfigErrors| Failure::init(component, e, true))
    }

    async fn build<C: ?Sized + 'static>(
        &self,
        prepared: Box<dyn Prepared<C>>,
        component: &Component,
    ) -> Result<Arc<C>, Failure> {
        let cx = self.build_cx(component);
        match tokio::time::timeout(component.init_timeout, prepared.build(&cx)).await {
            Ok(built) => built.map_err(|e: Error| Failure::init(component, e, false)),
            Err(_) => Err(Failure {
                tag: "INIT_COMPONENT_FAILURE",
                reason: "timeout",
                cause: format!(
                    "init timeout for component {} exceeded after {:?}",
                    component.log_name(),
                    component.init_timeout
                ),
                lasting: false,
            }),
        }
    }

    fn ops(&self, kind: ComponentKind, block: Option<OpBlock>, name: &str) -> Ops {
        let (out, inb) = (self.policies.outbound(kind, name), self.policies.inbound(kind, name));
        Ops::new(&self.core.metrics, block, name, out, inb)
    }

    /// Publishes a component and its place in the list.
    async fn publish(&self, component: &Component, info: Info, put: impl FnOnce(&mut Snapshot, Box<str>)) {
        let name: Box<str> = component.meta.name.as_str().into();
        self.core
            .store
            .edit(|s| {
                s.degraded.remove(&name);
                match s.listed.iter_mut().find(|i| *i.name == *name) {
                    Some(slot) => *slot = info,
                    None => s.listed.push(info),
                }
                put(s, name);
            })
            .await;
    }

    async fn init_state(&self, c: &Component, md: &Metadata) -> Result<(), Failure> {
        let prepared = self.prepare(&self.registry.state, "state store", c, md, STATE_KEYS)?;
        if let Some(key) = UNBUILT_STATE_KEYS.iter().find(|k| md.get_non_empty(k).is_some()) {
            // Storing in the clear, or publishing nothing, would break a promise without a word.
            let text = format!("metadata key '{key}' is not supported by this version; remove it to go on without it");
            return Err(Failure::init(c, text, true));
        }
        let keys = KeyScheme::from_metadata(md, &c.meta.name, &self.core.me.app_id, &self.core.me.namespace)
            .map_err(|e| Failure::init(c, e, true))?;
        let inner = self.build(prepared, c).await?;
        let caps = inner.caps();
        let named = [
            (caps.etag, "ETAG"),
            (inner.transact().is_some(), "TRANSACTIONAL"),
            (caps.ttl, "TTL"),
            (caps.delete_with_prefix, "DELETE_WITH_PREFIX"),
            (caps.keys_like, "KEYS_LIKE"),
            (inner.query().is_some(), "QUERY_API"),
            (caps.actor, "ACTOR"),
        ];
        let info = info(c, names(named));
        let ops = self.ops(ComponentKind::Statestore, Some(OpBlock::State), &c.meta.name);
        let handle = Arc::new(Handle { info: info.clone(), ops, extra: keys, inner });
        if md.get("actorStateStore").is_some_and(mecha_components_api::parse_bool) {
            tracing::info!(target: "dapr.runtime.processor", "Using '{}' as actor state store", c.meta.name);
        }
        self.publish(c, info, |s, name| drop(s.state.insert(name, handle))).await;
        Ok(())
    }

    async fn init_pubsub(&self, c: &Component, mut md: Metadata) -> Result<(), Failure> {
        if md.get_non_empty("consumerID").is_none() {
            md.insert("consumerID", self.core.me.app_id.as_ref());
        }
        let prepared = self.prepare(&self.registry.pubsub, "message bus", c, &md, PUBSUB_KEYS)?;
        let inner = self.build(prepared, c).await?;
        let caps = inner.caps();
        let named = [
            (caps.subscribe_wildcards, "SUBSCRIBE_WILDCARDS"),
            (caps.message_ttl, "MESSAGE_TTL"),
            (caps.bulk, "BULK_PUBSUB"),
        ];
        let info = info(c, names(named));
        let templated = c.metadata.iter().any(
            |item| matches!(&item.value, mecha_resources::ValueSource::Plain(t) if t.expose().contains("{namespace}")),
        );
        let extra = TopicRules {
            scopes: TopicScopes::from_metadata(&md, &self.core.me.app_id),
            namespace_prefix: (templated && !self.core.me.namespace.is_empty()).then(|| self.core.me.namespace.clone()),
        };
        let ops = self.ops(ComponentKind::Pubsub, None, &c.meta.name);
        let handle = Arc::new(Handle { info: info.clone(), ops, extra, inner });
        self.publish(c, info, |s, name| drop(s.pubsub.insert(name, handle))).await;
        Ok(())
    }

    async fn init_secrets(&self, c: &Component, md: &Metadata) -> Result<(), Failure> {
        let prepared = self.prepare(&self.registry.secrets, "secret store", c, md, &[])?;
        let inner = self.build(prepared, c).await?;
        let info = info(c, names([(inner.caps().multiple_keys, "MULTIPLE_KEY_VALUES_PER_SECRET")]));
        let ops = self.ops(ComponentKind::Secretstore, Some(OpBlock::Secret), &c.meta.name);
        let handle = Arc::new(Handle { info: info.clone(), ops, extra: (), inner });
        self.publish(c, info, |s, name| drop(s.secrets.insert(name, handle))).await;
        Ok(())
    }

    async fn init_configuration(&self, c: &Component, md: &Metadata) -> Result<(), Failure> {
        let prepared = self.prepare(&self.registry.configuration, "configuration store", c, md, &[])?;
        let inner = self.build(prepared, c).await?;
        let info = info(c, Vec::new());
        let ops = self.ops(ComponentKind::Configuration, Some(OpBlock::Configuration), &c.meta.name);
        let handle = Arc::new(Handle { info: info.clone(), ops, extra: (), inner });
        self.publish(c, info, |s, name| drop(s.configuration.insert(name, handle))).await;
        Ok(())
    }

    async fn init_lock(&self, c: &Component, md: &Metadata) -> Result<(), Failure> {
        let prepared = self.prepare(&self.registry.lock, "lock store", c, md, LOCK_KEYS)?;
        let keys = KeyScheme::from_metadata(md, &c.meta.name, &self.core.me.app_id, &self.core.me.namespace)
            .map_err(|e| Failure::init(c, e, true))?;
        let inner = self.build(prepared, c).await?;
        let info = info(c, Vec::new());
        let ops = self.ops(ComponentKind::Lock, None, &c.meta.name);
        let handle = Arc::new(Handle { info: info.clone(), ops, extra: keys, inner });
        self.publish(c, info, |s, name| drop(s.lock.insert(name, handle))).await;
        Ok(())
    }

    async fn init_binding(&self, c: &Component, md: &Metadata) -> Result<(), Failure> {
        let direction = md.get("direction").unwrap_or_default().to_lowercase();
        let wanted = |way: &str| direction.is_empty() || direction.split(',').any(|d| d.trim() == way);
        let known = |found: &Lookup<'_, _>| matches!(found, Lookup::Found(_));
        let as_input = wanted("input") && known_input(&self.registry, c);
        let as_output = wanted("output") && known(&Registry::find(&self.registry.output, &c.kind, &c.version));
        if !as_input && !as_output {
            // Says which types are known, or that the direction does not fit.
            self.prepare(&self.registry.output, "binding", c, md, BINDING_KEYS)?;
            let text = format!("binding type {} does not work in direction '{direction}'", c.kind);
            return Err(Failure::init(c, text, true));
        }
        let input = match as_input {
            true => {
                let prepared = self.prepare(&self.registry.input, "input binding", c, md, BINDING_KEYS)?;
                Some(self.build(prepared, c).await?)
            }
            false => None,
        };
        let output: Option<Arc<dyn OutputBinding>> = match as_output {
            true => {
                let prepared = self.prepare(&self.registry.output, "output binding", c, md, BINDING_KEYS)?;
                Some(self.build(prepared, c).await?)
            }
            false => None,
        };
        let info = info(c, names([(input.is_some(), "INPUT_BINDING"), (output.is_some(), "OUTPUT_BINDING")]));
        let name = &c.meta.name;
        let inbound = self.policies.inbound(ComponentKind::Binding, name);
        let input = input.map(|inner| {
            let ops = Ops::new(&self.core.metrics, None, name, Guarded::none(), inbound);
            Arc::new(Handle { info: info.clone(), ops, extra: md.clone(), inner })
        });
        let output = output.map(|inner| {
            let outbound = self.policies.outbound(ComponentKind::Binding, name);
            let ops = Ops::named(&self.core.metrics, name, inner.operations(), outbound);
            Arc::new(Handle { info: info.clone(), ops, extra: (), inner })
        });
        self.publish(c, info, |s, name| {
            if let Some(input) = input {
                s.input.insert(name.clone(), input);
            }
            if let Some(output) = output {
                s.output.insert(name, output);
            }
        })
        .await;
        Ok(())
    }
}

fn known_input(registry: &Registry, c: &Component) -> bool {
    matches!(Registry::find(&registry.input, &c.kind, &c.version), Lookup::Found(_))
}

/// The block of a type, by what stands before its first dot.
#[must_use]
pub fn block(kind: &str) -> Option<Block> {
    match kind.split('.').next().unwrap_or_default() {
        "state" => Some(Block::State),
        "pubsub" => Some(Block::PubSub),
        "bindings" => Some(Block::Binding),
        "secretstores" => Some(Block::Secret),
        "configuration" => Some(Block::Configuration),
        "lock" => Some(Block::Lock),
        _ => None,
    }
}

fn info(component: &Component, capabilities: Vec<&'static str>) -> Info {
    Info {
        name: component.meta.name.as_str().into(),
        kind: component.kind.as_str().into(),
        version: component.version.as_str().into(),
        capabilities,
    }
}

fn names<const N: usize>(capabilities: [(bool, &'static str); N]) -> Vec<&'static str> {
    capabilities.into_iter().filter_map(|(has, name)| has.then_some(name)).collect()
}
