//! One container: its spec, the process it is, and its probes.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use mecha_tests::{Http, Signal};
use rustix::process::{Pid, Signal as Raw, kill_process};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Where the node can mount: below it, a container has a memory file system of its own.
const MOUNTABLE: &str = "/var/run";
/// Mounts each `source target mode` and becomes the program behind `--`. It ends with the node.
const ENTER: &str = r#"mount -t tmpfs tmpfs /var/run || exit 125
while [ "$1" != -- ]; do
  mkdir -p "$2" && mount --bind "$1" "$2" || exit 125
  [ "$3" = rw ] || mount -o remount,bind,ro "$2" || exit 125
  shift 3
done
shift
exec setpriv --pdeathsig KILL "$@""#;
/// Pause before a container is started again; it doubles up to the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What a container is doing.
pub(super) enum State {
    Waiting,
    /// A process, or none where the test or nobody plays the app.
    Running(Option<Child>),
    Terminated(i32),
}

/// What is started for a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Runs {
    Mechad,
    Command,
    Nothing,
}

pub(super) struct Container {
    pub(super) name: String,
    pub(super) spec: Value,
    pub(super) runs: Runs,
    pub(super) native: bool,
    pub(super) state: State,
    pub(super) restarts: u32,
    /// Why it waits.
    pub(super) trouble: Option<String>,
    pub(super) started: bool,
    pub(super) ready: bool,
    not_before: Instant,
    asked_to_end: bool,
    startup: Option<Probe>,
    readiness: Option<Probe>,
    liveness: Option<Probe>,
}

impl Container {
    pub(super) fn new(spec: &Value, runs: Runs) -> Self {
        Self {
            name: spec["name"].as_str().unwrap_or_default().to_owned(),
            runs,
            native: spec["restartPolicy"] == "Always",
            state: State::Waiting,
            restarts: 0,
            trouble: None,
            started: false,
            ready: false,
            not_before: Instant::now(),
            asked_to_end: false,
            startup: None,
            readiness: None,
            liveness: None,
            spec: spec.clone(),
        }
    }

    pub(super) fn pid(&self) -> Option<u32> {
        match &self.state {
            State::Running(Some(child)) => child.id(),
            _ => None,
        }
    }

    pub(super) fn runs_now(&self) -> bool {
        matches!(self.state, State::Running(_))
    }

    pub(super) fn waits(&self) -> bool {
        matches!(self.state, State::Waiting) && Instant::now() >= self.not_before
    }

