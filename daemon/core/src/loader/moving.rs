//! Components that a control part moves from one backend to another: both sides are open, one has the new
//! work, and [`crate::sides`] says what comes next.

mod standing;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mecha_components_api::Hold;
use mecha_resources::Component;
use mecha_resources::kinds::SwapPhase;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::content::Drawn;
use super::exchange::{ATTACH, GRACE, IDLE, Readers, Rest};
use super::instance::{Instance, Parts};
use super::reconcile::{Entry, KIND, Running, Step, Trouble, excluded, kind_and_version};
use super::{Failure, LoadFailure, Loader};
use crate::pubsub::Subscriptions;
use crate::sides::{Act, Have, Side, Target, next};
use crate::swap::{Change, Drained, Pending, Subject};

pub use standing::Standing;

/// Acts of one settling; three lead from anywhere to anywhere.
const MOST_ACTS: usize = 8;
/// After so many tries a side that new work goes to counts as failed.
const FAILED_AFTER: u32 = 3;

/// A component that is wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Its document; of a move the new one.
    pub document: Component,
    /// The move that it takes part in.
    pub moving: Option<Moving>,
}

impl From<Component> for Wanted {
    fn from(document: Component) -> Self {
        Self { document, moving: None }
    }
}

impl Wanted {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.document.meta.name
    }
}

/// A move that goes on.
#[derive(Clone, Debug, PartialEq)]
pub struct Moving {
    /// Name of the old backend.
    pub from: String,
    /// Name of the new backend.
    pub to: String,
    /// How far it has come.
    pub phase: SwapPhase,
    /// The old document.
    pub previous: Component,
}

/// What a component has besides the instance that takes its work.
#[derive(Debug, Default)]
pub(super) struct Sides {
    beside: Option<Beside>,
    account: Option<Account>,
    old: Option<SideTrouble>,
    new: Option<SideTrouble>,
    /// Content of the old and the new document, where they differ.
    contents: Option<(u64, u64)>,
}

/// The instance that is open and has no new work.
#[derive(Debug)]
struct Beside {
    document: Component,
    content: u64,
    holds: Option<Hold>,
    instance: Instance,
    opened: Instant,
}

#[derive(Debug)]
struct SideTrouble {
    trouble: Trouble,
    cause: String,
}

/// What happened in a move so far.
#[derive(Debug)]
struct Account {
    receipt: Option<Pending>,
    /// The silence after which a broker counts as empty.
    silence: Duration,
    in_flight: u64,
    /// Events given back at the old side before the switch.
    given_back: u64,
    redelivered: u64,
    /// How the side that was closed ended, once it has.
    closing: Option<Arc<Closing>>,
}

#[derive(Debug, Default)]
struct Closing {
    done: AtomicBool,
    drained: Mutex<Drained>,
}

/// What a side is built from.
struct Material<'m> {
    document: &'m Component,
    drawn: &'m Drawn,
}

impl Sides {
    pub(super) fn is_idle(&self) -> bool {
        self.beside.is_none() && self.account.is_none()
    }

    /// Which side an instance is.
    fn which(&self, content: u64) -> Option<Side> {
        match self.contents? {
            (old, _) if old == content => Some(Side::Old),
            (_, new) if new == content => Some(Side::New),
            _ => None,
        }
    }

    fn trouble(&mut self, side: Side) -> &mut Option<SideTrouble> {
        match side {
            Side::Old => &mut self.old,
            Side::New => &mut self.new,
        }
    }

    /// When a side is to be tried again.
    pub(super) fn next_try(&self) -> Option<Instant> {
        let sides = [&self.old, &self.new].into_iter().flatten();
        sides.filter(|s| !s.trouble.lasting).map(|s| s.trouble.next).min()
    }
}

impl Beside {
    /// Calls in flight; `standing` are users that are none.
    fn calls(&self, standing: u64) -> u64 {
        self.instance.parts.users().saturating_sub(standing)
    }
}

