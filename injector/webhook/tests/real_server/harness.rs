//! A cluster with injectors in it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::{Api, Client};
use mecha_apiserver::Role;
use mecha_apiserver::testing::{self, TIMING};
pub(crate) use mecha_apiserver::testing::{LIMIT, eventually};
use mecha_testkit::servers::{Kubernetes, KubernetesOptions};
use mecha_webhook::{CanaryOptions, CertificateOptions, Options, Reach, RepairOptions, RunError, run};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// An API server, and the one address under which it knows the webhook.
pub(crate) struct Cluster {
    pub(crate) server: Kubernetes,
    pub(crate) client: Client,
    pub(crate) front: Front,
}

impl Cluster {
    pub(crate) async fn start() -> Option<Self> {
        Self::with(KubernetesOptions::new()).await
    }

    pub(crate) async fn with(options: KubernetesOptions) -> Option<Self> {
        // What the role logs belongs to what a failed test shows.
        let _ = tracing_subscriber::fmt().with_env_filter("info,kube_client=off").with_test_writer().try_init();
        let server = options.start()?;
        let rights = include_str!("rights.yaml");
        server.apply(rights).unwrap();
        let client = testing::client(&server.kubeconfig(), None).await;
        let front = Front::open().await;
        Some(Self { server, client, front })
    }

    /// Fast settings for a test.
    pub(crate) fn options(&self) -> Options {
        Options {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            reach: Reach::Url {
                url: format!("https://127.0.0.1:{}/mutate", self.front.port),
                host: "127.0.0.1".to_owned(),
            },
            certificate: CertificateOptions { settle: Duration::from_millis(300), ..CertificateOptions::default() },
            canary: CanaryOptions { every: Duration::from_secs(1), ..CanaryOptions::default() },
            repair: RepairOptions { after: Duration::from_secs(2), ..RepairOptions::default() },
            lease: TIMING,
            linger: Duration::ZERO,
            ..Options::default()
        }
    }

    /// A running replica that calls itself ready, behind the front.
    pub(crate) async fn injector(&self, instance: &str, options: Options) -> Injector {
        let port = free_port();
        let injector = self.start_injector(instance, Options { listen: localhost(port), ..options }).await;
        self.front.add(port);
        eventually(&format!("{instance} is ready"), async || {
            let begun = injector.metric("mecha_injector_configuration_generation") > 0.0;
            (begun && injector.role.ready.waiting().is_empty()).then_some(())
        })
        .await;
        injector
    }

    async fn start_injector(&self, instance: &str, options: Options) -> Injector {
        let port = options.listen.port();
        let account = "system:serviceaccount:mecha-system:mecha-injector";
        let client = testing::client(&self.server.kubeconfig(), Some(account)).await;
        let role = testing::role(client, "mecha-system", instance);
        let running = tokio::spawn(run(options, role.clone()));
        Injector { role, running, port }
    }

    /// Creates a pod; the answer of the API server as it is.
    pub(crate) async fn create(&self, namespace: &str, pod: &Value) -> Result<Value, kube::Error> {
        create(&self.client, namespace, pod, false).await
    }

    /// What would become of a pod.
    pub(crate) async fn try_out(&self, namespace: &str, pod: &Value) -> Result<Value, kube::Error> {
        create(&self.client, namespace, pod, true).await
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let args: Vec<&str> = args.iter().copied().chain(["-o", "json"]).collect();
        serde_json::from_str(&self.server.kubectl(&args)).unwrap()
    }

    pub(crate) fn pods(&self, namespace: &str) -> Vec<Value> {
        self.json(&["-n", namespace, "get", "pods"])["items"].as_array().unwrap().clone()
    }

    /// Reasons and notes of the events of a namespace.
    pub(crate) fn events(&self, namespace: &str) -> Vec<(String, String)> {
        let events = self.json(&["-n", namespace, "get", "events.events.k8s.io"]);
        let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
        events["items"].as_array().unwrap().iter().map(|event| (text(event, "reason"), text(event, "note"))).collect()
    }

