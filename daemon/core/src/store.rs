//! The live snapshot of components. Readers take an `Arc` without a lock; one
//! writer at a time publishes the next snapshot and drains what it replaced.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mecha_components_api::{
    CancellationToken, Component, ConfigurationStore, Error, InputBinding, LockStore, Metadata, OutputBinding, PubSub,
    SecretStore, StateStore,
};
use serde::Serialize;
use tokio::time::Instant;

use crate::etag::EtagMark;
use crate::keys::KeyScheme;
use crate::ops::Ops;
use crate::pubsub::scopes::TopicScopes;

/// Building block of a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum Block {
    Secret,
    State,
    PubSub,
    Binding,
    Configuration,
    Lock,
}

/// Who a component is, for metadata, logs and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Document name.
    pub name: Arc<str>,
    /// Type as the document spells it.
    pub kind: Arc<str>,
    /// Version as the document spells it, may be empty.
    pub version: Arc<str>,
    /// Capability names in wire order.
    pub capabilities: Vec<&'static str>,
}

/// A running component with everything a call needs, resolved in advance.
pub struct Handle<C: ?Sized, X = ()> {
    /// Who it is.
    pub info: Info,
    /// Policies and counters.
    pub ops: Ops,
    /// What only this block needs.
    pub extra: X,
    /// The driver.
    pub inner: Arc<C>,
}

impl<C: ?Sized, X> fmt::Debug for Handle<C, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("info", &self.info).finish_non_exhaustive()
    }
}

/// Pub/sub settings that the runtime applies for every broker.
#[derive(Clone, Debug, Default)]
pub struct TopicRules {
    /// Who may publish and subscribe what.
    pub scopes: TopicScopes,
    /// Prefix of every topic at the broker, when `consumerID` or another value used `{namespace}`.
    pub namespace_prefix: Option<Arc<str>>,
}

/// State settings that the runtime applies for every store.
#[derive(Debug)]
pub struct StateRules {
    /// How the app's keys become the store's.
    pub keys: KeyScheme,
    /// What ETags tell of the store they are from.
    pub etags: EtagMark,
}

/// A state store in use.
pub type StateHandle = Handle<dyn StateStore, StateRules>;
/// A broker in use.
pub type PubSubHandle = Handle<dyn PubSub, TopicRules>;
/// An input binding in use, with its document metadata (`route`, `direction`).
pub type InputHandle = Handle<dyn InputBinding, Metadata>;
/// An output binding in use.
pub type OutputHandle = Handle<dyn OutputBinding>;
/// A secret store in use.
pub type SecretHandle = Handle<dyn SecretStore>;
/// A configuration store in use.
pub type ConfigurationHandle = Handle<dyn ConfigurationStore>;
/// A lock store in use, with its key scheme.
pub type LockHandle = Handle<dyn LockStore, KeyScheme>;

/// A component that should run and does not.
#[derive(Clone, Debug)]
pub struct Degraded {
    /// Who it is.
    pub info: Info,
    /// Its block.
    pub block: Block,
    /// Why, without secrets.
    pub cause: Arc<str>,
}

/// A component that does not run while the others do, as the health API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotRunning {
    /// Document name.
    pub name: String,
    /// Type and version as the document spells them.
    #[serde(rename = "type")]
    pub kind: String,
    /// Why, without secrets.
    pub cause: String,
}

/// All components at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// State stores by name.
    pub state: HashMap<Box<str>, Arc<StateHandle>>,
    /// Brokers by name.
    pub pubsub: HashMap<Box<str>, Arc<PubSubHandle>>,
    /// Input bindings by name.
    pub input: HashMap<Box<str>, Arc<InputHandle>>,
    /// Output bindings by name.
    pub output: HashMap<Box<str>, Arc<OutputHandle>>,
    /// Secret stores by name.
    pub secrets: HashMap<Box<str>, Arc<SecretHandle>>,
    /// Configuration stores by name.
    pub configuration: HashMap<Box<str>, Arc<ConfigurationHandle>>,
    /// Lock stores by name.
    pub lock: HashMap<Box<str>, Arc<LockHandle>>,
    /// Components that should run and do not, by name.
    pub degraded: BTreeMap<Box<str>, Degraded>,
    /// Every component in the order it was loaded, for the metadata API.
    pub listed: Vec<Info>,
}

