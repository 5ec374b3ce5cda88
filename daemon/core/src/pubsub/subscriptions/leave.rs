//! An instance gives its place to the next one, and is left.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use mecha_components_api::CancellationToken;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::beside::Beside;
use super::{Key, Left, Phase, Run, Slot, Subscriptions, key};
use crate::store::PubSubHandle;
use crate::swap::{Cut, Drained, Patience, Reader};

/// Pause between two looks whether an instance has become silent.
const LOOK: Duration = Duration::from_millis(20);
/// What a broker gets to say that it is still there, before its silence counts.
const REACH: Duration = Duration::from_secs(5);

/// A pub/sub component on its way from one instance to the next. Both deliver until it ends.
/// Dropping it stops the old instance's subscriptions without waiting.
#[must_use = "the old subscriptions go on until the swap is finished"]
pub struct Swap {
    owner: Arc<Subscriptions>,
    new: Arc<PubSubHandle>,
    old: Vec<Left>,
    attached: bool,
    /// Ends once the new ones read by themselves.
    reads: Vec<BoxFuture<'static, ()>>,
    /// Events in flight, and given back so far, on the old instance at the switch.
    at_switch: (u64, u64),
    /// What was wanted at the switch; `None` where the old instance is from a runtime that this one took the place of.
    only: Option<HashSet<Key>>,
}

/// When an instance that was replaced is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Once the next one, which reads the same topics at the same place, reads, within this time.
    AtOnce(Duration),
    /// Once it had nothing to deliver for this long, or the patience is over.
    WhenIdle(Duration, Patience),
}

/// How the reading of an instance ended.
enum End {
    Empty,
    TakenOver,
    Cut(Cut),
}

impl fmt::Debug for Swap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Swap").field("old", &self.old.len()).field("attached", &self.attached).finish_non_exhaustive()
    }
}

impl Swap {
    pub(super) fn new(owner: Arc<Subscriptions>, new: Arc<PubSubHandle>, old: Vec<Left>) -> Self {
        let at_switch = old.iter().fold((0, 0), |(a, b), l| (a + l.run.in_flight(), b + l.run.given_back()));
        let only = {
            let state = owner.state.lock();
            let wanted = state.wanted.iter().map(|w| &w.sub).chain(state.streams.values().map(|s| &s.sub));
            let mine = wanted.filter(|sub| *sub.pubsub == *new.info.name).map(|sub| key(sub));
            Some(mine.chain(old.iter().map(|l| key(&l.sub))).collect())
        };
        Self { owner, new, old, attached: true, reads: Vec::new(), at_switch, only }
    }

    /// How far the new instance's subscriptions are.
    pub(super) fn with(self, attached: bool, reads: Vec<BoxFuture<'static, ()>>) -> Self {
        Self { attached, reads, ..self }
    }

    /// Whether every subscription of the new instance was in place in time.
    #[must_use]
    pub fn attached(&self) -> bool {
        self.attached
    }

    /// Subscriptions of the old instance.
    #[must_use]
    pub fn subscriptions(&self) -> u64 {
        self.old.len() as u64
    }