impl Loader {
    /// Brings both sides of a moving component in line with its phase.
    pub(super) async fn settle_moving(
        self: &Arc<Self>,
        c: &Component,
        moving: &Moving,
        entry: &mut Entry,
        first: bool,
    ) -> Result<Step, LoadFailure> {
        if let Some(store) = [c, &moving.previous].into_iter().find_map(|d| self.missing_store(d)) {
            // What runs has its secrets already.
            return Ok(if entry.running.is_some() { Step::Unchanged } else { Step::Waits(store) });
        }
        let (old, new) = (self.draw(&moving.previous).await, self.draw(c).await);
        if old.content == new.content {
            // Two backends that come to the same: nothing moves here.
            self.close_beside(entry, &c.meta.name, true, false).await;
            entry.sides.contents = None;
            entry.moving = Some(moving.clone());
            return self.settle(c, entry, first).await;
        }
        // A build from before the move.
        entry.building = None;
        let unread: Vec<&str> = old.unread.iter().chain(&new.unread).map(String::as_str).collect();
        if entry.running.is_some() && !unread.is_empty() {
            let reason = format!("a secret it refers to cannot be read: {}", unread.join("; "));
            self.core.swaps.refuse(KIND, &c.meta.name, &reason);
            return Ok(Step::Unchanged);
        }
        let another_phase = entry.moving.as_ref().is_none_or(|m| m.phase != moving.phase);
        let fresh = entry.moving.is_none() && entry.running.is_none();
        entry.document = c.clone();
        entry.moving = Some(moving.clone());
        entry.trouble = None;
        entry.sides.contents = Some((old.content, new.content));
        let (old, new) = (Material { document: &moving.previous, drawn: &old }, Material { document: c, drawn: &new });
        let of = |side| match side {
            Side::Old => &old,
            Side::New => &new,
        };
        if entry.sides.beside.as_ref().is_some_and(|b| entry.sides.which(b.content).is_none()) {
            self.close_beside(entry, &c.meta.name, true, false).await;
        }
        if entry.sides.account.is_none() && moving.phase != SwapPhase::Finalize {
            entry.sides.account = Some(self.account(c, moving, fresh));
        }
        let before = self.rest(entry, &c.meta.name).pending();
        if let Some(receipt) = entry.sides.account.as_mut().and_then(|a| a.receipt.as_mut()) {
            // Now, because an act may end the receipt.
            receipt.phase(moving.phase, before);
        }
        let target = Target::of(moving.phase);
        let mut changed = false;
        let mut failed = Vec::new();
        for _ in 0..MOST_ACTS {
            let have = have(entry);
            let mut shut = failed.clone();
            for side in [Side::Old, Side::New] {
                let content = of(side).drawn.content;
                if let Some(SideTrouble { trouble, .. }) = entry.sides.trouble(side)
                    && trouble.content == Some(content)
                    && (trouble.lasting || (!another_phase && Instant::now() < trouble.next))
                {
                    shut.push(side);
                }
            }
            let Some(act) = next(have, target, &shut) else { break };
            let (done, side) = match act {
                Act::Open(side) => {
                    let owns = have.owner.is_none() && side == target.owner;
                    (self.open_side(of(side), entry, owns, first).await, side)
                }
                Act::Own(side) => (self.own_side(of(side), entry, side).await, side),
                Act::Close(side) => {
                    self.close_beside(entry, &c.meta.name, true, false).await;
                    (Ok(()), side)
                }
            };
            match done {
                Ok(()) => {
                    changed = true;
                    *entry.sides.trouble(side) = None;
                }
                Err(failure) => {
                    failed.push(side);
                    self.side_failed(of(side), entry, side, failure).await;
                }
            }
        }
        if entry.sides.old.is_none() && entry.sides.new.is_none() {
            self.core.swaps.accept(KIND, &c.meta.name);
        }
        if have(entry).owner.is_none() {
            let cause = entry.sides.trouble(target.owner).as_ref().map_or("it is not open", |t| &t.cause).to_owned();
            self.degrade(of(target.owner).document, &cause).await;
        }
        self.standing_of(&c.meta.name, entry);
        Ok(if changed { Step::Changed } else { Step::Unchanged })
    }

