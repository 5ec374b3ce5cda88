//! Our own protocol: complete sets, and reports about them.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::Stream;
use mecha_apiserver::trace::{SpanKind, TraceContext};
use mecha_proto::delivery as wire;
use mecha_proto::delivery::delivery_server::Delivery;
use mecha_proto::delivery::{from_agent, from_sidecar};
use mecha_resources::kinds::MoveCounts;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use crate::desk::{Caller, Desk};
use crate::document::Kind;
use crate::metrics::{Protocol, Refusal};
use crate::operator::receiver_stream;
use crate::serve::{Served, caller};
use crate::sets::{Set, phase_from_wire};
use crate::sidecars::{Place, Reported};
use crate::view::Cause;
use crate::waits::Patience;

/// The version of the protocol that is spoken here.
const PROTOCOL: u32 = 1;
/// What a sidecar may take for its first message.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
/// How long the reason for the end of a stream waits to be sent.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Longest name of an instance; that of a pod.
const MAX_INSTANCE: usize = 253;
/// Configurations of one sidecar.
const MAX_CONFIGURATIONS: usize = 16;
/// Entries of one report that are kept; a binding has at most 64.
const MAX_ENTRIES: usize = 512;
/// Bytes of a message in a report that are kept.
const MAX_MESSAGE: usize = 200;
/// A set is sent again after so long, so that the snapshot with it stays young enough to start from.
const RENEW: Duration = Duration::from_secs(6 * 3600);
/// The same for a sidecar that has come back with the current set, and a snapshot of unknown age.
const RENEW_UNCHANGED: Duration = Duration::from_secs(10 * 60);

/// Serves `mecha.v1.Delivery`.
#[derive(Clone)]
pub(crate) struct Sets {
    served: Arc<Served>,
}

impl Sets {
    pub(crate) fn new(served: Arc<Served>) -> Self {
        Self { served }
    }
}

type Answers = mpsc::Sender<Result<wire::FromAgent, Status>>;

#[tonic::async_trait]
impl Delivery for Sets {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<wire::FromAgent, Status>> + Send>>;

    async fn follow(
        &self,
        request: Request<Streaming<wire::FromSidecar>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let caller = caller(&request)?;
        let (sender, receiver) = mpsc::channel(1);
        let served = self.served.clone();
        let reports = request.into_inner();
        self.served.tasks.spawn("delivery", async move {
            let _gauge = served.metrics.stream(Protocol::Mecha);
            let ended = tokio::select! {
                ended = converse(&served, caller, reports, &sender) => ended,
                () = sender.closed() => Ok(()),
                () = served.stop.cancelled() => Err(Status::unavailable("the agent stops; connect again")),
            };
            if let Err(status) = ended {
                // Within a limit: a sidecar that reads nothing must not keep the task.
                let _ = sender.send_timeout(Err(status), LAST_WORD).await;
            }
        });
        Ok(Response::new(Box::pin(receiver_stream(receiver))))
    }
}

/// What was sent last.
struct Sent {
    sequence: u64,
    digest: String,
    /// When the change was noticed that it answers, until it is reported on.
    since: Option<Instant>,
    /// What the documents had been changed for by then.
    cause: Option<Cause>,
    renew: tokio::time::Instant,
    /// Documents in it that wait for a secret, and when to speak of it.
    waiting: Vec<String>,
    patience: Patience,
}

async fn converse(
    served: &Arc<Served>,
    caller: Caller,
    mut reports: Streaming<wire::FromSidecar>,
    answers: &Answers,
) -> Result<(), Status> {
    let hello = hello(&mut reports).await.inspect_err(|_| served.metrics.refused(Refusal::Protocol))?;
    let place = served.sidecars.join(&caller, &hello.instance, &hello.digest).map_err(|full| {
        served.metrics.refused(Refusal::Limit);
        Status::resource_exhausted(full.to_string())
    })?;
    tracing::debug!(
        namespace = caller.namespace,
        app_id = caller.app_id,
        instance = hello.instance,
        version = hello.version,
        "a sidecar follows"
    );
    let mut desk = Desk::new(served.world.enter(&caller.namespace), caller);
    let mut sent: Option<Sent> = None;
    let mut stale = true;
    loop {
        let renew = sent.as_ref().map(|sent| sent.renew);
        let complain = sent.as_ref().and_then(|sent| sent.patience.until);
        tokio::select! {
            // Only when the last set has left is the next one made: what is old by then is never sent.
            room = answers.reserve(), if stale => {
                let Ok(room) = room else { return Ok(()) };
                stale = false;
                if let Some(answer) = next(served, &hello, &place, &mut desk, &mut sent).await? {
                    room.send(Ok(answer));
                }
            }
            () = desk.changed(), if !stale => stale = true,
            () = until(renew), if !stale => {
                sent = sent.map(|sent| Sent { digest: String::new(), ..sent });
                stale = true;
            }
            () = until(complain), if !stale => {
                if let Some(sent) = &mut sent {
                    sent.patience = Patience::default();
                    desk.complain(&sent.waiting);
                }
            }
            report = reports.message() => match report?.map(|m| m.message) {
                None => return Ok(()),
                Some(Some(from_sidecar::Message::Report(report))) => {
                    take(served, &desk, &place, &mut sent, report);
                }
                Some(Some(from_sidecar::Message::Hello(_))) => {
                    served.metrics.refused(Refusal::Protocol);
                    return Err(Status::invalid_argument("hello is the first message and no later one"));
                }
                // From a newer sidecar, which knows what an older agent does not.
                Some(None) => {}
            },
            () = place.replaced().cancelled() => {
                return Err(Status::aborted("another stream of this instance has come"));
            }
        }
    }
}

