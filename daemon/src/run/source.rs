//! Where documents come from. A source gives complete sets: what is not in a set is not wanted
//! any more. Whoever owns the running documents compares sets by content, so a source may say
//! "changed" too often and may never say less than it knows.
//!
//! To add a source, implement [`Source`] and return it from [`open`].

mod folders;
mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use mecha_core::loader::{EnvLookup, Moving};
use mecha_resources::{Configuration, Loaded};

use super::delivery::Delivery;
use super::live::Live;
use crate::cli::{Mode, Options};
use crate::identity::Workload;
pub(super) use folders::Folders;

/// Files that are written together are one change: nothing new for this long ends it.
const QUIET: Duration = Duration::from_millis(50);

/// How much a listing reads again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// What the source watches. A Configuration that lies outside keeps the content it had.
    Watched,
    /// Everything: at the start and on SIGHUP.
    Everything,
}

/// All documents of a source at one moment, not yet filtered for this app.
#[derive(Clone, Debug, Default)]
pub(super) struct DocumentSet {
    /// The Configuration in force, merged.
    pub(super) configuration: Configuration,
    /// Why the Configuration as it stands cannot be used: the one of before stays, whatever `configuration` holds.
    pub(super) configuration_fault: Option<String>,
    /// Every other document, with all findings. A document that cannot be read is missing here
    /// and has a finding of severity error that names the file (or the stream) it came from.
    pub(super) loaded: Loaded,
    /// Moves of components between backends, by name of the component.
    pub(super) moves: BTreeMap<String, Moving>,
}

/// Why a source cannot list. Shown to people; holds no secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SourceError(pub(super) String);

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SourceError {}

/// A source of documents. Level-triggered: [`Source::changed`] only says that listing again may
/// give another set. Both futures may be dropped at any await.
#[async_trait]
pub(super) trait Source: fmt::Debug + Send + Sync + 'static {
    /// Word for logs and metrics: `disk`, `operator`, `delivery`.
    fn name(&self) -> &'static str;

    /// The complete set. A source that follows a stream waits here until it has a first complete
    /// set, then answers from memory.
    ///
    /// # Errors
    /// The source cannot be read. Mistakes in documents are part of the set.
    async fn list(&self, depth: Depth) -> Result<DocumentSet, SourceError>;

    /// Returns when something may have changed since the last [`Source::list`] began. Never
    /// returns where nothing can be noticed; listings happen on a period besides.
    async fn changed(&self);

    /// After a change, how long nothing new may come for the set to count as whole.
    fn quiet(&self) -> Duration {
        QUIET
    }

    /// The process serves from the set that was listed last. A source that reports what became of its
    /// documents looks it up in `live` from now on.
    fn attach(&self, _live: &Arc<Live>) {}

    /// The set that was listed last is in force, as far as it can be.
    fn applied(&self) {}
}

/// The source that the options ask for; the control plane is met as `workload`.
///
/// # Errors
/// The options of the control plane make no sense.
pub(super) fn open(
    options: &Arc<Options>,
    vars: EnvLookup,
    workload: Option<Arc<Workload>>,
) -> Result<Arc<dyn Source>, SourceError> {
    if options.mode == Mode::Kubernetes && !options.control_plane.address.is_empty() {
        return Ok(Arc::new(Delivery::new(options, workload)?));
    }
    Ok(Arc::new(Folders::new(options.clone(), vars)))
}
