//! Where the reading of partitions begins.
//!
//! Positions are looked up before the partitions are taken, not left to librdkafka: a group
//! that begins at the newest record must not lose one that is published right after the
//! subscription says that it is in place, and must find its place again although nothing was
//! delivered before it stopped.
//!
//! They are even fixed before the group is joined, where that can be done: while a group has no
//! members, anybody may commit for it. From then on nothing that is published can be missed, long
//! before the group has shared out its partitions.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::consumer::stream_consumer::StreamPartitionQueue;
use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::{debug, info};

use crate::config::Initial;
use crate::context::{Context, Health, Key, take};
use crate::error::is_refusal;

/// Longest wait for one answer; questions are asked again.
const ASK: Duration = Duration::from_secs(2);
/// Pauses before that, which grow: a topic that is being created is there soon.
const ASK_AGAIN_FIRST: Duration = Duration::from_millis(20);
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// The longest of those while publishers wait.
const FIX_AGAIN: Duration = Duration::from_millis(50);
/// How often what a moment heals may fail before it is worth a line in the log.
const USUAL_TRIES: u32 = 18;
/// Longest time in which positions are fixed before the group is joined without.
const SECURE: Duration = Duration::from_secs(10);

/// How many partitions each topic had when the subscription began.
pub(crate) type Layout = HashMap<Arc<str>, i32>;

/// Positions of the group that were found or made before it was joined.
pub(crate) type Fixed = HashMap<Key, i64>;

/// Partitions of ours with the queues of their records.
pub(crate) type Taken = Vec<(Key, StreamPartitionQueue<Context>)>;

/// What became of the positions before the group is joined.
#[derive(Debug)]
pub(crate) enum Secured {
    /// Whatever is published from now on is within the group's reach.
    Fixed {
        positions: Fixed,
        /// The brokers took positions from outside, so the group has no members.
        no_members: bool,
    },
    /// The group has to share out its partitions first.
    OnceJoined,
    /// The client knows no coordinator of the group yet.
    NoCoordinator,
}

/// Questions to the brokers, asked from a thread that may block.
pub(crate) struct Asker {
    pub(crate) consumer: Arc<StreamConsumer<Context>>,
    /// When the consumer was made.
    pub(crate) since: Instant,
    pub(crate) health: Arc<Health>,
    /// The answers are not wanted any more.
    pub(crate) abort: Arc<AtomicBool>,
}

impl Asker {
    /// Waits until each topic exists, for the brokers may create it on being asked. Also says how long the first
    /// answer took since the consumer was made. `None` when aborted.
    pub(crate) fn layout(&self, topics: &[Arc<str>]) -> Option<(Layout, Duration)> {
        let (mut layout, first) = (Layout::new(), OnceCell::new());
        for topic in topics {
            let count = self.ask("look for a topic", || {
                let metadata = self.consumer.fetch_metadata(Some(topic), ASK)?;
                first.get_or_init(|| self.since.elapsed());
                let found = metadata.topics().iter().find(|t| t.name() == topic.as_ref());
                match found.map(|t| (t.error(), t.partitions().len())) {
                    Some((Some(e), _)) => Err(KafkaError::MetadataFetch(e.into())),
                    Some((None, count)) if count > 0 => Ok(i32::try_from(count).unwrap_or(i32::MAX)),
                    _ => Err(KafkaError::MetadataFetch(Code::UnknownTopicOrPartition)),
                }
            })?;
            layout.insert(Arc::clone(topic), count);
        }
        Some((layout, first.get().copied().unwrap_or_default()))
    }

