//! Accept loops: connections with limits, owned by a task group, ended by a drain.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use mecha_components_api::CancellationToken;
use mecha_core::Tasks;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

/// Time a client has to send the whole header block, from its first byte on.
const HEADER_READ_LIMIT: Duration = Duration::from_secs(10);
/// A kept connection without a request is closed after this time. Longer than the usual
/// client pool limits (Node 5 s, Go 90 s, Python for ever), so that clients close first.
const IDLE_LIMIT: Duration = Duration::from_secs(300);
/// Smallest limit of a header block: hyper's first read is as large, whatever it is told.
const MIN_HEADER_BYTES: usize = 8192;
/// What is read or written of an HTTP/1 body in one system call at most. Buffers grow to it only
/// where bodies fill them.
const HTTP1_BUFFER: usize = 64 * 1024;
/// Pause after a failed accept (out of file descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often an idle HTTP/2 connection is looked at, as a part of the time it may idle.
const IDLE_CHECKS: u32 = 8;
/// Largest HTTP/2 frame that is taken: a chunk of a body between sidecars with all that is around
/// it, so that it comes in one piece. Clients with smaller frames are served as well.
pub(crate) const MAX_FRAME: u32 = 128 * 1024;
/// Streams that one HTTP/2 peer may reset before the connection is given up (rapid reset).
const MAX_PENDING_RESETS: usize = 64;

/// A bound socket.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// Unix domain socket.
    Unix(UnixListener),
}

/// Protocol settings of one server.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// HTTP/1.1 header block, in bytes.
    pub header_bytes: usize,
    /// HTTP/2 header list, in bytes.
    pub header_list_bytes: u32,
    /// HTTP/2 streams per connection.
    pub streams: u32,
    /// HTTP/1.1 only.
    pub http1_only: bool,
    /// HTTP/2 only.
    pub http2_only: bool,
    /// Idle time after which an HTTP/2 peer is pinged, and how long its answer may take.
    pub ping: Option<(Duration, Duration)>,
    /// An HTTP/2 connection without a request gets its GOAWAY after this time.
    pub idle_http2: Duration,
    /// Streams of one HTTP/2 connection, over its whole life, that may end by a fault of the
    /// peer; then the connection ends. A long-lived one collects some by and by.
    pub faulty_streams: usize,
    /// Open connections at most; further ones wait in the backlog.
    pub connections: usize,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            header_bytes: MIN_HEADER_BYTES,
            header_list_bytes: 4 << 20,
            streams: 1000,
            http1_only: false,
            http2_only: false,
            ping: Some((Duration::from_secs(10), Duration::from_secs(5))),
            idle_http2: IDLE_LIMIT,
            faulty_streams: 1024,
            connections: 20_000,
        }
    }
}

/// How a server ends. Its connections are in two groups, so that the wait for those that were there before the farewell
/// has an end while others still come.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    /// Connections accepted before the farewell. When these stop, idle ones are closed.
    pub connections: Tasks,
    /// Connections accepted after it.
    pub late: Tasks,
    /// From here on HTTP/2 connections get their GOAWAY and HTTP/1 ones answer what still comes with
    /// `Connection: close`, so that a client whose next request is on its way never finds its connection cut. New ones
    /// are still accepted, because who works on a call in flight may have to make another for it.
    pub farewell: CancellationToken,
    /// From here on nothing is accepted but what waits in the kernel's queue already; late HTTP/2 connections get their
    /// GOAWAY.
    pub closed: CancellationToken,
    /// From here on nothing is accepted, because somebody else does.
    pub left: CancellationToken,
}

impl Ending {
    /// No more is accepted.
    async fn over(&self) {
        tokio::select! {
            () = self.closed.cancelled() => {}
            () = self.left.cancelled() => {}
        }
    }
}

