//! Kept HTTP/2 connections, by address. A connection takes up to [`MAX_STREAMS`] calls at a
//! time; the pool grows before calls queue, and shrinks when connections are idle.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use http::uri::{Authority, Scheme};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mecha_core::Tasks;
use mecha_core::app::Body;
use mecha_core::invoke::{TransportError, grpc_code};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::serve::MAX_FRAME;

/// Calls on one connection: the stream limit that servers announce unless told otherwise.
const MAX_STREAMS: usize = 100;
/// Connections to one address. Twelve thousand calls at a time are a defect of the caller.
const MAX_CONNECTIONS: usize = 128;
/// Window of a stream: a megabyte per millisecond and stream stays possible between machines.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Window of a connection.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Bytes of one stream that wait to be written.
const SEND_BUFFER: usize = 64 * 1024;
/// Header list of an answer.
const MAX_HEADER_LIST: u32 = 1024 * 1024;

/// Calls given up a moment ago whose late frames are still known.
const MAX_RESET_STREAMS: usize = 1024;

/// Times of a pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolSettings {
    /// A connection without calls is closed after this time (`DAPR_GRPC_MAX_CONN_IDLE`).
    pub max_idle: Duration,
    /// How often that is looked at (`DAPR_GRPC_CONN_COLLECTOR_INTERVAL`).
    pub sweep: Duration,
    /// Limit for making a connection.
    pub dial: Duration,
    /// A connection that was silent for so long is asked whether it lives.
    pub keep_alive: Duration,
    /// It is closed when no answer comes within this time.
    pub keep_alive_timeout: Duration,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            max_idle: Duration::from_secs(180),
            sweep: Duration::from_secs(45),
            dial: Duration::from_secs(30),
            keep_alive: Duration::from_secs(10),
            keep_alive_timeout: Duration::from_secs(5),
        }
    }
}

/// A byte stream to a peer.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// Whom a connection is made to.
#[derive(Clone, Copy, Debug)]
pub struct Dialled<'a> {
    /// `host:port`.
    pub address: &'a str,
    /// App id expected there.
    pub app_id: &'a str,
    /// Namespace expected there.
    pub namespace: &'a str,
}

/// Makes byte streams. With mTLS it is the one who proves that the peer is who it should be.
#[async_trait]
pub trait Dial: Send + Sync + fmt::Debug + 'static {
    /// Opens a stream that is ready for HTTP/2.
    async fn dial(&self, to: Dialled<'_>) -> io::Result<Box<dyn Io>>;

    /// What requests over such a stream call it.
    fn scheme(&self) -> Scheme {
        Scheme::HTTP
    }
}

/// Plain TCP.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpDial;

#[async_trait]
impl Dial for TcpDial {
    async fn dial(&self, to: Dialled<'_>) -> io::Result<Box<dyn Io>> {
        let stream = TcpStream::connect(to.address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

#[derive(Debug)]
struct Connection {
    send: http2::SendRequest<Body>,
    open: Arc<Open>,
}

/// Calls that are under way on a connection.
#[derive(Debug)]
struct Open {
    calls: AtomicUsize,
    /// When the last call ended, in milliseconds since the pool was made.
    idle_since: AtomicU64,
    epoch: Instant,
}

/// A call's place on a connection; dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct Place(Arc<Open>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.idle_since.store(self.0.epoch.elapsed().as_millis() as u64, Ordering::Relaxed);
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The connections to one app at one address.
#[derive(Debug)]
pub(crate) struct Address {
    authority: Authority,
    /// Who was expected there. An address may have a new owner, to whom the connections that
    /// another one was proved on say nothing.
    app_id: Box<str>,
    namespace: Box<str>,
    connections: Mutex<Vec<Connection>>,
    /// Held by the one who dials.
    dialling: tokio::sync::Mutex<()>,
    /// Failures of dials, and what the last one was. Those who waited for it share it.
    failed: Mutex<(u64, Option<Failure>)>,
    /// Whether the peer knows no streamed calls.
    pub(crate) unary_only: AtomicBool,
}

#[derive(Clone, Debug)]
struct Failure(Arc<str>);

/// A connection with a place for one call.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) send: http2::SendRequest<Body>,
    pub(crate) place: Place,
    pub(crate) address: Arc<Address>,
}

impl Lease {
    /// Authority for the request's URI.
    pub(crate) fn authority(&self) -> Authority {
        self.address.authority.clone()
    }
}

/// Kept connections.
#[derive(Debug)]
pub struct Pool {
    dial: Arc<dyn Dial>,
    settings: PoolSettings,
    /// By address; hardly ever more than one app each.
    addresses: Mutex<HashMap<Box<str>, Vec<Arc<Address>>>>,
    tasks: Tasks,
    epoch: Instant,
}

impl Pool {
    /// An empty pool. Its connections and its sweeper run in `tasks`.
    #[must_use]
    pub fn new(dial: Arc<dyn Dial>, settings: PoolSettings, tasks: Tasks) -> Arc<Self> {
        let pool =
            Arc::new(Self { dial, settings, addresses: Mutex::default(), tasks: tasks.clone(), epoch: Instant::now() });
        let weak = Arc::downgrade(&pool);
        let stop = tasks.stopping().clone();
        tasks.spawn("peer connection sweep", async move {
            let mut tick = interval(settings.sweep.max(Duration::from_millis(10)));
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = tick.tick() => {}
                }
                let Some(pool) = weak.upgrade() else { return };
                pool.sweep();
            }
        });
        pool
    }

