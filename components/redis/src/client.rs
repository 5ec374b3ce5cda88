//! The connections of one component.
//!
//! One multiplexed connection carries all calls: it is dialled when the first call needs
//! it, shared by all, and dialled anew after it broke, for ever, with growing jittered
//! pauses. Nothing runs in the background for that: the callers who wait for a connection
//! drive the dialling, one at a time, and share its outcome.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use mecha_components_api::{CancellationToken, Error, Result};
use redis::aio::PubSub;
use redis::{Cmd, Pipeline, RedisError, RedisResult, Value};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::config::{RedisConfig, Topology};
use crate::connect::{self, Dialled, Wire};
use crate::error::{Fault, Next};

/// Pauses between two failed dials.
const DIAL_FIRST: Duration = Duration::from_millis(20);
const DIAL_LONGEST: Duration = Duration::from_secs(1);

/// What one command of several came to.
pub(crate) type Outcome = RedisResult<Value>;

/// How one operation may be tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    /// What it is, for messages.
    pub(crate) what: &'static str,
    /// Longest time with all tries.
    pub(crate) limit: Duration,
    /// Doing it twice is the same as doing it once.
    pub(crate) idempotent: bool,
}

/// Handle of one Redis.
pub(crate) struct Client {
    config: RedisConfig,
    /// For everything that does not block the connection.
    calls: Lane,
    /// For writes that wait for replicas: WAIT holds up whatever follows it.
    waits: Lane,
    closed: CancellationToken,
}

/// A shared connection and its making.
#[derive(Default)]
struct Lane {
    live: ArcSwapOption<Live>,
    dial: Mutex<Dialling>,
}

/// What is known of former dials.
#[derive(Default)]
struct Dialling {
    failures: u32,
    not_before: Option<Instant>,
    last: Option<(Instant, RedisError)>,
}

/// A connection in use.
struct Live {
    connection: Dialled,
    born: Instant,
    /// When the first call was sent that has no answer yet, nor any sent after it: in
    /// milliseconds since `born`, counted from 1; 0 when nothing is open.
    open_since: AtomicU64,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Client {
    /// See [`RedisConfig::place`].
    pub(crate) fn place(&self) -> String {
        self.config.place()
    }

    /// Connects and asks the server whether it is there.
    pub(crate) async fn open(config: RedisConfig) -> Result<Arc<Self>> {
        let client = Self { config, calls: Lane::default(), waits: Lane::default(), closed: CancellationToken::new() };
        client.ping_within(client.config.dial).await?;
        Ok(Arc::new(client))
    }

    pub(crate) fn config(&self) -> &RedisConfig {
        &self.config
    }

    pub(crate) fn is_cluster(&self) -> bool {
        self.config.topology == Topology::Cluster
    }

    /// A read under the read timeout.
    pub(crate) fn read(&self, what: &'static str) -> Op {
        Op { what, limit: self.config.read, idempotent: true }
    }

    /// A write under the write timeout, sent once.
    pub(crate) fn write(&self, what: &'static str) -> Op {
        Op { what, limit: self.config.write, idempotent: false }
    }

    /// A write that may be sent twice.
    pub(crate) fn repeatable_write(&self, what: &'static str) -> Op {
        Op { idempotent: true, ..self.write(what) }
    }

    pub(crate) async fn ping(&self) -> Result<()> {
        self.ping_within(self.config.read).await
    }

    async fn ping_within(&self, limit: Duration) -> Result<()> {
        let op = Op { what: "ping", limit, idempotent: true };
        self.call(op, &redis::cmd("PING")).await.map(drop)
    }

    /// One command.
    pub(crate) async fn call(&self, op: Op, cmd: &Cmd) -> Result<Value> {
        self.try_call(op, cmd).await.map_err(|fault| self.error(op, fault))
    }

    /// One command, with the server's error as it came.
    pub(crate) async fn try_call(&self, op: Op, cmd: &Cmd) -> Result<Value, Fault> {
        self.run(&self.calls, op, cmd).await
    }

    /// Several commands in one go, each with its own outcome. They are not a transaction.
    /// On a cluster all keys must lie on one slot.
    pub(crate) async fn pipeline(&self, op: Op, pipeline: &mut Pipeline) -> Result<Vec<Outcome>, Fault> {
        pipeline.ignore_errors();
        self.run(&self.calls, op, &*pipeline).await
    }

    /// Like [`Client::pipeline`], on the connection for commands that wait.
    pub(crate) async fn waiting_pipeline(&self, op: Op, pipeline: &mut Pipeline) -> Result<Vec<Outcome>, Fault> {
        pipeline.ignore_errors();
        self.run(&self.waits, op, &*pipeline).await
    }

    /// A connection that nobody shares, for commands that block and are answered within `answer`.
    pub(crate) async fn dedicated(&self, answer: Duration) -> Result<Wire, Fault> {
        Ok(self.dial_within(connect::dial(&self.config, answer)).await?.wire)
    }

    /// A connection for messages of channels.
    pub(crate) async fn channels(&self) -> Result<PubSub, Fault> {
        self.dial_within(connect::dial_channels(&self.config)).await
    }

    async fn dial_within<T>(&self, dial: impl Future<Output = RedisResult<T>>) -> Result<T, Fault> {
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(Fault::Closed),
            dialled = tokio::time::timeout(self.config.dial, dial) => match dialled {
                Ok(Ok(connection)) => Ok(connection),
                Ok(Err(e)) => Err(Fault::Unsent(e)),
                Err(_) => Err(Fault::Unreached(None)),
            }
        }
    }