    /// Sees to it that whatever is published from now on is within the group's reach, before it is
    /// joined: each partition has a position, or the group begins at the oldest record anyway.
    /// With `haste` only for that long where the client knows no coordinator.
    pub(crate) fn secure(&self, initial: Initial, layout: &Layout, haste: Option<Duration>) -> Secured {
        let keys: Vec<Key> =
            layout.iter().flat_map(|(topic, count)| (0..*count).map(|p| (Arc::clone(topic), p))).collect();
        if let Some(haste) = haste
            && let Err(e) = self.committed(&keys, haste)
            && e.rdkafka_error_code().is_some_and(is_leaderless)
        {
            return match initial {
                Initial::Oldest => Secured::Fixed { positions: Fixed::new(), no_members: false },
                Initial::Newest => Secured::NoCoordinator,
            };
        }
        let deadline = Instant::now() + SECURE;
        let mut pause = ASK_AGAIN_FIRST;
        loop {
            if self.abort.load(Ordering::SeqCst) {
                return Secured::OnceJoined;
            }
            let e = match self.fix(&keys, initial) {
                Ok((positions, no_members)) => return Secured::Fixed { positions, no_members },
                Err(e) => e,
            };
            match e.rdkafka_error_code().unwrap_or(Code::Unknown) {
                // It has members already, and takes positions from nobody else.
                Code::UnknownMemberId | Code::IllegalGeneration | Code::RebalanceInProgress => {
                    debug!("Kafka: the group has members; positions are fixed once it lets this one in");
                    return Secured::OnceJoined;
                }
                code if is_refusal(code) || Instant::now() >= deadline => {
                    info!("Kafka: positions are fixed once the group is joined, not before: {e}");
                    return Secured::OnceJoined;
                }
                code => debug!("Kafka: positions are not fixed yet ({code})"),
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(FIX_AGAIN);
        }
    }

    /// One attempt at [`Self::secure`]. A position that is there is never replaced: the ends are looked up
    /// before the positions are, so that another member that fixes them at the same time is promised no less.
    /// Also says whether positions were committed.
    fn fix(&self, keys: &[Key], initial: Initial) -> Result<(Fixed, bool), KafkaError> {
        let fixed = self.committed(keys, ASK)?;
        if fixed.len() == keys.len() || initial == Initial::Oldest {
            return Ok((fixed, false));
        }
        let missing: Vec<Key> = keys.iter().filter(|key| !fixed.contains_key(*key)).cloned().collect();
        let mut ends = list_of(&missing);
        ends.set_all_offsets(Offset::End)?;
        let ends = offsets(&self.consumer.offsets_for_times(ends, ASK)?)?;
        let mut fixed = self.committed(keys, ASK)?;
        let mut fresh = TopicPartitionList::new();
        for key in missing.into_iter().filter(|key| !fixed.contains_key(key)).collect::<Vec<_>>() {
            let end = *ends.get(&key).ok_or(KafkaError::MetadataFetch(Code::UnknownPartition))?;
            add(&mut fresh, &key.0, key.1, end);
            fixed.insert(key, end);
        }
        let any = fresh.count() > 0;
        if any {
            self.consumer.commit(&fresh, CommitMode::Sync)?;
        }
        Ok((fixed, any))
    }

    /// What the group has committed of these partitions.
    fn committed(&self, keys: &[Key], within: Duration) -> Result<Fixed, KafkaError> {
        offsets(&self.consumer.committed_offsets(list_of(keys), within)?)
    }

    /// Takes partitions that the group gave us, each from its position. Empty when aborted; the
    /// assignment is answered in any case.
    pub(crate) fn take(&self, keys: &[Key], initial: Initial, layout: &Layout, fixed: &Fixed) -> Taken {
        let (places, fresh) = self.places(keys, initial, layout, fixed).unwrap_or_default();
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
        fixed: &Fixed,
    ) -> Option<(TopicPartitionList, TopicPartitionList)> {
        let committed = self.ask("look up the positions of the group", || self.committed(keys, ASK))?;
        let (mut places, mut fresh) = (TopicPartitionList::new(), TopicPartitionList::new());
        for key in keys {
            let (topic, partition) = (key.0.as_ref(), key.1);
            let offset = match (committed.get(key), fixed.get(key)) {
                (Some(offset), _) => *offset,
                // The group has forgotten it since.
                (None, Some(offset)) => {
                    add(&mut fresh, topic, partition, *offset);
                    *offset
                }
                (None, None) => {
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
        let (mut tries, mut pause) = (0_u32, ASK_AGAIN_FIRST);
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
            std::thread::sleep(pause);
            pause = (pause * 2).min(ASK_AGAIN);
        }
    }
}

/// The offsets of a list; a partition without one is left out.
fn offsets(list: &TopicPartitionList) -> Result<Fixed, KafkaError> {
    let mut offsets = Fixed::with_capacity(list.count());
    for element in list.elements() {
        element.error()?;
        if let Offset::Offset(offset) = element.offset() {
            offsets.insert((element.topic().into(), element.partition()), offset);
        }
    }
    Ok(offsets)
}

/// Expected for a moment: the topic is being created, the coordinator chosen.
fn is_usual(code: Code) -> bool {
    matches!(
        code,
        Code::LeaderNotAvailable | Code::UnknownTopicOrPartition | Code::WaitingForCoordinator | Code::NotCoordinator
    )
}

/// What asking for positions ends with while the client knows no coordinator.
fn is_leaderless(code: Code) -> bool {
    matches!(
        code,
        Code::OperationTimedOut | Code::WaitingForCoordinator | Code::CoordinatorNotAvailable | Code::NotCoordinator
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
