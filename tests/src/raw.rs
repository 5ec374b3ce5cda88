use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::wait::DEADLINE;

/// A TCP connection for bytes that no HTTP client would send.
#[derive(Debug)]
pub struct RawConnection {
    stream: TcpStream,
    rest: Vec<u8>,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct RawReply {
    /// Status code.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// Body.
    pub body: Vec<u8>,
}

impl RawConnection {
    /// Connects to `127.0.0.1:port`.
    pub async fn open(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, rest: Vec::new() }
    }

    /// Sends bytes; a peer that closed already is not an error, its answer may still be read.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
        let _ = self.stream.flush().await;
    }

    /// Ends the sending half.
    pub async fn finish(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// The next answer; `None` when the peer closed without one.
    ///
    /// # Panics
    /// When neither comes within [`DEADLINE`].
    pub async fn reply(&mut self) -> Option<RawReply> {
        tokio::time::timeout(DEADLINE, self.next()).await.expect("an answer or the end of the connection")
    }

    /// Whether the peer closes within `limit`; bytes that still come are read away.
    pub async fn closed_within(&mut self, limit: Duration) -> bool {
        let drain = async {
            let mut buffer = [0; 4096];
            loop {
                match self.stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                }
            }
        };
        tokio::time::timeout(limit, drain).await.is_ok()
    }

    async fn next(&mut self) -> Option<RawReply> {
        let end = loop {
            if let Some(end) = find(&self.rest, b"\r\n\r\n") {
                break end;
            }
            self.more().await?;
        };
        let head = String::from_utf8_lossy(&self.rest[..end]).into_owned();
        self.rest.drain(..end + 4);
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let header = |name: &str| {
            head.lines().skip(1).find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        let body = if let Some(length) = header("content-length") {
            let length: usize = length.parse().unwrap();
            while self.rest.len() < length {
                self.more().await?;
            }
            self.rest.drain(..length).collect()
        } else if header("transfer-encoding").is_some() {
            while find(&self.rest, b"0\r\n\r\n").is_none() {
                self.more().await?;
            }
            std::mem::take(&mut self.rest)
        } else {
            Vec::new()
        };
        Some(RawReply { status, head, body })
    }

    async fn more(&mut self) -> Option<()> {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer).await {
            Ok(0) | Err(_) => None,
            Ok(count) => {
                self.rest.extend_from_slice(&buffer[..count]);
                Some(())
            }
        }
    }
}

impl RawReply {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}