    /// The error for the caller.
    pub(crate) fn error(&self, op: Op, fault: Fault) -> Error {
        fault.into_error(op.what, &self.config.address())
    }

    /// Fires when the component is closed.
    pub(crate) fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// Lets the connections go; calls under way still end, later ones fail.
    pub(crate) fn close(&self) {
        self.closed.cancel();
        self.calls.live.store(None);
        self.waits.live.store(None);
    }

    async fn run<R: Request>(&self, lane: &Lane, op: Op, request: &R) -> Result<R::Reply, Fault> {
        let deadline = Instant::now() + op.limit;
        let mut again = 0;
        loop {
            let fault = match self.once(lane, deadline, request).await {
                Ok(value) => return Ok(value),
                Err(fault) => fault,
            };
            let worth_it = match fault.next() {
                Next::Again | Next::Elsewhere => true,
                Next::Lost => op.idempotent,
                Next::Final => false,
            };
            if !worth_it || again >= self.config.retries.max {
                return Err(fault);
            }
            again += 1;
            let at = Instant::now() + self.config.retries.pause(again, luck());
            if at >= deadline {
                return Err(fault);
            }
            sleep_until(at).await;
        }
    }

    async fn once<R: Request>(&self, lane: &Lane, deadline: Instant, request: &R) -> Result<R::Reply, Fault> {
        let live = match lane.live.load_full() {
            Some(live) if !live.is_suspect(self.config.silence()) => live,
            Some(suspect) => {
                lane.discard(&suspect);
                self.connect(lane, deadline).await?
            }
            None => self.connect(lane, deadline).await?,
        };
        live.sent();
        match timeout_at(deadline, request.send(live.connection.wire.clone())).await {
            Ok(Ok(value)) => {
                live.heard();
                Ok(value)
            }
            Ok(Err(e)) => {
                let fault = Fault::Sent(e);
                match fault.next() {
                    Next::Lost | Next::Elsewhere => lane.discard(&live),
                    Next::Again | Next::Final => live.heard(),
                }
                Err(fault)
            }
            Err(_) => Err(Fault::Silent),
        }
    }

    /// Waits for a connection. Of all who wait one dials; its failure is the failure of all
    /// who were waiting then.
    async fn connect(&self, lane: &Lane, deadline: Instant) -> Result<Arc<Live>, Fault> {
        let asked = Instant::now();
        let Ok(mut dialling) = timeout_at(deadline, lane.dial.lock()).await else {
            return Err(Fault::Unreached(None));
        };
        if let Some(live) = lane.live.load_full() {
            return Ok(live);
        }
        if let Some((at, e)) = &dialling.last
            && *at >= asked
        {
            return Err(Fault::Unsent(e.clone()));
        }
        if let Some(not_before) = dialling.not_before {
            if not_before >= deadline {
                return Err(Fault::Unreached(dialling.last.as_ref().map(|(_, e)| e.clone())));
            }
            sleep_until(not_before).await;
        }
        if self.closed.is_cancelled() {
            return Err(Fault::Closed);
        }
        let until = deadline.min(Instant::now() + self.config.dial);
        match timeout_at(until, connect::dial(&self.config, self.config.read.max(self.config.write))).await {
            Ok(Ok(connection)) => {
                *dialling = Dialling::default();
                let live = Arc::new(Live { connection, born: Instant::now(), open_since: AtomicU64::new(0) });
                lane.live.store(Some(Arc::clone(&live)));
                if self.closed.is_cancelled() {
                    // Closed while it was dialled.
                    lane.live.store(None);
                    return Err(Fault::Closed);
                }
                Ok(live)
            }
            Ok(Err(e)) => {
                dialling.failed(e.clone());
                Err(Fault::Unsent(e))
            }
            Err(_) => {
                let cause =
                    RedisError::from(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer to the dial"));
                dialling.failed(cause.clone());
                Err(Fault::Unreached(Some(cause)))
            }
        }
    }
}

/// What can be sent over a shared connection, more than once.
trait Request: Sync {
    type Reply: Send;

