//! All objects of one kind, kept current.
//!
//! A watch that ends, lapses (410) or fails is made again with growing, jittered pauses; until then the last
//! complete set stays in use. One that says nothing any more is given up after half a minute, since a connection
//! that was lost without a word looks like a quiet one. An object that cannot be read keeps its last readable form
//! and is named in [`Followed::refused`]; it never stops the others.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::utils::Backoff as _;
use kube::runtime::watcher::{self, Event, ExponentialBackoff};
use kube::{Api, Client, Resource};
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::error::{FailureKind, kind_of};
use crate::patience::Patience;
use crate::role::Tasks;

/// How long one watch lasts before it is made again where it was. Short, since this is how a lost one is noticed; cheap,
/// since nothing is listed for it.
const WATCH_LASTS: u32 = 25;
/// A watch that was silent for so long is made again; the API server ends it earlier.
pub(crate) const WATCH_SILENCE: Duration = Duration::from_secs(WATCH_LASTS as u64 + 5);

/// First pause before a broken watch is made again; each next one is up to twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause: what a person waits for after the API server is back.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// So many lapses in a row are no longer what a server does now and then.
const LAPSES: u32 = 3;

/// Which objects to follow.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Only in this namespace.
    pub namespace: Option<String>,
    /// Only with these labels, in the API's form: `a=b,c`.
    pub labels: Option<String>,
    /// Only with these fields, in the API's form: `metadata.name=x`.
    pub fields: Option<String>,
}

/// Namespace (empty for cluster-wide kinds) and name.
type Key = (String, String);

/// All objects of one kind. Clones are the same.
pub struct Followed<K> {
    shared: Arc<Shared<K>>,
}

struct Shared<K> {
    state: RwLock<State<K>>,
    version: watch::Sender<u64>,
}

struct State<K> {
    objects: BTreeMap<Key, Arc<K>>,
    refused: BTreeMap<String, String>,
    /// When the API server was last heard of; `None` before the first complete set.
    heard: Option<Instant>,
    /// Why the watch does not work now.
    broken: Option<String>,
    /// The API server does not know the kind.
    absent: bool,
}

/// Follows all objects of kind `K` that `selection` names, in a task of `tasks`.
#[must_use]
pub fn follow<K>(client: Client, selection: &Selection, tasks: &Tasks) -> Followed<K>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Send + Sync + 'static,
{
    let resource = ApiResource::erase::<K>(&());
    let api: Api<DynamicObject> = match &selection.namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
        None => Api::all_with(client, &resource),
    };
    let config = watcher::Config {
        label_selector: selection.labels.clone(),
        field_selector: selection.fields.clone(),
        timeout: Some(WATCH_LASTS),
        ..watcher::Config::default()
    };
    let followed = Followed::empty();
    let writer = followed.clone();
    tasks.run("watch", async move { writer.run(api, config, resource.kind).await });
    followed
}

