//! The way of a subscription's events to the app: decode, route, call, settle.

use std::borrow::Cow;
use std::future::{Future, pending};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mecha_components_api::{CancellationToken, Clock, Deliver, Delivery, Metadata, Publish, Retry, Verdict};
use mecha_resiliency::{CallClass, Failure, RunError};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::busy::Busy;
use super::content;
use super::event::Event;
use super::publish::broker_topic;
use super::quiet::Quiet;
use super::route::Routes;
use super::target::{Failed, Target};
use crate::app::{AppError, AppVerdict, TopicEvent};
use crate::cx::{Cx, Front};
use crate::metrics::{Following, IngressMetrics, Metrics, ProcessStatus};
use crate::ops::Operation;
use crate::store::PubSubHandle;
use crate::trace::{Span, SpanKind, Tracer, attribute};

/// Limit of a dead-letter write. Its own, because the message's may be used up.
const DEAD_LETTER_LIMIT: Duration = Duration::from_secs(30);
/// What the app channel says while health checks fail. The app saw nothing of the event, so
/// it must not cost the event its place in the topic.
const UNHEALTHY: &str = "app is not in a healthy state";

/// Everything a delivery needs besides the message.
#[derive(Debug)]
pub(super) struct Line {
    pub pubsub: Arc<str>,
    /// Topic of the subscription, without namespace prefix.
    pub topic: Arc<str>,
    pub handle: Arc<PubSubHandle>,
    pub routes: Routes,
    /// `rawPayload`, or why it cannot be read.
    pub raw: Result<bool, String>,
    pub dead_letter: Option<String>,
    pub target: Target,
    pub metrics: Arc<Metrics>,
    /// `None` where bulk counters take their place.
    pub counts: Option<Following<Counts>>,
    pub tracer: Tracer,
    pub clock: Arc<dyn Clock>,
    pub quiet: Quiet,
    /// The subscription stops: what runs may finish, nothing is tried again.
    pub stopping: CancellationToken,
    /// The time to finish is over.
    pub kill: CancellationToken,
    pub progress: watch::Sender<Progress>,
    pub busy: Busy,
}

/// How far a subscription got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Not at the broker yet.
    Starting,
    /// Not in place yet, but nothing that is published from now on is missed.
    Secured,
    /// In place.
    Attached,
    /// The last try failed; more follow.
    Failed(Arc<str>),
}

/// Counters of one topic, by the label `status`.
#[derive(Debug)]
pub(super) struct Counts {
    success: IngressMetrics,
    retry: IngressMetrics,
    drop: IngressMetrics,
}

/// Why a message never reaches the app.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It is no event, or a rule cannot be decided: to the dead letters or back to the broker.
    Broken(String),
    /// Its time is over.
    Expired,
    /// No route takes it.
    NoRoute,
}

/// How the calls to the app ended.
#[derive(Debug)]
enum End {
    Success,
    Dropped {
        to_dead_letters: bool,
    },
    Failed(String),
    /// See [`Unsettled::Open`].
    Open,
}

/// Why calls ended without a verdict.
#[derive(Debug)]
pub(super) enum Unsettled {
    /// Nobody decided: the subscription stops, or the app cannot be asked.
    Open,
    /// The policy is used up.
    Failed(String),
}

/// One call that was no success.
#[derive(Debug)]
pub(super) enum Attempt {
    /// The app asked for another try.
    Asked,
    Failed(AppError),
    Gone,
}

impl Counts {
    pub(super) fn new(metrics: &Metrics, pubsub: &str, topic: &str) -> Self {
        let with = |status| metrics.ingress(pubsub, topic, status);
        Self { success: with("success"), retry: with("retry"), drop: with("drop") }
    }

    fn by(&self, status: ProcessStatus) -> &IngressMetrics {
        match status {
            ProcessStatus::Success => &self.success,
            ProcessStatus::Retry => &self.retry,
            ProcessStatus::Drop => &self.drop,
        }
    }
}

#[async_trait]
impl Deliver for Line {
    fn secured(&self) {
        self.progress.send_if_modified(|progress| {
            let earlier = *progress != Progress::Attached;
            if earlier {
                *progress = Progress::Secured;
            }
            earlier
        });
    }

    fn attached(&self) {
        if *self.progress.borrow() == Progress::Secured {
            // Until now nothing could come, which was no silence of the broker.
            drop(self.busy.enter());
        }
        self.progress.send_replace(Progress::Attached);
    }