/// What looking a component up by name gives.
#[derive(Debug)]
pub enum Found<H> {
    /// It runs.
    Running(Arc<H>),
    /// It should run and does not; the cause says why.
    Degraded(Arc<str>),
    /// No component of this block has this name.
    Unknown,
    /// This block has no component at all.
    NoneConfigured,
}

/// Holder of the live snapshot.
#[derive(Debug, Default)]
pub struct Store {
    live: ArcSwap<Snapshot>,
    writer: tokio::sync::Mutex<()>,
}

impl Store {
    /// The current snapshot. Do not hold it across an await that waits for outside things,
    /// or a replaced component cannot drain.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.live.load_full()
    }

    /// What does not run while the rest does, by name.
    #[must_use]
    pub fn degraded(&self) -> Vec<NotRunning> {
        let live = self.live.load();
        let entries = live.degraded.iter().map(|(name, degraded)| NotRunning {
            name: name.to_string(),
            kind: match degraded.info.version.as_ref() {
                "" => degraded.info.kind.to_string(),
                version => format!("{}/{version}", degraded.info.kind),
            },
            cause: degraded.cause.to_string(),
        });
        entries.collect()
    }

    /// Publishes the snapshot that `edit` makes of the current one. Writers take turns.
    pub async fn edit<T>(&self, edit: impl FnOnce(&mut Snapshot) -> T) -> T {
        let _one_writer = self.writer.lock().await;
        let mut next = Snapshot::clone(&self.live.load());
        let out = edit(&mut next);
        self.live.store(Arc::new(next));
        out
    }

    fn find<H>(&self, block: Block, name: &str, map: impl FnOnce(&Snapshot) -> &HashMap<Box<str>, Arc<H>>) -> Found<H> {
        let live = self.live.load();
        let map = map(&live);
        if let Some(handle) = map.get(name) {
            return Found::Running(handle.clone());
        }
        match live.degraded.get(name) {
            Some(d) if d.block == block => return Found::Degraded(d.cause.clone()),
            _ => {}
        }
        if map.is_empty() && !live.degraded.values().any(|d| d.block == block) {
            Found::NoneConfigured
        } else {
            Found::Unknown
        }
    }

    /// Looks a state store up.
    pub fn state(&self, name: &str) -> Found<StateHandle> {
        self.find(Block::State, name, |s| &s.state)
    }

    /// Looks a broker up.
    pub fn pubsub(&self, name: &str) -> Found<PubSubHandle> {
        self.find(Block::PubSub, name, |s| &s.pubsub)
    }

    /// Looks an output binding up.
    pub fn output(&self, name: &str) -> Found<OutputHandle> {
        self.find(Block::Binding, name, |s| &s.output)
    }

    /// Looks a secret store up.
    pub fn secrets(&self, name: &str) -> Found<SecretHandle> {
        self.find(Block::Secret, name, |s| &s.secrets)
    }

    /// Looks a configuration store up.
    pub fn configuration(&self, name: &str) -> Found<ConfigurationHandle> {
        self.find(Block::Configuration, name, |s| &s.configuration)
    }

    /// Looks a lock store up.
    pub fn lock(&self, name: &str) -> Found<LockHandle> {
        self.find(Block::Lock, name, |s| &s.lock)
    }
}

/// Waits until nobody else uses `handle`, `grace` at most, then closes the component.
/// Returns whether it was idle in time; it is closed in both cases.
pub async fn drain<C, X>(handle: Arc<Handle<C, X>>, grace: Duration) -> bool
where
    C: Component + ?Sized,
{
    drain_until(handle, grace, &CancellationToken::new()).await == 0
}

/// As [`drain`], and does not wait any longer once `stopping` fires. Returns how many still used it.
pub async fn drain_until<C, X>(handle: Arc<Handle<C, X>>, grace: Duration, stopping: &CancellationToken) -> u64
where
    C: Component + ?Sized,
{
    let deadline = Instant::now() + grace;
    let mut pause = Duration::from_millis(1);
    // In-flight calls hold clones. Polling a counter costs nothing while no swap is under way,
    // whereas a guard object would cost every call.
    while Arc::strong_count(&handle) > 1 && Instant::now() < deadline && !stopping.is_cancelled() {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    let left = (Arc::strong_count(&handle) - 1) as u64;
    handle.inner.close().await;
    left
}

/// The error text of a component that should run and does not.
#[must_use]
pub fn degraded_error(name: &str, cause: &str) -> Error {
    Error::unavailable(format!("component {name} is not ready: {cause}"))
}
