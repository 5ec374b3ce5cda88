//! From one set of documents to the next, by content. A start is the step from nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use mecha_components_api::Hold;
use mecha_resources::Component;
use tokio::time::Instant;

use super::building::Building;
use super::content::{Drawn, draws};
use super::instance::Instance;
use super::moving::{Moving, Sides, Wanted};
use super::{Failure, LoadFailure, Loader};
use crate::swap::{Change, Pending, Subject};

/// First pause before a failed component is tried again (strict mode).
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// Longest pause between such tries.
const RETRY_MOST: Duration = Duration::from_secs(30);

/// Kind of the documents in receipts.
pub(super) const KIND: &str = "Component";

/// A component that is wanted.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) document: Component,
    /// The move that it takes part in.
    pub(super) moving: Option<Moving>,
    /// What new work goes to.
    pub(super) running: Option<Running>,
    pub(super) trouble: Option<Trouble>,
    /// What is to take the place of what runs, while it is built.
    pub(super) building: Option<Building>,
    pub(super) sides: Sides,
}

/// What runs of it.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) document: Component,
    pub(super) content: u64,
    pub(super) holds: Option<Hold>,
}

/// Why it does not run as it is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trouble {
    /// Content of the document at the last try; `None` when it was never read.
    pub(super) content: Option<u64>,
    /// Only another content can help.
    pub(super) lasting: bool,
    pub(super) tries: u32,
    pub(super) next: Instant,
}

/// How applying a set of documents went.
#[derive(Debug, Default)]
pub struct Report {
    /// A failure that ends the process (bare mode).
    pub fatal: Option<LoadFailure>,
    /// When [`Loader::retry`] should be called.
    pub next_try: Option<Instant>,
    /// Components that were added, replaced or removed.
    pub changed: usize,
    /// Whether a document draws on a secret store, whose secrets may change without it.
    pub draws: bool,
    /// Whether something is still built for the first time; see [`Loader::built`].
    pub building: bool,
}

/// What became of one component.
pub(super) enum Step {
    Unchanged,
    Changed,
    /// Its secret store does not run.
    Waits(String),
}

impl Entry {
    /// Whether what is built was not tried before.
    fn is_first_built(&self) -> bool {
        let tried = |content: u64| self.trouble.is_some_and(|t| t.content == Some(content));
        self.building.as_ref().is_some_and(|b| !tried(b.content))
    }
}

impl Trouble {
    pub(super) fn after(before: Option<Self>, content: Option<u64>, lasting: bool) -> Self {
        let tries = before.filter(|b| b.content == content).map_or(0, |b| b.tries + 1);
        let pause = RETRY_FIRST.saturating_mul(1 << tries.min(10)).min(RETRY_MOST);
        Self { content, lasting, tries, next: Instant::now() + pause }
    }
}

