//! Connections, and one request on one of them.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, TE};
use http::{HeaderMap, HeaderValue, Request, Response, Uri, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use redis::aio::MultiplexedConnection;
use tokio::net::TcpStream;

use super::{STREAMS_PER_CONNECTION, Shot, Wire};

/// Time for a place in the producer's queue.
const QUEUE_LIMIT: Duration = Duration::from_secs(5);
/// Characters of an unexpected answer that are shown.
const MOST_TEXT: usize = 300;

/// What sends one request at a time.
pub(super) struct Line {
    shot: Shot,
    uri: Uri,
    headers: HeaderMap,
    sender: Sender,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
    Redis(MultiplexedConnection),
    Kafka(FutureProducer),
}

/// Opens as many lines as requests may be under way.
pub(super) async fn open(shot: &Shot, lines: usize) -> io::Result<Vec<Line>> {
    let mut out = Vec::with_capacity(lines);
    let mut shared = None;
    for number in 0..lines {
        let sender = match shot.wire {
            Wire::Http1 => connect(shot).await?,
            Wire::Grpc => {
                if number % STREAMS_PER_CONNECTION == 0 {
                    shared = Some(connect(shot).await?);
                }
                match &shared {
                    Some(Sender::Http2(sender)) => Sender::Http2(sender.clone()),
                    _ => connect(shot).await?,
                }
            }
            Wire::Redis | Wire::Kafka => {
                if shared.is_none() {
                    shared = Some(connect(shot).await?);
                }
                match &shared {
                    Some(Sender::Redis(connection)) => Sender::Redis(connection.clone()),
                    Some(Sender::Kafka(producer)) => Sender::Kafka(producer.clone()),
                    _ => connect(shot).await?,
                }
            }
        };
        out.push(Line { shot: shot.clone(), uri: uri(shot)?, headers: headers(shot)?, sender });
    }
    Ok(out)
}

fn uri(shot: &Shot) -> io::Result<Uri> {
    let text = match shot.wire {
        Wire::Http1 | Wire::Redis | Wire::Kafka => shot.path.clone(),
        Wire::Grpc => format!("http://{}{}", shot.to, shot.path),
    };
    text.parse().map_err(io::Error::other)
}

fn headers(shot: &Shot) -> io::Result<HeaderMap> {
    let mut headers: HeaderMap = shot.headers.iter().cloned().collect();
    match shot.wire {
        Wire::Http1 => {
            headers.insert(HOST, HeaderValue::try_from(shot.to.to_string()).map_err(io::Error::other)?);
        }
        Wire::Grpc => {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
        Wire::Redis | Wire::Kafka => {}
    }
    Ok(headers)
}

async fn connect(shot: &Shot) -> io::Result<Sender> {
    if shot.wire == Wire::Redis {
        let client = redis::Client::open(format!("redis://{}", shot.to)).map_err(io::Error::other)?;
        return Ok(Sender::Redis(client.get_multiplexed_async_connection().await.map_err(io::Error::other)?));
    }
    if shot.wire == Wire::Kafka {
        return producer(shot).map(Sender::Kafka);
    }
    let stream = TcpStream::connect(shot.to).await?;
    stream.set_nodelay(true)?;
    let io = TokioIo::new(stream);
    match shot.wire {
        Wire::Http1 | Wire::Redis | Wire::Kafka => {
            let (sender, connection) = http1::handshake(io).await.map_err(io::Error::other)?;
            tokio::spawn(connection);
            Ok(Sender::Http1(sender))
        }
        Wire::Grpc => {
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .initial_stream_window_size(1 << 20)
                .initial_connection_window_size(4 << 20)
                .handshake(io)
                .await
                .map_err(io::Error::other)?;
            tokio::spawn(connection);
            Ok(Sender::Http2(sender))
        }
    }
}

impl Line {
    /// Sends the request and reads the whole answer.
    pub(super) async fn shoot(&mut self) -> Result<(), String> {
        let sent = self.exchange().await;
        if sent.is_err() && self.is_broken() {
            // The next request gets a fresh connection; this one stays an error.
            match connect(&self.shot).await {
                Ok(sender) => self.sender = sender,
                Err(e) => return Err(format!("connecting again: {e}")),
            }
        }
        sent
    }

    fn is_broken(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_closed(),
            Sender::Http2(sender) => sender.is_closed(),
            // It connects again by itself or fails for good.
            Sender::Redis(_) | Sender::Kafka(_) => false,
        }
    }

    async fn exchange(&mut self) -> Result<(), String> {
        if let Sender::Redis(connection) = &mut self.sender {
            return command(connection, &self.shot).await;
        }
        if let Sender::Kafka(producer) = &self.sender {
            return publish(producer, &self.shot).await;
        }
        let mut req = Request::new(Full::new(self.shot.body.clone()));
        *req.method_mut() = self.shot.method.clone();
        *req.uri_mut() = self.uri.clone();
        *req.headers_mut() = self.headers.clone();
        let res = match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await.map_err(|e| e.to_string())?;
                sender.send_request(req).await
            }
            Sender::Http2(sender) => {
                *req.version_mut() = Version::HTTP_2;
                sender.ready().await.map_err(|e| e.to_string())?;
                sender.send_request(req).await
            }
            Sender::Redis(_) | Sender::Kafka(_) => return Err("no connection for HTTP".to_owned()),
        };
        self.judge(res.map_err(|e| e.to_string())?).await
    }

    async fn judge(&self, res: Response<Incoming>) -> Result<(), String> {
        let status = res.status();
        let mut grpc_status = res.headers().get("grpc-status").cloned();
        let mut message = res.headers().get("grpc-message").cloned();
        let mut body = res.into_body();
        let mut bytes = 0;
        let mut text = String::new();
        while let Some(frame) = body.frame().await {
            match frame.map_err(|e| e.to_string())?.into_data() {
                Ok(data) => {
                    if status != self.shot.expect && bytes == 0 {
                        text = String::from_utf8_lossy(&data).chars().take(MOST_TEXT).collect();
                    }
                    bytes += data.len();
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        grpc_status = trailers.get("grpc-status").cloned().or(grpc_status);
                        message = trailers.get("grpc-message").cloned().or(message);
                    }
                }
            }
        }
        if status != self.shot.expect {
            return Err(format!("status {status} {text}"));
        }
        if self.shot.wire == Wire::Grpc && grpc_status.as_ref().is_none_or(|s| s != "0") {
            return Err(format!("gRPC status {grpc_status:?} {message:?}"));
        }
        if bytes < self.shot.least_bytes {
            return Err(format!("an answer of {bytes} bytes, expected {} at least", self.shot.least_bytes));
        }
        Ok(())
    }
}

