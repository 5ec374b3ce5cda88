//! Apps that speak HTTP.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use mecha_components_api::{BindingEvent, ConfigItem, Error, ErrorKind, Metadata, Retry};
use mecha_core::TraceHeaders;
use mecha_core::app::{
    AppChannel, AppConfig, AppError, AppProtocol, AppSubscription, AppVerdict, BindingReply, Body, BodyError,
    BulkTopicEvent, TopicEvent,
};
use mecha_core::metrics::{HttpExchange, Metrics};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use super::gate::{Gate, Pass};
use super::kept::{CallError, Kept, Lent};
use super::{AppTarget, answers, insecure_tls};
use crate::edge;
use crate::token::TOKEN_HEADER;

/// Time to connect to the app.
const DIAL_LIMIT: Duration = Duration::from_secs(15);
/// Kept connections that idle this long are closed before the app does it.
const POOL_IDLE: Duration = Duration::from_secs(4);
/// Calls of the sidecar itself (`/dapr/config`, `/dapr/subscribe`) end after this time.
const SETUP_LIMIT: Duration = Duration::from_secs(30);
/// What a path segment keeps unescaped.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// An app that speaks HTTP.
pub(super) struct HttpApp {
    way: Way,
    protocol: AppProtocol,
    scheme: Scheme,
    authority: Authority,
    token: Option<HeaderValue>,
    app_id: HeaderValue,
    max_body: usize,
    gate: Arc<Gate>,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for HttpApp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpApp").field("authority", &self.authority).finish_non_exhaustive()
    }
}

/// How requests get to the app.
enum Way {
    Plain(Arc<Kept>),
    /// TLS or HTTP/2.
    Other(Box<Client<HttpsConnector<HttpConnector>, Body>>),
}

/// A complete answer.
struct Whole {
    status: StatusCode,
    body: Bytes,
}

impl HttpApp {
    pub(super) fn new(target: &AppTarget, gate: Arc<Gate>, metrics: Arc<Metrics>) -> Result<Self, String> {
        let way = if target.protocol == AppProtocol::Http {
            let header = HeaderValue::from_str(&target.authority()).map_err(|e| e.to_string())?;
            let host = target.host.trim_start_matches('[').trim_end_matches(']').to_owned();
            Way::Plain(Kept::new(host, target.port, header, DIAL_LIMIT, POOL_IDLE))
        } else {
            Way::Other(Box::new(client(target)?))
        };
        let token = match target.token.as_deref().filter(|t| !t.is_empty()) {
            Some(token) => {
                let mut value =
                    HeaderValue::from_str(token).map_err(|_| "APP_API_TOKEN holds characters no header can carry")?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        Ok(Self {
            way,
            protocol: target.protocol,
            scheme: if target.protocol.is_tls() { Scheme::HTTPS } else { Scheme::HTTP },
            authority: target.authority().parse().map_err(|e| format!("the app's address is not valid: {e}"))?,
            token,
            app_id: HeaderValue::from_str(&target.app_id).map_err(|e| e.to_string())?,
            max_body: usize::try_from(target.max_body).unwrap_or(usize::MAX),
            gate,
            metrics,
        })
    }

    /// Sends one request; everything but scheme, host and token is final.
    async fn send(&self, mut req: Request<Body>) -> Result<Response<Body>, AppError> {
        let pass = self.gate.enter().await?;
        let path = req.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        // The host of the app, not the one its caller spoke to.
        req.headers_mut().remove(HOST);
        if let Some(token) = &self.token {
            req.headers_mut().insert(TOKEN_HEADER, token.clone());
        }
        let method = req.method().clone();
        let request_bytes = req.body().size_hint().lower();
        let began = Instant::now();
        let sent = self.exchange(req, path.clone()).await;
        let status = sent.as_ref().map_or(0, |res| res.status().as_u16());
        self.metrics.http_called(HttpExchange {
            method: method.as_str(),
            path: path.path(),
            status,
            request_bytes,
            response_bytes: sent.as_ref().ok().and_then(|res| res.body().size_hint().exact()).unwrap_or(0),
            elapsed: began.elapsed(),
        });
        Ok(sent?.map(|mut body| {
            body.pass = Some(pass);
            Body::new(body)
        }))
    }

    async fn exchange(&self, mut req: Request<Body>, path: PathAndQuery) -> Result<Response<Held>, AppError> {
        // A failed dial sent nothing; anything later may have reached the app.
        let failed = |dial: bool, e: BodyError| {
            let retry = if dial { Retry::Always } else { Retry::IfIdempotent };
            AppError::transport(Error::unavailable("error invoking app").with_retry(retry).with_source(e))
        };
        match &self.way {
            Way::Plain(kept) => {
                *req.uri_mut() = Uri::from(path);
                let sent = kept.request(req).await;
                let (res, lent) = sent.map_err(|e| failed(matches!(e, CallError::Dial(_)), e.into()))?;
                Ok(res.map(|inner| Held { inner, pass: None, lent: Some(lent) }))
            }
            Way::Other(client) => {
                let mut uri = http::uri::Parts::default();
                uri.scheme = Some(self.scheme.clone());
                uri.authority = Some(self.authority.clone());
                uri.path_and_query = Some(path);
                *req.uri_mut() = Uri::from_parts(uri).map_err(|e| unsendable(&e))?;
                let sent = client.request(req).await;
                let res = sent.map_err(|e| failed(e.is_connect(), e.into()))?;
                Ok(res.map(|inner| Held { inner, pass: None, lent: None }))
            }
        }
    }

    /// A call of the sidecar itself, whose answer is read as a whole.
    async fn call(&self, method: Method, path: &str, headers: HeaderMap, body: Bytes) -> Result<Whole, AppError> {
        let mut req = Request::new(Body::new(Full::new(body).map_err(|never| match never {})));
        *req.method_mut() = method;
        *req.uri_mut() = rooted(path).parse().map_err(|e| unsendable(&e))?;
        *req.headers_mut() = headers;
        let res = self.send(req).await?;
        let status = res.status();
        let body = whole(res.into_body(), self.max_body).await?;
        Ok(Whole { status, body })
    }

    async fn setup_call(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        limit: Duration,
    ) -> Result<Whole, AppError> {
        match tokio::time::timeout(limit, self.call(method, path, headers, Bytes::new())).await {
            Ok(answer) => answer,
            Err(_) => Err(AppError::transport(Error::timeout(format!("the app did not answer {path} in {limit:?}")))),
        }
    }
}

fn client(target: &AppTarget) -> Result<Client<HttpsConnector<HttpConnector>, Body>, String> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(DIAL_LIMIT));
    let tls = HttpsConnectorBuilder::new().with_tls_config(insecure_tls::config()?).https_or_http();
    let https = match target.protocol {
        AppProtocol::H2c => tls.enable_http2().wrap_connector(tcp),
        _ => tls.enable_http1().wrap_connector(tcp),
    };
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .http2_only(target.protocol == AppProtocol::H2c)
        .build(https))
}

