//! Where a value from a Secret may not be, and who may read Secrets at all.

use std::path::PathBuf;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mecha_testkit::servers::{Kubernetes, KubernetesOptions};
use mecha_tests::Http;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::install::NAMESPACE;

/// The API server's own record of who asked for which Secret.
#[derive(Debug)]
pub(crate) struct Audit {
    folder: TempDir,
}

impl Audit {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let policy = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived, ResponseStarted]\nrules:\n\
                      - level: Metadata\n  resources: [{group: '', resources: [secrets]}]\n- level: None\n";
        std::fs::write(folder.path().join("policy.yaml"), policy).unwrap();
        Self { folder }
    }

    /// The server with this record.
    pub(crate) fn of(&self, options: KubernetesOptions) -> KubernetesOptions {
        options
            .arg(format!("--audit-policy-file={}", self.folder.path().join("policy.yaml").display()))
            .arg(format!("--audit-log-path={}", self.path().display()))
            // Every line is there once its request was answered.
            .arg("--audit-log-mode=blocking-strict")
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("audit.log")
    }

    /// What the service account asked of Secrets: verb, namespace and name.
    pub(crate) fn asked_by(&self, account: &str) -> Vec<(String, String, String)> {
        let user = format!("system:serviceaccount:{NAMESPACE}:{account}");
        let log = std::fs::read_to_string(self.path()).unwrap_or_default();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let ours = lines.filter(|line| line["user"]["username"] == user.as_str());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        ours.map(|line| {
            let object = &line["objectRef"];
            (text(&line["verb"]), text(&object["namespace"]), text(&object["name"]))
        })
        .collect()
    }
}

/// Keys of etcd, outside those of Secrets, with `canary` in what is stored there.
pub(crate) async fn stored_with(server: &Kubernetes, canary: &str) -> Vec<String> {
    let port = server.etcd_url().rsplit(':').next().unwrap().parse().unwrap();
    // The whole range: both ends are one zero byte.
    let everything = json!({"key": "AA==", "range_end": "AA=="});
    let answer = Http::tcp(port).post_json("/v3/kv/range", &everything).send().await.expect(200).json();
    let entries = answer["kvs"].as_array().unwrap();
    assert!(entries.len() > 100, "a whole etcd was read");
    let decoded = |value: &Value| BASE64_STANDARD.decode(value.as_str().unwrap_or_default()).unwrap();
    let coded = BASE64_STANDARD.encode(canary);
    let holds = |value: &[u8]| {
        [canary, coded.as_str()].iter().any(|text| value.windows(text.len()).any(|part| part == text.as_bytes()))
    };
    let mut secrets = 0;
    let mut found = Vec::new();
    for entry in entries {
        let key = String::from_utf8_lossy(&decoded(&entry["key"])).into_owned();
        if holds(&decoded(&entry["value"])) {
            if key.starts_with("/registry/secrets/") { secrets += 1 } else { found.push(key) }
        }
    }
    assert!(secrets > 0, "the search itself finds the value where it belongs");
    found
}
