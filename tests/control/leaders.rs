//! Two hubs as processes: one leads, and what it had begun when it was frozen is nobody's but its successor's.

use std::path::PathBuf;

use mecha_testkit::servers::{Kubernetes, KubernetesOptions};
use mecha_tests::{Signal, wait_until};
use serde_json::Value;
use tempfile::TempDir;

use crate::guide::PATIENCE;
use crate::install::{NAMESPACE, install};
use crate::roles::{ControlPart, HUB};

const FIRST: &str = "hub-first";
const SECOND: &str = "hub-second";

/// What a class needs to bind brokers without asking any.
const PLATFORM: &str = "
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: streams, labels: {engine: redis}}
spec:
  kind: pubsub
  component: {type: pubsub.redis, version: v1}
  source: {none: {}}
---
apiVersion: mecha.dev/v1alpha1
kind: EnvironmentClass
metadata: {name: development, labels: {type: development}}
spec:
  type: development
  capabilities:
  - {kind: pubsub, backendSelector: {matchLabels: {engine: redis}}}
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

/// The API server's own record of what hubs wrote, by the token that they showed.
struct Record {
    folder: TempDir,
}

/// One write that was answered.
#[derive(Clone, Debug)]
struct Written {
    /// Which token, by its number.
    by: String,
    resource: String,
    status: u64,
    /// When the server got it; such texts sort by time.
    at: String,
}

impl Record {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let policy = format!(
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived, ResponseStarted]\nrules:\n\
             - level: Metadata\n  users: ['system:serviceaccount:{NAMESPACE}:mecha-hub']\n  \
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

    fn all(&self) -> Vec<Written> {
        let log = std::fs::read_to_string(self.path()).unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines
            .map(|line| Written {
                by: text(&line["user"]["extra"]["authentication.kubernetes.io/credential-id"][0]),
                resource: text(&line["objectRef"]["resource"]),
                status: line["responseStatus"]["code"].as_u64().unwrap(),
                at: text(&line["requestReceivedTimestamp"]),
            })
            .collect()
    }

    /// Tokens in the order in which they first wrote the lease, and when they did.
    fn leaders(&self) -> Vec<(String, String)> {
        let mut leaders: Vec<(String, String)> = Vec::new();
        for write in self.all() {
            let took = write.resource == "leases" && write.status < 300;
            if took && leaders.iter().all(|(by, _)| *by != write.by) {
                leaders.push((write.by, write.at));
            }
        }
        leaders
    }

    /// What decides anything: neither leases, which say who leads, nor events, which only tell.
    fn decisions(&self) -> Vec<Written> {
        let mut all = self.all();
        all.retain(|write| !["leases", "events"].contains(&write.resource.as_str()));
        all
    }
}

fn claims(names: impl Iterator<Item = String>, home: &str) -> String {
    let claim = |name| {
        format!(
            "apiVersion: mecha.dev/v1alpha1\nkind: CapabilityClaim\nmetadata: {{name: {name}, namespace: {home}}}\n\
             spec: {{kind: pubsub}}\n"
        )
    };
    names.map(claim).collect::<Vec<_>>().join("---\n")
}

fn read(server: &Kubernetes, args: &[&str]) -> Value {
    serde_json::from_str(&server.kubectl(&[&["get", "-o", "json"], args].concat())).unwrap()
}

async fn all_bound(server: &Kubernetes, home: &str, count: usize) {
    wait_until(PATIENCE, &format!("{count} bound claims"), async || {
        let claims = read(server, &["-n", home, "capabilityclaims"]);
        claims["items"].as_array().unwrap().iter().filter(|claim| claim["status"]["phase"] == "Bound").count() == count
    })
    .await;
}

