//! Documents from the agent of the cluster: complete sets over `mecha.v1.Delivery`, with the moves that go
//! on, and reports of what was put into effect.
//!
//! A control plane that does not speak it is followed as Dapr's operator instead, and asked again from time
//! to time. While nobody answers, the last set stays in use; a sidecar that starts then takes the snapshot
//! that the agent signed before.

#[doc(hidden)]
pub mod fuzzing;
mod link;
mod report;
mod set;
mod snapshot;
mod spans;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use mecha_core::Tasks;
use mecha_identity::{Bundle, SpiffeId};
use mecha_proto::delivery as wire;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use self::link::Link;
use self::set::Received;
use self::snapshot::{Place, Terms};
use super::live::Live;
use super::operator::Operator;
use super::source::{Depth, DocumentSet, Source, SourceError};
use crate::cli::{self, Options};
use crate::identity::{ControlPlane, Workload};

/// What a start waits for a first complete set: as long as the incumbent tries.
const FIRST_LIMIT: Duration = Duration::from_secs(500);

/// The anchors of the moment.
type Anchors = Arc<dyn Fn() -> Arc<Bundle> + Send + Sync>;

/// What the source is made of.
#[derive(Clone)]
struct Settings {
    plane: ControlPlane,
    namespace: String,
    /// Names of the Configurations in use, the last one wins.
    configurations: Vec<String>,
    /// Tells sidecars of one app apart.
    instance: String,
    keep: Option<Keep>,
    /// How long a start waits for the agent when there is a snapshot to start from.
    wait: Duration,
    /// Pause before a control plane that does not speak the protocol is asked again.
    ask_again: Duration,
}

/// The snapshot: where it lies, and what makes it good.
#[derive(Clone)]
struct Keep {
    place: Place,
    terms: Terms,
    anchors: Anchors,
}

/// The agent at `--control-plane-address`, or the operator there.
pub(super) struct Delivery {
    shared: Arc<Shared>,
    settings: Settings,
    operator: Operator,
    tasks: Tasks,
    /// Whether the link runs.
    started: Mutex<bool>,
    /// What the last wait has seen of [`Shared::version`].
    seen: Mutex<u64>,
    /// What was listed last.
    listed: Mutex<Option<Arc<Received>>>,
}

/// Which protocol the control plane speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Speaks {
    /// Nobody knows yet.
    #[default]
    Unknown,
    Ours,
    /// Dapr's only.
    Operator,
}

/// What the link writes, and the source and the reports read.
#[derive(Default)]
struct Shared {
    latest: Mutex<Option<Arc<Received>>>,
    speaks: Mutex<Speaks>,
    /// Grows with each change of the two above.
    version: watch::Sender<u64>,
    /// The number that the stream of the moment gave to the set of a digest.
    sequence: Mutex<(u64, String)>,
    connected: AtomicBool,
    sets: AtomicU64,
    /// When the snapshot on disk was made.
    kept_at: Mutex<Option<SystemTime>>,
    /// Why the snapshot on disk does not count.
    refused: Mutex<Option<String>>,
    /// What is in force.
    applied: Mutex<Option<Arc<Received>>>,
    /// A set has come into force.
    look: Notify,
    report: watch::Sender<Option<wire::Report>>,
}

impl Shared {
    fn take(&self, received: Received) {
        *self.latest.lock() = Some(Arc::new(received));
        self.version.send_modify(|v| *v += 1);
    }

    fn speaks(&self, now: Speaks) -> bool {
        let changed = std::mem::replace(&mut *self.speaks.lock(), now) != now;
        if changed {
            self.version.send_modify(|v| *v += 1);
        }
        changed
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery").field("address", &self.settings.plane.address()).finish_non_exhaustive()
    }
}

impl Delivery {
    /// The source at the control plane that `options` name. The connection is made with the first listing.
    ///
    /// # Errors
    /// The options of the control plane make no sense.
    pub(super) fn new(options: &Options, workload: Option<Arc<Workload>>) -> Result<Self, SourceError> {
        let plane = ControlPlane::operator(options, workload.clone()).map_err(SourceError)?;
        let env = &options.env;
        let keep = match (&env.snapshot.folder, workload) {
            (Some(folder), Some(workload)) => Some(keep(options, folder, workload)?),
            (Some(_), None) => {
                tracing::warn!(
                    target: "dapr.runtime",
                    "MECHA_SNAPSHOT_FOLDER is set and there are no trust anchors: nothing is kept for a start \
                     without the control plane, for nobody could tell whose it is"
                );
                None
            }
            (None, _) => None,
        };
        let settings = Settings {
            plane: plane.clone(),
            namespace: env.namespace().to_owned(),
            configurations: options.configs.clone(),
            instance: env.pod_name.clone().unwrap_or_else(cli::host_name),
            keep,
            wait: env.snapshot.wait,
            ask_again: Duration::from_secs(60),
        };
        Ok(Self::with(settings, Operator::new(options, plane)))
    }

    fn with(settings: Settings, operator: Operator) -> Self {
        Self {
            shared: Arc::default(),
            settings,
            operator,
            tasks: Tasks::new(),
            started: Mutex::default(),
            seen: Mutex::default(),
            listed: Mutex::default(),
        }
    }

