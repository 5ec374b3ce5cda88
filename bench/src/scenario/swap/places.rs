//! Where a component may be, and what reads there without a sidecar.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use mecha_testkit::servers::{Kafka, Redis};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::Value;

use super::{MOVES, TOPIC};
use crate::scenario::component;

/// Longest wait for an answer of Kafka.
const LIMIT: Duration = Duration::from_secs(30);

/// A backend and the document that leads to it.
#[derive(Clone)]
pub(super) struct Place<'a> {
    pub(super) name: &'static str,
    pub(super) document: String,
    pub(super) reader: Reader<'a>,
}

/// Reads what lies in a broker, without joining anybody.
#[derive(Clone)]
pub(super) enum Reader<'a> {
    /// Nobody but the sidecar can.
    Nobody,
    Redis(&'a Redis),
    Kafka(&'a Kafka),
}

/// The end of a topic at one moment.
#[derive(Debug)]
pub(super) enum Position {
    None,
    /// Number of the last entry.
    Entry(String),
    /// Next offset of each partition; none while the topic is not there.
    Offsets(BTreeMap<i32, i64>),
}

impl<'a> Place<'a> {
    pub(super) fn store(name: &'static str, kind: &str, metadata: &[(&str, &str)]) -> Self {
        Self::broker(name, kind, metadata, Reader::Nobody)
    }

    pub(super) fn broker(name: &'static str, kind: &str, metadata: &[(&str, &str)], reader: Reader<'a>) -> Self {
        Self { name, document: component(MOVES, kind, metadata), reader }
    }

    pub(super) fn kafka(name: &'static str, kafka: &'a Kafka) -> Self {
        let address = kafka.address();
        let metadata = [("brokers", &*address), ("authType", "none"), ("initialOffset", "oldest")];
        Self::broker(name, "pubsub.kafka", &metadata, Reader::Kafka(kafka))
    }
}

impl Reader<'_> {
    /// The end of the topic now.
    pub(super) fn position(&self) -> io::Result<Position> {
        match self {
            Self::Nobody => Ok(Position::None),
            Self::Redis(redis) => {
                let last = redis.command(&["XREVRANGE", TOPIC, "+", "-", "COUNT", "1"]);
                Ok(Position::Entry(last.lines().next().unwrap_or("0").to_owned()))
            }
            Self::Kafka(kafka) => ends(&consumer(kafka)?).map(Position::Offsets),
        }
    }

    /// Numbers of the events that came after a position.
    pub(super) fn since(&self, position: &Position) -> io::Result<Vec<u64>> {
        match (self, position) {
            (Self::Redis(redis), Position::Entry(last)) => {
                let text = redis.command(&["XRANGE", TOPIC, &format!("({last}"), "+"]);
                Ok(text.lines().filter_map(|line| number(line.as_bytes())).collect())
            }
            (Self::Kafka(kafka), Position::Offsets(from)) => records(&consumer(kafka)?, from),
            _ => Ok(Vec::new()),
        }
    }
}

/// The number of the event in an envelope; nothing of anything else.
pub(super) fn number(envelope: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Value>(envelope).ok()?["data"]["id"].as_u64()
}

fn consumer(kafka: &Kafka) -> io::Result<BaseConsumer> {
    ClientConfig::new()
        .set("bootstrap.servers", kafka.address())
        // A look must not make what the sidecar is to make.
        .set("allow.auto.create.topics", "false")
        .set("enable.auto.commit", "false")
        .set("group.id", "mecha-bench-reader")
        .create()
        .map_err(io::Error::other)
}

fn ends(consumer: &BaseConsumer) -> io::Result<BTreeMap<i32, i64>> {
    // All topics: asked for one by its name, a broker makes it.
    let metadata = consumer.fetch_metadata(None, LIMIT).map_err(io::Error::other)?;
    let topic = metadata.topics().iter().find(|topic| topic.name() == TOPIC);
    let partitions = topic.map(|topic| topic.partitions()).unwrap_or_default().iter().map(|p| p.id());
    partitions
        .map(|id| {
            let (_, end) = consumer.fetch_watermarks(TOPIC, id, LIMIT).map_err(io::Error::other)?;
            Ok((id, end))
        })
        .collect()
}

fn records(consumer: &BaseConsumer, from: &BTreeMap<i32, i64>) -> io::Result<Vec<u64>> {
    let ends = ends(consumer)?;
    let begins = |id: &i32| from.get(id).copied().unwrap_or(0);
    let mut left: usize = ends.iter().map(|(id, end)| usize::try_from(end - begins(id)).unwrap_or(0)).sum();
    let mut wanted = TopicPartitionList::new();
    for id in ends.keys() {
        wanted.add_partition_offset(TOPIC, *id, Offset::Offset(begins(id))).map_err(io::Error::other)?;
    }
    consumer.assign(&wanted).map_err(io::Error::other)?;
    let mut numbers = Vec::new();
    while left > 0 {
        let record = consumer.poll(LIMIT).ok_or_else(|| io::Error::other("Kafka gives no more records"))?;
        let record = record.map_err(io::Error::other)?;
        numbers.extend(record.payload().and_then(number));
        left -= 1;
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_told_from_what_lies_beside_it() {
        assert_eq!(number(br#"{"specversion":"1.0","data":{"id":42},"topic":"orders"}"#), Some(42));
        for other in ["1732212312-0", "data", r#"{"traceid":"x"}"#, "7", ""] {
            assert_eq!(number(other.as_bytes()), None, "{other}");
        }
    }
}
