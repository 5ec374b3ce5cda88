//! One instance takes another's place: new first, switch, drain, close.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use mecha_components_api::CancellationToken;
use mecha_resources::Component;
use parking_lot::Mutex;

use super::instance::{Draft, Instance, Parts, Source};
use super::{Failure, Loader, MOST_DRAINING};
use crate::bindings::Leaving;
use crate::etag::EtagMark;
use crate::pubsub::{Leave, Swap};
use crate::store::drain_until;
use crate::swap::{Drained, Patience, Pending};

/// How long the subscriptions or the source of a new instance may take to be in place before the
/// old one stays, or is left anyway where the mode does not keep it. The old one serves meanwhile.
pub(super) const ATTACH: Duration = Duration::from_secs(15);
/// How long calls and events in flight on an old instance may go on.
pub(super) const GRACE: Duration = Duration::from_secs(30);
/// The same where the next instance waits for it, and nothing serves meanwhile.
const SHORT_GRACE: Duration = Duration::from_secs(3);
/// A broker that delivered nothing for this long counts as empty. Longer than other sidecars
/// take to switch their publishers after one edit that all of them see.
pub(super) const IDLE: Duration = Duration::from_secs(3);
/// How long an old broker, or an old source of events, is read on. One that delivers may have a long way to go, and
/// costs little; it ends all the same where somebody goes on writing there.
const READ_OLD: Patience = Patience { stalled: Duration::from_secs(90), whole: Duration::from_secs(24 * 3600) };

/// Said of an instance that is not read to its end.
const TAKEN_OVER: &str = "a later change came back to it: what was left there is for the instance of that change";

/// Replaced instances that are read until they are empty. A later instance that reads the same takes the reading over,
/// and so does the next runtime.
#[derive(Default)]
pub(super) struct Emptying(Mutex<Readings>);

#[derive(Default)]
struct Readings {
    all: Vec<Weak<OldReading>>,
    /// The next runtime, once there is one.
    heir: Option<Arc<Loader>>,
}

/// The reading of a replaced instance.
#[derive(Default)]
pub(super) struct OldReading {
    name: String,
    source: Option<Source>,
    /// Somebody else reads on.
    over: CancellationToken,
    /// The next runtime, where it is that.
    heir: OnceLock<Arc<Loader>>,
}

impl OldReading {
    /// Fires when somebody else reads on.
    pub(super) fn over(&self) -> &CancellationToken {
        &self.over
    }

    fn hand_on(&self, heir: &Arc<Loader>) {
        if self.heir.set(heir.clone()).is_ok() {
            self.over.cancel();
        }
    }
}

impl Emptying {
    /// One more; it is off the list once it is dropped.
    pub(super) fn add(&self, name: &str, source: Option<Source>) -> Arc<OldReading> {
        let reading = Arc::new(OldReading { name: name.to_owned(), source, ..OldReading::default() });
        let mut readings = self.0.lock();
        readings.all.retain(|reading| reading.strong_count() > 0);
        readings.all.push(Arc::downgrade(&reading));
        if let Some(heir) = &readings.heir {
            reading.hand_on(heir);
        }
        reading
    }

    fn hand_on(&self, heir: &Arc<Loader>) {
        self.0.lock().heir = Some(heir.clone());
        self.all().iter().for_each(|reading| reading.hand_on(heir));
    }

    fn all(&self) -> Vec<Arc<OldReading>> {
        self.0.lock().all.iter().filter_map(Weak::upgrade).collect()
    }

    fn take_over(&self, name: &str, source: &Source) {
        let all = self.all();
        let mine = all.iter().filter(|r| r.name == name && r.source.as_ref() == Some(source));
        mine.for_each(|reading| reading.over.cancel());
    }
}

/// What reads from an instance that is left.
#[derive(Default)]
pub(super) struct Readers {
    pub(super) subscriptions: Option<Swap>,
    pub(super) input: Option<Leaving>,
}

/// How an instance is left.
#[derive(Clone, Copy)]
pub(super) struct Rest {
    /// What follows it reads the same, or nothing follows: nothing has to be read to its end.
    pub(super) same_place: bool,
    /// Calls and events in flight at the switch.
    pub(super) in_flight: u64,
    /// What they get to end.
    pub(super) grace: Duration,
}

