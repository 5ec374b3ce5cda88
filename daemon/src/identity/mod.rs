//! The identity of this workload: who it is to peers and to the control plane, and how it
//! stays so.
//!
//! A start reads the trust anchors (`anchors`) and asks the authority for a certificate
//! (`sentry`); `renewal` replaces it at half of its life and follows the anchors.
//! `peers` and `control` are the connections that show it. One [`Workload`] lives as long
//! as the process: a rebuilt runtime goes on with it.

mod anchors;
mod control;
mod kept;
mod peers;
mod renewal;
mod sentry;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use mecha_core::Tasks;
use mecha_core::metrics::{Metric, Metrics};
use mecha_identity::{Expect, Live, SpiffeId};
use parking_lot::Mutex;
use tokio::sync::Notify;

use self::anchors::Anchors;
pub use self::control::ControlPlane;
use self::kept::Kept;
pub use self::peers::{PeerDial, accept, acceptor};
use self::sentry::Sentry;
pub use self::sentry::Tokens;
use crate::cli::{Mode, Options};

/// Scope of the log lines.
const LOG: &str = "dapr.runtime.security";

/// The times of obtaining and renewing.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Tries at the start.
    pub tries: u32,
    /// Pause between them.
    pub between: Duration,
    /// Limit of one try.
    pub limit: Duration,
    /// Longest pause between two tries of a renewal.
    pub retry: Duration,
    /// How often the file of the trust anchors is looked at.
    pub look: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            tries: 5,
            between: Duration::from_secs(3),
            limit: Duration::from_secs(10),
            retry: Duration::from_secs(10),
            look: Duration::from_secs(1),
        }
    }
}

/// What an identity is made of.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `host:port` of the authority.
    pub sentry_address: String,
    /// Trust anchors in PEM; used while there is no file.
    pub anchors: Option<String>,
    /// File with the trust anchors in PEM, followed.
    pub anchors_file: Option<PathBuf>,
    /// Name that the authority is asked for.
    pub id: String,
    /// Own app id.
    pub app_id: String,
    /// Own namespace.
    pub namespace: String,
    /// Trust domain of the control plane.
    pub control_trust_domain: String,
    /// Namespace of the control plane.
    pub control_namespace: String,
    /// Extra audiences of the tokens that the authority may add.
    pub jwt_audiences: Vec<String>,
    /// Where tokens for the authority lie.
    pub tokens: Tokens,
    /// Folder that outlives the container, where the identity is kept for a start without the
    /// authority.
    pub keep: Option<PathBuf>,
    /// Whether calls between sidecars go over mTLS, too.
    pub peers: bool,
    /// Times.
    pub pace: Pace,
}

impl Settings {
    /// What the options ask for: nothing, where neither mTLS nor Kubernetes mode with trust
    /// anchors is wanted.
    ///
    /// # Errors
    /// What is missing.
    pub fn from_options(options: &Options) -> Result<Option<Self>, String> {
        let plane = &options.control_plane;
        let env = &options.env;
        let anchors_given = env.trust_anchors.is_some() || env.trust_anchors_file.is_some();
        let wanted = plane.mtls || (options.mode == Mode::Kubernetes && anchors_given);
        if !wanted {
            return Ok(None);
        }
        if !anchors_given {
            return Err("trust anchors are required: mTLS is on, and neither DAPR_TRUST_ANCHORS nor \
                        MECHA_TRUST_ANCHORS_FILE is set"
                .to_owned());
        }
        if plane.sentry_address.is_empty() {
            return Err("mTLS needs the authority: --sentry-address is not set".to_owned());
        }
        Ok(Some(Self {
            sentry_address: plane.sentry_address.clone(),
            anchors: env.trust_anchors.clone(),
            anchors_file: env.trust_anchors_file.clone(),
            id: env.sentry_local_identity.clone().unwrap_or_else(|| options.app_id.clone()),
            app_id: options.app_id.clone(),
            namespace: env.namespace().to_owned(),
            control_trust_domain: plane.trust_domain.clone(),
            control_namespace: plane.namespace.clone(),
            jwt_audiences: plane.jwt_audiences.clone(),
            tokens: Tokens { file: env.sentry_token_file.clone(), ..Tokens::default() },
            keep: env.snapshot.folder.clone(),
            peers: plane.mtls,
            pace: Pace::default(),
        }))
    }
}

