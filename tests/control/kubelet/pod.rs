//! The life of one pod, from its binding to its end.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use mecha_tests::free_port;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::container::{Container, Runs, State};
use super::node::NODE;
use super::status::{self, Phase};
use super::volumes::Volumes;
use super::{Image, Shared};

/// How often processes and probes are looked at.
const TICK: Duration = Duration::from_millis(50);
/// How often volumes are compared with their sources.
const VOLUMES: Duration = Duration::from_millis(500);
/// Name of the sidecar's container.
const SIDECAR: &str = "daprd";
/// Every pod is at home.
pub(super) const ADDRESS: &str = "127.0.0.1";
/// Longest call to the API server: pods go on without it.
const CALL: Duration = Duration::from_secs(5);

/// What tests may know of a pod.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) uid: String,
    pub(super) folder: PathBuf,
    pub(super) ports: BTreeMap<u16, u16>,
    pub(super) pids: BTreeMap<String, u32>,
}

struct Life {
    shared: Arc<Shared>,
    api: Api<Pod>,
    pod: Value,
    namespace: String,
    name: String,
    uid: String,
    folder: PathBuf,
    ports: BTreeMap<u16, u16>,
    volumes: Volumes,
    inits: Vec<Container>,
    apps: Vec<Container>,
    phase: Phase,
    /// The apps have ended for good, so their sidecars may.
    done: bool,
    /// Variables of each container as last resolved, for a restart without the API server.
    env: BTreeMap<String, Vec<(String, String)>>,
    shown: Value,
}

/// Runs a pod until it is gone.
pub(super) async fn run(shared: Arc<Shared>, client: Client, mut updates: watch::Receiver<Option<Pod>>) {
    let Some(pod) = updates.borrow_and_update().clone() else { return };
    let Ok(pod) = serde_json::to_value(pod) else { return };
    let mut life = Life::new(shared, client, pod);
    let stop = life.shared.stop.clone();
    let lived = async {
        let gone = life.live(&mut updates).await;
        life.kill().await;
        gone
    };
    let gone = stop.run_until_cancelled(lived).await;
    life.kill().await;
    if gone == Some(true) {
        let mut known = life.shared.known.lock();
        let key = (life.namespace.clone(), life.name.clone());
        if known.get(&key).is_some_and(|there| there.uid == life.uid) {
            known.remove(&key);
        }
    }
}

impl Life {
    fn new(shared: Arc<Shared>, client: Client, pod: Value) -> Self {
        let text = |name: &str| pod["metadata"][name].as_str().unwrap_or_default().to_owned();
        let (namespace, name, uid) = (text("namespace"), text("name"), text("uid"));
        let folder = shared.folder.join(&uid);
        std::fs::create_dir_all(&folder).unwrap();
        let list = |name: &str| pod["spec"][name].as_array().cloned().unwrap_or_default();
        let make = |spec: &Value| {
            let image = shared.options.images.get(spec["image"].as_str().unwrap_or_default());
            let runs = match image {
                _ if spec["name"] == SIDECAR => Runs::Mechad,
                Some(Image::Executed) => Runs::Command,
                _ => Runs::Nothing,
            };
            Container::new(spec, runs)
        };
        let inits = list("initContainers").iter().map(make).collect();
        let apps = list("containers").iter().map(make).collect();
        let ports = ports(&shared, &pod);
        let known = Known { uid: uid.clone(), folder: folder.clone(), ports: ports.clone(), pids: BTreeMap::new() };
        shared.known.lock().insert((namespace.clone(), name.clone()), known);
        Self {
            api: Api::namespaced(client.clone(), &namespace),
            volumes: Volumes::new(client, &namespace, &pod, &folder),
            shared,
            pod,
            namespace,
            name,
            uid,
            folder,
            ports,
            inits,
            apps,
            phase: Phase::Pending,
            done: false,
            env: BTreeMap::new(),
            shown: Value::Null,
        }
    }

