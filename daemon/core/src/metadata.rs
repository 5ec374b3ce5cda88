//! The metadata API: what this sidecar is and what it runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;
use serde::Serialize;

use crate::app::AppSubscription;
use crate::identity::Identity;
use crate::pubsub::Source;
use crate::store::{Info, Store};
use crate::swap::Swaps;

/// Version of the incumbent whose contract this daemon keeps; `runtimeVersion` of the metadata API.
pub const COMPATIBLE_VERSION: &str = "1.18.0";
/// Most entries that callers may add to `extended`.
const MAX_EXTENDED: usize = 1024;

/// How the app is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppConnection {
    /// Port.
    pub port: u16,
    /// Protocol.
    pub protocol: String,
    /// Host.
    pub channel_address: String,
    /// Calls in flight at most; 0 is no limit.
    pub max_concurrency: u32,
    /// Health checks, when on.
    pub health: Option<AppHealthInfo>,
}

/// App health settings as the metadata API shows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppHealthInfo {
    /// Path; empty for gRPC apps.
    pub path: String,
    /// Interval as a Go duration.
    pub interval: String,
    /// Timeout as a Go duration.
    pub timeout: String,
    /// Failures in a row that count.
    pub threshold: u32,
}

/// What does not change while the runtime lives.
#[derive(Clone, Debug, Default)]
pub struct Fixed {
    /// The app, when there is one.
    pub app: Option<AppConnection>,
    /// Names of the features that are on.
    pub features: Vec<String>,
    /// Names of HTTPEndpoints.
    pub http_endpoints: Vec<String>,
    /// Names of Resiliency documents.
    pub resiliencies: Vec<String>,
}

/// Where the documents come from, when that is a control plane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DocumentsFrom {
    /// `agent`, `operator`, or `snapshot` while neither has answered since the start.
    pub source: &'static str,
    /// Whether it is followed now.
    pub connected: bool,
    /// When the documents in force came, or the snapshot of them was made; RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// When the snapshot was made that the next start may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Why a snapshot does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_refused: Option<String>,
}

/// Everything the metadata API shows.
#[derive(Clone, Debug)]
pub struct Document {
    /// App id.
    pub id: String,
    /// See [`COMPATIBLE_VERSION`].
    pub runtime_version: &'static str,
    /// Components in load order.
    pub components: Vec<Info>,
    /// Extended metadata.
    pub extended: BTreeMap<String, String>,
    /// Subscriptions with their source.
    pub subscriptions: Vec<(AppSubscription, Source)>,
    /// What does not change.
    pub fixed: Fixed,
}

/// The metadata API.
#[derive(Debug)]
pub struct MetadataApi {
    me: Arc<Identity>,
    store: Arc<Store>,
    swaps: Arc<Swaps>,
    fixed: RwLock<Fixed>,
    extended: RwLock<BTreeMap<String, String>>,
    documents: RwLock<Option<DocumentsFrom>>,
}

impl MetadataApi {
    /// The API over the live snapshot.
    #[must_use]
    pub fn new(me: Arc<Identity>, store: Arc<Store>, swaps: Arc<Swaps>) -> Self {
        Self { me, store, swaps, fixed: RwLock::default(), extended: RwLock::default(), documents: RwLock::default() }
    }

    /// Sets what does not change while the runtime lives.
    pub fn set_fixed(&self, fixed: Fixed) {
        *self.fixed.write() = fixed;
    }

    /// Sets where the documents come from.
    pub fn set_documents(&self, from: DocumentsFrom) {
        *self.documents.write() = Some(from);
    }

    /// Where the documents come from; `None` for files.
    #[must_use]
    pub fn documents(&self) -> Option<DocumentsFrom> {
        self.documents.read().clone()
    }

    /// Sets one entry of the extended metadata. `false` when there are too many.
    pub fn set(&self, key: String, value: String) -> bool {
        let mut extended = self.extended.write();
        if extended.len() >= MAX_EXTENDED && !extended.contains_key(&key) {
            return false;
        }
        extended.insert(key, value);
        true
    }

    /// The document. `subscriptions` come from the pub/sub API.
    #[must_use]
    pub fn document(&self, subscriptions: Vec<(AppSubscription, Source)>) -> Document {
        let snapshot = self.store.snapshot();
        let mut extended = self.extended.read().clone();
        extended.insert("daprRuntimeVersion".into(), COMPATIBLE_VERSION.into());
        extended.insert("mecha.version".into(), env!("CARGO_PKG_VERSION").into());
        for (name, degraded) in &snapshot.degraded {
            extended.insert(format!("mecha.degraded.{name}"), degraded.cause.as_ref().to_owned());
        }
        for refused in self.swaps.refused() {
            extended.insert(format!("mecha.refused.{}.{}", refused.kind, refused.name), refused.reason);
        }
        if let Some(from) = self.documents() {
            extended.insert("mecha.documents.source".into(), from.source.to_owned());
            extended.insert("mecha.documents.connected".into(), from.connected.to_string());
            extended.extend(from.time.map(|t| ("mecha.documents.time".into(), t)));
            extended.extend(from.snapshot.map(|t| ("mecha.snapshot.time".into(), t)));
            extended.extend(from.snapshot_refused.map(|why| ("mecha.snapshot.refused".into(), why)));
        }
        Document {
            id: self.me.app_id.as_ref().to_owned(),
            runtime_version: COMPATIBLE_VERSION,
            components: snapshot.listed.clone(),
            extended,
            subscriptions,
            fixed: self.fixed.read().clone(),
        }
    }
}
