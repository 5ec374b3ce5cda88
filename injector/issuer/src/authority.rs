//! A root and its key: makes itself, and signs certificates of workloads.

use std::fmt;
use std::time::{Duration, SystemTime};

use mecha_identity::Bundle;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;

/// How long before now certificates begin, for clocks that are behind ours.
pub(crate) const CLOCK_SKEW: Duration = Duration::from_secs(15 * 60);

/// Why something cannot be signed, or a root not be used. Never holds key material.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// A certificate or key that is no such thing.
    #[error("{what} cannot be read: {why}")]
    Unreadable {
        /// Which part.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The key belongs to another certificate.
    #[error("the key of the root does not belong to its certificate")]
    KeyMismatch,
    /// It signs nothing any more.
    #[error("the root has ended; delete the Secret {} to begin anew", crate::ROOT_SECRET)]
    Ended,
    /// A name that certificates cannot carry.
    #[error("'{0}' is no name that a certificate can carry")]
    Name(String),
    /// The signing itself failed.
    #[error("a certificate could not be signed: {0}")]
    Sign(String),
}

/// A certificate that was just signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// PEM.
    pub(crate) pem: String,
    /// Until when it is valid, whole seconds.
    pub(crate) not_after: SystemTime,
}

/// Names of a certificate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names<'n> {
    /// The one SPIFFE id.
    pub(crate) uri: &'n str,
    /// Further names; only services of the control part have some.
    pub(crate) dns: &'n [String],
}

/// The certificate of a root, without its key.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Root {
    /// PEM, one certificate.
    pub(crate) pem: String,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    spki: Vec<u8>,
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Root").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// A root with its key.
pub(crate) struct Authority {
    root: Root,
    issuer: rcgen::Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Root {
    /// Reads one certificate, PEM. It has to be of an authority.
    pub(crate) fn read(pem: &str) -> Result<Self, AuthorityError> {
        match <[Self; 1]>::try_from(Self::read_all(pem)?) {
            Ok([root]) => Ok(root),
            Err(all) => Err(unreadable("the certificate of the root", &format!("there are {} of them", all.len()))),
        }
    }

    /// Reads all certificates of a text, in their order.
    pub(crate) fn read_all(pem: &str) -> Result<Vec<Self>, AuthorityError> {
        let unreadable = |why: &dyn fmt::Display| unreadable("the certificate of a root", why);
        let bundle = Bundle::from_pem(pem).map_err(|e| unreadable(&e))?;
        let read = |der: &CertificateDer<'_>| {
            let (_, parsed) = x509_parser::parse_x509_certificate(der).map_err(|e| unreadable(&e))?;
            let alone = Bundle::from_ders(vec![der.clone().into_owned()]).map_err(|e| unreadable(&e))?;
            Ok(Self {
                pem: alone.to_pem(),
                not_before: time(parsed.validity().not_before.timestamp()),
                not_after: time(parsed.validity().not_after.timestamp()),
                spki: parsed.public_key().raw.to_vec(),
            })
        };
        bundle.ders().map(read).collect()
    }
}

fn unreadable(what: &'static str, why: &dyn fmt::Display) -> AuthorityError {
    AuthorityError::Unreadable { what, why: why.to_string() }
}