    /// The component is not wanted any more, on neither side.
    pub(super) async fn drop_sides(self: &Arc<Self>, name: &str, entry: &mut Entry) {
        self.close_beside(entry, name, true, false).await;
        entry.sides = Sides::default();
    }

    /// The move of a component is over: one side stays, the one whose document is wanted.
    ///
    /// # Errors
    /// That side cannot take the work for now; all stays as it is.
    pub(super) async fn end_move(self: &Arc<Self>, c: &Component, entry: &mut Entry) -> Result<(), String> {
        if entry.moving.is_none() && entry.sides.is_idle() {
            return Ok(());
        }
        let name = c.meta.name.as_str();
        let last = entry.moving.as_ref().map(|m| m.phase);
        let drawn = self.draw(c).await;
        if entry.sides.beside.as_ref().is_some_and(|b| b.content == drawn.content) {
            let material = Material { document: c, drawn: &drawn };
            self.own_side(&material, entry, Side::New).await.map_err(|f| f.cause)?;
        }
        let back = entry.sides.which(drawn.content) == Some(Side::Old);
        self.close_beside(entry, name, last == Some(SwapPhase::Finalize), back).await;
        let why = entry.sides.new.take().map(|t| t.cause);
        (entry.sides.old, entry.sides.contents, entry.moving) = (None, None, None);
        self.core.swaps.accept(KIND, name);
        let Some(mut account) = entry.sides.account.take() else { return Ok(()) };
        if let Some(receipt) = account.receipt.take() {
            let drained = Drained { in_flight: account.in_flight, finished: account.in_flight, ..Drained::default() };
            if back { receipt.rolled_back(drained, why) } else { receipt.ended(drained) }
        }
        Ok(())
    }

    fn account(&self, c: &Component, moving: &Moving, fresh: bool) -> Account {
        let mut receipt = self.core.swaps.begin(Subject {
            kind: KIND,
            name: c.meta.name.clone(),
            change: Change::Updated,
            from: Some(kind_and_version(&moving.previous)),
            to: Some(kind_and_version(c)),
        });
        receipt.moving(&moving.from, &moving.to);
        tracing::info!(
            target: "dapr.runtime.hotreload",
            "component {} moves from {} to {}", c.meta.name, moving.from, moving.to
        );
        Account {
            receipt: Some(receipt),
            // One that started in the middle may have died before: what it took then and did not settle is
            // still to come again.
            silence: if fresh { Subscriptions::longest_redelivery() } else { IDLE },
            in_flight: 0,
            given_back: 0,
            redelivered: 0,
            closing: None,
        }
    }

    async fn open_side(
        self: &Arc<Self>,
        side: &Material<'_>,
        entry: &mut Entry,
        owns: bool,
        first: bool,
    ) -> Result<(), Failure> {
        let (c, drawn) = (side.document, side.drawn);
        let draft = self.draft(c, drawn)?;
        let holds = draft.holds.clone();
        let held = entry.running.as_ref().map(|r| &r.holds);
        let mut held = held.into_iter().chain(entry.sides.beside.as_ref().map(|b| &b.holds));
        if let Some(Hold { resource: what, .. }) = held.find(|held| excluded(held, &holds)).and_then(Option::as_ref) {
            let cause = format!("both sides of the move need {what} for themselves and cannot be open together");
            return Err(Failure::init(c, cause, true));
        }
        // What takes work at a start is let in unseen, as without a move; what is to take over is checked.
        let instance = self.make(c, draft, !(first && owns)).await?;
        if owns {
            let mut pending = entry.running.as_ref().map(|running| {
                let (from, to) = (Some(kind_and_version(&running.document)), Some(kind_and_version(c)));
                let name = c.meta.name.clone();
                self.core.swaps.begin(Subject { kind: KIND, name, change: Change::Updated, from, to })
            });
            self.exchange(instance, &mut pending).await.map_err(|e| Failure::init(c, e, false))?;
            entry.running = Some(Running { document: c.clone(), content: drawn.content, holds });
        } else {
            match &instance.parts {
                Parts::PubSub(h) => self.core.pubsub.manager().read_beside(h.clone()).await,
                Parts::Binding { input: Some(h), .. } => self.inputs.read_beside(&self.core, h.clone()),
                _ => {}
            }
            let (document, content) = (c.clone(), drawn.content);
            let opened = Instant::now();
            entry.sides.beside = Some(Beside { document, content, holds, instance, opened });
        }
        self.core.metrics.component_loaded();
        self.core.metrics.component_initialised(&c.kind);
        tracing::info!(
            target: "dapr.runtime.processor",
            "Component loaded: {}{}", c.log_name(), if owns { "" } else { " (beside the other side of its move)" }
        );
        Ok(())
    }

