//! Trust bundles: the roots that certificates must lead to.

use std::fmt::{self, Write as _};
use std::time::SystemTime;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use webpki::KeyUsage;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::identity::{Identity, pem, system_time};
use crate::verify::verify_chain;

/// Most roots of a bundle. A rotation has two or three; federated trust domains some more.
const MAX_ROOTS: usize = 256;
/// Largest bundle read, in bytes: what a ConfigMap can hold.
const MAX_PEM: usize = 1 << 20;

/// The roots in force, at least one, in the order they were given, each once.
#[derive(Clone, PartialEq, Eq)]
pub struct Bundle {
    roots: Vec<Root>,
}

#[derive(Clone, PartialEq, Eq)]
struct Root {
    der: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// Why a text is no trust bundle.
#[derive(Debug, Error)]
pub enum BundleError {
    /// There is no certificate in it.
    #[error("the trust bundle holds no certificate (expected PEM blocks of CERTIFICATE)")]
    Empty,
    /// It is larger than is read.
    #[error("the trust bundle is larger than {MAX_PEM} bytes")]
    TooLarge,
    /// It has more roots than are taken.
    #[error("the trust bundle holds more than {MAX_ROOTS} certificates")]
    TooMany,
    /// The PEM itself is broken.
    #[error("the trust bundle is no PEM: {0}")]
    Pem(String),
    /// A certificate, counted from 1, cannot be a root.
    #[error("certificate {0} of the trust bundle: {1}")]
    Certificate(usize, String),
}

impl Bundle {
    /// Reads PEM. Text between the blocks and blocks of other kinds are passed over.
    ///
    /// # Errors
    /// What is wrong with it, and with which certificate; a bundle is taken whole or not at all.
    pub fn from_pem(text: &str) -> Result<Self, BundleError> {
        if text.len() > MAX_PEM {
            return Err(BundleError::TooLarge);
        }
        let mut ders = Vec::new();
        for der in CertificateDer::pem_slice_iter(text.as_bytes()) {
            if ders.len() == MAX_ROOTS {
                return Err(BundleError::TooMany);
            }
            ders.push(der.map_err(|e| BundleError::Pem(e.to_string()))?);
        }
        Self::from_ders(ders)
    }

    /// A bundle of root certificates in DER.
    ///
    /// # Errors
    /// None were given, too many, or one that cannot be a root.
    pub fn from_ders(ders: Vec<CertificateDer<'static>>) -> Result<Self, BundleError> {
        if ders.len() > MAX_ROOTS {
            return Err(BundleError::TooMany);
        }
        let mut roots: Vec<Root> = Vec::with_capacity(ders.len());
        for (index, der) in ders.into_iter().enumerate() {
            if !roots.iter().any(|root| root.der == der) {
                roots.push(Root::new(der).map_err(|e| BundleError::Certificate(index + 1, e))?);
            }
        }
        if roots.is_empty() { Err(BundleError::Empty) } else { Ok(Self { roots }) }
    }

    /// Both bundles' roots: what is trusted while one follows the other.
    ///
    /// # Errors
    /// They are too many together.
    pub fn union(&self, other: &Self) -> Result<Self, BundleError> {
        let mut roots = self.roots.clone();
        roots.extend(other.roots.iter().filter(|root| !self.roots.contains(root)).cloned());
        if roots.len() > MAX_ROOTS { Err(BundleError::TooMany) } else { Ok(Self { roots }) }
    }

    /// The roots in PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.roots.iter().map(|root| pem(&root.der)).collect()
    }

