//! Documents from the operator of the control plane, in Kubernetes mode.
//!
//! Streams tell of changes, lists give complete sets: streams are opened first, then everything is
//! listed, so that nothing falls between. A connection that breaks is made again with growing
//! pauses, and everything is listed anew. The last complete set stays in use meanwhile.

pub(super) mod documents;
mod link;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use mecha_core::Tasks;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use self::documents::Mirror;
use self::link::{Link, Settings};
use super::source::{Depth, DocumentSet, Source, SourceError};
use crate::cli::Options;
use crate::identity::ControlPlane;

/// What a start waits for a first complete set: as long as the incumbent tries.
const FIRST_LIMIT: Duration = Duration::from_secs(500);
/// What a complete listing on request may take; after that the last set counts.
const RELIST_LIMIT: Duration = Duration::from_secs(10);

/// The operator at `--control-plane-address`.
pub(super) struct Operator {
    shared: Arc<Shared>,
    settings: Settings,
    tasks: Tasks,
    /// Whether the link runs.
    started: Mutex<bool>,
    /// What the last wait has seen of [`Shared::version`].
    seen: Mutex<u64>,
}

/// What the link writes and the source reads.
#[derive(Debug, Default)]
struct Shared {
    mirror: Mutex<Mirror>,
    /// Grows with each change of the mirror.
    version: watch::Sender<u64>,
    /// Complete listings so far.
    listings: watch::Sender<u64>,
    /// A complete listing is asked for.
    relist: Notify,
}

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operator").field("address", &self.settings.plane.address()).finish_non_exhaustive()
    }
}

impl Operator {
    /// The source at the operator, reached as `plane` says. The connection is made with the first listing.
    pub(super) fn new(options: &Options, plane: ControlPlane) -> Self {
        Self::with(Settings {
            plane,
            namespace: options.env.namespace().to_owned(),
            configurations: options.configs.clone(),
            relist_every: options.reconcile_interval,
        })
    }

    fn with(settings: Settings) -> Self {
        Self {
            shared: Arc::default(),
            settings,
            tasks: Tasks::new(),
            started: Mutex::default(),
            seen: Mutex::default(),
        }
    }

    fn start(&self) {
        let mut started = self.started.lock();
        if !*started {
            let link = Link::new(self.settings.clone(), self.shared.clone());
            let stop = self.tasks.stopping().clone();
            self.tasks.spawn("operator link", async move {
                tokio::select! {
                    never = link.run() => match never {},
                    () = stop.cancelled() => {}
                }
            });
            *started = true;
        }
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

#[async_trait]
impl Source for Operator {
    fn name(&self) -> &'static str {
        "operator"
    }

    async fn list(&self, depth: Depth) -> Result<DocumentSet, SourceError> {
        self.start();
        let mut listings = self.shared.listings.subscribe();
        let before = *listings.borrow_and_update();
        if before == 0 {
            timeout(FIRST_LIMIT, listings.wait_for(|n| *n > 0))
                .await
                .map_err(|_| {
                    SourceError(format!(
                        "the operator at {} gave no complete set of documents within {FIRST_LIMIT:?}",
                        self.settings.plane.address()
                    ))
                })?
                .map_err(|_| SourceError("the link to the operator has ended".to_owned()))?;
        } else if depth == Depth::Everything {
            self.shared.relist.notify_one();
            if timeout(RELIST_LIMIT, listings.wait_for(|n| *n > before)).await.is_err() {
                tracing::warn!(
                    target: "dapr.runtime.hotreload",
                    "the operator did not answer within {RELIST_LIMIT:?}, the last documents stay in use"
                );
            }
        }
        // What is read from here on counts as seen.
        *self.seen.lock() = *self.shared.version.borrow();
        Ok(self.shared.mirror.lock().read(&self.settings.configurations))
    }

    async fn changed(&self) {
        let mut version = self.shared.version.subscribe();
        let seen = *self.seen.lock();
        if version.wait_for(|v| *v > seen).await.is_err() {
            std::future::pending::<()>().await;
        }
        *self.seen.lock() = *self.shared.version.borrow();
    }
}