    /// A connection to `to` with a place for a call.
    ///
    /// # Errors
    /// `Unavailable` when none can be made, `ResourceExhausted` when there are too many calls.
    pub(crate) async fn lease(&self, to: Dialled<'_>) -> Result<Lease, TransportError> {
        let address = self.address(to)?;
        if let Some(lease) = address.lease() {
            return Ok(lease);
        }
        match timeout(self.settings.dial, self.grow(&address, to)).await {
            Ok(result) => result,
            Err(_) => Err(dial_error(to.address, "no connection within the time limit")),
        }
    }

    /// Forgets the connections to `address`. Calls under way on them go on.
    pub fn forget(&self, address: &str) {
        for address in self.addresses.lock().get(address).into_iter().flatten() {
            address.connections.lock().clear();
        }
    }

    /// Open connections, for tests and diagnosis.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.addresses.lock().values().flatten().map(|a| a.connections.lock().len()).sum()
    }

    /// What requests of this pool call its streams.
    pub(crate) fn scheme(&self) -> Scheme {
        self.dial.scheme()
    }

    fn address(&self, to: Dialled<'_>) -> Result<Arc<Address>, TransportError> {
        let mut addresses = self.addresses.lock();
        let same = |a: &&Arc<Address>| *a.app_id == *to.app_id && *a.namespace == *to.namespace;
        if let Some(found) = addresses.get(to.address).and_then(|all| all.iter().find(same)) {
            return Ok(found.clone());
        }
        let authority = to.address.parse().map_err(|_| dial_error(to.address, "this is no address"))?;
        let new = Arc::new(Address {
            authority,
            app_id: to.app_id.into(),
            namespace: to.namespace.into(),
            connections: Mutex::default(),
            dialling: tokio::sync::Mutex::default(),
            failed: Mutex::default(),
            unary_only: AtomicBool::new(false),
        });
        addresses.entry(to.address.into()).or_default().push(new.clone());
        Ok(new)
    }

    async fn grow(&self, address: &Arc<Address>, to: Dialled<'_>) -> Result<Lease, TransportError> {
        let before = address.failed.lock().0;
        let _one_dials = address.dialling.lock().await;
        if let Some(lease) = address.lease() {
            return Ok(lease);
        }
        {
            // Whoever waited while a dial failed shares its failure: a crowd of callers must not
            // try a dead address one after the other.
            let failed = address.failed.lock();
            if failed.0 != before
                && let Some(Failure(text)) = &failed.1
            {
                return Err(dial_error(to.address, text));
            }
        }
        if address.connections.lock().len() >= MAX_CONNECTIONS {
            let text = format!("too many calls to {} are under way", to.address);
            return Err(TransportError::unsent(grpc_code::RESOURCE_EXHAUSTED, text));
        }
        match self.connect(address, to).await {
            Ok(lease) => Ok(lease),
            Err(text) => {
                let mut failed = address.failed.lock();
                *failed = (failed.0 + 1, Some(Failure(text.as_str().into())));
                Err(dial_error(to.address, &text))
            }
        }
    }

    async fn connect(&self, address: &Arc<Address>, to: Dialled<'_>) -> Result<Lease, String> {
        let io = self.dial.dial(to).await.map_err(|e| e.to_string())?;
        let (send, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(self.settings.keep_alive)
            .keep_alive_timeout(self.settings.keep_alive_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(MAX_HEADER_LIST)
            .max_concurrent_reset_streams(MAX_RESET_STREAMS)
            // Counts late frames of calls that were given up here, over the life of the connection.
            // At the usual limit the 1024th client that hangs up early takes all others with it.
            .max_local_error_reset_streams(None)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|e| super::status::describe(&e))?;
        let stop = self.tasks.stopping().clone();
        self.tasks.spawn("peer connection", async move {
            tokio::select! {
                () = stop.cancelled() => {}
                ended = connection => {
                    if let Err(e) = ended {
                        tracing::debug!(target: "dapr.runtime.grpc.internal", "connection ended: {}", super::status::describe(&e));
                    }
                }
            }
        });
        let open = Arc::new(Open { calls: AtomicUsize::new(1), idle_since: AtomicU64::new(0), epoch: self.epoch });
        let lease = Lease { send: send.clone(), place: Place(open.clone()), address: address.clone() };
        address.connections.lock().push(Connection { send, open });
        Ok(lease)
    }

    fn sweep(&self) {
        let now = self.epoch.elapsed().as_millis() as u64;
        let idle = self.settings.max_idle.as_millis() as u64;
        self.addresses.lock().retain(|_, all| {
            all.retain(|address| {
                let mut connections = address.connections.lock();
                connections.retain(|c| {
                    let used = c.open.calls.load(Ordering::Relaxed) > 0;
                    let fresh = now.saturating_sub(c.open.idle_since.load(Ordering::Relaxed)) < idle;
                    !c.send.is_closed() && (used || fresh)
                });
                // An address that somebody dials right now is held by them, too.
                !connections.is_empty() || Arc::strong_count(address) > 1
            });
            !all.is_empty()
        });
    }
}

impl Address {
    /// A place on a connection that has one. The first connections are filled first, so that
    /// the last ones can become idle.
    fn lease(self: &Arc<Self>) -> Option<Lease> {
        let mut connections = self.connections.lock();
        connections.retain(|c| !c.send.is_closed());
        let connection = connections.iter().find(|c| c.open.calls.load(Ordering::Relaxed) < MAX_STREAMS)?;
        connection.open.calls.fetch_add(1, Ordering::Relaxed);
        Some(Lease { send: connection.send.clone(), place: Place(connection.open.clone()), address: self.clone() })
    }
}

fn dial_error(address: &str, text: &str) -> TransportError {
    TransportError::unsent(
        grpc_code::UNAVAILABLE,
        format!("connection error: desc = \"transport: Error while dialing: dial tcp {address}: {text}\""),
    )
}