    /// Starts it: `env` and `args` are as the process gets them, `mounts` by their place in the container.
    pub(super) fn start(
        &mut self,
        program: &Path,
        args: &[String],
        env: &[(String, String)],
        mounts: &[(std::path::PathBuf, String, bool)],
        log: &Path,
    ) -> Result<(), String> {
        let mut words: Vec<String> = Vec::new();
        for (source, target, read_only) in mounts {
            if !target.starts_with(MOUNTABLE) {
                return Err(format!("this node mounts below {MOUNTABLE} only, not at {target}"));
            }
            let mode = if *read_only { "ro" } else { "rw" };
            words.extend([source.display().to_string(), target.clone(), mode.to_owned()]);
        }
        words.extend(["--", "env", "-i"].map(str::to_owned));
        words.extend(env.iter().map(|(name, value)| format!("{name}={value}")));
        let open = || File::options().create(true).append(true).open(log).map_err(|e| e.to_string());
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        let child = command
            .args(["--mount", "sh", "-c", ENTER, "sh"])
            .args(words)
            .arg(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(open()?)
            .stderr(open()?)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", self.name))?;
        self.state = State::Running(Some(child));
        self.asked_to_end = false;
        Ok(())
    }

    /// It runs, as far as anybody can see.
    pub(super) fn pretend(&mut self) {
        self.state = State::Running(None);
    }

    /// The probes of a container that just began.
    pub(super) fn begin(&mut self, ports: &BTreeMap<u16, u16>) {
        let probe = |name: &str| (self.runs != Runs::Nothing).then(|| Probe::of(&self.spec[name], ports)).flatten();
        (self.startup, self.readiness, self.liveness) =
            (probe("startupProbe"), probe("readinessProbe"), probe("livenessProbe"));
        self.started = self.startup.is_none();
        self.ready = self.started && self.readiness.is_none();
        self.trouble = None;
    }

    /// Notices that it has ended.
    pub(super) fn reap(&mut self) {
        if let State::Running(Some(child)) = &mut self.state
            && let Ok(Some(status)) = child.try_wait()
        {
            use std::os::unix::process::ExitStatusExt as _;
            let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
            self.state = State::Terminated(code);
            (self.started, self.ready) = (false, false);
        }
    }

    /// To be started again, after a pause.
    pub(super) fn again(&mut self) {
        let pause = PAUSE.0.saturating_mul(1 << self.restarts.min(10)).min(PAUSE.1);
        self.restarts += 1;
        self.not_before = Instant::now() + pause;
        self.state = State::Waiting;
    }

    /// Asks it to end, once.
    pub(super) fn ask_to_end(&mut self) {
        match &self.state {
            State::Running(None) => self.state = State::Terminated(0),
            State::Running(Some(_)) if !self.asked_to_end => {
                self.asked_to_end = true;
                if let Some(pid) = self.pid() {
                    signal(pid, Signal::Term);
                }
            }
            _ => {}
        }
    }

    /// Ends it, and waits until it is gone.
    pub(super) async fn kill(&mut self) {
        if let State::Running(Some(child)) = &mut self.state {
            let _ = child.kill().await;
            self.state = State::Terminated(128 + 9);
        }
    }

    /// One round of its probes. A failed liveness probe kills it.
    pub(super) async fn probe(&mut self) {
        if !self.runs_now() {
            return;
        }
        if !self.started {
            match &mut self.startup {
                Some(probe) => match probe.look().await {
                    Some(true) => self.started = true,
                    Some(false) => return self.kill().await,
                    None => return,
                },
                None => self.started = true,
            }
        }
        match &mut self.readiness {
            Some(probe) => {
                if let Some(verdict) = probe.look().await {
                    self.ready = verdict;
                }
            }
            None => self.ready = true,
        }
        if let Some(probe) = &mut self.liveness
            && probe.look().await == Some(false)
        {
            self.kill().await;
        }
    }
}

/// A probe of the spec, with what it has seen.
struct Probe {
    http: Option<String>,
    port: u16,
    timeout: Duration,
    period: Duration,
    threshold: u64,
    failures: u64,
    next: Instant,
}

impl Probe {
    fn of(spec: &Value, ports: &BTreeMap<u16, u16>) -> Option<Self> {
        let http = spec["httpGet"]["path"].as_str().map(str::to_owned);
        let port = spec["httpGet"]["port"].as_u64().or_else(|| spec["tcpSocket"]["port"].as_u64())?;
        let port = u16::try_from(port).ok()?;
        let seconds = |name: &str, default: u64| Duration::from_secs(spec[name].as_u64().unwrap_or(default));
        Some(Self {
            http,
            port: ports.get(&port).copied().unwrap_or(port),
            timeout: seconds("timeoutSeconds", 1),
            period: seconds("periodSeconds", 10),
            threshold: spec["failureThreshold"].as_u64().unwrap_or(3),
            failures: 0,
            next: Instant::now() + seconds("initialDelaySeconds", 0),
        })
    }

    /// The verdict, where there is a new one: good at once, bad after as many failures as it says.
    async fn look(&mut self) -> Option<bool> {
        if Instant::now() < self.next {
            return None;
        }
        self.next = Instant::now() + self.period;
        let good = timeout(self.timeout, async {
            match &self.http {
                Some(path) => {
                    let reply = Http::tcp(self.port).get(path.as_str()).try_send().await;
                    reply.is_ok_and(|reply| (200..400).contains(&reply.status))
                }
                None => TcpStream::connect(("127.0.0.1", self.port)).await.is_ok(),
            }
        });
        if good.await.unwrap_or(false) {
            self.failures = 0;
            return Some(true);
        }
        self.failures += 1;
        (self.failures >= self.threshold).then_some(false)
    }
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    let raw = match signal {
        Signal::Term => Raw::TERM,
        Signal::Int => Raw::INT,
        Signal::Hup => Raw::HUP,
        Signal::Kill => Raw::KILL,
        Signal::Stop => Raw::STOP,
        Signal::Continue => Raw::CONT,
    };
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, raw);
    }
}
