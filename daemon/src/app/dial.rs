//! Byte streams to a gRPC app, for proxied calls.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{AppTarget, insecure_tls};
use crate::peer::{Dial, Dialled, Io, TcpDial};

/// How the app's gRPC server is dialled: plain, or TLS without verification.
///
/// # Errors
/// The TLS settings cannot be made.
pub fn dial(target: &AppTarget) -> Result<Arc<dyn Dial>, String> {
    if !target.protocol.is_tls() {
        return Ok(Arc::new(TcpDial));
    }
    let mut config = insecure_tls::config()?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(TlsDial { connector: TlsConnector::from(Arc::new(config)), host: target.host.clone() }))
}

struct TlsDial {
    connector: TlsConnector,
    host: String,
}

impl std::fmt::Debug for TlsDial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsDial").field("host", &self.host).finish_non_exhaustive()
    }
}

#[async_trait]
impl Dial for TlsDial {
    async fn dial(&self, to: Dialled<'_>) -> io::Result<Box<dyn Io>> {
        let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
        let stream = TcpStream::connect(to.address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(self.connector.connect(name, stream).await?))
    }
}
