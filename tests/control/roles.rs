//! The roles of the control part as processes, each with the token of its own service account.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mecha_testkit::servers::Kubernetes;
use mecha_tests::{Http, Signal, free_port, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::install::NAMESPACE;
use crate::kubelet::signal;

/// Longest wait for a role to be ready; a busy machine is slow.
const READY: Duration = Duration::from_secs(120);

/// Where the roles are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    delivery: u16,
    issuer: u16,
    webhook: u16,
}

/// A running control part. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct ControlPart {
    roles: BTreeMap<&'static str, Running>,
    places: Places,
    /// Where roles reach the API server, when not where it is.
    road: Option<u16>,
    /// What is in the environment of a role's process.
    variables: BTreeMap<&'static str, Vec<(String, String)>>,
    /// Further words of a role's command line.
    words: BTreeMap<&'static str, Vec<String>>,
    folder: TempDir,
}

#[derive(Debug)]
struct Running {
    child: Child,
    ops: u16,
}

pub(crate) const HUB: &str = "hub";
pub(crate) const AGENT: &str = "agent";
pub(crate) const INJECTOR: &str = "injector";

impl ControlPart {
    /// Starts all roles on a server where the manifests are installed, and waits until they are ready. What the
    /// manifests say about addresses is changed to this machine, since nothing routes Services here.
    pub(crate) async fn start(server: &Kubernetes) -> Self {
        Self::start_on(server, None).await
    }

    /// The same, with roles that reach the API server through this port of the machine.
    pub(crate) async fn start_on(server: &Kubernetes, road: Option<u16>) -> Self {
        let mut part = Self::none(road);
        part.lead_here(server);
        for role in [HUB, AGENT, INJECTOR] {
            part.launch(server, role);
        }
        part.ready().await;
        part
    }

    /// No role runs yet.
    pub(crate) fn none(road: Option<u16>) -> Self {
        let places = Places { delivery: free_port(), issuer: free_port(), webhook: free_port() };
        Self {
            roles: BTreeMap::new(),
            places,
            road,
            variables: BTreeMap::new(),
            words: BTreeMap::new(),
            folder: TempDir::new().unwrap(),
        }
    }

    /// Puts these behind the command line of a role's next processes.
    pub(crate) fn words(&mut self, role: &'static str, words: Vec<String>) {
        self.words.insert(role, words);
    }

    /// Puts the roles' addresses on this machine into what is installed.
    pub(crate) fn lead_here(&self, server: &Kubernetes) {
        self.lead_sidecars_here(server);
        let url = format!("https://127.0.0.1:{}/mutate", self.places.webhook);
        let client = json!([
            {"op": "remove", "path": "/webhooks/0/clientConfig/service"},
            {"op": "add", "path": "/webhooks/0/clientConfig/url", "value": url},
            {"op": "remove", "path": "/webhooks/1/clientConfig/service"},
            {"op": "add", "path": "/webhooks/1/clientConfig/url", "value": url},
        ]);
        let registration = ["patch", "mutatingwebhookconfiguration", "mecha-injector", "--type=json", "-p"];
        server.kubectl(&[&registration[..], &[&client.to_string()]].concat());
    }

    /// The same for sidecars only, which is all that there is without webhooks.
    pub(crate) fn lead_sidecars_here(&self, server: &Kubernetes) {
        let places = self.places;
        let config = server.kubectl(&["-n", NAMESPACE, "get", "configmap", "mecha-injector", "-o", "json"]);
        let config: Value = serde_json::from_str(&config).unwrap();
        let text = config["data"]["config.yaml"].as_str().unwrap();
        let here = |port: u16| format!("127.0.0.1:{port}");
        let text =
            format!("{text}addresses: {{operator: '{}', sentry: '{}'}}\n", here(places.delivery), here(places.issuer));
        let patch = json!({"data": {"config.yaml": text}}).to_string();
        server.kubectl(&["-n", NAMESPACE, "patch", "configmap", "mecha-injector", "--type=merge", "-p", &patch]);
    }

