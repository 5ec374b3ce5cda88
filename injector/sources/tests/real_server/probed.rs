//! Features are proven, not believed.

use std::os::unix::fs::PermissionsExt as _;

use std::sync::Arc;

use mecha_apiserver::trace::{FinishedSpan, Sampler, SpanSink, Tracer};
use mecha_sources::Options;
use parking_lot::Mutex;
use serde_json::json;

use crate::cluster::Cluster;

/// A backend that keeps no times: its probe tells so, and repeats a password on the way.
const PROBE: &str = r#"#!/bin/sh
input=$(/bin/cat)
case "$input" in
*postgres://app:canary-pass@db/orders*mecha_probe_*|*mecha_probe_*postgres://app:canary-pass@db/orders*) ;;
*) echo '{"error": "canary-pass: no document"}'; exit 0 ;;
esac
echo '{"features": {"crud": {"ok": true}, "etag": {"ok": true}, "ttl": {"ok": false, "reason": "still there, logged in with canary-pass"}}}'
"#;

/// Keeps spans.
#[derive(Debug, Default)]
struct Kept(Mutex<Vec<FinishedSpan>>);

impl SpanSink for Kept {
    fn export(&self, span: FinishedSpan) {
        self.0.lock().push(span);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lying_backend_loses_the_feature_and_a_backend_that_refuses_is_not_ready() {
    let Some(cluster) = Cluster::start().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("probe");
    std::fs::write(&program, PROBE).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let kept = Arc::new(Kept::default());
    let tracer = Tracer::on(Sampler::new(1.0), Some(kept.clone()));
    let _role = cluster.sources("a", Options { probe_program: Some(program), tracer, ..Options::default() }).await;
    cluster.secret("platform", "pg-conn", &json!({"uri": "postgres://app:canary-pass@db/orders"}));
    cluster.backend("pg", &json!({"secretRef": {"namespace": "platform", "name": "pg-conn"}}));
    let said = cluster.ready("pg", "True", "ProbePassed").await;
    assert!(said.contains("ttl (still there, logged in with ***)"), "{said}");
    let status = cluster.status("pg").await;
    assert_eq!(status.verified_features.unwrap(), ["crud", "etag"]);
    assert!(!status.last_probe.is_empty());

    // Other values are another backend: it is probed at once, and refuses them.
    cluster.secret("platform", "pg-conn", &json!({"uri": "postgres://app:canary-pass@elsewhere/orders"}));
    let refused = cluster.ready("pg", "False", "ProbeFailed").await;
    assert!(refused.contains("***: no document"), "{refused}");
    let status = cluster.status("pg").await;
    assert_eq!(status.verified_features.unwrap(), ["crud", "etag"], "what was proven is not taken back by an outage");

    // Its spans tell the same, and no value.
    let spans = kept.0.lock();
    let of = |name: &str| -> Vec<String> {
        let named = spans.iter().filter(|span| span.name == name);
        let outcome = |span: &FinishedSpan| {
            let found = span.attributes.iter().find(|(key, _)| key == "mecha.outcome");
            format!("{:?}", found.unwrap().1)
        };
        named.map(outcome).collect()
    };
    let (probes, resolved) = (of("probe backend"), of("resolve source"));
    assert!(probes[0].contains("partly") && probes[probes.len() - 1].contains("not run"), "{probes:?}");
    let said = |word: &str| resolved.iter().any(|outcome| outcome.contains(word));
    assert!(said("ProbePassed") && said("ProbeFailed"), "{resolved:?}");
    assert!(!format!("{spans:?}").contains("canary"), "{spans:?}");
}
