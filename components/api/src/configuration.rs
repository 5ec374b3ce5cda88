use std::collections::BTreeMap;

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::{CancellationToken, Component, Metadata, Result};

/// One configuration value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigItem {
    /// The value; empty for a deleted key.
    pub value: String,
    /// Version; never goes back for a key.
    pub version: String,
    /// Store metadata.
    pub metadata: BTreeMap<String, String>,
}

/// Changed keys with their new items; a deleted key has an empty item.
pub type Changes = BTreeMap<String, ConfigItem>;

/// A store of configuration values.
#[async_trait]
pub trait ConfigurationStore: Component {
    /// The named keys, or all of them when `keys` is empty. Absent keys are left out.
    async fn get(&self, keys: &[&str], metadata: &Metadata) -> Result<Changes>;

    /// Sends every change of `keys` (all when empty) into `out` until `stop` fires.
    ///
    /// No snapshot at the start. Gap-free: after a lost connection the values are read
    /// again and each missed change is sent once; versions never go back.
    async fn watch(
        &self,
        keys: Vec<String>,
        metadata: Metadata,
        out: mpsc::Sender<Changes>,
        stop: CancellationToken,
    ) -> Result<()>;
}
