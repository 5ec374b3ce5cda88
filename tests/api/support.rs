//! Documents and set-ups that many cases share.

use std::path::Path;

use mecha_tests::{HttpApp, Sidecar, SidecarBuilder, component, eventually};
use serde_json::Value;

/// A state store in memory.
pub(crate) fn memory_store(name: &str) -> String {
    component(name, "state.in-memory", &[])
}

/// A pub/sub in memory.
pub(crate) fn memory_pubsub(name: &str) -> String {
    component(name, "pubsub.in-memory", &[])
}

/// A state store in a file.
pub(crate) fn sqlite_store(name: &str, file: &Path) -> String {
    component(name, "state.sqlite", &[("connectionString", file.to_str().unwrap())])
}

/// The embedded broker in a folder.
pub(crate) fn broker(name: &str, folder: &Path) -> String {
    component(name, "pubsub.mecha", &[("path", folder.to_str().unwrap())])
}

/// A Configuration spec that resolves app names by a shared file, so that no multicast is needed. An app that could not
/// refresh its entry for some seconds, as on a busy machine, stays known.
pub(crate) fn registry(folder: &Path) -> String {
    let file = folder.join("names.db");
    format!(
        "nameResolution:\n  component: sqlite\n  version: v1\n  configuration:\n    connectionString: {}\n    \
         updateInterval: 60s\n",
        file.display()
    )
}

/// Two sidecars that find one another; the callee has an app.
pub(crate) struct Pair {
    pub(crate) caller: Sidecar,
    pub(crate) callee: Sidecar,
    _names: tempfile::TempDir,
}

impl Pair {
    pub(crate) async fn with(app: &HttpApp) -> Self {
        Self::built(|builder| builder, |builder| builder.app(app)).await
    }

    /// With more said about each of them.
    pub(crate) async fn built(
        caller: impl FnOnce(SidecarBuilder) -> SidecarBuilder,
        callee: impl FnOnce(SidecarBuilder) -> SidecarBuilder,
    ) -> Self {
        let names = tempfile::tempdir().unwrap();
        let spec = registry(names.path());
        let callee = callee(Sidecar::builder().app_id("callee").configuration(&spec)).start().await;
        let caller = caller(Sidecar::builder().app_id("caller").configuration(&spec)).start().await;
        Self { caller, callee, _names: names }
    }
}

/// Value of one series on the metrics port; `labels` are those that must be there, in any order.
pub(crate) fn series(text: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (found, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.split_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        let fits = labels.iter().all(|(key, value)| found.contains(&format!("{key}=\"{value}\"")));
        fits.then(|| value.trim().parse().ok())?
    })
}

/// Waits until a series has at least this value.
pub(crate) async fn wait_series(sidecar: &Sidecar, name: &str, labels: &[(&str, &str)], at_least: f64) {
    eventually(&format!("{name}{labels:?} >= {at_least}"), || async {
        series(&sidecar.metrics().await, name, labels).filter(|value| *value >= at_least)
    })
    .await;
}

/// Waits until the metadata document shows this many subscriptions.
pub(crate) async fn wait_subscriptions(sidecar: &Sidecar, count: usize) -> Vec<Value> {
    eventually(&format!("{count} subscriptions"), || async {
        let list = sidecar.metadata().await["subscriptions"].as_array().cloned().unwrap_or_default();
        (list.len() >= count).then_some(list)
    })
    .await
}
