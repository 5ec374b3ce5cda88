//! Connections to the control plane: mTLS with the exact id of who is expected.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use mecha_identity::rustls::pki_types::ServerName;
use mecha_identity::{Expect, Live, explain_io};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

use super::Workload;
use crate::cli::Options;

/// Limit of a connection, handshake included.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Keep-alive: a silent control plane is noticed within the sum.
const PING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// How the control plane at `--control-plane-address` is reached: over mTLS with the identity
/// in force at the time of the connection, or in plain text where this process has none.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    route: Route,
    secured: Option<(Arc<Workload>, Expect)>,
}

impl ControlPlane {
    /// The way to the operator's port, where documents and `mecha.v1.Delivery` are served.
    ///
    /// # Errors
    /// The address, or the id of the control plane, is none.
    pub fn operator(options: &Options, workload: Option<Arc<Workload>>) -> Result<Self, String> {
        Self::new(&options.control_plane.address, "dapr-operator", workload)
    }

    /// The way to `part` of the control plane at `address`.
    ///
    /// # Errors
    /// The address, or the id of the control plane, is none.
    pub fn new(address: &str, part: &str, workload: Option<Arc<Workload>>) -> Result<Self, String> {
        let route = Route::new(address, workload.is_some())
            .map_err(|e| format!("--control-plane-address {address:?} is no address: {e}"))?;
        let secured = workload.map(|workload| {
            let expect = workload.settings.control(part)?;
            Ok::<_, String>((workload, expect))
        });
        Ok(Self { route, secured: secured.transpose()? })
    }

    /// `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        self.route.address()
    }

    /// Whether the connection is mTLS.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.secured.is_some()
    }

    /// A new connection, within ten seconds. Where it breaks, the channel connects anew by
    /// itself with the next call; who wants to know of breaks makes a new one.
    ///
    /// # Errors
    /// Why there is none, in words for a log line.
    pub async fn connect(&self) -> Result<Channel, String> {
        let tls = match &self.secured {
            Some((workload, expect)) => {
                workload.usable()?;
                Some(Tls { live: workload.live().clone(), expect: expect.clone() })
            }
            None => None,
        };
        match timeout(CONNECT_LIMIT, self.route.connect(tls)).await {
            Ok(result) => result,
            Err(_) => Err(format!("no connection within {CONNECT_LIMIT:?}")),
        }
    }
}

/// An address that calls go to.
#[derive(Clone, Debug)]
pub(super) struct Route {
    address: Arc<str>,
    endpoint: Endpoint,
}

/// Who is trusted and expected at the other end.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    pub(super) live: Arc<Live>,
    pub(super) expect: Expect,
}

impl Route {
    pub(super) fn new(address: &str, secure: bool) -> Result<Self, String> {
        // The connector below encrypts; an endpoint told of TLS would want to do it itself.
        let mut endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| e.to_string())?;
        if endpoint.uri().port_u16().is_none() {
            return Err("expected host:port".to_owned());
        }
        if secure {
            endpoint = endpoint.origin(format!("https://{address}").parse::<Uri>().map_err(|e| e.to_string())?);
        }
        let endpoint = endpoint
            .connect_timeout(CONNECT_LIMIT)
            .http2_keep_alive_interval(PING.0)
            .keep_alive_timeout(PING.1)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        Ok(Self { address: address.into(), endpoint })
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// A new connection; the error says why there is none, with its causes.
    pub(super) async fn connect(&self, tls: Option<Tls>) -> Result<Channel, String> {
        let connected = match tls {
            None => self.endpoint.connect().await,
            Some(tls) => self.endpoint.connect_with_connector(Connector { address: self.address.clone(), tls }).await,
        };
        connected.map_err(|e| describe(&e))
    }
}

/// Makes TLS streams to one address.
#[derive(Clone, Debug)]
struct Connector {
    address: Arc<str>,
    tls: Tls,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { address, tls } = self.clone();
        Box::pin(async move { connect(&address, &tls.live, tls.expect).await.map(TokioIo::new) })
    }
}

/// A TLS stream to `address`, where `expect` has proved to be.
pub(super) async fn connect(address: &str, live: &Arc<Live>, expect: Expect) -> io::Result<TlsStream<TcpStream>> {
    let name = server_name(address);
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let connector = TlsConnector::from(Arc::new(live.client_config(expect)));
    connector.connect(name, stream).await.map_err(|e| io::Error::new(e.kind(), explain_io(&e)))
}

/// What the handshake says of the host; certificates are not compared with it.
fn server_name(address: &str) -> ServerName<'static> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    ServerName::try_from(host.to_owned())
        .unwrap_or_else(|_| ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()))
}

/// An error with its causes.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text.push_str(": ");
        text.push_str(&e.to_string());
        cause = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_address_has_a_server_name() {
        for (address, name) in [
            ("host:1", "host"),
            ("10.0.0.1:1", "10.0.0.1"),
            ("[::1]:1", "::1"),
            ("a_b.c:1", "a_b.c"),
            ("?:1", "0.0.0.0"),
        ] {
            assert_eq!(server_name(address).to_str(), name);
        }
    }

    #[test]
    fn an_address_needs_a_port() {
        assert!(Route::new("host:80", false).is_ok() && Route::new("host:80", true).is_ok());
        for wrong in ["", "host", "host:port", "ho st:80", "http://host:80"] {
            assert!(Route::new(wrong, true).is_err(), "{wrong}");
        }
    }
}