    fn start(&self) {
        if !std::mem::replace(&mut *self.started.lock(), true) {
            let link = Link::new(self.settings.clone(), self.shared.clone());
            let stop = self.tasks.stopping().clone();
            self.tasks.spawn("agent link", async move {
                tokio::select! {
                    never = link.run() => match never {},
                    () = stop.cancelled() => {}
                }
            });
        }
    }

    /// The snapshot, if there is a good one.
    async fn snapshot(&self) -> Option<Received> {
        let keep = self.settings.keep.clone()?;
        let read = tokio::task::spawn_blocking(move || keep.place.read(&keep.terms, &(keep.anchors)()));
        match read.await.ok()? {
            Ok(Some(good)) => {
                *self.shared.kept_at.lock() = Some(good.issued_at);
                let namespace = &self.settings.namespace;
                let received = Received::new(good.digest, good.documents, good.issued_at, None, namespace);
                Some(Received { restored: true, ..received })
            }
            Ok(None) => None,
            Err(cause) => {
                tracing::warn!(target: "dapr.runtime", "the snapshot of the documents does not count: {cause}");
                *self.shared.refused.lock() = Some(cause);
                None
            }
        }
    }

    /// Waits until somebody has given a set, or has to be asked in another way.
    async fn first(&self) -> Result<(), SourceError> {
        let began = Instant::now();
        let snapshot = self.snapshot().await;
        let patience = began + if snapshot.is_some() { self.settings.wait } else { FIRST_LIMIT };
        let mut version = self.shared.version.subscribe();
        let known = || self.shared.latest.lock().is_some() || *self.shared.speaks.lock() == Speaks::Operator;
        let answered = async {
            while !known() {
                // The sender lives as long as `self`.
                let _ = version.changed().await;
            }
        };
        tokio::select! {
            () = answered => return Ok(()),
            () = sleep_until(patience) => {}
        }
        let Some(snapshot) = snapshot else {
            return Err(SourceError(format!(
                "the control plane at {} gave no complete set of documents within {FIRST_LIMIT:?}",
                self.settings.plane.address()
            )));
        };
        tracing::warn!(
            target: "dapr.runtime",
            "the control plane at {} did not answer within {:?}: starting from the snapshot of {}, {:.0?} old",
            self.settings.plane.address(),
            self.settings.wait,
            report::time(snapshot.at),
            snapshot.at.elapsed().unwrap_or_default(),
        );
        let mut latest = self.shared.latest.lock();
        // Whoever came first counts.
        if latest.is_none() {
            *latest = Some(Arc::new(snapshot));
        }
        Ok(())
    }
}

fn keep(options: &Options, folder: &Path, workload: Arc<Workload>) -> Result<Keep, SourceError> {
    let plane = &options.control_plane;
    let signer = |part: &str| {
        SpiffeId::control(&plane.trust_domain, &plane.namespace, part)
            .map_err(|e| SourceError(format!("--control-plane-trust-domain, --control-plane-namespace: {e}")))
    };
    Ok(Keep {
        place: Place::new(folder),
        terms: Terms {
            namespace: options.env.namespace().to_owned(),
            app_id: options.app_id.clone(),
            signers: vec![signer("dapr-operator")?, signer("mecha-agent")?],
            max_age: options.env.snapshot.max_age,
        },
        anchors: Arc::new(move || workload.live().bundle()),
    })
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

#[async_trait]
impl Source for Delivery {
    fn name(&self) -> &'static str {
        "delivery"
    }

    async fn list(&self, depth: Depth) -> Result<DocumentSet, SourceError> {
        self.start();
        if self.shared.latest.lock().is_none() && *self.shared.speaks.lock() != Speaks::Operator {
            self.first().await?;
        }
        // What is read from here on counts as seen.
        *self.seen.lock() = *self.shared.version.borrow();
        if *self.shared.speaks.lock() == Speaks::Operator {
            *self.listed.lock() = None;
            return self.operator.list(depth).await;
        }
        let latest = self.shared.latest.lock().clone();
        let Some(latest) = latest else { return Err(SourceError("there is no set of documents yet".to_owned())) };
        *self.listed.lock() = Some(latest.clone());
        Ok(latest.read(&self.settings.namespace, &self.settings.configurations))
    }

    async fn changed(&self) {
        let mut version = self.shared.version.subscribe();
        let seen = *self.seen.lock();
        let ours = async {
            if version.wait_for(|v| *v > seen).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let theirs = async {
            if *self.shared.speaks.lock() != Speaks::Operator {
                std::future::pending::<()>().await;
            }
            self.operator.changed().await;
        };
        tokio::select! {
            () = ours => *self.seen.lock() = *self.shared.version.borrow(),
            () = theirs => {}
        }
    }

    /// The agent sends whole sets, and gathers what changes together before.
    fn quiet(&self) -> Duration {
        if *self.shared.speaks.lock() == Speaks::Ours { Duration::ZERO } else { self.operator.quiet() }
    }

    fn attach(&self, live: &Arc<Live>) {
        report::start(&self.tasks, self.shared.clone(), Arc::downgrade(live));
        self.applied();
    }

    fn applied(&self) {
        let listed = self.listed.lock().clone();
        *self.shared.applied.lock() = listed;
        self.shared.look.notify_one();
    }
}