    async fn deliver(&self, msg: Delivery) -> Verdict {
        if self.kill.is_cancelled() {
            return Verdict::Release;
        }
        let _busy = self.busy.enter();
        let data = msg.data.clone();
        let verdict = tokio::select! {
            biased;
            verdict = self.process(msg) => verdict,
            () = self.kill.cancelled() => Verdict::Release,
        };
        self.note(verdict, &data);
        verdict
    }
}

impl Line {
    /// Keeps account of what became of an event with this content.
    pub(super) fn note(&self, verdict: Verdict, data: &Bytes) {
        match verdict {
            // Without the ids of an envelope two events may be alike.
            Verdict::Ack => self.busy.settle((self.raw == Ok(false)).then_some(data)),
            Verdict::Retry | Verdict::Release if self.handle.inner.caps().redelivers => self.busy.give_back(data),
            Verdict::Retry | Verdict::Release => self.busy.give_up(),
        }
    }

    async fn process(&self, mut msg: Delivery) -> Verdict {
        let topic = self.bare(&msg.topic).to_owned();
        let (event, path) = match self.read(&msg, &topic) {
            Ok(read) => read,
            Err(refusal) => return self.refuse(&msg, &topic, refusal).await,
        };
        let mut span = self.span(&event, &topic);
        let metadata = std::mem::take(&mut msg.metadata);
        let event = self.topic_event(event, &topic, path, metadata, &span);
        let end = self.call(&event, &topic).await;
        // The broker's own words, for the dead letters.
        msg.metadata = event.metadata;
        match end {
            End::Success => Verdict::Ack,
            End::Dropped { to_dead_letters } => {
                self.log_drop(&topic, "the app gave it up");
                if to_dead_letters && self.dead_letter.is_some() && !self.bury(&msg).await {
                    return Verdict::Retry;
                }
                Verdict::Ack
            }
            End::Failed(cause) => {
                span.fail(cause.clone());
                self.give_up(&msg, &topic, &cause).await
            }
            End::Open => Verdict::Release,
        }
    }

    /// The event and its path.
    pub(super) fn read(&self, msg: &Delivery, topic: &str) -> Result<(Event, String), Refusal> {
        let raw = self.raw.clone().map_err(Refusal::Broken)?;
        let event = Event::decode(msg, &self.pubsub, topic, raw).map_err(Refusal::Broken)?;
        if event.is_expired(self.clock.now()) {
            return Err(Refusal::Expired);
        }
        match self.routes.pick(&event.members) {
            Ok(Some(path)) => {
                let path = path.to_owned();
                Ok((event, path))
            }
            Ok(None) => Err(Refusal::NoRoute),
            Err(e) => Err(Refusal::Broken(e)),
        }
    }

    /// Settles a message that never reaches the app.
    pub(super) async fn refuse(&self, msg: &Delivery, topic: &str, refusal: Refusal) -> Verdict {
        let (process, status) = match &refusal {
            Refusal::Broken(cause) => {
                self.log_failure(topic, cause);
                return self.settle_failed(msg, topic).await;
            }
            Refusal::Expired => (ProcessStatus::Drop, ProcessStatus::Drop),
            Refusal::NoRoute => (ProcessStatus::Drop, ProcessStatus::Success),
        };
        self.log_drop(topic, if status == ProcessStatus::Drop { "it expired" } else { "no route takes it" });
        self.count(topic, process, status, Duration::ZERO);
        if self.dead_letter.is_some() && !self.bury(msg).await { Verdict::Retry } else { Verdict::Ack }
    }

    /// The end of an event whose policy is used up.
    pub(super) async fn give_up(&self, msg: &Delivery, topic: &str, cause: &str) -> Verdict {
        if self.stopping.is_cancelled() {
            return Verdict::Release;
        }
        self.log_failure(topic, cause);
        self.settle_failed(msg, topic).await
    }

    /// To the dead letters, else back to the broker.
    async fn settle_failed(&self, msg: &Delivery, topic: &str) -> Verdict {
        let buried = self.dead_letter.is_some() && self.bury(msg).await;
        let end = if buried { ProcessStatus::Drop } else { ProcessStatus::Retry };
        self.count(topic, end, end, Duration::ZERO);
        if buried { Verdict::Ack } else { Verdict::Retry }
    }

