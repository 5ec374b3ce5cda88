//! A TCP proxy in front of a server that behaves as badly as networks do, by switch.

mod connection;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use self::connection::Connection;
use crate::ports::{free_port, listen};
use crate::wait::{DEADLINE, wait_until};

/// Who sent the bytes in question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who connected to the proxy.
    Client,
    /// Who the proxy connected to.
    Server,
}

/// What the proxy does with connections, those that stand and new ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// Passes everything on at once.
    #[default]
    Fine,
    /// Nobody listens, and what stands is reset.
    Refuse,
    /// Takes connections and moves no byte. What waits is passed on once this ends.
    Hang,
    /// What this side sends vanishes; the other direction works. A connection that lost bytes is
    /// reset once this ends, as no network heals a gap.
    Lose(Side),
    /// Resets what stands, and new connections as soon as they are taken.
    Reset,
    /// At most this many bytes a second in each direction of each connection; at least 1.
    Slow(u32),
    /// Ends a connection after this many bytes from one side, counted from its begin.
    CutAfter(Side, u64),
    /// Each byte arrives at least this much later.
    Latency(Duration),
}

/// A running proxy on a port of its own; it and its connections end with the value.
#[derive(Debug)]
pub struct FaultProxy {
    port: u16,
    weather: watch::Sender<Weather>,
    applied: watch::Receiver<u64>,
    counters: Arc<Counters>,
    server: JoinHandle<()>,
}

/// What connections follow.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    network: Network,
    /// Port of the server.
    server: u16,
    /// Connections with a lower number have lost their server without being told.
    stranded: u64,
    /// Counts changes.
    version: u64,
}

#[derive(Debug, Default)]
struct Counters {
    accepted: AtomicU64,
    standing: AtomicU64,
    from_client: AtomicU64,
    from_server: AtomicU64,
}

impl Side {
    /// The one who gets what this one sends.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

impl Counters {
    fn passed(&self, side: Side) -> &AtomicU64 {
        match side {
            Side::Client => &self.from_client,
            Side::Server => &self.from_server,
        }
    }
}

impl FaultProxy {
    /// A proxy to `127.0.0.1:server_port` that passes everything on. A server that must know the proxy's
    /// port first can be named later, by [`FaultProxy::aim`]; port 0 until then.
    pub async fn start(server_port: u16) -> Self {
        let port = free_port();
        let listener = listen(port).await;
        let weather = watch::Sender::new(Weather { server: server_port, ..Weather::default() });
        let (done, applied) = watch::channel(0);
        let counters = Arc::new(Counters::default());
        let serving = serve(port, listener, weather.subscribe(), done, Arc::clone(&counters));
        Self { port, weather, applied, counters, server: tokio::spawn(serving) }
    }

    /// The port that clients connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:port`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Changes the behaviour; new connections meet it when this returns.
    pub async fn set(&self, network: Network) {
        self.change(|weather| weather.network = network).await;
    }

    /// New connections go to this port.
    pub async fn aim(&self, server_port: u16) {
        self.change(|weather| weather.server = server_port).await;
    }

    /// Leaves every standing connection half open: its server is told that it ended, its client
    /// is told nothing and never hears anything again. New connections are as [`FaultProxy::set`] says.
    pub async fn strand(&self) {
        let next = self.accepted();
        self.change(|weather| weather.stranded = next).await;
    }

    /// Connections taken so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.counters.accepted.load(Ordering::SeqCst)
    }

    /// Connections that stand, the half-open ones included.
    #[must_use]
    pub fn standing(&self) -> u64 {
        self.counters.standing.load(Ordering::SeqCst)
    }

    /// Bytes passed on so far that this side sent.
    #[must_use]
    pub fn passed(&self, side: Side) -> u64 {
        self.counters.passed(side).load(Ordering::SeqCst)
    }

    async fn change(&self, edit: impl FnOnce(&mut Weather)) {
        let mut version = 0;
        self.weather.send_modify(|weather| {
            edit(weather);
            weather.version += 1;
            version = weather.version;
        });
        wait_until(DEADLINE, "the proxy to follow", || async { *self.applied.borrow() >= version }).await;
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Takes connections as the weather allows; they end with this future.
async fn serve(
    port: u16,
    listener: TcpListener,
    mut weather: watch::Receiver<Weather>,
    applied: watch::Sender<u64>,
    counters: Arc<Counters>,
) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let now = *weather.borrow_and_update();
        match (now.network, &listener) {
            (Network::Refuse, Some(_)) => listener = None,
            (Network::Refuse, None) | (_, Some(_)) => {}
            (_, None) => listener = Some(listen(port).await),
        }
        applied.send_replace(now.version);
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = weather.changed() => if changed.is_err() { return },
            Some(_) = connections.join_next() => {}
            accepted = accept => {
                // A client that left before it was taken.
                let Ok((client, _)) = accepted else { continue };
                let number = counters.accepted.fetch_add(1, Ordering::SeqCst);
                let connection = Connection::new(number, client, weather.clone(), Arc::clone(&counters));
                connections.spawn(connection.run());
            }
        }
    }
}
