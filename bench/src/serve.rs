//! The processes that are measured against: an app, a bare handler, a bare reverse proxy.
//!
//! Each is a process of its own with one thread, as the sidecars have on two cores, so that its
//! cost is neither the generator's nor the sidecar's.

use std::convert::Infallible;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, ETAG};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use redis::aio::MultiplexedConnection;
use tokio::net::TcpListener;

use crate::load::Wire;
use crate::process::Process;

/// Path the app counts single deliveries on.
pub(crate) const DELIVER: &str = "/deliver";
/// Path the app counts bulk deliveries on.
pub(crate) const DELIVER_BULK: &str = "/deliver-bulk";
/// Path that tells how many events were delivered.
pub(crate) const DELIVERED: &str = "/delivered";

/// Key that the handler with Redis behind it uses.
pub(crate) const HANDLER_KEY: &str = "bench-handler";

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// A helper process and where it listens.
#[derive(Debug)]
pub(crate) struct Helper {
    process: Process,
    pub(crate) address: SocketAddr,
}

impl Helper {
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }
}

/// Starts the app in a process of its own.
pub(crate) fn start_app(wire: Wire, value_bytes: usize) -> io::Result<Helper> {
    start(&["app", wire_name(wire), &value_bytes.to_string()])
}

/// Starts a bare reverse proxy in a process of its own.
pub(crate) fn start_proxy(wire: Wire, to: SocketAddr) -> io::Result<Helper> {
    start(&["proxy", wire_name(wire), &to.to_string()])
}

/// Starts a handler of state requests with nothing but hyper and one connection to Redis.
pub(crate) fn start_redis_handler(redis: SocketAddr) -> io::Result<Helper> {
    start(&["redis", wire_name(Wire::Http1), &redis.to_string()])
}

fn wire_name(wire: Wire) -> &'static str {
    match wire {
        Wire::Http1 | Wire::Redis | Wire::Kafka => "http1",
        Wire::Grpc => "grpc",
    }
}

fn start(args: &[&str]) -> io::Result<Helper> {
    use std::io::BufRead as _;
    let me = std::env::current_exe()?;
    let mut command = Command::new(me);
    command.arg("helper").args(args).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut process = Process::spawn(&mut command)?;
    let out = process.child().stdout.take().ok_or_else(|| io::Error::other("no standard output"))?;
    let mut line = String::new();
    io::BufReader::new(out).read_line(&mut line)?;
    let address = line.trim().parse().map_err(|_| io::Error::other(format!("helper {args:?} did not start")))?;
    Ok(Helper { process, address })
}

/// Runs a helper: `app WIRE VALUE_BYTES`, `redis WIRE SERVER` or `proxy WIRE TO`.
pub(crate) fn run(args: &[String]) -> io::Result<()> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "helper: app|redis|proxy http1|grpc VALUE");
    let [role, wire, value] = args else { return Err(wrong()) };
    let wire = if wire == "grpc" { Wire::Grpc } else { Wire::Http1 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match role.as_str() {
        "app" => runtime.block_on(app(wire, value.parse().map_err(|_| wrong())?, None)),
        "redis" => runtime.block_on(async {
            let client = redis::Client::open(format!("redis://{value}")).map_err(io::Error::other)?;
            let connection = client.get_multiplexed_async_connection().await.map_err(io::Error::other)?;
            app(wire, 0, Some(connection)).await
        }),
        "proxy" => runtime.block_on(proxy(wire, value.parse().map_err(|_| wrong())?)),
        _ => Err(wrong()),
    }
}

async fn listen() -> io::Result<TcpListener> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let mut out = io::stdout();
    writeln!(out, "{}", listener.local_addr()?)?;
    out.flush()?;
    Ok(listener)
}

fn builder(wire: Wire) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    if wire == Wire::Grpc {
        builder = builder.http2_only();
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(1000)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20);
    } else {
        builder = builder.http1_only();
    }
    builder
}

struct App {
    value: Bytes,
    /// State is there, when it is not made up.
    redis: Option<MultiplexedConnection>,
    delivered: AtomicU64,
}

