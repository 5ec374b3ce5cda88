//! What librdkafka tells us on its own: trouble with connections, log lines, rebalances.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::client::OAuthToken;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::tokens::Tokens;

/// A topic and a partition of it.
pub(crate) type Key = (Arc<str>, i32);

/// How the connections of one client are.
#[derive(Debug)]
pub(crate) struct Health {
    /// Name of the component, for log lines.
    component: Arc<str>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What went wrong last, until something worked again.
    last: Option<(Code, String)>,
    /// No broker can be reached.
    down: bool,
    /// What was logged since something worked, so that an outage is no flood of lines.
    logged: BTreeSet<i32>,
}

/// A change of what this member of a group reads.
#[derive(Debug)]
pub(crate) enum Change {
    Assign(Vec<Key>),
    Revoke(Vec<Key>),
}

/// The callbacks of one client.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) health: Arc<Health>,
    /// Rebalances, for whoever runs the consumer. One is under way at a time: librdkafka waits
    /// for its answer before the next.
    changes: Option<mpsc::UnboundedSender<Change>>,
    /// Nobody listens to `changes` any more.
    closing: AtomicBool,
    tokens: Option<Tokens>,
}

impl Health {
    pub(crate) fn new(component: &Arc<str>) -> Arc<Self> {
        Arc::new(Self { component: Arc::clone(component), state: Mutex::default() })
    }

    /// Notes trouble; the first of its kind since things worked is logged.
    pub(crate) fn note(&self, code: Code, text: &str) {
        let mut state = self.state.lock();
        if code == Code::AllBrokersDown {
            state.down = true;
        } else {
            state.last = Some((code, text.to_owned()));
        }
        if state.logged.insert(code as i32) {
            warn!(component = %self.component, "Kafka: {text} ({code}); trying again until it works");
        } else {
            debug!(component = %self.component, "Kafka: {text} ({code})");
        }
    }

    /// Something worked.
    pub(crate) fn works(&self) {
        let mut state = self.state.lock();
        if state.last.is_none() && !state.down && state.logged.is_empty() {
            return;
        }
        *state = State::default();
        info!(component = %self.component, "Kafka works again");
    }

    /// What went wrong last, while nothing worked since.
    pub(crate) fn trouble(&self) -> Option<(Code, String)> {
        let state = self.state.lock();
        match &state.last {
            Some(last) => Some(last.clone()),
            None => state.down.then(|| (Code::AllBrokersDown, "no broker can be reached".to_owned())),
        }
    }

    /// The same in words.
    pub(crate) fn trouble_text(&self) -> Option<String> {
        self.trouble().map(|(_, text)| text)
    }

    /// No broker can be reached.
    pub(crate) fn is_down(&self) -> bool {
        self.state.lock().down
    }
}

impl Context {
    /// For a client that belongs to no group.
    pub(crate) fn plain(health: Arc<Health>, tokens: Option<Tokens>) -> Self {
        Self { health, changes: None, closing: AtomicBool::new(false), tokens }
    }

    /// For a member of a group; rebalances come out of the receiver.
    pub(crate) fn member(health: Arc<Health>, tokens: Option<Tokens>) -> (Self, mpsc::UnboundedReceiver<Change>) {
        let (changes, receiver) = mpsc::unbounded_channel();
        (Self { health, changes: Some(changes), closing: AtomicBool::new(false), tokens }, receiver)
    }

    /// From now on rebalances are answered at once: the consumer is being closed.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        let token = self.tokens.as_ref().and_then(Tokens::now).ok_or("the identity provider has given no token yet")?;
        Ok(OAuthToken {
            token: token.text.expose().to_owned(),
            lifetime_ms: token.half_way_ms(),
            principal_name: token.client,
        })
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // Trouble with connections comes as an error, too, and is logged there.
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                warn!(component = %self.health.component, facility, "librdkafka: {message}");
            }
            _ if facility == "OFFSET" => {
                warn!(component = %self.health.component, "Kafka: a position is gone from the log: {message}");
            }
            _ => debug!(component = %self.health.component, facility, "librdkafka: {message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if let Some(code) = error.rdkafka_error_code() {
            self.health.note(code, reason);
        }
    }
}

impl ConsumerContext for Context {
    /// Hands the change over and returns: the answer is given once the handlers of lost
    /// partitions are done, and this callback runs where others wait.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, what: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let keys = list.elements().iter().map(|e| (Arc::from(e.topic()), e.partition())).collect();
        let assigned = what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if !self.closing.load(Ordering::SeqCst)
            && let Some(changes) = &self.changes
            && changes.send(if assigned { Change::Assign(keys) } else { Change::Revoke(keys) }).is_ok()
        {
            return;
        }
        if let Err(e) = give_back(consumer, list) {
            debug!(component = %self.health.component, "Kafka: partitions were not given back: {e}");
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        match result.as_ref().map_err(KafkaError::rdkafka_error_code) {
            Ok(()) => self.health.works(),
            // "Local: No offset stored": there was nothing to commit.
            Err(Some(Code::NoOffset)) => {}
            // What was not committed is delivered again, here or at another member.
            Err(code) => debug!(component = %self.health.component, ?code, "Kafka: positions were not committed"),
        }
    }
}

/// Answers a revocation; positions that were stored are committed by it.
pub(crate) fn give_back<C: ConsumerContext, M: Consumer<C>>(
    consumer: &M,
    list: &TopicPartitionList,
) -> KafkaResult<()> {
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
        RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.unassign(),
    }
}

/// Answers an assignment.
pub(crate) fn take<C: ConsumerContext, M: Consumer<C>>(consumer: &M, list: &TopicPartitionList) -> KafkaResult<()> {
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_assign(list),
        RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.assign(list),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_lasts_until_something_works() {
        let health = Health::new(&"kafka".into());
        assert!(health.trouble().is_none());
        health.note(Code::BrokerTransportFailure, "a:1: Connection refused");
        health.note(Code::AllBrokersDown, "1/1 brokers are down");
        assert_eq!(health.trouble_text().as_deref(), Some("a:1: Connection refused"));
        assert!(health.is_down());
        health.works();
        assert!(health.trouble().is_none() && !health.is_down());
    }
}
