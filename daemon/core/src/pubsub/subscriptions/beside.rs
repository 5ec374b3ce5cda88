//! A component that moves is read on both sides: what its subscriptions are on besides the instance that
//! publishers meet.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Entry, Key, Phase, Run, Slot, Subscriptions, Swap, key};
use crate::app::AppSubscription;
use crate::pubsub::route::Routes;
use crate::pubsub::run::REDELIVERY;
use crate::pubsub::target::Target;
use crate::store::PubSubHandle;

/// The second instance of one component, and what reads from it.
pub(super) struct Beside {
    pub(super) handle: Arc<PubSubHandle>,
    runs: HashMap<Key, Entry>,
    pub(super) streams: HashMap<u64, Run>,
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
}

impl Beside {
    fn new(handle: Arc<PubSubHandle>) -> Self {
        Self { handle, runs: HashMap::new(), streams: HashMap::new() }
    }

    fn all(&self) -> impl Iterator<Item = &Run> {
        self.runs.values().map(|e| &e.run).chain(self.streams.values())
    }

    /// Takes the app's runs; those of streams go on.
    pub(super) fn pause(&mut self) -> impl Iterator<Item = Run> + use<> {
        std::mem::take(&mut self.runs).into_values().map(|e| e.run)
    }

    pub(super) fn into_runs(self) -> impl Iterator<Item = (Slot, Run)> {
        let streams = self.streams.into_iter().map(|(id, run)| (Slot::Stream(id), run));
        self.runs.into_iter().map(|(key, entry)| (Slot::App(key), entry.run)).chain(streams)
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
            let before = std::mem::replace(&mut stream.run, seconds.remove(id));
            streams.extend(before.map(|run| (*id, run)));
        }
        if let Some(handle) = first {
            state.beside.insert(pubsub.to_owned(), Beside { handle, runs, streams });
        }
        Ok(())
    }

    /// Ends the reading of the second instance, to be drained.
    pub async fn leave_beside(self: &Arc<Self>, pubsub: &str) -> Option<Swap> {
        let _turn = self.turn.lock().await;
        let beside = self.state.lock().beside.remove(pubsub)?;
        let new = beside.handle.clone();
        let old: Vec<(Slot, Run)> = beside.into_runs().collect();
        let at_switch = old.iter().fold((0, 0), |(a, b), (_, run)| (a + run.in_flight(), b + run.given_back()));
        Some(Swap { owner: self.clone(), new, old, attached: true, reads: Vec::new(), at_switch })
    }

    /// How far the second instance is read; `idle` is the silence that counts as empty. `None` where
    /// there is none.
    #[must_use]
    pub fn reading_beside(&self, pubsub: &str, idle: Duration) -> Option<Reading> {
        let state = self.state.lock();
        let beside = state.beside.get(pubsub)?;
        let wanted = state.wanted.iter().filter(|w| *w.sub.pubsub == *pubsub);
        // Subscriptions that a scope keeps out are neither here nor there.
        let wanted = wanted.filter(|w| beside.handle.extra.scopes.may_subscribe(&w.sub.topic)).count() as u64;
        let mut reading = Reading { empty: true, ..Reading::default() };
        for run in beside.all() {
            reading.subscriptions += 1;
            reading.in_flight += run.in_flight();
            reading.given_back += run.given_back();
            let standing = run.standing();
            reading.missing += u64::from(standing.is_err());
            reading.empty &= standing.is_ok() && run.is_idle(idle);
            reading.cause = reading.cause.or(standing.err().flatten());
        }
        // While the app is not well nobody looks what the broker holds.
        reading.empty &= state.phase != Phase::Still || wanted == 0;
        Some(reading)
    }

    /// The silence after which even what another consumer took and did not settle has come again.
    #[must_use]
    pub const fn longest_redelivery() -> Duration {
        REDELIVERY
    }

    /// Brings what reads from second instances in line with what is wanted. Does not wait.
    pub(super) fn reconcile_beside(&self) {
        let mut gone: Vec<Run> = Vec::new();
        let mut state = self.state.lock();
        let super::State { beside, wanted, streams, phase, .. } = &mut *state;
        for (pubsub, beside) in beside.iter_mut() {
            let mine = wanted.iter().filter(|w| *phase == Phase::Running && *w.sub.pubsub == **pubsub);
            let mine: HashMap<Key, Arc<AppSubscription>> = mine.map(|w| (key(&w.sub), w.sub.clone())).collect();
            let stale = |key: &Key, entry: &Entry| mine.get(key).is_none_or(|sub| entry.sub != *sub);
            if *phase == Phase::Running {
                let keys: Vec<Key> = beside.runs.iter().filter(|(k, e)| stale(k, e)).map(|(k, _)| k.clone()).collect();
                gone.extend(keys.iter().filter_map(|k| beside.runs.remove(k)).map(|e| e.run));
            }
            for (key, sub) in mine {
                if !beside.runs.contains_key(&key)
                    && let Some((target, routes)) = self.app_target(&sub)
                    && let Some(run) = self.launch(&sub, beside.handle.clone(), target, routes)
                {
                    beside.runs.insert(key, Entry { sub, run });
                }
            }
            for (id, stream) in streams.iter().filter(|(_, s)| *s.sub.pubsub == **pubsub) {
                let (target, routes) = (Target::Stream(stream.wire.clone()), Routes::to("/"));
                if !beside.streams.contains_key(id)
                    && let Some(run) = self.launch(&stream.sub, beside.handle.clone(), target, routes)
                {
                    beside.streams.insert(*id, run);
                }
            }
        }
        drop(state);
        // Their tasks drain them; nobody has to wait.
        drop(gone);
    }
}
