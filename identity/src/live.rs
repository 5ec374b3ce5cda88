//! The bundle and the identity in use, and the TLS configurations that read them.

use std::fmt;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};

use crate::bundle::Bundle;
use crate::identity::Identity;
use crate::verify::{ClientVerifier, Expect, ServerVerifier};

/// Which clients a server lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Those with a certificate below the roots.
    Required,
    /// Those, and clients that show none. A certificate that is shown must be good.
    Optional,
    /// All: none is asked for a certificate. For the authority itself.
    Anybody,
}

/// The bundle and the identity that are in use now. Whoever replaces one changes all
/// handshakes from then on, and none of the connections that are open.
pub struct Live {
    bundle: ArcSwap<Bundle>,
    identity: ArcSwapOption<Identity>,
    provider: Arc<CryptoProvider>,
}

impl Live {
    /// Trusts `bundle` and has no identity yet: it can call servers that ask for none.
    #[must_use]
    pub fn new(bundle: Bundle) -> Arc<Self> {
        Arc::new(Self {
            bundle: ArcSwap::from_pointee(bundle),
            identity: ArcSwapOption::empty(),
            provider: Arc::new(ring::default_provider()),
        })
    }

    /// The roots in force.
    #[must_use]
    pub fn bundle(&self) -> Arc<Bundle> {
        self.bundle.load_full()
    }

    /// Replaces the roots.
    pub fn set_bundle(&self, bundle: Bundle) {
        self.bundle.store(Arc::new(bundle));
    }

    /// The identity shown to peers, if there is one yet.
    #[must_use]
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.identity.load_full()
    }

    /// Replaces the identity.
    pub fn set_identity(&self, identity: Identity) {
        self.identity.store(Some(Arc::new(identity)));
    }

    /// For calls to the one who is expected; shows the identity in use to a server that asks.
    /// ALPN is `h2`; change the field for another. The server name that is dialled with does
    /// not matter: ids are what is compared.
    #[must_use]
    pub fn client_config(self: &Arc<Self>, expect: Expect) -> ClientConfig {
        let verifier =
            ServerVerifier { live: self.clone(), expect, algorithms: self.provider.signature_verification_algorithms };
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider ring has TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(Shown(self.clone())));
        // A resumed session skips the checks, so it would outlive its certificates and roots.
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    /// For a server. A handshake fails while there is no identity. ALPN is `h2`; change the
    /// field for another.
    #[must_use]
    pub fn server_config(self: &Arc<Self>, clients: Clients) -> ServerConfig {
        let builder = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider ring has TLS 1.3");
        let builder = match clients {
            Clients::Anybody => builder.with_no_client_auth(),
            Clients::Required | Clients::Optional => builder.with_client_cert_verifier(Arc::new(ClientVerifier {
                live: self.clone(),
                required: clients == Clients::Required,
                algorithms: self.provider.signature_verification_algorithms,
            })),
        };
        let mut config = builder.with_cert_resolver(Arc::new(Shown(self.clone())));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("bundle", &self.bundle).field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// Shows the identity in use.
#[derive(Debug)]
struct Shown(Arc<Live>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.identity.load().as_ref().map(|identity| identity.certified())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _roots: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.identity.load().as_ref().map(|identity| identity.certified())
    }

    fn has_certs(&self) -> bool {
        self.0.identity.load().is_some()
    }
}

#[cfg(test)]
mod tests;
