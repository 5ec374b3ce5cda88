//! The control part on a real API server: memory, idle CPU, and how long many claims and one edit take.

use std::fmt::Debug;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use mecha_apiserver::{
    Access, CapabilityBackend, CapabilityBinding, CapabilityClaim, Environment, EnvironmentClass, Followed, Selection,
    Tasks, connect, follow,
};
use mecha_testkit::servers::Kubernetes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::process::{Process, cpu_seconds, memory, wait_until};

/// Environments and claims in each: a thousand claims.
const ENVIRONMENTS: usize = 20;
const CLAIMS: usize = 50;
/// Requests that are under way at a time while objects are made.
const AT_ONCE: usize = 16;
/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(300);
/// Time after which a role is taken for idle.
const SETTLE: Duration = Duration::from_secs(15);

/// What was measured.
#[derive(Debug, Serialize)]
struct Measured {
    roles: Vec<Resident>,
    /// Sum over the roles.
    resident_mb: f64,
    /// Cores used by all roles together while nothing happens.
    idle_cores: f64,
    idle_seconds: u64,
    claims: usize,
    /// From the start of a hub that finds all claims unbound, to the last one bound.
    bound_seconds: f64,
    /// From the edit of the class to the last binding that moves.
    edit_seconds: f64,
    resident_with_claims_mb: f64,
}

#[derive(Debug, Serialize)]
struct Resident {
    role: &'static str,
    resident_mb: f64,
    anonymous_mb: f64,
}

/// Runs it and prints the figures.
///
/// # Errors
/// The programs are missing, or something did not happen in time.
pub(crate) fn run(program: &Path, idle: Duration, out: &Path) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let measured = runtime.block_on(measure(program, idle))?;
    let text = serde_json::to_string_pretty(&measured)?;
    println!("{text}");
    std::fs::create_dir_all(out)?;
    std::fs::write(out.join("control.json"), text + "\n")
}

async fn measure(program: &Path, idle: Duration) -> io::Result<Measured> {
    let server = Kubernetes::start().ok_or_else(|| io::Error::other("the API server's programs are not built"))?;
    for entry in std::fs::read_dir("deploy/crds")? {
        let path = entry?.path();
        if path.is_file() {
            server.apply(&std::fs::read_to_string(path)?).map_err(io::Error::other)?;
        }
    }
    let access = Access { kubeconfig: Some(server.kubeconfig()), context: None };
    let client = connect(&access).await.map_err(io::Error::other)?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    create(&namespaces, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "mecha-system"}})).await?;
    let tasks = Tasks::new();
    let mut roles = start(program, &server)?;
    tokio::time::sleep(SETTLE).await;
    let before: Vec<f64> = roles.iter().map(|(_, process)| cpu_seconds(process.id())).collect();
    tokio::time::sleep(idle).await;
    let after = roles.iter().map(|(_, process)| cpu_seconds(process.id()));
    let used: f64 = after.zip(&before).map(|(after, before)| after - before).sum();
    let residents: Vec<Resident> = roles.iter().map(|(role, process)| resident(role, process)).collect();

    let claims = follow::<CapabilityClaim>(client.clone(), &Selection::default(), &tasks);
    let bindings = follow::<CapabilityBinding>(client.clone(), &Selection::default(), &tasks);
    prepare(&client, &tasks).await?;
    // Cold: nobody decides while the claims are made, then a hub starts that knows nothing.
    roles.retain(|(role, _)| *role != "hub");
    make_claims(&client).await?;
    until(&claims, "all claims are there", |all| all.len() == ENVIRONMENTS * CLAIMS).await?;
    let began = Instant::now();
    roles.push(("hub", role(program, &server, "hub")?));
    until(&claims, "all claims are bound", |all| all.iter().all(|claim| backend_of(claim) == Some("blue"))).await?;
    let bound = began.elapsed();
    let with_claims: f64 = roles.iter().map(|(role, process)| resident(role, process).resident_mb).sum();

    let classes: Api<EnvironmentClass> = Api::all(client.clone());
    let began = Instant::now();
    let edit = json!({"spec": {"capabilities": [rule("green")]}});
    classes.patch("bench", &PatchParams::default(), &Patch::Merge(&edit)).await.map_err(io::Error::other)?;
    until(&bindings, "all claims begin to move", |all| {
        let moving = all.iter().flat_map(|b| &b.spec.entries).filter(|e| e.backend == "green" || e.swap.is_some());
        moving.count() == ENVIRONMENTS * CLAIMS
    })
    .await?;
    let edited = began.elapsed();
    tasks.drain().await;
    Ok(Measured {
        resident_mb: residents.iter().map(|r| r.resident_mb).sum(),
        roles: residents,
        idle_cores: used / idle.as_secs_f64(),
        idle_seconds: idle.as_secs(),
        claims: ENVIRONMENTS * CLAIMS,
        bound_seconds: bound.as_secs_f64(),
        edit_seconds: edited.as_secs_f64(),
        resident_with_claims_mb: with_claims,
    })
}

/// Starts one replica of each role.
fn start(program: &Path, server: &Kubernetes) -> io::Result<Vec<(&'static str, Process)>> {
    ["hub", "agent", "injector"].into_iter().map(|name| Ok((name, role(program, server, name)?))).collect()
}

