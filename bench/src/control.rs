//! The control part on a real API server: memory, idle CPU, and how long many claims and one edit take.

mod edits;
mod paths;

use std::ffi::OsString;
use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use mecha_apiserver::{
    Access, CapabilityBackend, CapabilityBinding, CapabilityClaim, Environment, EnvironmentClass, Followed, Selection,
    Tasks, connect, follow,
};
use mecha_testkit::servers::{Kubernetes, free_port};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use self::edits::Edits;
pub(crate) use self::paths::used;
use crate::process::{Process, cpu_seconds, memory, proportional, wait_until};
use crate::sidecar::get;

/// Environments and claims in each: a thousand claims.
const ENVIRONMENTS: usize = 20;
const CLAIMS: usize = 50;
/// Requests that are under way at a time while objects are made.
const AT_ONCE: usize = 16;
/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(300);
/// Environment of the measurement of single edits, as bindings name it.
const EDITS: &str = "default/edits-0";
/// Time after which a role is taken for idle.
const SETTLE: Duration = Duration::from_secs(15);

/// What to measure.
#[derive(Debug)]
pub(crate) struct What {
    pub(crate) program: PathBuf,
    /// A sidecar that follows the agent.
    pub(crate) daemon: PathBuf,
    pub(crate) idle: Duration,
    pub(crate) edits: usize,
    /// Sidecars that each edit moves.
    pub(crate) sidecars: usize,
    /// Nothing but the edits.
    pub(crate) edits_only: bool,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Measured {
    roles: Vec<Resident>,
    /// Sum over the roles; pages of the program that they share count for each.
    resident_mb: f64,
    /// The same with shared pages divided by those that share them: what the machine gives.
    proportional_mb: f64,
    /// All roles in one process.
    together: Resident,
    /// Cores used by all roles together while nothing happens.
    idle_cores: f64,
    idle_seconds: u64,
    claims: usize,
    /// For the bare creation of the claims, sixteen at a time: the measure of the API server of the moment.
    made_seconds: f64,
    /// From the start of a hub that finds all claims unbound, to the last one bound.
    bound_seconds: f64,
    /// What the hub has written for that.
    bound_writes: f64,
    /// What the hub has computed for that.
    bound_hub_cpu_seconds: f64,
    /// From the edit of the class to the last binding that moves.
    edit_seconds: f64,
    resident_with_claims_mb: f64,
    edits: Edits,
}

#[derive(Debug, Serialize)]
struct Resident {
    role: &'static str,
    resident_mb: f64,
    proportional_mb: f64,
    anonymous_mb: f64,
}

/// Runs it and prints the figures.
///
/// # Errors
/// The programs are missing, or something did not happen in time.
pub(crate) fn run(what: &What, out: &Path) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (text, file) = if what.edits_only {
        (serde_json::to_string_pretty(&runtime.block_on(edits_alone(what))?)?, "edits.json")
    } else {
        (serde_json::to_string_pretty(&runtime.block_on(measure(what))?)?, "control.json")
    };
    println!("{text}");
    std::fs::create_dir_all(out)?;
    std::fs::write(out.join(file), text + "\n")
}

/// The edits of [`measure`], on a server that has seen nothing else.
async fn edits_alone(what: &What) -> io::Result<Edits> {
    let server = Kubernetes::start().ok_or_else(|| io::Error::other("the API server's programs are not built"))?;
    let client = begin(&server).await?;
    let tasks = Tasks::new();
    let roles = start(&what.program, &server)?;
    let addresses = roles.iter().flat_map(|role| role.serves.clone()).collect();
    make_backends(&client).await?;
    let measured = edits::measure(&client, &tasks, &what.daemon, &addresses, what.edits, what.sidecars).await?;
    tasks.drain().await;
    roles.into_iter().try_for_each(Running::stop)?;
    Ok(measured)
}

