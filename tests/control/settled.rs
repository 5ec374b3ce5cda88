//! A world in which nothing changes stays as it is, whoever looks at it anew; and roles that start beside their API
//! server wait for it without a word.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mecha_testkit::servers::{Kubernetes, KubernetesOptions};
use mecha_tests::wait_until;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::guide::PATIENCE;
use crate::install::{NAMESPACE, install};
use crate::kubelet::KubeletOptions;
use crate::roles::{AGENT, ControlPart, HUB, INJECTOR};

/// Backends from a Secret, from nowhere and from a template, and a workload with a Service.
const PLATFORM: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: platform}
---
apiVersion: v1
kind: Secret
metadata: {name: prefix, namespace: platform}
stringData: {prefix: name}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: found, labels: {line: found}}
spec:
  kind: state
  component: {type: state.in-memory, version: v1, metadata: [{name: keyPrefix, valueFrom: {key: prefix}}]}
  features: [crud, etag]
  source: {secretRef: {namespace: platform, name: prefix}}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: plain, labels: {line: plain}}
spec:
  kind: pubsub
  component: {type: pubsub.in-memory, version: v1}
  source: {none: {}}
---
apiVersion: mecha.dev/v1alpha1
kind: EnvironmentClass
metadata: {name: development, labels: {type: development}}
spec:
  type: development
  capabilities:
  - {kind: state, backendSelector: {matchLabels: {line: found}}}
  - {kind: pubsub, backendSelector: {matchLabels: {line: plain}}}
---
apiVersion: v1
kind: Namespace
metadata: {name: team-a}
---
apiVersion: mecha.dev/v1alpha1
kind: Environment
metadata: {name: dev, namespace: team-a}
spec: {classSelector: {matchLabels: {type: development}}}
";

/// Who leads, what only tells, and questions that have the form of writes.
const NO_DECISIONS: [&str; 4] = ["leases", "events", "tokenreviews", "subjectaccessreviews"];
/// So long nobody writes before the world counts as settled; a busy machine is slow.
const SETTLED: Duration = Duration::from_secs(8);
/// What a role says that cannot ask its API server.
const WAITING: [&str; 5] = ["the watch is broken", "the lease", "does not tell its version", "the root cannot", "kube"];
/// A role that waits for its API server says nothing for so long.
const WITHOUT_A_WORD: Duration = Duration::from_secs(30);

/// The API server's own record of what the roles write.
struct Record {
    folder: TempDir,
}

impl Record {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let policy = format!(
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived, ResponseStarted]\nrules:\n\
             - level: RequestResponse\n  userGroups: ['system:serviceaccounts:{NAMESPACE}']\n  \
             verbs: [create, update, patch, delete]\n- level: None\n"
        );
        std::fs::write(folder.path().join("policy.yaml"), policy).unwrap();
        Self { folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("audit.log")
    }

    fn of(&self, options: KubernetesOptions) -> KubernetesOptions {
        options
            .arg(format!("--audit-policy-file={}", self.folder.path().join("policy.yaml").display()))
            .arg(format!("--audit-log-path={}", self.path().display()))
            .arg("--audit-log-mode=blocking-strict")
    }

    /// Writes that changed something, one line each. One that says what is so already leaves the object's version as it
    /// was.
    fn changes(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.path()).unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut versions = BTreeMap::new();
        let mut changes = Vec::new();
        for line in log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let (object, after) = (&line["objectRef"], &line["responseObject"]["metadata"]);
            let resource = text(&object["resource"]);
            let refused = line["responseStatus"]["code"].as_u64().is_none_or(|code| code >= 300);
            let tried = text(&line["requestURI"]).contains("dryRun");
            if refused || tried || NO_DECISIONS.contains(&resource.as_str()) {
                continue;
            }
            let version = text(&after["resourceVersion"]);
            if line["verb"] != "delete" && versions.insert(text(&after["uid"]), version.clone()) == Some(version) {
                continue;
            }
            changes.push(format!(
                "{} {} {resource}/{} {}/{} {}",
                text(&line["user"]["username"]).rsplit(':').next().unwrap_or_default(),
                text(&line["verb"]),
                text(&object["subresource"]),
                text(&object["namespace"]),
                text(&object["name"]),
                line["requestObject"],
            ));
        }
        changes
    }

    /// Waits until nothing has been changed for a while; how many changes there were.
    async fn settles(&self, what: &str) -> usize {
        let last = Cell::new((self.changes().len(), Instant::now()));
        wait_until(PATIENCE, &format!("writes to end {what}"), async || {
            tokio::time::sleep(Duration::from_millis(250)).await;
            let now = self.changes().len();
            if now != last.get().0 {
                last.set((now, Instant::now()));
            }
            last.get().1.elapsed() > SETTLED
        })
        .await;
        last.get().0
    }
}

fn field(server: &Kubernetes, object: &[&str], path: &str) -> String {
    let format = format!("jsonpath={{{path}}}");
    server.kubectl_refused(&[&["get", "-o", &format], object].concat()).unwrap_or_default()
}

async fn shows(server: &Kubernetes, object: &[&str], path: &str, text: &str) {
    let what = format!("{path} of {object:?} to be {text}");
    wait_until(PATIENCE, &what, async || field(server, object, path) == text).await;
}

