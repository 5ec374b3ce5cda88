//! The roles of the control part as processes, each with the token of its own service account.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mecha_testkit::servers::Kubernetes;
use mecha_tests::{Http, free_port, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::install::NAMESPACE;

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
        let places = Places { delivery: free_port(), issuer: free_port(), webhook: free_port() };
        let config = server.kubectl(&["-n", NAMESPACE, "get", "configmap", "mecha-injector", "-o", "json"]);
        let config: Value = serde_json::from_str(&config).unwrap();
        let text = config["data"]["config.yaml"].as_str().unwrap();
        let here = |port: u16| format!("127.0.0.1:{port}");
        let text =
            format!("{text}addresses: {{operator: '{}', sentry: '{}'}}\n", here(places.delivery), here(places.issuer));
        let patch = json!({"data": {"config.yaml": text}}).to_string();
        server.kubectl(&["-n", NAMESPACE, "patch", "configmap", "mecha-injector", "--type=merge", "-p", &patch]);
        let url = format!("https://{}/mutate", here(places.webhook));
        let client = json!([
            {"op": "remove", "path": "/webhooks/0/clientConfig/service"},
            {"op": "add", "path": "/webhooks/0/clientConfig/url", "value": url},
        ]);
        let registration = ["patch", "mutatingwebhookconfiguration", "mecha-injector", "--type=json", "-p"];
        server.kubectl(&[&registration[..], &[&client.to_string()]].concat());

        let mut part = Self { roles: BTreeMap::new(), places, folder: TempDir::new().unwrap() };
        for role in [HUB, AGENT, INJECTOR] {
            part.launch(server, role);
        }
        part.ready().await;
        part
    }

    /// Starts a role, again if need be.
    pub(crate) fn launch(&mut self, server: &Kubernetes, role: &'static str) {
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
        let log = File::options().create(true).append(true).open(self.log_file(role)).unwrap();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(mecha_tests::mecha_control())
            .arg(role)
            .arg("--kubeconfig")
            .arg(self.kubeconfig(server, role))
            .args(["--namespace", NAMESPACE, "--instance", &format!("{role}-0")])
            .args(["--ops-address", &here(ops)])
            .args(own)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.roles.insert(role, Running { child, ops });
    }

    /// A configuration of the role's own account: what the manifests do not allow, it cannot do.
    fn kubeconfig(&self, server: &Kubernetes, role: &str) -> PathBuf {
        let path = self.folder.path().join(format!("{role}.kubeconfig"));
        if !path.exists() {
            let token =
                server.kubectl(&["-n", NAMESPACE, "create", "token", &format!("mecha-{role}"), "--duration=2h"]);
            let text = std::fs::read_to_string(server.kubeconfig()).unwrap();
            std::fs::write(&path, text.replace(server.admin_token(), token.trim())).unwrap();
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
        for role in [HUB, AGENT, INJECTOR] {
            self.kill(role);
            if std::thread::panicking() {
                eprintln!("--- log of {role} ---\n{}---", self.log(role));
            }
        }
    }
}
