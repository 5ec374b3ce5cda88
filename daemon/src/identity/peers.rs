//! mTLS between sidecars, both ends.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::uri::Scheme;
use mecha_core::invoke::PeerIdentity;
use mecha_identity::{Clients, Expect, explain_io, peer_id};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{LOG, Workload, control};
use crate::peer::{Connected, Dial, Dialled, Io};

/// What a client has for its handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// The namespace that an app has where nobody says one.
const DEFAULT_NAMESPACE: &str = "default";

/// Dials peers over mTLS; the app at the other end has to prove that it is the one called.
#[derive(Debug)]
pub struct PeerDial(pub Arc<Workload>);

#[async_trait]
impl Dial for PeerDial {
    async fn dial(&self, to: Dialled<'_>) -> io::Result<Box<dyn Io>> {
        self.0.usable().map_err(io::Error::other)?;
        let namespace = if to.namespace.is_empty() { DEFAULT_NAMESPACE } else { to.namespace };
        let expect = Expect::Workload { namespace: namespace.to_owned(), app_id: to.app_id.to_owned() };
        Ok(Box::new(control::connect(to.address, self.0.live(), expect).await?))
    }

    fn scheme(&self) -> Scheme {
        Scheme::HTTPS
    }
}

/// What the peer port does the handshake with.
#[must_use]
pub fn acceptor(workload: &Workload) -> TlsAcceptor {
    TlsAcceptor::from(Arc::new(workload.live().server_config(Clients::Required)))
}

/// The server's end: a connection that was accepted becomes one of a peer who is known, or
/// nothing. Clients without a certificate under the trust anchors fail at the handshake, which
/// takes ten seconds at most.
pub async fn accept<T>(acceptor: TlsAcceptor, stream: T) -> Option<(TlsStream<T>, Connected)>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let accepted = match timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)).await {
        Ok(accepted) => accepted.map_err(|e| explain_io(&e)),
        Err(_) => Err(format!("no handshake within {HANDSHAKE_LIMIT:?}")),
    };
    let known = accepted.and_then(|stream| {
        let id = peer_id(stream.get_ref().1.peer_certificates()).map_err(|e| e.to_string())?;
        // An id of another form is somebody, but no app.
        let identity = id.namespace().zip(id.app_id()).map(|(namespace, app_id)| PeerIdentity {
            trust_domain: id.trust_domain().to_owned(),
            namespace: namespace.to_owned(),
            app_id: app_id.to_owned(),
        });
        Ok((stream, Connected { from: None, identity }))
    });
    known.inspect_err(|e| tracing::warn!(target: LOG, "a connection to the peer port was refused: {e}")).ok()
}
