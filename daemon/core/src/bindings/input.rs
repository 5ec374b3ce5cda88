//! Input bindings: sources that run while the app takes their events.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use mecha_components_api::{
    BindingEvent, CancellationToken, Error, Metadata, OnBindingEvent, Result, Retry, async_trait,
};
use mecha_resiliency::{CallClass, Failure};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::app::{AppChannel, AppError, BindingReply};
use crate::core::Core;
use crate::cx::{Cx, Front, TraceHeaders};
use crate::metrics::{Following, OpMetrics};
use crate::pubsub::busy::{Busy, REDELIVERY};
use crate::store::InputHandle;
use crate::swap::{Cut, Drained, Patience, Reader};
use crate::tasks::Tasks;
use crate::trace::{SpanKind, TraceContext};

/// First pause before a probe or a broken source is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// Longest such pause.
const RETRY_MOST: Duration = Duration::from_secs(10);

/// What a source that keeps events has to be silent for before it counts as empty.
const EMPTY: Duration = Duration::from_secs(2);
/// Longest wait for the app to say whether it takes the events of a source that takes another's place.
const ASK: Duration = Duration::from_secs(2);
/// Pause between two looks whether a source has become idle.
const LOOK: Duration = Duration::from_millis(20);

/// The input bindings of a runtime.
#[derive(Debug)]
pub struct Inputs {
    probe_limit: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether the app takes events.
    on: bool,
    running: HashMap<Box<str>, Reading>,
    /// Second instances that are read as well, while their component moves.
    beside: HashMap<Box<str>, Beside>,
}

#[derive(Debug)]
struct Beside {
    handle: Arc<InputHandle>,
    reading: Option<Reading>,
}

/// How far a second instance is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BesideState {
    /// Whether it is attached, or the app takes none of its events.
    pub settled: bool,
    /// Events in flight.
    pub in_flight: u64,
    /// Events that went back to their source.
    pub given_back: u64,
    /// Nothing came for a while, or the source keeps nothing.
    pub empty: bool,
}

/// One source that runs.
#[derive(Debug)]
struct Reading {
    handle: Arc<InputHandle>,
    tasks: Tasks,
    busy: Arc<Busy>,
    standing: watch::Receiver<Standing>,
}

/// How far a source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// The app has not said yet whether it takes the events.
    Asking,
    /// The app takes them, the source is not in place yet.
    Attaching,
    /// The source is not in place yet, but what is written from now on will come.
    Secured,
    /// The source is in place, or the app takes no events.
    Settled,
}

/// A source that another one took the place of, or that is to go. Both read until it ends.
#[derive(Debug)]
#[must_use = "the old source goes on until it is left"]
pub struct Leaving {
    reading: Reading,
    /// How far the one is that takes its place.
    next: Option<watch::Receiver<Standing>>,
}

struct Source {
    core: Arc<Core>,
    app: Arc<dyn AppChannel>,
    handle: Arc<InputHandle>,
    route: String,
    metrics: Following<OpMetrics>,
    busy: Arc<Busy>,
    standing: watch::Sender<Standing>,
}

/// The app's failure, as the inbound policy sees it.
struct EventFailure(AppError);

impl Failure for EventFailure {
    fn repeatable(&self) -> Retry {
        // Delivery is at least once: the app has to bear the same event twice.
        match self.0.error.retry() {
            Retry::Never => Retry::Never,
            Retry::Always | Retry::IfIdempotent => Retry::Always,
        }
    }

    fn http_status(&self) -> Option<u16> {
        self.0.http_status
    }

    fn grpc_code(&self) -> Option<u16> {
        self.0.grpc_code.and_then(|c| u16::try_from(c).ok())
    }
}

impl Inputs {
    /// Nothing runs yet. `probe_limit` bounds one question to the app whether it takes a binding.
    #[must_use]
    pub fn new(probe_limit: Duration) -> Self {
        Self { probe_limit, state: Mutex::default() }
    }

    /// Starts every input binding that the app takes. Asking goes on in the background until the
    /// app gives a definite answer, so an app may start as late as it likes.
    pub fn start(&self, core: &Arc<Core>) {
        let mut state = self.state.lock();
        state.on = true;
        for (name, handle) in &core.store.snapshot().input {
            if !state.running.contains_key(name)
                && let Some(reading) = self.launch(core, handle.clone())
            {
                state.running.insert(name.clone(), reading);
            }
        }
        for beside in state.beside.values_mut().filter(|b| b.reading.is_none()) {
            beside.reading = self.launch(core, beside.handle.clone());
        }
    }

