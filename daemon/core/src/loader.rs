//! From Component documents to running components: resolve, prepare, build, publish; and over
//! the life of the runtime, from one set of documents to the next.

mod building;
mod content;
mod exchange;
mod instance;
mod moving;
mod reconcile;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mecha_components_api::{Clock, Registry};
use mecha_resources::{Component, unique_names};
use tokio::sync::{Notify, Semaphore};

use crate::bindings::Inputs;
use crate::core::Core;
use crate::policies::{ComponentKind, Guarded, Policies};
use crate::store::{Block, Degraded, Found, Info, Snapshot};
use exchange::Emptying;
use reconcile::Entry;

pub use moving::{Moving, Standing, Wanted};
pub use reconcile::Report;

/// Old instances that may still drain at the same time; a change that finds more waits.
const MOST_DRAINING: usize = 32;

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

/// Loads components into a runtime, and keeps them in line with their documents.
pub struct Loader {
    core: Arc<Core>,
    registry: Registry,
    policies: ArcSwap<Policies>,
    inputs: Arc<Inputs>,
    denied: ArcSwap<Vec<String>>,
    cx: LoaderCx,
    /// What is wanted, by name. Held while a set of documents is applied.
    desired: tokio::sync::Mutex<BTreeMap<String, Entry>>,
    draining: Arc<Semaphore>,
    emptying: Emptying,
    /// A build has ended that took long.
    built: Notify,
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
    /// Another try cannot help until the document, or a secret in it, changes.
    lasting: bool,
}

impl Failure {
    /// The line that says so.
    fn text(&self, component: &Component) -> String {
        format!("Failed to init component {}: [{}]: {}", component.log_name(), self.tag, self.cause)
    }

    fn slow(component: &Component) -> Self {
        Self {
            tag: "INIT_COMPONENT_FAILURE",
            reason: "timeout",
            cause: format!(
                "init timeout for component {} exceeded after {:?}",
                component.log_name(),
                component.init_timeout
            ),
            lasting: false,
        }
    }

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
        let inputs = Arc::new(Inputs::new(Duration::from_secs(3)));
        Self {
            core,
            registry,
            policies: ArcSwap::new(policies),
            inputs,
            denied: ArcSwap::from_pointee(cx.denied.clone()),
            cx,
            desired: tokio::sync::Mutex::default(),
            draining: Arc::new(Semaphore::new(MOST_DRAINING)),
            emptying: Emptying::default(),
            built: Notify::new(),
        }
    }

    /// Lets input bindings be swapped in `inputs`.
    #[must_use]
    pub fn with_inputs(mut self, inputs: Arc<Inputs>) -> Self {
        self.inputs = inputs;
        self
    }

    /// Replaces the `type[/version]` entries that are refused. Counts from the next set on.
    pub fn set_denied(&self, denied: Vec<String>) {
        self.denied.store(Arc::new(denied));
    }

    /// The registered components.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Puts other policies over the calls of all components. Breakers go on where they stand.
    pub fn set_policies(&self, policies: Arc<Policies>) {
        let kinds = |block| match block {
            Block::State => ComponentKind::Statestore,
            Block::PubSub => ComponentKind::Pubsub,
            Block::Secret => ComponentKind::Secretstore,
            Block::Configuration => ComponentKind::Configuration,
            Block::Lock => ComponentKind::Lock,
            Block::Binding => ComponentKind::Binding,
        };
        // First, so that a component that is built now has them too.
        self.policies.store(policies.clone());
        let Snapshot { state, pubsub, input, output, secrets, configuration, lock, .. } = &*self.core.store.snapshot();
        macro_rules! set_all {
            ($($map:ident $block:ident),*) => {$(
                for (name, handle) in $map {
                    let kind = kinds(Block::$block);
                    handle.ops.set_policies(policies.outbound(kind, name), policies.inbound(kind, name));
                }
            )*};
        }
        set_all!(state State, pubsub PubSub, secrets Secret, configuration Configuration, lock Lock);
        for (name, handle) in input {
            handle.ops.set_policies(Guarded::none(), policies.inbound(ComponentKind::Binding, name));
        }
        for (name, handle) in output {
            handle.ops.set_policies(policies.outbound(ComponentKind::Binding, name), Guarded::none());
        }
    }

    /// The documents that count: permitted ones, the first of each name in strict mode.
    ///
    /// # Errors
    /// Bare mode: names that occur twice.
    fn admit(&self, documents: Vec<Wanted>) -> Result<Vec<Wanted>, LoadFailure> {
        let mut components: Vec<Wanted> = documents.into_iter().filter(|w| self.permitted(&w.document)).collect();
        if let Err(duplicates) = unique_names(components.iter().map(|w| &w.document)) {
            if !self.cx.strict {
                return Err(LoadFailure(duplicates.to_string()));
            }
            tracing::error!(target: "dapr.runtime", "{duplicates}; the first one of each name is used");
            let mut seen = std::collections::HashSet::new();
            components.retain(|w| seen.insert(w.name().to_owned()));
        }
        // Stable: within one block the order of the files stays.
        components.sort_by_key(|w| block(&w.document.kind).map_or(1, |b| usize::from(b != Block::Secret)));
        Ok(components)
    }

    fn permitted(&self, component: &Component) -> bool {
        let version = if component.version.is_empty() { "v1" } else { &component.version };
        let refused = self.denied.load().iter().any(|rule| match rule.split_once('/') {
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

    async fn degrade(&self, component: &Component, cause: &str) {
        let Some(block) = block(&component.kind) else { return };
        let degraded = Degraded { info: info(component, Vec::new()), block, cause: cause.into() };
        self.core.store.edit(|s| s.degraded.insert(component.meta.name.as_str().into(), degraded)).await;
    }
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
