//! One subscription while it runs: started again until it works, drained when it stops.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use mecha_components_api::{Deliver, Subscribe};
use mecha_resiliency::Jitter;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::bulk::bulk;
use super::busy::REDELIVERY;
use super::line::{Line, Progress};
use super::publish::broker_topic;
use crate::app::AppSubscription;
use crate::store::PubSubHandle;
use crate::tasks::Tasks;

/// Longest drain, also where nobody sets a limit.
const DRAIN_MAX: Duration = Duration::from_secs(30);
/// What a component has to hand its last verdicts to the broker, after the drain was cut off.
const SETTLE: Duration = Duration::from_secs(5);
/// Pauses between failed starts.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_LAST: Duration = Duration::from_secs(5);
/// A subscription that ran for this long starts over with the first pause.
const HEALTHY: Duration = Duration::from_secs(30);

/// A running subscription. Dropping it stops it; its task goes on until it is drained.
#[derive(Debug)]
pub(super) struct Run {
    line: Arc<Line>,
    done: CancellationToken,
}

impl Run {
    /// Starts it. `line.stopping` and `line.kill` belong to it from now on.
    pub(super) fn spawn(tasks: &Tasks, line: Arc<Line>, sub: &AppSubscription) -> Self {
        let done = CancellationToken::new();
        let request = Subscribe {
            topic: broker_topic(&line.handle, &sub.topic).into_owned(),
            metadata: sub.metadata.clone(),
            bulk: sub.bulk.map(|b| (b.max_messages, b.max_await)),
        };
        let bulk_options = sub.bulk;
        let (task_line, guard) = (line.clone(), done.clone().drop_guard());
        tasks.spawn("subscription", async move {
            let _done = guard;
            let line = task_line;
            let work = async {
                match bulk_options {
                    None => line.clone().serve(request, line.clone()).await,
                    Some(options) => {
                        let (to, batcher) = bulk(&line, options);
                        tokio::join!(line.clone().serve(request, to), batcher.run());
                    }
                }
            };
            tokio::select! {
                () = work => {}
                () = line.overtime() => tracing::warn!(
                    target: "dapr.runtime.processor.subscription",
                    "pubsub {} did not let go of topic {} in time; unfinished events are redelivered",
                    line.pubsub, line.topic,
                ),
            }
        });
        Self { line, done }
    }

    /// Waits until the subscription is in place, or misses nothing until it is; the error is that of the last try.
    pub(super) async fn attached(&self, limit: Duration) -> Result<(), Arc<str>> {
        let mut progress = self.line.progress.subscribe();
        let state = match timeout(limit, progress.wait_for(|p| *p != Progress::Starting)).await {
            Ok(Ok(state)) => state.clone(),
            _ => return Err("no answer of the broker yet".into()),
        };
        match state {
            Progress::Failed(e) => Err(e),
            _ => Ok(()),
        }
    }

    /// Whether the subscription is in place now, or misses nothing until it is; else the error of the last try.
    pub(super) fn standing(&self) -> Result<(), Option<Arc<str>>> {
        match &*self.line.progress.borrow() {
            Progress::Secured | Progress::Attached => Ok(()),
            Progress::Starting => Err(None),
            Progress::Failed(e) => Err(Some(e.clone())),
        }
    }

    /// Ends once the subscription reads by itself, or is over.
    pub(super) fn reads(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut progress = self.line.progress.subscribe();
        let done = self.done.clone();
        async move {
            tokio::select! {
                _ = progress.wait_for(|p| *p != Progress::Secured) => {}
                () = done.cancelled() => {}
            }
        }
    }

    /// Stops taking messages.
    pub(super) fn begin_stop(&self) {
        self.line.stopping.cancel();
    }

    /// Stops and waits. Whether all work finished within `drain`; what did not is released.
    pub(super) async fn stop(&self, drain: Duration) -> bool {
        self.begin_stop();
        if timeout(drain, self.done.cancelled()).await.is_ok() {
            return true;
        }
        self.line.kill.cancel();
        // The task ends by itself after SETTLE; the margin is for the scheduler.
        let _ = timeout(SETTLE * 2, self.done.cancelled()).await;
        false
    }

    /// Whether it is in place, nothing came for `idle`, and what went back to the broker has come again.
    pub(super) fn is_idle(&self, idle: Duration) -> bool {
        self.is_in_place() && self.line.busy.idle_for(idle) && self.line.busy.owes_nothing(REDELIVERY)
    }

    fn is_in_place(&self) -> bool {
        *self.line.progress.borrow() == Progress::Attached
    }

    /// When an event was settled last, or failed for the first time.
    pub(super) fn news(&self) -> Instant {
        self.line.busy.news()
    }

    /// Events in flight.
    pub(super) fn in_flight(&self) -> u64 {
        self.line.busy.running()
    }

    /// Events that went back to the broker so far.
    pub(super) fn given_back(&self) -> u64 {
        self.line.busy.given_back()
    }

    /// The instance it reads from.
    pub(super) fn handle(&self) -> &Arc<PubSubHandle> {
        &self.line.handle
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.begin_stop();
    }
}

impl Line {
    /// Keeps the subscription alive until it is told to stop.
    async fn serve(self: Arc<Self>, request: Subscribe, to: Arc<dyn Deliver>) {
        let jitter = Jitter::default();
        let mut pause = PAUSE_FIRST;
        while !self.stopping.is_cancelled() {
            let started = Instant::now();
            let run = self.handle.inner.subscribe(request.clone(), to.clone(), self.stopping.clone());
            let cause = match AssertUnwindSafe(run).catch_unwind().await {
                Ok(Ok(())) => "the broker ended the subscription".to_owned(),
                Ok(Err(e)) => e.to_string(),
                Err(_) => "the component panicked; please report this as a defect".to_owned(),
            };
            if self.stopping.is_cancelled() {
                return;
            }
            if started.elapsed() >= HEALTHY {
                pause = PAUSE_FIRST;
            }
            let wait = pause.mul_f64(0.5 + jitter.next() / 2.0);
            tracing::error!(
                target: "dapr.runtime.processor.subscription",
                "Failed to start subscription for pubsub {}, topic {}: {cause}. Trying again in {wait:?}",
                self.pubsub, self.topic,
            );
            self.progress.send_replace(Progress::Failed(cause.into()));
            pause = (pause * 2).min(PAUSE_LAST);
            tokio::select! {
                () = sleep(wait) => {}
                () = self.stopping.cancelled() => {}
            }
        }
    }

    /// Ends when a stop has taken too long.
    async fn overtime(&self) {
        self.stopping.cancelled().await;
        tokio::select! {
            () = sleep(DRAIN_MAX) => self.kill.cancel(),
            () = self.kill.cancelled() => {}
        }
        sleep(SETTLE).await;
    }
}
