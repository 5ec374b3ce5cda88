//! The connection to the agent: made for ever, one stream each.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use mecha_components_api::Clock as _;
use mecha_core::trace::TraceContext;
use mecha_proto::delivery as wire;
use mecha_proto::delivery::delivery_client::DeliveryClient;
use mecha_proto::delivery::{from_agent, from_sidecar};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::set::Received;
use super::snapshot::check;
use super::{Settings, Shared, Speaks};

/// First and longest pause between two connections. The longest is that of the incumbent.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Limit of a first answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// A set with the snapshot of it; the same as the agent's own limit.
const MAX_MESSAGE: usize = 64 << 20;
/// A connection that lasted this long starts the pauses anew.
const HEALTHY: Duration = Duration::from_secs(30);
/// Shortest time between two reports.
const REPORTS: Duration = Duration::from_millis(100);
/// The version of the protocol that is spoken here.
const PROTOCOL: u32 = 1;

/// Keeps the latest set up to date.
pub(super) struct Link {
    settings: Settings,
    shared: Arc<Shared>,
}

/// Why a connection ended, or none came about.
enum End {
    /// The control plane does not speak the protocol.
    Foreign,
    Broken(String),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::Unimplemented => Self::Foreign,
            code => Self::Broken(format!("{code:?}: {}", status.message())),
        }
    }
}

impl Link {
    pub(super) fn new(settings: Settings, shared: Arc<Shared>) -> Self {
        if !settings.plane.is_secure() {
            tracing::warn!(
                target: "dapr.runtime",
                "the connection to the control plane at {} is not encrypted", settings.plane.address()
            );
        }
        Self { settings, shared }
    }