    fn send(&self, wire: Wire) -> impl Future<Output = RedisResult<Self::Reply>> + Send;
}

impl Request for Cmd {
    type Reply = Value;

    async fn send(&self, mut wire: Wire) -> RedisResult<Value> {
        self.query_async(&mut wire).await
    }
}

impl Request for Pipeline {
    type Reply = Vec<Outcome>;

    /// The outcomes of all commands. When the first was refused because of the server's
    /// state, so were the others, and that is the outcome of the whole.
    async fn send(&self, mut wire: Wire) -> RedisResult<Vec<Outcome>> {
        let replies: Vec<Value> = self.query_async(&mut wire).await?;
        let outcomes: Vec<Outcome> = replies.into_iter().map(Value::extract_error).collect();
        match outcomes.first() {
            Some(Err(e)) if Fault::is_state(e) => Err(e.clone()),
            _ => Ok(outcomes),
        }
    }
}

impl Lane {
    /// Forgets a connection, unless another one took its place already.
    fn discard(&self, broken: &Arc<Live>) {
        let _ = self.live.compare_and_swap(&Some(Arc::clone(broken)), None);
    }
}

impl Dialling {
    fn failed(&mut self, e: RedisError) {
        self.failures += 1;
        let pause = growing(self.failures, DIAL_FIRST, DIAL_LONGEST);
        let now = Instant::now();
        self.not_before = Some(now + pause);
        self.last = Some((now, e));
    }
}

impl Live {
    /// The other side closed it, or has said nothing for so long although it was asked: it
    /// may be gone without a word. A cluster looks after its own connections.
    fn is_suspect(&self, silence: Duration) -> bool {
        if self.connection.gone.load(Ordering::Acquire) {
            return true;
        }
        let since = self.open_since.load(Ordering::Relaxed);
        since != 0
            && matches!(self.connection.wire, Wire::Node(_))
            && self.age().saturating_sub(since) >= u64::try_from(silence.as_millis()).unwrap_or(u64::MAX)
    }

    /// Notes that a call is sent. That its caller leaves does not change what it tells.
    fn sent(&self) {
        if self.open_since.load(Ordering::Relaxed) == 0 {
            // Lost races are of the same millisecond.
            self.open_since.store(self.age(), Ordering::Relaxed);
        }
    }

    /// Answers come in order, so one of them says that all is well.
    fn heard(&self) {
        self.open_since.store(0, Ordering::Relaxed);
    }

    fn age(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }
}

/// Growing pauses of a loop that must not give up.
#[derive(Debug)]
pub(crate) struct Trouble {
    times: u32,
    first: Duration,
    longest: Duration,
}

impl Trouble {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { times: 0, first, longest }
    }

    pub(crate) fn over(&mut self) {
        self.times = 0;
    }

    /// Whether this is worth a line in the log: the first time, then ever more seldom.
    pub(crate) fn is_news(&self) -> bool {
        self.times.is_power_of_two()
    }

    pub(crate) fn pause(&mut self) -> Duration {
        self.times = self.times.saturating_add(1);
        growing(self.times, self.first, self.longest)
    }
}

/// The pause after failure `times` (from 1): doubled each time up to `longest`, with jitter.
fn growing(times: u32, first: Duration, longest: Duration) -> Duration {
    let full = first.saturating_mul(1 << times.saturating_sub(1).min(16)).min(longest);
    full.mul_f64(0.5 + luck() / 2.0)
}

/// A number in 0..1 for jitter.
pub(crate) fn luck() -> f64 {
    // The random half of a version 4 UUID.
    let random = uuid::Uuid::new_v4().as_u128() as u32;
    f64::from(random) / f64::from(u32::MAX)
}