/// A producer as the sidecar has one: every event on all replicas, none twice, none waits for more.
fn producer(shot: &Shot) -> io::Result<FutureProducer> {
    ClientConfig::new()
        .set("bootstrap.servers", shot.to.to_string())
        .set("socket.nagle.disable", "true")
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "0")
        .create()
        .map_err(io::Error::other)
}

async fn publish(producer: &FutureProducer, shot: &Shot) -> Result<(), String> {
    let record = FutureRecord::<(), [u8]>::to(&shot.path).payload(&shot.body[..]);
    producer.send(record, QUEUE_LIMIT).await.map(|_| ()).map_err(|(e, _)| e.to_string())
}

/// Runs the commands of a shot, together in a transaction when there are several.
async fn command(connection: &mut MultiplexedConnection, shot: &Shot) -> Result<(), String> {
    let built = shot.commands.iter().map(|words| {
        let mut cmd = redis::Cmd::new();
        for word in words {
            cmd.arg(&word[..]);
        }
        cmd
    });
    let answer: redis::Value = if shot.commands.len() == 1 {
        let Some(cmd) = built.into_iter().next() else { return Ok(()) };
        cmd.query_async(connection).await.map_err(|e| e.to_string())?
    } else {
        let mut pipeline = redis::Pipeline::with_capacity(shot.commands.len());
        pipeline.atomic();
        for cmd in built {
            pipeline.add_command(cmd);
        }
        pipeline.query_async(connection).await.map_err(|e| e.to_string())?
    };
    let bytes = match &answer {
        redis::Value::BulkString(bytes) => bytes.len(),
        _ => 0,
    };
    if bytes < shot.least_bytes {
        return Err(format!("an answer of {bytes} bytes, expected {} at least", shot.least_bytes));
    }
    Ok(())
}