    /// Stops the sources; events in flight are finished first.
    pub async fn stop(&self) {
        let running = {
            let mut state = self.state.lock();
            state.on = false;
            let beside: Vec<Reading> = state.beside.values_mut().filter_map(|b| b.reading.take()).collect();
            std::mem::take(&mut state.running).into_values().chain(beside).collect::<Vec<_>>()
        };
        running.iter().for_each(|reading| reading.tasks.stop());
        join_all(running.iter().map(|reading| reading.tasks.shut_down())).await;
    }

    /// Reads a second instance as well, from now on. Does not wait.
    pub fn read_beside(&self, core: &Arc<Core>, handle: Arc<InputHandle>) {
        let mut state = self.state.lock();
        let reading = state.on.then(|| self.launch(core, handle.clone())).flatten();
        let before = state.beside.insert(handle.info.name.as_ref().into(), Beside { handle, reading });
        drop(state);
        if let Some(reading) = before.and_then(|b| b.reading) {
            reading.tasks.stop();
        }
    }

    /// Lets the second instance take the place of the first, and `first` that of the second.
    pub fn exchange_sides(&self, name: &str, first: Option<Arc<InputHandle>>) {
        let mut state = self.state.lock();
        let second = state.beside.remove(name).and_then(|b| b.reading);
        let reading = match second {
            Some(reading) => state.running.insert(name.into(), reading),
            None => state.running.remove(name),
        };
        match first {
            Some(handle) => drop(state.beside.insert(name.into(), Beside { handle, reading })),
            None => {
                if let Some(reading) = reading {
                    reading.tasks.stop();
                }
            }
        }
    }

    /// Ends the reading of the second instance, to be drained.
    pub fn leave_beside(&self, name: &str) -> Option<Leaving> {
        self.state.lock().beside.remove(name)?.reading.map(Leaving::alone)
    }

    /// How far the second instance is read; `None` where there is none.
    #[must_use]
    pub fn beside(&self, name: &str) -> Option<BesideState> {
        let state = self.state.lock();
        let beside = state.beside.get(name)?;
        let keeps = beside.handle.inner.keeps_events();
        Some(match &beside.reading {
            Some(reading) => BesideState {
                settled: reading.misses_nothing(),
                in_flight: reading.busy.running(),
                given_back: reading.busy.given_back(),
                empty: !keeps || reading.is_empty(),
            },
            // The app takes no events for now, so nobody knows.
            None => BesideState { settled: true, in_flight: 0, given_back: 0, empty: !keeps },
        })
    }

    /// Starts a source that is new, or beside the one whose place it takes, and waits until it is in
    /// place or will miss nothing until it is, `limit` at most. Nothing happens while the app takes no events.
    ///
    /// # Errors
    /// With `must`: the new source, where it was not in place in time. The one before goes on.
    pub async fn replace(
        &self,
        core: &Arc<Core>,
        handle: Arc<InputHandle>,
        limit: Duration,
        must: bool,
    ) -> Result<Option<Leaving>, Leaving> {
        let name: Box<str> = handle.info.name.as_ref().into();
        let (mut standing, before) = {
            let mut state = self.state.lock();
            let Some(reading) = state.on.then(|| self.launch(core, handle)).flatten() else { return Ok(None) };
            (reading.standing.clone(), state.running.insert(name.clone(), reading))
        };
        let Some(before) = before else { return Ok(None) };
        if in_place(&mut standing, limit).await || !must {
            return Ok(Some(Leaving { reading: before, next: Some(standing) }));
        }
        let mut state = self.state.lock();
        match state.on {
            true => match state.running.insert(name, before) {
                Some(new) => Err(Leaving::alone(new)),
                None => Ok(None),
            },
            // Stopped meanwhile, and the new one with it.
            false => Ok(Some(Leaving::alone(before))),
        }
    }

    /// Takes a source that is to go off the list.
    pub fn remove(&self, name: &str) -> Option<Leaving> {
        self.state.lock().running.remove(name).map(Leaving::alone)
    }

    /// Reads an instance of the runtime that this one took the place of, until it is left.
    pub fn take_up(&self, core: &Arc<Core>, handle: Arc<InputHandle>) -> Option<Leaving> {
        self.launch(core, handle).map(Leaving::alone)
    }

