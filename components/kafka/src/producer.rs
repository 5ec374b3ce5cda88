//! The one producer of a component: idempotent, and a publish ends with the brokers' word.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use futures_util::future::join_all;
use mecha_components_api::{BulkReply, Error, ErrorKind, FailedEntry, Result, Retry};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use tokio::time::timeout;
use tracing::warn;

use crate::config::KafkaConfig;
use crate::context::{Context, Health};
use crate::error::{classify, convert, is_refusal};
use crate::record::Outgoing;

/// Longest wait for the brokers while a component is built, and of a ping.
const HELLO: Duration = Duration::from_secs(5);
/// How often it is looked whether waiting makes sense at all.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Longest wait for room in the queue.
const ROOM: Duration = Duration::from_secs(1);

/// A producer that is made anew when the brokers lost track of it.
#[derive(Debug)]
pub(crate) struct Producer {
    config: Arc<KafkaConfig>,
    component: Arc<str>,
    live: ArcSwapOption<Live>,
}

/// One life of it.
struct Live {
    /// Taken on drop only.
    inner: Option<FutureProducer<Context>>,
    health: Arc<Health>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("health", &self.health).finish_non_exhaustive()
    }
}

/// librdkafka's threads are waited for, so that happens on a thread of its own.
impl Drop for Live {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take() {
            apart("kafka-close", move || drop(inner));
        }
    }
}

/// Runs what blocks for a bounded time where nobody waits for it.
pub(crate) fn apart(name: &str, work: impl FnOnce() + Send + 'static) {
    if let Err(e) = thread::Builder::new().name(name.to_owned()).spawn(work) {
        warn!("no thread to close a Kafka client on: {e}");
    }
}

impl Live {
    fn new(config: &KafkaConfig, component: &Arc<str>) -> Result<Self> {
        let health = Health::new(component);
        let context = Context::plain(Arc::clone(&health), config.tokens().cloned());
        let inner =
            config.producer().create_with_context(context).map_err(|e| convert("connect to Kafka", &e, None))?;
        Ok(Self { inner: Some(inner), health })
    }

    fn producer(&self) -> Result<&FutureProducer<Context>> {
        self.inner.as_ref().ok_or_else(closed)
    }

    /// Asks the brokers for the layout of the cluster. Blocks.
    fn hello(&self, what: &str, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let code = match self.producer()?.client().fetch_metadata(None, LOOK_EVERY.min(left)) {
                Ok(_) => {
                    self.health.works();
                    return Ok(());
                }
                Err(e) => e.rdkafka_error_code().unwrap_or(Code::BrokerTransportFailure),
            };
            let trouble = self.health.trouble();
            let text = trouble.as_ref().map(|(_, text)| text.as_str());
            if let Some((cause, _)) = &trouble
                && (is_refusal(*cause) || self.health.is_down())
            {
                return Err(classify(what, *cause, text));
            }
            if left.is_zero() {
                return Err(classify(what, code, text));
            }
        }
    }
}

impl Producer {
    /// Connects.
    ///
    /// # Errors
    /// When the brokers cannot be reached, refuse us, or the settings are no good.
    pub(crate) async fn open(config: Arc<KafkaConfig>, component: &Arc<str>) -> Result<Self> {
        if let Some(strategy) = config.substitute() {
            warn!(
                component = %component,
                "the assignment sticky is not available and {strategy} takes its place; a group of both kinds cannot form"
            );
        }
        if let Some(tokens) = config.tokens() {
            tokens.prime().await?;
        }
        let live = Arc::new(Live::new(&config, component)?);
        let what = format!("connect to Kafka at {}", config.address());
        blocking({
            let live = Arc::clone(&live);
            move || live.hello(&what, HELLO)
        })
        .await?;
        Ok(Self { config, component: Arc::clone(component), live: ArcSwapOption::new(Some(live)) })
    }

    /// Asks the brokers whether they are there.
    pub(crate) async fn ping(&self) -> Result<()> {
        let live = self.live()?;
        let what = format!("ask Kafka at {}", self.config.address());
        blocking(move || live.hello(&what, HELLO)).await
    }

    /// Whoever still waits for the brokers gets an error.
    pub(crate) fn close(&self) {
        self.live.store(None);
    }

    /// Sends one record; `Ok` once all replicas in sync have it.
    pub(crate) async fn send(&self, out: Outgoing<'_>) -> Result<()> {
        let live = self.live()?;
        let record = FutureRecord {
            topic: out.topic,
            partition: out.partition,
            payload: out.value.as_deref(),
            key: out.key,
            timestamp: None,
            headers: out.headers,
        };
        let sent = live.producer()?.send(record, ROOM.min(self.config.publish));
        // librdkafka looks at its own deadlines once a second only.
        let code = match timeout(self.config.publish, sent).await {
            Ok(Ok(_)) => {
                live.health.works();
                return Ok(());
            }
            Ok(Err((KafkaError::MessageProduction(code), _))) => code,
            Ok(Err((e, _))) => return Err(convert("publish", &e, None)),
            Err(_) => Code::MessageTimedOut,
        };
        if self.is_spent(&live, code) {
            self.renew(&live);
        }
        Err(classify("publish", code, live.health.trouble_text().as_deref()))
    }

    /// Sends all of them at once; the answer names those that failed.
    pub(crate) async fn send_all<'a>(&self, batch: impl Iterator<Item = Result<Outgoing<'a>>>) -> BulkReply {
        let sends = batch.map(async |out| self.send(out?).await);
        let outcomes = join_all(sends).await.into_iter().enumerate();
        outcomes.filter_map(|(index, outcome)| outcome.err().map(|error| FailedEntry { index, error })).collect()
    }

    fn live(&self) -> Result<Arc<Live>> {
        self.live.load_full().ok_or_else(closed)
    }

    /// The brokers take nothing more from this producer.
    fn is_spent(&self, live: &Live, code: Code) -> bool {
        matches!(code, Code::Fatal | Code::Fenced | Code::ProducerFenced)
            || live.inner.as_ref().is_some_and(|p| p.client().fatal_error().is_some())
    }

    fn renew(&self, spent: &Arc<Live>) {
        match Live::new(&self.config, &self.component) {
            Ok(fresh) => {
                // Somebody else may have been faster, or closed it.
                let before = self.live.compare_and_swap(spent, Some(Arc::new(fresh)));
                if before.as_ref().is_some_and(|b| Arc::ptr_eq(b, spent)) {
                    warn!(component = %self.component, "Kafka lost track of the producer; a new one takes its place");
                }
            }
            Err(e) => {
                warn!(component = %self.component, "Kafka lost track of the producer, and no new one can be made: {e}")
            }
        }
    }
}

/// Runs what blocks on a thread for that.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(e) => Err(Error::internal("a call into the Kafka client did not end well").with_source(e)),
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "the component is closed").with_retry(Retry::Always)
}
