//! Deliveries of several messages in one call.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use mecha_components_api::{Deliver, Delivery, Metadata, Verdict};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::content;
use super::line::{Attempt, Line, Unsettled};
use super::target::Failed;
use crate::app::{AppVerdict, BulkEventEntry, BulkOptions, BulkTopicEvent};
use crate::cx::TraceHeaders;
use crate::metrics::{BulkIngressMetrics, Following, ProcessStatus};
use crate::trace::Span;

/// Most messages of one call, whatever a subscription asks for.
const MAX_MESSAGES: usize = 10_000;
/// Dead-letter writes of one bulk at the same time.
const PARALLEL_BURIALS: usize = 16;

/// The component's end of a bulk subscription.
pub(super) struct BulkLine {
    line: Arc<Line>,
    queue: mpsc::Sender<Item>,
}

/// Puts messages together and calls the app.
pub(super) struct Batcher {
    line: Arc<Line>,
    options: BulkOptions,
    queue: mpsc::Receiver<Item>,
    counts: Following<BulkIngressMetrics>,
}

struct Item {
    msg: Delivery,
    verdict: oneshot::Sender<Verdict>,
}

/// A message that has a route.
struct Routed {
    item: Item,
    topic: String,
    entry: BulkEventEntry,
    span: Span,
}

/// Both ends of a bulk subscription.
pub(super) fn bulk(line: &Arc<Line>, options: BulkOptions) -> (Arc<BulkLine>, Batcher) {
    let max_messages = options.max_messages.clamp(1, MAX_MESSAGES);
    let (sender, queue) = mpsc::channel(max_messages);
    let options = BulkOptions { max_messages, ..options };
    let (pubsub, topic) = (line.pubsub.clone(), line.topic.clone());
    let counts = line.metrics.follow(move |m| m.bulk_ingress(&pubsub, &topic));
    let batcher = Batcher { line: line.clone(), options, queue, counts };
    (Arc::new(BulkLine { line: line.clone(), queue: sender }), batcher)
}

#[async_trait]
impl Deliver for BulkLine {
    fn secured(&self) {
        self.line.secured();
    }

    fn attached(&self) {
        self.line.attached();
    }

    async fn deliver(&self, msg: Delivery) -> Verdict {
        if self.line.kill.is_cancelled() {
            return Verdict::Release;
        }
        let _busy = self.line.busy.enter();
        let data = msg.data.clone();
        let (verdict, answer) = oneshot::channel();
        let ask = async {
            self.queue.send(Item { msg, verdict }).await.ok()?;
            answer.await.ok()
        };
        let verdict = tokio::select! {
            biased;
            verdict = ask => verdict.unwrap_or(Verdict::Release),
            () = self.line.kill.cancelled() => Verdict::Release,
        };
        self.line.note(verdict, &data);
        verdict
    }
}

impl Batcher {
    /// Runs until the component's end is dropped.
    pub(super) async fn run(mut self) {
        while let Some(batch) = self.collect().await {
            self.handle(batch).await;
        }
    }

    /// The next batch: full, or as old as it may get. A stop waits for no more.
    async fn collect(&mut self) -> Option<Vec<Item>> {
        let mut batch = vec![self.queue.recv().await?];
        let deadline = Instant::now() + self.options.max_await;
        while batch.len() < self.options.max_messages {
            tokio::select! {
                biased;
                item = self.queue.recv() => match item {
                    Some(item) => batch.push(item),
                    None => break,
                },
                () = self.line.stopping.cancelled() => break,
                () = sleep_until(deadline) => break,
            }
        }
        Some(batch)
    }

    async fn handle(&self, batch: Vec<Item>) {
        let mut groups: Vec<(String, Vec<Routed>)> = Vec::new();
        for item in batch {
            let topic = self.line.bare(&item.msg.topic).to_owned();
            match self.line.read(&item.msg, &topic) {
                Ok((event, path)) => {
                    let span = self.line.span(&event, &topic);
                    let routed = Routed { entry: self.entry(&item.msg, event), item, topic, span };
                    match groups.iter_mut().find(|(known, _)| *known == path) {
                        Some((_, group)) => group.push(routed),
                        None => groups.push((path, vec![routed])),
                    }
                }
                Err(refusal) => {
                    let verdict = self.line.refuse(&item.msg, &topic, refusal).await;
                    self.settle(item, verdict, ProcessStatus::Drop);
                }
            }
        }
        for (path, group) in groups {
            self.deliver(path, group).await;
        }
    }

