//! What proves who somebody is: SPIFFE ids, certificates, requests for them, trust bundles.

use mecha_identity::rustls::pki_types::CertificateDer;
use mecha_identity::rustls::pki_types::pem::PemObject as _;
use mecha_identity::{Bundle, CertificateRequest, SpiffeId, peer_id};

use crate::engine::{Checked, Target};

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "spiffe-id", words: &["spiffe://", "/ns/", "/", "..", ".", "%2f", ":", "@", "public"], check: id },
    Target {
        name: "trust-bundle",
        words: &["-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----\n", "-----", "\n"],
        check: bundle,
    },
    Target { name: "certificate", words: &["spiffe://", "\u{86}", "\u{3}U\u{1d}\u{11}", "\u{6}\u{3}U"], check: leaf },
    Target {
        name: "certificate-request",
        words: &["-----BEGIN CERTIFICATE REQUEST-----\n", "-----END CERTIFICATE REQUEST-----\n", "MI"],
        check: request,
    },
];

/// An id has one spelling, and its parts make it again.
fn id(bytes: &[u8]) -> Checked {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(false) };
    let Ok(id) = SpiffeId::parse(text) else { return Ok(false) };
    if id.as_str() != text {
        return Err(format!("{text:?} reads as {id}"));
    }
    if let Some((namespace, app_id)) = id.namespace().zip(id.app_id())
        && SpiffeId::workload(id.trust_domain(), namespace, app_id).as_ref() != Ok(&id)
    {
        return Err(format!("the parts of {id} make another id"));
    }
    Ok(true)
}

fn bundle(bytes: &[u8]) -> Checked {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(false) };
    let Ok(bundle) = Bundle::from_pem(text) else { return Ok(false) };
    match Bundle::from_pem(&bundle.to_pem()) {
        Ok(again) if again == bundle && again.digest() == bundle.digest() => Ok(true),
        other => Err(format!("a bundle that was read and written is {other:?}")),
    }
}

/// The name in a certificate, PEM or not, is an id or nothing.
fn leaf(bytes: &[u8]) -> Checked {
    let der = CertificateDer::from_pem_slice(bytes).unwrap_or_else(|_| CertificateDer::from(bytes.to_vec()));
    match peer_id(Some(&[der])) {
        Ok(found) if SpiffeId::parse(found.as_str()).as_ref() == Ok(&found) => Ok(true),
        Ok(found) => Err(format!("{found} is no id")),
        Err(_) => Ok(false),
    }
}

fn request(bytes: &[u8]) -> Checked {
    Ok(CertificateRequest::parse(bytes).is_ok())
}
