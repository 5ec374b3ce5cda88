//! Private keys and the certificate requests made with them.

use std::fmt;

use rcgen::{CertificateParams, DistinguishedName, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SubjectPublicKeyInfo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use thiserror::Error;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;
use zeroize::Zeroizing;

/// Largest request read, in bytes.
const MAX_REQUEST: usize = 16 * 1024;

/// Kinds of keys that are made and accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// ECDSA over the curve P-256: every peer and every managed API server takes it.
    #[default]
    P256,
    /// Ed25519.
    Ed25519,
}

/// A private key. It is not shown by `Debug`.
pub struct KeyPair(rcgen::KeyPair);

/// Why there is no key.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The system's random source failed.
    #[error("a key could not be made: {0}")]
    Generate(String),
    /// The text is no private key in PEM.
    #[error("no private key in PEM (PKCS#8, or SEC1 for P-256)")]
    Pem,
    /// A key of another kind.
    #[error("only ECDSA P-256 and Ed25519 keys are accepted")]
    Kind,
    /// A certificate request could not be made.
    #[error("a certificate request could not be made: {0}")]
    Request(String),
}

impl KeyPair {
    /// Makes a new key.
    ///
    /// # Errors
    /// The system's random source failed.
    pub fn generate(kind: KeyKind) -> Result<Self, KeyError> {
        let algorithm = match kind {
            KeyKind::P256 => &PKCS_ECDSA_P256_SHA256,
            KeyKind::Ed25519 => &PKCS_ED25519,
        };
        rcgen::KeyPair::generate_for(algorithm).map(Self).map_err(|e| KeyError::Generate(e.to_string()))
    }

    /// Reads the first private key of a PEM text.
    ///
    /// # Errors
    /// None is there, or it is of a kind that is not accepted. The error never holds the text.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let der = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| KeyError::Pem)?;
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ED25519] {
            if let Ok(key) = rcgen::KeyPair::from_der_and_sign_algo(&der, algorithm) {
                return Ok(Self(key));
            }
        }
        Err(KeyError::Kind)
    }

    /// The key in PEM (PKCS#8): a secret.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }

    /// Which kind it is.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        if self.0.algorithm() == &PKCS_ED25519 { KeyKind::Ed25519 } else { KeyKind::P256 }
    }

    /// A certificate request in PEM, with an empty subject: the authority decides who the
    /// owner is.
    ///
    /// # Errors
    /// Signing failed.
    pub fn request_pem(&self) -> Result<String, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&self.0).and_then(|request| request.pem());
        request.map_err(|e| KeyError::Request(e.to_string()))
    }

    /// The key as certificates are signed with it.
    #[must_use]
    pub fn signing(&self) -> &rcgen::KeyPair {
        &self.0
    }

    pub(crate) fn der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.serialize_der()).into()
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({:?})", self.kind())
    }
}

/// A certificate request whose signature was checked: the sender holds the private key.
///
/// Subject and extensions of a request are wishes that nobody here grants: the certificate's
/// content is the authority's decision, only the key is taken.
#[derive(Clone, Debug)]
pub struct CertificateRequest {
    key: SubjectPublicKeyInfo,
    kind: KeyKind,
}

/// Why a certificate request is refused.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// It is larger than is read.
    #[error("the certificate request is larger than {MAX_REQUEST} bytes")]
    TooLarge,
    /// It is no request in PEM or DER.
    #[error("no certificate request (PKCS#10) in PEM or DER")]
    Encoding,
    /// The key is of another kind.
    #[error("the request's key is neither ECDSA P-256 nor Ed25519")]
    Key,
    /// The signature does not belong to the key.
    #[error("the request is not signed by the key it names")]
    Signature,
}