    pub(super) async fn run(self) -> Infallible {
        let mut pause = PAUSE.0;
        loop {
            let began = Instant::now();
            let Err(end) = self.connection().await;
            self.shared.connected.store(false, Ordering::Relaxed);
            let address = self.settings.plane.address();
            match end {
                End::Foreign => {
                    if self.shared.speaks(Speaks::Operator) {
                        tracing::info!(
                            target: "dapr.runtime.hotreload",
                            "the control plane at {address} does not know mecha.v1.Delivery: it is followed as \
                             Dapr's operator, without phases of moves"
                        );
                    }
                    sleep(jitter(self.settings.ask_again)).await;
                }
                End::Broken(cause) => {
                    if began.elapsed() >= HEALTHY {
                        pause = PAUSE.0;
                    }
                    // Sidecars of a whole cluster must not come back at one moment.
                    let wait = jitter(pause);
                    let kept =
                        if self.shared.latest.lock().is_some() { "; the last documents stay in use" } else { "" };
                    // The operator's own link tells of it otherwise.
                    if *self.shared.speaks.lock() != Speaks::Operator {
                        tracing::warn!(
                            target: "dapr.runtime.hotreload",
                            "no connection to the agent at {address}, trying again in {wait:?}{kept}: {cause}"
                        );
                    }
                    sleep(wait).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
        }
    }

    /// One connection, to its end.
    async fn connection(&self) -> Result<Infallible, End> {
        let channel = self.settings.plane.connect().await.map_err(End::Broken)?;
        let mut client =
            DeliveryClient::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(1 << 20);
        let (out, outgoing) = mpsc::channel(1);
        let digest = self.shared.latest.lock().as_ref().map(|s| s.digest.clone()).unwrap_or_default();
        let hello = wire::Hello {
            instance: self.settings.instance.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol_min: PROTOCOL,
            protocol_max: PROTOCOL,
            configurations: self.settings.configurations.clone(),
            digest: digest.clone(),
        };
        let hello = wire::FromSidecar { message: Some(from_sidecar::Message::Hello(hello)) };
        // There is room for one.
        let _ = out.try_send(hello);
        let slow = || End::Broken(format!("no answer within {ANSWER_LIMIT:?}"));
        let following = timeout(ANSWER_LIMIT, client.follow(ReceiverStream::new(outgoing)));
        let mut incoming = following.await.map_err(|_| slow())??.into_inner();
        let mut heard = false;
        let mut reports = self.shared.report.subscribe();
        reports.mark_changed();
        let mut next_report = Instant::now();
        loop {
            tokio::select! {
                message = timeout(if heard { Duration::MAX } else { ANSWER_LIMIT }, incoming.message()) => {
                    let message = message.map_err(|_| slow())??;
                    let message = message.ok_or_else(|| End::Broken("the agent ended the stream".to_owned()))?;
                    // Before the set, so that a start that waits for one has no second change to look at.
                    if !heard {
                        heard = true;
                        self.shared.connected.store(true, Ordering::Relaxed);
                        self.shared.speaks(Speaks::Ours);
                        tracing::info!(
                            target: "dapr.runtime.hotreload",
                            "following the agent at {}", self.settings.plane.address()
                        );
                    }
                    match message.message {
                        Some(from_agent::Message::Set(set)) => self.take(set).await,
                        Some(from_agent::Message::Unchanged(unchanged)) => self.confirm(unchanged.sequence, &digest),
                        // From a newer agent.
                        None => {}
                    }
                    reports.mark_changed();
                }
                changed = report_due(&mut reports, next_report), if heard => {
                    let report = changed.and_then(|report| self.number(report));
                    if let Some(report) = report {
                        next_report = Instant::now() + REPORTS;
                        let report = wire::FromSidecar { message: Some(from_sidecar::Message::Report(report)) };
                        // An agent that reads nothing is noticed by the keep-alive or by this.
                        if timeout(ANSWER_LIMIT, out.send(report)).await.is_err() {
                            return Err(End::Broken("the agent takes no reports".to_owned()));
                        }
                    }
                }
            }
        }
    }

    /// The report with the number of this stream; `None` while it is about a set of another.
    fn number(&self, report: wire::Report) -> Option<wire::Report> {
        let (sequence, digest) = &*self.shared.sequence.lock();
        (*digest == report.digest).then_some(wire::Report { sequence: *sequence, ..report })
    }

    async fn take(&self, set: wire::DocumentSet) {
        let wire::DocumentSet { sequence, digest, documents, snapshot, traceparent } = set;
        self.shared.sets.fetch_add(1, Ordering::Relaxed);
        *self.shared.sequence.lock() = (sequence, digest.clone());
        let before = self.shared.latest.lock().clone();
        let namespace = &self.settings.namespace;
        let received = Received::new(digest, documents, SystemTime::now(), before.as_deref(), namespace);
        let cause = TraceContext::parse(&traceparent, None);
        self.shared.take(Received { cause, ..received });
        if let Some(snapshot) = snapshot {
            self.keep(snapshot).await;
        }
    }

    /// The agent has nothing newer than what runs.
    fn confirm(&self, sequence: u64, digest: &str) {
        *self.shared.sequence.lock() = (sequence, digest.to_owned());
        let latest = self.shared.latest.lock().clone();
        if let Some(latest) = latest {
            let received = Received { restored: false, at: SystemTime::now(), ..Received::clone(&latest) };
            self.shared.take(received);
        }
    }

    /// Keeps the snapshot for a start without the agent.
    async fn keep(&self, snapshot: wire::SignedSnapshot) {
        let Some(keep) = self.settings.keep.clone() else { return };
        let write = tokio::task::spawn_blocking(move || {
            // One that would be refused at the start must not take the place of a good one.
            let good = check(&snapshot, &keep.terms, &(keep.anchors)(), SystemTime::now())?;
            keep.place.write(&snapshot).map_err(|e| format!("it cannot be written: {e}"))?;
            Ok::<_, String>(good.issued_at)
        });
        let kept = write.await.unwrap_or_else(|e| Err(e.to_string()));
        match kept {
            Ok(at) => {
                *self.shared.kept_at.lock() = Some(at);
                *self.shared.refused.lock() = None;
            }
            Err(cause) => {
                tracing::warn!(
                    target: "dapr.runtime.hotreload",
                    "the agent's snapshot is not kept for a start without it: {cause}"
                );
                *self.shared.refused.lock() = Some(cause);
            }
        }
    }
}

/// The next report, not before `at`.
async fn report_due(
    reports: &mut tokio::sync::watch::Receiver<Option<wire::Report>>,
    at: Instant,
) -> Option<wire::Report> {
    if reports.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    // Dropped while it waits, the change is not seen: marked again before that.
    reports.mark_changed();
    tokio::time::sleep_until(at).await;
    reports.borrow_and_update().clone()
}

fn jitter(span: Duration) -> Duration {
    let now = mecha_components_api::SystemClock.now();
    let nanos = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    span.mul_f64(0.5 + f64::from(nanos % 1000) / 2000.0)
}
