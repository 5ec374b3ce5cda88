//! One app and its sidecar, from start to end.

use super::Shared;
use super::console::{Destination, Level, LogFile, Sink, Tail};
use super::ports::Ports;
use super::process::{Launch, Process, Stop, describe, find_program, status_code};
use super::sidecar::{self, Start};
use super::spec::AppSpec;
use crate::error::{CliError, FAILURE, OK, Result};
use crate::registry::{self, Record, Registration, UpgradeOutcome, UpgradeRequest};
use rustix::process::Signal;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// A sidecar finishes calls in flight for up to 5 s; what takes much longer hangs.
const SIDECAR_GRACE: Duration = Duration::from_secs(10);
/// What a sidecar that was replaced gets to finish its calls.
const HANDOVER_GRACE: Duration = Duration::from_secs(90);
/// A chosen port may be taken by somebody else before the sidecar binds it.
const START_ATTEMPTS: usize = 3;

/// How an app and its sidecar ended.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Exit status this app asks for.
    pub(super) status: u8,
    pub(super) had_command: bool,
    /// Whether the sidecar got as far as being of use, or was told to stop before.
    pub(super) started: bool,
}

/// An app to run and the means to do so.
#[derive(Debug)]
pub(super) struct Session {
    shared: Arc<Shared>,
    spec: AppSpec,
    /// Position in the run, for the colour.
    index: usize,
    stop: watch::Receiver<Stop>,
    upgrades: mpsc::Receiver<UpgradeRequest>,
}

/// What ended the run of an app.
enum End {
    App(ExitStatus),
    Sidecar(ExitStatus),
    Asked(Signal),
    Broken(std::io::Error),
}

/// A sidecar that serves.
struct Serving {
    process: Process,
    ports: Ports,
    tail: Tail,
    log: PathBuf,
    log_file: Arc<LogFile>,
}

/// The file that asks to stop this app alone.
pub(super) fn stop_request(shared: &Shared, spec: &AppSpec) -> PathBuf {
    identity(spec).stop_request(&shared.home)
}

/// What names the files of this app in the run folder.
pub(super) fn identity(spec: &AppSpec) -> Record {
    Record { app_id: spec.app_id.clone(), cli_pid: own_pid(), ..Record::default() }
}

fn own_pid() -> i32 {
    std::process::id().cast_signed()
}

impl Session {
    pub(super) fn new(
        shared: Arc<Shared>,
        spec: AppSpec,
        index: usize,
        stop: watch::Receiver<Stop>,
        upgrades: mpsc::Receiver<UpgradeRequest>,
    ) -> Self {
        Self { shared, spec, index, stop, upgrades }
    }

    /// Runs the app until it ends or is told to.
    pub(super) async fn run(mut self) -> Outcome {
        let had_command = !self.spec.command.is_empty();
        match self.start().await {
            Ok(Some(serving)) => {
                let status = match self.serve(serving).await {
                    Ok(status) => status,
                    Err(error) => self.failed(&error).await,
                };
                Outcome { status, had_command, started: true }
            }
            Ok(None) => Outcome { status: OK, had_command, started: true },
            Err(error) => Outcome { status: self.failed(&error).await, had_command, started: false },
        }
    }

    async fn failed(&self, error: &CliError) -> u8 {
        // In order with the output before it, but on standard error.
        self.shared.console.flush().await;
        error.report();
        error.status()
    }

