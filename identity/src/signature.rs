//! Signatures over bytes by a workload's key, judged by who made them.
//!
//! ECDSA P-256 with SHA-256, ASN.1 DER: the one algorithm of keys of this crate.

use rustls::SignatureScheme;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::sign::SigningKey;
use webpki::ring::{ECDSA_P256_SHA256, ECDSA_P256_SHA384, ECDSA_P384_SHA256, ECDSA_P384_SHA384, ED25519};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

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
    #[error("it is signed by {found:?} instead of {wanted:?}")]
    Signer {
        /// Who was to sign.
        wanted: String,
        /// Whose certificate it is: all its URI names.
        found: Vec<String>,
    },
    /// The payload is not what was signed.
    #[error("the signature does not fit the payload")]
    Mismatch,
}

/// Signs `payload`; the signature is ASN.1 DER.
///
/// # Errors
/// The key is not of ECDSA P-256, or the source of randomness failed.
pub fn sign(key: &dyn SigningKey, payload: &[u8]) -> Result<Vec<u8>, SignatureError> {
    let signer = key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]).ok_or(SignatureError::Key)?;
    signer.sign(payload).map_err(|e| SignatureError::Sign(e.to_string()))
}

/// Checks that the workload with the SPIFFE id `signer` has signed `payload`, and that one of `anchors`
/// stood behind it `at` that time.
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
    anchors: &[CertificateDer<'_>],
    signer: &str,
    at: UnixTime,
) -> Result<(), SignatureError> {
    let chain = CertificateDer::pem_slice_iter(chain)
        .take(MAX_CHAIN)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| SignatureError::Chain(format!("{e:?}")))?;
    let (first, issuers) =
        chain.split_first().ok_or_else(|| SignatureError::Chain("it holds no certificate".to_owned()))?;
    let leaf = EndEntityCert::try_from(first).map_err(|e| SignatureError::Chain(e.to_string()))?;
    let anchors: Vec<_> = anchors.iter().filter_map(|anchor| anchor_from_trusted_cert(anchor).ok()).collect();
    leaf.verify_for_usage(
        &[ECDSA_P256_SHA256, ECDSA_P256_SHA384, ECDSA_P384_SHA256, ECDSA_P384_SHA384, ED25519],
        &anchors,
        issuers,
        at,
        KeyUsage::server_auth(),
        None,
        None,
    )
    .map_err(|e| SignatureError::Untrusted(e.to_string()))?;
    let found: Vec<String> = leaf.valid_uri_names().map(str::to_owned).collect();
    if found != [signer] {
        return Err(SignatureError::Signer { wanted: signer.to_owned(), found });
    }
    leaf.verify_signature(ECDSA_P256_SHA256, payload, signature).map_err(|_| SignatureError::Mismatch)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
    use rustls::crypto::ring::sign::any_supported_type;
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

    use super::*;

    const AGENT: &str = "spiffe://cluster.local/ns/mecha-system/dapr-operator";

    fn authority() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn workload(id: &str, authority: &CertifiedIssuer<'static, KeyPair>) -> (String, std::sync::Arc<dyn SigningKey>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        let certificate = params.signed_by(&key, authority).unwrap();
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        (certificate.pem(), any_supported_type(&der).unwrap())
    }

    #[test]
    fn only_the_named_signer_under_a_known_anchor_is_believed() {
        let (known, unknown) = (authority(), authority());
        let anchors = [known.der().clone()];
        let now = UnixTime::now();
        let (chain, key) = workload(AGENT, &known);
        let signature = sign(&*key, b"documents").unwrap();
        let check = |payload: &[u8], signature: &[u8], chain: &str, anchors: &[CertificateDer<'_>], at| {
            verify(payload, signature, chain.as_bytes(), anchors, AGENT, at)
        };
        assert_eq!(check(b"documents", &signature, &chain, &anchors, now), Ok(()));
        assert_eq!(check(b"document5", &signature, &chain, &anchors, now), Err(SignatureError::Mismatch));
        assert_eq!(check(b"documents", b"", &chain, &anchors, now), Err(SignatureError::Mismatch));
        assert!(matches!(check(b"documents", &signature, "", &anchors, now), Err(SignatureError::Chain(_))));
        // A neighbour with a certificate of the same authority is no agent.
        let (neighbour, key) = workload("spiffe://public/ns/shop/cart", &known);
        let forged = sign(&*key, b"documents").unwrap();
        assert!(matches!(check(b"documents", &forged, &neighbour, &anchors, now), Err(SignatureError::Signer { .. })));
        // Nor is who names itself so under another authority.
        let (impostor, key) = workload(AGENT, &unknown);
        let forged = sign(&*key, b"documents").unwrap();
        assert!(matches!(check(b"documents", &forged, &impostor, &anchors, now), Err(SignatureError::Untrusted(_))));
        assert!(matches!(check(b"documents", &signature, &chain, &[], now), Err(SignatureError::Untrusted(_))));
        // Certificates without dates end in the year 4096.
        let late = UnixTime::since_unix_epoch(Duration::from_secs(100_000_000_000));
        assert!(matches!(check(b"documents", &signature, &chain, &anchors, late), Err(SignatureError::Untrusted(_))));
    }

    #[test]
    fn another_kind_of_key_does_not_sign() {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        assert_eq!(sign(&*any_supported_type(&der).unwrap(), b"x"), Err(SignatureError::Key));
    }
}