    /// Waits for an event with this reason, and gives its note.
    pub(crate) async fn event(&self, namespace: &str, reason: &str) -> String {
        eventually(&format!("an event {reason}"), async || {
            self.events(namespace).into_iter().find(|(found, _)| found == reason).map(|(_, note)| note)
        })
        .await
    }

    /// The webhook's registration.
    pub(crate) fn registration(&self) -> Value {
        self.json(&["get", "mutatingwebhookconfiguration", "mecha-injector"])
    }
}

async fn create(client: &Client, namespace: &str, pod: &Value, dry_run: bool) -> Result<Value, kube::Error> {
    let resource = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
    let pods: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let params = PostParams { dry_run, ..PostParams::default() };
    let made = pods.create(&params, &serde_json::from_value(pod.clone()).unwrap()).await?;
    Ok(serde_json::to_value(made).unwrap())
}

/// One replica.
pub(crate) struct Injector {
    pub(crate) role: Role,
    running: JoinHandle<Result<(), RunError>>,
    pub(crate) port: u16,
}

impl Injector {
    /// Ends it as a signal would.
    pub(crate) async fn stop(self) {
        tokio::time::timeout(LIMIT, self.role.tasks.drain()).await.unwrap();
        tokio::time::timeout(LIMIT, self.running).await.unwrap().unwrap().unwrap();
    }

    /// Ends it without a word, as a lost node does.
    pub(crate) async fn kill(self) {
        self.running.abort();
        assert!(self.running.await.is_err(), "it ran until it was killed");
        tokio::time::timeout(LIMIT, self.role.tasks.drain()).await.unwrap();
    }

    /// The value of a metric; 0 when it has none.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        testing::metric(&self.role, series)
    }
}

/// Passes connections on to the replicas that live, in turn, as a Service does.
pub(crate) struct Front {
    pub(crate) port: u16,
    replicas: Arc<Mutex<Vec<u16>>>,
    frozen: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Front {
    async fn open() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let replicas: Arc<Mutex<Vec<u16>>> = Arc::default();
        let frozen = watch::Sender::new(false);
        let (known, ice) = (replicas.clone(), frozen.subscribe());
        let task = tokio::spawn(async move {
            // Connections end with the front.
            let mut connections = JoinSet::new();
            let mut turn = 0;
            while let Ok((from, _)) = listener.accept().await {
                turn += 1;
                let mut replicas = known.lock().clone();
                let first = turn % replicas.len().max(1);
                replicas.rotate_left(first);
                connections.spawn(pass(from, replicas, ice.clone()));
            }
        });
        Self { port, replicas, frozen, task }
    }

    pub(crate) fn add(&self, port: u16) {
        self.replicas.lock().push(port);
    }

    pub(crate) fn remove(&self, port: u16) {
        self.replicas.lock().retain(|known| *known != port);
    }

    /// While frozen, connections are taken and nothing answers on them. Open ones end with every change.
    pub(crate) fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }
}

async fn pass(mut from: TcpStream, replicas: Vec<u16>, mut ice: watch::Receiver<bool>) {
    if *ice.borrow_and_update() {
        let _ = ice.changed().await;
        return;
    }
    let mut to = None;
    for port in replicas {
        to = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok();
        if to.is_some() {
            break;
        }
    }
    let Some(mut to) = to else { return };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut from, &mut to) => {}
        _ = ice.changed() => {}
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A pod, opted in where the annotations say so.
pub(crate) fn pod(name: &str, annotations: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"serviceAccountName": "default", "containers": [{"name": "app", "image": "app:1"}]},
    })
}

pub(crate) fn opted_in(name: &str) -> Value {
    pod(name, json!({"dapr.io/enabled": "true"}))
}

/// Names of the containers of a list.
pub(crate) fn containers(pod: &Value, list: &str) -> Vec<String> {
    let entries = pod["spec"][list].as_array().cloned().unwrap_or_default();
    entries.iter().map(|container| container["name"].as_str().unwrap().to_owned()).collect()
}

pub(crate) fn is_injected(pod: &Value) -> bool {
    mecha_patch::has_sidecar(pod)
}

pub(crate) fn variable<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
    container["env"].as_array()?.iter().find(|v| v["name"] == name)?["value"].as_str()
}

pub(crate) fn localhost(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A port that nobody listens on at this moment.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}
