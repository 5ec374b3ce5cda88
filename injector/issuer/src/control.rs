//! Certificates of the control part itself, signed in process.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mecha_apiserver::Tasks;
use mecha_identity::{Identity, KeyKind, KeyPair, Live, SpiffeId};

use crate::IssuerError;
use crate::authority::Names;
use crate::metrics::Metrics;
use crate::roots::Roots;

/// Pause after a renewal that failed.
const RETRY: Duration = Duration::from_secs(10);
/// Shortest time between two renewals.
const SHORTEST: Duration = Duration::from_millis(100);
/// How often it is said how long the certificate still holds.
const TELL: Duration = Duration::from_secs(60);
const DAY: f64 = 24.0 * 3600.0;

/// A certificate for `id` with a key of its own.
pub(crate) fn certificate(roots: &Roots, id: &SpiffeId, dns: &[String]) -> Result<Identity, IssuerError> {
    let unusable = |e: &dyn std::fmt::Display| IssuerError::Own(format!("certificate of {id}: {e}"));
    let key = KeyPair::generate(KeyKind::P256).map_err(|e| unusable(&e))?;
    let leaf = roots.sign(key.signing(), Names { uri: id.as_str(), dns }, SystemTime::now())?;
    Identity::from_pem(&leaf.pem, &key).map_err(|e| unusable(&e))
}

/// Keeps `live` current: a new certificate at two thirds of the life of the old one and whenever another root
/// signs, and the bundle whenever it changes.
pub(crate) fn keep(
    live: Arc<Live>,
    roots: Arc<Roots>,
    id: SpiffeId,
    dns: Vec<String>,
    metrics: Arc<Metrics>,
    tasks: &Tasks,
) {
    tasks.run("certificate of the control part", async move {
        let mut bundle = roots.bundle();
        bundle.borrow_and_update();
        let mut end = roots.end();
        loop {
            let wait = live.identity().map_or(RETRY, |identity| {
                let days = identity.remaining(SystemTime::now()).as_secs_f64() / DAY;
                metrics.control_certificate(id.app_id().unwrap_or_default(), days);
                until_renewal(&identity)
            });
            tokio::select! {
                changed = bundle.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    live.set_bundle(bundle.borrow_and_update().bundle.as_ref().clone());
                    // A former root leaves the bundle only after its last leaf; this one could go on, but a peer
                    // that begins now may know the new root alone.
                    if roots.end() == end {
                        continue;
                    }
                    end = roots.end();
                }
                () = tokio::time::sleep(wait.min(TELL)) => {
                    if wait > TELL {
                        continue;
                    }
                }
            }
            match certificate(&roots, &id, &dns) {
                Ok(identity) => live.set_identity(identity),
                Err(error) => {
                    tracing::error!(%error, "the control part's own certificate could not be renewed; it is tried again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    });
}

/// Two thirds of its life after it was made, which is when it begins or later.
fn until_renewal(identity: &Identity) -> Duration {
    let now = SystemTime::now();
    let begin = identity.not_before() + crate::authority::CLOCK_SKEW;
    let life = identity.not_after().duration_since(begin).unwrap_or_default();
    let renewal = begin + life.mul_f64(2.0 / 3.0);
    renewal.duration_since(now).unwrap_or_default().max(SHORTEST)
}
