//! Features are proven, not believed.

use std::os::unix::fs::PermissionsExt as _;

use mecha_sources::Options;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lying_backend_loses_the_feature_and_a_backend_that_refuses_is_not_ready() {
    let Some(cluster) = Cluster::start().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("probe");
    std::fs::write(&program, PROBE).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let _role = cluster.sources("a", Options { probe_program: Some(program), ..Options::default() }).await;
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
}
