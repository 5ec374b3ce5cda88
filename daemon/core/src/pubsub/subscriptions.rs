//! All subscriptions of this sidecar.

mod beside;
mod leave;

use std::collections::HashMap;
use std::fmt;
use std::future::{Future, ready};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use mecha_components_api::{Clock, ErrorKind};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::busy::Busy;
use super::check::raw_payload;
use super::errors::Place;
use super::line::{Counts, Line, Progress};
use super::quiet::Quiet;
use super::route::Routes;
use super::run::Run;
use super::sources::{Wanted, select};
use super::stream::{StreamSubscription, Wire};
use super::target::Target;
use super::{Source, StreamRequest};
use crate::app::{AppChannel, AppSubscription};
use crate::codes::Code;
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::store::{Found, PubSubHandle, Store};
use crate::swap::Drained;
use crate::tasks::Tasks;
use crate::trace::Tracer;
use beside::Beside;

pub use beside::Reading;
pub use leave::{Leave, Swap};

/// How long a start waits for the brokers before it says who is subscribed.
const START_WAIT: Duration = Duration::from_secs(5);
/// How long a client waits for its stream.
const STREAM_WAIT: Duration = Duration::from_secs(10);

/// What every subscription is made of.
pub(super) struct Parts {
    pub store: Arc<Store>,
    pub app_id: Arc<str>,
    pub metrics: Arc<Metrics>,
    pub tracer: Tracer,
    pub tasks: Tasks,
    pub clock: Arc<dyn Clock>,
}

/// Owner of all subscriptions. One operation at a time.
pub struct Subscriptions {
    parts: Parts,
    app: OnceLock<Arc<dyn AppChannel>>,
    state: Mutex<State>,
    /// Held while runs are started or stopped, never while they are read.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    declarative: Vec<AppSubscription>,
    programmatic: Vec<AppSubscription>,
    wanted: Vec<Wanted>,
    phase: Phase,
    runs: HashMap<Key, Entry>,
    streams: HashMap<u64, Stream>,
    /// Second instances that are read as well, by component.
    beside: HashMap<String, Beside>,
    /// Instances that were replaced and are read to their end.
    leaving: HashMap<u64, Beside>,
    /// Number of the next stream, or of the next one that is left.
    next: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// Not started, or paused.
    #[default]
    Still,
    Running,
    Stopped,
}

type Key = (String, String);

struct Entry {
    sub: Arc<AppSubscription>,
    run: Run,
}

struct Stream {
    sub: Arc<AppSubscription>,
    wire: Arc<Wire>,
    /// `None` while its component is away.
    run: Option<Run>,
}

/// Which subscription a run belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Slot {
    App(Key),
    Stream(u64),
}

/// What read from an instance that is left.
struct Left {
    slot: Slot,
    sub: Arc<AppSubscription>,
    run: Run,
}

impl fmt::Debug for Subscriptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Subscriptions")
            .field("phase", &state.phase)
            .field("runs", &state.runs.len())
            .field("streams", &state.streams.len())
            .finish_non_exhaustive()
    }
}

