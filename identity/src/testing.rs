//! An authority for tests. What fails here fails the test.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, PublicKeyData, SanType,
};

use crate::identity::Identity;
use crate::keys::{CertificateRequest, KeyKind, KeyPair};

/// Certificates begin this much in the past, for clocks differ.
const SKEW: Duration = Duration::from_secs(60);

/// A certificate authority with its key.
#[derive(Debug)]
pub struct Ca {
    chain: String,
    root: String,
    issuer: Issuer<'static, rcgen::KeyPair>,
}

impl Ca {
    /// A root that lasts an hour.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let now = SystemTime::now();
        Self::between(name, now - SKEW, now + Duration::from_secs(3600))
    }

    /// A root for a time of its own.
    #[must_use]
    pub fn between(name: &str, not_before: SystemTime, not_after: SystemTime) -> Self {
        let key = key();
        let params = authority(name, not_before, not_after);
        let root = params.self_signed(&key).expect("a root").pem();
        Self { chain: String::new(), root, issuer: Issuer::new(params, key) }
    }

    /// An authority below this one, which lasts an hour. Its certificate is part of the chains
    /// it signs.
    #[must_use]
    pub fn below(&self, name: &str) -> Self {
        let now = SystemTime::now();
        let key = key();
        let params = authority(name, now - SKEW, now + Duration::from_secs(3600));
        let certificate = params.signed_by(&key, &self.issuer).expect("an intermediate").pem();
        Self { chain: certificate + &self.chain, root: self.root.clone(), issuer: Issuer::new(params, key) }
    }

    /// The root in PEM.
    #[must_use]
    pub fn root_pem(&self) -> String {
        self.root.clone()
    }

    /// A chain for `key` with these URIs, which ends after `lifetime`.
    #[must_use]
    pub fn sign(&self, key: &KeyPair, uris: &[&str], lifetime: Duration) -> String {
        self.sign_key(key.signing(), uris, lifetime)
    }

    /// The answer to a certificate request.
    #[must_use]
    pub fn answer(&self, request: &CertificateRequest, uri: &str, lifetime: Duration) -> String {
        self.sign_key(request.public_key(), &[uri], lifetime)
    }

    /// An identity that lasts an hour.
    #[must_use]
    pub fn identity(&self, id: &str) -> Identity {
        self.lasting(id, Duration::from_secs(3600))
    }

    /// An identity that ends after `lifetime`; certificates know whole seconds.
    #[must_use]
    pub fn lasting(&self, id: &str, lifetime: Duration) -> Identity {
        let key = KeyPair::generate(KeyKind::P256).expect("a key");
        Identity::from_pem(&self.sign(&key, &[id], lifetime), &key).expect("an identity")
    }

    /// An identity whose time has passed.
    #[must_use]
    pub fn ended(&self, id: &str) -> Identity {
        let key = KeyPair::generate(KeyKind::P256).expect("a key");
        let now = SystemTime::now();
        let mut params = leaf(&[id], now - Duration::from_secs(10));
        params.not_before = (now - Duration::from_secs(20)).into();
        let chain = params.signed_by(key.signing(), &self.issuer).expect("a leaf").pem() + &self.chain;
        Identity::from_pem(&chain, &key).expect("an identity")
    }

    fn sign_key(&self, key: &impl PublicKeyData, uris: &[&str], lifetime: Duration) -> String {
        let params = leaf(uris, SystemTime::now() + lifetime);
        params.signed_by(key, &self.issuer).expect("a leaf").pem() + &self.chain
    }
}

fn key() -> rcgen::KeyPair {
    rcgen::KeyPair::generate().expect("a key")
}

fn authority(name: &str, not_before: SystemTime, not_after: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = not_before.into();
    params.not_after = not_after.into();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn leaf(uris: &[&str], not_after: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = (SystemTime::now() - SKEW).into();
    params.not_after = not_after.into();
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("a URI"))).collect();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}