fn unsendable(e: &dyn fmt::Display) -> AppError {
    AppError::transport(Error::invalid(format!("the app cannot be called like this: {e}")))
}

/// Reads an answer, `limit` bytes at most.
async fn whole(mut body: Body, limit: usize) -> Result<Bytes, AppError> {
    let mut first = Bytes::new();
    let mut rest: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(unread)?.into_data() else { continue };
        if first.len() + rest.len() + data.len() > limit {
            let text = format!("the app's answer is larger than the limit of {limit} bytes (max-body-size)");
            return Err(AppError::transport(Error::new(ErrorKind::TooLarge, text)));
        }
        if first.is_empty() {
            // Most answers come in one piece, which needs no copy.
            first = data;
        } else {
            rest.extend_from_slice(&data);
        }
    }
    if rest.is_empty() {
        return Ok(first);
    }
    let mut all = Vec::with_capacity(first.len() + rest.len());
    all.extend_from_slice(&first);
    all.append(&mut rest);
    Ok(all.into())
}

fn unread(e: BodyError) -> AppError {
    let e = Error::unavailable("reading the app's answer failed").with_retry(Retry::IfIdempotent).with_source(e);
    AppError::transport(e)
}

fn rooted(path: &str) -> std::borrow::Cow<'_, str> {
    if path.starts_with('/') { path.into() } else { format!("/{path}").into() }
}

/// The failure behind a status that is no verdict.
fn status_error(status: StatusCode, what: &str) -> AppError {
    AppError {
        error: Error::new(ErrorKind::Internal, format!("{what}: the app answered status {status}"))
            .with_retry(Retry::IfIdempotent),
        http_status: Some(status.as_u16()),
        grpc_code: None,
    }
}

