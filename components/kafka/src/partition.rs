//! One partition: its records in their order, each until it is settled.
//!
//! A record that failed is delivered again before any later one, so order holds through
//! retries. Only where the app takes several at once (bulk) are more than one under way; even
//! then a position is stored only once everything before it is settled. What is fetched ahead
//! waits in librdkafka's queue of this partition, which has its own limits.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use mecha_components_api::{CancellationToken, Deliver, Delivery, Verdict};
use rdkafka::Message;
use rdkafka::consumer::stream_consumer::StreamPartitionQueue;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::message::BorrowedMessage;
use tokio::time::sleep;
use tracing::debug;

use crate::config::{HeaderRules, Redeliver};
use crate::context::{Context, Health, Key};
use crate::record;
use crate::schemas::Schemas;

/// Pause after the runtime gave a message back.
const RELEASE_PAUSE: Duration = Duration::from_millis(100);
/// Others of this task get their turn after so many records, however fast the app is.
const TURN: u32 = 64;

/// What all partitions of a subscription have in common.
pub(crate) struct Flow {
    pub(crate) to: Arc<dyn Deliver>,
    pub(crate) retry: Redeliver,
    pub(crate) headers: HeaderRules,
    /// What values are read by, if they have schemas.
    pub(crate) schemas: Option<Arc<Schemas>>,
    /// Most records of one partition at the app.
    pub(crate) window: usize,
    pub(crate) health: Arc<Health>,
}

/// How the reading of one partition ends.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ends {
    /// Take nothing new, settle what is under way.
    pub(crate) soon: CancellationToken,
    /// Leave what is under way; its positions are not stored.
    pub(crate) now: CancellationToken,
}

/// A place in the order of the partition; the record is there once it is settled.
struct Place<'a> {
    offset: i64,
    settled: Option<BorrowedMessage<'a>>,
}

/// Reads a partition until it ends; says which one it was.
pub(crate) async fn read(
    key: Key,
    queue: StreamPartitionQueue<Context>,
    consumer: Arc<StreamConsumer<Context>>,
    flow: Arc<Flow>,
    ends: Ends,
) -> Key {
    let mut records = pin!(queue.stream());
    let mut flight = FuturesUnordered::new();
    let mut order: VecDeque<Place<'_>> = VecDeque::new();
    let (mut leaving, mut turn) = (false, 0);
    while !(leaving && flight.is_empty()) {
        tokio::select! {
            biased;
            () = ends.now.cancelled() => break,
            () = ends.soon.cancelled(), if !leaving => leaving = true,
            Some((record, settled)) = flight.next(), if !flight.is_empty() => {
                settle(&consumer, &mut order, record, settled);
            }
            Some(next) = records.next(), if !leaving && flight.len() < flow.window => match next {
                Ok(record) => {
                    order.push_back(Place { offset: record.offset(), settled: None });
                    flight.push(deliver(&key.0, record, &flow, &ends.soon));
                }
                Err(e) => flow.health.note(e.rdkafka_error_code().unwrap_or(Code::Unknown), "cannot read a partition"),
            },
        }
        turn += 1;
        if turn % TURN == 0 {
            tokio::task::yield_now().await;
        }
    }
    drop(flight);
    drop(order);
    key
}

/// Stores the position behind the last record that has nothing unsettled before it.
fn settle<'a>(
    consumer: &StreamConsumer<Context>,
    order: &mut VecDeque<Place<'a>>,
    record: BorrowedMessage<'a>,
    settled: bool,
) {
    if !settled {
        return;
    }
    let offset = record.offset();
    if let Some(place) = order.iter_mut().find(|place| place.offset == offset) {
        place.settled = Some(record);
    }
    let mut last = None;
    while let Some(place) = order.pop_front_if(|place| place.settled.is_some()) {
        last = place.settled;
    }
    if let Some(last) = last
        && let Err(e) = consumer.store_offset_from_message(&last)
    {
        // The partition went to somebody else, who will deliver it again.
        debug!(topic = last.topic(), partition = last.partition(), "Kafka: a position was not stored: {e}");
    }
}

/// Delivers a record until it is settled, or the partition ends.
async fn deliver<'a>(
    topic: &Arc<str>,
    record: BorrowedMessage<'a>,
    flow: &Flow,
    soon: &CancellationToken,
) -> (BorrowedMessage<'a>, bool) {
    let Some(data) = value(&record, flow, soon).await else { return (record, false) };
    let mut again = 0_u32;
    loop {
        let delivery = Delivery {
            topic: Arc::clone(topic),
            data: data.clone(),
            metadata: record::metadata(&record, &flow.headers),
            content_type: None,
        };
        let pause = match flow.to.deliver(delivery).await {
            Verdict::Ack => return (record, true),
            Verdict::Release => RELEASE_PAUSE,
            Verdict::Retry => {
                again = again.saturating_add(1);
                flow.retry.pause(again)
            }
        };
        tokio::select! {
            biased;
            () = soon.cancelled() => return (record, false),
            () = sleep(pause) => {}
        }
    }
}

/// The value of a record as the app gets it; `None` when the partition ended before it could be read.
///
/// Nothing later of its partition is delivered meanwhile: it would be committed with it.
async fn value(record: &BorrowedMessage<'_>, flow: &Flow, soon: &CancellationToken) -> Option<Bytes> {
    let (Some(schemas), Some(value)) = (&flow.schemas, record.payload()) else { return Some(record::data(record)) };
    let mut again = 0_u32;
    loop {
        let e = match schemas.decode(value).await {
            Ok(json) => return Some(json),
            Err(e) => e,
        };
        let place = format!("{}[{}] at {}", record.topic(), record.partition(), record.offset());
        flow.health.note(Code::ValueDeserialization, &format!("the record of {place} cannot be read: {e}"));
        again = again.saturating_add(1);
        tokio::select! {
            biased;
            () = soon.cancelled() => return None,
            () = sleep(Redeliver::Growing.pause(again)) => {}
        }
    }
}