    /// Gives the work to the side that is open beside.
    async fn own_side(self: &Arc<Self>, side: &Material<'_>, entry: &mut Entry, which: Side) -> Result<(), Failure> {
        let name = side.document.meta.name.as_str();
        let began = Instant::now();
        let Some(next) = &entry.sides.beside else { return Ok(()) };
        let core = &self.core;
        let old = Parts::of(&core.store.snapshot(), name);
        if let Some(old) = &old {
            next.instance.follow(old.etags());
        }
        // They may have changed since it was opened.
        next.instance.parts.set_policies(&self.policies.load(), name);
        let instance = next.instance.clone();
        let parts = instance.parts.clone();
        let publish = async { core.store.edit(|s| instance.publish(s)).await };
        match &parts {
            Parts::PubSub(_) => {
                let first = old.as_ref().and_then(|old| match old {
                    Parts::PubSub(h) => Some(h.clone()),
                    _ => None,
                });
                let exchanged = core.pubsub.manager().exchange_sides(name, first, ATTACH, publish).await;
                exchanged.map_err(|e| Failure::init(side.document, e, false))?;
            }
            Parts::Binding { .. } => {
                publish.await;
                let first = old.as_ref().and_then(|old| match old {
                    Parts::Binding { input, .. } => input.clone(),
                    _ => None,
                });
                self.inputs.exchange_sides(name, first);
            }
            Parts::Configuration(new) => {
                publish.await;
                if let Some(Parts::Configuration(before)) = &old {
                    core.configuration.follow(before, new).await;
                }
            }
            Parts::State(_) | Parts::Secret(_) | Parts::Lock(_) => publish.await,
        }
        let Some(next) = entry.sides.beside.take() else { return Ok(()) };
        let moved = old.as_ref().is_some_and(|old| old.holds_data() && !old.same_place(&parts));
        let before =
            entry.running.replace(Running { document: next.document, content: next.content, holds: next.holds });
        // The copies for the exchange would count as users.
        drop((next.instance, parts));
        if let (Some(before), Some(parts)) = (before, old)
            && let Some(info) = parts.info()
        {
            entry.sides.beside = Some(Beside {
                document: before.document,
                content: before.content,
                holds: before.holds,
                instance: Instance { info, parts },
                opened: Instant::now(),
            });
        }
        let rest = self.rest(entry, name);
        if let Some(account) = &mut entry.sides.account {
            if which == Side::New {
                account.in_flight = account.in_flight.max(rest.in_flight);
                account.given_back = rest.given_back;
            }
            if let Some(receipt) = &mut account.receipt {
                if let Some(record) = receipt.receipt()
                    && moved
                {
                    record.data_moved = Some(false);
                }
                receipt.gave(which == Side::New, account.in_flight, began);
            }
        }
        tracing::info!(
            target: "dapr.runtime.hotreload",
            "component {name}: new work goes to {}; {} in flight at the other side",
            side.document.log_name(), rest.in_flight
        );
        Ok(())
    }