    /// Writes the message to the dead-letter topic as the broker gave it; whether it is there.
    pub(super) async fn bury(&self, msg: &Delivery) -> bool {
        let Some(dead_letter) = &self.dead_letter else { return false };
        let result = if self.handle.extra.scopes.may_publish(dead_letter) {
            let topic = broker_topic(&self.handle, dead_letter);
            let cx = Cx::new(Front::Grpc);
            let call = || {
                self.handle.inner.publish(Publish {
                    topic: &topic,
                    data: msg.data.clone(),
                    content_type: msg.content_type.as_deref(),
                    metadata: &msg.metadata,
                })
            };
            let write = self.handle.ops.run(&cx, Operation::Publish, true, call);
            match timeout(DEAD_LETTER_LIMIT, write).await {
                Ok(result) => result.map_err(|e| e.to_string()),
                Err(_) => Err(format!("no confirmation within {DEAD_LETTER_LIMIT:?}")),
            }
        } else {
            Err("the component's scopes do not allow this app to publish there".into())
        };
        if let Err(e) = &result
            && let Some(held_back) = self.quiet.pass()
        {
            tracing::error!(
                target: "dapr.runtime.processor.subscription",
                held_back,
                "error sending message to dead letter, origin topic: {} dead letter topic {dead_letter} err: {e}",
                self.topic,
            );
        }
        result.is_ok()
    }

    /// Calls the app under the policy.
    async fn call(&self, event: &TopicEvent, topic: &str) -> End {
        match self.under_policy(|| self.attempt(event, topic)).await {
            Ok(end) => end,
            Err(Unsettled::Open) => End::Open,
            Err(Unsettled::Failed(cause)) => End::Failed(cause),
        }
    }

    /// Repeats `attempt` as the inbound policy says. Once the subscription stops, a call that
    /// runs may finish, but none follows.
    pub(super) async fn under_policy<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, Unsettled>
    where
        F: Future<Output = Result<T, Attempt>>,
    {
        // The policy of the moment: documents change while the subscription runs.
        let guarded = self.handle.ops.inbound();
        if guarded.is_none() {
            return attempt().await.map_err(|e| self.unsettled(RunError::Failed(e)));
        }
        let (calling, no_more) = (&AtomicBool::new(false), &Notify::new());
        let attempts = guarded.run("", CallClass::IDEMPOTENT, |_| {
            let attempt = attempt();
            async move {
                let result = {
                    let _calling = Flag::raise(calling);
                    attempt.await
                };
                if result.is_err() && self.stopping.is_cancelled() {
                    no_more.notify_one();
                    pending::<()>().await;
                }
                result
            }
        });
        let stop_in_pause = async {
            self.stopping.cancelled().await;
            if calling.load(Ordering::Relaxed) {
                // The call may finish; should it fail, `no_more` follows.
                pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            result = attempts => result.map_err(|e| self.unsettled(e)),
            () = no_more.notified() => Err(Unsettled::Open),
            () = stop_in_pause => Err(Unsettled::Open),
        }
    }

    fn unsettled(&self, e: RunError<Attempt>) -> Unsettled {
        match e {
            RunError::Failed(Attempt::Gone) => Unsettled::Open,
            RunError::Failed(Attempt::Failed(e)) if e.error.message().contains(UNHEALTHY) => Unsettled::Open,
            _ if self.stopping.is_cancelled() => Unsettled::Open,
            e => Unsettled::Failed(e.to_string()),
        }
    }

    /// One call of the app. Counts itself, also when it is cut off.
    async fn attempt(&self, event: &TopicEvent, topic: &str) -> Result<End, Attempt> {
        let mut count = CountAttempt { line: self, topic, started: Instant::now(), armed: true };
        match self.target.deliver(event, &self.stopping).await {
            Ok(AppVerdict::Success) => {
                count.done(ProcessStatus::Success, ProcessStatus::Success);
                Ok(End::Success)
            }
            Ok(AppVerdict::Drop) => {
                count.done(ProcessStatus::Drop, ProcessStatus::Success);
                Ok(End::Dropped { to_dead_letters: true })
            }
            Ok(AppVerdict::Discard) => {
                count.done(ProcessStatus::Drop, ProcessStatus::Drop);
                Ok(End::Dropped { to_dead_letters: false })
            }
            Err(Failed::App(e)) if e.http_status == Some(404) => {
                count.done(ProcessStatus::Drop, ProcessStatus::Drop);
                Ok(End::Dropped { to_dead_letters: true })
            }
            Ok(AppVerdict::Retry) => {
                count.done(ProcessStatus::Retry, ProcessStatus::Retry);
                Err(Attempt::Asked)
            }
            Err(Failed::App(e)) => {
                count.done(ProcessStatus::Retry, ProcessStatus::Retry);
                Err(Attempt::Failed(e))
            }
            Err(Failed::Gone) => {
                count.armed = false;
                Err(Attempt::Gone)
            }
        }
    }

    fn topic_event(&self, event: Event, topic: &str, path: String, metadata: Metadata, span: &Span) -> TopicEvent {
        let trace = event.headers(span);
        let (mut object, mut data) = Default::default();
        if self.target.wants_object() {
            object = event.members.to_map();
            data = event.members.raw("data").cloned();
        }
        self.target.complete(&mut object);
        TopicEvent {
            pubsub: self.pubsub.as_ref().to_owned(),
            topic: topic.to_owned(),
            path,
            body: event.body,
            content_type: content::CLOUD_EVENT,
            event: object,
            data,
            metadata,
            trace,
        }
    }

    pub(super) fn span(&self, event: &Event, topic: &str) -> Span {
        let parent = event.parent(&self.tracer);
        let mut span = self.tracer.start(SpanKind::Consumer, parent.as_ref(), || format!("pubsub/{topic}"));
        if span.is_recording() {
            span.set(attribute::MESSAGING_SYSTEM, attribute::MESSAGING_PUBSUB);
            span.set(attribute::MESSAGING_DESTINATION_NAME, topic.to_owned());
        }
        span
    }

    /// The topic as the app knows it.
    pub(super) fn bare<'t>(&self, topic: &'t str) -> &'t str {
        let prefix = self.handle.extra.namespace_prefix.as_deref().unwrap_or_default();
        topic.strip_prefix(prefix).unwrap_or(topic)
    }

    pub(super) fn count(&self, topic: &str, process: ProcessStatus, status: ProcessStatus, elapsed: Duration) {
        let Some(own) = &self.counts else { return };
        if topic == &*self.topic {
            own.get().by(status).record(process, elapsed);
        } else {
            // A wildcard subscription sees other topics than its own.
            Counts::new(&self.metrics, &self.pubsub, topic).by(status).record(process, elapsed);
        }
    }

    pub(super) fn log_drop(&self, topic: &str, why: &'static str) {
        if let Some(held_back) = self.quiet.pass() {
            let to = match &self.dead_letter {
                Some(dead_letter) => Cow::Owned(format!("; dead letter topic {dead_letter}")),
                None => Cow::Borrowed(""),
            };
            tracing::warn!(
                target: "dapr.runtime.processor.subscription",
                held_back,
                "dropped an event of topic {topic} in pubsub {}: {why}{to}",
                self.pubsub,
            );
        }
    }

    pub(super) fn log_failure(&self, topic: &str, cause: &str) {
        if let Some(held_back) = self.quiet.pass() {
            tracing::error!(
                target: "dapr.runtime.processor.subscription",
                held_back,
                "error processing an event of topic {topic} in pubsub {}: {cause}",
                self.pubsub,
            );
        }
    }
}