impl Loader {
    /// Puts `instance` in the place of whatever has its name, and lets that drain in the
    /// background.
    ///
    /// # Errors
    /// Why the old instance stays; the new one is closed then.
    pub(super) async fn exchange(
        self: &Arc<Self>,
        instance: Instance,
        pending: &mut Option<Pending>,
    ) -> Result<(), String> {
        let core = &self.core;
        let name = instance.info.name.clone();
        let old = Parts::of(&core.store.snapshot(), &name);
        instance.follow(old.as_ref().and_then(Parts::etags));
        let parts = instance.parts.clone();
        let same_place = old.as_ref().is_some_and(|old| old.same_place(&parts));
        let publish = async { core.store.edit(|s| instance.publish(s)).await };
        let mut readers = Readers::default();
        // Users of the old instance that are no calls.
        let mut standing = 0;
        match &parts {
            Parts::PubSub(new) => {
                let keeps = self.cx.strict && matches!(old, Some(Parts::PubSub(_)));
                let swap = core.pubsub.manager().switch(new.clone(), ATTACH, keeps, publish).await;
                if keeps && !swap.attached() {
                    swap.roll_back(SHORT_GRACE).await;
                    parts.close().await;
                    return Err(format!("its subscriptions were not in place within {ATTACH:?}"));
                }
                standing = swap.subscriptions();
                readers.subscriptions = Some(swap);
            }
            Parts::Binding { input, .. } => {
                let keeps = self.cx.strict && matches!(old, Some(Parts::Binding { .. }));
                readers.input = match input {
                    // First, so that what callers of the new one write is within its reach.
                    Some(input) => match self.inputs.replace(core, input.clone(), ATTACH, keeps).await {
                        Ok(before) => before,
                        Err(late) => {
                            let _ = late.drain(&self.inputs, None, SHORT_GRACE, &CancellationToken::new()).await;
                            parts.close().await;
                            return Err(format!("its source was not in place within {ATTACH:?}"));
                        }
                    },
                    None => self.inputs.remove(&name),
                };
                publish.await;
            }
            Parts::Configuration(new) => {
                publish.await;
                if let Some(Parts::Configuration(before)) = &old {
                    standing = core.configuration.follow(before, new).await as u64;
                }
            }
            Parts::State(_) | Parts::Secret(_) | Parts::Lock(_) => publish.await,
        }
        if let Some(source) = parts.source() {
            self.emptying.take_over(&name, &source);
        }
        let Some(old) = old else {
            if let Some(pending) = pending.take() {
                settle(pending, 0, None, Drained::default());
            }
            return Ok(());
        };
        if std::mem::discriminant(&old) != std::mem::discriminant(&parts) {
            // Its name belongs to another block now.
            self.leave_readers(&old, &name, &mut readers).await;
        }
        let moved = (old.holds_data() && !same_place).then_some(false);
        self.retire(old, readers, same_place, standing, moved, pending.take()).await;
        Ok(())
    }

    /// Waits until everything that was replaced is closed.
    pub async fn left(&self) {
        let all = u32::try_from(MOST_DRAINING).unwrap_or(u32::MAX);
        let _ = self.draining.acquire_many(all).await;
    }

    /// Lets the runtime that takes this one's place read on what is not at its end yet.
    pub fn hand_on(&self, heir: &Arc<Self>) {
        self.emptying.hand_on(heir);
    }

    /// Takes what has `name` out of use and lets it drain in the background.
    pub(super) async fn withdraw(self: &Arc<Self>, name: &str, pending: Option<Pending>) {
        let old = self.take_out(name).await;
        let Some(old) = old else {
            if let Some(pending) = pending {
                settle(pending, 0, None, Drained::default());
            }
            return;
        };
        let mut readers = Readers::default();
        self.leave_readers(&old, name, &mut readers).await;
        self.retire(old, readers, true, 0, None, pending).await;
    }

