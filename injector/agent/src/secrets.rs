//! Values of the Secrets that documents name, read by name and kept current.
//!
//! Each Secret in use has a watch of its own, by its name, as kubelets have: the API server keeps an index for that,
//! a rotated value arrives at once, and neither the right to list Secrets nor the others of the namespace come into
//! it. A Secret that nothing in use names any more is forgotten. When more are in use than there may be watches,
//! the rest is read again from time to time.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1;
use kube::api::{WatchEvent, WatchParams};
use kube::{Api, Client};
use mecha_apiserver::{Tasks, call};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::document::SecretKey;
use crate::metrics::{Metrics, SecretRead};

/// Secrets in use in one namespace; documents that name further ones are not delivered.
const MAX_NAMES: usize = 1024;
/// Watches of all namespaces together; each is a connection.
const MAX_WATCHES: usize = 512;
/// How often a Secret without a watch is read.
const REREAD: Duration = Duration::from_secs(30);
/// First and longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Keys of the Service Binding specification whose values name a product.
const PRODUCT: [&str; 2] = ["type", "provider"];
/// Seconds after which the API server ends a watch.
const WATCH_SECONDS: u32 = 270;

/// What reading Secrets takes. Clones are the same.
#[derive(Clone)]
pub(crate) struct Reader {
    client: Client,
    tasks: Tasks,
    metrics: Metrics,
    watches: Arc<Semaphore>,
}

/// The Secrets in use of one namespace.
pub(crate) struct Secrets {
    namespace: String,
    reader: Reader,
    known: Mutex<HashMap<String, Weak<Secret>>>,
    /// Grows with each change of any of them.
    version: watch::Sender<u64>,
}

/// One Secret in use, for as long as this is held.
pub(crate) struct Secret {
    state: Arc<Mutex<State>>,
    _stop: DropGuard,
}

/// What is known of a Secret.
enum State {
    Unread,
    Present(BTreeMap<String, Vec<u8>>),
    Missing,
    Failed(String),
}

impl Reader {
    pub(crate) fn new(client: Client, tasks: Tasks, metrics: Metrics) -> Self {
        Self { client, tasks, metrics, watches: Arc::new(Semaphore::new(MAX_WATCHES)) }
    }
}

impl Secrets {
    pub(crate) fn new(namespace: &str, reader: Reader) -> Self {
        Self { namespace: namespace.to_owned(), reader, known: Mutex::default(), version: watch::Sender::new(0) }
    }

    /// Changes whenever a Secret in use has.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// The Secret `name`, kept current while the answer is held; `None` when too many are in use.
    pub(crate) fn hold(&self, name: &str) -> Option<Arc<Secret>> {
        let mut known = self.known.lock();
        if let Some(secret) = known.get(name).and_then(Weak::upgrade) {
            return Some(secret);
        }
        known.retain(|_, secret| secret.strong_count() > 0);
        if known.len() >= MAX_NAMES {
            return None;
        }
        let stop = CancellationToken::new();
        let state = Arc::new(Mutex::new(State::Unread));
        let follower = Follower {
            api: Api::namespaced(self.reader.client.clone(), &self.namespace),
            name: name.to_owned(),
            state: state.clone(),
            version: self.version.clone(),
            reader: self.reader.clone(),
        };
        let stopped = stop.clone();
        self.reader.tasks.run("secret", async move {
            let _ = stopped.run_until_cancelled(follower.run()).await;
        });
        let secret = Arc::new(Secret { state, _stop: stop.drop_guard() });
        known.insert(name.to_owned(), Arc::downgrade(&secret));
        Some(secret)
    }

    /// What to say of a Secret that cannot be held.
    pub(crate) fn too_many(&self) -> String {
        format!("more than {MAX_NAMES} Secrets are named in namespace {}", self.namespace)
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }
}

impl Secret {
    /// Whether the API server has not answered yet.
    pub(crate) fn is_unread(&self) -> bool {
        matches!(*self.state.lock(), State::Unread)
    }

