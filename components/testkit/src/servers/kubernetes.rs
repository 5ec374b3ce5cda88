use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use super::process::{Process, free_port, wait_for};

/// What builds the programs.
const INSTALL: &str = "bash tests/control/apiserver/build.sh";
/// Names the folder with the programs.
const FOLDER: &str = "MECHA_KUBERNETES";
/// Names another kube-apiserver.
const OVERRIDE: &str = "MECHA_KUBE_APISERVER";
/// Longest wait for a server to be ready; a busy machine is slow.
const START: Duration = Duration::from_secs(120);
/// Pause between two questions whether a server is ready. Each costs kubectl a tenth of a second of a core, which the
/// server needs itself to get ready.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// Sets of ports that are tried.
const TRIES: usize = 3;
/// The token of the administrator.
const TOKEN: &str = "test-administrator";

/// What kind of API server to start.
#[derive(Clone, Debug, Default)]
pub struct KubernetesOptions {
    controller_manager: bool,
    args: Vec<String>,
}

/// A running kube-apiserver with its own etcd, and a controller manager where one was asked
/// for. There is no node: a pod stays pending until a test says otherwise. Dropping it ends it
/// and removes its data.
#[derive(Debug)]
pub struct Kubernetes {
    options: KubernetesOptions,
    programs: PathBuf,
    dir: TempDir,
    ports: Ports,
    // In the order in which they end.
    manager: Option<Process>,
    apiserver: Option<Process>,
    etcd: Option<Process>,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    etcd: u16,
    etcd_peers: u16,
    apiserver: u16,
    manager: u16,
}

impl KubernetesOptions {
    /// API server and etcd.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With what makes pods of Deployments, collects garbage and ends namespaces.
    #[must_use]
    pub fn controller_manager(mut self) -> Self {
        self.controller_manager = true;
        self
    }

    /// One more word of the API server's command line.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Starts it; `None` when the programs were not built.
    ///
    /// # Panics
    /// When they were built and do not start, or are required and not built.
    #[track_caller]
    #[must_use]
    pub fn start(self) -> Option<Kubernetes> {
        let Some(programs) = programs() else {
            super::absent("kube-apiserver", INSTALL);
            return None;
        };
        let mut last = String::new();
        for _ in 0..TRIES {
            match Kubernetes::launch(self.clone(), programs.clone()) {
                Ok(server) => return Some(server),
                Err(e) => last = e,
            }
        }
        panic!("kube-apiserver does not start: {last}");
    }
}

/// The folder with the programs.
fn programs() -> Option<PathBuf> {
    let folder = PathBuf::from(std::env::var_os(FOLDER)?);
    folder.join("kube-apiserver").is_file().then_some(folder)
}

impl Kubernetes {
    /// Starts API server and etcd; `None` when they were not built.
    #[track_caller]
    #[must_use]
    pub fn start() -> Option<Self> {
        KubernetesOptions::new().start()
    }