async fn app(wire: Wire, value_bytes: usize, redis: Option<MultiplexedConnection>) -> io::Result<()> {
    let listener = listen().await?;
    let value = crate::scenario::json_value(value_bytes);
    let app = Arc::new(App { value, redis, delivered: AtomicU64::new(0) });
    let builder = Arc::new(builder(wire));
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (app, builder) = (app.clone(), builder.clone());
        tokio::spawn(async move {
            let service = service_fn(move |req| {
                let app = app.clone();
                async move { app.answer(wire, req).await }
            });
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl App {
    async fn answer(&self, wire: Wire, req: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
        if wire == Wire::Grpc {
            return Ok(grpc_answer(req));
        }
        let path = req.uri().path();
        if path.starts_with("/v1.0/state/") {
            return self.state(req).await;
        }
        if path.starts_with("/dapr/") {
            return Ok(status(StatusCode::NOT_FOUND));
        }
        match path {
            DELIVERED => Ok(Response::new(whole(self.delivered.load(Ordering::Relaxed).to_string()))),
            DELIVER => {
                req.into_body().collect().await?;
                self.delivered.fetch_add(1, Ordering::Relaxed);
                Ok(status(StatusCode::OK))
            }
            DELIVER_BULK => {
                let body = req.into_body().collect().await?.to_bytes();
                let (count, answer) = bulk_answer(&body);
                self.delivered.fetch_add(count, Ordering::Relaxed);
                Ok(Response::new(whole(answer)))
            }
            _ => {
                let kind = req.headers().get(CONTENT_TYPE).cloned();
                let mut res = Response::new(req.into_body().boxed_unsync());
                if let Some(kind) = kind {
                    res.headers_mut().insert(CONTENT_TYPE, kind);
                }
                Ok(res)
            }
        }
    }

    /// What a state API would answer if it cost nothing.
    async fn state(&self, req: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
        if let Some(redis) = &self.redis {
            return stored(redis.clone(), req).await;
        }
        if req.method() == Method::GET {
            let mut res = Response::new(whole(self.value.clone()));
            res.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            res.headers_mut().insert(ETAG, HeaderValue::from_static("1"));
            return Ok(res);
        }
        req.into_body().collect().await?;
        Ok(status(StatusCode::NO_CONTENT))
    }
}

/// Keeps what is sent, whole, and gives it back.
async fn stored(mut redis: MultiplexedConnection, req: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let get = req.method() == Method::GET;
    let transaction = req.uri().path().ends_with("/transaction");
    let body = req.into_body().collect().await?.to_bytes();
    let answer: redis::RedisResult<redis::Value> = if get {
        redis::cmd("GET").arg(HANDLER_KEY).query_async(&mut redis).await
    } else if transaction {
        let half = &body[..body.len() / 2];
        let mut both = redis::pipe();
        both.atomic().cmd("SET").arg(HANDLER_KEY).arg(half).cmd("SET").arg("bench-handler-2").arg(half);
        both.query_async(&mut redis).await
    } else {
        redis::cmd("SET").arg(HANDLER_KEY).arg(&body[..]).query_async(&mut redis).await
    };
    Ok(match answer {
        Ok(redis::Value::BulkString(value)) => {
            let mut res = Response::new(whole(value));
            res.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            res
        }
        Ok(_) if get => status(StatusCode::NOT_FOUND),
        Ok(_) => status(StatusCode::NO_CONTENT),
        Err(_) => status(StatusCode::BAD_GATEWAY),
    })
}

/// Hands a unary call's message back; methods of Dapr's callback service are not implemented.
fn grpc_answer(req: Request<Incoming>) -> Response<Body> {
    let known = !req.uri().path().starts_with("/dapr.");
    let code = HeaderValue::from_static(if known { "0" } else { "12" });
    let mut res = if known {
        let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), code)]);
        let body = req.into_body().with_trailers(std::future::ready(Some(Ok(trailers))));
        Response::new(body.boxed_unsync())
    } else {
        let mut res = status(StatusCode::OK);
        res.headers_mut().insert("grpc-status", code);
        res
    };
    res.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    res
}

/// Acknowledges every entry of a bulk delivery.
fn bulk_answer(body: &[u8]) -> (u64, String) {
    #[derive(serde::Deserialize)]
    struct Bulk<'a> {
        #[serde(borrow)]
        entries: Vec<Entry<'a>>,
    }
    #[derive(serde::Deserialize)]
    struct Entry<'a> {
        #[serde(rename = "entryId", borrow)]
        id: std::borrow::Cow<'a, str>,
    }
    let Ok(bulk) = serde_json::from_slice::<Bulk<'_>>(body) else { return (0, "{}".to_owned()) };
    let statuses: Vec<_> =
        bulk.entries.iter().map(|e| serde_json::json!({"entryId": e.id, "status": "SUCCESS"})).collect();
    (statuses.len() as u64, serde_json::json!({ "statuses": statuses }).to_string())
}

fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

fn status(status: StatusCode) -> Response<Body> {
    let mut res = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *res.status_mut() = status;
    res
}

/// A reverse proxy with nothing but hyper: pooled connections, bodies streamed both ways.
async fn proxy(wire: Wire, to: SocketAddr) -> io::Result<()> {
    let listener = listen().await?;
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let mut client = Client::builder(TokioExecutor::new());
    if wire == Wire::Grpc {
        client.http2_only(true).http2_initial_stream_window_size(1 << 20).http2_initial_connection_window_size(4 << 20);
    }
    let client: Client<_, Incoming> = client.build(connector);
    let builder = Arc::new(builder(wire));
    let authority: http::uri::Authority = to.to_string().parse().map_err(io::Error::other)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (client, builder, authority) = (client.clone(), builder.clone(), authority.clone());
        tokio::spawn(async move {
            let service = service_fn(move |mut req: Request<Incoming>| {
                let mut parts = std::mem::take(req.uri_mut()).into_parts();
                parts.scheme = Some(http::uri::Scheme::HTTP);
                parts.authority = Some(authority.clone());
                *req.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
                req.headers_mut().remove(CONNECTION);
                let answer = client.request(req);
                async move {
                    Ok::<_, Infallible>(match answer.await {
                        Ok(res) => res.map(BodyExt::boxed_unsync),
                        Err(_) => status(StatusCode::BAD_GATEWAY),
                    })
                }
            });
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