    fn launch(&self, core: &Arc<Core>, handle: Arc<InputHandle>) -> Option<Reading> {
        let app = core.app().ok()?.clone();
        let tasks = core.tasks.child();
        let (name, metadata) = (&handle.info.name, &handle.extra);
        let route = metadata.get_non_empty("route").map_or_else(|| format!("/{name}"), str::to_owned);
        let declared =
            metadata.get("direction").is_some_and(|d| d.to_lowercase().split(',').any(|d| d.trim() == "input"));
        let busy = Arc::new(Busy::default());
        let (sender, standing) = watch::channel(Standing::Asking);
        let source = Source {
            core: core.clone(),
            app,
            handle: handle.clone(),
            route,
            metrics: {
                let name = name.to_owned();
                core.metrics.follow(move |m| m.input_binding(&name))
            },
            busy: busy.clone(),
            standing: sender,
        };
        let (limit, group) = (self.probe_limit, tasks.clone());
        tasks.spawn("input binding", async move { Arc::new(source).run(declared, limit, group).await });
        Some(Reading { handle, tasks, busy, standing })
    }
}

impl Reading {
    fn misses_nothing(&self) -> bool {
        self.standing.borrow().misses_nothing()
    }

    /// Whether nothing comes from a source that can be reached.
    fn is_empty(&self) -> bool {
        *self.standing.borrow() == Standing::Settled && self.busy.idle_for(EMPTY) && self.busy.owes_nothing(REDELIVERY)
    }

    /// Waits until it is empty; why it was not, in the end.
    async fn to_its_end(&self, inputs: &Inputs, patience: Patience) -> Option<Cut> {
        let mut reader = Reader::begin(patience);
        // Silence before the switch says nothing: others may write there until they have switched, too.
        let silent_from = tokio::time::Instant::now() + EMPTY;
        while !self.is_empty() || tokio::time::Instant::now() < silent_from {
            if self.tasks.stopping().is_cancelled() {
                return Some(Cut::Stopped);
            }
            if !inputs.state.lock().on {
                reader.waits();
            }
            let cut = reader.over(Some(self.busy.news()));
            if cut.is_some() {
                return cut;
            }
            tokio::time::sleep(LOOK).await;
        }
        None
    }
}

/// Waits for a source. One whose app does not answer counts: its events wait for the app anyway.
async fn in_place(standing: &mut watch::Receiver<Standing>, limit: Duration) -> bool {
    if tokio::time::timeout(ASK.min(limit), standing.wait_for(|s| *s != Standing::Asking)).await.is_err() {
        return true;
    }
    tokio::time::timeout(limit, standing.wait_for(|s| s.misses_nothing())).await.is_ok()
}

impl Standing {
    fn misses_nothing(self) -> bool {
        matches!(self, Self::Secured | Self::Settled)
    }
}

impl Leaving {
    fn alone(reading: Reading) -> Self {
        Self { reading, next: None }
    }

    /// Events in flight.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.reading.busy.running()
    }

    /// Lets the source go: one that keeps events is read until it is empty where `read_on` says how long, else until
    /// the next one reads, `grace` at most. Events in flight get `grace` in the end. Once `taken_over` fires, a later
    /// source reads what this one does, and it is not read any further.
    pub async fn drain(
        self,
        inputs: &Inputs,
        read_on: Option<Patience>,
        grace: Duration,
        taken_over: &CancellationToken,
    ) -> Drained {
        let (in_flight, before) = (self.reading.busy.running(), self.reading.busy.given_back());
        let (mut emptied, mut cut) = (None, None);
        match (read_on, self.next) {
            (Some(patience), _) if self.reading.handle.inner.keeps_events() => {
                cut = tokio::select! {
                    biased;
                    () = taken_over.cancelled() => None,
                    cut = self.reading.to_its_end(inputs, patience) => {
                        emptied = Some(cut.is_none());
                        cut
                    }
                };
            }
            (_, Some(mut next)) => {
                let _ = timeout(grace, next.wait_for(|s| *s != Standing::Secured)).await;
            }
            _ => {}
        }
        let Reading { tasks, busy, .. } = self.reading;
        tasks.stop();
        let finished = timeout(Cut::grace(cut, grace).max(RETRY_FIRST), tasks.shut_down()).await.is_ok();
        let failed = if finished { 0 } else { busy.running().max(1) };
        let redelivered = busy.given_back() - before;
        Drained { in_flight, finished: in_flight.saturating_sub(failed), redelivered, failed, emptied, cut }
    }
}

