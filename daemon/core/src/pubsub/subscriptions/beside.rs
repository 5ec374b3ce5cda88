//! What subscriptions are on besides the instance that publishers meet: the other side of a component that moves,
//! and instances that were replaced and are read to their end.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Entry, Key, Left, Phase, Run, Slot, State, Subscriptions, Swap, key};
use crate::app::AppSubscription;
use crate::pubsub::busy::REDELIVERY;
use crate::pubsub::route::Routes;
use crate::pubsub::stream::Wire;
use crate::pubsub::target::Target;
use crate::store::PubSubHandle;

/// A stream that ended with nothing to deliver for this long leaves nothing behind.
const SILENT: Duration = Duration::from_secs(3);

/// Another instance of one component, and what reads from it.
pub(super) struct Beside {
    pub(super) handle: Arc<PubSubHandle>,
    runs: HashMap<Key, Entry>,
    streams: HashMap<u64, Entry>,
    /// What is read from it at most: a topic that somebody subscribes to after it was replaced is none of its.
    only: Option<HashSet<Key>>,
    /// Topics whose stream ended before all was delivered, and was not opened again.
    unread: HashSet<Key>,
}

/// How far a second instance is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Subscriptions that read from it.
    pub subscriptions: u64,
    /// Subscriptions that are not in place.
    pub missing: u64,
    /// The error of one of them.
    pub cause: Option<Arc<str>>,
    /// Events in flight.
    pub in_flight: u64,
    /// Events that went back to the broker.
    pub given_back: u64,
    /// Nothing came for the time asked about, from brokers that can be reached.
    pub empty: bool,
    /// When an event was settled last, or failed that had not failed before.
    pub(super) news: Option<Instant>,
    /// Nobody takes events at the moment.
    pub(super) paused: bool,
}

impl Beside {
    fn new(handle: Arc<PubSubHandle>) -> Self {
        Self { handle, runs: HashMap::new(), streams: HashMap::new(), only: None, unread: HashSet::new() }
    }

    /// What is left of an instance, to be read to its end.
    pub(super) fn of(handle: Arc<PubSubHandle>, left: Vec<Left>, only: Option<HashSet<Key>>) -> Self {
        let mut beside = Self { only, ..Self::new(handle) };
        for Left { slot, sub, run } in left {
            match slot {
                Slot::App(key) => drop(beside.runs.insert(key, Entry { sub, run })),
                Slot::Stream(id) => drop(beside.streams.insert(id, Entry { sub, run })),
            }
        }
        beside
    }

    fn all(&self) -> impl Iterator<Item = &Run> {
        self.runs.values().chain(self.streams.values()).map(|e| &e.run)
    }

    fn takes(&self, key: &Key) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(key))
    }

    /// Takes the app's runs; those of streams go on.
    pub(super) fn pause(&mut self) -> impl Iterator<Item = Run> + use<> {
        std::mem::take(&mut self.runs).into_values().map(|e| e.run)
    }

    /// Takes what reads for streams whose clients are `gone`.
    pub(super) fn close_streams(&mut self, gone: impl Fn(u64) -> bool) -> Vec<Run> {
        let closed: Vec<Entry> = self.streams.extract_if(|id, _| gone(*id)).map(|(_, entry)| entry).collect();
        self.unread.extend(closed.iter().filter(|e| !e.run.is_idle(SILENT)).map(|e| key(&e.sub)));
        closed.into_iter().map(|e| e.run).collect()
    }

    pub(super) fn into_runs(self) -> impl Iterator<Item = Run> {
        self.runs.into_values().chain(self.streams.into_values()).map(|e| e.run)
    }
}

impl State {
    /// Every instance besides those that publishers meet.
    pub(super) fn others(&mut self) -> impl Iterator<Item = &mut Beside> {
        self.beside.values_mut().chain(self.leaving.values_mut())
    }
}

impl Subscriptions {
    /// Reads a second instance of a component as well, from now on: every subscription of the component is
    /// on both. Does not wait; what fails to start is tried again for ever. An instance that was read
    /// beside before is left at once.
    pub async fn read_beside(&self, handle: Arc<PubSubHandle>) {
        let _turn = self.turn.lock().await;
        let name = handle.info.name.to_string();
        let before = self.state.lock().beside.insert(name, Beside::new(handle));
        drop(before);
        self.reconcile_beside();
    }

