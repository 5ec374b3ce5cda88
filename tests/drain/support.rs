//! Documents and set-ups that many cases share.

use std::path::Path;
use std::time::Duration;

use mecha_tests::{Sidecar, component, eventually};

/// Generous: reached only when something is broken.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Size of a loop: in the gate, or in a long run.
pub(crate) fn rounds(gate: usize, long: usize) -> usize {
    if std::env::var_os("MECHA_TEST_LONG").is_some_and(|v| v == "1") { long } else { gate }
}

/// A state store in a file.
pub(crate) fn store(folder: &Path) -> String {
    component("store", "state.sqlite", &[("connectionString", folder.join("state.db").to_str().unwrap())])
}

/// The embedded broker in a folder.
pub(crate) fn broker(folder: &Path) -> String {
    component("events", "pubsub.mecha", &[("path", folder.join("broker").to_str().unwrap())])
}

/// A Configuration spec that resolves app names by a shared file.
pub(crate) fn names(folder: &Path) -> String {
    let file = folder.join("names.db");
    format!(
        "nameResolution:\n  component: sqlite\n  version: v1\n  configuration:\n    connectionString: {}\n    \
         updateInterval: 60s\n",
        file.display()
    )
}

/// Waits until the metadata document shows this many subscriptions.
pub(crate) async fn wait_subscriptions(sidecar: &Sidecar, count: usize) {
    eventually(&format!("{count} subscriptions"), || async {
        let reply = sidecar.http().get("/v1.0/metadata").try_send().await.ok()?;
        (reply.json()["subscriptions"].as_array()?.len() >= count).then_some(())
    })
    .await;
}