async fn measure(what: &What) -> io::Result<Measured> {
    let What { program, daemon, idle, edits, sidecars, .. } = what;
    let idle = *idle;
    let server = Kubernetes::start().ok_or_else(|| io::Error::other("the API server's programs are not built"))?;
    let client = begin(&server).await?;
    let tasks = Tasks::new();
    let all = role(program, &[], &server, "all")?;
    tokio::time::sleep(SETTLE).await;
    let together = resident("all", &all.process);
    all.stop()?;
    let mut roles = start(program, &server)?;
    tokio::time::sleep(SETTLE).await;
    let before: Vec<f64> = roles.iter().map(|role| cpu_seconds(role.process.id())).collect();
    tokio::time::sleep(idle).await;
    let after = roles.iter().map(|role| cpu_seconds(role.process.id()));
    let used: f64 = after.zip(&before).map(|(after, before)| after - before).sum();
    let residents: Vec<Resident> = roles.iter().map(|role| resident(role.name, &role.process)).collect();

    let claims = follow::<CapabilityClaim>(client.clone(), &Selection::default(), &tasks);
    let bindings = follow::<CapabilityBinding>(client.clone(), &Selection::default(), &tasks);
    let addresses = roles.iter().flat_map(|role| role.serves.clone()).collect();
    make_backends(&client).await?;
    let edits = edits::measure(&client, &tasks, daemon, &addresses, *edits, *sidecars).await?;
    let environments = make_environments(&client, &tasks, "bench", ENVIRONMENTS).await?;
    // Cold: nobody decides while the claims are made, then a hub starts that knows nothing.
    let (hubs, others): (Vec<_>, Vec<_>) = roles.into_iter().partition(|role| role.name == "hub");
    roles = others;
    hubs.into_iter().try_for_each(Running::stop)?;
    let began = Instant::now();
    make_claims(&client, &environments).await?;
    let made = began.elapsed();
    let count = |all: &[Arc<CapabilityClaim>]| all.iter().filter(|claim| is_measured(claim)).count();
    until(&claims, "all claims are there", |all| count(all) == ENVIRONMENTS * CLAIMS).await?;
    let began = Instant::now();
    let hub = role(program, &[], &server, "hub")?;
    let bound = |claim: &&Arc<CapabilityClaim>| is_measured(claim) && backend_of(claim) == Some("blue");
    until(&claims, "all claims are bound", |all| all.iter().filter(bound).count() == ENVIRONMENTS * CLAIMS).await?;
    let bound = began.elapsed();
    let bound_hub_cpu_seconds = cpu_seconds(hub.process.id());
    let bound_writes = written(hub.ops)?;
    roles.push(hub);
    let with_claims: f64 = roles.iter().map(|role| resident(role.name, &role.process).resident_mb).sum();

    let classes: Api<EnvironmentClass> = Api::all(client.clone());
    let began = Instant::now();
    let edit = json!({"spec": {"capabilities": [rule("green")]}});
    classes.patch("bench", &PatchParams::default(), &Patch::Merge(&edit)).await.map_err(io::Error::other)?;
    until(&bindings, "all claims begin to move", |all| {
        let entries = all.iter().filter(|b| b.spec.environment != EDITS).flat_map(|b| &b.spec.entries);
        let moving = entries.filter(|e| e.backend == "green" || e.swap.is_some());
        moving.count() == ENVIRONMENTS * CLAIMS
    })
    .await?;
    let edited = began.elapsed();
    tasks.drain().await;
    Ok(Measured {
        resident_mb: residents.iter().map(|r| r.resident_mb).sum(),
        proportional_mb: residents.iter().map(|r| r.proportional_mb).sum(),
        together,
        roles: residents,
        idle_cores: used / idle.as_secs_f64(),
        idle_seconds: idle.as_secs(),
        claims: ENVIRONMENTS * CLAIMS,
        made_seconds: made.as_secs_f64(),
        bound_seconds: bound.as_secs_f64(),
        bound_writes,
        bound_hub_cpu_seconds,
        edit_seconds: edited.as_secs_f64(),
        resident_with_claims_mb: with_claims,
        edits,
    })
}

/// Our kinds, and the namespace of the control part.
async fn begin(server: &Kubernetes) -> io::Result<Client> {
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
    Ok(client)
}

/// A running role.
struct Running {
    name: &'static str,
    process: Process,
    ops: u16,
    /// Where it serves what.
    serves: Vec<(&'static str, SocketAddr)>,
}

impl Running {
    /// Asks it to end, and waits: it gives its lease back, so that whoever comes next begins at once.
    fn stop(mut self) -> io::Result<()> {
        self.process.terminate();
        wait_until(LIMIT, &format!("the end of {}", self.name), || Ok(self.process.ended().is_some()))
    }
}

/// Starts one replica of each role.
fn start(program: &Path, server: &Kubernetes) -> io::Result<Vec<Running>> {
    ["hub", "agent", "injector"].into_iter().map(|name| role(program, &[], server, name)).collect()
}

/// Starts one, by the program in front of the command that is given.
fn role(program: &Path, under: &[OsString], server: &Kubernetes, name: &'static str) -> io::Result<Running> {
    let ops = free_port();
    let any = || SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut words = under.iter().map(OsString::as_os_str).chain([program.as_os_str()]);
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).arg(name).arg("--kubeconfig").arg(server.kubeconfig()).args(["--log-level", "warn"]);
    command.args(["--namespace", "mecha-system", "--ops-address", &format!("127.0.0.1:{ops}")]);
    let mut serves = Vec::new();
    if matches!(name, "agent" | "all") {
        serves = vec![("documents", any()), ("certificates", any())];
        let [documents, certificates] = [serves[0].1, serves[1].1].map(|address| address.to_string());
        command.args(["--agent-address", &documents, "--issuer-address", &certificates]);
    }
    if matches!(name, "injector" | "all") {
        let address = any().to_string();
        command.args(["--webhook-address", &address, "--webhook-url", &format!("https://{address}")]);
    }
    let process = Process::spawn(command.stdin(Stdio::null()))?;
    wait_until(LIMIT, &format!("{name} is ready"), || Ok(is_ready(ops)))?;
    Ok(Running { name, process, ops, serves })
}