/// Accepts until `tasks` stop; each connection then finishes what is in flight (GOAWAY,
/// `Connection: close`) and ends. `tasks.shut_down()` waits for them.
pub async fn serve<S, B>(listener: Listener, service: S, limits: ServerLimits, tasks: Tasks)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stop = tasks.stopping().clone();
    let ending =
        Ending { connections: tasks.clone(), late: tasks, farewell: stop.clone(), closed: stop.clone(), left: stop };
    serve_until(listener, service, limits, ending).await;
}

/// As [`serve`], and ends step by step.
pub async fn serve_until<S, B>(listener: Listener, service: S, limits: ServerLimits, ending: Ending)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let open = move |stream: Stream| std::future::ready(Some((stream, service.clone())));
    serve_each(listener, open, limits, ending).await;
}

/// As [`serve_until`], where `open` makes of each accepted connection what is read from and
/// written to, and its own service; or nothing, and the connection is closed. `open` has to
/// bound its time.
pub async fn serve_each<O, F, T, S, B>(listener: Listener, open: O, limits: ServerLimits, ending: Ending)
where
    O: Fn(Stream) -> F,
    F: Future<Output = Option<(T, S)>> + Send + 'static,
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let slots = Arc::new(Semaphore::new(limits.connections));
    let builder = Arc::new(builder(limits));
    let spawn = |stream, slot| {
        let late = ending.farewell.is_cancelled();
        let (tasks, goodbye) =
            if late { (&ending.late, &ending.closed) } else { (&ending.connections, &ending.farewell) };
        let closing =
            Closing { farewell: ending.farewell.clone(), goodbye: goodbye.clone(), cut: tasks.stopping().clone() };
        let served = connection(open(stream), slot, builder.clone(), limits, closing);
        tasks.spawn("connection", served);
    };
    loop {
        let slot = tokio::select! {
            slot = slots.clone().acquire_owned() => slot.ok(),
            () = ending.over() => break,
        };
        let accepted = tokio::select! {
            accepted = accept(&listener) => accepted,
            () = ending.over() => break,
        };
        match accepted {
            Ok(stream) => spawn(stream, slot),
            Err(e) => {
                tracing::warn!(target: "dapr.runtime", "accepting a connection failed, trying again: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    if ending.left.is_cancelled() {
        return;
    }
    // What waits in the kernel's queue has been told that it is connected; closing the listener would cut it off. The
    // runtime looks at its sockets first.
    tokio::task::yield_now().await;
    while let Ok(slot) = slots.clone().try_acquire_owned() {
        let waiting = tokio::select! {
            biased;
            accepted = accept(&listener) => accepted,
            () = std::future::ready(()) => return,
        };
        let Ok(stream) = waiting else { return };
        spawn(stream, Some(slot));
    }
}

/// What a connection follows.
struct Closing {
    /// Answers of HTTP/1 say that it closes.
    farewell: CancellationToken,
    /// HTTP/2 gets its GOAWAY.
    goodbye: CancellationToken,
    /// Idle ones are closed.
    cut: CancellationToken,
}

/// One connection, from what opens it to its end.
async fn connection<F, T, S, B>(
    opening: F,
    slot: Option<OwnedSemaphorePermit>,
    builder: Arc<auto::Builder<TokioExecutor>>,
    limits: ServerLimits,
    closing: Closing,
) where
    F: Future<Output = Option<(T, S)>> + Send + 'static,
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let _slot = slot;
    let opened = tokio::select! {
        biased;
        opened = opening => opened,
        () = closing.cut.cancelled() => None,
    };
    let Some((stream, service)) = opened else { return };
    let activity = Arc::new(Activity::default());
    let io = TokioIo::new(Watched::new(stream, activity.clone()));
    let service = Counted {
        inner: service,
        activity: activity.clone(),
        closing: closing.farewell.clone(),
        header_bytes: limits.header_bytes.max(MIN_HEADER_BYTES),
    };
    let conn = builder.serve_connection(io, service);
    let mut conn = std::pin::pin!(conn);
    tokio::select! {
        _ = conn.as_mut() => return,
        () = closing.goodbye.cancelled() => {}
        () = activity.http2_idle(limits.idle_http2) => {}
    }
    if !activity.http2.load(Ordering::Acquire) {
        tokio::select! {
            _ = conn.as_mut() => return,
            () = closing.cut.cancelled() => {}
        }
    }
    if limits.http2_only && !activity.http2.load(Ordering::Acquire) {
        // Nothing was asked, and hyper would wait for the client's first words.
        return;
    }
    conn.as_mut().graceful_shutdown();
    // Ends by itself or with the process; the drain bounds the wait.
    let _ = conn.await;
}

fn builder(limits: ServerLimits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    if limits.http1_only {
        builder = builder.http1_only();
    } else if limits.http2_only {
        builder = builder.http2_only();
    }
    builder
        .http1()
        .timer(TokioTimer::new())
        // The io wrapper bounds header reading; hyper's own timer would also close idle connections.
        .header_read_timeout(None)
        // A header block that is complete has its own limit; one that is not fits the buffer at most.
        .max_buf_size(limits.header_bytes.max(HTTP1_BUFFER));
    let mut h2 = builder.http2();
    h2.timer(TokioTimer::new())
        .max_header_list_size(limits.header_list_bytes)
        .max_concurrent_streams(limits.streams)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(limits.faulty_streams)
        // gRPC has no use for it, and metadata of an answer is what its service says.
        .auto_date_header(!limits.http2_only)
        .max_frame_size(MAX_FRAME)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20);
    if let Some((every, answer)) = limits.ping {
        h2.keep_alive_interval(every).keep_alive_timeout(answer);
    }
    builder
}

