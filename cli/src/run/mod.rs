//! `mecha run`: sidecars, apps, and how they end.

mod console;
mod ports;
mod process;
pub(crate) mod runfile;
mod session;
pub(crate) mod sidecar;
mod spec;

use crate::args::RunArgs;
use crate::error::{CliError, FAILURE, OK, Result};
use crate::home::Home;
use crate::registry::{self, Registration, UpgradeOutcome};
use crate::style::{self, Paint};
use console::Console;
use ports::PortBook;
use process::{Launcher, Stop, find_program};
use rustix::process::Signal;
use session::{Outcome, Session};
use spec::AppSpec;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// What all apps of a run share.
#[derive(Debug)]
struct Shared {
    home: Home,
    mechad: PathBuf,
    launcher: Launcher,
    console: Console,
    ports: Mutex<PortBook>,
    paint: Paint,
    /// Several apps: their lines carry their names.
    several: bool,
    run_file: Option<PathBuf>,
    stop_grace: Duration,
    start_timeout: Duration,
}

/// Runs what the arguments name, until it ends or is told to. Returns the exit status.
pub(crate) async fn run(args: RunArgs) -> Result<u8> {
    let home = Home::locate()?;
    let new_defaults = home.prepare()?;
    let (specs, run_file, warnings) = match &args.run_file {
        Some(path) => {
            let file = runfile::load(path, &home)?;
            (file.apps, file.path, file.warnings)
        }
        None => (vec![AppSpec::from_args(&args, &home)?], None, Vec::new()),
    };
    let mechad = sidecar::find()?;
    for spec in &specs {
        check_command(spec)?;
    }
    let ports = PortBook::for_apps(&specs)?;

    // Before anything runs that would have to be ended.
    let mut signals = Signals::install()?;
    let console = Console::start().map_err(|error| CliError::new("start", format!("no output thread: {error}")))?;
    let paint = style::stdout();
    for warning in warnings {
        console.say(format!("{} {warning}", paint.warning("warning:"))).await;
    }
    if new_defaults {
        console
            .say(format!("{} wrote default components to {}", paint.info("info:"), home.components().display()))
            .await;
    }
    say_duplicates(&specs, &home, &console, paint).await?;

    let shared = Arc::new(Shared {
        launcher: Launcher::start(console.clone())?,
        home,
        mechad,
        console: console.clone(),
        ports: Mutex::new(ports),
        paint,
        several: specs.len() > 1,
        run_file,
        stop_grace: Duration::from_secs(args.stop_grace_seconds),
        start_timeout: Duration::from_secs(args.start_timeout_seconds),
    });
    let status = supervise(&shared, specs, &mut signals).await;
    console.flush().await;
    Ok(status)
}

