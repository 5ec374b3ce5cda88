//! What the platform team has: servers, backends, one class; and how it works with them, by `mecha` and `kubectl`.

use std::process::{Command, Stdio};
use std::time::Duration;

use mecha_testkit::servers::{Kafka, Kubernetes, Postgres, Redis, absent};
use mecha_tests::{Http, free_port, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::load::Apps;
use crate::install::install;
use crate::kubelet::{Kubelet, KubeletOptions};
use crate::roles::ControlPart;

/// Longest wait for something that takes several roles and twenty sidecars; a busy machine is slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);
/// The claim that all apps share: its name is the component's name in their code.
pub(crate) const BROKER: &str = "events";
pub(crate) const CLASS: &str = "production";

pub(crate) fn app_id(number: usize) -> String {
    format!("app-{number:02}")
}

/// The claim that is app `number`'s own.
pub(crate) fn store(number: usize) -> String {
    format!("store-{number:02}")
}

/// The class, of which an edit changes one line.
#[derive(Clone, Copy)]
pub(crate) struct Class {
    pub(crate) broker: &'static str,
    pub(crate) store: &'static str,
    pub(crate) empty_ok: bool,
}

impl Class {
    fn yaml(self) -> String {
        let Self { broker, store, empty_ok } = self;
        let empty = if empty_ok { ", emptyOk: true" } else { "" };
        format!(
            "apiVersion: mecha.dev/v1alpha1
kind: EnvironmentClass
metadata: {{name: {CLASS}, labels: {{type: production}}}}
spec:
  type: production
  capabilities:
  - kind: pubsub
    backendSelector: {{matchLabels: {{engine: {broker}}}}}
    swap: {{strategy: Drain, approval: Manual, deadline: 30m}}
  - kind: state
    backendSelector: {{matchLabels: {{engine: {store}}}}}
    require: [crud, etag]
    swap: {{strategy: Immediate, approval: Automatic, deadline: 30m{empty}}}
"
        )
    }
}

/// A cluster with a fleet of apps. Fields end in this order.
pub(crate) struct Platform {
    pub(crate) node: Kubelet,
    _roles: ControlPart,
    pub(crate) server: Kubernetes,
    pub(crate) apps: Apps,
    pub(crate) redis: Redis,
    pub(crate) postgres: Postgres,
    pub(crate) streams: Redis,
    kafka: Kafka,
    folder: TempDir,
    /// The CONNECT-TO namespace.
    pub(crate) home: String,
}

/// What is offered; every backend has its address in a Secret.
fn backends(offers: &[(&str, &str, &str, &str, &str, String)]) -> String {
    let mut yaml = "apiVersion: v1\nkind: Namespace\nmetadata: {name: databases}\n".to_owned();
    for (name, engine, kind, component, metadata, address) in offers {
        let features = if *kind == "state" { "[crud, etag, transactional]" } else { "[]" };
        yaml.push_str(&format!(
            "---
apiVersion: v1
kind: Secret
metadata: {{name: {name}, namespace: databases}}
stringData: {{address: '{address}'}}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {{name: {name}, labels: {{engine: {engine}}}}}
spec:
  kind: {kind}
  component: {{type: {component}, version: v1, metadata: [{metadata}]}}
  features: {features}
  source: {{secretRef: {{name: {name}, namespace: databases}}}}
"
        ));
    }
    yaml
}

impl Platform {
    /// Everything up to `count` apps whose sidecars are ready; `None` where a server is not installed.
    pub(crate) async fn start(count: usize, class: Class) -> Option<Self> {
        let server = Kubernetes::start()?;
        let (Some(redis), Some(streams)) = (Redis::start(), Redis::start()) else {
            absent("redis-server", Redis::missing().unwrap_or_default());
            return None;
        };
        let (kafka, postgres) = (Kafka::start()?, Postgres::start()?);
        install(&server);
        let roles = ControlPart::start(&server).await;
        let apps = Apps::start(count).await;
        let node = apps.servers.iter().enumerate().fold(KubeletOptions::new(), |node, (number, app)| {
            node.served(&format!("example/{}:1", app_id(number)), app.port())
        });
        let node = node.start(&server);
        let folder = TempDir::new().unwrap();
        let mut platform =
            Self { node, _roles: roles, server, apps, redis, postgres, streams, kafka, folder, home: String::new() };
        platform.offer(class).await;
        platform.run_apps(count).await;
        Some(platform)
    }

    async fn offer(&mut self, class: Class) {
        let host = "{name: redisHost, valueFrom: {key: address}}";
        let brokers = "{name: brokers, valueFrom: {key: address}}, {name: authType, value: none}, \
                       {name: initialOffset, value: oldest}";
        let postgres = "{name: connectionString, valueFrom: {key: address}}, {name: maxConns, value: '2'}";
        let nowhere = format!("127.0.0.1:{}", free_port());
        let offers = [
            ("events-kafka", "kafka", "pubsub", "pubsub.kafka", brokers, self.kafka.address()),
            ("events-streams", "redis", "pubsub", "pubsub.redis", host, self.streams.address()),
            ("store-redis", "redis", "state", "state.redis", host, self.redis.address()),
            ("store-postgres", "postgres", "state", "state.postgresql", postgres, self.postgres.url()),
            // Nobody listens there.
            ("store-nowhere", "nowhere", "state", "state.redis", host, nowhere),
        ];
        self.write("backends.yaml", &backends(&offers));
        self.write("class.yaml", &class.yaml());
        self.write(
            "environment.yaml",
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: team-a}\n---\napiVersion: mecha.dev/v1alpha1\n\
             kind: Environment\nmetadata: {name: shop, namespace: team-a}\n\
             spec: {classSelector: {matchLabels: {type: production}}}\n",
        );
        self.mecha(&["apply", "backends.yaml", "class.yaml", "environment.yaml"], 0);
        self.mecha(&["wait", "environment/shop", "-n", "team-a", "--timeout", "5m"], 0);
        let connect_to = "jsonpath={.status.connectTo}";
        self.home = self.server.kubectl(&["-n", "team-a", "get", "environment", "shop", "-o", connect_to]);
        // The controllers of a whole cluster make it.
        self.server.kubectl(&["-n", &self.home, "create", "serviceaccount", "default"]);
    }

    async fn run_apps(&mut self, count: usize) {
        let claim = |name: &str, kind: &str, scopes: &[String]| {
            json!({"apiVersion": "mecha.dev/v1alpha1", "kind": "CapabilityClaim",
                "metadata": {"name": name, "namespace": self.home}, "spec": {"kind": kind, "scopes": scopes}})
        };
        let pod = |number: usize| {
            let id = app_id(number);
            json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": id, "namespace": self.home, "annotations": {
                    "dapr.io/enabled": "true", "dapr.io/app-id": id, "dapr.io/app-port": "8080"}},
                "spec": {"serviceAccountName": "default", "containers": [{
                    "name": "app", "image": format!("example/{id}:1"), "ports": [{"containerPort": 8080}]}]}})
        };
        let stores = (0..count).map(|number| claim(&store(number), "state", &[app_id(number)]));
        let claims: Vec<_> = stores.chain([claim(BROKER, "pubsub", &[])]).collect();
        let text = |objects: Vec<Value>| objects.iter().map(Value::to_string).collect::<Vec<_>>().join("\n---\n");
        self.write("claims.yaml", &text(claims));
        self.write("pods.yaml", &text((0..count).map(pod).collect()));
        self.mecha(&["apply", "claims.yaml"], 0);
        self.server.kubectl(&["apply", "-f", &self.path("pods.yaml")]);
        wait_until(PATIENCE, "every pod to be ready", async || {
            let pods: Value = self.json(&["-n", &self.home, "get", "pods"]);
            let ready = |pod: &&Value| {
                let conditions = pod["status"]["conditions"].as_array();
                conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
            };
            pods["items"].as_array().unwrap().iter().filter(ready).count() == count
        })
        .await;
        // A claim is ready as long as no sidecar is in its scope, and may still say so when the first ones are there.
        wait_until(PATIENCE, "every sidecar to have its components", async || {
            let bindings = self.json(&["get", "capabilitybindings", "-A"]);
            let has = |entry: &Value, of: usize| entry["sidecars"] == format!("{of}/{of}") && entry["ready"] == true;
            let entries = bindings["items"][0]["status"]["entries"].as_array().cloned().unwrap_or_default();
            let all = entries.iter().all(|entry| has(entry, if entry["claim"] == BROKER { count } else { 1 }));
            all && entries.len() == count + 1
        })
        .await;
        self.mecha(&["wait", "claims.yaml", "--timeout", "5m"], 0);
    }

    /// The ports of all sidecars' APIs.
    pub(crate) fn ports(&self) -> Vec<u16> {
        (0..self.apps.servers.len()).map(|number| self.node.port(&self.home, &app_id(number), 3500)).collect()
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    /// Writes `class.yaml` anew; nothing is put into the cluster.
    pub(crate) fn edit(&self, class: Class) {
        self.write("class.yaml", &class.yaml());
    }

    /// Runs mecha as the platform team does; it must end with this status. What it printed.
    #[track_caller]
    pub(crate) fn mecha(&self, args: &[&str], status: i32) -> String {
        let output = Command::new(mecha_tests::mecha())
            .args(args)
            .current_dir(self.folder.path())
            .env("KUBECONFIG", self.server.kubeconfig())
            .env("MECHA_HOME", self.folder.path().join("home"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(status), "mecha {args:?}:\n{out}\n{err}");
        out
    }

    /// `mecha plan` of the edited class.
    #[track_caller]
    pub(crate) fn plan(&self, status: i32) -> Value {
        serde_json::from_str(&self.mecha(&["plan", "class.yaml", "-o", "json"], status)).unwrap()
    }

    /// What kubectl shows, as JSON.
    #[track_caller]
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.server.kubectl(&[args, &["-o", "json"]].concat())).unwrap()
    }

    /// All claims of the environment.
    pub(crate) fn claims(&self) -> Vec<Value> {
        let list = self.json(&["-n", &self.home, "get", "capabilityclaims"]);
        list["items"].as_array().unwrap().clone()
    }

    /// The claims that are stores.
    pub(crate) fn stores(&self) -> Vec<Value> {
        self.claims().into_iter().filter(|claim| claim["spec"]["kind"] == "state").collect()
    }

    /// The receipts of the move of `claim` to `to` at the sidecar with this port; none while it goes on.
    pub(crate) async fn receipt(&self, port: u16, claim: &str, to: &str) -> Option<Value> {
        let all = Http::tcp(port).get("/v1.0-mecha/swaps").send().await.expect(200).json();
        let ended = |r: &Value| !["draining", "preparing"].contains(&r["outcome"].as_str().unwrap_or_default());
        let mine = |r: &Value| r["name"] == claim && r["move"]["to"] == to && ended(r);
        all["swaps"].as_array().unwrap().iter().find(|r| mine(r)).cloned()
    }
}

/// A condition of an object, as `status reason: message`.
pub(crate) fn condition(object: &Value, kind: &str) -> String {
    let all = object["status"]["conditions"].as_array();
    let found = all.and_then(|all| all.iter().find(|c| c["type"] == kind));
    let text = |key: &str| found.and_then(|c| c[key].as_str()).unwrap_or_default().to_owned();
    format!("{} {}: {}", text("status"), text("reason"), text("message"))
}