    /// How to build the programs, when they were not.
    #[must_use]
    pub fn missing() -> Option<&'static str> {
        programs().is_none().then_some(INSTALL)
    }

    fn launch(options: KubernetesOptions, programs: PathBuf) -> Result<Self, String> {
        let dir = TempDir::new().map_err(|e| format!("no temporary folder: {e}"))?;
        let ports = Ports { etcd: free_port(), etcd_peers: free_port(), apiserver: free_port(), manager: free_port() };
        let mut server = Self { options, programs, dir, ports, manager: None, apiserver: None, etcd: None };
        server.write_files()?;
        server.run_etcd()?;
        server.run_apiserver()?;
        if server.options.controller_manager {
            server.run_manager()?;
        }
        Ok(server)
    }

    fn write_files(&self) -> Result<(), String> {
        let key = Command::new(self.programs.join("kubernetes"))
            .arg("new-key")
            .stderr(Stdio::inherit())
            .output()
            .map_err(|e| format!("no key for service accounts: {e}"))?;
        let users = format!("{TOKEN},admin,admin,system:masters\n");
        let write = |name: &str, text: &[u8]| {
            let path = self.path(name);
            fs::write(&path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))
        };
        write("sa.key", &key.stdout)?;
        write("tokens.csv", users.as_bytes())?;
        write("kubeconfig", self.kubeconfig_text().as_bytes())
    }

    fn kubeconfig_text(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: '{}', certificate-authority: '{}'}}}}]\n\
             users: [{{name: admin, user: {{token: {TOKEN}}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: admin}}}}]\n",
            self.url(),
            self.authority().display(),
        )
    }

    fn run_etcd(&mut self) -> Result<(), String> {
        let client = format!("http://127.0.0.1:{}", self.ports.etcd);
        let peers = format!("http://127.0.0.1:{}", self.ports.etcd_peers);
        let args = [
            "--name=e0".to_owned(),
            format!("--data-dir={}", self.path("etcd").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peers}"),
            format!("--initial-advertise-peer-urls={peers}"),
            format!("--initial-cluster=e0={peers}"),
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        // The API server waits for it, and says so when it does not come.
        self.etcd = Some(self.process("etcd", &self.programs.join("etcd"), &args)?);
        Ok(())
    }

    fn run_apiserver(&mut self) -> Result<(), String> {
        let key = self.path("sa.key");
        let mut args = vec![
            format!("--etcd-servers=http://127.0.0.1:{}", self.ports.etcd),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--secure-port={}", self.ports.apiserver),
            format!("--cert-dir={}", self.path("certs").display()),
            format!("--token-auth-file={}", self.path("tokens.csv").display()),
            "--authorization-mode=RBAC".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!("--service-account-signing-key-file={}", key.display()),
            format!("--service-account-key-file={}", key.display()),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
        ];
        if !self.options.controller_manager {
            // Nobody would make the accounts that it asks for.
            args.push("--disable-admission-plugins=ServiceAccount".to_owned());
        }
        args.extend(self.options.args.iter().cloned());
        let program = std::env::var_os(OVERRIDE).map_or_else(|| self.programs.join("kube-apiserver"), PathBuf::from);
        let process = self.process("kube-apiserver", &program, &args)?;
        let mut dead = false;
        let ready = wait_for(START, || {
            dead = !process.is_alive() || !self.etcd.as_ref().is_some_and(Process::is_alive);
            dead || self.authority().is_file() && self.listens() && self.is_ready()
        });
        if dead || !ready {
            let log = |name: &str| fs::read_to_string(self.log(name)).unwrap_or_default();
            return Err(format!("{}\n{}", log("etcd"), log("kube-apiserver")));
        }
        self.apiserver = Some(process);
        Ok(())
    }

    fn run_manager(&mut self) -> Result<(), String> {
        let args = [
            format!("--kubeconfig={}", self.kubeconfig().display()),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={}", self.ports.manager),
            format!("--cert-dir={}", self.path("certs-manager").display()),
            "--leader-elect=false".to_owned(),
            format!("--flex-volume-plugin-dir={}", self.path("flex").display()),
            format!("--service-account-private-key-file={}", self.path("sa.key").display()),
            format!("--root-ca-file={}", self.authority().display()),
        ];
        self.manager =
            Some(self.process("kube-controller-manager", &self.programs.join("kube-controller-manager"), &args)?);
        // Its first visible deed.
        let patience = format!("--timeout={}s", START.as_secs());
        let there = self.kubectl_refused(&["wait", "--for=create", &patience, "serviceaccount/default"]);
        there.map(drop).map_err(|e| {
            format!("{e}\n{}", fs::read_to_string(self.log("kube-controller-manager")).unwrap_or_default())
        })
    }

    fn process(&self, name: &str, program: &Path, args: &[String]) -> Result<Process, String> {
        Process::start(&program.to_string_lossy(), args, &self.log(name))
    }

    fn listens(&self) -> bool {
        TcpStream::connect(("127.0.0.1", self.ports.apiserver)).is_ok()
    }

    fn is_ready(&self) -> bool {
        let ready = self.try_kubectl(["get", "--raw", "/readyz"]).is_ok_and(|output| output.status.success());
        if !ready {
            thread::sleep(ASK_EVERY);
        }
        ready
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn try_kubectl<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> std::io::Result<Output> {
        Command::new(self.programs.join("kubectl"))
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(args)
            .env("KUBECACHEDIR", self.path("kubectl-cache"))
            .stdin(Stdio::null())
            .output()
    }

    /// The output of one of its programs: `etcd`, `kube-apiserver` or `kube-controller-manager`.
    #[must_use]
    pub fn log(&self, program: &str) -> PathBuf {
        self.path(&format!("{program}.log"))
    }

    /// `https://127.0.0.1:port`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports.apiserver)
    }

    /// Where etcd takes clients, for tests that look at what is stored.
    #[must_use]
    pub fn etcd_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.etcd)
    }

    /// The certificate that the API server is checked against.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.path("certs").join("apiserver.crt")
    }

    /// The token of a user who may do everything.
    #[must_use]
    pub fn admin_token(&self) -> &'static str {
        TOKEN
    }

    /// A configuration file for clients, of the user who may do everything.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.path("kubeconfig")
    }

    /// Runs kubectl and gives what it printed.
    ///
    /// # Panics
    /// When it fails, with what it said.
    #[track_caller]
    pub fn kubectl(&self, args: &[&str]) -> String {
        match self.kubectl_refused(args) {
            Ok(text) => text,
            Err(text) => panic!("kubectl {args:?}: {text}"),
        }
    }

    /// Runs kubectl; what it printed, or what it complained about.
    ///
    /// # Errors
    /// The complaint.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn kubectl_refused(&self, args: &[&str]) -> Result<String, String> {
        match self.try_kubectl(args) {
            Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(e) => panic!("kubectl cannot be started: {e}"),
        }
    }

    /// Applies documents on the server's side, as one field manager.
    ///
    /// # Errors
    /// What the server refused, in its words.
    ///
    /// # Panics
    /// When the documents cannot be written to a file or kubectl cannot be started.
    #[track_caller]
    pub fn apply(&self, yaml: &str) -> Result<String, String> {
        let mut file = tempfile::NamedTempFile::new_in(self.dir.path()).unwrap_or_else(|e| panic!("no file: {e}"));
        std::io::Write::write_all(&mut file, yaml.as_bytes()).unwrap_or_else(|e| panic!("no file: {e}"));
        self.kubectl_refused(&["apply", "--server-side", "-f", &file.path().to_string_lossy()])
    }

    /// Applies the definitions in a file or folder, and waits until their kinds are served.
    ///
    /// # Panics
    /// When they are refused or not served in time.
    #[track_caller]
    pub fn define(&self, definitions: &Path) {
        self.kubectl(&["apply", "--server-side", "-f", &definitions.to_string_lossy()]);
        self.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"]);
    }

    /// Creates namespaces, where they are not there yet.
    ///
    /// # Panics
    /// When the server refuses one.
    #[track_caller]
    pub fn create_namespaces(&self, names: &[&str]) {
        let documents = names.iter().fold(String::new(), |mut documents, name| {
            let _ = writeln!(documents, "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}");
            documents
        });
        if let Err(refusal) = self.apply(&documents) {
            panic!("namespaces {names:?}: {refusal}");
        }
    }

    /// Creates a service account.
    ///
    /// # Panics
    /// When the server refuses it.
    #[track_caller]
    pub fn create_account(&self, namespace: &str, name: &str) {
        self.kubectl(&["-n", namespace, "create", "serviceaccount", name]);
    }

    /// A token of a service account, as a pod of that account would have it.
    ///
    /// # Panics
    /// When the server gives none.
    #[track_caller]
    #[must_use]
    pub fn token_of(&self, namespace: &str, account: &str) -> String {
        self.kubectl(&["-n", namespace, "create", "token", account, "--duration=2h"]).trim().to_owned()
    }

    /// Ends the API server without warning, as a crash would. Its data stays.
    pub fn kill_apiserver(&mut self) {
        self.apiserver = None;
    }

    /// Starts the API server again on the same port and data.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    pub fn restart_apiserver(&mut self) {
        self.apiserver = None;
        if let Err(e) = self.run_apiserver() {
            panic!("kube-apiserver does not start again: {e}");
        }
    }

    /// Freezes the API server: connections stay, nothing answers.
    pub fn freeze_apiserver(&self) {
        if let Some(process) = &self.apiserver {
            process.freeze();
        }
    }

    /// Lets a frozen API server go on.
    pub fn thaw_apiserver(&self) {
        if let Some(process) = &self.apiserver {
            process.thaw();
        }
    }
}
