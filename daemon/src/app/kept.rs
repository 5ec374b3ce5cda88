//! Kept connections to an app on plain HTTP/1.1: what a general client would do for any host, done
//! for the one there is. Every delivery and every call of the app goes through here.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{HOST, HeaderValue};
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use mecha_core::app::Body;
use parking_lot::Mutex;
use tokio::net::TcpStream;

/// Connections kept at most; what is beyond is closed after its call.
const MOST: usize = 1024;

/// The connections to one app.
#[derive(Debug)]
pub(super) struct Kept {
    host: String,
    port: u16,
    header: HeaderValue,
    dial_limit: Duration,
    idle_limit: Duration,
    /// The last one back is the first one used; older ones go stale and are closed.
    idle: Mutex<Vec<Idle>>,
}

#[derive(Debug)]
struct Idle {
    sender: SendRequest<Body>,
    since: Instant,
}

/// A connection whose answer is still being read.
#[derive(Debug)]
pub(super) struct Lent {
    sender: SendRequest<Body>,
    home: Arc<Kept>,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// Nothing was sent.
    #[error("connecting to the app failed: {0}")]
    Dial(#[source] io::Error),
    /// The app may have seen the request.
    #[error(transparent)]
    Broken(hyper::Error),
}

impl Kept {
    /// No connection yet. `header` is the `Host` of every request.
    pub(super) fn new(
        host: String,
        port: u16,
        header: HeaderValue,
        dial_limit: Duration,
        idle_limit: Duration,
    ) -> Arc<Self> {
        Arc::new(Self { host, port, header, dial_limit, idle_limit, idle: Mutex::default() })
    }

    /// Sends a request, whose URI has path and query only, and gives the answer with the connection
    /// it comes on. Keep that until the answer is read.
    ///
    /// # Errors
    /// The app cannot be reached, or the connection broke. A kept connection that the app had
    /// closed before the request began to go out costs only another one.
    pub(super) async fn request(
        self: &Arc<Self>,
        mut req: Request<Body>,
    ) -> Result<(Response<Incoming>, Lent), CallError> {
        *req.version_mut() = Version::HTTP_11;
        req.headers_mut().insert(HOST, self.header.clone());
        loop {
            let (mut sender, fresh) = match self.take() {
                Some(sender) => (sender, false),
                None => (self.connect().await.map_err(CallError::Dial)?, true),
            };
            match sender.try_send_request(req).await {
                Ok(res) => return Ok((res, Lent { sender, home: self.clone() })),
                Err(mut e) => match e.take_message() {
                    Some(unsent) if !fresh => req = unsent,
                    _ => return Err(CallError::Broken(e.into_error())),
                },
            }
        }
    }

    fn take(&self) -> Option<SendRequest<Body>> {
        let mut idle = self.idle.lock();
        // One that still sends the body of a request that was answered early is no use yet.
        let at = idle.iter().rposition(|kept| kept.sender.is_ready() && kept.since.elapsed() < self.idle_limit)?;
        Some(idle.swap_remove(at).sender)
    }

    fn put(&self, sender: SendRequest<Body>) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock();
        idle.retain(|kept| kept.since.elapsed() < self.idle_limit && !kept.sender.is_closed());
        if idle.len() < MOST {
            idle.push(Idle { sender, since: Instant::now() });
        }
    }

    async fn connect(&self) -> io::Result<SendRequest<Body>> {
        let dialled = tokio::time::timeout(self.dial_limit, TcpStream::connect((&*self.host, self.port)));
        let stream = dialled.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // Ends with its sender, which the pool or a call holds.
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }
}

impl Lent {
    /// Gives the connection back; its answer was read to the end.
    pub(super) fn done(self) {
        self.home.put(self.sender);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

    async fn app() -> (TcpListener, Arc<Kept>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let limit = Duration::from_secs(60);
        (listener, Kept::new("127.0.0.1".to_owned(), port, HeaderValue::from_static("app"), limit, limit))
    }

    fn request() -> Request<Body> {
        let body = Full::new(Bytes::from_static(b"hello")).map_err(|never| match never {});
        let mut req = Request::new(Body::new(body));
        *req.method_mut() = http::Method::POST;
        req
    }

    /// Reads one request, which ends with its body.
    async fn read(stream: &mut TcpStream) -> String {
        let mut seen = Vec::new();
        while !seen.ends_with(b"hello") {
            let mut buf = [0; 1024];
            let n = stream.read(&mut buf).await.unwrap();
            assert!(n > 0, "the request ended early");
            seen.extend_from_slice(&buf[..n]);
        }
        String::from_utf8(seen).unwrap()
    }

    async fn call(kept: &Arc<Kept>) -> Bytes {
        let (res, lent) = kept.request(request()).await.unwrap();
        let body = res.into_body().collect().await.unwrap().to_bytes();
        lent.done();
        body
    }

    #[tokio::test]
    async fn a_connection_serves_one_call_after_the_other() {
        let (listener, kept) = app().await;
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            for _ in 0..3 {
                assert!(read(&mut stream).await.contains("host: app\r\n"));
                stream.write_all(ANSWER).await.unwrap();
            }
        });
        for _ in 0..3 {
            assert_eq!(call(&kept).await, "ok");
        }
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_connection_that_the_app_closed_costs_another_one() {
        let (listener, kept) = app().await;
        let server = tokio::spawn(async move {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.unwrap();
                read(&mut stream).await;
                stream.write_all(ANSWER).await.unwrap();
            }
        });
        assert_eq!(call(&kept).await, "ok");
        assert_eq!(call(&kept).await, "ok");
        server.await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_left_unread_ends_its_connection() {
        let (listener, kept) = app().await;
        let server = tokio::spawn(async move {
            let (mut first, _) = listener.accept().await.unwrap();
            read(&mut first).await;
            first.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf").await.unwrap();
            let (mut second, _) = listener.accept().await.unwrap();
            read(&mut second).await;
            second.write_all(ANSWER).await.unwrap();
        });
        drop(kept.request(request()).await.unwrap());
        assert_eq!(call(&kept).await, "ok");
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_refused_dial_says_that_nothing_was_sent() {
        let (listener, kept) = app().await;
        drop(listener);
        assert!(matches!(kept.request(request()).await, Err(CallError::Dial(_))));
    }
}