    /// Starts the sidecar and waits until the app may use it; none if somebody asked to stop before.
    async fn start(&mut self) -> Result<Option<Serving>> {
        registry::sweep_logs(&self.shared.home, &self.spec.app_id)?;
        let (log, log_path) = self.log_file("daprd", "sidecar", self.spec.sidecar_log)?;
        for attempt in 1.. {
            let ports = self.shared.ports.lock().unwrap_or_else(PoisonError::into_inner).assign(&self.spec)?;
            let endpoint = sidecar::endpoint(&self.spec, &ports);
            self.say(
                self.shared.paint.info("info:"),
                &format!("starting the sidecar of {}: {}", self.spec.app_id, self.addresses(&ports)),
            )
            .await;
            let tail = Tail::default();
            let mut process = self.launch_sidecar(&self.shared.mechad, false, &ports, &log, &tail)?;
            let start = sidecar::wait_ready(&mut process, &endpoint, self.shared.start_timeout, &mut self.stop).await;
            if matches!(start, Start::Ready) {
                return Ok(Some(Serving { process, ports, tail, log: log_path, log_file: log }));
            }
            if matches!(start, Start::Stopped | Start::Late) {
                // Its end matters here, not how.
                let _ = process.stop(Signal::TERM, SIDECAR_GRACE, &mut self.stop).await;
            }
            process.finish(&mut self.stop).await;
            let what = match start {
                Start::Ready | Start::Stopped => return Ok(None),
                Start::Ended(_) if attempt < START_ATTEMPTS && ports.lost_one() => continue,
                Start::Ended(how) => format!("the sidecar of {} {how} before it was ready", self.spec.app_id),
                Start::Late => {
                    format!("the sidecar of {} was not ready within {:?}", self.spec.app_id, self.shared.start_timeout)
                }
            };
            let last = tail.show();
            return Err(match last.is_empty() {
                true => CliError::new("sidecar-start", format!("{what}; it printed nothing")),
                false => CliError::new("sidecar-start", format!("{what}; its last lines:{last}")),
            }
            .hint(format!("its whole log is {}", log_path.display())));
        }
        Ok(None)
    }

    fn launch_sidecar(
        &self,
        mechad: &Path,
        takes_over: bool,
        ports: &Ports,
        log: &Arc<LogFile>,
        tail: &Tail,
    ) -> Result<Process> {
        // Warnings are worth seeing wherever the log goes, unless the user asked for a level and gets all of it.
        let level = match (self.spec.sidecar_log.on_console(), &self.spec.options.log_level) {
            (true, Some(_)) => Level::Debug,
            _ => Level::Warn,
        };
        let name = match self.shared.several {
            true => format!("== SIDECAR - {} ==", self.spec.app_id),
            false => "== SIDECAR ==".to_owned(),
        };
        let sink = Sink {
            prefix: Some(format!("{} ", self.shared.paint.dim(&name))),
            level,
            file: Some(Arc::clone(log)),
            tail: Some(tail.clone()),
        };
        let mut args = sidecar::arguments(&self.spec, ports);
        if let Some(socket) = identity(&self.spec).handover_socket(&self.shared.home) {
            args.extend(["--mecha-handover".into(), socket.into()]);
            if takes_over {
                args.push("--mecha-takeover".into());
            }
        }
        let launch = Launch {
            program: mechad,
            name: sidecar::PROGRAM.as_ref(),
            args: &args,
            folder: &self.spec.folder,
            env: &sidecar::environment(&self.shared.home),
        };
        self.shared
            .launcher
            .launch(&launch, sink.clone(), sink)
            .map_err(|error| CliError::new("sidecar-start", format!("cannot start {}: {error}", mechad.display())))
    }

    /// The app's life, once its sidecar serves. Returns the exit status.
    async fn serve(&mut self, serving: Serving) -> Result<u8> {
        let mut serving = serving;
        let result = self.serve_app(&mut serving).await;
        let mut side = serving.process;
        // The sidecar goes last, so that the app can use it until its own end.
        let ended = match &result {
            Ok((End::Sidecar(_), _)) => None,
            _ => Some(side.stop(Signal::TERM, SIDECAR_GRACE, &mut self.stop).await),
        };
        side.finish(&mut self.stop).await;
        if let Some(Ok(status)) = ended
            && !status.success()
        {
            let message = format!("the sidecar of {} {} while it was stopped", self.spec.app_id, describe(status));
            self.say(self.shared.paint.warning("warning:"), &message).await;
        }
        result.map(|(_, status)| status)
    }