/// Message metadata as headers. What cannot be a header is left out, so that a line break in
/// a message never becomes a header of its own; hop-by-hop and framing names never go out.
fn add_metadata(headers: &mut HeaderMap, metadata: &Metadata) {
    for (k, v) in metadata.iter() {
        let Ok(name) = HeaderName::try_from(k) else { continue };
        let framing = ["content-length", "transfer-encoding", "connection", "host", "upgrade", "te", "trailer"];
        if framing.contains(&name.as_str()) || name.as_str() == TOKEN_HEADER {
            continue;
        }
        if let Ok(value) = HeaderValue::from_bytes(v.as_bytes()) {
            headers.insert(name, value);
        }
    }
}

#[async_trait]
impl AppChannel for HttpApp {
    fn protocol(&self) -> AppProtocol {
        self.protocol
    }

    async fn config(&self) -> Result<Option<AppConfig>, AppError> {
        let answer = self.setup_call(Method::GET, "/dapr/config", HeaderMap::new(), SETUP_LIMIT).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !answer.status.is_success() {
            return Err(status_error(answer.status, "reading /dapr/config"));
        }
        let raw: serde_json::Value = match serde_json::from_slice(&answer.body) {
            Ok(raw) => raw,
            Err(e) => {
                tracing::warn!(target: "dapr.runtime", "the app's /dapr/config is not JSON and is left out: {e}");
                return Ok(None);
            }
        };
        let entities = raw.get("entities").and_then(serde_json::Value::as_array);
        let entities =
            entities.into_iter().flatten().filter_map(serde_json::Value::as_str).map(str::to_owned).collect();
        Ok(Some(AppConfig { entities, raw }))
    }

    async fn subscriptions(&self) -> Result<Option<Vec<AppSubscription>>, AppError> {
        let headers = HeaderMap::from_iter([(HeaderName::from_static("dapr-app-id"), self.app_id.clone())]);
        let answer = self.setup_call(Method::GET, "/dapr/subscribe", headers, SETUP_LIMIT).await?;
        match answer.status {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::OK => match answers::subscriptions(&answer.body) {
                Ok((subs, warnings)) => {
                    for warning in warnings {
                        tracing::warn!(target: "dapr.runtime", "{warning}");
                    }
                    Ok(Some(subs))
                }
                Err(e) => {
                    tracing::error!(target: "dapr.runtime", "reading the app's /dapr/subscribe failed: {e}");
                    Ok(Some(Vec::new()))
                }
            },
            other => Err(status_error(other, "reading /dapr/subscribe")),
        }
    }

