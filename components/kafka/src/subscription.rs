//! One subscription: a member of a consumer group, and what becomes of its partitions.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use mecha_components_api::{CancellationToken, Deliver};
use rdkafka::Message;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::Offset;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, warn};

use crate::config::KafkaConfig;
use crate::context::{Change, Context, Health, Key, give_back};
use crate::partition::{self, Ends, Flow};
use crate::position::{Asker, Fixed, Layout, Secured, Taken, partitions};
use crate::producer::apart;
use crate::schemas::Schemas;

/// Longest time in which handlers may finish when their partitions go to another member.
/// Whatever takes longer is delivered again there.
const HANDOVER: Duration = Duration::from_secs(30);
/// Pauses before a consumer that broke is made anew.
const ANEW_FIRST: Duration = Duration::from_millis(200);
const ANEW_LONGEST: Duration = Duration::from_secs(5);
/// How long the group gets to refuse this member before its positions are relied on, and to take it in: where
/// another member leaves because this one comes, the group should never be empty.
const HEARING: Duration = Duration::from_millis(100);
/// How long one client after the other gets to find the group's coordinator, until one gets all the time. Brokers choose
/// it when they are asked first, and on a new cluster that takes them a moment; librdkafka asks again after 500 ms only
/// (`rd_kafka_cgrp_serve`), and a new client at once. Publishers wait for it.
const HASTE_MS: [u64; 7] = [60, 60, 80, 80, 120, 200, 400];
/// Longest wait for other subscriptions of the component to fix their positions.
const TOGETHER: Duration = Duration::from_secs(1);
/// Longest wait for the last commit and the farewell to the group.
const FAREWELL: Duration = Duration::from_secs(5);

/// One subscription.
pub(crate) struct Subscription {
    pub(crate) config: Arc<KafkaConfig>,
    pub(crate) component: Arc<str>,
    pub(crate) group: Arc<str>,
    pub(crate) topics: Vec<Arc<str>>,
    /// What values are read by, if they have schemas.
    pub(crate) schemas: Option<Arc<Schemas>>,
    /// Most records of one partition at the app.
    pub(crate) window: usize,
    pub(crate) to: Arc<dyn Deliver>,
    pub(crate) stop: CancellationToken,
    /// The component was closed.
    pub(crate) closed: CancellationToken,
    /// What the subscriptions of the component wait for.
    pub(crate) gate: Arc<Gate>,
}

/// Subscriptions of a component that begin together join their group together: once one of them is a member, the
/// group takes no positions from the others.
#[derive(Debug, Default)]
pub(crate) struct Gate(watch::Sender<usize>);

/// Holds up the others until it is dropped.
struct Pass(Arc<Gate>);

impl Gate {
    fn enter(self: &Arc<Self>) -> Pass {
        self.0.send_modify(|waiting| *waiting += 1);
        Pass(Arc::clone(self))
    }

    /// Waits until nobody holds it, for a while.
    async fn pass(&self) {
        let _ = timeout(TOGETHER, self.0.subscribe().wait_for(|waiting| *waiting == 0)).await;
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.0.send_modify(|waiting| *waiting -= 1);
    }
}

/// Why one life of the consumer ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Stopped,
    Broken,
    /// It found no coordinator, and another client asks sooner than this one would.
    NoCoordinator,
}

/// A consumer that is closed where nobody waits for it, whoever drops this.
struct Held(Option<Arc<StreamConsumer<Context>>>);

/// One life of the consumer.
struct Member<'a> {
    sub: &'a Subscription,
    consumer: &'a Arc<StreamConsumer<Context>>,
    /// When the consumer was made.
    since: std::time::Instant,
    flow: Arc<Flow>,
    layout: Layout,
    fixed: Fixed,
    /// Until when the group is heard before the positions are relied on.
    hearing: Option<Instant>,
    abort: Arc<AtomicBool>,
    /// Partitions that are read.
    reading: HashMap<Key, Ends>,
    running: FuturesUnordered<Pin<Box<dyn Future<Output = Key> + Send>>>,
    /// Partitions that are being taken.
    taking: Option<JoinHandle<Taken>>,
    /// Partitions that are given back once their handlers are done, and when at the latest.
    leaving: Option<(Vec<Key>, Instant)>,
    stopping: bool,
}

