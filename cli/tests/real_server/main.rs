//! The commands for clusters on a real API server, with a real hub. No sidecar runs: the test reports for the agent.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

mod agent;
mod doctor;
mod pipeline;
mod swaps;

use mecha_testkit::servers::Kubernetes;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Generous: reached only when something is broken.
const DEADLINE: Duration = Duration::from_secs(120);

/// What the platform has and wants, and what a team asks for. The claims lie in the namespace of the environment.
const PLATFORM: &str = r#"
apiVersion: mecha.dev/v1alpha1
kind: EnvironmentClass
metadata: {name: development, labels: {type: development}}
spec:
  type: development
  capabilities:
  - {kind: state, backendSelector: {matchLabels: {engine: sqlite}}}
  - {kind: pubsub, backendSelector: {matchLabels: {engine: memory}}, swap: {strategy: Drain, approval: Manual, deadline: 1h}}
---
apiVersion: mecha.dev/v1alpha1
kind: Environment
metadata: {name: team-a-dev, namespace: team-a}
spec: {classSelector: {matchLabels: {type: development}}, parameters: {installInfra: true}}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: in-memory, labels: {engine: memory}}
spec: {kind: pubsub, component: {type: pubsub.in-memory, version: v1}, source: {none: {}}}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: durable, labels: {engine: file}}
spec: {kind: pubsub, component: {type: pubsub.mecha, version: v1}, source: {none: {}}}
---
apiVersion: v1
kind: Namespace
metadata: {name: team-a}
"#;

/// The edit of one line that swaps the broker.
fn edited() -> String {
    PLATFORM.replacen("{engine: memory}}, swap", "{engine: file}}, swap", 1)
}

/// A cluster with the kinds, and a folder with documents for it.
struct Cluster {
    server: Kubernetes,
    folder: tempfile::TempDir,
}

/// A hub; dropping it kills it.
struct Hub(Child);

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Cluster {
    fn start() -> Option<Self> {
        let server = Kubernetes::start()?;
        let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
        server.define(&crds);
        server.create_namespaces(&["mecha-system"]);
        let cluster = Self { server, folder: tempfile::tempdir().unwrap() };
        cluster.write("platform.yaml", PLATFORM);
        Some(cluster)
    }

    fn hub(&self) -> Hub {
        let mut command = Command::new(control());
        command.arg("hub").arg("--kubeconfig").arg(self.server.kubeconfig()).args(["--ops-address", "127.0.0.1:0"]);
        Hub(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// The namespace that the hub has made for the environment.
    fn connect_to(&self) -> String {
        let path = "jsonpath={.status.connectTo}";
        self.server.kubectl(&["-n", "team-a", "get", "environment", "team-a-dev", "-o", path])
    }

    /// Two claims in the environment.
    fn write_claims(&self) {
        let namespace = self.connect_to();
        self.write(
            "claims.yaml",
            &format!(
                "apiVersion: mecha.dev/v1alpha1\nkind: CapabilityClaim\nmetadata: {{name: events, namespace: {namespace}}}\n\
                 spec: {{kind: pubsub, scopes: [orders]}}\n"
            ),
        );
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mecha"));
        command.args(args).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("KUBECONFIG", self.server.kubeconfig()).env("MECHA_HOME", self.path("home"));
        command
    }

    /// Runs mecha in the folder, as the administrator of the cluster.
    fn mecha(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Starts mecha likewise.
    fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).spawn().unwrap()
    }

    /// Runs mecha, which must end with this status; what it printed, and what it complained about.
    #[track_caller]
    fn ends(&self, args: &[&str], status: i32) -> (String, String) {
        let output = self.mecha(args);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(status), "mecha {args:?}:\n{out}\n{err}");
        (out, err)
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        self.ends(args, 0).0
    }

    #[track_caller]
    fn json(&self, args: &[&str], status: i32) -> serde_json::Value {
        let (out, _) = self.ends(&[args, &["-o", "json"]].concat(), status);
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("mecha {args:?}: {e}\n{out}"))
    }
}

/// The control part's program: beside `mecha`, built where it is missing.
fn control() -> PathBuf {
    let mecha = Path::new(env!("CARGO_BIN_EXE_mecha"));
    let path = mecha.with_file_name("mecha-control");
    if !path.is_file() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo).args(["build", "--quiet", "-p", "mecha-control"]).status().unwrap();
        assert!(status.success() && path.is_file(), "cargo build -p mecha-control leaves no {}", path.display());
    }
    path
}

/// Waits on a condition.
#[track_caller]
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < end, "waited for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
