//! Reports that an agent without sidecars would make, and its probes of backends.

use mecha_testkit::servers::Kubernetes;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What a probe of a backend says.
const PROBED: &str = r#"{"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "ProbePassed",
    "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}"#;

/// How the side that is being left looks.
#[derive(Debug, Default)]
pub(crate) struct Agent {
    /// Messages that are still to be read there; with any there is one sidecar.
    pub(crate) pending: AtomicU64,
    end: AtomicBool,
}

impl Agent {
    /// Reports about every binding while `body` runs.
    pub(crate) fn report<T>(&self, server: &Kubernetes, body: impl FnOnce() -> T) -> T {
        struct End<'a>(&'a AtomicBool);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        self.end.store(false, Ordering::SeqCst);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !self.end.load(Ordering::SeqCst) {
                    self.turn(server);
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
            let _end = End(&self.end);
            body()
        })
    }

    fn turn(&self, server: &Kubernetes) {
        for backend in ["in-memory", "durable"] {
            // It may not be there yet.
            let _ = server.kubectl_refused(&[
                "patch",
                "capabilitybackend",
                backend,
                "--subresource=status",
                "--type=merge",
                "-p",
                PROBED,
            ]);
        }
        let Ok(list) = server.kubectl_refused(&["get", "capabilitybindings", "-A", "-o", "json"]) else { return };
        let list: Value = serde_json::from_str(&list).unwrap();
        for binding in list["items"].as_array().into_iter().flatten() {
            let pending = self.pending.load(Ordering::SeqCst);
            let entry = |entry: &Value| {
                let phase = &entry["swap"]["phase"];
                let left = if phase == "Drain" || phase == "Paused" { pending } else { 0 };
                let total = u64::from(pending > 0);
                let mut progress = json!({
                    "revision": entry["revision"], "total": total, "reached": total, "failed": 0, "pending": left,
                });
                if !phase.is_null() {
                    progress["phase"] = phase.clone();
                }
                json!({"claim": entry["claim"], "ready": true, "sidecars": format!("{total}/{total}"), "progress": progress})
            };
            let entries: Vec<Value> = binding["spec"]["entries"].as_array().into_iter().flatten().map(entry).collect();
            let status = json!({"status": {
                "appliedRevision": binding["spec"]["revision"], "appliedDigest": binding["spec"]["digest"],
                "entries": entries,
                "conditions": [{"type": "Ready", "status": "True", "reason": "Applied", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": binding["metadata"]["generation"]}],
            }});
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (namespace, name) = (text(&binding["metadata"]["namespace"]), text(&binding["metadata"]["name"]));
            // It may be replaced or gone by now; then the next turn sees that.
            let _ = server.kubectl_refused(&[
                "-n",
                &namespace,
                "patch",
                "capabilitybinding",
                &name,
                "--subresource=status",
                "--type=merge",
                "-p",
                &status.to_string(),
            ]);
        }
    }
}