impl Held {
    /// Commits and leaves the group; gives up after a while, not on the work.
    async fn close(mut self) {
        let (done, closed) = oneshot::channel();
        if let Some(consumer) = self.0.take() {
            apart("kafka-leave", move || {
                leave(consumer);
                let _ = done.send(());
            });
            if timeout(FAREWELL, closed).await.is_err() {
                debug!("Kafka: leaving the group takes long; it goes on behind");
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(consumer) = self.0.take() {
            apart("kafka-leave", move || leave(consumer));
        }
    }
}

/// Gives back what is held, which commits what was stored, and closes. Blocks.
fn leave(consumer: Arc<StreamConsumer<Context>>) {
    consumer.client().context().close();
    // Also the answer to a rebalance that nobody answered.
    if let Ok(held) = consumer.assignment()
        && let Err(e) = give_back(&*consumer, &held)
    {
        debug!("Kafka: partitions were not given back: {e}");
    }
    drop(consumer);
}

impl Subscription {
    /// Runs until it is stopped or the component is closed; trouble is waited out.
    pub(crate) async fn run(self) {
        let (mut pause, mut haste) = (ANEW_FIRST, HASTE_MS.into_iter().map(Duration::from_millis));
        let mut pass = Some(self.gate.enter());
        loop {
            let began = Instant::now();
            match self.live(&mut pass, haste.next()).await {
                End::Stopped => return,
                End::NoCoordinator => continue,
                End::Broken => pass = None,
            }
            if began.elapsed() > ANEW_LONGEST * 2 {
                pause = ANEW_FIRST;
            }
            tokio::select! {
                () = self.stopped() => return,
                () = sleep(pause) => pause = (pause * 2).min(ANEW_LONGEST),
            }
        }
    }

    async fn stopped(&self) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = self.closed.cancelled() => {}
        }
    }

    /// `pass` is given back once the positions are fixed, or cannot be.
    async fn live(&self, pass: &mut Option<Pass>, haste: Option<Duration>) -> End {
        if let Some(tokens) = self.config.tokens()
            && let Err(e) = tokens.prime().await
        {
            warn!(component = %self.component, "subscribe: {e}");
            return End::Broken;
        }
        let health = Health::new(&self.component);
        let (context, mut changes) = Context::member(Arc::clone(&health), self.config.tokens().cloned());
        let since = std::time::Instant::now();
        let consumer: StreamConsumer<Context> = match self.config.consumer(&self.group).create_with_context(context) {
            Ok(consumer) => consumer,
            Err(e) => {
                warn!(component = %self.component, "{}", crate::error::convert("subscribe", &e, None));
                return End::Broken;
            }
        };
        // Declared before the member, so that it is dropped after it: the last owner closes.
        let held = Held(Some(Arc::new(consumer)));
        let Some(consumer) = &held.0 else { return End::Broken };
        let flow = Arc::new(Flow {
            to: Arc::clone(&self.to),
            retry: self.config.retry,
            headers: self.config.headers.clone(),
            schemas: self.schemas.clone(),
            window: self.window,
            health,
        });
        let mut member = Member {
            sub: self,
            consumer,
            since,
            flow,
            layout: Layout::new(),
            fixed: Fixed::new(),
            hearing: None,
            abort: Arc::default(),
            reading: HashMap::new(),
            running: FuturesUnordered::new(),
            taking: None,
            leaving: None,
            stopping: false,
        };
        let end = member.run(&mut changes, pass, haste).await;
        drop(member);
        if end != End::NoCoordinator {
            held.close().await;
        }
        end
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        self.abort.store(true, Ordering::SeqCst);
    }
}