impl Settings {
    /// The part of the control plane, such as `dapr-operator`, as its certificate has to name it.
    fn control(&self, part: &str) -> Result<Expect, String> {
        let id = SpiffeId::control(&self.control_trust_domain, &self.control_namespace, part);
        let id = id.map_err(|e| format!("--control-plane-trust-domain, --control-plane-namespace: {e}"))?;
        Ok(Expect::Id(id))
    }
}

/// Who this process is. Certificate and anchors change under it; connections that are open
/// stay as they are.
pub struct Workload {
    live: Arc<Live>,
    settings: Settings,
    anchors: Anchors,
    sentry: Sentry,
    kept: Option<Kept>,
    /// The certificate in use leads to no anchor any more.
    distrusted: Arc<Notify>,
    /// Why the last renewal failed.
    failure: Mutex<Option<String>>,
    /// Whether the start was counted.
    counted: AtomicBool,
    metrics: ArcSwapOption<Metrics>,
    tasks: Tasks,
}

impl Workload {
    /// Obtains the first certificate and begins to look after it. Tries as often as the
    /// settings say; dropping the future gives up. While the authority is away, an identity that
    /// was kept and is still good does.
    ///
    /// # Errors
    /// There are no usable trust anchors, or the authority gave no certificate.
    pub async fn start(settings: Settings) -> Result<Arc<Self>, String> {
        let anchors = Anchors::new(settings.anchors.as_deref(), settings.anchors_file.clone())?;
        let sentry = Sentry::new(&settings)?;
        let kept = settings.keep.as_deref().map(Kept::new);
        let begun = renewal::begin(&sentry, &anchors, kept.as_ref(), settings.pace)
            .await
            .map_err(|e| format!("failed to retrieve the initial identity: {e}"))?;
        let workload = Arc::new(Self {
            live: begun.live,
            settings,
            anchors,
            sentry,
            kept,
            distrusted: Arc::default(),
            failure: Mutex::new(begun.failure),
            counted: AtomicBool::new(false),
            metrics: ArcSwapOption::empty(),
            tasks: Tasks::new(),
        });
        renewal::keep(&workload, begun.lifetime);
        Ok(workload)
    }

    /// Certificate and anchors in use.
    #[must_use]
    pub fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// Whether calls between sidecars go over mTLS.
    #[must_use]
    pub fn secures_peers(&self) -> bool {
        self.settings.peers
    }

    /// Counts from now on in `metrics`; a rebuilt runtime brings its own.
    pub fn report_to(&self, metrics: Arc<Metrics>) {
        if !self.counted.swap(true, Ordering::Relaxed) {
            metrics.counter(Metric::MtlsInitTotal, &[]).inc();
        }
        self.metrics.store(Some(metrics));
        self.refresh();
    }

    /// Writes what is left of certificate and anchors into the metrics, for a scrape.
    pub fn refresh(&self) {
        let Some(metrics) = self.metrics.load_full() else { return };
        let now = SystemTime::now();
        let left = self.live.identity().map_or(Duration::ZERO, |identity| identity.remaining(now));
        metrics.gauge(Metric::CertificateSecondsLeft, &[]).set(left.as_secs_f64());
        let anchors = self.live.bundle().not_after().duration_since(now).unwrap_or_default();
        metrics.gauge(Metric::TrustAnchorsSecondsLeft, &[]).set(anchors.as_secs_f64());
    }

    /// Whether peers can accept the certificate, as far as this side knows.
    ///
    /// # Errors
    /// It has ended, and why there is no other.
    fn usable(&self) -> Result<(), String> {
        let Some(identity) = self.live.identity() else { return Ok(()) };
        // Peers that count in whole seconds accept it to the end of its last one.
        let now = SystemTime::now();
        if now.duration_since(identity.not_after()).unwrap_or_default() < Duration::from_secs(1) {
            return Ok(());
        }
        let cause = self.failure.lock().clone().map_or_else(String::new, |cause| format!(": {cause}"));
        Err(format!("the certificate of {} has expired and was not renewed{cause}", identity.id()))
    }

    /// Stops looking after the identity, and waits for it.
    pub async fn shut_down(&self) {
        self.tasks.shut_down().await;
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

impl fmt::Debug for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workload").field("live", &self.live).finish_non_exhaustive()
    }
}