/// Starts one session per app, passes stop requests on, and settles the exit status.
async fn supervise(shared: &Arc<Shared>, specs: Vec<AppSpec>, signals: &mut Signals) -> u8 {
    let apps_with_command = specs.iter().filter(|spec| !spec.command.is_empty()).count();
    let mut left = apps_with_command;
    let mut stops = Vec::with_capacity(specs.len());
    let mut upgrades = Vec::with_capacity(specs.len());
    let mut sessions = JoinSet::new();
    for (index, spec) in specs.into_iter().enumerate() {
        let (stop, stopped) = watch::channel(Stop::No);
        stops.push((session::stop_request(shared, &spec), stop));
        let (upgrade, wishes) = mpsc::channel(1);
        upgrades.push((session::identity(&spec), upgrade));
        let session = Session::new(Arc::clone(shared), spec, index, stopped, wishes);
        sessions.spawn(session.run());
    }
    let stop_all = |stops: &[(PathBuf, watch::Sender<Stop>)], how: Stop| {
        for (_, stop) in stops {
            stop.send_if_modified(|now| {
                let more = matches!((*now, how), (Stop::No, _) | (Stop::Gracefully(_), Stop::Now));
                if more {
                    *now = how;
                }
                more
            });
        }
    };
    let mut status = OK;
    let mut asked = false;
    loop {
        tokio::select! {
            ended = sessions.join_next() => {
                let outcome = match ended {
                    None => return status,
                    Some(Ok(outcome)) => outcome,
                    Some(Err(error)) => {
                        shared.console.say(format!("{} {error}", shared.paint.error("error:"))).await;
                        Outcome { status: FAILURE, had_command: true, started: false }
                    }
                };
                if status == OK {
                    status = outcome.status;
                }
                left -= usize::from(outcome.had_command);
                // Without their apps the remaining sidecars serve nobody; a run that did not start is no run.
                if (apps_with_command > 0 && left == 0) || !outcome.started {
                    stop_all(&stops, Stop::Gracefully(Signal::TERM));
                }
            }
            request = signals.next() => match request {
                Request::StopApps => {
                    for (file, stop) in &stops {
                        if Registration::stop_requested(file) {
                            stop_all(&[(file.clone(), stop.clone())], Stop::Gracefully(Signal::TERM));
                        }
                    }
                    for (record, upgrade) in &upgrades {
                        if let Some(wish) = record.take_upgrade(&shared.home)
                            && upgrade.try_send(wish).is_err()
                        {
                            let error = Some("another upgrade of this sidecar is under way".to_owned());
                            let outcome = UpgradeOutcome { sidecar_pid: 0, error };
                            // Whoever waits sees its deadline otherwise.
                            let _ = record.answer_upgrade(&shared.home, &outcome);
                        }
                    }
                }
                Request::Stop(_) if asked => {
                    shared.console.say(format!("{} ending everything at once", shared.paint.warning("warning:"))).await;
                    stop_all(&stops, Stop::Now);
                }
                Request::Stop(signal) => {
                    asked = true;
                    shared.console.say(format!("{} stopping; once more ends everything at once", shared.paint.info("info:"))).await;
                    stop_all(&stops, Stop::Gracefully(signal));
                }
            },
            () = shared.console.closed(), if !asked => {
                asked = true;
                stop_all(&stops, Stop::Gracefully(Signal::TERM));
            }
        }
    }
}

/// A command that cannot be found is said before anything starts.
fn check_command(spec: &AppSpec) -> Result<()> {
    let Some(name) = spec.command.first() else { return Ok(()) };
    let path = spec.env.get("PATH").map(Into::into).or_else(|| std::env::var_os("PATH"));
    if find_program(name, &spec.folder, path.as_deref()).is_some() {
        return Ok(());
    }
    let error = CliError::new(
        "app-command",
        format!("the command of {} was not found: {}", spec.app_id, name.to_string_lossy()),
    );
    Err(match name.to_str() {
        Some(name) if name.contains(' ') => {
            error.hint("program and arguments are separate words; quote each by itself")
        }
        _ => error.hint(format!("it is looked for in PATH, or from {} when it holds a slash", spec.folder.display())),
    })
}

async fn say_duplicates(specs: &[AppSpec], home: &Home, console: &Console, paint: Paint) -> Result<()> {
    for record in registry::list(home)? {
        if specs.iter().any(|spec| spec.app_id == record.app_id) {
            let line = format!(
                "{} {} runs here already (process {}); both instances share its calls and messages",
                paint.warning("warning:"),
                record.app_id,
                record.cli_pid
            );
            console.say(line).await;
        }
    }
    Ok(())
}

/// What somebody asks of a run from outside.
enum Request {
    /// End everything, passing this signal on.
    Stop(Signal),
    /// End the apps that have a stop request in the run folder, replace the sidecars that have an upgrade request there.
    StopApps,
}

struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    /// None under nohup.
    hangup: Option<tokio::signal::unix::Signal>,
    user: tokio::signal::unix::Signal,
}

impl Signals {
    fn install() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(|error| CliError::new("start", format!("signals: {error}")));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: if hangup_is_ignored() { None } else { Some(listen(SignalKind::hangup())?) },
            user: listen(SignalKind::user_defined1())?,
        })
    }

    /// The next request. Cancel safe.
    async fn next(&mut self) -> Request {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => Request::Stop(Signal::INT),
            _ = self.terminate.recv() => Request::Stop(Signal::TERM),
            _ = hangup => Request::Stop(Signal::TERM),
            _ = self.user.recv() => Request::StopApps,
        }
    }
}

/// Whether whoever started mecha wants it to outlive the terminal.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    // The lowest bit stands for signal 1.
    mask & 1 << (Signal::HUP.as_raw() - 1) != 0
}
