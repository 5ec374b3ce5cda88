//! The running daemon's side.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mecha_core::health::{Health, Phase};
use rustix::process::Pid;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::wire::{Inherited, MAX_SOCKETS, MESSAGE_LIMIT, Message, PROTOCOL, Socket, Wire};
use crate::cli;
use crate::ports::SocketFile;

/// What a successor may take to build everything.
const PREPARE_LIMIT: Duration = Duration::from_secs(300);
/// Pause after a failed accept, so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where a successor gets the listening sockets. Dropping it closes it, and with it the
/// duplicates that it keeps: sockets that nobody serves must not stay open.
#[derive(Debug)]
pub struct Door {
    task: JoinHandle<()>,
    departures: mpsc::Receiver<Departure>,
    /// Goes with the door.
    file: Option<SocketFile>,
}

/// A successor that serves. The daemon leaves.
#[derive(Debug)]
pub struct Departure {
    wire: Wire,
    /// Keeps everybody else out meanwhile.
    _done: tokio::sync::oneshot::Sender<()>,
}

/// What a door knows of the daemon behind it.
pub trait House: Send + Sync {
    /// Names of components that should run and do not.
    fn degraded(&self) -> Vec<String>;

    /// A successor did not take over.
    fn failed(&self);
}

struct Keeper {
    app_id: String,
    namespace: String,
    health: Arc<Health>,
    house: Arc<dyn House>,
    sockets: Vec<Inherited>,
    leave: mpsc::Sender<Departure>,
}

impl Door {
    /// Listens at `path` and offers `sockets` there.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn open(
        path: &Path,
        app_id: &str,
        namespace: &str,
        health: Arc<Health>,
        house: Arc<dyn House>,
        sockets: Vec<Inherited>,
    ) -> io::Result<Self> {
        let (listener, file) = bind(path)?;
        let (leave, departures) = mpsc::channel(1);
        let keeper =
            Keeper { app_id: app_id.to_owned(), namespace: namespace.to_owned(), health, house, sockets, leave };
        let task = tokio::spawn(keeper.run(listener));
        Ok(Self { task, departures, file: Some(file) })
    }

    /// Waits until a successor serves. Never returns when the door is broken. Cancel safe.
    pub async fn departure(&mut self) -> Departure {
        match self.departures.recv().await {
            Some(departure) => departure,
            None => std::future::pending().await,
        }
    }

    /// Closes it and leaves its place to the successor, whose own door may be there at any moment: looking whose file
    /// it is and removing it are two steps, between which it may become the successor's.
    pub fn leave(mut self) {
        if let Some(file) = self.file.take() {
            file.leave();
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Departure {
    /// Tells the successor that this daemon accepts no more.
    ///
    /// # Errors
    /// The successor is gone; this daemon has to stay.
    pub async fn leave(&mut self) -> io::Result<()> {
        self.wire.send(&Message::Leaving).await
    }

    /// The process of the successor.
    #[must_use]
    pub fn heir(&self) -> Option<Pid> {
        self.wire.peer().ok().flatten().and_then(Pid::from_raw)
    }

    /// Tells the successor that it may start subscriptions and input bindings.
    pub async fn settled(&mut self) {
        if let Err(e) = self.wire.send(&Message::Settled).await {
            tracing::warn!(target: "dapr.runtime", "the successor does not listen any more: {e}");
        }
    }
}

/// A socket only this user may use from its first moment under `path`, replacing what was there.
fn bind(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = Path::new(&draft);
    match std::fs::remove_file(draft) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    if std::fs::symlink_metadata(path).is_ok_and(|m| !std::os::unix::fs::FileTypeExt::is_socket(&m.file_type())) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is in the way"));
    }
    let listener = UnixListener::bind(draft)?;
    std::fs::set_permissions(draft, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(draft, path)?;
    Ok((listener, SocketFile::at(path)))
}

impl Keeper {
    async fn run(self, listener: UnixListener) {
        // One at a time: a second successor waits in the backlog and is refused after that.
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let wire = Wire::new(stream);
                    match timeout(PREPARE_LIMIT, self.serve(wire)).await {
                        Ok(Ok(done)) => {
                            // Resolves when the departure is over without having led to anything.
                            let _ = done.await;
                        }
                        Ok(Err(e)) => tracing::warn!(
                            target: "dapr.runtime",
                            "a hand-over did not come about, this process goes on: {e}"
                        ),
                        Err(_) => tracing::warn!(
                            target: "dapr.runtime",
                            "a successor was not ready within {PREPARE_LIMIT:?}, this process goes on"
                        ),
                    }
                    self.house.failed();
                }
                Err(e) => {
                    tracing::warn!(target: "dapr.runtime", "the hand-over socket does not accept: {e}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve(&self, mut wire: Wire) -> io::Result<tokio::sync::oneshot::Receiver<()>> {
        let pid = wire.peer()?;
        let hello = timeout(MESSAGE_LIMIT, wire.receive()).await.map_err(|_| io::ErrorKind::TimedOut)??;
        let version = match self.judge(hello) {
            Ok(version) => version,
            Err(reason) => {
                wire.send(&Message::Refused { reason: reason.clone() }).await?;
                return Err(io::Error::other(reason));
            }
        };
        tracing::info!(
            target: "dapr.runtime",
            "process {} of version {version} prepares to take over", pid.unwrap_or_default()
        );
        let sockets = self.sockets.iter().map(|s| Socket { role: s.role, path: s.path.clone() }).collect();
        let offer = Message::Offer {
            protocol: PROTOCOL,
            version: cli::MECHA_VERSION.to_owned(),
            ready: self.health.phase() == Phase::Ready,
            degraded: self.house.degraded(),
            sockets,
        };
        let descriptors: Vec<_> = self.sockets.iter().take(MAX_SOCKETS).map(|s| s.fd.as_fd()).collect();
        wire.send_with(&offer, &descriptors).await?;
        match wire.receive().await? {
            Some(Message::Serving) => {}
            Some(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "an unexpected message")),
            None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the successor gave up")),
        }
        let (sender, done) = tokio::sync::oneshot::channel();
        let departure = Departure { wire, _done: sender };
        self.leave.send(departure).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(done)
    }

    /// The version of a successor that fits.
    fn judge(&self, hello: Option<Message>) -> Result<String, String> {
        let Some(Message::Hello { protocol, app_id, namespace, version }) = hello else {
            return Err("a greeting was expected".to_owned());
        };
        if protocol != PROTOCOL {
            return Err(format!("the successor speaks hand-over protocol {protocol}, this process {PROTOCOL}"));
        }
        if (app_id.as_str(), namespace.as_str()) != (self.app_id.as_str(), self.namespace.as_str()) {
            return Err(format!(
                "this is the sidecar of {:?} in namespace {:?}, not of {app_id:?} in {namespace:?}",
                self.app_id, self.namespace
            ));
        }
        if self.health.phase() > Phase::Ready {
            return Err("this process is shutting down".to_owned());
        }
        Ok(version)
    }
}
