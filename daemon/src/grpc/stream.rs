//! Streaming subscriptions: events go out on the stream, verdicts come in.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use mecha_core::Core;
use mecha_core::app::AppVerdict;
use mecha_core::pubsub::{StreamEvent, StreamRequest, StreamSubscription};
use mecha_proto::runtime::subscribe_topic_events_request_alpha1::SubscribeTopicEventsRequestType as Incoming;
use mecha_proto::runtime::subscribe_topic_events_response_alpha1::SubscribeTopicEventsResponseType as Outgoing;
use mecha_proto::runtime::topic_event_response::TopicEventResponseStatus;
use mecha_proto::runtime::{
    SubscribeTopicEventsRequestAlpha1, SubscribeTopicEventsRequestInitialAlpha1,
    SubscribeTopicEventsRequestProcessedAlpha1, SubscribeTopicEventsResponseAlpha1,
    SubscribeTopicEventsResponseInitialAlpha1,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::GrpcApi;
use super::api::{Stream, context};
use crate::events;

/// Time a client has to say what it subscribes to.
const FIRST_MESSAGE_LIMIT: Duration = Duration::from_secs(30);
/// How long a stop waits for the verdicts on events that are out; the broker's side has waited
/// before, so this is for answers that are on their way.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// An open stream.
struct Open {
    core: Arc<Core>,
    client: Streaming<SubscribeTopicEventsRequestAlpha1>,
    subscription: StreamSubscription,
    /// The client was told that the subscription is in place.
    greeted: bool,
    /// Events that are out without a verdict.
    unanswered: usize,
    /// When the stream ends although events are out; set by the stop of the sidecar.
    ends: Option<Instant>,
    over: bool,
}

pub(super) async fn subscribe(
    api: &GrpcApi,
    mut request: Request<Streaming<SubscribeTopicEventsRequestAlpha1>>,
) -> Result<Response<Stream<SubscribeTopicEventsResponseAlpha1>>, Status> {
    let cx = context(&mut request);
    let mut client = request.into_inner();
    let first = tokio::time::timeout(FIRST_MESSAGE_LIMIT, client.message()).await;
    let first = first.map_err(|_| Status::unknown("initial request is required"))??;
    let initial = initial(first)?;
    let req = StreamRequest {
        pubsub: initial.pubsub_name,
        topic: initial.topic,
        metadata: initial.metadata.into_iter().collect(),
        dead_letter_topic: initial.dead_letter_topic,
    };
    let subscription = api.core.pubsub.stream(&cx, req).await.map_err(|e| api.fail(&e))?;
    let open =
        Open { core: api.core.clone(), client, subscription, greeted: false, unanswered: 0, ends: None, over: false };
    let messages = stream::unfold(open, |mut open| async move {
        let message = open.next().await?;
        open.over = message.is_err();
        Some((message, open))
    });
    Ok(Response::new(Box::pin(messages)))
}

fn initial(
    first: Option<SubscribeTopicEventsRequestAlpha1>,
) -> Result<SubscribeTopicEventsRequestInitialAlpha1, Status> {
    let Some(Incoming::InitialRequest(initial)) = first.and_then(|m| m.subscribe_topic_events_request_type) else {
        return Err(Status::unknown("initial request is required"));
    };
    if initial.pubsub_name.is_empty() {
        return Err(Status::unknown("pubsubName is required"));
    }
    if initial.topic.is_empty() {
        return Err(Status::unknown("topic is required"));
    }
    Ok(initial)
}

impl Open {
    /// The next message for the client; `None` ends the stream with status OK.
    async fn next(&mut self) -> Option<Result<SubscribeTopicEventsResponseAlpha1, Status>> {
        if self.over {
            return None;
        }
        if !std::mem::replace(&mut self.greeted, true) {
            let ready = SubscribeTopicEventsResponseInitialAlpha1 {};
            return Some(Ok(message(Outgoing::InitialResponse(ready))));
        }
        loop {
            if self.ends.is_some() && self.unanswered == 0 {
                return None;
            }
            let deadline = self.ends;
            tokio::select! {
                // Verdicts first: they make room for events.
                biased;
                said = self.client.message() => match said {
                    Ok(Some(said)) => {
                        if let Err(status) = self.said(said) {
                            return Some(Err(status));
                        }
                    }
                    Ok(None) => return None,
                    Err(status) => return Some(Err(status)),
                },
                event = self.subscription.events.recv() => {
                    if let Some(event) = self.event(event?) {
                        return Some(Ok(event));
                    }
                }
                () = self.core.tasks.stopping().cancelled(), if deadline.is_none() => {
                    self.ends = Some(Instant::now() + STOP_GRACE);
                }
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    return None;
                }
            }
        }
    }

    fn said(&mut self, said: SubscribeTopicEventsRequestAlpha1) -> Result<(), Status> {
        match said.subscribe_topic_events_request_type {
            Some(Incoming::EventProcessed(processed)) => {
                self.processed(&processed);
                Ok(())
            }
            Some(Incoming::InitialRequest(_)) => Err(Status::unknown("duplicate initial request received")),
            None => Ok(()),
        }
    }

    fn processed(&mut self, processed: &SubscribeTopicEventsRequestProcessedAlpha1) {
        let status = processed.status.as_ref().map_or(0, |s| s.status);
        let verdict = match TopicEventResponseStatus::try_from(status) {
            Ok(TopicEventResponseStatus::Success) => AppVerdict::Success,
            Ok(TopicEventResponseStatus::Drop) => AppVerdict::Drop,
            Ok(TopicEventResponseStatus::Retry) | Err(_) => AppVerdict::Retry,
        };
        if self.subscription.processed(&processed.id, verdict) {
            self.unanswered = self.unanswered.saturating_sub(1);
        } else {
            tracing::warn!(
                target: "dapr.runtime.grpc.api",
                "a streaming subscriber answered event '{}', which does not wait for an answer", processed.id
            );
        }
    }

    fn event(&mut self, event: StreamEvent) -> Option<SubscribeTopicEventsResponseAlpha1> {
        let Some(request) = events::topic_event_request(&event.event) else {
            // Its data is not what its type says: like any other failed delivery, to be tried again.
            self.subscription.processed(&event.id, AppVerdict::Retry);
            return None;
        };
        self.unanswered += 1;
        Some(message(Outgoing::EventMessage(request)))
    }
}

fn message(content: Outgoing) -> SubscribeTopicEventsResponseAlpha1 {
    SubscribeTopicEventsResponseAlpha1 { subscribe_topic_events_response_type: Some(content) }
}
