//! Events on the objects that their owners read.
//!
//! An event is news for people, never the only place where something is said: it may be dropped when too many come
//! at once, and the API server forgets it after an hour.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;

use crate::access::call;
use crate::role::Role;

/// Events that wait to be written.
const QUEUE: usize = 256;
/// The API refuses longer notes; in bytes.
const NOTE_LIMIT: usize = 1000;

/// Writes events. Clones are the same.
#[derive(Clone)]
pub struct Events {
    queue: mpsc::Sender<(Event, ObjectReference)>,
    dropped: Arc<AtomicU64>,
}

impl Events {
    /// For a role; `controller` is the name that people see, such as `mecha-hub`.
    #[must_use]
    pub fn new(role: &Role, controller: &str) -> Self {
        let reporter = Reporter { controller: controller.to_owned(), instance: Some(role.instance.clone()) };
        let recorder = Recorder::new(role.client.clone(), reporter);
        let (queue, mut waiting) = mpsc::channel::<(Event, ObjectReference)>(QUEUE);
        role.tasks.run("events", async move {
            while let Some((event, about)) = waiting.recv().await {
                if let Err(error) = call(recorder.publish(&event, &about)).await {
                    tracing::debug!(reason = event.reason, %error, "an event could not be written");
                }
            }
        });
        Self { queue, dropped: Arc::default() }
    }

    /// All is as it should be. `reason` and `action` are CamelCase words of a closed list.
    pub fn normal<K: Resource<DynamicType = ()>>(&self, about: &K, reason: &str, action: &str, note: &str) {
        self.send(EventType::Normal, about.object_ref(&()), reason, action, note);
    }

    /// Somebody should look at it.
    pub fn warning<K: Resource<DynamicType = ()>>(&self, about: &K, reason: &str, action: &str, note: &str) {
        self.send(EventType::Warning, about.object_ref(&()), reason, action, note);
    }

    /// About an object that is known by reference only.
    pub fn about(&self, kind: EventType, about: ObjectReference, reason: &str, action: &str, note: &str) {
        self.send(kind, about, reason, action, note);
    }

    /// Events dropped so far because too many waited.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn send(&self, kind: EventType, about: ObjectReference, reason: &str, action: &str, note: &str) {
        let end = note.floor_char_boundary(NOTE_LIMIT);
        let event = Event {
            type_: kind,
            reason: reason.to_owned(),
            note: Some(note[..end].to_owned()),
            action: action.to_owned(),
            secondary: None,
        };
        if self.queue.try_send((event, about)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("dropped", &self.dropped()).finish_non_exhaustive()
    }
}
