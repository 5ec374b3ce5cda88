mod builder;
mod logs;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tonic::transport::Channel;

pub use self::builder::SidecarBuilder;
use self::logs::Logs;
use crate::api::{Api, Front};
use crate::grpc::{self, Grpc};
use crate::http::{Http, Reply};
use crate::wait::{DEADLINE, wait_until};

/// Ends the start, once everything before it is told.
const INITIALIZED: &str = "dapr initialized. Status: Running.";

/// Signals a test may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Ask to end.
    Term,
    /// As Ctrl-C does.
    Int,
    /// Ask to rebuild.
    Hup,
    /// The end without notice.
    Kill,
    /// Freeze.
    Stop,
    /// Go on.
    Continue,
}

/// A daemon that ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit status; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Everything it printed.
    pub log: String,
}

/// A running `mechad`, ended with the value.
#[derive(Debug)]
pub struct Sidecar {
    child: Child,
    setup: Setup,
    logs: Logs,
    /// Length of the log when the process started.
    began: usize,
}

/// What it takes to start it, again if need be.
#[derive(Debug)]
struct Setup {
    app_id: String,
    ports: Ports,
    args: Vec<String>,
    env: Vec<(String, String)>,
    sockets: Option<PathBuf>,
    folder: TempDir,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    http: u16,
    grpc: u16,
    internal: u16,
    metrics: u16,
    public: Option<u16>,
}

impl Sidecar {
    /// Describes a sidecar to be started.
    pub fn builder() -> SidecarBuilder {
        SidecarBuilder::new()
    }

    /// A sidecar with this app id and these documents, ready.
    pub async fn with(app_id: &str, documents: &[String]) -> Self {
        let mut builder = Self::builder().app_id(app_id);
        for document in documents {
            builder = builder.component(document);
        }
        builder.start().await
    }

    /// Its app id.
    #[must_use]
    pub fn app_id(&self) -> &str {
        &self.setup.app_id
    }

