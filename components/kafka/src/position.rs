//! Where the reading of partitions begins.
//!
//! Positions are looked up before the partitions are taken, not left to librdkafka: a group
//! that begins at the newest record must not lose one that is published right after the
//! subscription says that it is in place, and must find its place again although nothing was
//! delivered before it stopped.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::consumer::stream_consumer::StreamPartitionQueue;
use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::{debug, info};

use crate::config::Initial;
use crate::context::{Context, Health, Key, take};

/// Longest wait for one answer; questions are asked again.
const ASK: Duration = Duration::from_secs(2);
/// Pause before that.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How often what a moment heals may fail before it is worth a line in the log.
const USUAL_TRIES: u32 = 15;

/// How many partitions each topic had when the subscription began.
pub(crate) type Layout = HashMap<Arc<str>, i32>;

/// Partitions of ours with the queues of their records.
pub(crate) type Taken = Vec<(Key, StreamPartitionQueue<Context>)>;

/// Questions to the brokers, asked from a thread that may block.
pub(crate) struct Asker {
    pub(crate) consumer: Arc<StreamConsumer<Context>>,
    pub(crate) health: Arc<Health>,
    /// The answers are not wanted any more.
    pub(crate) abort: Arc<AtomicBool>,
}

impl Asker {
    /// Waits until each topic exists, for the brokers may create it on being asked. `None` when aborted.
    pub(crate) fn layout(&self, topics: &[Arc<str>]) -> Option<Layout> {
        let mut layout = Layout::new();
        for topic in topics {
            let count = self.ask("look for a topic", || {
                let metadata = self.consumer.fetch_metadata(Some(topic), ASK)?;
                let found = metadata.topics().iter().find(|t| t.name() == topic.as_ref());
                match found.map(|t| (t.error(), t.partitions().len())) {
                    Some((Some(e), _)) => Err(KafkaError::MetadataFetch(e.into())),
                    Some((None, count)) if count > 0 => Ok(i32::try_from(count).unwrap_or(i32::MAX)),
                    _ => Err(KafkaError::MetadataFetch(Code::UnknownTopicOrPartition)),
                }
            })?;
            layout.insert(Arc::clone(topic), count);
        }
        Some(layout)
    }

    /// Takes partitions that the group gave us, each from its position. Empty when aborted; the
    /// assignment is answered in any case.
    pub(crate) fn take(&self, keys: &[Key], initial: Initial, layout: &Layout) -> Taken {
        let (places, fresh) = self.places(keys, initial, layout).unwrap_or_default();
        let list = if places.count() == keys.len() { &places } else { &list_of(keys) };
        // Before they are taken, so that no record comes another way.
        let queues: Vec<_> = keys
            .iter()
            .filter_map(|key| Some((key.clone(), self.consumer.split_partition_queue(&key.0, key.1)?)))
            .collect();
        if let Err(e) = take(&*self.consumer, list) {
            debug!("Kafka: partitions were not taken: {e}");
            return Taken::new();
        }
        if places.count() != keys.len() {
            return Taken::new();
        }
        if fresh.count() > 0
            && let Err(e) = self.consumer.commit(&fresh, CommitMode::Sync)
        {
            debug!("Kafka: the first positions were not committed: {e}");
        }
        queues
    }

    /// Positions, and those of them that nobody has committed yet.
    fn places(
        &self,
        keys: &[Key],
        initial: Initial,
        layout: &Layout,
    ) -> Option<(TopicPartitionList, TopicPartitionList)> {
        let committed = self.ask("look up the positions of the group", || {
            let list = self.consumer.committed_offsets(list_of(keys), ASK)?;
            list.elements().iter().try_for_each(|e| e.error())?;
            Ok(list)
        })?;
        let (mut places, mut fresh) = (TopicPartitionList::new(), TopicPartitionList::new());
        for key in keys {
            let (topic, partition) = (key.0.as_ref(), key.1);
            let known = committed.find_partition(topic, partition).map(|e| e.offset());
            let offset = match known {
                Some(Offset::Offset(offset)) => offset,
                _ => {
                    let (first, next) = self.ask("look up the ends of a partition", || {
                        self.consumer.fetch_watermarks(topic, partition, ASK)
                    })?;
                    // What is in a partition that came later was written while we subscribed.
                    let added = layout.get(&key.0).is_some_and(|count| partition >= *count);
                    if added {
                        info!(topic, partition, "Kafka: a partition was added; it is read from its beginning");
                    }
                    let offset = if added || initial == Initial::Oldest { first } else { next };
                    add(&mut fresh, topic, partition, offset);
                    offset
                }
            };
            add(&mut places, topic, partition, offset);
        }
        Some((places, fresh))
    }

    /// Asks until there is an answer; `None` when aborted.
    fn ask<T>(&self, what: &str, question: impl Fn() -> Result<T, KafkaError>) -> Option<T> {
        let mut tries = 0_u32;
        loop {
            if self.abort.load(Ordering::SeqCst) || self.consumer.assignment_lost() {
                return None;
            }
            let code = match question() {
                Ok(answer) => return Some(answer),
                Err(e) => e.rdkafka_error_code().unwrap_or(Code::Unknown),
            };
            tries = tries.saturating_add(1);
            if tries > USUAL_TRIES || !is_usual(code) {
                self.health.note(code, &format!("cannot {what}"));
            }
            std::thread::sleep(ASK_AGAIN);
        }
    }
}

/// Expected for a moment: the topic is being created, the coordinator chosen.
fn is_usual(code: Code) -> bool {
    matches!(
        code,
        Code::LeaderNotAvailable | Code::UnknownTopicOrPartition | Code::WaitingForCoordinator | Code::NotCoordinator
    )
}

fn list_of(keys: &[Key]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(keys.len());
    for (topic, partition) in keys {
        list.add_partition(topic, *partition);
    }
    list
}

fn add(list: &mut TopicPartitionList, topic: &str, partition: i32, offset: i64) {
    // Only an offset below zero is refused, and no broker has one.
    let _ = list.add_partition_offset(topic, partition, Offset::Offset(offset));
}

/// The same partitions as a list for librdkafka.
pub(crate) fn partitions(keys: &[Key]) -> TopicPartitionList {
    list_of(keys)
}
