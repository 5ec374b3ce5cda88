//! A [`PubSub`] that is the gRPC API of a sidecar; subscriptions are streams.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use mecha_components_api::{
    BulkPublish, BulkReply, CancellationToken, Component, Deliver, Delivery, Error, Metadata, PubSub, PubSubCaps,
    Publish, Result, Subscribe, Verdict,
};
use mecha_proto::runtime::subscribe_topic_events_request_alpha1::SubscribeTopicEventsRequestType as Say;
use mecha_proto::runtime::subscribe_topic_events_response_alpha1::SubscribeTopicEventsResponseType as Said;
use mecha_proto::runtime::topic_event_response::TopicEventResponseStatus as Status;
use mecha_proto::runtime::{
    SubscribeTopicEventsRequestAlpha1, SubscribeTopicEventsRequestInitialAlpha1,
    SubscribeTopicEventsRequestProcessedAlpha1, SubscribeTopicEventsResponseAlpha1, TopicEventRequest,
    TopicEventResponse,
};
use mecha_tests::{DEADLINE, Fault};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::broker;
use super::wire::{Around, Daemon, TARGET, Wire, error};
use crate::manifest::Recipe;

/// Answers on their way to the sidecar.
const ANSWERS: usize = 64;

#[derive(Debug)]
pub(super) struct StreamClient {
    daemon: Daemon,
    caps: PubSubCaps,
}

impl StreamClient {
    pub(super) async fn start(recipe: &Recipe, dir: &Path, group: &str) -> Result<Self> {
        let daemon = Daemon::start(Wire::Grpc, recipe, dir, Around { app_id: group, ..Around::default() }).await;
        let caps = broker::caps(&daemon).await?;
        Ok(Self { daemon, caps })
    }

    pub(super) fn end(&self) {
        self.daemon.end();
    }
}

fn failed(status: &tonic::Status) -> Error {
    error(&Fault::of_status(status))
}

fn said(message: Option<SubscribeTopicEventsResponseAlpha1>) -> Result<Said> {
    let ended = || Error::unavailable("the sidecar ended the stream");
    message.ok_or_else(ended)?.subscribe_topic_events_response_type.ok_or_else(|| Error::internal("an empty message"))
}

fn say(what: Say) -> SubscribeTopicEventsRequestAlpha1 {
    SubscribeTopicEventsRequestAlpha1 { subscribe_topic_events_request_type: Some(what) }
}

/// The answer to an event; who hands it back gives none.
fn answer(id: String, verdict: Verdict) -> Option<SubscribeTopicEventsRequestAlpha1> {
    let status = match verdict {
        Verdict::Ack => Status::Success,
        Verdict::Retry => Status::Retry,
        Verdict::Release => return None,
    };
    let status = Some(TopicEventResponse { status: status.into() });
    Some(say(Say::EventProcessed(SubscribeTopicEventsRequestProcessedAlpha1 { id, status })))
}

async fn hand_over(to: Arc<dyn Deliver>, event: TopicEventRequest) -> (String, Verdict) {
    let delivery = Delivery {
        topic: event.topic.into(),
        data: event.data,
        metadata: Metadata::new(),
        content_type: Some(event.data_content_type),
    };
    (event.id, to.deliver(delivery).await)
}

#[async_trait]
impl Component for StreamClient {
    async fn close(&self) {
        self.end();
    }
}

#[async_trait]
impl PubSub for StreamClient {
    fn caps(&self) -> PubSubCaps {
        self.caps
    }

    async fn publish(&self, msg: Publish<'_>) -> Result<()> {
        broker::publish(&self.daemon, msg).await
    }

    async fn subscribe(&self, sub: Subscribe, to: Arc<dyn Deliver>, stop: CancellationToken) -> Result<()> {
        let (answers, stream) = mpsc::channel(ANSWERS);
        let initial = SubscribeTopicEventsRequestInitialAlpha1 {
            pubsub_name: TARGET.to_owned(),
            topic: sub.topic,
            metadata: sub.metadata.into_inner(),
            dead_letter_topic: None,
        };
        let gone = |_| Error::unavailable("the sidecar left the stream");
        answers.send(say(Say::InitialRequest(initial))).await.map_err(gone)?;
        let mut grpc = self.daemon.grpc.clone();
        let opened = grpc.subscribe_topic_events_alpha1(ReceiverStream::new(stream)).await;
        let mut events = opened.map_err(|s| failed(&s))?.into_inner();
        match said(events.message().await.map_err(|s| failed(&s))?)? {
            Said::InitialResponse(_) => to.attached(),
            Said::EventMessage(_) => return Err(Error::internal("an event came before the initial response")),
        }
        let mut deliveries = FuturesUnordered::new();
        while !(stop.is_cancelled() && deliveries.is_empty()) {
            tokio::select! {
                () = stop.cancelled(), if !stop.is_cancelled() => {}
                Some((id, verdict)) = deliveries.next() => {
                    if let Some(answer) = answer(id, verdict) {
                        answers.send(answer).await.map_err(gone)?;
                    }
                }
                message = events.message(), if !stop.is_cancelled() => {
                    match said(message.map_err(|s| failed(&s))?)? {
                        Said::EventMessage(event) => deliveries.push(hand_over(Arc::clone(&to), event)),
                        Said::InitialResponse(_) => return Err(Error::internal("a second initial response")),
                    }
                }
            }
        }
        // What is not answered by now goes back to the broker.
        drop(answers);
        let rest = async {
            while events.message().await.map_err(|s| failed(&s))?.is_some() {}
            Ok(())
        };
        let late = |_| Error::timeout("the sidecar did not end the stream after its client did");
        tokio::time::timeout(DEADLINE, rest).await.map_err(late)?
    }

    fn bulk(&self) -> Option<&dyn BulkPublish> {
        Some(self)
    }
}

#[async_trait]
impl BulkPublish for StreamClient {
    async fn publish_many(&self, batch: Vec<Publish<'_>>) -> Result<BulkReply> {
        broker::publish_many(&self.daemon, batch).await
    }
}