    async fn serve_app(&mut self, serving: &mut Serving) -> Result<(End, u8)> {
        let mut record = self.record(&serving.process, &serving.ports, serving.log.clone());
        let (mut app, app_log) = if self.spec.command.is_empty() {
            (None, PathBuf::new())
        } else {
            let (log, path) = self.log_file("app", "app", self.spec.app_log)?;
            (Some(self.launch_app(&serving.ports, &log)?), path)
        };
        record.app_pid = app.as_ref().map(Process::pid);
        record.app_log = app_log;
        // Gone when this function ends, which is when the app is gone.
        let mut registration = Registration::create(&self.shared.home, &record);
        if registration.is_ok() {
            self.say_running(&record).await;
        }
        let end = match &mut registration {
            Ok(registration) => self.watch(serving, app.as_mut(), registration, &mut record).await,
            // Without a run file nothing could list or stop the app: end it again.
            Err(_) => End::Asked(Signal::TERM),
        };
        let status = self.end_app(&end, app, &serving.tail).await;
        registration.map(|_| (end, status))
    }

    /// Waits for the end, and replaces the sidecar meanwhile whenever somebody asks for it.
    async fn watch(
        &mut self,
        serving: &mut Serving,
        mut app: Option<&mut Process>,
        registration: &mut Registration,
        record: &mut Record,
    ) -> End {
        loop {
            let wish = tokio::select! {
                biased;
                end = wait(&mut self.stop, &mut serving.process, app.as_deref_mut()) => return end,
                Some(wish) = self.upgrades.recv() => wish,
            };
            let outcome = match self.upgrade(serving, app.as_deref_mut(), &wish).await {
                Ok(()) => {
                    record.sidecar_pid = serving.process.pid();
                    let told = registration.update(record);
                    let text =
                        format!("the sidecar of {} was replaced (process {})", record.app_id, record.sidecar_pid);
                    self.say(self.shared.paint.success("ok:"), &text).await;
                    UpgradeOutcome { sidecar_pid: record.sidecar_pid, error: told.err().map(|e| e.to_string()) }
                }
                Err(error) => {
                    self.say(self.shared.paint.warning("warning:"), &error).await;
                    UpgradeOutcome { sidecar_pid: record.sidecar_pid, error: Some(error) }
                }
            };
            if let Err(error) = record.answer_upgrade(&self.shared.home, &outcome) {
                self.say(self.shared.paint.warning("warning:"), &error.to_string()).await;
            }
        }
    }

    /// Starts another sidecar that takes the sockets over, and collects the one before. What ends meanwhile is
    /// found by the next wait.
    async fn upgrade(
        &mut self,
        serving: &mut Serving,
        app: Option<&mut Process>,
        wish: &UpgradeRequest,
    ) -> std::result::Result<(), String> {
        let id = self.spec.app_id.clone();
        let tail = Tail::default();
        let launched = self.launch_sidecar(&wish.mechad, true, &serving.ports, &serving.log_file, &tail);
        let mut next = launched.map_err(|error| error.to_string())?;
        let limit = self.shared.start_timeout + HANDOVER_GRACE;
        let failure = tokio::select! {
            biased;
            end = wait(&mut self.stop, &mut serving.process, app) => match end {
                // It let go: from here on the next one is the sidecar.
                End::Sidecar(how) => {
                    let endpoint = sidecar::endpoint(&self.spec, &serving.ports);
                    let limit = self.shared.start_timeout;
                    match sidecar::wait_ready(&mut next, &endpoint, limit, &mut self.stop).await {
                        Start::Ready | Start::Stopped => {
                            let before = std::mem::replace(&mut serving.process, next);
                            before.finish(&mut self.stop).await;
                            serving.tail = tail;
                            if !how.success() {
                                let text = format!("the sidecar of {id} that was replaced {}", describe(how));
                                self.say(self.shared.paint.warning("warning:"), &text).await;
                            }
                            return Ok(());
                        }
                        Start::Ended(how) => format!("the new sidecar of {id} {how}"),
                        Start::Late => format!("the new sidecar of {id} does not get ready"),
                    }
                }
                _ => format!("{id} was stopped before its sidecar was replaced"),
            },
            how = next.wait() => {
                let how = how.map_or_else(|error| error.to_string(), describe);
                format!("the new sidecar of {id} {how}; its last lines:{}", tail.show())
            }
            () = tokio::time::sleep(limit) => format!("the new sidecar of {id} did not take over within {limit:?}"),
        };
        // Its end matters here, not how.
        let _ = next.stop(Signal::TERM, SIDECAR_GRACE, &mut self.stop).await;
        next.finish(&mut self.stop).await;
        Err(failure)
    }