impl Authority {
    /// A new root with a new P-256 key.
    pub(crate) fn generate(trust_domain: &str, now: SystemTime, life: Duration) -> Result<Self, AuthorityError> {
        let sign = |e: rcgen::Error| AuthorityError::Sign(e.to_string());
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(sign)?;
        let serial = uuid::Uuid::new_v4();
        let mut params = CertificateParams::default();
        params.not_before = (now - CLOCK_SKEW).into();
        params.not_after = (now + life).into();
        params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
        // Two roots must not have one name: those who verify look for the issuer by its name.
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, trust_domain);
        params.distinguished_name.push(DnType::CommonName, format!("mecha root {:.8}", serial.simple()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(sign)?;
        let root = Root::read(&certificate.pem())?;
        Ok(Self { root, issuer: rcgen::Issuer::new(params, key) })
    }

    /// The root with this certificate and key, PEM. The key has to be ECDSA P-256, as PKCS #8.
    pub(crate) fn read(certificate: &str, key: &str) -> Result<Self, AuthorityError> {
        let root = Root::read(certificate)?;
        let key = KeyPair::from_pkcs8_pem_and_sign_algo(key, &rcgen::PKCS_ECDSA_P256_SHA256).map_err(|_| {
            // What the parser says could hold bytes of the key.
            AuthorityError::Unreadable { what: "the key of the root", why: "it is no P-256 key in PKCS #8".to_owned() }
        })?;
        if key.subject_public_key_info() != root.spki {
            return Err(AuthorityError::KeyMismatch);
        }
        let issuer =
            rcgen::Issuer::from_ca_cert_pem(&root.pem, key).map_err(|e| AuthorityError::Sign(e.to_string()))?;
        Ok(Self { root, issuer })
    }

    /// Its certificate.
    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    /// Its key, PEM; for its Secret alone.
    pub(crate) fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A certificate for `key`, for as long as `ttl` and never past the root's own end.
    pub(crate) fn sign(
        &self,
        key: &impl PublicKeyData,
        names: Names<'_>,
        now: SystemTime,
        ttl: Duration,
    ) -> Result<Leaf, AuthorityError> {
        let not_after = whole_seconds((now + ttl).min(self.root.not_after));
        if not_after <= now {
            return Err(AuthorityError::Ended);
        }
        let not_before = (now - CLOCK_SKEW).max(self.root.not_before);
        let mut params = CertificateParams::default();
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        params.serial_number = Some(SerialNumber::from_slice(uuid::Uuid::new_v4().as_bytes()));
        params.distinguished_name = DistinguishedName::new();
        let name = |text: &str| text.try_into().map_err(|_| AuthorityError::Name(text.to_owned()));
        params.subject_alt_names = vec![SanType::URI(name(names.uri)?)];
        for dns in names.dns {
            params.subject_alt_names.push(SanType::DnsName(name(dns)?));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer).map_err(|e| AuthorityError::Sign(e.to_string()))?;
        Ok(Leaf { pem: certificate.pem(), not_after })
    }
}

/// Seconds since 1970 as a time; before that is 1970.
pub(crate) fn time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

/// Seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Certificates know whole seconds; what is answered must not be later than what they say.
fn whole_seconds(at: SystemTime) -> SystemTime {
    time(seconds(at))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const NAMES: Names<'_> = Names { uri: "spiffe://public/ns/shop/orders", dns: &[] };

    #[test]
    fn a_leaf_ends_no_later_than_its_root_and_begins_no_earlier() {
        let now = SystemTime::now();
        let authority = Authority::generate("cluster.local", now, DAY).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = authority.sign(&key, NAMES, now, 10 * DAY).unwrap();
        assert_eq!(leaf.not_after, authority.root().not_after);
        let (_, block) = x509_parser::pem::parse_x509_pem(leaf.pem.as_bytes()).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&block.contents).unwrap();
        assert_eq!(time(parsed.validity().not_after.timestamp()), leaf.not_after);
        assert_eq!(time(parsed.validity().not_before.timestamp()), authority.root().not_before);
        assert!(!parsed.is_ca());
        assert_eq!(parsed.subject().iter_attributes().count(), 0);
        let usage = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && usage.server_auth && !usage.any);
        assert!(matches!(authority.sign(&key, NAMES, now + DAY, DAY), Err(AuthorityError::Ended)));
    }

    #[test]
    fn a_root_is_read_back_and_signs_as_before() {
        let now = SystemTime::now();
        let made = Authority::generate("cluster.local", now, DAY).unwrap();
        let read = Authority::read(&made.root().pem, &made.key_pem()).unwrap();
        assert_eq!(read.root(), made.root());
        let leaf = read.sign(&KeyPair::generate().unwrap(), NAMES, now, DAY).unwrap();
        let (_, block) = x509_parser::pem::parse_x509_pem(leaf.pem.as_bytes()).unwrap();
        let (_, leaf) = x509_parser::parse_x509_certificate(&block.contents).unwrap();
        let (_, block) = x509_parser::pem::parse_x509_pem(made.root().pem.as_bytes()).unwrap();
        let (_, root) = x509_parser::parse_x509_certificate(&block.contents).unwrap();
        leaf.verify_signature(Some(root.public_key())).unwrap();
        assert_eq!(leaf.issuer(), root.subject());
    }

    #[test]
    fn a_key_of_another_root_is_refused_and_not_shown() {
        let now = SystemTime::now();
        let one = Authority::generate("cluster.local", now, DAY).unwrap();
        let other = Authority::generate("cluster.local", now, DAY).unwrap();
        assert_eq!(Authority::read(&one.root().pem, &other.key_pem()).unwrap_err(), AuthorityError::KeyMismatch);
        let broken = Authority::read(&one.root().pem, &other.key_pem().replace("MIG", "MIX")).unwrap_err();
        assert!(!broken.to_string().contains("MIX"), "{broken}");
        let leaf = one.sign(&KeyPair::generate().unwrap(), NAMES, now, DAY).unwrap();
        assert!(Authority::read(&leaf.pem, &one.key_pem()).is_err(), "a leaf is no authority");
    }
}