fn role(program: &Path, server: &Kubernetes, name: &str) -> io::Result<Process> {
    let ops = mecha_testkit::servers::free_port();
    let any = || format!("127.0.0.1:{}", mecha_testkit::servers::free_port());
    let mut command = Command::new(program);
    command.arg(name).arg("--kubeconfig").arg(server.kubeconfig()).args(["--log-level", "warn"]);
    command.args(["--namespace", "mecha-system", "--ops-address", &format!("127.0.0.1:{ops}")]);
    match name {
        "agent" => {
            command.args(["--agent-address", &any(), "--issuer-address", &any()]);
        }
        "injector" => {
            let address = any();
            command.args(["--webhook-address", &address, "--webhook-url", &format!("https://{address}")]);
        }
        _ => {}
    }
    let process = Process::spawn(command.stdin(Stdio::null()))?;
    wait_until(LIMIT, &format!("the {name} is ready"), || Ok(is_ready(ops)))?;
    Ok(process)
}

fn is_ready(port: u16) -> bool {
    let ask = || -> io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

fn resident(role: &'static str, process: &Process) -> Resident {
    let used = memory(process.id());
    Resident { role, resident_mb: used.rss as f64 / 1024.0, anonymous_mb: used.anonymous as f64 / 1024.0 }
}

fn backend_of(claim: &CapabilityClaim) -> Option<&str> {
    claim.status.as_ref().map(|status| status.backend.as_str())
}

fn rule(color: &str) -> Value {
    json!({"kind": "state", "backendSelector": {"matchLabels": {"color": color}}, "swap": {"emptyOk": true}})
}

/// A class, two backends that are ready, and environments with their namespaces.
async fn prepare(client: &Client, tasks: &Tasks) -> io::Result<()> {
    let classes: Api<EnvironmentClass> = Api::all(client.clone());
    let class = json!({
        "apiVersion": "mecha.dev/v1alpha1", "kind": "EnvironmentClass", "metadata": {"name": "bench"},
        "spec": {"type": "bench", "capabilities": [rule("blue")]},
    });
    create(&classes, class).await?;
    let backends: Api<CapabilityBackend> = Api::all(client.clone());
    for color in ["blue", "green"] {
        let backend = json!({
            "apiVersion": "mecha.dev/v1alpha1", "kind": "CapabilityBackend",
            "metadata": {"name": color, "labels": {"color": color}},
            "spec": {"kind": "state", "component": {"type": "state.in-memory"}, "source": {"none": {}}},
        });
        create(&backends, backend).await?;
    }
    let environments: Api<Environment> = Api::namespaced(client.clone(), "default");
    for number in 0..ENVIRONMENTS {
        let environment = json!({
            "apiVersion": "mecha.dev/v1alpha1", "kind": "Environment", "metadata": {"name": format!("bench-{number}")},
            "spec": {"className": "bench"},
        });
        create(&environments, environment).await?;
    }
    let all = follow::<Environment>(client.clone(), &Selection::default(), tasks);
    until(&all, "every environment has its namespace", |all| {
        let there = |e: &&Arc<Environment>| e.status.iter().flat_map(|s| &s.clusters).any(|cluster| cluster.ready);
        all.iter().filter(there).count() == ENVIRONMENTS
    })
    .await
}

fn namespace_of(environment: &Environment) -> &str {
    environment.status.as_ref().map_or("", |status| status.connect_to.as_str())
}

async fn make_claims(client: &Client) -> io::Result<()> {
    let environments: Api<Environment> = Api::namespaced(client.clone(), "default");
    let environments = environments.list(&ListParams::default()).await.map_err(io::Error::other)?;
    let claims = environments.items.iter().flat_map(|environment| {
        (0..CLAIMS).map(|number| (namespace_of(environment).to_owned(), format!("claim-{number}")))
    });
    let made = stream::iter(claims).map(|(namespace, name)| async move {
        let api: Api<CapabilityClaim> = Api::namespaced(client.clone(), &namespace);
        let claim = json!({
            "apiVersion": "mecha.dev/v1alpha1", "kind": "CapabilityClaim", "metadata": {"name": name},
            "spec": {"kind": "state"},
        });
        create(&api, claim).await
    });
    let failed: Vec<io::Error> = made.buffer_unordered(AT_ONCE).filter_map(|made| async { made.err() }).collect().await;
    failed.into_iter().next().map_or(Ok(()), Err)
}

async fn create<K>(api: &Api<K>, object: Value) -> io::Result<()>
where
    K: Clone + DeserializeOwned + Serialize + Debug,
{
    let object = serde_json::from_value(object)?;
    api.create(&PostParams::default(), &object).await.map(|_| ()).map_err(io::Error::other)
}

async fn until<K>(followed: &Followed<K>, what: &str, done: impl Fn(&[Arc<K>]) -> bool) -> io::Result<()> {
    let mut changes = followed.changes();
    let waiting = async {
        while !done(&followed.all()) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.map_err(|_| io::Error::other(format!("{what}: not within {LIMIT:?}")))
}
