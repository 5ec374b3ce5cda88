use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use crate::{Clock, Result, SystemClock};

/// What every component can do besides its block.
///
/// Guarantees the runtime relies on:
/// * Every method may be called from many tasks at once.
/// * A future dropped at any await leaves the component usable.
/// * Every wait inside has a limit; a lost backend surfaces as
///   `Unavailable` or `Timeout`, never as a call that hangs.
#[async_trait]
pub trait Component: Send + Sync + fmt::Debug + 'static {
    /// Asks the backend whether it is there. No side effects.
    async fn ping(&self) -> Result<()> {
        Ok(())
    }

    /// Names the place whose data this instance works on, the same text in every process and
    /// without secrets: a server and database, a file. Two instances at one place see the same
    /// data; for a broker, also the same reading progress. `None` when nobody else sees the
    /// data, or when the place cannot be told.
    fn place(&self) -> Option<String> {
        None
    }

    /// Releases everything. Idempotent; called once after the last user is gone.
    async fn close(&self) {}
}

/// What a component may know of its surroundings while it is built.
#[derive(Clone, Debug)]
pub struct BuildCx {
    /// Name of the component document.
    pub name: Arc<str>,
    /// App id of this sidecar; default consumer id and source of identities.
    pub app_id: Arc<str>,
    /// Namespace of this sidecar, empty when none is set.
    pub namespace: Arc<str>,
    /// Strict mode: safer defaults where they would surprise a user of the incumbent.
    pub strict: bool,
    /// Folder for data that belongs to this user on this machine.
    pub home: PathBuf,
    /// Wall clock.
    pub clock: Arc<dyn Clock>,
}

impl BuildCx {
    /// A context for tests and tools: app `app`, no namespace, system clock, `home` for data.
    #[must_use]
    pub fn for_app(app: &str, name: &str, home: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            app_id: app.into(),
            namespace: "".into(),
            strict: false,
            home: home.into(),
            clock: Arc::new(SystemClock),
        }
    }
}
