//! Signatures over bytes by a workload's key, judged by who made them.
//!
//! ECDSA P-256 with SHA-256, ASN.1 DER: the one algorithm of keys of this crate.

use std::time::SystemTime;

use rustls::SignatureScheme;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::ring::{ECDSA_P256_SHA256, ECDSA_P256_SHA384, ECDSA_P384_SHA256, ECDSA_P384_SHA384, ED25519};
use webpki::{EndEntityCert, KeyUsage};

use crate::bundle::Bundle;
use crate::identity::Identity;
use crate::spiffe::SpiffeId;
use crate::verify::leaf_id;

/// Issuers between a signer and an anchor; more make no sense.
const MAX_CHAIN: usize = 8;

/// Why a signature cannot be made, or is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// Another kind of key.
    #[error("the key does not sign with ECDSA P-256; signatures need such a key")]
    Key,
    /// The signing itself failed.
    #[error("the payload could not be signed: {0}")]
    Sign(String),
    /// The chain is no list of certificates.
    #[error("the chain of the signer cannot be read: {0}")]
    Chain(String),
    /// No anchor stands behind the signer at the time asked about.
    #[error("no trust anchor stands behind the signer: {0}")]
    Untrusted(String),
    /// Somebody else has signed.
    #[error("it is signed by {found} instead of {wanted}")]
    Signer {
        /// Who was to sign.
        wanted: SpiffeId,
        /// Whose certificate it is.
        found: SpiffeId,
    },
    /// The payload is not what was signed.
    #[error("the signature does not fit the payload")]
    Mismatch,
}

impl Identity {
    /// Signs `payload` with the key of this identity; the signature is ASN.1 DER. Send [`Identity::chain_pem`]
    /// along, so that it can be checked.
    ///
    /// # Errors
    /// The key is not of ECDSA P-256, or the source of randomness failed.
    pub fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, SignatureError> {
        let certified = self.certified();
        let scheme = &[SignatureScheme::ECDSA_NISTP256_SHA256];
        let signer = certified.key.choose_scheme(scheme).ok_or(SignatureError::Key)?;
        signer.sign(payload).map_err(|e| SignatureError::Sign(e.to_string()))
    }
}

/// Checks that `signer` has signed `payload`, and that a root of `bundle` stood behind it `at` that time.
///
/// `chain` is the signer's certificate and its issuers, PEM. For a signature that outlives the certificate,
/// `at` is the time it says it was made; whoever calls judges whether that is recent enough.
///
/// # Errors
/// It is not accepted; the error says why.
pub fn verify(
    payload: &[u8],
    signature: &[u8],
    chain: &[u8],
    bundle: &Bundle,
    signer: &SpiffeId,
    at: SystemTime,
) -> Result<(), SignatureError> {
    let unreadable = |e: &dyn std::fmt::Display| SignatureError::Chain(e.to_string());
    let chain = CertificateDer::pem_slice_iter(chain)
        .take(MAX_CHAIN)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| unreadable(&e))?;
    let (first, issuers) = chain.split_first().ok_or_else(|| unreadable(&"it holds no certificate"))?;
    let leaf = EndEntityCert::try_from(first).map_err(|e| unreadable(&e))?;
    let at = UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    leaf.verify_for_usage(
        &[ECDSA_P256_SHA256, ECDSA_P256_SHA384, ECDSA_P384_SHA256, ECDSA_P384_SHA384, ED25519],
        &bundle.anchors(at),
        issuers,
        at,
        KeyUsage::server_auth(),
        None,
        None,
    )
    .map_err(|e| SignatureError::Untrusted(e.to_string()))?;
    let found = leaf_id(first).map_err(|e| unreadable(&e))?;
    if found != *signer {
        return Err(SignatureError::Signer { wanted: signer.clone(), found });
    }
    leaf.verify_signature(ECDSA_P256_SHA256, payload, signature).map_err(|_| SignatureError::Mismatch)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::keys::{KeyKind, KeyPair};
    use crate::testing::Ca;

    const AGENT: &str = "spiffe://cluster.local/ns/mecha-system/dapr-operator";

    #[test]
    fn only_the_named_signer_under_a_known_root_is_believed() {
        let (known, unknown) = (Ca::new("known"), Ca::new("unknown"));
        let bundle = |ca: &Ca| Bundle::from_pem(&ca.root_pem()).unwrap();
        let agent = SpiffeId::parse(AGENT).unwrap();
        let now = SystemTime::now();
        let check = |payload: &[u8], signature: &[u8], chain: &str, bundle: &Bundle, at| {
            verify(payload, signature, chain.as_bytes(), bundle, &agent, at)
        };
        let identity = known.identity(AGENT);
        let (signature, chain) = (identity.sign(b"documents").unwrap(), identity.chain_pem());
        assert_eq!(check(b"documents", &signature, &chain, &bundle(&known), now), Ok(()));
        assert_eq!(check(b"document5", &signature, &chain, &bundle(&known), now), Err(SignatureError::Mismatch));
        assert_eq!(check(b"documents", b"", &chain, &bundle(&known), now), Err(SignatureError::Mismatch));
        let error = check(b"documents", &signature, "", &bundle(&known), now).unwrap_err();
        assert!(matches!(error, SignatureError::Chain(_)), "{error}");
        // A neighbour with a certificate of the same authority is no agent.
        let neighbour = known.identity("spiffe://public/ns/shop/cart");
        let forged = neighbour.sign(b"documents").unwrap();
        let error = check(b"documents", &forged, &neighbour.chain_pem(), &bundle(&known), now).unwrap_err();
        assert!(matches!(error, SignatureError::Signer { .. }), "{error}");
        // Nor is who takes its name under another authority.
        let impostor = unknown.identity(AGENT);
        let forged = impostor.sign(b"documents").unwrap();
        let error = check(b"documents", &forged, &impostor.chain_pem(), &bundle(&known), now).unwrap_err();
        assert!(matches!(error, SignatureError::Untrusted(_)), "{error}");
        let late = now + Duration::from_secs(7200);
        let error = check(b"documents", &signature, &chain, &bundle(&known), late).unwrap_err();
        assert!(matches!(error, SignatureError::Untrusted(_)), "{error}");
    }

    #[test]
    fn another_kind_of_key_does_not_sign() {
        let (authority, key) = (Ca::new("known"), KeyPair::generate(KeyKind::Ed25519).unwrap());
        let chain = authority.sign(&key, &[AGENT], Duration::from_secs(60));
        let identity = Identity::from_pem(&chain, &key).unwrap();
        assert_eq!(identity.sign(b"x"), Err(SignatureError::Key));
    }
}