    /// The roots in DER.
    pub fn ders(&self) -> impl ExactSizeIterator<Item = &CertificateDer<'static>> {
        self.roots.iter().map(|root| &root.der)
    }

    /// SHA-256 over the roots, in hexadecimal. The order of the roots does not matter.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut each: Vec<[u8; 32]> = self.roots.iter().map(|root| Sha256::digest(&root.der).into()).collect();
        each.sort_unstable();
        let mut hash = Sha256::new();
        each.iter().for_each(|digest| hash.update(digest));
        hash.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
            // A String takes all that is written to it.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// How many roots there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.roots.len()
    }

    /// Never: there is always a root.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// When the last of the roots ends.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.roots.iter().map(|root| root.not_after).max().unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Whether `identity` leads to one of the roots at `now`: whether peers with this bundle
    /// would let it in.
    #[must_use]
    pub fn trusts(&self, identity: &Identity, now: SystemTime) -> bool {
        let Ok(since) = now.duration_since(SystemTime::UNIX_EPOCH) else { return false };
        let now = UnixTime::since_unix_epoch(since);
        let algorithms = ring::default_provider().signature_verification_algorithms;
        let chain = &identity.certified().cert;
        let Some((leaf, rest)) = chain.split_first() else { return false };
        verify_chain(self, algorithms, leaf, rest, now, KeyUsage::client_auth()).is_ok()
    }

    /// The anchors that are valid at `now`.
    pub(crate) fn anchors(&self, now: UnixTime) -> Vec<TrustAnchor<'_>> {
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(now.as_secs());
        let valid = self.roots.iter().filter(|root| root.not_before <= now && now <= root.not_after);
        valid.map(|root| root.anchor.clone()).collect()
    }
}

impl Root {
    fn new(der: CertificateDer<'static>) -> Result<Self, String> {
        let (rest, parsed) = X509Certificate::from_der(&der).map_err(|e| format!("no X.509 certificate: {e}"))?;
        if !rest.is_empty() {
            return Err("bytes follow the certificate".to_owned());
        }
        if !parsed.is_ca() {
            return Err("it is not the certificate of an authority (basic constraints: CA)".to_owned());
        }
        let validity = parsed.validity();
        let (not_before, not_after) = (system_time(validity.not_before), system_time(validity.not_after));
        let anchor = webpki::anchor_from_trusted_cert(&der).map_err(|e| e.to_string())?.to_owned();
        Ok(Self { anchor, not_before, not_after, der })
    }
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bundle({} roots, {})", self.roots.len(), self.digest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Ca;

    #[test]
    fn several_roots_are_read_each_once() {
        let (a, b) = (Ca::new("a"), Ca::new("b"));
        let text = format!("# old\n{}\n# new\n{}{}", a.root_pem(), b.root_pem(), a.root_pem());
        let bundle = Bundle::from_pem(&text).unwrap();
        assert_eq!(bundle.len(), 2);
        assert_eq!(Bundle::from_pem(&bundle.to_pem()).unwrap(), bundle);
        assert!(bundle.not_after() > SystemTime::now());
    }

    #[test]
    fn a_union_has_what_both_have() {
        let (a, b, c) = (Ca::new("a"), Ca::new("b"), Ca::new("c"));
        let old = Bundle::from_pem(&(a.root_pem() + &b.root_pem())).unwrap();
        let new = Bundle::from_pem(&(c.root_pem() + &b.root_pem())).unwrap();
        let both = old.union(&new).unwrap();
        assert_eq!(both.len(), 3);
        assert_eq!(both.digest(), new.union(&old).unwrap().digest());
        assert_ne!(both.digest(), old.digest());
        assert_eq!(both.digest().len(), 64);
    }

    #[test]
    fn a_bundle_tells_whom_it_trusts() {
        let (a, b) = (Ca::new("root"), Ca::new("root"));
        let bundle = Bundle::from_pem(&a.root_pem()).unwrap();
        let now = SystemTime::now();
        let id = "spiffe://td/ns/a/b";
        assert!(bundle.trusts(&a.identity(id), now) && bundle.trusts(&a.below("issuer").identity(id), now));
        assert!(!bundle.trusts(&b.identity(id), now) && !bundle.trusts(&a.ended(id), now));
    }

    #[test]
    fn what_is_no_bundle_is_told() {
        let error = |text: &str| Bundle::from_pem(text).unwrap_err().to_string();
        assert!(error("").contains("holds no certificate"));
        assert!(error("-----BEGIN CERTIFICATE-----\nAAAA\n").contains("no PEM"));
        let ca = Ca::new("a");
        let leaf = ca.identity("spiffe://td/ns/a/b");
        let leaf = leaf.chain_pem();
        assert!(
            error(&(ca.root_pem() + &leaf)).contains("certificate 2 of the trust bundle: it is not the certificate of")
        );
        let junk = pem(b"\x30\x03junk");
        assert!(error(&junk).contains("certificate 1 of the trust bundle"));
        assert!(error(&" ".repeat(MAX_PEM + 1)).contains("larger than"));
        assert!(error("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").contains("no certificate"));
    }
}
