//! Serving certificates that need no Secret: root and key are made in memory and never leave it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::crypto::ring::sign::any_ecdsa_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// Clocks of API servers may be so much behind ours.
const SKEW: Duration = Duration::from_secs(600);
/// Common names of our roots begin with this; the replica's name follows.
pub(crate) const ROOT_PREFIX: &str = "mecha-injector/";

/// Why no certificate can be made.
#[derive(Debug, thiserror::Error)]
#[error("no serving certificate can be made: {0}")]
pub struct CertificateError(String);

/// A root and the one certificate it has signed. The root's key is dropped with the making, so nothing else will
/// ever be signed by it.
#[derive(Clone)]
pub(crate) struct Generation {
    pub(crate) root: CertificateDer<'static>,
    pub(crate) not_after: SystemTime,
    key: Arc<CertifiedKey>,
}

impl Generation {
    /// For the replica `instance`, reached by `host`.
    pub(crate) fn make(instance: &str, host: &str, lifetime: Duration) -> Result<Self, CertificateError> {
        let wrong = |e: &dyn fmt::Display| CertificateError(e.to_string());
        let now = SystemTime::now();
        let (from, until) = (now - SKEW, now + lifetime);

        // P-256: API servers of some providers refuse Ed25519.
        let new_key = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| wrong(&e));
        let mut root = CertificateParams::default();
        root.distinguished_name.push(DnType::CommonName, format!("{ROOT_PREFIX}{instance}"));
        root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (root.not_before, root.not_after) = (from.into(), until.into());
        let root_key = new_key()?;
        let root_certificate = root.self_signed(&root_key).map_err(|e| wrong(&e))?;

        let mut leaf = CertificateParams::new(vec![host.to_owned()]).map_err(|e| wrong(&e))?;
        leaf.distinguished_name.push(DnType::CommonName, "mecha-injector");
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf.use_authority_key_identifier_extension = true;
        (leaf.not_before, leaf.not_after) = (from.into(), until.into());
        let leaf_key = new_key()?;
        let leaf_certificate = leaf.signed_by(&leaf_key, &Issuer::new(root, root_key)).map_err(|e| wrong(&e))?;

        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
        let signing = any_ecdsa_type(&der).map_err(|e| wrong(&e))?;
        Ok(Self {
            root: root_certificate.der().clone(),
            not_after: until,
            key: Arc::new(CertifiedKey::new(vec![leaf_certificate.der().clone()], signing)),
        })
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// The certificate that new connections get. Clones are the same.
#[derive(Clone)]
pub(crate) struct Serving(Arc<ArcSwap<CertifiedKey>>);

impl Serving {
    pub(crate) fn new(generation: &Generation) -> Self {
        Self(Arc::new(ArcSwap::new(generation.key.clone())))
    }

    pub(crate) fn switch(&self, generation: &Generation) {
        self.0.store(generation.key.clone());
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").finish_non_exhaustive()
    }
}