    /// The short order, for instances that cannot exist beside each other: the old one ends
    /// before the new one is built, and comes back when that fails. Until then calls are told
    /// that the component is being replaced.
    pub(super) async fn in_short_order(
        self: &Arc<Self>,
        c: &Component,
        draft: Draft,
        before: &Component,
    ) -> Result<Instance, (Failure, bool)> {
        let name = c.meta.name.as_str();
        let old = self.take_out(name).await;
        self.degrade(c, "it is being replaced, and its two instances cannot share what they need").await;
        let etags = old.as_ref().and_then(Parts::etags).map(EtagMark::copy);
        if let Some(old) = old {
            let mut readers = Readers::default();
            self.leave_readers(&old, name, &mut readers).await;
            let (never, stopping) = (CancellationToken::new(), self.core.tasks.stopping());
            // Nothing serves meanwhile, so a copy that would be waited for must not be left.
            let rest = Rest { same_place: true, in_flight: 1, grace: SHORT_GRACE };
            self.drain_all(old, readers, rest, &never, stopping).await;
        }
        match self.make(c, draft, true).await {
            Ok(instance) => {
                instance.follow(etags.as_ref());
                Ok(instance)
            }
            Err(failure) => {
                let restored = match self.restore(before, etags.as_ref()).await {
                    Ok(()) => true,
                    Err(e) => {
                        tracing::error!(
                            target: "dapr.runtime.processor",
                            "component {name}: what ran before could not be brought back: {e}"
                        );
                        false
                    }
                };
                Err((failure, restored))
            }
        }
    }

    async fn restore(self: &Arc<Self>, before: &Component, etags: Option<&EtagMark>) -> Result<(), String> {
        let drawn = self.draw(before).await;
        let draft = self.draft(before, &drawn).map_err(|f| f.cause)?;
        let instance = self.make(before, draft, false).await.map_err(|f| f.cause)?;
        instance.follow(etags);
        self.exchange(instance, &mut None).await
    }

    async fn take_out(&self, name: &str) -> Option<Parts> {
        self.core
            .store
            .edit(|s| {
                let old = Parts::of(s, name);
                Parts::remove(s, name);
                s.degraded.remove(name);
                s.listed.retain(|i| *i.name != *name);
                old
            })
            .await
    }

    /// Ends what reads from an instance that nothing follows.
    async fn leave_readers(&self, old: &Parts, name: &str, readers: &mut Readers) {
        match old {
            Parts::PubSub(_) => {
                // The subscriptions stay wanted, for the day the component comes back.
                let drained = self.core.pubsub.manager().leave(name, GRACE).await;
                if drained.failed > 0 {
                    tracing::warn!(
                        target: "dapr.runtime.processor",
                        "component {name}: some events did not end in time; the broker delivers them again"
                    );
                }
            }
            Parts::Binding { .. } => readers.input = self.inputs.remove(name),
            Parts::Configuration(_) => self.core.configuration.forget(name),
            Parts::State(_) | Parts::Secret(_) | Parts::Lock(_) => {}
        }
    }

    /// Lets an instance that nobody finds any more drain, then closes it.
    async fn retire(
        self: &Arc<Self>,
        old: Parts,
        readers: Readers,
        same_place: bool,
        standing: u64,
        moved: Option<bool>,
        pending: Option<Pending>,
    ) {
        let events = readers.subscriptions.as_ref().map_or(0, Swap::in_flight)
            + readers.input.as_ref().map_or(0, Leaving::in_flight);
        let in_flight = old.users().saturating_sub(standing) + events;
        let pending = pending.map(|mut pending| {
            if let Some(receipt) = pending.receipt() {
                receipt.data_moved = moved;
            }
            pending.switched(in_flight);
            pending
        });
        let rest = Rest { same_place, in_flight, grace: GRACE };
        self.let_drain(old, readers, rest, Drained::default(), pending).await;
    }

    /// Drains and closes an instance in the background; `before` is what happened to it so far.
    async fn let_drain(
        self: &Arc<Self>,
        old: Parts,
        readers: Readers,
        rest: Rest,
        before: Drained,
        pending: Option<Pending>,
    ) {
        let reading = match (rest.same_place, old.info()) {
            (false, Some(info)) => self.emptying.add(&info.name, old.source()),
            _ => Arc::default(),
        };
        // The number that drains is bounded; a change that finds too many waits here.
        let permit = self.draining.clone().acquire_owned().await;
        let (loader, stopping) = (self.clone(), self.core.tasks.stopping().clone());
        self.core.tasks.spawn("drain of a replaced component", async move {
            let _permit = permit;
            let drained = before.and(loader.read_on(&old, readers, rest, &reading.over).await);
            if let Some(heir) = reading.heir.get() {
                return heir.take_up(old, rest, drained, pending).await;
            }
            let drained = close(old, drained, rest, &stopping).await;
            let Some(mut pending) = pending else { return };
            let receipt = pending.receipt();
            if reading.over.is_cancelled() {
                receipt.into_iter().for_each(|r| r.reason = Some(TAKEN_OVER.to_owned()));
            } else if let Some(cut) = drained.cut {
                if let Some(receipt) = receipt {
                    let (name, before) = (&receipt.name, receipt.from.as_deref().unwrap_or_default());
                    let reason = format!(
                        "the old one was not read to its end, {cut}: what is left there is delivered once a component \
                         of this app reads it again"
                    );
                    tracing::warn!(
                        target: "dapr.runtime.hotreload", "component {name}, before as {before}: {reason}"
                    );
                    receipt.reason = Some(reason);
                }
                return pending.cut_off(drained);
            }
            pending.ended(drained);
        });
    }