impl CertificateRequest {
    /// Reads a request in PEM, or in DER when it does not look like PEM.
    ///
    /// # Errors
    /// It cannot be read, its key is of a kind that is not accepted, or it is not signed by it.
    pub fn parse(request: &[u8]) -> Result<Self, RequestError> {
        if request.len() > MAX_REQUEST {
            return Err(RequestError::TooLarge);
        }
        if request.trim_ascii_start().starts_with(b"-----BEGIN") {
            let der = CertificateSigningRequestDer::from_pem_slice(request).map_err(|_| RequestError::Encoding)?;
            Self::parse_der(&der)
        } else {
            Self::parse_der(request)
        }
    }

    fn parse_der(der: &[u8]) -> Result<Self, RequestError> {
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| RequestError::Encoding)?;
        if !rest.is_empty() {
            return Err(RequestError::Encoding);
        }
        let key = SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw)
            .map_err(|_| RequestError::Key)?;
        let algorithm = rcgen::PublicKeyData::algorithm(&key);
        let kind = if algorithm == &PKCS_ECDSA_P256_SHA256 {
            KeyKind::P256
        } else if algorithm == &PKCS_ED25519 {
            KeyKind::Ed25519
        } else {
            return Err(RequestError::Key);
        };
        request.verify_signature().map_err(|_| RequestError::Signature)?;
        Ok(Self { key, kind })
    }

    /// The key that the certificate is to be for, as `rcgen` takes it.
    #[must_use]
    pub fn public_key(&self) -> &SubjectPublicKeyInfo {
        &self.key
    }

    /// The kind of that key.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        self.kind
    }
}

#[cfg(test)]
mod tests {
    use rcgen::PublicKeyData as _;

    use super::*;

    #[test]
    fn both_kinds_go_through_pem_and_a_request() {
        for kind in [KeyKind::P256, KeyKind::Ed25519] {
            let key = KeyPair::generate(kind).unwrap();
            assert_eq!(key.kind(), kind);
            let again = KeyPair::from_pem(&key.to_pem()).unwrap();
            assert_eq!(again.kind(), kind);
            let request = CertificateRequest::parse(key.request_pem().unwrap().as_bytes()).unwrap();
            assert_eq!(request.kind(), kind);
            assert_eq!(request.public_key().der_bytes(), again.signing().der_bytes());
        }
    }

    #[test]
    fn a_request_has_an_empty_subject_and_no_wishes() {
        let key = KeyPair::generate(KeyKind::default()).unwrap();
        let pem = key.request_pem().unwrap();
        assert!(pem.starts_with("-----BEGIN CERTIFICATE REQUEST-----"));
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (_, request) = X509CertificationRequest::from_der(&der).unwrap();
        assert_eq!(request.certification_request_info.subject.iter().count(), 0);
        assert!(request.requested_extensions().is_none_or(|mut e| e.next().is_none()));
        assert!(CertificateRequest::parse(&der).is_ok(), "DER is read as well");
    }

    #[test]
    fn requests_that_prove_nothing_are_refused() {
        let key = KeyPair::generate(KeyKind::default()).unwrap();
        let pem = key.request_pem().unwrap();
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
        let refused = |der: &[u8]| CertificateRequest::parse(der).map(|_| ()).unwrap_err();
        let mut forged = der.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(refused(&forged), RequestError::Signature);
        let mut longer = der.clone();
        longer.push(0);
        assert_eq!(refused(&longer), RequestError::Encoding);
        assert_eq!(refused(b""), RequestError::Encoding);
        assert_eq!(refused(&vec![b' '; MAX_REQUEST + 1]), RequestError::TooLarge);
        let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let other = CertificateParams::default().serialize_request(&other).unwrap();
        assert_eq!(refused(other.der()), RequestError::Key);
    }

    #[test]
    fn a_key_is_not_shown() {
        let key = KeyPair::generate(KeyKind::default()).unwrap();
        assert_eq!(format!("{key:?}"), "KeyPair(P256)");
        assert!(matches!(KeyPair::from_pem("secret"), Err(KeyError::Pem)));
        let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        assert!(matches!(KeyPair::from_pem(&other.serialize_pem()), Err(KeyError::Kind)));
    }
}