    /// Ends the app if it still runs, says how things ended, and settles the exit status.
    async fn end_app(&mut self, end: &End, app: Option<Process>, tail: &Tail) -> u8 {
        let id = self.spec.app_id.clone();
        let paint = self.shared.paint;
        let mut status = OK;
        match end {
            End::App(_) | End::Asked(_) => {}
            End::Sidecar(how) if how.success() => {
                self.say(paint.info("info:"), &format!("the sidecar of {id} was shut down; stopping the app")).await;
            }
            End::Sidecar(how) => {
                status = FAILURE;
                let message = format!("the sidecar of {id} {}; its last lines:{}", describe(*how), tail.show());
                self.failed(&CliError::new("sidecar-crashed", message)).await;
            }
            End::Broken(error) => {
                status = FAILURE;
                self.failed(&CliError::new("wait", format!("cannot wait for {id}: {error}"))).await;
            }
        }
        let Some(mut app) = app else { return status };
        let (ended, by_us) = match end {
            End::App(how) => (Ok(*how), false),
            End::Asked(signal) => (app.stop(*signal, self.shared.stop_grace, &mut self.stop).await, true),
            _ => (app.stop(Signal::TERM, self.shared.stop_grace, &mut self.stop).await, true),
        };
        app.finish(&mut self.stop).await;
        match ended {
            Ok(how) if how.success() => {
                self.say(paint.success("ok:"), &format!("{id} exited with status 0")).await;
                status
            }
            Ok(how) if by_us && ended_by_request(how) => {
                self.say(paint.success("ok:"), &format!("{id} was stopped")).await;
                status
            }
            Ok(how) => {
                self.failed(&CliError::new("app-failed", format!("the app {id} {}", describe(how)))).await;
                if status == OK { status_code(how) } else { status }
            }
            Err(error) => self.failed(&CliError::new("stop", format!("{id} cannot be stopped: {error}"))).await,
        }
    }

    fn launch_app(&self, ports: &Ports, log: &Arc<LogFile>) -> Result<Process> {
        let missing = || CliError::new("app-command", format!("the command of {} is gone", self.spec.app_id));
        let (name, args) = self.spec.command.split_first().ok_or_else(missing)?;
        let path: Option<OsString> = self.spec.env.get("PATH").map(Into::into).or_else(|| std::env::var_os("PATH"));
        let program = find_program(name, &self.spec.folder, path.as_deref()).ok_or_else(missing)?;
        let prefix = match self.shared.several {
            true => format!("== APP - {} ==", self.spec.app_id),
            false => "== APP ==".to_owned(),
        };
        let prefix = format!("{} ", self.shared.paint.app(self.index, &prefix));
        let sink = Sink {
            prefix: self.spec.app_log.on_console().then_some(prefix),
            level: Level::Debug,
            file: Some(Arc::clone(log)),
            tail: None,
        };
        let env = sidecar::app_environment(&self.spec, ports);
        let launch = Launch { program: &program, name, args, folder: &self.spec.folder, env: &env };
        self.shared
            .launcher
            .launch(&launch, sink.clone(), sink)
            .map_err(|error| CliError::new("app-command", format!("cannot start {}: {error}", program.display())))
    }