impl<K> Followed<K>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Send + Sync + 'static,
{
    async fn run(self, api: Api<DynamicObject>, config: watcher::Config, kind: String) {
        let mut pauses = Pauses::new();
        let mut patience = Patience::new();
        loop {
            let mut listing: Option<BTreeMap<Key, Arc<K>>> = None;
            let mut events = watcher::watcher(api.clone(), config.clone()).boxed();
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => self.take(event, &mut listing),
                    Err(error) => {
                        listing = None;
                        let pause = pauses.pause();
                        if pauses.in_a_row == 1 {
                            patience.over();
                        }
                        if let ControlFlow::Continue(()) = self.note(&error, &kind, pauses.in_a_row) {
                            if patience.is_out(failure_of(&error)) {
                                tracing::warn!(kind, %error, "the watch is broken and will be made again; what is known stays in use");
                            } else {
                                tracing::debug!(kind, %error, "the watch is made again");
                            }
                        }
                        tokio::time::sleep(pause).await;
                        // A watch that is refused for its place in the history would be asked for at that place again.
                        if matches!(error, watcher::Error::WatchStartFailed(_)) && has_lapsed(&error) {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Takes one event into the set.
    fn take(&self, event: Event<DynamicObject>, listing: &mut Option<BTreeMap<Key, Arc<K>>>) {
        let mut state = self.shared.state.write();
        let ready = state.heard.is_some();
        let now = Instant::now();
        let works = !matches!(event, Event::Init);
        let changed = match event {
            Event::Init => {
                *listing = Some(BTreeMap::new());
                false
            }
            Event::InitApply(object) => {
                if let (Some(listed), (key, Some(object))) = (listing.as_mut(), state.read(object)) {
                    listed.insert(key, object);
                }
                false
            }
            Event::InitDone => {
                state.objects = listing.take().unwrap_or_default();
                state.absent = false;
                state.heard = Some(now);
                true
            }
            Event::Apply(object) => {
                if let (key, Some(object)) = state.read(object) {
                    state.objects.insert(key, object);
                }
                true
            }
            Event::Delete(object) => {
                let key = key_of(&object);
                state.refused.remove(&shown(&key));
                state.objects.remove(&key).is_some()
            }
        };
        if works {
            state.broken = None;
        }
        if ready && works {
            state.heard = Some(now);
        }
        drop(state);
        if changed {
            self.shared.version.send_modify(|version| *version += 1);
        }
    }

    /// Notes a broken watch; `Break` when it is no news for a log.
    fn note(&self, error: &watcher::Error, kind: &str, in_a_row: u32) -> ControlFlow<()> {
        let unknown = match error {
            watcher::Error::InitialListFailed(e) | watcher::Error::WatchStartFailed(e) => {
                kind_of(e) == FailureKind::NotFound
            }
            _ => false,
        };
        // The server ends watches whose place in its history is gone; the next list mends that, or should.
        let lapsed = has_lapsed(error) && in_a_row < LAPSES;
        let mut state = self.shared.state.write();
        if !unknown {
            state.broken = Some(error.to_string());
            return if lapsed { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        }
        if state.absent {
            return ControlFlow::Break(());
        }
        tracing::info!(kind, "the API server does not know this kind; it is looked for again");
        state.absent = true;
        state.heard = Some(Instant::now());
        drop(state);
        // Nothing of a kind that does not exist is a complete set; what was known before stays, since a definition
        // that is gone for a moment says nothing about its objects.
        self.shared.version.send_modify(|version| *version += 1);
        ControlFlow::Break(())
    }
}

impl<K: Resource + DeserializeOwned> State<K> {
    fn read(&mut self, mut object: DynamicObject) -> (Key, Option<Arc<K>>) {
        let key = key_of(&object);
        // Who wrote which field is of no use to anybody here, and often larger than the rest. A write of the object
        // without it leaves it as it is.
        object.metadata.managed_fields = None;
        match object.try_parse::<K>() {
            Ok(object) => {
                self.refused.remove(&shown(&key));
                (key, Some(Arc::new(object)))
            }
            Err(error) => {
                let why = error.to_string();
                if self.refused.insert(shown(&key), why.clone()).as_ref() != Some(&why) {
                    tracing::warn!(
                        object = shown(&key),
                        error = why,
                        "the object cannot be read; its last form counts"
                    );
                }
                let last = self.objects.get(&key).cloned();
                (key, last)
            }
        }
    }
}

fn key_of(object: &DynamicObject) -> Key {
    (object.metadata.namespace.clone().unwrap_or_default(), object.metadata.name.clone().unwrap_or_default())
}

fn shown((namespace, name): &Key) -> String {
    if namespace.is_empty() { name.clone() } else { format!("{namespace}/{name}") }
}

/// What kind of answer broke the watch.
fn failure_of(error: &watcher::Error) -> FailureKind {
    match error {
        watcher::Error::InitialListFailed(e) | watcher::Error::WatchStartFailed(e) | watcher::Error::WatchFailed(e) => {
            kind_of(e)
        }
        watcher::Error::WatchError(status) => kind_of(&kube::Error::Api(status.clone())),
        watcher::Error::NoResourceVersion => FailureKind::Unavailable,
    }
}

/// Whether the place in the server's history is gone from which a watch or a list was to go on.
fn has_lapsed(error: &watcher::Error) -> bool {
    let code = match error {
        watcher::Error::WatchError(status) => status.code,
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => status.code,
        _ => return false,
    };
    code == 410
}

/// Pauses that grow until the watch has worked for a while. The beginning of each listing is no sign of that, so they
/// look at the time.
struct Pauses {
    growing: ExponentialBackoff,
    last: Option<Instant>,
    /// Failures that followed each other closely.
    in_a_row: u32,
}

impl Pauses {
    fn new() -> Self {
        let growing = backon::ExponentialBuilder::default()
            .with_min_delay(FIRST_PAUSE)
            .with_max_delay(LONGEST_PAUSE)
            .with_factor(2.0)
            .without_max_times()
            .with_jitter();
        Self { growing: growing.into(), last: None, in_a_row: 0 }
    }

    fn pause(&mut self) -> Duration {
        let now = Instant::now();
        // Twice the longest pause and the longest wait for a connection: failures in a row are closer together.
        if self.last.replace(now).is_none_or(|last| now.duration_since(last) > LONGEST_PAUSE * 4) {
            self.growing.reset();
            self.in_a_row = 0;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.growing.next().unwrap_or(LONGEST_PAUSE)
    }
}

impl<K> Followed<K> {
    fn empty() -> Self {
        let state =
            State { objects: BTreeMap::new(), refused: BTreeMap::new(), heard: None, broken: None, absent: false };
        Self { shared: Arc::new(Shared { state: RwLock::new(state), version: watch::Sender::new(0) }) }
    }

    /// The object of that name; `namespace` is empty for cluster-wide kinds.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.shared.state.read().objects.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// All objects, by namespace and name.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<K>> {
        self.shared.state.read().objects.values().cloned().collect()
    }

    /// All objects of a namespace, by name.
    #[must_use]
    pub fn within(&self, namespace: &str) -> Vec<Arc<K>> {
        let state = self.shared.state.read();
        let from = (namespace.to_owned(), String::new());
        state.objects.range(from..).take_while(|((n, _), _)| n == namespace).map(|(_, o)| o.clone()).collect()
    }

    /// Objects that cannot be read, as `namespace/name`, and why.
    #[must_use]
    pub fn refused(&self) -> BTreeMap<String, String> {
        self.shared.state.read().refused.clone()
    }

    /// Whether a first complete set is there.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        self.shared.state.read().heard.is_some()
    }

    /// Returns when a first complete set is there.
    pub async fn listed(&self) {
        let mut version = self.shared.version.subscribe();
        while !self.is_listed() {
            if version.changed().await.is_err() {
                return;
            }
        }
    }

    /// Whether the API server does not know the kind.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        self.shared.state.read().absent
    }

    /// Why the watch does not work now, and how long ago it last did.
    #[must_use]
    pub fn broken(&self) -> Option<(String, Option<Duration>)> {
        let state = self.shared.state.read();
        state.broken.clone().map(|why| (why, state.heard.map(|heard| heard.elapsed())))
    }

    /// Changes whenever the set may have changed. Level-triggered: look at the whole set then.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.version.subscribe()
    }
}

impl<K> Clone for Followed<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<K> fmt::Debug for Followed<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state.read();
        f.debug_struct("Followed").field("objects", &state.objects.len()).field("broken", &state.broken).finish()
    }
}