    /// Events that were in flight on the old instance at the switch.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.at_switch.0
    }

    /// Leaves the `old` instance: stops its subscriptions in the end, whose events in flight get `grace`. Once
    /// `taken_over` fires, a later instance reads the same topics at the same place: what is left there is for
    /// that one, and nobody waits for silence.
    pub async fn drain(
        self,
        old: Option<Arc<PubSubHandle>>,
        leave: Leave,
        grace: Duration,
        taken_over: &CancellationToken,
    ) -> Drained {
        // The new instance may be left itself while this one is read; no user of it may stay here.
        let Self { owner, new, old: left, reads, at_switch, only, .. } = self;
        drop(new);
        let (runs, end) = match (leave, old) {
            (Leave::WhenIdle(idle, patience), Some(old)) => {
                let (beside, end) = owner.read_on(old, (left, only), idle, patience, taken_over).await;
                (beside.into_iter().flat_map(Beside::into_runs).collect(), Some(end))
            }
            (leave, _) => {
                if let Leave::AtOnce(within) = leave {
                    let _ = timeout_at(Instant::now() + within, join_all(reads)).await;
                }
                (left.into_iter().map(|l| l.run).collect::<Vec<Run>>(), None)
            }
        };
        let (emptied, cut) = match end {
            Some(End::Empty) => (Some(true), None),
            Some(End::Cut(cut)) => (Some(false), Some(cut)),
            Some(End::TakenOver) | None => (None, None),
        };
        let grace = Cut::grace(cut, grace);
        let finished = join_all(runs.iter().map(|run| run.stop(grace))).await;
        let (in_flight, before) = at_switch;
        let redelivered = runs.iter().map(Run::given_back).sum::<u64>().saturating_sub(before);
        let failed = finished.iter().filter(|finished| !**finished).count() as u64;
        Drained { in_flight, finished: in_flight.saturating_sub(failed), redelivered, failed, emptied, cut }
    }

    /// Goes back to the old instance and stops the new one's subscriptions.
    pub async fn roll_back(mut self, drain: Duration) {
        let _turn = self.owner.turn.lock().await;
        let mut new = Vec::new();
        {
            let mut state = self.owner.state.lock();
            if state.phase != Phase::Stopped {
                for Left { slot, run, .. } in std::mem::take(&mut self.old) {
                    match slot {
                        Slot::App(key) => {
                            if let Some(entry) = state.runs.get_mut(&key) {
                                new.push(std::mem::replace(&mut entry.run, run));
                            }
                        }
                        Slot::Stream(id) => {
                            if let Some(stream) = state.streams.get_mut(&id) {
                                new.extend(stream.run.replace(run));
                            }
                        }
                    }
                }
                // What had no counterpart on the old instance.
                let is_new = |run: &Run| Arc::ptr_eq(run.handle(), &self.new);
                let keys: Vec<Key> =
                    state.runs.iter().filter(|(_, e)| is_new(&e.run)).map(|(k, _)| k.clone()).collect();
                new.extend(keys.iter().filter_map(|k| state.runs.remove(k)).map(|e| e.run));
                for stream in state.streams.values_mut() {
                    new.extend(stream.run.take_if(|run| is_new(run)));
                }
            }
        }
        join_all(new.iter().map(|run| run.stop(drain))).await;
    }
}

impl Subscriptions {
    /// An instance of the runtime that this one took the place of, to be read to its end. What reads from it comes
    /// with what is subscribed here.
    pub fn take_up(self: &Arc<Self>, handle: Arc<PubSubHandle>) -> Swap {
        Swap { only: None, ..Swap::new(self.clone(), handle, Vec::new()) }
    }

    /// Reads an instance to its end: what is wanted of what was wanted there, while the app is well. Gives back what
    /// still reads.
    async fn read_on(
        &self,
        handle: Arc<PubSubHandle>,
        (left, only): (Vec<Left>, Option<HashSet<Key>>),
        idle: Duration,
        patience: Patience,
        taken_over: &CancellationToken,
    ) -> (Option<Beside>, End) {
        // What the app wants is not known before it was asked.
        let mut unasked = only.is_none();
        let id = {
            let _turn = self.turn.lock().await;
            let mut gone: Vec<Run> = Vec::new();
            let id = {
                let mut state = self.state.lock();
                let mut beside = Beside::of(handle.clone(), left, only);
                // What happened since it was replaced.
                gone.extend(beside.close_streams(|id| !state.streams.contains_key(&id)));
                if state.phase == Phase::Still {
                    gone.extend(beside.pause());
                }
                let id = state.take_number();
                state.leaving.insert(id, beside);
                id
            };
            if self.state.lock().phase != Phase::Stopped {
                self.reconcile_beside();
            }
            // Outside the lock: a run that is dropped stops its subscription.
            drop(gone);
            id
        };
        let mut reader = Reader::begin(patience);
        // Silence before the switch says nothing: others may publish there until they have switched, too.
        let mut silent_from = Instant::now() + idle;
        let end = loop {
            let reading = {
                let state = self.state.lock();
                unasked &= state.phase == Phase::Still && self.app.get().is_some();
                state.leaving.get(&id).map(|beside| self.reading(&state, beside, idle)).unwrap_or_default()
            };
            if taken_over.is_cancelled() {
                break End::TakenOver;
            }
            if self.parts.tasks.stopping().is_cancelled() {
                break End::Cut(Cut::Stopped);
            }
            if reading.paused || unasked {
                reader.waits();
            } else if reading.empty && silent_from <= Instant::now() {
                if timeout(REACH, handle.inner.ping()).await.is_ok_and(|reached| reached.is_ok()) {
                    break End::Empty;
                }
                // Nobody knows what it holds: it has to be silent once more when it is back.
                silent_from = Instant::now() + idle;
            }
            if let Some(cut) = reader.over(reading.news) {
                break End::Cut(cut);
            }
            tokio::select! {
                () = taken_over.cancelled() => {}
                () = sleep(LOOK) => {}
            }
        };
        (self.state.lock().leaving.remove(&id), end)
    }
}