    /// Lets the second instance take the place of the first and the first that of the second. `publish` is
    /// run in between, before anything else may start or stop.
    ///
    /// # Errors
    /// A subscription of the second instance was not in place within `limit`; nothing has changed.
    pub async fn exchange_sides(
        &self,
        pubsub: &str,
        first: Option<Arc<PubSubHandle>>,
        limit: Duration,
        publish: impl Future<Output = ()>,
    ) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let reading = self.reading_beside(pubsub, Duration::ZERO).unwrap_or_default();
            if reading.missing == 0 {
                break;
            }
            if tokio::time::Instant::now() >= deadline {
                let cause = reading.cause.map_or_else(String::new, |e| format!(": {e}"));
                return Err(format!("its subscriptions were not in place within {limit:?}{cause}"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        publish.await;
        let mut state = self.state.lock();
        let Some(second) = state.beside.remove(pubsub) else { return Ok(()) };
        let keys: Vec<Key> = state.runs.keys().filter(|(p, _)| p == pubsub).cloned().collect();
        let mut runs = HashMap::new();
        for key in keys {
            runs.extend(state.runs.remove_entry(&key));
        }
        state.runs.extend(second.runs);
        let mut streams = HashMap::new();
        let mut seconds = second.streams;
        for (id, stream) in state.streams.iter_mut().filter(|(_, s)| *s.sub.pubsub == *pubsub) {
            let before = std::mem::replace(&mut stream.run, seconds.remove(id).map(|e| e.run));
            streams.extend(before.map(|run| (*id, Entry { sub: stream.sub.clone(), run })));
        }
        if let Some(handle) = first {
            state.beside.insert(pubsub.to_owned(), Beside { runs, streams, ..Beside::new(handle) });
        }
        Ok(())
    }

    /// Ends the reading of the second instance, to be drained.
    pub async fn leave_beside(self: &Arc<Self>, pubsub: &str) -> Option<Swap> {
        let _turn = self.turn.lock().await;
        let Beside { handle: new, runs, streams, .. } = self.state.lock().beside.remove(pubsub)?;
        let apps = runs.into_iter().map(|(key, Entry { sub, run })| Left { slot: Slot::App(key), sub, run });
        let streams = streams.into_iter().map(|(id, Entry { sub, run })| Left { slot: Slot::Stream(id), sub, run });
        Some(Swap::new(self.clone(), new, apps.chain(streams).collect()))
    }

    /// How far the second instance is read; `idle` is the silence that counts as empty. `None` where
    /// there is none.
    #[must_use]
    pub fn reading_beside(&self, pubsub: &str, idle: Duration) -> Option<Reading> {
        let state = self.state.lock();
        Some(self.reading(&state, state.beside.get(pubsub)?, idle))
    }

    /// The silence after which even what another consumer took and did not settle has come again.
    #[must_use]
    pub const fn longest_redelivery() -> Duration {
        REDELIVERY
    }

    /// Brings what reads from other instances in line with what is wanted. Does not wait.
    pub(super) fn reconcile_beside(&self) {
        let mut gone: Vec<Run> = Vec::new();
        let mut state = self.state.lock();
        let State { beside, leaving, wanted, streams, phase, .. } = &mut *state;
        for beside in beside.values_mut().chain(leaving.values_mut()) {
            let pubsub = beside.handle.info.name.clone();
            let mine = wanted.iter().filter(|w| *phase == Phase::Running && *w.sub.pubsub == *pubsub);
            let mine: HashMap<Key, Arc<AppSubscription>> = mine.map(|w| (key(&w.sub), w.sub.clone())).collect();
            let stale = |key: &Key, entry: &Entry| mine.get(key).is_none_or(|sub| entry.sub != *sub);
            if *phase == Phase::Running {
                let keys: Vec<Key> = beside.runs.iter().filter(|(k, e)| stale(k, e)).map(|(k, _)| k.clone()).collect();
                gone.extend(keys.iter().filter_map(|k| beside.runs.remove(k)).map(|e| e.run));
            }
            for (key, sub) in mine {
                if !beside.runs.contains_key(&key)
                    && beside.takes(&key)
                    && let Some((target, routes)) = self.app_target(&sub)
                    && let Some(run) = self.launch(&sub, beside.handle.clone(), target, routes)
                {
                    beside.runs.insert(key, Entry { sub, run });
                }
            }
            for (id, stream) in streams.iter().filter(|(_, s)| *s.sub.pubsub == *pubsub) {
                self.launch_stream(beside, *id, &stream.sub, &stream.wire);
            }
        }
        drop(state);
        // Their tasks drain them; nobody has to wait.
        drop(gone);
    }

    /// Lets a stream read from another instance, too.
    pub(super) fn launch_stream(&self, beside: &mut Beside, id: u64, sub: &Arc<AppSubscription>, wire: &Arc<Wire>) {
        let key = key(sub);
        if !beside.streams.contains_key(&id)
            && beside.takes(&key)
            && let Some(run) = self.launch(sub, beside.handle.clone(), Target::Stream(wire.clone()), Routes::to("/"))
        {
            beside.streams.insert(id, Entry { sub: sub.clone(), run });
            beside.unread.remove(&key);
        }
    }

    pub(super) fn reading(&self, state: &State, beside: &Beside, idle: Duration) -> Reading {
        let wanted = state.wanted.iter().filter(|w| *w.sub.pubsub == *beside.handle.info.name);
        // Subscriptions that a scope keeps out are neither here nor there.
        let may = |sub: &AppSubscription| beside.handle.extra.scopes.may_subscribe(&sub.topic);
        let wanted = wanted.filter(|w| may(&w.sub) && beside.takes(&key(&w.sub))).count();
        let mut reading = Reading { empty: beside.unread.is_empty(), ..Reading::default() };
        for run in beside.all() {
            reading.subscriptions += 1;
            reading.in_flight += run.in_flight();
            reading.given_back += run.given_back();
            let standing = run.standing();
            reading.missing += u64::from(standing.is_err());
            reading.empty &= standing.is_ok() && run.is_idle(idle);
            reading.cause = reading.cause.or(standing.err().flatten());
            reading.news = reading.news.max(Some(run.news()));
        }
        // Nobody looks what the broker holds for them: the app is not well, or takes events again in a moment.
        let unread = beside.runs.len() < wanted && self.app.get().is_some();
        reading.paused = unread && state.phase != Phase::Running;
        reading.empty &= !unread;
        reading
    }
}