    /// The value of a key.
    pub(crate) fn value(&self, namespace: &str, wanted: &SecretKey) -> Result<Vec<u8>, String> {
        let name = &wanted.name;
        match &*self.state.lock() {
            State::Unread => Err(format!("Secret {name} in namespace {namespace} has not been read in time")),
            State::Missing => Err(format!("Secret {name} is missing in namespace {namespace}; create it")),
            State::Failed(why) => Err(format!("Secret {name} in namespace {namespace} cannot be read: {why}")),
            State::Present(data) => data
                .get(&wanted.key)
                .cloned()
                .ok_or_else(|| format!("Secret {name} in namespace {namespace} has no key {}; add it", wanted.key)),
        }
    }

    /// `text` without any of the values.
    pub(crate) fn scrub(&self, text: &mut String) {
        let State::Present(data) = &*self.state.lock() else { return };
        // Shorter ones would blank out ordinary words, and these the name of the product that a message is about.
        let hidden = |key: &str, value: &[u8]| value.len() >= 4 && !PRODUCT.contains(&key);
        for (_, value) in data.iter().filter(|(key, value)| hidden(key, value)) {
            if let Some(value) = std::str::from_utf8(value).ok().map(str::trim).filter(|value| text.contains(value)) {
                *text = text.replace(value, "***");
            }
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

struct Follower {
    api: Api<v1::Secret>,
    name: String,
    state: Arc<Mutex<State>>,
    version: watch::Sender<u64>,
    reader: Reader,
}

impl Follower {
    async fn run(self) {
        let mut pause = PAUSE.0;
        loop {
            let began = Instant::now();
            let failed = match self.turn().await {
                Ok(()) => false,
                Err(why) => {
                    self.failed(why);
                    true
                }
            };
            pause = if failed || began.elapsed() < PAUSE.1 { (pause * 2).min(PAUSE.1) } else { PAUSE.0 };
            // A watch that ends at once, again and again, is as bad as one that fails.
            sleep(pause).await;
        }
    }

    /// Reads it, and follows it until the watch ends.
    async fn turn(&self) -> Result<(), String> {
        let read = call(self.api.get_opt(&self.name)).await.map_err(|e| e.to_string())?;
        // Without a version, the watch begins with what there is.
        let from = read.as_ref().and_then(|secret| secret.metadata.resource_version.clone()).unwrap_or_default();
        self.set(read);
        let Ok(_watch) = self.reader.watches.try_acquire() else {
            sleep(REREAD).await;
            return Ok(());
        };
        let only = WatchParams::default().fields(&format!("metadata.name={}", self.name)).timeout(WATCH_SECONDS);
        let mut events = call(self.api.watch(&only, &from)).await.map_err(|e| e.to_string())?.boxed();
        while let Some(event) = events.try_next().await.map_err(|e| e.to_string())? {
            match event {
                WatchEvent::Added(secret) | WatchEvent::Modified(secret) => self.set(Some(secret)),
                WatchEvent::Deleted(_) => self.set(None),
                WatchEvent::Bookmark(_) => {}
                // Its place in the history is gone: read again.
                WatchEvent::Error(_) => break,
            }
        }
        Ok(())
    }

    fn set(&self, secret: Option<v1::Secret>) {
        let read = if secret.is_some() { SecretRead::Found } else { SecretRead::Missing };
        self.reader.metrics.secret_read(read);
        let now = match secret {
            Some(secret) => {
                State::Present(secret.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect())
            }
            None => State::Missing,
        };
        let mut state = self.state.lock();
        let same = match (&*state, &now) {
            (State::Present(before), State::Present(after)) => before == after,
            (State::Missing, State::Missing) => true,
            _ => false,
        };
        *state = now;
        drop(state);
        if !same {
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// A failure says nothing about the Secret: what was read stays in use.
    fn failed(&self, why: String) {
        self.reader.metrics.secret_read(SecretRead::Failed);
        tracing::debug!(secret = self.name, why, "a Secret cannot be read or watched; it is tried again");
        let mut state = self.state.lock();
        if matches!(*state, State::Unread) {
            *state = State::Failed(why);
            drop(state);
            self.version.send_modify(|version| *version += 1);
        }
    }
}