async fn until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn hello(reports: &mut Streaming<wire::FromSidecar>) -> Result<wire::Hello, Status> {
    let first = tokio::time::timeout(HELLO_LIMIT, reports.message())
        .await
        .map_err(|_| Status::deadline_exceeded(format!("no hello within {HELLO_LIMIT:?}")))??;
    let Some(wire::FromSidecar { message: Some(from_sidecar::Message::Hello(hello)) }) = first else {
        return Err(Status::invalid_argument("the first message is to be a hello"));
    };
    if hello.protocol_min > PROTOCOL || hello.protocol_max < PROTOCOL {
        return Err(Status::failed_precondition(format!(
            "the agent speaks version {PROTOCOL} of the protocol, the sidecar {} to {}",
            hello.protocol_min, hello.protocol_max
        )));
    }
    if hello.instance.is_empty() || hello.instance.len() > MAX_INSTANCE {
        return Err(Status::invalid_argument("instance is to be the name of the pod"));
    }
    if hello.configurations.len() > MAX_CONFIGURATIONS {
        return Err(Status::invalid_argument(format!("more than {MAX_CONFIGURATIONS} configurations are named")));
    }
    Ok(hello)
}

/// The answer to what there is now; `None` when the sidecar has it.
async fn next(
    served: &Served,
    hello: &wire::Hello,
    place: &Place,
    desk: &mut Desk,
    sent: &mut Option<Sent>,
) -> Result<Option<wire::FromAgent>, Status> {
    let published = desk.look();
    let cause = published.view.cause.clone();
    // A sidecar that comes back, and a document by hand, have nothing to do with the last decision.
    let news = cause.as_ref().filter(|cause| sent.as_ref().is_some_and(|sent| sent.cause.as_ref() != Some(*cause)));
    let context = news.map(|cause| &cause.context);
    let mut span = served.tracer.start(SpanKind::Producer, context, || "deliver documents");
    let documents = desk.select(&published, &hello.configurations);
    desk.hold(documents.iter().flat_map(|document| document.bodies())).await;
    let filled = documents.iter().map(|document| desk.fill(document)).collect();
    let set = Set::new(filled).map_err(|why| {
        served.metrics.refused(Refusal::Limit);
        Status::resource_exhausted(why)
    })?;
    place.sent(&set.digest, &set.missing);
    if let Some(sent) = sent.as_mut().filter(|sent| sent.digest == set.digest) {
        sent.cause.clone_from(&cause);
        span.discard();
        return Ok(None);
    }
    if span.is_recording() {
        let caller = desk.caller();
        span.set("mecha.namespace", caller.namespace.clone());
        span.set("mecha.app_id", caller.app_id.clone());
        span.set("mecha.instance", hello.instance.clone());
        span.set("mecha.documents", i64::try_from(set.documents.len()).unwrap_or(i64::MAX));
    }
    let first = sent.is_none();
    let sequence = sent.as_ref().map_or(1, |sent| sent.sequence + 1);
    let since = published.since.filter(|_| !first);
    let unchanged = first && hello.digest == set.digest;
    let renew = if unchanged { RENEW_UNCHANGED } else { RENEW };
    let patience = sent.as_ref().map(|sent| sent.patience).unwrap_or_default();
    let patience = patience.next(!set.waiting.is_empty(), tokio::time::Instant::now());
    for why in &set.waiting {
        let Caller { namespace, app_id } = desk.caller();
        tracing::debug!(namespace, app_id, why, "a document waits for a secret; sidecars keep what they have");
    }
    *sent = Some(Sent {
        sequence,
        digest: set.digest.clone(),
        since,
        cause: cause.clone(),
        renew: tokio::time::Instant::now() + spread(&hello.instance, renew),
        waiting: set.waiting.clone(),
        patience,
    });
    let message = if unchanged {
        from_agent::Message::Unchanged(wire::Unchanged { sequence })
    } else {
        served.metrics.set_sent(set.bytes(), since.map(|since| since.elapsed()));
        let snapshot = set.snapshot(desk.caller(), &served.live);
        let traceparent = span.context().or(context).map(TraceContext::traceparent).unwrap_or_default();
        let documents = set.documents;
        let set = wire::DocumentSet { sequence, digest: set.digest, documents, snapshot, traceparent };
        from_agent::Message::Set(set)
    };
    Ok(Some(wire::FromAgent { message: Some(message) }))
}

/// A time between half of `span` and all of it, another one for each instance: those that came together are not
/// served together again.
fn spread(instance: &str, span: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    instance.hash(&mut hasher);
    let part = u32::try_from(hasher.finish() % 1000).unwrap_or_default();
    span / 2 + span / 2000 * part
}

fn take(served: &Served, desk: &Desk, place: &Place, sent: &mut Option<Sent>, report: wire::Report) {
    if let Some(sent) = sent.as_mut().filter(|sent| sent.sequence == report.sequence)
        && let Some(since) = sent.since.take()
    {
        served.metrics.reported(since.elapsed());
    }
    let components = report.entries.into_iter().filter(|entry| entry.kind == Kind::Component.name());
    let reported: BTreeMap<_, _> = components
        .take(MAX_ENTRIES)
        .map(|entry| {
            let mut message = entry.message;
            desk.scrub(&mut message);
            message.truncate(message.floor_char_boundary(MAX_MESSAGE));
            let reported = Reported {
                revision: entry.revision,
                phase: phase_from_wire(entry.phase),
                reached: entry.reached,
                failed: entry.failed,
                pending: entry.pending,
                message,
                counts: MoveCounts {
                    in_flight: entry.in_flight_at_switch,
                    finished: entry.finished,
                    redelivered: entry.redelivered,
                    failed: entry.failed_calls,
                },
            };
            (entry.name, reported)
        })
        .collect();
    place.report(&report.digest, reported);
}