    fn entry(&self, msg: &Delivery, event: super::event::Event) -> BulkEventEntry {
        let raw = self.line.raw == Ok(true);
        let object = !raw && self.line.target.wants_object();
        let body = match (raw, event.bare) {
            (true, _) => msg.data.clone(),
            (false, true) => event.members.to_json(),
            (false, false) => event.body,
        };
        BulkEventEntry {
            entry_id: uuid::Uuid::new_v4().to_string(),
            data: if object { event.members.raw("data").cloned() } else { None },
            event: (!raw).then(|| if object { event.members.to_map() } else { serde_json::Map::new() }),
            raw,
            body,
            content_type: match &msg.content_type {
                Some(content_type) if raw && !content_type.is_empty() => content_type.clone(),
                _ if raw => content::OCTET_STREAM.to_owned(),
                _ => content::CLOUD_EVENT.to_owned(),
            },
            metadata: msg.metadata.clone(),
        }
    }

    /// Calls the app with one group until every message has an end.
    async fn deliver(&self, path: String, mut group: Vec<Routed>) {
        let entries: Vec<BulkEventEntry> = group.iter_mut().map(|r| std::mem::take(&mut r.entry)).collect();
        let verdicts: Mutex<Vec<Option<AppVerdict>>> = Mutex::new(vec![None; entries.len()]);
        let trace = group.first().and_then(|r| r.span.context());
        let trace = TraceHeaders {
            traceparent: trace.map(|c| c.traceparent().into()),
            tracestate: trace.and_then(|c| c.tracestate.clone()),
            baggage: None,
        };
        let (path, entries, verdicts, trace) = (&path, &entries, &verdicts, &trace);
        let attempt = || async move {
            let open: Vec<usize> =
                verdicts.lock().iter().enumerate().filter_map(|(at, v)| v.is_none().then_some(at)).collect();
            let event = BulkTopicEvent {
                id: uuid::Uuid::new_v4().to_string(),
                pubsub: self.line.pubsub.as_ref().to_owned(),
                topic: self.line.topic.as_ref().to_owned(),
                path: path.clone(),
                metadata: Metadata::from_iter([("pubsubName", self.line.pubsub.as_ref())]),
                entries: open.iter().map(|at| entries[*at].clone()).collect(),
                trace: trace.clone(),
            };
            self.attempt(&event, &open, verdicts).await
        };
        let outcome = self.line.under_policy(attempt).await;
        let verdicts = std::mem::take(&mut *verdicts.lock());
        let ends = group.into_iter().zip(verdicts).map(|(routed, verdict)| self.end(routed, verdict, &outcome));
        stream::iter(ends).for_each_concurrent(PARALLEL_BURIALS, |end| end).await;
    }

    /// One call for those that are `open`.
    async fn attempt(
        &self,
        event: &BulkTopicEvent,
        open: &[usize],
        verdicts: &Mutex<Vec<Option<AppVerdict>>>,
    ) -> Result<(), Attempt> {
        let started = Instant::now();
        let answer = self.line.target.deliver_bulk(event).await;
        self.counts.get().delivered(started.elapsed());
        let answers = match answer {
            Ok(answers) => answers,
            Err(Failed::App(e)) if e.http_status == Some(404) => vec![AppVerdict::Drop; open.len()],
            Err(Failed::App(e)) => return Err(Attempt::Failed(e)),
            Err(Failed::Gone) => return Err(Attempt::Gone),
        };
        let mut verdicts = verdicts.lock();
        // What the app passed over has no verdict and is tried again.
        for (at, answer) in open.iter().zip(answers) {
            if answer != AppVerdict::Retry {
                verdicts[*at] = Some(answer);
            }
        }
        if verdicts.iter().all(Option::is_some) { Ok(()) } else { Err(Attempt::Asked) }
    }

    async fn end(&self, routed: Routed, verdict: Option<AppVerdict>, outcome: &Result<(), Unsettled>) {
        let Routed { item, topic, mut span, .. } = routed;
        let (verdict, acked) = match (verdict, outcome) {
            (Some(AppVerdict::Success), _) => (Verdict::Ack, ProcessStatus::Success),
            (Some(given_up), _) => {
                self.line.log_drop(&topic, "the app gave it up");
                let bury = given_up == AppVerdict::Drop && self.line.dead_letter.is_some();
                let lost = bury && !self.line.bury(&item.msg).await;
                (if lost { Verdict::Retry } else { Verdict::Ack }, ProcessStatus::Drop)
            }
            (None, Err(Unsettled::Failed(cause))) => {
                span.fail(cause.clone());
                (self.line.give_up(&item.msg, &topic, cause).await, ProcessStatus::Drop)
            }
            (None, _) => (Verdict::Release, ProcessStatus::Retry),
        };
        self.settle(item, verdict, acked);
    }

    /// Tells the component, and counts: `acked` says what an acknowledgement means here.
    fn settle(&self, item: Item, verdict: Verdict, acked: ProcessStatus) {
        match verdict {
            Verdict::Ack => self.counts.get().events(acked, 1),
            Verdict::Retry => self.counts.get().events(ProcessStatus::Retry, 1),
            Verdict::Release => {}
        }
        // A component that no longer waits left the message to the broker.
        let _ = item.verdict.send(verdict);
    }
}

#[cfg(test)]
#[path = "bulk_tests.rs"]
mod tests;
