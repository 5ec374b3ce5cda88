//! A certificate chain with its key.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::sign::CertifiedKey;
use thiserror::Error;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::time::ASN1Time;

use crate::keys::KeyPair;
use crate::spiffe::SpiffeId;
use crate::verify::{PeerError, leaf_id};

/// Longest chain sent or taken.
const MAX_CHAIN: usize = 16;
/// Largest chain read, in bytes.
const MAX_PEM: usize = 256 * 1024;

/// Who this process is: its certificate, those that lead to a root, and the key.
pub struct Identity {
    id: SpiffeId,
    not_before: SystemTime,
    not_after: SystemTime,
    certified: Arc<CertifiedKey>,
}

/// Why a chain and a key are no identity.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// There is no certificate in it, or it is no PEM.
    #[error("no certificate chain in PEM")]
    Pem,
    /// It is longer than is taken.
    #[error("the certificate chain has more than {MAX_CHAIN} certificates or {MAX_PEM} bytes")]
    TooLong,
    /// The first certificate cannot be read or names no workload.
    #[error(transparent)]
    Leaf(#[from] PeerError),
    /// The first certificate is for another key.
    #[error("the certificate of {0} is for another key")]
    Key(SpiffeId),
    /// The key cannot sign TLS.
    #[error("the key cannot be used for TLS: {0}")]
    Tls(String),
}

impl Identity {
    /// Puts a chain in PEM, leaf first, together with its key. Whether the chain leads to a
    /// root is for the peers to say.
    ///
    /// # Errors
    /// The chain cannot be read, its leaf names no SPIFFE id, or belongs to another key.
    pub fn from_pem(chain: &str, key: &KeyPair) -> Result<Self, IdentityError> {
        if chain.len() > MAX_PEM {
            return Err(IdentityError::TooLong);
        }
        let mut certificates = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(chain.as_bytes()) {
            if certificates.len() == MAX_CHAIN {
                return Err(IdentityError::TooLong);
            }
            certificates.push(certificate.map_err(|_| IdentityError::Pem)?);
        }
        let leaf = certificates.first().ok_or(IdentityError::Pem)?;
        let id = leaf_id(leaf)?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| PeerError::Certificate)?;
        let validity = parsed.validity();
        let (not_before, not_after) = (system_time(validity.not_before), system_time(validity.not_after));
        let signing = any_supported_type(&key.der()).map_err(|e| IdentityError::Tls(e.to_string()))?;
        let certified = CertifiedKey::new(certificates, signing);
        certified.keys_match().map_err(|_| IdentityError::Key(id.clone()))?;
        Ok(Self { id, not_before, not_after, certified: Arc::new(certified) })
    }

    /// The id in the leaf.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// When the leaf begins to be valid.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// The last moment at which peers accept the leaf.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// What is left of it at `now`; nothing when it has ended.
    #[must_use]
    pub fn remaining(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }

    /// The chain in PEM, leaf first. It holds no secret.
    #[must_use]
    pub fn chain_pem(&self) -> String {
        self.certified.cert.iter().map(|der| pem(der)).collect()
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("id", &self.id).field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// One certificate in PEM.
pub(crate) fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = String::with_capacity(text.len() + text.len() / 64 + 64);
    out.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

pub(crate) fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = time.timestamp();
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    let moment = if seconds < 0 { epoch.checked_sub(distance) } else { epoch.checked_add(distance) };
    moment.unwrap_or(epoch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeyKind;
    use crate::testing::Ca;

    #[test]
    fn an_identity_knows_its_id_and_its_end() {
        let ca = Ca::new("root");
        let key = KeyPair::generate(KeyKind::Ed25519).unwrap();
        let chain = ca.sign(&key, &["spiffe://td/ns/shop/orders"], Duration::from_secs(3600));
        let identity = Identity::from_pem(&chain, &key).unwrap();
        assert_eq!(identity.id().as_str(), "spiffe://td/ns/shop/orders");
        let now = SystemTime::now();
        assert!(identity.not_before() <= now);
        let left = identity.remaining(now);
        assert!(left > Duration::from_secs(3500) && left <= Duration::from_secs(3601), "{left:?}");
        assert_eq!(identity.remaining(now + Duration::from_secs(7200)), Duration::ZERO);
        assert_eq!(identity.chain_pem().matches("BEGIN").count(), 1);
        assert!(Identity::from_pem(&identity.chain_pem(), &key).is_ok());
    }

    #[test]
    fn a_chain_that_does_not_fit_is_refused() {
        let ca = Ca::new("root");
        let key = KeyPair::generate(KeyKind::P256).unwrap();
        let other = KeyPair::generate(KeyKind::P256).unwrap();
        let hour = Duration::from_secs(3600);
        let refused = |chain: &str| Identity::from_pem(chain, &key).unwrap_err().to_string();
        let id = "spiffe://td/ns/a/b";
        assert!(refused(&ca.sign(&other, &[id], hour)).contains("is for another key"));
        assert!(refused("").contains("no certificate chain"));
        assert!(refused(&ca.sign(&key, &[], hour)).contains("no URI"));
        assert!(refused(&ca.sign(&key, &[id, "spiffe://td/ns/a/c"], hour)).contains("more than one URI"));
        assert!(refused(&ca.sign(&key, &["https://td/ns/a/c"], hour)).contains("begins with spiffe://"));
        assert!(refused(&ca.sign(&key, &[id], hour).repeat(MAX_CHAIN + 1)).contains("more than 16"));
    }
}