/// Writes of a hub that were done.
fn written(ops: u16) -> io::Result<f64> {
    let (_, text) = get(SocketAddr::from(([127, 0, 0, 1], ops)), "/metrics")?;
    let line = text.lines().find_map(|line| line.strip_prefix("mecha_hub_writes_total{result=\"done\"} "));
    line.and_then(|value| value.trim().parse().ok()).ok_or_else(|| io::Error::other("the hub counts no writes"))
}

fn is_ready(port: u16) -> bool {
    get(SocketAddr::from(([127, 0, 0, 1], port)), "/readyz").is_ok_and(|(status, _)| status == 200)
}

fn resident(role: &'static str, process: &Process) -> Resident {
    let used = memory(process.id());
    let mb = |kib: u64| kib as f64 / 1024.0;
    Resident {
        role,
        resident_mb: mb(used.rss),
        proportional_mb: mb(proportional(process.id())),
        anonymous_mb: mb(used.anonymous),
    }
}

fn backend_of(claim: &CapabilityClaim) -> Option<&str> {
    claim.status.as_ref().map(|status| status.backend.as_str())
}

/// Whether it is one of the thousand, and not of the other measurement.
fn is_measured(claim: &CapabilityClaim) -> bool {
    claim.metadata.name.as_deref().is_some_and(|name| name.starts_with("claim-"))
}

fn rule(color: &str) -> Value {
    json!({"kind": "state", "backendSelector": {"matchLabels": {"color": color}}, "swap": {"emptyOk": true}})
}

fn class(name: &str) -> Value {
    json!({
        "apiVersion": "mecha.dev/v1alpha1", "kind": "EnvironmentClass", "metadata": {"name": name},
        "spec": {"type": name, "capabilities": [rule("blue")]},
    })
}

/// Two backends that are ready. Their documents differ: a move between two that say the same changes nothing.
async fn make_backends(client: &Client) -> io::Result<()> {
    let backends: Api<CapabilityBackend> = Api::all(client.clone());
    for (color, actors) in [("blue", "true"), ("green", "false")] {
        let metadata = json!([{"name": "actorStateStore", "value": actors}]);
        let backend = json!({
            "apiVersion": "mecha.dev/v1alpha1", "kind": "CapabilityBackend",
            "metadata": {"name": color, "labels": {"color": color}},
            "spec": {
                "kind": "state",
                "component": {"type": "state.in-memory", "metadata": metadata},
                "source": {"none": {}},
            },
        });
        create(&backends, backend).await?;
    }
    Ok(())
}

/// A class, and environments of it with their namespaces.
async fn make_environments(
    client: &Client,
    tasks: &Tasks,
    class_name: &str,
    count: usize,
) -> io::Result<Vec<Arc<Environment>>> {
    create(&Api::<EnvironmentClass>::all(client.clone()), class(class_name)).await?;
    let environments: Api<Environment> = Api::namespaced(client.clone(), "default");
    for number in 0..count {
        let environment = json!({
            "apiVersion": "mecha.dev/v1alpha1", "kind": "Environment",
            "metadata": {"name": format!("{class_name}-{number}")}, "spec": {"className": class_name},
        });
        create(&environments, environment).await?;
    }
    let followed = follow::<Environment>(client.clone(), &Selection::default(), tasks);
    let there = |environment: &&Arc<Environment>| {
        let clusters = environment.status.iter().flat_map(|s| &s.clusters).any(|cluster| cluster.ready);
        clusters && environment.spec.class_name.as_deref() == Some(class_name)
    };
    until(&followed, "every environment has its namespace", |all| all.iter().filter(there).count() == count).await?;
    Ok(followed.all().iter().filter(there).cloned().collect())
}

fn namespace_of(environment: &Environment) -> &str {
    environment.status.as_ref().map_or("", |status| status.connect_to.as_str())
}

async fn make_claims(client: &Client, environments: &[Arc<Environment>]) -> io::Result<()> {
    let claims = environments.iter().flat_map(|environment| {
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
