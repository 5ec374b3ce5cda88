//! A cluster with hubs in it, and a shop that needs a store and a broker.

use std::path::Path;
use std::time::Duration;

use kube::{Api, Client};
pub(crate) use mecha_apiserver::testing::eventually;
use mecha_apiserver::testing::{self, LIMIT, TIMING};
use mecha_apiserver::{
    CapabilityBackend, CapabilityBinding, CapabilityClaim, Environment, EnvironmentClass, Role, Stored, apply_status,
};
use mecha_decide::{Assume, Consent, Evaluation, Memory, World, connect_to};
use mecha_hub::{Options, RunError, run};
use mecha_resources::kinds::{
    BindingEntry, CapabilityBindingStatus, ClaimConditionType, ClaimReason, Documents, EntryProgress, KindSpec,
    MoveCounts,
};
use mecha_testkit::servers::Kubernetes;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

const PAUSE: Duration = Duration::from_millis(20);

/// Who the hub is for the API server.
pub(crate) const ACCOUNT: &str = "system:serviceaccount:mecha-system:mecha-hub";

/// The policy and the offers of a platform. STORE and BROKER are engines.
const PLATFORM: &str = r#"
apiVersion: mecha.dev/v1alpha1
kind: EnvironmentClass
metadata: {name: development, labels: {type: development}}
spec:
  type: development
  capabilities:
  - kind: pubsub
    backendSelector: {matchLabels: {engine: BROKER}}
    swap: {strategy: Drain, deadline: 1h}
  - kind: state
    backendSelector: {matchLabels: {engine: STORE}}
    require: [crud, etag]
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: kafka, labels: {engine: kafka}}
spec:
  kind: pubsub
  component: {type: pubsub.kafka, version: v1, metadata: [{name: brokers, valueFrom: {key: brokers}}]}
  source: {secretRef: {name: kafka, namespace: platform}}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: streams, labels: {engine: redis}}
spec:
  kind: pubsub
  component: {type: pubsub.redis, metadata: [{name: redisHost, valueFrom: {key: host}}]}
  source: {secretRef: {name: redis, namespace: platform}}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: pg-eu, labels: {engine: postgres}}
spec:
  kind: state
  component:
    type: state.postgresql
    version: v2
    initTimeout: 20s
    metadata: [{name: connectionString, valueFrom: {key: uri}}, {name: tablePrefix, value: "{{ claim.slug }}_"}]
  features: [crud, etag, transactional, ttl]
  source: {secretRef: {name: pg, namespace: platform}}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: redis-eu, labels: {engine: redis}}
spec:
  kind: state
  component: {type: state.redis, version: v1}
  features: [crud, etag, ttl]
  source: {none: {}}
"#;

const ENVIRONMENT: &str = r#"
apiVersion: mecha.dev/v1alpha1
kind: Environment
metadata: {name: team-a-dev-env, namespace: team-a}
spec:
  compositionSelector: {matchLabels: {type: development}}
  parameters: {installInfra: true, frontend: {debug: true}}
"#;

/// What a developer writes.
pub(crate) const EVENTS: &str = r#"
apiVersion: mecha.dev/v1alpha1
kind: CapabilityClaim
metadata: {name: events, namespace: SPACE}
spec: {kind: pubsub, scopes: [orders-api, billing]}
"#;
pub(crate) const ORDERS: &str = r#"
apiVersion: mecha.dev/v1alpha1
kind: CapabilityClaim
metadata: {name: orders, namespace: SPACE}
spec: {kind: state, features: [ttl], scopes: [orders-api, billing]}
"#;

/// The platform with these engines.
pub(crate) fn platform(broker: &str, store: &str) -> String {
    PLATFORM.replace("BROKER", broker).replace("STORE", store)
}

/// CONNECT-TO of the shop's environment.
pub(crate) fn space() -> String {
    let mut documents = Documents::default();
    documents.read_text("environment.yaml", ENVIRONMENT);
    connect_to(&documents.environments[0].value)
}

/// What `mecha dev` decides about the same documents.
pub(crate) fn on_a_laptop(documents: &[&str], before: &Memory, consent: &Consent) -> Evaluation {
    let text = documents.join("\n---\n").replace("SPACE", &space());
    let mut read = Documents::default();
    read.read_text("shop.yaml", &text);
    assert!(read.diagnostics.is_empty(), "{:#?}", read.diagnostics);
    World::from_documents(&read, Assume::Documents).evaluate(before, consent, 0)
}

/// An API server with the kinds and the hub's rights.
pub(crate) struct Cluster {
    pub(crate) server: Kubernetes,
    pub(crate) client: Client,
    space: String,
}