/// What the only binding says.
fn bound(server: &Kubernetes) -> Value {
    let printed = server.kubectl(&["-n", "mecha-cluster-local", "get", "capabilitybindings", "-o", "json"]);
    let bindings: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(bindings["items"].as_array().unwrap().len(), 1, "{bindings}");
    bindings["items"][0]["spec"].clone()
}

const READY: &str = ".status.conditions[?(@.type==\"Ready\")].status";

#[tokio::test(flavor = "multi_thread")]
async fn whoever_starts_again_in_a_world_that_is_as_it_should_be_writes_nothing_and_waits_for_its_server_in_silence() {
    let record = Record::new();
    let Some(mut server) = record.of(KubernetesOptions::new()).start() else { return };
    install(&server);
    let mut roles = ControlPart::start(&server).await;
    server.apply(PLATFORM).unwrap();
    let environment = ["-n", "team-a", "environment", "dev"];
    shows(&server, &environment, READY, "True").await;
    let home = field(&server, &environment, ".status.connectTo");
    let claim = |name: &str, kind: &str| {
        format!(
            "apiVersion: mecha.dev/v1alpha1\nkind: CapabilityClaim\nmetadata: {{name: {name}, namespace: {home}}}\n\
             spec: {{kind: {kind}, scopes: [orders]}}\n---\n"
        )
    };
    server.apply(&[claim("store", "state"), claim("broker", "pubsub")].concat()).unwrap();
    for name in ["store", "broker"] {
        shows(&server, &["-n", &home, "capabilityclaim", name], ".status.phase", "Bound").await;
    }
    // With a sidecar that reports, and a workload that has a Service.
    let node = KubeletOptions::new().start(&server);
    server.kubectl(&["-n", &home, "create", "serviceaccount", "default"]);
    let template = json!({
        "metadata": {"labels": {"app": "orders"}, "annotations": {"dapr.io/enabled": "true", "dapr.io/app-id": "orders"}},
        "spec": {"serviceAccountName": "default", "containers": [{"name": "app", "image": "orders:1"}]},
    });
    let mut pod = template.clone();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!("orders");
    pod["metadata"]["namespace"] = json!(home);
    wait_until(PATIENCE, "the pod to be taken", async || server.apply(&pod.to_string()).is_ok()).await;
    let workload = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "orders", "namespace": home},
        "spec": {"selector": {"matchLabels": {"app": "orders"}}, "template": template},
    });
    server.apply(&workload.to_string()).unwrap();
    shows(&server, &["-n", &home, "service", "orders-dapr"], ".spec.clusterIP", "None").await;
    shows(&server, &["-n", &home, "pod", "orders"], READY, "True").await;
    for name in ["store", "broker"] {
        shows(&server, &["-n", &home, "capabilityclaim", name], READY, "True").await;
    }

    let known = record.settles("at first").await;
    assert!(known > 10, "the record knows {known} changes");
    let decided = bound(&server);

    // API server and roles start again at once, as after a loss of power.
    for role in [HUB, AGENT, INJECTOR] {
        roles.kill(role);
    }
    let logged = [HUB, AGENT, INJECTOR].map(|role| roles.log(role).len());
    server.kill_apiserver();
    let began = Instant::now();
    for role in [HUB, AGENT, INJECTOR] {
        roles.launch(&server, role);
    }
    server.restart_apiserver();
    roles.ready().await;
    let took = began.elapsed();
    println!("API server and roles were ready after {took:.1?}");
    for (role, before) in [HUB, AGENT, INJECTOR].into_iter().zip(logged) {
        let log = roles.log(role);
        let of_waiting = |line: &&str| line.contains(" WARN ") && WAITING.iter().any(|words| line.contains(words));
        let warnings: Vec<&str> = log[before..].lines().filter(of_waiting).collect();
        // A busy machine may take longer, and then they have to say so.
        assert!(warnings.is_empty() || took > WITHOUT_A_WORD, "{role}: {warnings:#?}");
        // The agent leads in two things.
        let leads = if role == AGENT { 2 } else { 1 };
        wait_until(PATIENCE, &format!("{role} to lead again"), async || {
            roles.log(role)[before..].matches("this replica leads").count() >= leads
        })
        .await;
    }
    // The hub's epoch keeps out what its former self may have had on the way; the agent says that it has seen that.
    let binding = ["-n", "mecha-cluster-local", "capabilitybindings"];
    wait_until(PATIENCE, "the agent to have seen the epoch", async || {
        let seen = ".items[0].status.conditions[?(@.type==\"Ready\")].observedGeneration";
        let epoch = bound(&server)["leaderEpoch"].clone();
        epoch != decided["leaderEpoch"]
            && field(&server, &binding, seen) == field(&server, &binding, ".items[0].metadata.generation")
    })
    .await;
    let after = bound(&server);
    for (key, value) in decided.as_object().unwrap().iter().filter(|(key, _)| *key != "leaderEpoch") {
        assert_eq!(after[key], *value, "{key}");
    }
    record.settles("after all have started again").await;
    let mut written = record.changes().split_off(known);
    // The injector's serving key lived in the process that is gone, so API servers learn another root.
    written.retain(|line| !line.contains(" capabilitybindings/") && !line.contains(" mutatingwebhookconfigurations/"));
    assert!(written.is_empty(), "{written:#?}");
    shows(&server, &["-n", &home, "pod", "orders"], READY, "True").await;
    drop(node);
}