impl Member<'_> {
    async fn run(
        &mut self,
        changes: &mut mpsc::UnboundedReceiver<Change>,
        pass: &mut Option<Pass>,
        haste: Option<Duration>,
    ) -> End {
        let fixed = match self.find_topics(haste).await {
            None => return End::Stopped,
            Some(Secured::NoCoordinator) => return End::NoCoordinator,
            Some(Secured::OnceJoined) => None,
            Some(Secured::Fixed { positions, no_members }) => Some((positions, no_members)),
        };
        *pass = None;
        tokio::select! {
            () = self.sub.gate.pass() => {}
            () = self.sub.stopped() => return End::Stopped,
        }
        let topics: Vec<&str> = self.sub.topics.iter().map(AsRef::as_ref).collect();
        if let Err(e) = self.consumer.subscribe(&topics) {
            warn!(component = %self.sub.component, "Kafka: cannot subscribe: {e}");
            return End::Broken;
        }
        if let Some((positions, no_members)) = fixed {
            self.fixed = positions;
            // A group without members has nobody whom this one would not suit, or who leaves because it comes.
            self.hearing = Some(Instant::now() + if no_members { Duration::ZERO } else { HEARING });
        }
        loop {
            self.give_back_if_done();
            if self.stopping && self.running.is_empty() && self.taking.is_none() {
                return End::Stopped;
            }
            let busy = self.taking.is_some() || self.leaving.is_some();
            let (limit, heard) = (self.leaving.as_ref().map(|(_, limit)| *limit), self.hearing);
            tokio::select! {
                biased;
                () = self.sub.stopped(), if !self.stopping => self.stop(),
                Some(key) = self.running.next(), if !self.running.is_empty() => {
                    self.reading.remove(&key);
                }
                taken = join(&mut self.taking) => self.begin(taken),
                () = until(limit) => self.give_up(),
                () = until(heard), if !self.stopping => {
                    self.hearing = None;
                    self.sub.to.secured();
                }
                Some(change) = changes.recv(), if !busy && !self.stopping => self.change(change),
                event = self.consumer.recv() => match event {
                    Ok(stray) => self.put_back(stray.topic(), stray.partition(), stray.offset()),
                    Err(KafkaError::MessageConsumptionFatal(code)) => {
                        warn!(component = %self.sub.component, "Kafka: the consumer cannot go on and is made anew: {code}");
                        return End::Broken;
                    }
                    Err(e) => self.note(&e),
                },
            }
        }
    }

    /// Waits until the topics exist, and fixes the positions in them if it can. `None` when stopped.
    async fn find_topics(&mut self, haste: Option<Duration>) -> Option<Secured> {
        let (asker, topics, initial) = (self.asker(), self.sub.topics.clone(), self.sub.config.initial);
        let mut asking = tokio::task::spawn_blocking(move || {
            let (layout, answer) = asker.layout(&topics)?;
            // The coordinator is asked over a connection of its own, which takes as long as the first.
            let secured = asker.secure(initial, &layout, haste.map(|haste| haste.max(answer * 2)));
            Some((layout, secured))
        });
        loop {
            tokio::select! {
                biased;
                () = self.sub.stopped() => return None,
                found = &mut asking => {
                    let (layout, secured) = found.ok().flatten()?;
                    self.layout = layout;
                    return Some(secured);
                }
                // Nothing can come yet but news of trouble, which nobody else takes in.
                event = self.consumer.recv() => if let Err(e) = event {
                    self.note(&e);
                },
            }
        }
    }

    fn asker(&self) -> Asker {
        Asker {
            consumer: Arc::clone(self.consumer),
            since: self.since,
            health: Arc::clone(&self.flow.health),
            abort: Arc::clone(&self.abort),
        }
    }

    fn stop(&mut self) {
        self.stopping = true;
        self.abort.store(true, Ordering::SeqCst);
        for ends in self.reading.values() {
            ends.soon.cancel();
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Assign(keys) => {
                let (asker, initial) = (self.asker(), self.sub.config.initial);
                let (layout, fixed) = (self.layout.clone(), self.fixed.clone());
                self.taking = Some(tokio::task::spawn_blocking(move || asker.take(&keys, initial, &layout, &fixed)));
            }
            Change::Revoke(keys) => {
                for ends in keys.iter().filter_map(|key| self.reading.get(key)) {
                    ends.soon.cancel();
                }
                self.leaving = Some((keys, Instant::now() + HANDOVER));
            }
        }
    }

    /// Partitions are ours.
    fn begin(&mut self, taken: Taken) {
        for (key, queue) in taken {
            let ends = Ends::default();
            let (consumer, flow) = (Arc::clone(self.consumer), Arc::clone(&self.flow));
            self.running.push(Box::pin(partition::read(key.clone(), queue, consumer, flow, ends.clone())));
            if self.stopping {
                ends.soon.cancel();
            }
            self.reading.insert(key, ends);
        }
        self.flow.health.works();
        self.hearing = None;
        if !self.stopping {
            self.sub.to.attached();
        }
    }

    /// The handlers of lost partitions are done: the group may go on.
    fn give_back_if_done(&mut self) {
        let Some((keys, _)) = &self.leaving else { return };
        if keys.iter().any(|key| self.reading.contains_key(key)) {
            return;
        }
        if let Err(e) = give_back(&**self.consumer, &partitions(keys)) {
            debug!(component = %self.sub.component, "Kafka: partitions were not given back: {e}");
        }
        self.leaving = None;
    }

    /// The handlers of lost partitions take too long.
    fn give_up(&mut self) {
        let Some((keys, _)) = &mut self.leaving else { return };
        warn!(
            component = %self.sub.component,
            "Kafka: handlers did not end within {HANDOVER:?} of a rebalance; their records are delivered again"
        );
        for ends in keys.iter().filter_map(|key| self.reading.get(key)) {
            ends.now.cancel();
        }
        if let Some((_, limit)) = &mut self.leaving {
            *limit = Instant::now() + HANDOVER;
        }
    }

    /// A record came the wrong way; it is fetched again.
    fn put_back(&self, topic: &str, partition: i32, offset: i64) {
        debug!(component = %self.sub.component, topic, partition, offset, "Kafka: a record is fetched again");
        if let Err(e) = self.consumer.seek(topic, partition, Offset::Offset(offset), Duration::ZERO) {
            warn!(component = %self.sub.component, topic, partition, offset, "Kafka: cannot go back to a record: {e}");
        }
    }

    fn note(&mut self, e: &KafkaError) {
        // Whoever is in trouble now stands once the group has taken it in.
        self.hearing = None;
        // Connections and logins were reported with their reason.
        match e.rdkafka_error_code() {
            Some(
                Code::AllBrokersDown | Code::BrokerTransportFailure | Code::Resolve | Code::Authentication | Code::SSL,
            ) => {}
            code => self.flow.health.note(code.unwrap_or(Code::Unknown), "cannot read from the group's partitions"),
        }
    }
}

/// What was taken, if anything is being taken.
async fn join(taking: &mut Option<JoinHandle<Taken>>) -> Taken {
    let Some(handle) = taking else { return std::future::pending().await };
    let taken = handle.await.unwrap_or_default();
    *taking = None;
    taken
}

async fn until(limit: Option<Instant>) {
    match limit {
        Some(limit) => sleep_until(limit).await,
        None => std::future::pending().await,
    }
}