impl Subscriptions {
    pub(super) fn new(parts: Parts) -> Self {
        Self { parts, app: OnceLock::new(), state: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }

    /// Sets who takes the events; only the first call counts.
    pub fn set_app(&self, app: Arc<dyn AppChannel>) {
        let _ = self.app.set(app);
    }

    /// Starts what documents and the app ask for, and waits (5 s at most) until the brokers
    /// have it in place. What fails to start is tried again for ever.
    pub async fn start(&self, declarative: Vec<AppSubscription>, programmatic: Vec<AppSubscription>) {
        let _turn = self.turn.lock().await;
        {
            let mut state = self.state.lock();
            if state.phase == Phase::Stopped {
                return;
            }
            state.phase = Phase::Running;
            state.declarative = declarative;
            state.programmatic = programmatic;
        }
        self.reconcile().await;
        self.say_topics();
    }

    /// Replaces the declarative subscriptions: new ones start before old ones stop.
    pub async fn set_declarative(&self, declarative: Vec<AppSubscription>) {
        let _turn = self.turn.lock().await;
        self.state.lock().declarative = declarative;
        self.reconcile().await;
    }

    /// Stops taking events for the app, because it is not well. Events in flight finish;
    /// failures among them cost nothing. Streams go on. Does not wait.
    pub fn pause(&self) {
        let runs = {
            let mut state = self.state.lock();
            if state.phase != Phase::Running {
                return;
            }
            state.phase = Phase::Still;
            let beside = state.others().flat_map(Beside::pause).collect::<Vec<_>>();
            (std::mem::take(&mut state.runs), beside)
        };
        tracing::debug!(target: "dapr.runtime", "paused {} subscriptions", runs.0.len() + runs.1.len());
    }

    /// Takes events for the app again.
    pub async fn resume(&self) {
        let _turn = self.turn.lock().await;
        {
            let mut state = self.state.lock();
            if state.phase != Phase::Still {
                return;
            }
            state.phase = Phase::Running;
        }
        self.reconcile().await;
    }

    /// Stops everything for good, streams too: no new events, those in flight finish within
    /// `drain`, the others go back to the broker. Instances that were replaced are read on. Whether all finished.
    pub async fn stop(&self, drain: Duration) -> bool {
        let finished = self.stop_app(drain).await;
        let (streams, beside) = {
            let mut state = self.state.lock();
            (std::mem::take(&mut state.streams), std::mem::take(&mut state.beside))
        };
        let streams = streams.into_values().filter_map(|s| s.run);
        end(streams.chain(beside.into_values().flat_map(Beside::into_runs)).collect(), drain).await && finished
    }

    /// As [`Subscriptions::stop`], and streams go on.
    pub async fn stop_app(&self, drain: Duration) -> bool {
        let runs: Vec<Run> = {
            let mut state = self.state.lock();
            state.phase = Phase::Stopped;
            let runs = std::mem::take(&mut state.runs).into_values().map(|e| e.run);
            runs.chain(state.beside.values_mut().flat_map(Beside::pause)).collect()
        };
        end(runs, drain).await
    }

    /// Stops the subscriptions of one pub/sub component, which is about to go. They stay
    /// wanted: [`Subscriptions::replace`] starts them on the next instance.
    pub async fn remove(&self, pubsub: &str, drain: Duration) -> bool {
        self.leave(pubsub, drain).await.failed == 0
    }

    /// As [`Subscriptions::remove`], with the account of what was in flight.
    pub async fn leave(&self, pubsub: &str, drain: Duration) -> Drained {
        let _turn = self.turn.lock().await;
        let mut runs: Vec<Run> = self.take(pubsub).into_iter().map(|left| left.run).collect();
        {
            // A stream keeps its place, so that it goes on when the component comes back.
            let mut state = self.state.lock();
            let streams = state.streams.values_mut().filter(|s| *s.sub.pubsub == *pubsub);
            runs.extend(streams.filter_map(|s| s.run.take()));
        }
        let in_flight = runs.iter().map(Run::in_flight).sum();
        let before: u64 = runs.iter().map(Run::given_back).sum();
        let finished = join_all(runs.iter().map(|run| run.stop(drain))).await;
        let redelivered = runs.iter().map(Run::given_back).sum::<u64>() - before;
        let failed = if finished.into_iter().all(|f| f) { 0 } else { redelivered.min(in_flight).max(1) };
        let finished = in_flight.saturating_sub(failed);
        Drained { in_flight, finished, redelivered, failed, ..Drained::default() }
    }

    /// Starts every wanted subscription of a component on its next instance, beside the old
    /// ones, and waits until they are in place, `limit` at most. Then let publishers switch,
    /// and finish the swap.
    pub async fn replace(self: &Arc<Self>, new: Arc<PubSubHandle>, limit: Duration) -> Swap {
        self.switch(new, limit, false, ready(())).await
    }

    /// As [`Subscriptions::replace`], and lets publishers switch by running `publish` before
    /// anything else may start or stop. With `must` that is left out where a subscription
    /// of the new instance is not in place in time: then roll the swap back.
    pub async fn switch(
        self: &Arc<Self>,
        new: Arc<PubSubHandle>,
        limit: Duration,
        must: bool,
        publish: impl Future<Output = ()>,
    ) -> Swap {
        let _turn = self.turn.lock().await;
        let pubsub = new.info.name.clone();
        let mut old = self.take(&pubsub);
        let wanted: Vec<(Slot, Arc<AppSubscription>, Option<Arc<Wire>>)> = {
            let state = self.state.lock();
            let apps = state.wanted.iter().filter(|w| state.phase == Phase::Running && *w.sub.pubsub == *pubsub);
            let apps = apps.map(|w| (Slot::App(key(&w.sub)), w.sub.clone(), None));
            let streams = state.streams.iter().filter(|(_, s)| *s.sub.pubsub == *pubsub);
            apps.chain(streams.map(|(id, s)| (Slot::Stream(*id), s.sub.clone(), Some(s.wire.clone())))).collect()
        };
        let mut started = Vec::new();
        for (slot, sub, wire) in wanted {
            let target = match wire {
                Some(wire) => Some((Target::Stream(wire), Routes::to("/"))),
                None => self.app_target(&sub),
            };
            if let Some((target, routes)) = target
                && let Some(run) = self.launch(&sub, new.clone(), target, routes)
            {
                started.push((slot, sub, run));
            }
        }
        let attached = join_all(started.iter().map(|(_, _, run)| run.attached(limit))).await.iter().all(Result::is_ok);
        let reads = started.iter().map(|(_, _, run)| run.reads().boxed()).collect();
        let mut late = Vec::new();
        {
            let mut state = self.state.lock();
            for (slot, sub, run) in started {
                // Paused or stopped meanwhile: what was started for the app is let go again.
                let wanted = match slot {
                    Slot::App(_) => state.phase == Phase::Running,
                    Slot::Stream(_) => state.phase != Phase::Stopped,
                };
                if !wanted {
                    late.push(run);
                    continue;
                }
                // A stream that `take` left in its place hands its old run over here.
                let before = match &slot {
                    Slot::App(key) => state.runs.insert(key.clone(), Entry { sub: sub.clone(), run }).map(|e| e.run),
                    Slot::Stream(id) => match state.streams.get_mut(id) {
                        Some(stream) => stream.run.replace(run),
                        None => Some(run),
                    },
                };
                old.extend(before.map(|run| Left { slot, sub, run }));
            }
        }
        drop(late);
        if attached || !must {
            publish.await;
        }
        Swap::new(self.clone(), new, old).with(attached, reads)
    }

    /// The subscriptions that are on, for the metadata API.
    #[must_use]
    pub fn list(&self) -> Vec<(AppSubscription, Source)> {
        let state = self.state.lock();
        let apps = state.wanted.iter().map(|w| (AppSubscription::clone(&w.sub), w.source));
        let mut streams: Vec<_> = state.streams.iter().collect();
        streams.sort_by_key(|(id, _)| **id);
        apps.chain(streams.into_iter().map(|(_, s)| (AppSubscription::clone(&s.sub), Source::Streaming))).collect()
    }

    /// Opens a stream and waits until it is in place.
    pub(super) async fn stream(self: &Arc<Self>, req: StreamRequest) -> Result<StreamSubscription, ApiError> {
        let parts = &self.parts;
        let place = Place { app_id: &parts.app_id, pubsub: &req.pubsub, topic: &req.topic };
        if req.pubsub.is_empty() {
            return Err(place.name_empty());
        }
        let handle = match parts.store.pubsub(&req.pubsub) {
            Found::Running(handle) => handle,
            Found::Degraded(cause) => return Err(place.degraded(&cause)),
            Found::Unknown | Found::NoneConfigured => return Err(place.not_found()),
        };
        if req.topic.is_empty() {
            return Err(place.topic_empty());
        }
        if !handle.extra.scopes.may_subscribe(&req.topic) {
            return Err(place.forbidden());
        }
        if self.state.lock().phase == Phase::Stopped {
            return Err(failed(&req, "the sidecar is stopping"));
        }
        let sub = Arc::new(AppSubscription {
            pubsub: req.pubsub.clone(),
            topic: req.topic.clone(),
            metadata: req.metadata.clone(),
            rules: Vec::new(),
            default_route: Some("/".into()),
            dead_letter_topic: req.dead_letter_topic.clone().filter(|t| !t.is_empty()),
            bulk: None,
        });
        let (wire, events) = Wire::open();
        let run = self.launch(&sub, handle, Target::Stream(wire.clone()), Routes::to("/"));
        let run = run.ok_or_else(|| failed(&req, "the subscription is not allowed"))?;
        if let Err(e) = run.attached(STREAM_WAIT).await {
            return Err(failed(&req, &e));
        }
        let mut state = self.state.lock();
        if state.phase == Phase::Stopped {
            return Err(failed(&req, "the sidecar is stopping"));
        }
        let id = state.take_number();
        for beside in state.others().filter(|b| *b.handle.info.name == *sub.pubsub) {
            self.launch_stream(beside, id, &sub, &wire);
        }
        state.streams.insert(id, Stream { sub, wire: wire.clone(), run: Some(run) });
        let owner = Arc::downgrade(self);
        Ok(wire.client(events, move || {
            if let Some(owner) = owner.upgrade() {
                // Outside the lock: a run that is dropped stops its subscription.
                let closed = {
                    let mut state = owner.state.lock();
                    let others: Vec<Run> = state.others().flat_map(|b| b.close_streams(|other| other == id)).collect();
                    (state.streams.remove(&id), others)
                };
                drop(closed);
            }
        }))
    }

    /// Brings what runs in line with what is wanted.
    async fn reconcile(&self) {
        let (missing, mut surplus) = {
            let mut state = self.state.lock();
            state.wanted = select(&state.declarative, &state.programmatic);
            if state.phase != Phase::Running {
                return;
            }
            let wanted: HashMap<Key, Arc<AppSubscription>> =
                state.wanted.iter().map(|w| (key(&w.sub), w.sub.clone())).collect();
            let surplus: Vec<Run> = {
                let gone: Vec<Key> = state.runs.keys().filter(|k| !wanted.contains_key(*k)).cloned().collect();
                gone.iter().filter_map(|k| state.runs.remove(k)).map(|e| e.run).collect()
            };
            let order = state.wanted.iter().map(|w| w.sub.clone());
            let missing: Vec<_> =
                order.filter(|sub| state.runs.get(&key(sub)).is_none_or(|entry| entry.sub != *sub)).collect();
            (missing, surplus)
        };
        let mut started = Vec::new();
        for sub in missing {
            if let Some((target, routes)) = self.app_target(&sub)
                && let Some(handle) = self.find(&sub)
                && let Some(run) = self.launch(&sub, handle, target, routes)
            {
                started.push((sub, run));
            }
        }
        join_all(started.iter().map(|(_, run)| run.attached(START_WAIT))).await;
        let mut state = self.state.lock();
        if state.phase == Phase::Running {
            for (sub, run) in started {
                surplus.extend(state.runs.insert(key(&sub), Entry { sub, run }).map(|e| e.run));
            }
        }
        drop(state);
        // Their tasks drain them; nobody has to wait.
        drop(surplus);
        self.reconcile_beside();
    }

    fn app_target(&self, sub: &AppSubscription) -> Option<(Target, Routes)> {
        let app = self.app.get()?.clone();
        // Checked when it was selected.
        let routes = Routes::compile(sub).ok()?;
        Some((Target::App(app), routes))
    }

    fn find(&self, sub: &AppSubscription) -> Option<Arc<PubSubHandle>> {
        let cause = match self.parts.store.pubsub(&sub.pubsub) {
            Found::Running(handle) => return Some(handle),
            Found::Degraded(cause) => format!("pubsub {} is not ready: {cause}", sub.pubsub),
            Found::Unknown | Found::NoneConfigured => format!("pubsub {} is not found", sub.pubsub),
        };
        tracing::error!(
            target: "dapr.runtime",
            "Failed to start subscription for pubsub {}, topic {}: {cause}",
            sub.pubsub, sub.topic,
        );
        None
    }

    fn launch(&self, sub: &AppSubscription, handle: Arc<PubSubHandle>, target: Target, routes: Routes) -> Option<Run> {
        let parts = &self.parts;
        if !handle.extra.scopes.may_subscribe(&sub.topic) {
            tracing::warn!(
                target: "dapr.runtime",
                "subscription to topic '{}' on pubsub '{}' is not allowed",
                sub.topic, sub.pubsub,
            );
            return None;
        }
        let stopping = parts.tasks.stopping().child_token();
        let line = Arc::new(Line {
            pubsub: sub.pubsub.as_str().into(),
            topic: sub.topic.as_str().into(),
            handle,
            routes,
            raw: raw_payload(&sub.metadata),
            dead_letter: sub.dead_letter_topic.clone(),
            target,
            metrics: parts.metrics.clone(),
            counts: sub.bulk.is_none().then(|| {
                let (pubsub, topic) = (sub.pubsub.clone(), sub.topic.clone());
                parts.metrics.follow(move |m| Counts::new(m, &pubsub, &topic))
            }),
            tracer: parts.tracer.clone(),
            clock: parts.clock.clone(),
            quiet: Quiet::default(),
            stopping,
            kill: tokio_util::sync::CancellationToken::new(),
            progress: watch::Sender::new(Progress::Starting),
            busy: Busy::default(),
        });
        Some(Run::spawn(&parts.tasks, line, sub))
    }

    /// Takes the app's runs of one component off the list.
    fn take(&self, pubsub: &str) -> Vec<Left> {
        let mut state = self.state.lock();
        let keys: Vec<Key> = state.runs.keys().filter(|(p, _)| p == pubsub).cloned().collect();
        let taken = keys.into_iter().filter_map(|k| state.runs.remove_entry(&k));
        taken.map(|(key, Entry { sub, run })| Left { slot: Slot::App(key), sub, run }).collect()
    }

    fn say_topics(&self) {
        let state = self.state.lock();
        let mut by_pubsub: Vec<(&str, Vec<&str>)> = Vec::new();
        for w in state.wanted.iter().filter(|w| state.runs.contains_key(&key(&w.sub))) {
            match by_pubsub.iter_mut().find(|(pubsub, _)| *pubsub == w.sub.pubsub) {
                Some((_, topics)) => topics.push(&w.sub.topic),
                None => by_pubsub.push((&w.sub.pubsub, vec![&w.sub.topic])),
            }
        }
        for (pubsub, topics) in by_pubsub {
            tracing::info!(
                target: "dapr.runtime",
                "app is subscribed to the following topics: [[{}]] through pubsub={pubsub}",
                topics.join(" "),
            );
        }
    }
}

impl State {
    fn take_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// Stops all of them; whether all work finished within `drain`.
async fn end(runs: Vec<Run>, drain: Duration) -> bool {
    runs.iter().for_each(Run::begin_stop);
    join_all(runs.iter().map(|run| run.stop(drain))).await.into_iter().all(|finished| finished)
}

fn key(sub: &AppSubscription) -> Key {
    (sub.pubsub.clone(), sub.topic.clone())
}

fn failed(req: &StreamRequest, cause: &str) -> ApiError {
    let text = format!("failed to subscribe to topic {} of pubsub {}: {cause}", req.topic, req.pubsub);
    ApiError::new(Code::Generic, ErrorKind::Unavailable, text)
}

#[cfg(test)]
#[path = "subscriptions_tests.rs"]
mod tests;
