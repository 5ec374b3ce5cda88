//! The port that sidecars connect to: mutual TLS, and who a caller is.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use mecha_apiserver::Tasks;
use mecha_apiserver::trace::Tracer;
use mecha_identity::{Clients, Live, explain_io, peer_id};
use mecha_proto::delivery::delivery_server::DeliveryServer;
use mecha_proto::operator::operator_server::OperatorServer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Status};

use crate::delivery::Sets;
use crate::desk::Caller;
use crate::metrics::{Metrics, Refusal};
use crate::operator::{Documents, receiver_stream};
use crate::sidecars::Sidecars;
use crate::world::World;

/// A handshake that takes longer is none.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A silent sidecar is noticed within the sum.
const PING: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(10));
/// Streams and calls of one connection at a time; a sidecar needs about ten.
const MAX_STREAMS: u32 = 64;
/// Bytes on their way to one connection.
const WINDOW: u32 = 256 << 10;
/// A connection is made again after so long, so that no certificate is believed for ever.
const MAX_AGE: (Duration, Duration) = (Duration::from_secs(4 * 3600), Duration::from_secs(10));
/// Largest message from a sidecar; a report of a few hundred entries.
const MAX_REQUEST: usize = 1 << 20;
/// Largest message to a sidecar; the same as it takes.
const MAX_ANSWER: usize = 64 << 20;
/// What connections may take to end by themselves.
const DRAIN: Duration = Duration::from_secs(5);
/// Pause after the system refused to hand out a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What all services of the port share.
pub(crate) struct Served {
    pub(crate) world: Arc<World>,
    pub(crate) sidecars: Arc<Sidecars>,
    pub(crate) live: Arc<Live>,
    pub(crate) metrics: Metrics,
    pub(crate) tracer: Tracer,
    pub(crate) tasks: Tasks,
    pub(crate) stop: CancellationToken,
}

/// Who sent a request.
pub(crate) fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| Status::unauthenticated("the connection has no certificate of a workload"))
}

/// Takes connections until everything is to end; then streams end, and connections with them.
pub(crate) async fn serve(listener: TcpListener, connections: usize, served: Arc<Served>) {
    let (sender, receiver) = mpsc::channel(16);
    let stop = served.stop.clone();
    let documents = Documents::new(served.clone());
    let sets = Sets::new(served.clone());
    served.tasks.run("accept", accept(listener, connections, served.clone(), sender));
    let server = Server::builder()
        .http2_keepalive_interval(Some(PING.0))
        .http2_keepalive_timeout(Some(PING.1))
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_connection_age(MAX_AGE.0)
        .max_connection_age_grace(MAX_AGE.1)
        .add_service(
            OperatorServer::new(documents).max_decoding_message_size(MAX_REQUEST).max_encoding_message_size(MAX_ANSWER),
        )
        .add_service(
            DeliveryServer::new(sets).max_decoding_message_size(MAX_REQUEST).max_encoding_message_size(MAX_ANSWER),
        );
    let incoming = receiver_stream::<io::Result<Connection>>(receiver);
    let stopped = stop.clone();
    let serving = server.serve_with_incoming_shutdown(incoming, stop.cancelled_owned());
    let late = async {
        stopped.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        ended = serving => if let Err(error) = ended {
            tracing::error!(%error, "the port for sidecars has ended");
        },
        // Of a sidecar that reads nothing.
        () = late => tracing::warn!("connections of sidecars are cut that did not end by themselves"),
    }
}

async fn accept(
    listener: TcpListener,
    connections: usize,
    served: Arc<Served>,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let acceptor = TlsAcceptor::from(Arc::new(served.live.server_config(Clients::Required)));
    let permits = Arc::new(Semaphore::new(connections));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            served.metrics.refused(Refusal::Limit);
            continue;
        };
        let (acceptor, ready, metrics) = (acceptor.clone(), ready.clone(), served.metrics.clone());
        served.tasks.run("handshake", async move {
            match tokio::time::timeout(HANDSHAKE, handshake(acceptor, stream, permit)).await {
                Ok(Ok(connection)) => drop(ready.send(Ok(connection)).await),
                Ok(Err((refusal, why))) => refused(&metrics, refusal, from, &why),
                Err(_) => refused(&metrics, Refusal::Handshake, from, "it took too long"),
            }
        });
    }
}

fn refused(metrics: &Metrics, refusal: Refusal, from: SocketAddr, why: &str) {
    metrics.refused(refusal);
    tracing::debug!(%from, why, "a connection is refused");
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    permit: OwnedSemaphorePermit,
) -> Result<Connection, (Refusal, String)> {
    stream.set_nodelay(true).map_err(|e| (Refusal::Handshake, e.to_string()))?;
    let stream = acceptor.accept(stream).await.map_err(|e| (Refusal::Handshake, explain_io(&e)))?;
    let id = peer_id(stream.get_ref().1.peer_certificates()).map_err(|e| (Refusal::Identity, e.to_string()))?;
    let (Some(namespace), Some(app_id)) = (id.namespace(), id.app_id()) else {
        return Err((Refusal::Identity, format!("{id} is no workload")));
    };
    let caller = Caller { namespace: namespace.to_owned(), app_id: app_id.to_owned() };
    Ok(Connection { stream, caller, _permit: permit })
}

/// A connection of a known caller.
struct Connection {
    stream: TlsStream<TcpStream>,
    caller: Caller,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
