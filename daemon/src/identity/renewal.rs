//! Keeps the identity alive: the first certificate, its successors, and the trust anchors.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use mecha_components_api::CancellationToken;
use mecha_core::metrics::Metric;
use mecha_identity::{Identity, Live};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::anchors::Anchors;
use super::kept::Kept;
use super::sentry::{Failure, Sentry, Signed};
use super::{LOG, Pace, Workload};

/// Longest sleep between two looks at the clock: it may jump, and the time that a machine was
/// asleep does not count otherwise.
const LOOK: Duration = Duration::from_secs(30);
/// Shortest pause between two questions to the authority, whatever lifetimes it gives.
const SHORTEST: Duration = Duration::from_millis(20);
/// Certificates that last less are not told of at the usual log level.
const SHORT_LIVED: Duration = Duration::from_secs(60);

/// What a start comes to.
pub(super) struct Begun {
    pub(super) live: Arc<Live>,
    /// What is left of the certificate.
    pub(super) lifetime: Duration,
    /// Why the certificate is one that was kept.
    pub(super) failure: Option<String>,
}

/// The first certificate, with the tries that `pace` allows.
pub(super) async fn begin(
    sentry: &Sentry,
    anchors: &Anchors,
    kept: Option<&Kept>,
    pace: Pace,
) -> Result<Begun, String> {
    let mut attempt = 1;
    loop {
        let failure = match first(sentry, anchors, kept).await {
            Ok(begun) => return Ok(begun),
            Err(e) => e,
        };
        if attempt >= pace.tries {
            return Err(failure);
        }
        tracing::warn!(
            target: LOG,
            "no certificate at try {attempt} of {}, trying again in {:?}: {failure}", pace.tries, pace.between
        );
        sleep(pace.between).await;
        attempt += 1;
    }
}

async fn first(sentry: &Sentry, anchors: &Anchors, kept: Option<&Kept>) -> Result<Begun, String> {
    let live = Live::new(anchors.read()?);
    let now = SystemTime::now();
    let (identity, lifetime, failure) = match sentry.sign(&live).await {
        Ok(signed) => {
            keep_for_restart(kept, &signed);
            let lifetime = signed.until.duration_since(now).unwrap_or_default();
            (signed.identity, lifetime, None)
        }
        Err(Failure::Away(cause)) => {
            let Some(identity) = from_shelf(kept, sentry, &live) else { return Err(cause) };
            tracing::warn!(
                target: LOG,
                "the authority is away, this start goes on with the certificate of the one before: {cause}"
            );
            let lifetime = identity.remaining(now);
            (identity, lifetime, Some(cause))
        }
        // One who is refused is not to go on with what was kept.
        Err(e) => return Err(e.to_string()),
    };
    tracing::info!(
        target: LOG,
        "this workload is {}, its certificate lasts {}", identity.id(), shown(identity.remaining(now))
    );
    live.set_identity(identity);
    Ok(Begun { live, lifetime, failure })
}

fn from_shelf(kept: Option<&Kept>, sentry: &Sentry, live: &Live) -> Option<Identity> {
    let found = kept?.read(sentry.workload(), &live.bundle());
    found.inspect_err(|e| tracing::warn!(target: LOG, "the identity that was kept is not used: {e}")).ok()?
}

fn keep_for_restart(kept: Option<&Kept>, signed: &Signed) {
    if let Some(Err(e)) = kept.map(|kept| kept.write(&signed.identity, &signed.key)) {
        tracing::warn!(target: LOG, "the identity cannot be kept for a restart: {e}");
    }
}

/// Begins to look after the identity, of whose certificate `lifetime` is left.
pub(super) fn keep(workload: &Arc<Workload>, lifetime: Duration) {
    let stop = workload.tasks.stopping().clone();
    let tried = workload.failure.lock().is_some();
    let pause = if tried { again(lifetime, workload.settings.pace.retry) } else { half(lifetime) };
    let at = SystemTime::now() + pause;
    let renewal = renew(Arc::downgrade(workload), workload.distrusted.clone(), lifetime, at, stop.clone());
    workload.tasks.spawn("certificate renewal", renewal);
    if workload.anchors.are_followed() {
        workload.tasks.spawn("trust anchors", follow(Arc::downgrade(workload), workload.settings.pace.look, stop));
    }
}