    /// Ends and closes the side that is open beside, in the background. `at_once` leaves what a broker still
    /// holds; otherwise it is read until it is empty. `back` says that the move came to nothing.
    async fn close_beside(self: &Arc<Self>, entry: &mut Entry, name: &str, at_once: bool, back: bool) {
        let rest = self.rest(entry, name);
        let Some(beside) = entry.sides.beside.take() else { return };
        let parts = beside.instance.parts;
        let same_place = Parts::of(&self.core.store.snapshot(), name).is_some_and(|owner| owner.same_place(&parts));
        let readers = match &parts {
            Parts::PubSub(_) => {
                let subscriptions = self.core.pubsub.manager().leave_beside(name).await;
                Readers { subscriptions, input: None }
            }
            Parts::Binding { .. } => Readers { subscriptions: None, input: self.inputs.leave_beside(name) },
            _ => Readers::default(),
        };
        let reads = readers.subscriptions.is_some() || readers.input.is_some();
        let closing = Arc::new(Closing::default());
        let (mut receipt, mut in_flight, mut redelivered, mut why) = (None, rest.in_flight, 0, None);
        if let Some(account) = &mut entry.sides.account {
            account.redelivered = rest.given_back.saturating_sub(account.given_back);
            (in_flight, redelivered) = (account.in_flight.max(rest.in_flight), account.redelivered);
            account.closing = Some(closing.clone());
            receipt = account.receipt.take();
            why = entry.sides.new.as_ref().map(|t| t.cause.clone());
        }
        tracing::info!(
            target: "dapr.runtime.hotreload",
            "component {name}: {} is closed, {} in flight", beside.document.log_name(), rest.in_flight
        );
        let reading = self.emptying.add(name, parts.source().filter(|_| !at_once && !same_place));
        let permit = self.draining.clone().acquire_owned().await;
        let (loader, stopping) = (self.clone(), self.core.tasks.stopping().clone());
        self.core.tasks.spawn("drain of a side of a move", async move {
            let _permit = permit;
            let how = Rest { same_place: at_once || same_place, in_flight, grace: GRACE };
            let mut drained = loader.drain_all(parts, readers, how, reading.over(), &stopping).await;
            drained.redelivered += redelivered;
            drained.emptied = drained.emptied.or(reads.then_some(rest.empty));
            *closing.drained.lock() = drained;
            closing.done.store(true, Ordering::Release);
            if let Some(receipt) = receipt {
                match drained.cut {
                    _ if back => receipt.rolled_back(drained, why),
                    Some(_) => receipt.cut_off(drained),
                    None => receipt.ended(drained),
                }
            }
        });
    }

    async fn side_failed(&self, side: &Material<'_>, entry: &mut Entry, which: Side, failure: Failure) {
        let c = side.document;
        let slot = entry.sides.trouble(which);
        let before = slot.as_ref().map(|s| s.trouble);
        let trouble = Trouble::after(before, Some(side.drawn.content), failure.lasting);
        let text = failure.text(c);
        if trouble.tries == 0 {
            tracing::error!(target: "dapr.runtime.processor", "{text}");
        } else {
            tracing::warn!(target: "dapr.runtime.processor", "still: {text}");
        }
        self.core.metrics.component_failed(&c.kind, &c.meta.name, failure.reason);
        self.core.swaps.refuse(KIND, &c.meta.name, &failure.cause);
        *slot = Some(SideTrouble { trouble, cause: failure.cause });
    }

    /// Closes what is open beside, at the end of the runtime.
    pub async fn close_sides(self: &Arc<Self>) {
        let mut desired = self.desired.lock().await;
        for (name, entry) in desired.iter_mut() {
            let Some(beside) = entry.sides.beside.take() else { continue };
            drop(self.core.pubsub.manager().leave_beside(name).await);
            drop(self.inputs.leave_beside(name));
            beside.instance.parts.close().await;
        }
    }
}

fn have(entry: &Entry) -> Have {
    let (running, beside) = (entry.running.as_ref(), entry.sides.beside.as_ref());
    Have {
        owner: running.and_then(|r| entry.sides.which(r.content)),
        beside: beside.and_then(|b| entry.sides.which(b.content)),
    }
}