    async fn topic_event(&self, event: &TopicEvent) -> Result<AppVerdict, AppError> {
        let mut headers = HeaderMap::new();
        add_metadata(&mut headers, &event.metadata);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(event.content_type));
        if let Ok(name) = HeaderValue::from_str(&event.pubsub) {
            headers.insert(HeaderName::from_static("pubsubname"), name);
        }
        edge::write(&event.trace, &mut headers);
        let answer = self.call(Method::POST, &event.path, headers, event.body.clone()).await?;
        if answer.status.is_success() {
            return Ok(answers::verdict(&answer.body));
        }
        if answer.status == StatusCode::NOT_FOUND {
            // Core drops it and says so; which route is missing is known here only.
            let text = format!("the app has no route {}", event.path);
            return Err(AppError { error: Error::not_found(text), http_status: Some(404), grpc_code: None });
        }
        Err(status_error(answer.status, "delivering the event"))
    }

    async fn bulk_topic_event(&self, event: &BulkTopicEvent) -> Result<Vec<AppVerdict>, AppError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        edge::write(&event.trace, &mut headers);
        let answer = self.call(Method::POST, &event.path, headers, bulk_body(event)).await?;
        if answer.status.is_success() {
            return Ok(answers::bulk_verdicts(&answer.body, event.entries.iter().map(|e| e.entry_id.as_str())));
        }
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(vec![AppVerdict::Drop; event.entries.len()]);
        }
        Err(status_error(answer.status, "delivering the events"))
    }

    async fn takes_binding(&self, _name: &str, route: &str, limit: Duration) -> Result<bool, AppError> {
        let answer = self.setup_call(Method::OPTIONS, route, HeaderMap::new(), limit).await?;
        Ok(answer.status.is_success() || answer.status == StatusCode::METHOD_NOT_ALLOWED)
    }

    async fn binding_event(
        &self,
        _name: &str,
        route: &str,
        event: &BindingEvent,
        trace: &TraceHeaders,
    ) -> Result<BindingReply, AppError> {
        let mut headers = HeaderMap::new();
        add_metadata(&mut headers, &event.metadata);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        edge::write(trace, &mut headers);
        let answer = self.call(Method::POST, route, headers, event.data.clone()).await?;
        if answer.status.is_success() {
            return Ok(answers::binding_reply(&answer.body));
        }
        Err(status_error(answer.status, "delivering the binding event"))
    }

    async fn configuration_event(
        &self,
        store: &str,
        id: &str,
        key: &str,
        items: &BTreeMap<String, ConfigItem>,
    ) -> Result<(), AppError> {
        let (store, key) = (utf8_percent_encode(store, SEGMENT), utf8_percent_encode(key, SEGMENT));
        let items: BTreeMap<&str, _> = items
            .iter()
            .map(|(k, i)| (k.as_str(), json!({"value": i.value, "version": i.version, "metadata": i.metadata})))
            .collect();
        let body = json!({"id": id, "items": items}).to_string();
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        let answer = self.call(Method::POST, &format!("/configuration/{store}/{key}"), headers, body.into()).await?;
        if answer.status.is_success() { Ok(()) } else { Err(status_error(answer.status, "pushing configuration")) }
    }

    async fn probe(&self, path: &str, limit: Duration) -> Result<(), AppError> {
        let began = Instant::now();
        let req = Request::new(Body::new(http_body_util::Empty::new().map_err(|never| match never {})));
        let path: PathAndQuery = rooted(path).parse().map_err(|e| unsendable(&e))?;
        // Neither traced nor counted against the concurrency limit.
        let answer = tokio::time::timeout(limit, self.exchange(req, path)).await;
        let status = answer.as_ref().ok().and_then(|a| a.as_ref().ok()).map_or(0, |a| a.status().as_u16());
        self.metrics.http_probed(status, began.elapsed());
        match answer {
            Ok(Ok(res)) if res.status().is_success() => Ok(()),
            Ok(Ok(res)) => Err(status_error(res.status(), "probing the app's health")),
            Ok(Err(e)) => {
                Err(AppError::transport(Error::unavailable("probing the app's health failed").with_source(e.error)))
            }
            Err(_) => Err(AppError::transport(Error::timeout(format!("the app's health did not answer in {limit:?}")))),
        }
    }

    async fn invoke(&self, req: Request<Body>) -> Result<Response<Body>, AppError> {
        self.send(req).await
    }
}

/// The body of a bulk delivery, written by hand so that events go out byte for byte.
fn bulk_body(event: &BulkTopicEvent) -> Bytes {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let map =
        |md: &Metadata| serde_json::Value::from_iter(md.iter().map(|(k, v)| (k.to_owned(), v.to_owned()))).to_string();
    let size: usize = event.entries.iter().map(|e| e.body.len() + 128).sum();
    let mut out = Vec::with_capacity(size + 256);
    let mut put = |text: &str| out.extend_from_slice(text.as_bytes());
    put("{\"id\":");
    put(&quoted(&event.id));
    put(",\"type\":\"com.dapr.event.sent.bulk\",\"topic\":");
    put(&quoted(&event.topic));
    put(",\"pubsubname\":");
    put(&quoted(&event.pubsub));
    put(",\"metadata\":");
    put(&map(&event.metadata));
    put(",\"entries\":[");
    for (i, entry) in event.entries.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"entryId\":");
        out.extend_from_slice(quoted(&entry.entry_id).as_bytes());
        out.extend_from_slice(b",\"event\":");
        if entry.event.is_some() {
            out.extend_from_slice(&entry.body);
        } else {
            out.extend_from_slice(quoted(&BASE64_STANDARD.encode(&entry.body)).as_bytes());
        }
        out.extend_from_slice(b",\"metadata\":");
        out.extend_from_slice(map(&entry.metadata).as_bytes());
        out.extend_from_slice(b",\"contentType\":");
        out.extend_from_slice(quoted(&entry.content_type).as_bytes());
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
    out.into()
}

/// An answer's body. It keeps its place at the gate until it is read or dropped, and gives its
/// connection back once it is read.
struct Held {
    inner: Incoming,
    pass: Option<Pass>,
    lent: Option<Lent>,
}

impl Held {
    fn over(&mut self, whole: bool) {
        self.pass.take();
        if let Some(lent) = self.lent.take()
            && whole
        {
            lent.done();
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Nobody asks for the end of a body whose length is known.
        let whole = self.inner.is_end_stream();
        self.over(whole);
    }
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_frame(cx);
        match &polled {
            Poll::Ready(None) => this.over(true),
            Poll::Ready(Some(Err(_))) => this.over(false),
            _ => {}
        }
        polled.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
