//! The roots of all replicas in one `caBundle`.
//!
//! Each replica adds its own and takes away what nobody needs: roots that have expired, and roots of an earlier
//! process of the same name, whose keys are gone. A replica that died for good leaves when its root expires.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::certificate::ROOT_PREFIX;

/// Most roots of replicas. Beyond, the one that expires first leaves; a living replica puts itself back.
const MOST: usize = 16;
const LINE: usize = 64;

/// `current` with exactly `own` for the replica `instance`, without what is over. Roots that are none of ours, such as
/// a chart's, stay. What cannot be read leaves: an API server that meets it could use none of the bundle.
pub(crate) fn merge(current: &[u8], instance: &str, own: &[CertificateDer<'static>], now: SystemTime) -> Vec<u8> {
    let own_name = format!("{ROOT_PREFIX}{instance}");
    let mut foreign = Vec::new();
    let mut ours = Vec::new();
    for der in CertificateDer::pem_slice_iter(current).filter_map(Result::ok) {
        let Some(root) = Root::read(&der) else { continue };
        if !root.name.starts_with(ROOT_PREFIX) {
            foreign.push(der);
        } else if root.name != own_name && root.until > seconds(now) {
            ours.push((root.until, der));
        }
    }
    ours.sort_by_key(|(until, _)| std::cmp::Reverse(*until));
    ours.truncate(MOST.saturating_sub(own.len()));
    // Of equal content whatever replica writes it, so that two of them do not take turns for ever.
    let mut all: Vec<CertificateDer<'_>> = ours.into_iter().map(|(_, der)| der).chain(own.iter().cloned()).collect();
    all.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
    all.dedup();
    foreign.iter().chain(&all).map(pem).collect::<String>().into_bytes()
}

struct Root {
    name: String,
    until: i64,
}

impl Root {
    fn read(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        Some(Self { name: name.unwrap_or_default().to_owned(), until: certificate.validity().not_after.timestamp() })
    }
}

fn seconds(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

fn pem(der: &CertificateDer<'_>) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    // Base64 is ASCII, so lines end between characters.
    for start in (0..text.len()).step_by(LINE) {
        pem.push_str(&text[start..text.len().min(start + LINE)]);
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::certificate::Generation;

    const HOUR: Duration = Duration::from_secs(3600);

    fn root(instance: &str, lifetime: Duration) -> CertificateDer<'static> {
        Generation::make(instance, "localhost", lifetime).unwrap().root
    }

    fn holds(bundle: &[u8], root: &CertificateDer<'_>) -> bool {
        CertificateDer::pem_slice_iter(bundle).any(|der| der.is_ok_and(|der| der == *root))
    }

    fn count(bundle: &[u8]) -> usize {
        CertificateDer::pem_slice_iter(bundle).count()
    }

    #[test]
    fn each_replica_adds_its_own_and_keeps_the_others() {
        let (a, b) = (root("a", HOUR), root("b", HOUR));
        let now = SystemTime::now();
        let first = merge(b"", "a", std::slice::from_ref(&a), now);
        let both = merge(&first, "b", std::slice::from_ref(&b), now);
        assert!(holds(&both, &a) && holds(&both, &b));
        assert_eq!(merge(&both, "a", std::slice::from_ref(&a), now), both, "who writes makes no difference");
        let next = root("a", HOUR);
        let during = merge(&both, "a", &[a.clone(), next.clone()], now);
        assert_eq!(count(&during), 3);
        let after = merge(&during, "a", std::slice::from_ref(&next), now);
        assert!(!holds(&after, &a) && holds(&after, &next) && holds(&after, &b));
    }

    #[test]
    fn a_restarted_replica_takes_the_place_of_its_former_self() {
        let (old, new) = (root("a", HOUR), root("a", HOUR));
        let now = SystemTime::now();
        let bundle = merge(&merge(b"", "a", &[old], now), "a", std::slice::from_ref(&new), now);
        assert_eq!(bundle, merge(b"", "a", &[new], now));
    }

    #[test]
    fn a_dead_replica_leaves_when_its_root_expires_and_never_more_than_sixteen_stay() {
        let now = SystemTime::now();
        let dead = root("dead", HOUR);
        let own = root("a", 3 * HOUR);
        let bundle = merge(b"", "dead", std::slice::from_ref(&dead), now);
        assert!(holds(&merge(&bundle, "a", std::slice::from_ref(&own), now), &dead));
        assert!(!holds(&merge(&bundle, "a", std::slice::from_ref(&own), now + 2 * HOUR), &dead));

        let mut crowd = Vec::new();
        for n in 0..20 {
            crowd = merge(&crowd, &format!("r{n}"), &[root(&format!("r{n}"), HOUR)], now);
        }
        let full = merge(&crowd, "a", std::slice::from_ref(&own), now);
        assert_eq!(count(&full), MOST);
        assert!(holds(&full, &own));
    }

    #[test]
    fn roots_of_others_stay_and_rubbish_leaves() {
        let now = SystemTime::now();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "the chart's");
        let foreign = params.self_signed(&key).unwrap();
        let mut bundle = foreign.pem().into_bytes();
        bundle.extend(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\nrubbish\n");
        let own = root("a", HOUR);
        let merged = merge(&bundle, "a", std::slice::from_ref(&own), now);
        assert_eq!(count(&merged), 2);
        assert!(holds(&merged, foreign.der()) && holds(&merged, &own));
    }
}