async fn accept(listener: &Listener) -> io::Result<Stream> {
    match listener {
        Listener::Tcp(l) => {
            let (stream, _) = l.accept().await?;
            // Small answers must not wait for more data.
            stream.set_nodelay(true)?;
            Ok(Stream::Tcp(stream))
        }
        Listener::Unix(l) => Ok(Stream::Unix(l.accept().await?.0)),
    }
}

/// An accepted connection.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(tokio::net::TcpStream),
    /// Unix domain socket.
    Unix(tokio::net::UnixStream),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// Nothing received since the last request.
    Idle,
    /// Some bytes of a header block.
    Header,
    /// A request is worked on; its body has limits of its own.
    Busy,
    /// HTTP/2 has its own keep-alive.
    Unwatched,
}

/// The requests of one connection.
#[derive(Default)]
struct Activity {
    /// Being worked on.
    busy: AtomicU32,
    /// Begun so far; tells of a request that began and ended between two reads.
    begun: AtomicU32,
    /// The client speaks HTTP/2.
    http2: AtomicBool,
}

impl Activity {
    /// Ends once an HTTP/2 client has had no request for `limit`, a little later at most.
    async fn http2_idle(&self, limit: Duration) {
        let (mut since, mut seen) = (Instant::now(), 0);
        loop {
            tokio::time::sleep(limit / IDLE_CHECKS).await;
            let begun = self.begun.load(Ordering::Acquire);
            if !self.http2.load(Ordering::Acquire) {
                if begun > 0 {
                    // HTTP/1: what reads from the connection watches it.
                    return std::future::pending().await;
                }
            } else if self.busy.load(Ordering::Acquire) > 0 || begun != seen {
                (since, seen) = (Instant::now(), begun);
            } else if since.elapsed() >= limit {
                return;
            }
        }
    }
}

pin_project! {
    /// Ends a connection that takes too long to send a header block, or idles too long.
    struct Watched<T> {
        #[pin]
        io: T,
        activity: Arc<Activity>,
        seen: u32,
        reading: Reading,
        fresh: bool,
        timer: Pin<Box<Sleep>>,
    }
}

impl<T> Watched<T> {
    fn new(io: T, activity: Arc<Activity>) -> Self {
        let timer = Box::pin(tokio::time::sleep(HEADER_READ_LIMIT));
        Self { io, activity, seen: 0, reading: Reading::Idle, fresh: true, timer }
    }
}