    /// Its folder: documents below `resources`, everything else is free for the test.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.setup.folder.path()
    }

    /// Where its documents lie.
    #[must_use]
    pub fn resources(&self) -> PathBuf {
        self.folder().join("resources")
    }

    /// Port of the HTTP API.
    #[must_use]
    pub fn http_port(&self) -> u16 {
        self.setup.ports.http
    }

    /// Port of the gRPC API.
    #[must_use]
    pub fn grpc_port(&self) -> u16 {
        self.setup.ports.grpc
    }

    /// Port for other sidecars.
    #[must_use]
    pub fn internal_port(&self) -> u16 {
        self.setup.ports.internal
    }

    /// Port of the metrics.
    #[must_use]
    pub fn metrics_port(&self) -> u16 {
        self.setup.ports.metrics
    }

    /// Client of the HTTP API.
    #[must_use]
    pub fn http(&self) -> Http {
        match &self.setup.sockets {
            None => Http::tcp(self.http_port()),
            Some(folder) => Http::unix(folder.join(format!("dapr-{}-http.socket", self.app_id()))),
        }
    }

    /// Client of the public port, which the test asked for.
    #[must_use]
    pub fn public(&self) -> Http {
        Http::tcp(self.setup.ports.public.expect("SidecarBuilder::public"))
    }

    /// Channel to the gRPC API.
    pub async fn channel(&self) -> Channel {
        match &self.setup.sockets {
            None => grpc::channel(self.grpc_port()).await,
            Some(folder) => grpc::unix_channel(&folder.join(format!("dapr-{}-grpc.socket", self.app_id()))).await,
        }
    }

    /// Client of the gRPC API.
    pub async fn grpc(&self) -> Grpc {
        grpc::client(self.channel().await)
    }

    /// A client of the gRPC API on the port for other sidecars.
    pub async fn internal_channel(&self) -> Channel {
        grpc::channel(self.internal_port()).await
    }

    /// Both fronts, HTTP first.
    pub async fn apis(&self) -> [Api; 2] {
        [Api::new(Front::Http(self.http())), Api::new(Front::Grpc(Box::new(self.grpc().await)))]
    }

    /// Everything on the metrics port.
    pub async fn metrics(&self) -> String {
        Http::tcp(self.metrics_port()).get("/metrics").send().await.expect(200).text()
    }

    /// The metadata document.
    pub async fn metadata(&self) -> serde_json::Value {
        self.http().get("/v1.0/metadata").send().await.expect(200).json()
    }

    /// Everything it printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.logs.text()
    }

    /// Waits for a line with `text`.
    pub async fn wait_log(&self, text: &str) {
        wait_until(DEADLINE, &format!("log line {text:?}"), || async { self.log().contains(text) }).await;
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory now, in KiB.
    #[must_use]
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        use rustix::process::{Pid, Signal as Raw, kill_process};
        let raw = match signal {
            Signal::Term => Raw::TERM,
            Signal::Int => Raw::INT,
            Signal::Hup => Raw::HUP,
            Signal::Kill => Raw::KILL,
            Signal::Stop => Raw::STOP,
            Signal::Continue => Raw::CONT,
        };
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).unwrap();
        // A process that is gone already is what the test waits for anyway.
        let _ = kill_process(pid, raw);
    }

    /// Waits until it ended.
    ///
    /// # Panics
    /// When it still runs after `limit`.
    pub async fn ended(mut self, limit: Duration) -> Ended {
        let status = self.exit(limit).await;
        self.logs.finish();
        Ended { code: status.code(), log: self.log() }
    }

    /// Waits until the process ended; the exit status. It can be [`Sidecar::again`].
    ///
    /// # Panics
    /// When it still runs after `limit`.
    pub async fn exited(&mut self, limit: Duration) -> Option<i32> {
        self.exit(limit).await.code()
    }

    /// Ends it without notice and waits until it is gone; it can be [`Sidecar::again`].
    pub async fn kill(&mut self) {
        self.signal(Signal::Kill);
        self.exit(DEADLINE).await;
    }

    /// Starts it again after it ended: same ports, same documents, same folder.
    pub async fn again(&mut self) {
        self.spawn_again();
        self.ready().await;
    }

    /// Starts it again, and waits for nothing.
    pub fn spawn_again(&mut self) {
        self.began = self.logs.text().len();
        self.child = spawn(&self.setup, &self.logs);
    }

    /// Replaces it in place: starts a successor that takes its sockets over, with `more` arguments, and waits
    /// until one of the two processes has ended. The other one is this sidecar from then on.
    ///
    /// # Errors
    /// Status of the successor, which ended first.
    pub async fn replace(&mut self, more: &[&str]) -> Result<Option<i32>, Option<i32>> {
        let mut args = vec!["--mecha-takeover"];
        args.extend(more);
        self.began = self.logs.text().len();
        let mut successor = spawn_with(&self.setup, &self.logs, &args);
        let deadline = Instant::now() + DEADLINE * 2;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.child = successor;
                return Ok(status.code());
            }
            if let Some(status) = successor.try_wait().unwrap() {
                return Err(status.code());
            }
            if Instant::now() >= deadline {
                let _ = successor.kill();
                panic!("neither process has ended:\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until `/v1.0/healthz` says that everything is ready, and until the log does, so that all
    /// lines of the start are there.
    pub async fn ready(&mut self) {
        self.healthy("/v1.0/healthz").await;
        if self.setup.tells() {
            let told = || async { self.log()[self.began..].contains(INITIALIZED) };
            wait_until(DEADLINE, "the line that ends the start", told).await;
        }
    }

    /// Waits until the app may use it.
    pub async fn outbound_ready(&mut self) {
        self.healthy("/v1.0/healthz/outbound").await;
    }

    async fn healthy(&mut self, path: &str) {
        let client = self.http();
        let deadline = Instant::now() + DEADLINE;
        let mut last: Result<Reply, String> = Err("not asked yet".to_owned());
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.logs.finish();
                panic!("mechad ended with {status} before it was ready:\n{}", self.log());
            }
            last = client.get(path).try_send().await;
            if last.as_ref().is_ok_and(|reply| reply.status == 204) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("mechad is not ready within {DEADLINE:?}; {path} said {last:?}:\n{}", self.log());
    }

    async fn exit(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "mechad still runs after {limit:?}:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            self.logs.finish();
            eprintln!("--- log of sidecar {:?} ---\n{}---", self.setup.app_id, self.log());
        }
    }
}

impl Setup {
    /// Whether the line that ends the start can be seen.
    fn tells(&self) -> bool {
        let quiet = |pair: &[String]| pair[0] == "--log-level" && !matches!(pair[1].as_str(), "info" | "debug");
        !self.args.iter().any(|arg| arg == "--log-file") && !self.args.windows(2).any(quiet)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(crate::binary::mechad());
        command
            .args(&self.args)
            // The daemon must start with nothing but the variables of its contract.
            .env_clear()
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

fn spawn(setup: &Setup, logs: &Logs) -> Child {
    spawn_with(setup, logs, &[])
}

fn spawn_with(setup: &Setup, logs: &Logs, more: &[&str]) -> Child {
    let mut child = setup.command().args(more).spawn().unwrap();
    logs.follow(child.stdout.take().unwrap());
    logs.follow(child.stderr.take().unwrap());
    child
}
