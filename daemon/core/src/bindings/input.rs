//! Input bindings: sources that run while the app takes their events.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use mecha_components_api::{
    BindingEvent, CancellationToken, Error, Metadata, OnBindingEvent, Result, Retry, async_trait,
};
use mecha_resiliency::{CallClass, Failure};
use parking_lot::Mutex;

use crate::app::{AppChannel, AppError, BindingReply};
use crate::core::Core;
use crate::cx::{Cx, Front, TraceHeaders};
use crate::metrics::OpMetrics;
use crate::store::InputHandle;
use crate::tasks::Tasks;
use crate::trace::{SpanKind, TraceContext};

/// First pause before a probe or a broken source is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// Longest such pause.
const RETRY_MOST: Duration = Duration::from_secs(10);

/// The input bindings of a runtime.
#[derive(Debug)]
pub struct Inputs {
    probe_limit: Duration,
    running: Mutex<Option<Tasks>>,
}

struct Source {
    core: Arc<Core>,
    app: Arc<dyn AppChannel>,
    handle: Arc<InputHandle>,
    route: String,
    metrics: OpMetrics,
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
        Self { probe_limit, running: Mutex::default() }
    }

    /// Starts every input binding that the app takes. Asking goes on in the background until the
    /// app gives a definite answer, so an app may start as late as it likes.
    pub fn start(&self, core: &Arc<Core>) {
        let Ok(app) = core.app().cloned() else { return };
        let mut running = self.running.lock();
        if running.is_some() {
            return;
        }
        let tasks = core.tasks.child();
        for (name, handle) in &core.store.snapshot().input {
            let metadata = &handle.extra;
            let route = metadata.get_non_empty("route").map_or_else(|| format!("/{name}"), str::to_owned);
            let declared =
                metadata.get("direction").is_some_and(|d| d.to_lowercase().split(',').any(|d| d.trim() == "input"));
            let source = Source {
                core: core.clone(),
                app: app.clone(),
                handle: handle.clone(),
                route,
                metrics: core.metrics.input_binding(name),
            };
            let (limit, group) = (self.probe_limit, tasks.clone());
            tasks.spawn("input binding", async move { Arc::new(source).run(declared, limit, group).await });
        }
        *running = Some(tasks);
    }

    /// Stops the sources; events in flight are finished first.
    pub async fn stop(&self) {
        let tasks = self.running.lock().take();
        if let Some(tasks) = tasks {
            tasks.shut_down().await;
        }
    }
}

impl Source {
    async fn run(self: Arc<Self>, declared: bool, limit: Duration, tasks: Tasks) {
        let name = self.handle.info.name.clone();
        let stop = tasks.stopping().clone();
        if !declared && !self.wanted(limit, &stop).await {
            return;
        }
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

#[async_trait]
impl OnBindingEvent for Source {
    async fn event(&self, event: BindingEvent) -> Result<Option<Bytes>> {
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
        self.metrics.record(outcome.is_ok(), began.elapsed());
        match outcome {
            Ok(reply) => {
                let cx = Cx { front: Front::Http, trace };
                self.act(&cx, &reply).await?;
                Ok((!reply.data.is_empty()).then_some(reply.data))
            }
            Err(e) => {
                let text = e.map(|f| f.0).to_string();
                span.fail("the app did not take the event");
                tracing::error!(target: "dapr.runtime", "error from app consumer for binding [{name}]: {text}");
                Err(Error::internal(text).with_retry(Retry::Always))
            }
        }
    }
}
