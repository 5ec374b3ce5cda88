//! One instance takes another's place: new first, switch, drain, close.

use std::sync::{Arc, Weak};
use std::time::Duration;

use mecha_components_api::CancellationToken;
use mecha_resources::Component;
use parking_lot::Mutex;

use super::instance::{Draft, Instance, Parts, Source};
use super::{Failure, Loader, MOST_DRAINING};
use crate::bindings::Leaving;
use crate::etag::EtagMark;
use crate::pubsub::{Leave, Swap};
use crate::store::drain_until;
use crate::swap::{Drained, Pending};

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
/// How long an old broker is read at most.
const READ_OLD: Duration = Duration::from_secs(90);

/// Said of an instance that is not read to its end.
const TAKEN_OVER: &str = "a later change came back to it: what was left there is for the instance of that change";

/// Replaced instances that are read until they are empty, by name and by what they read. A later instance
/// that reads the same takes the reading over.
#[derive(Default)]
pub(super) struct Emptying(Mutex<Vec<(String, Source, Weak<CancellationToken>)>>);

impl Emptying {
    /// One more; it is off the list once the token is dropped.
    fn add(&self, name: &str, source: Option<Source>) -> Arc<CancellationToken> {
        let taken_over = Arc::default();
        let mut all = self.0.lock();
        all.retain(|(.., token)| token.strong_count() > 0);
        all.extend(source.map(|source| (name.to_owned(), source, Arc::downgrade(&taken_over))));
        taken_over
    }

    fn take_over(&self, name: &str, source: &Source) {
        let all = self.0.lock();
        let mine = all.iter().filter(|(n, s, _)| n == name && s == source);
        mine.filter_map(|(.., token)| token.upgrade()).for_each(|token| token.cancel());
    }
}

/// Said of an instance that was left before it was read to its end.
const NOT_EMPTIED: &str = "the old one was not read to its end: what is left there is delivered once a component of \
                           this app reads it again";

/// What reads from an instance that is left.
#[derive(Default)]
pub(super) struct Readers {
    pub(super) subscriptions: Option<Swap>,
    pub(super) input: Option<Leaving>,
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
                            let _ = late.drain(false, SHORT_GRACE, &CancellationToken::new()).await;
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

    /// Waits until everything that was replaced is closed, `limit` at most.
    pub async fn left(&self, limit: Duration) {
        let all = u32::try_from(MOST_DRAINING).unwrap_or(u32::MAX);
        let _ = tokio::time::timeout(limit, self.draining.acquire_many(all)).await;
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
            drain_all(old, readers, true, 1, SHORT_GRACE, &never, stopping).await;
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
        &self,
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
        let taken_over = match (same_place, old.info()) {
            (false, Some(info)) => self.emptying.add(&info.name, old.source()),
            _ => Arc::default(),
        };
        let pending = pending.map(|mut pending| {
            if let Some(receipt) = pending.receipt() {
                receipt.data_moved = moved;
            }
            pending.switched(in_flight);
            pending
        });
        // The number that drains is bounded; a change that finds too many waits here.
        let permit = self.draining.clone().acquire_owned().await;
        let stopping = self.core.tasks.stopping().clone();
        self.core.tasks.spawn("drain of a replaced component", async move {
            let _permit = permit;
            let drained = drain_all(old, readers, same_place, in_flight, GRACE, &taken_over, &stopping).await;
            let Some(mut pending) = pending else { return };
            let receipt = pending.receipt();
            if taken_over.is_cancelled() {
                receipt.into_iter().for_each(|r| r.reason = Some(TAKEN_OVER.to_owned()));
            } else if drained.emptied == Some(false) {
                if let Some(receipt) = receipt {
                    let (name, before) = (&receipt.name, receipt.from.as_deref().unwrap_or_default());
                    tracing::warn!(
                        target: "dapr.runtime.hotreload", "component {name}, before as {before}: {NOT_EMPTIED}"
                    );
                    receipt.reason = Some(NOT_EMPTIED.to_owned());
                }
                return pending.cut_off(drained);
            }
            pending.ended(drained);
        });
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

/// Drains and closes `old`. Once `taken_over` fires, nobody waits until what it reads is empty.
pub(super) async fn drain_all(
    old: Parts,
    readers: Readers,
    same_place: bool,
    in_flight: u64,
    grace: Duration,
    taken_over: &CancellationToken,
    stopping: &CancellationToken,
) -> Drained {
    let mut drained = Drained::default();
    if let Some(swap) = readers.subscriptions {
        let (leave, deadline) = if same_place { (Leave::AtOnce, grace) } else { (Leave::WhenIdle(IDLE), READ_OLD) };
        drained = drained.and(swap.drain(leave, deadline, grace, taken_over).await);
    }
    if let Some(input) = readers.input {
        let deadline = if same_place { grace } else { READ_OLD };
        drained = drained.and(input.drain(!same_place, deadline, taken_over).await);
    }
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