impl Cluster {
    pub(crate) async fn start() -> Option<Self> {
        // What the role logs belongs to what a failed test shows.
        let _ = tracing_subscriber::fmt().with_env_filter("info,kube_client=off").with_test_writer().try_init();
        let server = Kubernetes::start()?;
        server.define(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/crds")));
        server.apply(include_str!("rights.yaml")).unwrap();
        server.create_namespaces(&["team-a"]);
        let client = client(&server, None).await;
        Some(Self { server, client, space: space() })
    }

    /// With the shop's platform and environment, and a hub that has made its namespace.
    pub(crate) async fn shop(broker: &str, store: &str) -> Option<(Self, Hub)> {
        let cluster = Self::start().await?;
        cluster.apply(&platform(broker, store));
        cluster.apply(ENVIRONMENT);
        for backend in ["pg-eu", "redis-eu"] {
            cluster.proven(backend, &["crud", "etag", "ttl"]).await;
        }
        let hub = cluster.hub("a").await;
        cluster.environment_is("AllReady").await;
        Some((cluster, hub))
    }

    pub(crate) fn options() -> Options {
        Options { lease: TIMING, resync: Duration::from_secs(1), ..Options::default() }
    }

    pub(crate) async fn hub(&self, instance: &str) -> Hub {
        let client = client(&self.server, Some(ACCOUNT)).await;
        Hub::start(client, instance, Self::options())
    }

    /// Applies documents as their authors do; SPACE is CONNECT-TO.
    pub(crate) fn apply(&self, documents: &str) {
        self.server.apply(&documents.replace("SPACE", &self.space)).unwrap();
    }

    /// Says what a probe of the backend would.
    pub(crate) async fn proven(&self, backend: &str, features: &[&str]) {
        let api: Api<CapabilityBackend> = Api::all(self.client.clone());
        let ready = json!({"type": "Ready", "status": "True", "reason": "ProbePassed", "message": "",
            "lastTransitionTime": "2026-11-21T03:00:00Z"});
        let status = json!({"verifiedFeatures": features, "conditions": [ready]});
        apply_status(&api, backend, "mecha-sources", &status).await.unwrap();
    }

    pub(crate) fn api<S: KindSpec>(&self, namespace: &str) -> Api<Stored<S>> {
        if namespace.is_empty() {
            Api::all(self.client.clone())
        } else {
            Api::namespaced(self.client.clone(), namespace)
        }
    }

    pub(crate) fn claims(&self) -> Api<CapabilityClaim> {
        self.api(&self.space)
    }

    pub(crate) fn bindings(&self) -> Api<CapabilityBinding> {
        self.api("mecha-cluster-local")
    }

    pub(crate) async fn claim(&self, name: &str) -> CapabilityClaim {
        self.claims().get(name).await.unwrap()
    }

    pub(crate) async fn class(&self) -> EnvironmentClass {
        self.api("").get("development").await.unwrap()
    }

    pub(crate) async fn environment(&self) -> Environment {
        self.api("team-a").get("team-a-dev-env").await.unwrap()
    }

    pub(crate) async fn binding(&self) -> CapabilityBinding {
        self.bindings().get(&self.space).await.unwrap()
    }

    pub(crate) async fn entry(&self, claim: &str) -> Option<BindingEntry> {
        let binding = self.bindings().get_opt(&self.space).await.unwrap()?;
        binding.spec.entries.into_iter().find(|entry| entry.claim == claim)
    }

    pub(crate) async fn environment_is(&self, reason: &str) {
        eventually(&format!("the environment is {reason}"), async || {
            let status = self.environment().await.status?;
            let ready = status.conditions.into_iter().find(|c| c.kind.as_str() == "Ready")?;
            (ready.reason.as_str() == reason).then_some(())
        })
        .await;
    }

    /// Waits until a condition of a claim has this reason, and gives its message.
    pub(crate) async fn claim_is(&self, name: &str, kind: ClaimConditionType, reason: ClaimReason) -> String {
        eventually(&format!("{name} is {kind} for {reason}"), async || {
            let status = self.claim(name).await.status?;
            let condition = status.conditions.into_iter().find(|c| c.kind == kind)?;
            (condition.reason == reason).then_some(condition.message)
        })
        .await
    }

    /// Waits until the claim has a backend.
    pub(crate) async fn bound(&self, name: &str) -> String {
        self.claim_is(name, ClaimConditionType::Bound, ClaimReason::BackendSelected).await
    }

    /// Waits until nothing moves any more, and gives the entry.
    pub(crate) async fn settled(&self, claim: &str, backend: &str) -> BindingEntry {
        eventually(&format!("{claim} has settled at {backend}"), async || {
            self.entry(claim).await.filter(|e| e.swap.is_none() && e.backend == backend)
        })
        .await
    }

    /// Reports for the entry as an agent with two sidecars would.
    pub(crate) async fn report(&self, claim: &str, edit: impl FnOnce(&mut EntryProgress)) {
        let binding = self.binding().await;
        let entry = binding.spec.entries.iter().find(|entry| entry.claim == claim).unwrap();
        let mut progress = EntryProgress {
            revision: entry.revision,
            phase: entry.swap.as_ref().map(|record| record.phase),
            total: 2,
            reached: 2,
            counts: Some(MoveCounts { in_flight: 7, finished: 7, redelivered: 1, failed: 0 }),
            ..EntryProgress::default()
        };
        edit(&mut progress);
        let failed = progress.failed > 0;
        let status = json!({
            "appliedRevision": binding.spec.revision,
            "entries": [{
                "claim": claim, "ready": !failed, "sidecars": "2/2", "progress": progress,
                "message": if failed { "billing-0: connection refused" } else { "" },
            }],
        });
        let typed: CapabilityBindingStatus = serde_json::from_value(status.clone()).unwrap();
        assert_eq!(typed.entries.len(), 1);
        apply_status(&self.bindings(), &self.space, "mecha-agent", &status).await.unwrap();
    }

    /// Waits until the move of a claim is in this phase.
    pub(crate) async fn phase(&self, claim: &str, phase: &str) -> BindingEntry {
        eventually(&format!("{claim} is in phase {phase}"), async || {
            let entry = self.entry(claim).await?;
            (entry.swap.as_ref()?.phase.as_str() == phase).then_some(entry)
        })
        .await
    }

    /// Notes of the events about an object with this reason.
    pub(crate) async fn event(&self, namespace: &str, reason: &str) -> String {
        eventually(&format!("an event {reason}"), async || {
            let printed = self.server.kubectl(&["-n", namespace, "get", "events.events.k8s.io", "-o", "json"]);
            let events: Value = serde_json::from_str(&printed).unwrap();
            let found = events["items"].as_array()?.iter().find(|event| event["reason"] == reason)?;
            Some(found["note"].as_str()?.to_owned())
        })
        .await
    }

    /// Resource versions of everything that the hub may write.
    pub(crate) fn versions(&self) -> String {
        let path = "jsonpath={range .items[*]}{.kind}/{.metadata.name}={.metadata.resourceVersion}{\"\\n\"}{end}";
        self.server.kubectl(&["get", "mecha,namespaces", "-A", "-o", path])
    }

    pub(crate) fn merge(&self, kind: &str, namespace: &str, name: &str, patch: &str) {
        let mut args = vec!["patch", kind, name, "--type=merge", "-p", patch];
        if !namespace.is_empty() {
            args.extend(["-n", namespace]);
        }
        self.server.kubectl(&args);
    }

    /// The fields of an object that the hub owns, as paths of two steps.
    pub(crate) async fn owned(&self, object: &impl kube::Resource) -> Vec<String> {
        let managed = object.meta().managed_fields.clone().unwrap_or_default();
        let mine = managed.into_iter().filter(|m| m.manager.as_deref() == Some("mecha-hub"));
        let mut paths = Vec::new();
        for fields in mine.filter_map(|m| m.fields_v1) {
            let Value::Object(top) = fields.0 else { continue };
            for (name, below) in top {
                match (name.as_str(), below) {
                    ("f:metadata", Value::Object(below)) => {
                        paths.extend(below.keys().filter(|k| *k != ".").map(|k| format!("metadata/{}", &k[2..])));
                    }
                    (name, _) => paths.push(name[2..].to_owned()),
                }
            }
        }
        paths.sort();
        paths.dedup();
        paths
    }

    pub(crate) fn space(&self) -> &str {
        &self.space
    }

    /// Whether there is such an object.
    pub(crate) fn exists(&self, kind: &str, namespace: &str, name: &str) -> bool {
        let mut args = vec!["get", kind, name, "--ignore-not-found", "-o", "name"];
        if !namespace.is_empty() {
            args.extend(["-n", namespace]);
        }
        !self.server.kubectl(&args).trim().is_empty()
    }
}

pub(crate) async fn client(server: &Kubernetes, user: Option<&str>) -> Client {
    testing::client(&server.kubeconfig(), user).await
}

/// One replica.
pub(crate) struct Hub {
    pub(crate) role: Role,
    running: JoinHandle<Result<(), RunError>>,
}

impl Hub {
    pub(crate) fn start(client: Client, instance: &str, options: Options) -> Self {
        let role = testing::role(client, "mecha-system", instance);
        let running = tokio::spawn(run(options, role.clone()));
        Self { role, running }
    }

    /// Ends it as a rollout does.
    pub(crate) async fn stop(self) {
        tokio::time::timeout(LIMIT, self.role.tasks.drain()).await.unwrap();
        tokio::time::timeout(LIMIT, self.running).await.unwrap().unwrap().unwrap();
    }

    /// The value of a metric, without labels or with these.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        testing::metric(&self.role, name)
    }

    /// Waits until it has looked at everything `times` more times and written nothing.
    pub(crate) async fn quiet(&self, times: u32) {
        let turns = || self.metric("mecha_hub_reconcile_seconds_count");
        let writes = || self.metric("mecha_hub_writes_total{result=\"done\"}");
        eventually("a hub that writes nothing", async || {
            let (from, written) = (turns(), writes());
            while turns() < from + f64::from(times) {
                tokio::time::sleep(PAUSE).await;
            }
            (writes() - written == 0.0).then_some(())
        })
        .await;
    }
}