impl<T: AsyncRead> AsyncRead for Watched<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        if *this.reading != Reading::Unwatched {
            let begun = this.activity.begun.load(Ordering::Acquire);
            let served = std::mem::replace(this.seen, begun) != begun;
            if this.activity.busy.load(Ordering::Acquire) > 0 {
                *this.reading = Reading::Busy;
            } else if served || *this.reading == Reading::Busy {
                *this.reading = Reading::Idle;
                this.timer.as_mut().reset(Instant::now() + IDLE_LIMIT);
            }
        }
        let before = buf.filled().len();
        let polled = this.io.poll_read(cx, buf);
        if matches!(*this.reading, Reading::Unwatched | Reading::Busy) {
            return polled;
        }
        match polled {
            Poll::Ready(Ok(())) if buf.filled().len() > before => {
                if std::mem::take(this.fresh) && buf.filled()[before..].starts_with(b"PRI") {
                    *this.reading = Reading::Unwatched;
                    this.activity.http2.store(true, Ordering::Release);
                } else if *this.reading == Reading::Idle {
                    *this.reading = Reading::Header;
                    this.timer.as_mut().reset(Instant::now() + HEADER_READ_LIMIT);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Pending => {
                if this.timer.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                Poll::Pending
            }
            other => other,
        }
    }
}

impl<T: AsyncWrite> AsyncWrite for Watched<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.project().io.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().io.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// Counts the requests that a connection works on, so that [`Watched`] knows when it idles.
#[derive(Clone)]
struct Counted<S> {
    inner: S,
    activity: Arc<Activity>,
    closing: CancellationToken,
    /// Limit of an HTTP/1 header block.
    header_bytes: usize,
}

struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

pin_project! {
    struct CountedFuture<F> {
        // Nothing where the header block is over the limit.
        #[pin]
        inner: Option<F>,
        busy: Option<Busy>,
        closing: CancellationToken,
    }
}

pin_project! {
    /// A response body that keeps its connection busy until it is sent.
    struct CountedBody<B> {
        // Nothing where there is no body.
        #[pin]
        inner: Option<B>,
        busy: Option<Busy>,
    }
}

impl<S, B> Service<Request<Incoming>> for Counted<S>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
{
    type Response = Response<CountedBody<B>>;
    type Error = S::Error;
    type Future = CountedFuture<S::Future>;

    fn call(&self, req: Request<Incoming>) -> Self::Future {
        self.activity.busy.fetch_add(1, Ordering::AcqRel);
        self.activity.begun.fetch_add(1, Ordering::AcqRel);
        let fits = req.version() > Version::HTTP_11 || header_block(&req) <= self.header_bytes;
        CountedFuture {
            inner: fits.then(|| self.inner.call(req)),
            busy: Some(Busy(self.activity.clone())),
            closing: self.closing.clone(),
        }
    }
}

impl<F, B, E> Future for CountedFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<CountedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Some(inner) = this.inner.as_pin_mut() else {
            let mut res = Response::new(CountedBody { inner: None, busy: this.busy.take() });
            *res.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            res.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            return Poll::Ready(Ok(res));
        };
        inner.poll(cx).map_ok(|mut res| {
            let busy = this.busy.take();
            let http2 = busy.as_ref().is_some_and(|b| b.0.http2.load(Ordering::Acquire));
            if this.closing.is_cancelled() && !http2 {
                res.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            res.map(|inner| CountedBody { inner: Some(inner), busy })
        })
    }
}

impl<B: Body> Body for CountedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        match self.project().inner.as_pin_mut() {
            Some(inner) => inner.poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.as_ref().map_or_else(|| http_body::SizeHint::with_exact(0), Body::size_hint)
    }
}