struct Flag<'a>(&'a AtomicBool);

impl<'a> Flag<'a> {
    fn raise(flag: &'a AtomicBool) -> Self {
        flag.store(true, Ordering::Relaxed);
        Self(flag)
    }
}

impl Drop for Flag<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

struct CountAttempt<'a> {
    line: &'a Line,
    topic: &'a str,
    started: Instant,
    armed: bool,
}

impl CountAttempt<'_> {
    fn done(&mut self, process: ProcessStatus, status: ProcessStatus) {
        self.armed = false;
        self.line.count(self.topic, process, status, self.started.elapsed());
    }
}

impl Drop for CountAttempt<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.done(ProcessStatus::Retry, ProcessStatus::Retry);
        }
    }
}

impl std::fmt::Display for Attempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Asked => f.write_str("the app asked for another try"),
            Self::Failed(e) => e.fmt(f),
            Self::Gone => f.write_str("the subscriber is gone"),
        }
    }
}

impl Failure for Attempt {
    fn repeatable(&self) -> Retry {
        // Apps of an at-least-once service take an event twice.
        match self {
            Self::Gone => Retry::Never,
            _ => Retry::Always,
        }
    }

    fn http_status(&self) -> Option<u16> {
        match self {
            Self::Failed(e) => e.http_status,
            _ => None,
        }
    }

    fn grpc_code(&self) -> Option<u16> {
        match self {
            Self::Failed(e) => e.grpc_code.and_then(|code| u16::try_from(code).ok()),
            _ => None,
        }
    }
}

#[cfg(test)]
#[path = "line_tests.rs"]
mod tests;
