//! How much injection adds to the creation of a pod: `cargo run --release -p mecha-webhook --example admission_speed`.
//!
//! First the answer to a review by itself, then pods through a real API server with and without injection, in turn,
//! without storing them. The programs of the API server are found by `MECHA_KUBERNETES`; see tests/control. Ends with
//! status 1 where a p99 is above its aim, so that a gate can run it.

use std::error::Error;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::{Api, Client};
use mecha_apiserver::{Access, Readiness, Role, Tasks, connect};
use mecha_patch::{Config, has_sidecar};
use mecha_testkit::servers::Kubernetes;
use mecha_webhook::review::answer;
use mecha_webhook::{Options, Reach, run};
use serde_json::{Value, json};

/// Most that injection may add at p99.
const AIM: Duration = Duration::from_millis(5);
const ANSWERS: usize = 5_000;
const PODS: usize = 500;
/// Pods before those that count.
const WARM_UP: usize = 50;
/// Longest wait for the webhook to be ready.
const START: Duration = Duration::from_secs(60);

/// Sorted times.
struct Times(Vec<Duration>);

impl Times {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    fn at(&self, percent: usize) -> Duration {
        self.0.get(self.0.len() * percent / 100).or(self.0.last()).copied().unwrap_or_default()
    }

    fn print(&self, what: &str) {
        println!(
            "{what:<44} p50 {:>9.3?}  p99 {:>9.3?}  slowest {:>9.3?}",
            self.at(50),
            self.at(99),
            self.0.last().copied().unwrap_or_default()
        );
    }
}

fn pod(opted_in: bool) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "orders", "annotations": {
            "dapr.io/enabled": opted_in.to_string(), "dapr.io/app-port": "8080", "dapr.io/env": "A=1,B=2",
            "dapr.io/config": "tracing", "dapr.io/sidecar-memory-limit": "64Mi",
        }},
        "spec": {"serviceAccountName": "default", "containers": [
            {"name": "app", "image": "orders:1", "env": [{"name": "X", "value": "1"}], "ports": [{"containerPort": 8080}]},
        ]},
    })
}

fn answers() -> Times {
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {"uid": "u", "operation": "CREATE", "namespace": "shop",
            "kind": {"group": "", "version": "v1", "kind": "Pod"}, "object": pod(true)},
    })
    .to_string();
    let config = Config::default();
    let times = (0..ANSWERS).map(|_| {
        let started = Instant::now();
        let _ = black_box(answer(black_box(review.as_bytes()), &config));
        started.elapsed()
    });
    Times::of(times.collect())
}

async fn create(pods: &Api<DynamicObject>, opted_in: bool) -> Result<Duration, Box<dyn Error>> {
    let pod = serde_json::from_value(pod(opted_in))?;
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let started = Instant::now();
    let made = pods.create(&params, &pod).await?;
    let took = started.elapsed();
    if has_sidecar(&serde_json::to_value(made)?) == opted_in { Ok(took) } else { Err("the webhook did not act".into()) }
}

/// Pods without and with injection.
async fn through_server(server: &Kubernetes) -> Result<(Times, Times), Box<dyn Error>> {
    let access = Access { kubeconfig: Some(server.kubeconfig()), context: None };
    let client: Client = connect(&access).await?;
    server.kubectl(&["create", "namespace", "mecha-system"]);
    let role = Role {
        client: client.clone(),
        namespace: "mecha-system".to_owned(),
        instance: "a".to_owned(),
        tasks: Tasks::new(),
        metrics: Arc::default(),
        ready: Readiness::default(),
    };
    let port = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let options = Options {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        reach: Reach::Url { url: format!("https://127.0.0.1:{port}/mutate"), host: "127.0.0.1".to_owned() },
        linger: Duration::ZERO,
        ..Options::default()
    };
    let running = tokio::spawn(run(options, role.clone()));
    let resource = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
    let pods: Api<DynamicObject> = Api::namespaced_with(client, "default", &resource);
    let deadline = Instant::now() + START;
    while let Err(error) = create(&pods, true).await {
        if Instant::now() > deadline {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (mut plain, mut injected) = (Vec::new(), Vec::new());
    for n in 0..WARM_UP + PODS {
        let (without, with) = (create(&pods, false).await?, create(&pods, true).await?);
        if n >= WARM_UP {
            plain.push(without);
            injected.push(with);
        }
    }
    role.tasks.drain().await;
    running.await??;
    Ok((Times::of(plain), Times::of(injected)))
}

#[tokio::main]
async fn main() -> ExitCode {
    let answers = answers();
    answers.print("answer to a review");
    let mut good = answers.at(99) <= AIM;
    match Kubernetes::start() {
        None => println!("pods through an API server: not measured, MECHA_KUBERNETES names no programs"),
        Some(server) => match through_server(&server).await {
            Ok((plain, injected)) => {
                plain.print("pod through the API server, not injected");
                injected.print("pod through the API server, injected");
                let added = injected.at(99).saturating_sub(plain.at(99));
                println!(
                    "{:<44} p50 {:>9.3?}  p99 {added:>9.3?}",
                    "added",
                    injected.at(50).saturating_sub(plain.at(50))
                );
                good &= added <= AIM;
            }
            Err(error) => {
                eprintln!("pods could not be measured: {error}");
                good = false;
            }
        },
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