async fn led_by(server: &Kubernetes, name: &str) {
    let holder = format!("{name}-0");
    wait_until(PATIENCE, &format!("{holder} to lead"), async || {
        let path = "jsonpath={.spec.holderIdentity}";
        server.kubectl_refused(&["-n", NAMESPACE, "get", "lease", "mecha-hub", "-o", path]).is_ok_and(|h| h == holder)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_hub_writes_nothing_late_and_follows_when_it_goes_on() {
    let record = Record::new();
    let Some(server) = record.of(KubernetesOptions::new()).start() else { return };
    install(&server);
    let mut hubs = ControlPart::none(None);
    hubs.launch_replica(&server, HUB, FIRST);
    led_by(&server, FIRST).await;
    hubs.launch_replica(&server, HUB, SECOND);
    hubs.ready().await;
    server.apply(PLATFORM).unwrap();
    let environment = ["-n", "team-a", "environment", "dev"];
    wait_until(PATIENCE, "the environment's namespace", async || {
        let home = read(&server, &environment)["status"]["connectTo"].as_str().map(str::to_owned);
        home.is_some_and(|home| server.kubectl_refused(&["get", "namespace", &home]).is_ok())
    })
    .await;
    let home = read(&server, &environment)["status"]["connectTo"].as_str().unwrap().to_owned();

    // In the middle of many writes.
    let before = record.decisions().len();
    let wanted = claims((0..30).map(|n| format!("early-{n}")), &home);
    let applied = std::thread::scope(|scope| {
        let applying = scope.spawn(|| server.apply(&wanted));
        let deadline = std::time::Instant::now() + PATIENCE;
        while record.decisions().len() < before + 3 && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        hubs.signal(FIRST, Signal::Stop);
        applying.join().unwrap()
    });
    applied.unwrap();
    led_by(&server, SECOND).await;
    all_bound(&server, &home, 30).await;

    // And while it sleeps the world goes on.
    server.apply(&claims((0..5).map(|n| format!("late-{n}")), &home)).unwrap();
    all_bound(&server, &home, 35).await;
    hubs.signal(FIRST, Signal::Continue);
    wait_until(PATIENCE, "the first to notice", async || {
        hubs.metric(FIRST, "mecha_hub_leader").await == Some(0.0) && hubs.log(FIRST).contains("no longer leads")
    })
    .await;
    server.apply(&claims(std::iter::once("after".to_owned()), &home)).unwrap();
    all_bound(&server, &home, 36).await;

    let leaders = record.leaders();
    let [(first, _), (second, since)] = &leaders[..] else { panic!("two led: {leaders:?}") };
    let decisions = record.decisions();
    let by_first: Vec<_> = decisions.iter().filter(|write| write.by == *first).collect();
    let by_second = decisions.iter().filter(|write| write.by == *second).count();
    let late: Vec<_> = by_first.iter().filter(|write| write.at > *since).collect();
    let taken: Vec<_> = late.iter().filter(|write| write.status < 300).collect();
    println!(
        "{} writes of the first, {by_second} of the second, {} late, {} taken",
        by_first.len(),
        late.len(),
        taken.len()
    );
    assert!(by_first.len() >= 3 && by_second >= 30, "both did a part of the work");
    assert!(taken.is_empty(), "late writes: {taken:?}");
    // One binding, each claim once, of the second's epoch.
    let bindings = read(&server, &["-n", "mecha-cluster-local", "capabilitybindings"]);
    let bindings = bindings["items"].as_array().unwrap();
    assert_eq!(bindings.len(), 1);
    assert_eq!(bindings[0]["spec"]["leaderEpoch"], 2);
    assert_eq!(bindings[0]["spec"]["entries"].as_array().unwrap().len(), 36);

    // It is as good as new: the second goes, and it leads.
    hubs.signal(SECOND, Signal::Term);
    led_by(&server, FIRST).await;
    server.apply(&claims(std::iter::once("again".to_owned()), &home)).unwrap();
    all_bound(&server, &home, 37).await;
    let epoch = &read(&server, &["-n", "mecha-cluster-local", "capabilitybindings"])["items"][0]["spec"]["leaderEpoch"];
    assert_eq!(*epoch, 3);
}