impl Loader {
    /// Loads the components of a start: secret stores first; a component waits for the store its
    /// secrets come from, without holding the others up. What fails in strict mode, or waits,
    /// is for [`Loader::retry`].
    ///
    /// # Errors
    /// Bare mode: duplicate names, or a component that failed without `ignoreErrors`.
    pub async fn load_all<W: Into<Wanted>>(self: &Arc<Self>, documents: Vec<W>) -> Result<(), LoadFailure> {
        let documents = self.admit(documents.into_iter().map(Into::into).collect())?;
        match self.apply(documents, true).await.fatal {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    /// Applies a complete set of documents: what is not in it goes, what has another content is
    /// replaced, what is new comes. Nothing else is touched.
    pub async fn reconcile<W: Into<Wanted>>(self: &Arc<Self>, documents: Vec<W>) -> Report {
        match self.admit(documents.into_iter().map(Into::into).collect()) {
            Ok(documents) => self.apply(documents, false).await,
            Err(e) => {
                // Not one of them is meant for sure, so everything stays as it was.
                tracing::error!(target: "dapr.runtime.hotreload", "failed to load resources from disk: {e}");
                self.retry().await
            }
        }
    }

    /// Looks at the present set again: tries what failed, and reads secrets that may have changed.
    pub async fn retry(self: &Arc<Self>) -> Report {
        let wanted = |e: &Entry| Wanted { document: e.document.clone(), moving: e.moving.clone() };
        let documents: Vec<Wanted> = self.desired.lock().await.values().map(wanted).collect();
        match self.admit(documents) {
            Ok(documents) => self.apply(documents, false).await,
            Err(e) => Report { fatal: Some(e), ..Report::default() },
        }
    }

    async fn apply(self: &Arc<Self>, documents: Vec<Wanted>, first: bool) -> Report {
        let mut report = Report::default();
        let mut desired = self.desired.lock().await;
        let gone: Vec<String> =
            desired.keys().filter(|name| !documents.iter().any(|w| w.name() == **name)).cloned().collect();
        for name in gone {
            if let Some(mut entry) = desired.remove(&name) {
                self.drop_sides(&name, &mut entry).await;
                report.changed += usize::from(entry.running.is_some());
                self.remove(&name, entry).await;
            }
        }
        report.draws = documents.iter().any(|w| draws(&w.document, &self.cx.default_secret_store));
        // What is updated goes before what is created; secret stores are in front already.
        let (known, new): (Vec<_>, Vec<_>) =
            documents.into_iter().partition(|w| first || desired.contains_key(w.name()));
        let mut waiting: VecDeque<Wanted> = known.into_iter().chain(new).collect();
        let mut idle_rounds = 0;
        while let Some(wanted) = waiting.pop_front() {
            let Wanted { document: component, moving } = &wanted;
            let name = component.meta.name.clone();
            let mut entry = desired.remove(&name).unwrap_or_else(|| Entry {
                document: component.clone(),
                moving: None,
                running: None,
                trouble: None,
                building: None,
                sides: Sides::default(),
            });
            let step = match moving {
                Some(moving) => self.settle_moving(component, moving, &mut entry, first).await,
                None => match self.end_move(component, &mut entry).await {
                    Ok(()) => self.settle(component, &mut entry, first).await,
                    Err(cause) => {
                        self.core.swaps.refuse(KIND, &name, &cause);
                        entry.trouble = Some(Trouble::after(entry.trouble, None, false));
                        Ok(Step::Unchanged)
                    }
                },
            };
            desired.insert(name, entry);
            match step {
                Ok(Step::Unchanged) => idle_rounds = 0,
                Ok(Step::Changed) => {
                    idle_rounds = 0;
                    report.changed += 1;
                }
                Ok(Step::Waits(_)) if idle_rounds < waiting.len() => {
                    idle_rounds += 1;
                    waiting.push_back(wanted);
                }
                Ok(Step::Waits(store)) => {
                    if let Some(entry) = desired.get_mut(&component.meta.name) {
                        self.park(component, entry, &store).await;
                    }
                }
                Err(failure) => {
                    idle_rounds = 0;
                    report.fatal.get_or_insert(failure);
                    if first {
                        break;
                    }
                }
            }
        }
        report.building = desired.values().any(Entry::is_first_built);
        let troubles = desired.values().filter(|e| e.building.is_none());
        let troubles = troubles.filter_map(|e| e.trouble).filter(|t| !t.lasting);
        let sides = desired.values().filter_map(|e| e.sides.next_try());
        report.next_try = troubles.map(|t| t.next).chain(sides).min();
        report
    }

    /// Brings one component in line with its document.
    pub(super) async fn settle(
        self: &Arc<Self>,
        c: &Component,
        entry: &mut Entry,
        first: bool,
    ) -> Result<Step, LoadFailure> {
        let name = c.meta.name.as_str();
        let edited = entry.document != *c;
        entry.document = c.clone();
        let draws = draws(c, &self.cx.default_secret_store);
        let due = entry.trouble.is_none_or(|t| edited || (!t.lasting && Instant::now() >= t.next));
        let settled = !due || (entry.trouble.is_none() && entry.running.is_some());
        if !edited && !draws && settled && entry.building.is_none() {
            return Ok(Step::Unchanged);
        }
        if let Some(store) = self.missing_store(c) {
            // What runs has its secrets already.
            let runs = entry.running.as_ref().is_some_and(|r| r.document == *c);
            return Ok(if runs || !due { Step::Unchanged } else { Step::Waits(store) });
        }
        let drawn = self.draw(c).await;
        // One of another content is ended by being dropped.
        if let Some(mut building) = entry.building.take().filter(|b| b.content == drawn.content) {
            let Some(made) = building.ended(c) else {
                entry.building = Some(building);
                return Ok(Step::Unchanged);
            };
            let (holds, pending) = (building.holds.clone(), building.pending.take());
            return self.take_in(c, entry, &drawn, made, (holds, pending), first).await;
        }
        if let Some(running) = &mut entry.running
            && running.content == drawn.content
        {
            running.document = c.clone();
            entry.trouble = None;
            self.core.swaps.accept(KIND, name);
            return Ok(Step::Unchanged);
        }
        let news = entry.trouble.is_none_or(|t| t.content != Some(drawn.content));
        if !due && !news {
            return Ok(Step::Unchanged);
        }
        let pending = (!first).then(|| self.core.swaps.begin(self.subject(c, entry.running.as_ref())));
        if entry.running.is_some() && !drawn.unread.is_empty() {
            // A secret store that is away must not take away what runs.
            let reason = format!("a secret it refers to cannot be read: {}", drawn.unread.join("; "));
            entry.trouble = Some(Trouble::after(entry.trouble, Some(drawn.content), false));
            if let Some(pending) = pending {
                pending.refused(&reason, true);
            }
            return Ok(Step::Unchanged);
        }
        if !first && news {
            tracing::info!(target: "dapr.runtime.hotreload", "Adding Component for processing: {}", c.log_name());
        }
        self.attempt(c, entry, &drawn, pending, first).await
    }

    async fn attempt(
        self: &Arc<Self>,
        c: &Component,
        entry: &mut Entry,
        drawn: &Drawn,
        pending: Option<Pending>,
        first: bool,
    ) -> Result<Step, LoadFailure> {
        let draft = match self.draft(c, drawn) {
            Ok(draft) => draft,
            Err(failure) => return self.failed(c, entry, drawn, failure, pending).await,
        };
        let holds = draft.holds.clone();
        let clash = entry.running.as_ref().filter(|r| excluded(&r.holds, &holds));
        let made = match clash.map(|r| r.document.clone()) {
            Some(before) => match self.in_short_order(c, draft, &before).await {
                Ok(instance) => Ok(instance),
                Err((failure, restored)) => {
                    if !restored {
                        entry.running = None;
                    }
                    Err(failure)
                }
            },
            None if first => self.make(c, draft, false).await,
            None => {
                let mut building = self.begin_build(c, draft, drawn.content);
                match building.ended_soon(c).await {
                    Some(made) => made,
                    None => {
                        building.pending = pending;
                        entry.building = Some(building);
                        return Ok(Step::Unchanged);
                    }
                }
            }
        };
        self.take_in(c, entry, drawn, made, (holds, pending), first).await
    }

    /// Puts what was made to use, or says why there is nothing.
    async fn take_in(
        self: &Arc<Self>,
        c: &Component,
        entry: &mut Entry,
        drawn: &Drawn,
        made: Result<Instance, Failure>,
        (holds, mut pending): (Option<Hold>, Option<Pending>),
        first: bool,
    ) -> Result<Step, LoadFailure> {
        if let Ok(instance) = &made {
            // They may have changed while it was built.
            instance.parts.set_policies(&self.policies.load(), &c.meta.name);
        }
        let exchanged = match made {
            Ok(instance) => self.exchange(instance, &mut pending).await.map_err(|e| Failure::init(c, e, false)),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = exchanged {
            return self.failed(c, entry, drawn, failure, pending).await;
        }
        self.core.metrics.component_loaded();
        self.core.metrics.component_initialised(&c.kind);
        self.core.swaps.accept(KIND, &c.meta.name);
        tracing::info!(target: "dapr.runtime.processor", "Component loaded: {}", c.log_name());
        if !first {
            if let Some(before) = &entry.running {
                tracing::info!(
                    target: "dapr.runtime.hotreload",
                    "Closing existing Component to reload: {}", before.document.log_name()
                );
            }
            tracing::info!(target: "dapr.runtime.hotreload", "Component updated: {}", c.log_name());
        }
        entry.running = Some(Running { document: c.clone(), content: drawn.content, holds });
        entry.trouble = None;
        Ok(Step::Changed)
    }

    /// What a failure means: strict keeps what runs, bare does what the document says.
    async fn failed(
        self: &Arc<Self>,
        c: &Component,
        entry: &mut Entry,
        drawn: &Drawn,
        failure: Failure,
        pending: Option<Pending>,
    ) -> Result<Step, LoadFailure> {
        let trouble = Trouble::after(entry.trouble, Some(drawn.content), failure.lasting);
        let again = trouble.tries > 0;
        entry.trouble = Some(trouble);
        let (name, text) = (c.meta.name.as_str(), failure.text(c));
        if again {
            let pause = trouble.next.saturating_duration_since(Instant::now());
            tracing::warn!(
                target: "dapr.runtime.processor",
                "component {} is still not ready, next try in {pause:.0?}: {}", c.log_name(), failure.cause
            );
        } else {
            tracing::error!(target: "dapr.runtime.processor", "{text}");
        }
        self.core.metrics.component_failed(&c.kind, name, failure.reason);
        if self.cx.strict {
            if entry.running.is_some() {
                if !again {
                    tracing::error!(
                        target: "dapr.runtime.hotreload",
                        "component {name}: what runs stays as it is, the change is refused"
                    );
                }
            } else {
                self.degrade(c, &failure.cause).await;
            }
            if let Some(pending) = pending {
                pending.refused(&failure.cause, entry.running.is_some());
            }
            return Ok(Step::Unchanged);
        }
        let processed = format!("process component {name} error: [{}]: {}", failure.tag, failure.cause);
        entry.trouble = Some(Trouble { lasting: true, ..trouble });
        if let Some(pending) = pending {
            pending.refused(&failure.cause, false);
        }
        if c.ignore_errors {
            tracing::error!(target: "dapr.runtime.processor", "Ignoring error processing component: {processed}");
            if entry.running.take().is_some() {
                self.withdraw(name, None).await;
            }
            return Ok(Step::Changed);
        }
        tracing::warn!(
            target: "dapr.runtime.processor",
            "Error processing component, daprd will exit gracefully: {processed}"
        );
        Err(LoadFailure(processed))
    }

    /// A component whose secret store does not run: it starts when that does.
    async fn park(&self, c: &Component, entry: &mut Entry, store: &str) {
        let cause = format!("it waits for secret store '{store}', which is not loaded");
        let trouble = Trouble::after(entry.trouble, None, false);
        if trouble.tries == 0 {
            tracing::warn!(
                target: "dapr.runtime.processor",
                "Component {} references a secret store that isn't loaded: {store}", c.meta.name
            );
        }
        entry.trouble = Some(trouble);
        if entry.running.is_some() {
            self.core.swaps.refuse(KIND, &c.meta.name, &cause);
        } else {
            self.degrade(c, &cause).await;
        }
    }

    async fn remove(self: &Arc<Self>, name: &str, entry: Entry) {
        self.core.swaps.accept(KIND, name);
        let pending = entry.running.as_ref().map(|running| {
            tracing::info!(
                target: "dapr.runtime.processor",
                "Shutting down component {}", running.document.log_name()
            );
            let from = Some(kind_and_version(&running.document));
            let (change, to) = (Change::Removed, None);
            self.core.swaps.begin(Subject { kind: KIND, name: name.to_owned(), change, from, to })
        });
        self.withdraw(name, pending).await;
    }

    fn subject(&self, c: &Component, running: Option<&Running>) -> Subject {
        let change = if running.is_some() { Change::Updated } else { Change::Added };
        let from = running.map(|r| kind_and_version(&r.document));
        Subject { kind: KIND, name: c.meta.name.clone(), change, from, to: Some(kind_and_version(c)) }
    }
}

/// Whether two instances cannot be there at a time.
pub(super) fn excluded(one: &Option<Hold>, other: &Option<Hold>) -> bool {
    one.as_ref().zip(other.as_ref()).is_some_and(|(one, other)| one.excludes(other))
}

pub(super) fn kind_and_version(c: &Component) -> String {
    let version = if c.version.is_empty() { "v1" } else { &c.version };
    format!("{}/{version}", c.kind)
}
