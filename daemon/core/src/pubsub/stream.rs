//! Streaming subscriptions: events go out on a channel, verdicts come back by event id.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use mecha_components_api::CancellationToken;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::StreamEvent;
use crate::app::{AppVerdict, TopicEvent};

/// Events on their way to one client. The broker's own limit bounds what is unanswered.
const QUEUE: usize = 16;
/// How long a stop waits for the verdict on an event that is out. A client that never answers
/// must not take the whole time of a graceful stop, which is five seconds unless told.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// An open stream: events come out, verdicts go in. Dropping it ends the subscription; events
/// without a verdict are redelivered.
#[derive(Debug)]
pub struct StreamSubscription {
    /// The events.
    pub events: mpsc::Receiver<StreamEvent>,
    verdicts: StreamVerdicts,
    _open: Open,
}

/// The way back of an open stream, for a task of its own.
#[derive(Clone, Debug)]
pub struct StreamVerdicts(Arc<Wire>);

/// The sidecar's side of a stream.
#[derive(Debug)]
pub(super) struct Wire {
    events: mpsc::Sender<StreamEvent>,
    waiting: Mutex<HashMap<String, VecDeque<oneshot::Sender<AppVerdict>>>>,
    closed: CancellationToken,
}

/// Ends the subscription when the client's side is dropped.
struct Open {
    wire: Arc<Wire>,
    on_close: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Open")
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.wire.closed.cancel();
        if let Some(on_close) = self.on_close.take() {
            on_close();
        }
    }
}

impl StreamSubscription {
    /// Takes the client's verdict on one event. `false` when the id is unknown.
    pub fn processed(&self, id: &str, verdict: AppVerdict) -> bool {
        self.verdicts.processed(id, verdict)
    }

    /// The way back, for a task of its own.
    #[must_use]
    pub fn verdicts(&self) -> StreamVerdicts {
        self.verdicts.clone()
    }
}

impl StreamVerdicts {
    /// Takes the client's verdict on one event. `false` when the id is unknown.
    pub fn processed(&self, id: &str, verdict: AppVerdict) -> bool {
        self.0.answer(id, verdict)
    }
}

impl Wire {
    pub(super) fn open() -> (Arc<Self>, mpsc::Receiver<StreamEvent>) {
        let (events, receiver) = mpsc::channel(QUEUE);
        (Arc::new(Self { events, waiting: Mutex::default(), closed: CancellationToken::new() }), receiver)
    }

    /// The client's side. `on_close` runs when it is dropped.
    pub(super) fn client(
        self: &Arc<Self>,
        events: mpsc::Receiver<StreamEvent>,
        on_close: impl FnOnce() + Send + Sync + 'static,
    ) -> StreamSubscription {
        StreamSubscription {
            events,
            verdicts: StreamVerdicts(self.clone()),
            _open: Open { wire: self.clone(), on_close: Some(Box::new(on_close)) },
        }
    }

    /// Sends one event and waits for its verdict; `None` when there will be none.
    pub(super) async fn deliver(&self, event: &TopicEvent, stopping: &CancellationToken) -> Option<AppVerdict> {
        let id = event.event.get("id").and_then(Value::as_str)?.to_owned();
        let (tx, rx) = oneshot::channel();
        self.waiting.lock().entry(id.clone()).or_default().push_back(tx);
        let _forget = Forget { wire: self, id: &id };
        let hand_over = async {
            let event = StreamEvent { id: id.clone(), event: event.clone() };
            self.events.send(event).await.ok()?;
            rx.await.ok()
        };
        let patience = async {
            stopping.cancelled().await;
            tokio::time::sleep(STOP_GRACE).await;
        };
        tokio::select! {
            biased;
            verdict = hand_over => verdict,
            () = self.closed.cancelled() => None,
            () = patience => None,
        }
    }

    fn answer(&self, id: &str, verdict: AppVerdict) -> bool {
        let mut waiting = self.waiting.lock();
        let Some(queue) = waiting.get_mut(id) else { return false };
        // Events may share an id; the oldest that still waits gets the verdict.
        while let Some(tx) = queue.pop_front() {
            if tx.send(verdict).is_ok() {
                return true;
            }
        }
        false
    }
}

/// Takes a delivery off the list however it ended.
struct Forget<'a> {
    wire: &'a Wire,
    id: &'a str,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let mut waiting = self.wire.waiting.lock();
        if let Some(queue) = waiting.get_mut(self.id) {
            queue.retain(|tx| !tx.is_closed());
            if queue.is_empty() {
                waiting.remove(self.id);
            }
        }
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