    /// Reads on what the runtime before has left, unless it is read here anyway. Boxed, because its end may lead here
    /// again.
    fn take_up(
        self: &Arc<Self>,
        old: Parts,
        rest: Rest,
        before: Drained,
        pending: Option<Pending>,
    ) -> BoxFuture<'_, ()> {
        let snapshot = self.core.store.snapshot();
        let own = old.info().and_then(|info| Parts::of(&snapshot, &info.name));
        let same_place = own.is_some_and(|own| own.same_place(&old));
        let readers = match &old {
            Parts::PubSub(h) if !same_place => {
                Readers { subscriptions: Some(self.core.pubsub.manager().take_up(h.clone())), input: None }
            }
            Parts::Binding { input: Some(h), .. } if !same_place => {
                Readers { subscriptions: None, input: self.inputs.take_up(&self.core, h.clone()) }
            }
            _ => Readers::default(),
        };
        self.let_drain(old, readers, Rest { same_place, ..rest }, before, pending).boxed()
    }

    /// Lets what reads from an instance end. Once `over` fires, nobody waits until it is empty.
    async fn read_on(&self, old: &Parts, readers: Readers, rest: Rest, over: &CancellationToken) -> Drained {
        let mut drained = Drained::default();
        if let Some(swap) = readers.subscriptions {
            let leave = if rest.same_place { Leave::AtOnce(rest.grace) } else { Leave::WhenIdle(IDLE, READ_OLD) };
            let handle = match old {
                Parts::PubSub(h) => Some(h.clone()),
                _ => None,
            };
            drained = drained.and(swap.drain(handle, leave, rest.grace, over).await);
        }
        if let Some(input) = readers.input {
            let patience = (!rest.same_place).then_some(READ_OLD);
            drained = drained.and(input.drain(&self.inputs, patience, rest.grace, over).await);
        }
        drained
    }

    /// Drains and closes an instance. Once `over` fires, nobody waits until what it reads is empty.
    pub(super) async fn drain_all(
        &self,
        old: Parts,
        readers: Readers,
        rest: Rest,
        over: &CancellationToken,
        stopping: &CancellationToken,
    ) -> Drained {
        let drained = self.read_on(&old, readers, rest, over).await;
        close(old, drained, rest, stopping).await
    }
}

/// A change with nothing to drain.
fn settle(mut pending: Pending, in_flight: u64, moved: Option<bool>, drained: Drained) {
    if let Some(receipt) = pending.receipt() {
        receipt.data_moved = moved;
    }
    pending.switched(in_flight);
    pending.ended(drained);
}

/// Closes an instance once its last user is gone, and completes the account of it.
async fn close(old: Parts, drained: Drained, rest: Rest, stopping: &CancellationToken) -> Drained {
    let Rest { in_flight, grace, .. } = rest;
    let left = match old {
        Parts::State(h) => drain_until(h, grace, stopping).await,
        Parts::PubSub(h) => drain_until(h, grace, stopping).await,
        Parts::Secret(h) => drain_until(h, grace, stopping).await,
        Parts::Configuration(h) => drain_until(h, grace, stopping).await,
        Parts::Lock(h) => drain_until(h, grace, stopping).await,
        Parts::Binding { input, output } => {
            let mut left = 0;
            if let Some(h) = output {
                left += drain_until(h, grace, stopping).await;
            }
            if let Some(h) = input {
                left += drain_until(h, grace, stopping).await;
            }
            left
        }
    };
    let failed = drained.failed + left;
    Drained { in_flight, finished: in_flight.saturating_sub(failed), failed, ..drained }
}