/// Bytes of a request's header block as they are commonly written.
fn header_block<B>(req: &Request<B>) -> usize {
    const REQUEST_LINE: usize = "  HTTP/1.1\r\n\r\n".len();
    const FIELD: usize = ": \r\n".len();
    let target = req.uri().path_and_query().map_or(0, |path| path.as_str().len())
        + req.uri().authority().map_or(0, |authority| authority.as_str().len());
    let fields = req.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD);
    req.method().as_str().len() + target + REQUEST_LINE + fields.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn watched() -> (DuplexStream, Pin<Box<Watched<DuplexStream>>>, Arc<Activity>) {
        let (client, server) = duplex(1024);
        let activity = Arc::new(Activity::default());
        (client, Box::pin(Watched::new(server, activity.clone())), activity)
    }

    async fn elapsed_until_closed(server: &mut Pin<Box<Watched<DuplexStream>>>) -> Duration {
        let began = Instant::now();
        let mut buf = [0u8; 64];
        loop {
            match server.read(&mut buf).await {
                Ok(_) => {}
                Err(e) => {
                    assert_eq!(e.kind(), io::ErrorKind::TimedOut);
                    return began.elapsed();
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_that_drips_is_cut_off() {
        let (mut client, mut server, _) = watched();
        let drip = tokio::spawn(async move {
            loop {
                if client.write_all(b"x").await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        assert!(elapsed_until_closed(&mut server).await <= HEADER_READ_LIMIT + Duration::from_secs(1));
        drip.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_served_connection_may_idle_longer() {
        let (mut client, mut server, activity) = watched();
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut buf = [0u8; 64];
        assert!(server.read(&mut buf).await.unwrap() > 0);
        activity.begun.fetch_add(1, Ordering::AcqRel);
        let idle = elapsed_until_closed(&mut server).await;
        assert!(idle >= IDLE_LIMIT && idle < IDLE_LIMIT * 2, "{idle:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_request_does_not_end_its_connection() {
        let (mut client, mut server, activity) = watched();
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut buf = [0u8; 64];
        assert!(server.read(&mut buf).await.unwrap() > 0);
        activity.busy.fetch_add(1, Ordering::AcqRel);
        activity.begun.fetch_add(1, Ordering::AcqRel);
        let waited = tokio::time::timeout(IDLE_LIMIT * 4, server.read(&mut buf)).await;
        assert!(waited.is_err(), "the connection stays while a request is worked on");
        activity.busy.fetch_sub(1, Ordering::AcqRel);
        assert!(elapsed_until_closed(&mut server).await >= IDLE_LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn an_http2_connection_without_requests_ends() {
        let activity = Activity::default();
        activity.http2.store(true, Ordering::Release);
        let began = Instant::now();
        activity.http2_idle(IDLE_LIMIT).await;
        let idle = began.elapsed();
        assert!(idle >= IDLE_LIMIT && idle <= IDLE_LIMIT * 5 / 4, "{idle:?}");
        // A long request and a short one keep it.
        activity.busy.fetch_add(1, Ordering::AcqRel);
        assert!(tokio::time::timeout(IDLE_LIMIT * 4, activity.http2_idle(IDLE_LIMIT)).await.is_err());
        activity.busy.fetch_sub(1, Ordering::AcqRel);
        let idle = activity.http2_idle(IDLE_LIMIT);
        let mut idle = std::pin::pin!(idle);
        for _ in 0..10 {
            activity.begun.fetch_add(1, Ordering::AcqRel);
            assert!(tokio::time::timeout(IDLE_LIMIT / 2, idle.as_mut()).await.is_err());
        }
        // HTTP/1 is watched by what reads it.
        activity.http2.store(false, Ordering::Release);
        assert!(tokio::time::timeout(IDLE_LIMIT * 4, activity.http2_idle(IDLE_LIMIT)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn http2_is_left_to_its_own_pings() {
        let (mut client, mut server, _) = watched();
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut buf = [0u8; 64];
        assert!(server.read(&mut buf).await.unwrap() > 0);
        assert!(tokio::time::timeout(IDLE_LIMIT * 4, server.read(&mut buf)).await.is_err());
    }
}
