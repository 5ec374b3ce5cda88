//! The side of the daemon that takes over.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, test_kill_process};
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use super::wire::{Inherited, MESSAGE_LIMIT, Message, PROTOCOL, Wire};
use crate::cli::{MECHA_VERSION, Options};

/// What a daemon that leaves gets to bring its subscriptions and input bindings to rest.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take until a daemon that let go without a word is gone.
const GONE_LIMIT: Duration = Duration::from_secs(10);
/// How often that is looked at.
const GONE_PAUSE: Duration = Duration::from_millis(20);

/// Why this daemon cannot take over. The other one goes on.
#[derive(Debug, Error)]
pub enum TakeoverError {
    /// Nobody answers.
    #[error("no daemon hands its sockets over at {path}: {reason}. Start without --mecha-takeover where none runs", path = path.display())]
    Nobody {
        /// Where.
        path: PathBuf,
        /// From the operating system.
        reason: io::Error,
    },
    /// The daemon that runs does not want to.
    #[error("the running daemon refuses to hand over: {0}")]
    Refused(String),
    /// The conversation broke off.
    #[error("the hand-over broke off, the running daemon goes on: {0}")]
    Broken(String),
}

/// The daemon that this one takes over from.
#[derive(Debug)]
pub struct Predecessor {
    wire: Wire,
    pid: Option<i32>,
    /// Whether it was ready: then this one is, as soon as it serves.
    pub ready: bool,
    /// Components that did not run there.
    pub degraded: Vec<String>,
    /// Its version.
    pub version: String,
    /// When this daemon first spoke to it.
    pub since: Instant,
}

/// Asks the daemon at `path` for its sockets. It goes on serving.
///
/// # Errors
/// There is none, or it does not hand over.
pub async fn take_over(path: &Path, options: &Options) -> Result<(Predecessor, Vec<Inherited>), TakeoverError> {
    let since = Instant::now();
    let stream =
        UnixStream::connect(path).await.map_err(|reason| TakeoverError::Nobody { path: path.to_owned(), reason })?;
    let broken = |e: io::Error| TakeoverError::Broken(e.to_string());
    let mut wire = Wire::new(stream);
    let pid = wire.peer().map_err(broken)?;
    let hello = Message::Hello {
        protocol: PROTOCOL,
        app_id: options.app_id.clone(),
        namespace: options.env.namespace().to_owned(),
        version: MECHA_VERSION.to_owned(),
    };
    wire.send(&hello).await.map_err(broken)?;
    let (ready, version, degraded, sockets) = match answer(&mut wire).await? {
        Message::Offer { protocol: PROTOCOL, ready, version, degraded, sockets } => (ready, version, degraded, sockets),
        Message::Offer { protocol, .. } => {
            return Err(TakeoverError::Refused(format!(
                "it speaks hand-over protocol {protocol}, this one {PROTOCOL}"
            )));
        }
        _ => return Err(TakeoverError::Broken("an unexpected message".to_owned())),
    };
    let descriptors = wire.take_sockets();
    if descriptors.len() != sockets.len() {
        let text = format!("{} sockets were announced and {} came", sockets.len(), descriptors.len());
        return Err(TakeoverError::Broken(text));
    }
    let inherited = sockets.into_iter().zip(descriptors);
    let inherited = inherited.map(|(socket, fd)| Inherited { role: socket.role, path: socket.path, fd }).collect();
    Ok((Predecessor { wire, pid, ready, degraded, version, since }, inherited))
}

async fn answer(wire: &mut Wire) -> Result<Message, TakeoverError> {
    match timeout(MESSAGE_LIMIT, wire.receive()).await {
        Ok(Ok(Some(Message::Refused { reason }))) => Err(TakeoverError::Refused(reason)),
        Ok(Ok(Some(message))) => Ok(message),
        Ok(Ok(None)) => Err(TakeoverError::Broken("it closed the connection".to_owned())),
        Ok(Err(e)) => Err(TakeoverError::Broken(e.to_string())),
        Err(_) => Err(TakeoverError::Broken(format!("it did not answer within {MESSAGE_LIMIT:?}"))),
    }
}

impl Predecessor {
    /// Says that this daemon accepts connections, and waits until the other one does not any more.
    ///
    /// # Errors
    /// The other one stays: this one has to end. One that died is no reason to.
    pub async fn replace(&mut self) -> Result<(), TakeoverError> {
        let error = match self.wire.send(&Message::Serving).await {
            Ok(()) => match answer(&mut self.wire).await {
                Ok(Message::Leaving) => return Ok(()),
                Ok(_) => TakeoverError::Broken("an unexpected message".to_owned()),
                Err(refused @ TakeoverError::Refused(_)) => return Err(refused),
                Err(e) => e,
            },
            Err(e) => TakeoverError::Broken(e.to_string()),
        };
        if self.gone().await { Ok(()) } else { Err(error) }
    }

    /// Waits until the other daemon's subscriptions and input bindings are at rest.
    pub async fn settled(mut self) {
        let said = timeout(SETTLE_LIMIT, self.wire.receive()).await;
        match said {
            Ok(Ok(Some(Message::Settled))) => {}
            // It ended, and with it what it read.
            Ok(Ok(None) | Err(_)) => {}
            Ok(Ok(Some(_))) | Err(_) => tracing::warn!(
                target: "dapr.runtime",
                "the daemon before did not say that its subscriptions are at rest; events may come twice"
            ),
        }
    }

    /// Whether the process is gone, or about to be.
    async fn gone(&self) -> bool {
        let Some(pid) = self.pid.and_then(Pid::from_raw) else { return false };
        let deadline = Instant::now() + GONE_LIMIT;
        while test_kill_process(pid).is_ok() && !is_zombie(pid) {
            if Instant::now() >= deadline {
                return false;
            }
            sleep(GONE_PAUSE).await;
        }
        true
    }
}

/// A process that ended and was not collected yet still answers signals.
fn is_zombie(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}
