//! One app and its sidecar, from start to end.

use super::Shared;
use super::console::{Destination, Level, LogFile, Sink, Tail};
use super::ports::Ports;
use super::process::{Launch, Process, Stop, describe, find_program, status_code};
use super::sidecar::{self, Start};
use super::spec::AppSpec;
use crate::error::{CliError, FAILURE, OK, Result};
use crate::registry::{self, Record, Registration};
use rustix::process::Signal;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// A sidecar finishes calls in flight for up to 5 s; what takes much longer hangs.
const SIDECAR_GRACE: Duration = Duration::from_secs(10);
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
}

/// The file that asks to stop this app alone.
pub(super) fn stop_request(shared: &Shared, spec: &AppSpec) -> PathBuf {
    let record = Record { app_id: spec.app_id.clone(), cli_pid: own_pid(), ..Record::default() };
    record.stop_request(&shared.home)
}

fn own_pid() -> i32 {
    std::process::id().cast_signed()
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>, spec: AppSpec, index: usize, stop: watch::Receiver<Stop>) -> Self {
        Self { shared, spec, index, stop }
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
            let mut process = self.launch_sidecar(&ports, &log, &tail)?;
            let start = sidecar::wait_ready(&mut process, &endpoint, self.shared.start_timeout, &mut self.stop).await;
            if matches!(start, Start::Ready) {
                return Ok(Some(Serving { process, ports, tail, log: log_path }));
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

    fn launch_sidecar(&self, ports: &Ports, log: &Arc<LogFile>, tail: &Tail) -> Result<Process> {
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
        let args = sidecar::arguments(&self.spec, ports);
        let launch = Launch {
            program: &self.shared.mechad,
            name: sidecar::PROGRAM.as_ref(),
            args: &args,
            folder: &self.spec.folder,
            env: &sidecar::environment(&self.shared.home),
        };
        self.shared.launcher.launch(&launch, sink.clone(), sink).map_err(|error| {
            CliError::new("sidecar-start", format!("cannot start {}: {error}", self.shared.mechad.display()))
        })
    }

    /// The app's life, once its sidecar serves. Returns the exit status.
    async fn serve(&mut self, serving: Serving) -> Result<u8> {
        let Serving { process: mut side, ports, tail, log: sidecar_log } = serving;
        let result = self.serve_app(&mut side, &ports, sidecar_log, &tail).await;
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

    async fn serve_app(&mut self, side: &mut Process, ports: &Ports, log: PathBuf, tail: &Tail) -> Result<(End, u8)> {
        let mut record = self.record(side, ports, log);
        let (mut app, app_log) = if self.spec.command.is_empty() {
            (None, PathBuf::new())
        } else {
            let (log, path) = self.log_file("app", "app", self.spec.app_log)?;
            (Some(self.launch_app(ports, &log)?), path)
        };
        record.app_pid = app.as_ref().map(Process::pid);
        record.app_log = app_log;
        // Gone when this function ends, which is when the app is gone.
        let registration = Registration::create(&self.shared.home, &record);
        if registration.is_ok() {
            self.say_running(&record).await;
        }
        let end = match &registration {
            Ok(_) => self.wait(side, app.as_mut()).await,
            // Without a run file nothing could list or stop the app: end it again.
            Err(_) => End::Asked(Signal::TERM),
        };
        let status = self.end_app(&end, app, tail).await;
        registration.map(|_| (end, status))
    }

    async fn wait(&mut self, side: &mut Process, app: Option<&mut Process>) -> End {
        let app = async {
            match app {
                Some(app) => app.wait().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            stop = self.stop.wait_for(|stop| *stop != Stop::No) => match stop.as_deref() {
                Ok(Stop::Gracefully(signal)) => End::Asked(*signal),
                _ => End::Asked(Signal::TERM),
            },
            status = app => status.map_or_else(End::Broken, End::App),
            status = side.wait() => status.map_or_else(End::Broken, End::Sidecar),
        }
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