    /// Puts these into the environment of a role's next processes, in place of those before.
    pub(crate) fn variables(&mut self, role: &'static str, variables: Vec<(String, String)>) {
        self.variables.insert(role, variables);
    }

    /// Starts a role, again if need be.
    pub(crate) fn launch(&mut self, server: &Kubernetes, role: &'static str) {
        self.launch_replica(server, role, role);
    }

    /// Starts a replica of a role under a name of its own. Those that share a machine need ports of their own, so only
    /// the hub can have several.
    pub(crate) fn launch_replica(&mut self, server: &Kubernetes, role: &'static str, name: &'static str) {
        let ops = free_port();
        let here = |port: u16| format!("127.0.0.1:{port}");
        let own: Vec<String> = match role {
            HUB => Vec::new(),
            AGENT => vec![
                format!("--agent-address={}", here(self.places.delivery)),
                format!("--issuer-address={}", here(self.places.issuer)),
            ],
            _ => vec![
                format!("--webhook-address={}", here(self.places.webhook)),
                format!("--webhook-url=https://{}", here(self.places.webhook)),
                "--registration=chart".to_owned(),
            ],
        };
        let log = File::options().create(true).append(true).open(self.log_file(name)).unwrap();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(mecha_tests::mecha_control())
            .arg(role)
            .arg("--kubeconfig")
            .arg(self.kubeconfig(server, role, name))
            .args(["--namespace", NAMESPACE, "--instance", &format!("{name}-0")])
            .args(["--ops-address", &here(ops)])
            .args(own)
            .args(self.words.get(role).into_iter().flatten())
            .env_clear()
            .envs(self.variables.get(role).into_iter().flatten().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.roles.insert(name, Running { child, ops });
    }

    /// A configuration of the role's own account: what the manifests do not allow, it cannot do.
    fn kubeconfig(&self, server: &Kubernetes, role: &str, name: &str) -> PathBuf {
        let path = self.folder.path().join(format!("{name}.kubeconfig"));
        if !path.exists() {
            let token =
                server.kubectl(&["-n", NAMESPACE, "create", "token", &format!("mecha-{role}"), "--duration=2h"]);
            let text = std::fs::read_to_string(server.kubeconfig()).unwrap();
            let address = self.road.map_or_else(|| server.url(), |port| format!("https://127.0.0.1:{port}"));
            let text = text.replace(server.admin_token(), token.trim()).replace(&server.url(), &address);
            std::fs::write(&path, text).unwrap();
        }
        path
    }

    fn log_file(&self, role: &str) -> PathBuf {
        self.folder.path().join(format!("{role}.log"))
    }

    /// Everything a role printed.
    pub(crate) fn log(&self, role: &str) -> String {
        std::fs::read_to_string(self.log_file(role)).unwrap_or_default()
    }

    /// Waits until every role says that it is ready.
    pub(crate) async fn ready(&self) {
        for (role, running) in &self.roles {
            wait_until(READY, &format!("{role} to be ready"), async || {
                Http::tcp(running.ops).get("/readyz").try_send().await.is_ok_and(|reply| reply.status == 200)
            })
            .await;
        }
    }

    /// Sends a signal to a role.
    pub(crate) fn signal(&self, role: &str, what: Signal) {
        signal(self.roles[role].child.id(), what);
    }

    /// The value of a metric of a role; `None` when it does not answer or has none.
    pub(crate) async fn metric(&self, role: &str, series: &str) -> Option<f64> {
        let scraped = Http::tcp(self.roles.get(role)?.ops).get("/metrics").try_send().await.ok()?.text();
        let line = scraped.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned));
        line?.parse().ok()
    }

    /// Ends a role without notice.
    pub(crate) fn kill(&mut self, role: &str) {
        if let Some(mut running) = self.roles.remove(role) {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }
}

impl Drop for ControlPart {
    fn drop(&mut self) {
        let names: Vec<_> = self.roles.keys().copied().collect();
        for role in names {
            self.kill(role);
            if std::thread::panicking() {
                eprintln!("--- log of {role} ---\n{}---", self.log(role));
            }
        }
    }
}