impl Source {
    async fn run(self: Arc<Self>, declared: bool, limit: Duration, tasks: Tasks) {
        let name = self.handle.info.name.clone();
        let stop = tasks.stopping().clone();
        if !declared && !self.wanted(limit, &stop).await {
            self.standing.send_replace(Standing::Settled);
            return;
        }
        self.standing.send_replace(Standing::Attaching);
        let mut pause = RETRY_FIRST;
        while let Err(e) = self.handle.inner.read(self.clone(), stop.clone()).await {
            tracing::error!(
                target: "dapr.runtime",
                "input binding {name} stopped reading, starting it again in {pause:?}: {e}"
            );
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
            pause = (pause * 2).min(RETRY_MOST);
        }
    }

    /// Asks the app until it says whether it takes the events.
    async fn wanted(&self, limit: Duration, stop: &CancellationToken) -> bool {
        let name = &self.handle.info.name;
        let mut pause = RETRY_FIRST;
        let mut told = false;
        loop {
            let answer = tokio::select! {
                answer = self.app.takes_binding(name, &self.route, limit) => answer,
                () = stop.cancelled() => return false,
            };
            match answer {
                Ok(true) => return true,
                Ok(false) => {
                    tracing::info!(target: "dapr.runtime", "the app takes no events of input binding {name}");
                    return false;
                }
                Err(e) if !told => {
                    told = true;
                    tracing::warn!(target: "dapr.runtime", "input binding {name} waits for the app: {e}");
                }
                Err(_) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return false,
            }
            pause = (pause * 2).min(RETRY_MOST);
        }
    }

    async fn act(&self, cx: &Cx, reply: &BindingReply) -> Result<()> {
        if !reply.states.is_empty() {
            let saved = self.core.state.save(cx, &reply.store_name, reply.states.clone()).await;
            saved.map_err(|e| Error::internal(format!("saving the state of the app's answer failed: {e}")))?;
        }
        let send = |name: &str| {
            let name = name.to_owned();
            let data = reply.data.clone();
            async move {
                let sent = self.core.output.invoke(cx, &name, "create", data, Metadata::new()).await;
                sent.map(drop).map_err(|e| Error::internal(format!("calling binding {name} failed: {e}")))
            }
        };
        if reply.parallel {
            return join_all(reply.to.iter().map(|n| send(n))).await.into_iter().collect();
        }
        for name in &reply.to {
            send(name).await?;
        }
        Ok(())
    }
}

/// What tells an event from others: sources that keep events say in the metadata where they have it.
struct Mark<'e>(&'e BindingEvent);

impl Hash for Mark<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.data.hash(state);
        self.0.metadata.iter().for_each(|item| item.hash(state));
    }
}

#[async_trait]
impl OnBindingEvent for Source {
    fn secured(&self) {
        self.standing.send_if_modified(|standing| {
            let earlier = *standing != Standing::Settled;
            if earlier {
                *standing = Standing::Secured;
            }
            earlier
        });
    }

    fn attached(&self) {
        if *self.standing.borrow() == Standing::Secured {
            // Until now nothing could come, which was no silence of the source.
            drop(self.busy.enter());
        }
        self.standing.send_replace(Standing::Settled);
    }

    async fn event(&self, event: BindingEvent) -> Result<Option<Bytes>> {
        let _busy = self.busy.enter();
        let name = &self.handle.info.name;
        let parent =
            event.metadata.get("traceparent").and_then(|p| TraceContext::parse(p, event.metadata.get("tracestate")));
        let mut span = self.core.tracer.start(SpanKind::Client, parent.as_ref(), || format!("bindings/{name}"));
        let trace = TraceHeaders {
            traceparent: span.context().map(|c| c.traceparent().into()),
            tracestate: span.context().and_then(|c| c.tracestate.clone()),
            baggage: None,
        };
        let began = Instant::now();
        let outcome = self
            .handle
            .ops
            .inbound()
            .run("", CallClass::IDEMPOTENT, |_| async {
                self.app.binding_event(name, &self.route, &event, &trace).await.map_err(EventFailure)
            })
            .await;
        self.metrics.get().record(outcome.is_ok(), began.elapsed());
        match outcome {
            Ok(reply) => {
                let cx = Cx { front: Front::Http, trace };
                if let Err(e) = self.act(&cx, &reply).await {
                    self.busy.give_back(Mark(&event));
                    return Err(e);
                }
                self.busy.settle(Some(Mark(&event)));
                Ok((!reply.data.is_empty()).then_some(reply.data))
            }
            Err(e) => {
                let text = e.map(|f| f.0).to_string();
                self.busy.give_back(Mark(&event));
                span.fail("the app did not take the event");
                tracing::error!(target: "dapr.runtime", "error from app consumer for binding [{name}]: {text}");
                Err(Error::internal(text).with_retry(Retry::Always))
            }
        }
    }
}