async fn renew(
    workload: Weak<Workload>,
    distrusted: Arc<Notify>,
    mut lifetime: Duration,
    mut at: SystemTime,
    stop: CancellationToken,
) {
    loop {
        let wait = at.duration_since(SystemTime::now()).unwrap_or_default();
        if !wait.is_zero() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(wait.min(LOOK)) => continue,
                () = distrusted.notified() => {}
            }
        }
        let Some(workload) = workload.upgrade() else { return };
        let result = tokio::select! {
            () = stop.cancelled() => return,
            result = workload.sentry.sign(&workload.live) => result,
        };
        let now = SystemTime::now();
        match result {
            Ok(signed) => {
                lifetime = signed.until.duration_since(now).unwrap_or_default();
                at = now + half(lifetime);
                workload.renewed(signed);
            }
            Err(e) => {
                at = now + again(lifetime, workload.settings.pace.retry);
                workload.not_renewed(e.to_string(), now);
            }
        }
    }
}

impl Workload {
    fn renewed(&self, signed: Signed) {
        let left = signed.identity.remaining(SystemTime::now());
        if left < SHORT_LIVED {
            tracing::debug!(target: LOG, "the certificate was renewed and lasts {}", shown(left));
        } else {
            tracing::info!(target: LOG, "the certificate was renewed and lasts {}", shown(left));
        }
        keep_for_restart(self.kept.as_ref(), &signed);
        self.live.set_identity(signed.identity);
        *self.failure.lock() = None;
        if let Some(metrics) = self.metrics.load_full() {
            metrics.counter(Metric::MtlsWorkloadCertRotatedTotal, &[]).inc();
        }
    }

    fn not_renewed(&self, cause: String, now: SystemTime) {
        let left = self.live.identity().map_or(Duration::ZERO, |identity| identity.remaining(now));
        if left.is_zero() {
            tracing::error!(
                target: LOG,
                "the certificate has expired and was not renewed; open connections go on, new ones fail: {cause}"
            );
        } else {
            tracing::warn!(
                target: LOG,
                "the certificate was not renewed and is good for another {}: {cause}", shown(left)
            );
        }
        *self.failure.lock() = Some(cause);
        if let Some(metrics) = self.metrics.load_full() {
            metrics.counter(Metric::MtlsWorkloadCertRotatedFailTotal, &["sign"]).inc();
        }
    }
}

/// Puts what the file of the trust anchors says in force.
async fn follow(workload: Weak<Workload>, every: Duration, stop: CancellationToken) {
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let Some(workload) = workload.upgrade() else { return };
        match workload.anchors.changed() {
            None => {}
            Some(Ok(bundle)) => {
                if bundle == *workload.live.bundle() {
                    continue;
                }
                tracing::info!(target: LOG, "new trust anchors are in force: {bundle:?}");
                let orphaned = workload.live.identity().is_some_and(|own| !bundle.trusts(&own, SystemTime::now()));
                workload.live.set_bundle(bundle);
                if orphaned {
                    // Peers that follow the same file refuse it from now on.
                    workload.distrusted.notify_one();
                }
            }
            Some(Err(e)) => {
                tracing::warn!(target: LOG, "{e}; the trust anchors that were read before stay in force");
            }
        }
    }
}

/// When to renew: at half of what is left, or a little before, so that workloads that began
/// together do not ask together.
fn half(left: Duration) -> Duration {
    left.mul_f64(0.5 - 0.1 * random()).max(SHORTEST)
}

/// When to try again: soon enough for short lifetimes, and never all workloads at one moment.
fn again(lifetime: Duration, longest: Duration) -> Duration {
    (lifetime / 8).clamp(SHORTEST, longest).mul_f64(1.0 - 0.3 * random())
}

/// A number from 0 up to 1 that differs from process to process and from call to call.
fn random() -> f64 {
    (RandomState::new().hash_one(0) >> 11) as f64 / (1u64 << 53) as f64
}

fn shown(left: Duration) -> String {
    mecha_resources::format_duration(Duration::from_secs(left.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewals_come_at_half_life_and_not_all_together() {
        let day = Duration::from_secs(86_400);
        let pauses: Vec<_> = (0..100).map(|_| half(day)).collect();
        assert!(pauses.iter().all(|p| *p > day * 2 / 5 && *p <= day / 2), "{pauses:?}");
        assert!(pauses.windows(2).any(|pair| pair[0] != pair[1]));
        assert_eq!(half(Duration::ZERO), SHORTEST);
        assert!(half(Duration::from_millis(100)) <= Duration::from_millis(50));
    }

    #[test]
    fn failed_renewals_are_tried_again_before_a_short_certificate_ends() {
        let ten = Duration::from_secs(10);
        for _ in 0..100 {
            let (long, short) = (again(Duration::from_secs(86_400), ten), again(Duration::from_secs(2), ten));
            assert!(long <= ten && long >= ten * 7 / 10, "{long:?}");
            assert!(short <= Duration::from_millis(250), "{short:?}");
            assert!(again(Duration::ZERO, ten) > Duration::ZERO);
        }
    }
}