    /// A new log file: beside the app if the user wants files, else among mecha's own.
    fn log_file(&self, incumbent: &str, own: &str, destination: Destination) -> Result<(Arc<LogFile>, PathBuf)> {
        let id = &self.spec.app_id;
        let path = match &self.spec.log_folder {
            Some(folder) if destination.in_file() => {
                let now = jiff::Timestamp::now().strftime("%Y%m%d%H%M%S");
                folder.join(format!("{id}_{incumbent}_{now}.log"))
            }
            _ => registry::own_log(&self.shared.home, id, own),
        };
        match LogFile::create(&path) {
            Ok(file) => Ok((Arc::new(file), path)),
            Err(error) => Err(CliError::new("log-file", format!("cannot write {}: {error}", path.display()))),
        }
    }

    fn record(&self, side: &Process, ports: &Ports, sidecar_log: PathBuf) -> Record {
        let spec = &self.spec;
        Record {
            app_id: spec.app_id.clone(),
            app_port: spec.app_port,
            app_protocol: spec.protocol().to_owned(),
            http_port: ports.http,
            grpc_port: ports.grpc,
            metrics_port: Some(ports.metrics),
            unix_domain_socket: spec.unix_domain_socket.clone(),
            command: spec.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
            cli_pid: own_pid(),
            sidecar_pid: side.pid(),
            app_pid: None,
            run_file: self.shared.run_file.clone(),
            started: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            app_log: PathBuf::new(),
            sidecar_log,
            handover: identity(spec).handover_socket(&self.shared.home),
            resources: spec.resources.clone(),
            config: Some(spec.config.clone()),
        }
    }

    fn addresses(&self, ports: &Ports) -> String {
        match (&self.spec.unix_domain_socket, ports.http, ports.grpc) {
            (Some(folder), _, _) => format!("sockets in {}", folder.display()),
            (None, Some(http), Some(grpc)) => format!("HTTP port {http}, gRPC port {grpc}"),
            _ => "no API".to_owned(),
        }
    }

    async fn say_running(&self, record: &Record) {
        let id = &self.spec.app_id;
        let mut line = match record.app_pid {
            Some(pid) => format!("{id} is up and running (process {pid})"),
            None => format!("the sidecar of {id} is up and running, without an app"),
        };
        line.push_str(&format!("; sidecar log: {}", record.sidecar_log.display()));
        if record.app_pid.is_some() && !self.spec.app_log.on_console() {
            line.push_str(&format!("; app log: {}", record.app_log.display()));
        }
        self.say(self.shared.paint.success("ok:"), &line).await;
    }

    async fn say(&self, tag: String, message: &str) {
        self.shared.console.say(format!("{tag} {message}")).await;
    }
}

/// Waits until somebody asks to stop, or a process ends. Cancel safe.
async fn wait(stop: &mut watch::Receiver<Stop>, side: &mut Process, app: Option<&mut Process>) -> End {
    let app = async {
        match app {
            Some(app) => app.wait().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        stop = stop.wait_for(|stop| *stop != Stop::No) => match stop.as_deref() {
            Ok(Stop::Gracefully(signal)) => End::Asked(*signal),
            _ => End::Asked(Signal::TERM),
        },
        status = app => status.map_or_else(End::Broken, End::App),
        status = side.wait() => status.map_or_else(End::Broken, End::Sidecar),
    }
}

/// Whether this is how programs end that were asked to.
fn ended_by_request(status: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt as _;
    let asked = [Signal::INT, Signal::TERM, Signal::KILL].map(Signal::as_raw);
    match (status.signal(), status.code()) {
        (Some(signal), _) => asked.contains(&signal),
        // Shells and many runtimes turn the signal into a status.
        (None, Some(code)) => asked.contains(&(code - 128)),
        (None, None) => false,
    }
}
