//! What a certificate request may hold: a key that it proves to have, and nothing else. Names, usages and
//! times are the authority's to say.

use rcgen::SubjectPublicKeyInfo;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ED25519};
use x509_parser::prelude::FromDer as _;

/// Longest request; one with a P-256 key has about 300 bytes.
const MAX_BYTES: usize = 4096;

/// Why a request is refused: what is wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It is no request at all.
    #[error("the certificate request cannot be read: {0}; send one PKCS #10 request as PEM")]
    Unreadable(String),
    /// It asks for more than a certificate for a key.
    #[error("the certificate request asks for {0}; leave subject and extensions empty, the authority fills them in")]
    Widens(String),
    /// A key that peers do not take.
    #[error("the key of the certificate request is {0}; use ECDSA P-256 or Ed25519")]
    Key(String),
    /// Whoever sends it does not show that the key is theirs.
    #[error("the signature of the certificate request does not fit its key")]
    Signature,
}

/// The key of a request that keeps the rules.
pub(crate) fn key_of(pem: &[u8]) -> Result<SubjectPublicKeyInfo, RequestError> {
    let unreadable = |why: &dyn ToString| RequestError::Unreadable(why.to_string());
    if pem.len() > MAX_BYTES {
        return Err(RequestError::Unreadable(format!("it has more than {MAX_BYTES} bytes")));
    }
    let (rest, block) = x509_parser::pem::parse_x509_pem(pem).map_err(|e| unreadable(&e))?;
    if block.label != "CERTIFICATE REQUEST" {
        return Err(RequestError::Unreadable("it is PEM of something else".to_owned()));
    }
    if !rest.trim_ascii().is_empty() {
        return Err(RequestError::Unreadable("something follows it".to_owned()));
    }
    let (rest, request) = X509CertificationRequest::from_der(&block.contents).map_err(|e| unreadable(&e))?;
    if !rest.is_empty() {
        return Err(RequestError::Unreadable("bytes follow it".to_owned()));
    }
    let info = &request.certification_request_info;
    if let Some(attribute) = info.subject.iter_attributes().next() {
        return Err(RequestError::Widens(format!("a subject ({})", name(attribute.attr_type()))));
    }
    if let Some(attribute) = info.attributes().first() {
        return Err(RequestError::Widens(match attribute.parsed_attribute() {
            ParsedCriAttribute::ExtensionRequest(asked) => match asked.extensions.first() {
                Some(extension) => format!("an extension ({})", name(&extension.oid)),
                None => "extensions".to_owned(),
            },
            _ => format!("an attribute ({})", name(&attribute.oid)),
        }));
    }
    let algorithm = &info.subject_pki.algorithm;
    let curve = algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
    let fits = algorithm.algorithm == OID_SIG_ED25519
        || algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve.as_ref() == Some(&OID_EC_P256);
    if !fits {
        return Err(RequestError::Key(match curve {
            Some(curve) => format!("of {} on {}", name(&algorithm.algorithm), name(&curve)),
            None => format!("of {}", name(&algorithm.algorithm)),
        }));
    }
    request.verify_signature().map_err(|_| RequestError::Signature)?;
    SubjectPublicKeyInfo::from_der(info.subject_pki.raw).map_err(|e| unreadable(&e))
}

/// The short name of an object identifier, where it has one.
fn name(oid: &x509_parser::oid_registry::Oid<'_>) -> String {
    match x509_parser::oid_registry::OidRegistry::default().with_all_crypto().with_x509().get(oid) {
        Some(entry) => entry.sn().to_owned(),
        None => oid.to_id_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

    use rcgen::{
        BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, PublicKeyData as _, SanType,
    };

    use super::*;

    fn bare() -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
    }

    fn request(params: &CertificateParams, key: &KeyPair) -> String {
        params.serialize_request(key).unwrap().pem().unwrap()
    }

    #[test]
    fn a_bare_request_with_a_key_that_peers_take_is_accepted() {
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let found = key_of(request(&bare(), &key).as_bytes()).unwrap();
            assert_eq!(found.subject_public_key_info(), key.subject_public_key_info());
        }
    }

    #[test]
    fn whatever_would_widen_the_certificate_is_refused_by_name() {
        let key = KeyPair::generate().unwrap();
        let with = |change: &dyn Fn(&mut CertificateParams)| {
            let mut params = bare();
            change(&mut params);
            key_of(request(&params, &key).as_bytes()).unwrap_err()
        };
        let san = |name: SanType| with(&|p| p.subject_alt_names = vec![name.clone()]).to_string();
        assert!(san(SanType::DnsName("a.b".try_into().unwrap())).contains("subjectAltName"));
        assert!(san(SanType::URI("spiffe://public/ns/shop/cart".try_into().unwrap())).contains("subjectAltName"));
        let ca = with(&|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)).to_string();
        assert!(ca.contains("basicConstraints"), "{ca}");
        let usage = with(&|p| p.insert_extended_key_usage(rcgen::ExtendedKeyUsagePurpose::CodeSigning));
        assert!(matches!(&usage, RequestError::Widens(what) if what.contains("extendedKeyUsage")), "{usage}");
        for (kind, said) in [(DnType::CommonName, "commonName"), (DnType::OrganizationName, "organizationName")] {
            let subject = with(&|p| p.distinguished_name.push(kind.clone(), "system:masters")).to_string();
            assert!(subject.contains(said), "{subject}");
        }
    }

    #[test]
    fn other_keys_and_foreign_signatures_are_refused() {
        let large = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let refused = key_of(request(&bare(), &large).as_bytes()).unwrap_err().to_string();
        assert!(refused.contains("secp384r1"), "{refused}");
        let key = KeyPair::generate().unwrap();
        let der = bare().serialize_request(&key).unwrap().der().to_vec();
        let mut forged = der.clone();
        *forged.last_mut().unwrap() ^= 1;
        let pem = |der: &[u8]| {
            use base64::Engine as _;
            let body = base64::engine::general_purpose::STANDARD.encode(der);
            format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n")
        };
        assert!(key_of(pem(&der).as_bytes()).is_ok());
        assert_eq!(key_of(pem(&forged).as_bytes()), Err(RequestError::Signature));
        let trailing = [der.as_slice(), &[0]].concat();
        assert!(matches!(key_of(pem(&trailing).as_bytes()), Err(RequestError::Unreadable(_))));
        let two = format!("{}{}", pem(&der), pem(&der));
        assert!(matches!(key_of(two.as_bytes()), Err(RequestError::Unreadable(_))));
        for text in ["", "no", "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"] {
            assert!(matches!(key_of(text.as_bytes()), Err(RequestError::Unreadable(_))), "{text}");
        }
    }
}