    /// True when the pod is gone from the API server.
    async fn live(&mut self, updates: &mut watch::Receiver<Option<Pod>>) -> bool {
        self.bind().await;
        let mut looked_at_volumes: Option<Instant> = None;
        let mut mounted = false;
        let mut deadline: Option<Instant> = None;
        loop {
            let update = updates.borrow_and_update().clone();
            let Some(update) = update else { return true };
            if deadline.is_none() && update.metadata.deletion_timestamp.is_some() {
                let grace = update.metadata.deletion_grace_period_seconds.unwrap_or(30);
                deadline = Some(Instant::now() + Duration::from_secs(u64::try_from(grace).unwrap_or_default()));
            }
            if looked_at_volumes.is_none_or(|at| at.elapsed() >= VOLUMES) {
                looked_at_volumes = Some(Instant::now());
                let done = timeout(CALL, self.volumes.refresh()).await.unwrap_or(Err("no answer".to_owned()));
                mounted |= done.is_ok();
                self.complain(if mounted { None } else { done.err() });
            }
            self.all().for_each(Container::reap);
            match deadline {
                Some(deadline) if self.end(deadline).await => return true,
                None if mounted => self.advance().await,
                Some(_) | None => {}
            }
            for container in self.all() {
                container.probe().await;
            }
            self.tell();
            self.show().await;
            tokio::select! {
                changed = updates.changed() => if changed.is_err() { return false },
                () = sleep(TICK) => {}
            }
        }
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Container> {
        self.inits.iter_mut().chain(self.apps.iter_mut())
    }

    fn complain(&mut self, trouble: Option<String>) {
        for container in self.all().filter(|container| matches!(container.state, State::Waiting)) {
            container.trouble.clone_from(&trouble);
        }
    }

    async fn bind(&self) {
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": self.name, "namespace": self.namespace},
            "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
        });
        if self.pod["spec"]["nodeName"].is_null() {
            // A failure shows in the pod, which stays pending.
            let _: Result<Value, _> =
                self.api.create_subresource("binding", &self.name, &PostParams::default(), &binding).await;
        }
    }

    /// Starts what is due, in the order of Kubernetes: init containers one after the other, of which native
    /// sidecars only have to start, then the app's containers.
    async fn advance(&mut self) {
        if self.phase.is_final() {
            return;
        }
        let policy = self.pod["spec"]["restartPolicy"].as_str().unwrap_or("Always").to_owned();
        for at in 0..self.inits.len() {
            self.start_if_due(at, true).await;
            let container = &mut self.inits[at];
            let passed = match container.state {
                State::Terminated(_) if container.native => {
                    if !self.done {
                        container.again();
                    }
                    false
                }
                State::Terminated(0) => true,
                State::Terminated(_) if policy == "Never" => {
                    self.phase = Phase::Failed;
                    return;
                }
                State::Terminated(_) => {
                    container.again();
                    false
                }
                State::Running(_) => container.native && container.started,
                State::Waiting => false,
            };
            // Once the apps run, a sidecar that starts anew holds nothing up.
            if !passed && self.phase == Phase::Pending {
                return;
            }
        }
        self.phase = Phase::Running;
        for at in 0..self.apps.len() {
            self.start_if_due(at, false).await;
            let container = &mut self.apps[at];
            if let State::Terminated(code) = container.state
                && (policy == "Always" || policy == "OnFailure" && code != 0)
            {
                container.again();
            }
        }
        let codes: Vec<i32> = self
            .apps
            .iter()
            .filter_map(|app| if let State::Terminated(code) = app.state { Some(code) } else { None })
            .collect();
        if codes.len() == self.apps.len() {
            self.done = true;
            self.inits.iter_mut().rev().for_each(Container::ask_to_end);
            self.inits.iter_mut().for_each(Container::reap);
            if !self.inits.iter().any(Container::runs_now) {
                self.phase = if codes.iter().all(|code| *code == 0) { Phase::Succeeded } else { Phase::Failed };
            }
        }
    }

    async fn start_if_due(&mut self, at: usize, init: bool) {
        let container = if init { &self.inits[at] } else { &self.apps[at] };
        if !container.waits() {
            return;
        }
        let spec = container.spec.clone();
        let outcome = match container.runs {
            Runs::Nothing => Ok(None),
            Runs::Mechad => Ok(Some((self.shared.mechad.clone(), words(&spec["args"])))),
            Runs::Command => {
                let mut command = words(&spec["command"]).into_iter().chain(words(&spec["args"]));
                match command.next() {
                    Some(program) => Ok(Some((PathBuf::from(program), command.collect()))),
                    None => Err("this node runs commands of the spec only, and it has none".to_owned()),
                }
            }
        };
        let env = self.variables(&spec).await;
        let mounts = self.mounts(&spec);
        let log = self.folder.join(format!("{}.log", spec["name"].as_str().unwrap_or_default()));
        let ports = &self.ports;
        let container = if init { &mut self.inits[at] } else { &mut self.apps[at] };
        let started = outcome.and_then(|program| match program {
            None => {
                if init && !container.native {
                    container.state = State::Terminated(0);
                } else {
                    container.pretend();
                }
                Ok(())
            }
            Some((program, args)) => container.start(&program, &remapped(args, ports), &env?, &mounts, &log),
        });
        match started {
            Ok(()) => container.begin(ports),
            Err(trouble) => container.trouble = Some(trouble),
        }
    }

    fn mounts(&self, spec: &Value) -> Vec<(PathBuf, String, bool)> {
        let folder = self.folder.join("volumes");
        let mount = |mount: &Value| {
            let volume = folder.join(mount["name"].as_str()?);
            Some((volume, mount["mountPath"].as_str()?.to_owned(), mount["readOnly"] == true))
        };
        spec["volumeMounts"].as_array().into_iter().flatten().filter_map(mount).collect()
    }

    async fn variables(&mut self, spec: &Value) -> Result<Vec<(String, String)>, String> {
        let name = spec["name"].as_str().unwrap_or_default().to_owned();
        let resolved = timeout(CALL, self.resolve(spec)).await.unwrap_or(Err("no answer".to_owned()));
        match (resolved, self.env.get(&name)) {
            (Ok(env), _) => {
                self.env.insert(name, env.clone());
                Ok(env)
            }
            (Err(_), Some(before)) => Ok(before.clone()),
            (Err(trouble), None) => Err(trouble),
        }
    }

    async fn resolve(&self, spec: &Value) -> Result<Vec<(String, String)>, String> {
        let mut env = Vec::new();
        for variable in spec["env"].as_array().into_iter().flatten() {
            let name = variable["name"].as_str().unwrap_or_default();
            let from = &variable["valueFrom"];
            let value = if let Some(path) = from["fieldRef"]["fieldPath"].as_str() {
                Some(self.field(path)?)
            } else if from["secretKeyRef"].is_object() {
                self.volumes.secret_key(&from["secretKeyRef"]).await?
            } else {
                Some(variable["value"].as_str().unwrap_or_default().to_owned())
            };
            let Some(value) = value else { continue };
            let port = name.ends_with("_PORT").then(|| value.parse().ok()).flatten();
            let mapped = port.and_then(|port: u16| self.ports.get(&port));
            env.push((name.to_owned(), mapped.map_or(value, u16::to_string)));
        }
        if spec["name"] == SIDECAR {
            let registry = self.shared.folder.join("names.db");
            env.push(("MECHA_NAME_REGISTRY".to_owned(), registry.display().to_string()));
            env.extend(self.shared.options.variables.iter().cloned());
        } else {
            // What the images of commands would have.
            env.push(("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned()));
        }
        Ok(env)
    }

    fn field(&self, path: &str) -> Result<String, String> {
        Ok(match path {
            "status.podIP" | "status.hostIP" => ADDRESS.to_owned(),
            "spec.nodeName" => NODE.to_owned(),
            _ => {
                let found = self.pod.pointer(&format!("/{}", path.replace('.', "/"))).and_then(Value::as_str);
                found.ok_or_else(|| format!("this node knows no field {path}"))?.to_owned()
            }
        })
    }

    /// One step towards the end; true when everything has ended and the API server knows.
    async fn end(&mut self, deadline: Instant) -> bool {
        if Instant::now() >= deadline {
            for container in self.all() {
                container.kill().await;
            }
        }
        self.apps.iter_mut().for_each(Container::ask_to_end);
        if !self.apps.iter().any(Container::runs_now) {
            self.inits.iter_mut().rev().for_each(Container::ask_to_end);
        }
        if self.all().any(|container| container.runs_now()) {
            return false;
        }
        let precondition = Preconditions { uid: Some(self.uid.clone()), resource_version: None };
        let now =
            DeleteParams { grace_period_seconds: Some(0), preconditions: Some(precondition), ..Default::default() };
        match timeout(CALL, self.api.delete(&self.name, &now)).await {
            Ok(Ok(_)) => true,
            Ok(Err(kube::Error::Api(answer))) => answer.code == 404 || answer.code == 409,
            _ => false,
        }
    }

    async fn kill(&mut self) {
        for container in self.all() {
            container.kill().await;
        }
        self.tell();
    }

    fn tell(&self) {
        let pids = self.inits.iter().chain(&self.apps).filter_map(|c| Some((c.name.clone(), c.pid()?))).collect();
        if let Some(known) = self.shared.known.lock().get_mut(&(self.namespace.clone(), self.name.clone()))
            && known.uid == self.uid
        {
            known.pids = pids;
        }
    }

    /// Writes the pod's status where it has changed.
    async fn show(&mut self) {
        let status = status::of(&self.phase, &self.inits, &self.apps);
        if status == self.shown {
            return;
        }
        let patch = Patch::Merge(json!({"metadata": {"uid": self.uid}, "status": status}));
        let params = PatchParams::default();
        if let Ok(Ok(_)) = timeout(CALL, self.api.patch_status(&self.name, &params, &patch)).await {
            self.shown = status;
        }
    }
}

fn words(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The place on this machine of each port in the pod.
fn ports(shared: &Shared, pod: &Value) -> BTreeMap<u16, u16> {
    let number = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok());
    let mut ports = BTreeMap::new();
    let mut served = None;
    let mut flags: Vec<u16> = Vec::new();
    for list in ["initContainers", "containers"] {
        for container in pod["spec"][list].as_array().into_iter().flatten() {
            let image = shared.options.images.get(container["image"].as_str().unwrap_or_default());
            let declared = container["ports"].as_array().into_iter().flatten();
            let here = if let Some(Image::Served(port)) = image { Some(*port) } else { None };
            served = served.or(here);
            for port in declared.filter_map(|port| number(&port["containerPort"])) {
                ports.insert(port, here.unwrap_or_else(free_port));
            }
            let args = words(&container["args"]);
            flags.extend(
                args.windows(2).filter(|pair| is_port(&pair[0])).filter_map(|pair| pair[1].parse::<u16>().ok()),
            );
        }
    }
    for port in flags {
        ports.entry(port).or_insert_with(|| served.unwrap_or_else(free_port));
    }
    ports
}

fn is_port(flag: &str) -> bool {
    flag.starts_with("--") && flag.ends_with("-port")
}

/// The arguments with the ports of this machine.
fn remapped(mut args: Vec<String>, ports: &BTreeMap<u16, u16>) -> Vec<String> {
    for at in 1..args.len() {
        if is_port(&args[at - 1])
            && let Some(port) = args[at].parse().ok().and_then(|port: u16| ports.get(&port))
        {
            args[at] = port.to_string();
        }
    }
    args
}
