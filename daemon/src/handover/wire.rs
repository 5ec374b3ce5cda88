//! Messages of the hand-over, and the sockets that travel with one of them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Raised when the messages change in a way that an older daemon would misread.
pub(super) const PROTOCOL: u32 = 1;
/// One message and its answer, on one machine.
pub(super) const MESSAGE_LIMIT: Duration = Duration::from_secs(10);
/// Longest message. 64 listen addresses of each API server fit many times.
const MAX_LINE: usize = 64 << 10;
/// Most sockets in one message; the kernel takes 253.
pub(super) const MAX_SOCKETS: usize = 200;

/// What a socket is for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// HTTP API.
    Http,
    /// gRPC API.
    Grpc,
    /// Other sidecars.
    Internal,
    /// Health and metadata without token.
    Public,
    /// Prometheus.
    Metrics,
    /// Diagnostics.
    Profiling,
}

/// A listening socket of the daemon before.
#[derive(Debug)]
pub struct Inherited {
    /// What it is for.
    pub role: Role,
    /// File of a unix socket.
    pub path: Option<PathBuf>,
    /// The socket: bound, listening.
    pub fd: OwnedFd,
}

/// A socket in an offer; its descriptor travels beside it, in the same order.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Socket {
    pub(super) role: Role,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<PathBuf>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(super) enum Message {
    Hello {
        protocol: u32,
        app_id: String,
        namespace: String,
        version: String,
    },
    Offer {
        protocol: u32,
        version: String,
        ready: bool,
        /// Components that should run and do not.
        #[serde(default)]
        degraded: Vec<String>,
        sockets: Vec<Socket>,
    },
    Refused {
        reason: String,
    },
    Serving,
    Leaving,
    Settled,
}

/// A connection between two daemons.
#[derive(Debug)]
pub(super) struct Wire {
    stream: UnixStream,
    /// Received and not read yet.
    buffer: Vec<u8>,
    /// Received sockets.
    sockets: Vec<OwnedFd>,
}

impl Wire {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, buffer: Vec::new(), sockets: Vec::new() }
    }

    /// Process id of the other side, if it belongs to the same user as this process.
    pub(super) fn peer(&self) -> io::Result<Option<i32>> {
        let credentials = self.stream.peer_cred()?;
        if credentials.uid() != rustix::process::geteuid().as_raw() {
            let text = format!("user {} asks for the sockets of another user", credentials.uid());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        Ok(credentials.pid())
    }

    pub(super) async fn send(&mut self, message: &Message) -> io::Result<()> {
        self.send_with(message, &[]).await
    }

    /// Sends a message, `sockets` with it.
    pub(super) async fn send_with(&mut self, message: &Message, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let all = async {
            let mut sent = 0;
            if !sockets.is_empty() {
                sent = self.stream.async_io(Interest::WRITABLE, || send_first(&self.stream, &line, sockets)).await?;
            }
            self.stream.write_all(line.get(sent..).unwrap_or_default()).await
        };
        timeout(MESSAGE_LIMIT, all).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// The next message; `None` when the other side has closed. Cancel safe.
    pub(super) async fn receive(&mut self) -> io::Result<Option<Message>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            if self.buffer.len() > MAX_LINE {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
            }
            let (bytes, sockets) = self.stream.async_io(Interest::READABLE, || receive_some(&self.stream)).await?;
            if bytes.is_empty() {
                return Ok(None);
            }
            self.buffer.extend_from_slice(&bytes);
            self.sockets.extend(sockets);
            if self.sockets.len() > MAX_SOCKETS {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "too many sockets"));
            }
        }
    }

    /// The sockets that came with what was received.
    pub(super) fn take_sockets(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.sockets)
    }
}

fn send_first(stream: &UnixStream, line: &[u8], sockets: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many sockets"));
    }
    Ok(sendmsg(stream.as_fd(), &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL)?)
}

fn receive_some(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    // No child process of this daemon shall inherit them.
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(stream.as_fd(), &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    bytes.truncate(got.bytes);
    let sockets = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(sockets) => sockets.collect(),
        _ => Vec::new(),
    });
    Ok((bytes, sockets.collect()))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn pair() -> (Wire, Wire) {
        let (a, b) = UnixStream::pair().unwrap();
        (Wire::new(a), Wire::new(b))
    }

    #[tokio::test]
    async fn sockets_travel_with_their_message() {
        let (mut old, mut new) = pair();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let offer = Message::Offer {
            protocol: PROTOCOL,
            version: "1".into(),
            ready: true,
            degraded: Vec::new(),
            // Longer than one read.
            sockets: (0..300).map(|_| Socket { role: Role::Http, path: Some("/some/where".into()) }).collect(),
        };
        old.send_with(&offer, &[listener.as_fd()]).await.unwrap();
        old.send(&Message::Settled).await.unwrap();
        drop((old, listener));
        let Some(Message::Offer { sockets, ready: true, .. }) = new.receive().await.unwrap() else { panic!() };
        assert_eq!(sockets.len(), 300);
        let got: Vec<TcpListener> = new.take_sockets().into_iter().map(TcpListener::from).collect();
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].local_addr().unwrap(), address);
        assert!(TcpStream::connect(address).is_ok());
        assert!(matches!(new.receive().await.unwrap(), Some(Message::Settled)));
        assert!(new.receive().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn nonsense_and_endless_lines_are_errors() {
        let (mut a, mut b) = pair();
        a.stream.write_all(b"{\"message\":\"give me all\"}\n").await.unwrap();
        assert!(b.receive().await.is_err());
        let (mut a, mut b) = pair();
        let flood = tokio::spawn(async move { while a.stream.write_all(&[b'x'; 4096]).await.is_ok() {} });
        assert!(b.receive().await.is_err());
        drop(b);
        flood.await.unwrap();
    }
}
