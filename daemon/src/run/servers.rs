//! The servers of the process, and how they end.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper::{Request, Response};
use mecha_core::Tasks;
use tokio::time::{Instant, timeout, timeout_at};

use crate::ports;
use crate::serve::{Ending, Listener, ServerLimits, Stream, serve_each, serve_until};

/// How long HTTP/1 clients get to hear `Connection: close` before their idle connections are closed, and new
/// connections to say what they want.
pub(super) const FAREWELL: Duration = Duration::from_millis(250);

/// A group of servers that close together.
pub(super) struct Server {
    what: &'static str,
    accepting: Tasks,
    ending: Ending,
}

/// Everything that runs while the process does.
pub(super) struct Servers {
    /// API and public servers.
    pub(super) apis: Server,
    /// Peer server.
    pub(super) peers: Server,
    /// Metrics, until the very end.
    pub(super) metrics: Tasks,
    /// Socket files go away with these.
    pub(super) sockets: Vec<ports::SocketFile>,
}

impl Server {
    /// Serves with what `service` answers.
    pub(super) fn serve<S, B>(&self, name: &'static str, listener: Listener, service: S, limits: ServerLimits)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.accepting.spawn(name, serve_until(listener, service, limits, self.ending.clone()));
    }

    /// Serves with what `open` makes of each connection.
    pub(super) fn serve_each<O, F, T, S, B>(
        &self,
        name: &'static str,
        listener: Listener,
        open: O,
        limits: ServerLimits,
    ) where
        O: Fn(Stream) -> F + Send + Sync + 'static,
        F: Future<Output = Option<(T, S)>> + Send + 'static,
        T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.accepting.spawn(name, serve_each(listener, open, limits, self.ending.clone()));
    }

    /// Says goodbye to those who are connected and waits until they are gone, `deadline` at the latest. New connections
    /// are accepted meanwhile: an app that still works on a call may have to ask for something.
    async fn dismiss(&self, farewell: Duration, deadline: Instant) {
        self.ending.farewell.cancel();
        let connections = &self.ending.connections;
        if timeout(farewell, connections.ended()).await.is_err() {
            let _ = timeout_at(deadline, connections.shut_down()).await;
        }
    }

    /// Accepts no more, and lets those end who came after the goodbye.
    async fn close(&self, deadline: Instant) {
        self.ending.closed.cancel();
        self.accepting.ended().await;
        let Ending { connections, late, .. } = &self.ending;
        let all = async { tokio::join!(connections.ended(), late.ended()) };
        if timeout(FAREWELL, all).await.is_ok() {
            return;
        }
        let all = async { tokio::join!(connections.shut_down(), late.shut_down()) };
        if timeout_at(deadline, all).await.is_err() {
            tracing::warn!(target: "dapr.runtime", "{}: some calls did not end in time and are cut off", self.what);
        }
    }

    /// Leaves the sockets to a successor and ends what is connected here: `farewell` to hear of it, `drain` for calls
    /// in flight.
    pub(super) async fn leave(&self, farewell: Duration, drain: Duration) {
        self.ending.left.cancel();
        let deadline = Instant::now() + farewell + drain;
        self.dismiss(farewell, deadline).await;
        self.close(deadline).await;
    }
}

impl Servers {
    /// None yet.
    pub(super) fn new() -> Self {
        let server = |what| Server { what, accepting: Tasks::new(), ending: Ending::default() };
        let (apis, peers) = (server("API servers"), server("peer server"));
        Self { apis, peers, metrics: Tasks::new(), sockets: Vec::new() }
    }

    /// Leaves the socket files to a successor, who listens there.
    pub(super) fn leave_sockets(&mut self) {
        self.sockets.drain(..).for_each(ports::SocketFile::leave);
    }

    /// Closes the API and peer servers; calls in flight get `drain`.
    pub(super) async fn close(&self, drain: Duration) {
        let deadline = Instant::now() + drain;
        // Together, because a call from a peer may need the API before it ends.
        tokio::join!(self.apis.dismiss(FAREWELL, deadline), self.peers.dismiss(FAREWELL, deadline));
        tokio::join!(self.apis.close(deadline), self.peers.close(deadline));
    }

    /// Closes the metrics server once it has answered; it takes `limit` at most.
    pub(super) async fn close_metrics(&self, limit: Duration) {
        let _ = timeout(limit, self.metrics.shut_down()).await;
    }
}
