//! Apps that speak gRPC.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::HttpConnector;
use mecha_components_api::{BindingEvent, Concurrency, ConfigItem, Consistency, Error, ErrorKind, Retry, Value};
use mecha_core::TraceHeaders;
use mecha_core::app::{
    AppChannel, AppConfig, AppError, AppProtocol, AppSubscription, AppVerdict, BindingReply, Body, BulkTopicEvent,
    RouteRule, TopicEvent,
};
use mecha_core::invoke::{GrpcAnswer, Invocation, StatusDetail, Verb, full};
use mecha_core::metrics::{Metrics, RpcExchange};
use mecha_core::state::SaveItem;
use mecha_proto::{common, runtime};
use prost::Message;
use tonic::client::Grpc;
use tonic::metadata::{KeyAndValueRef, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, GrpcMethod, Status};
use tonic_prost::ProstCodec;

use super::gate::Gate;
use super::{AppTarget, answers, insecure_tls};
use crate::events;
use crate::token::TOKEN_HEADER;

type AppCallback = runtime::app_callback_client::AppCallbackClient<Channel>;
type AppCallbackAlpha = runtime::app_callback_alpha_client::AppCallbackAlphaClient<Channel>;
type HealthCheck = runtime::app_callback_health_check_client::AppCallbackHealthCheckClient<Channel>;

const ON_INVOKE: &str = "/dapr.proto.runtime.v1.AppCallback/OnInvoke";
/// Time to connect to the app.
const DIAL_LIMIT: Duration = Duration::from_secs(15);
/// Calls of the sidecar itself (list subscriptions, list bindings) end after this time.
const SETUP_LIMIT: Duration = Duration::from_secs(30);
/// A half-open connection to the app is found within the sum of both.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_ANSWER: Duration = Duration::from_secs(5);

/// An app that speaks gRPC.
pub(super) struct GrpcApp {
    channel: Channel,
    protocol: AppProtocol,
    token: Option<MetadataValue<tonic::metadata::Ascii>>,
    max_body: usize,
    gate: Arc<Gate>,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for GrpcApp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcApp").finish_non_exhaustive()
    }
}

impl GrpcApp {
    pub(super) fn new(target: &AppTarget, gate: Arc<Gate>, metrics: Arc<Metrics>) -> Result<Self, String> {
        let scheme = if target.protocol.is_tls() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{}", target.authority()))
            .map_err(|e| format!("the app's address is not valid: {e}"))?
            .connect_timeout(DIAL_LIMIT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_ANSWER)
            .keep_alive_while_idle(true);
        let channel = if target.protocol.is_tls() {
            let mut tcp = HttpConnector::new();
            tcp.enforce_http(false);
            tcp.set_nodelay(true);
            let tls = HttpsConnectorBuilder::new()
                .with_tls_config(insecure_tls::config()?)
                .https_only()
                .enable_http2()
                .wrap_connector(tcp);
            endpoint.connect_with_connector_lazy(tls)
        } else {
            endpoint.connect_lazy()
        };
        let token = match target.token.as_deref().filter(|t| !t.is_empty()) {
            Some(token) => {
                let mut value: MetadataValue<_> =
                    token.parse().map_err(|_| "APP_API_TOKEN holds characters no header can carry")?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let max_body = usize::try_from(target.max_body).unwrap_or(usize::MAX);
        Ok(Self { channel, protocol: target.protocol, token, max_body, gate, metrics })
    }

    fn callback(&self) -> AppCallback {
        AppCallback::new(self.channel.clone())
            .max_decoding_message_size(self.max_body)
            .max_encoding_message_size(self.max_body)
    }

    fn alpha(&self) -> AppCallbackAlpha {
        AppCallbackAlpha::new(self.channel.clone())
            .max_decoding_message_size(self.max_body)
            .max_encoding_message_size(self.max_body)
    }

    /// A request with token and trace context.
    fn request<T>(&self, message: T, trace: &TraceHeaders) -> tonic::Request<T> {
        let mut req = tonic::Request::new(message);
        let md = req.metadata_mut();
        let all = [("traceparent", &trace.traceparent), ("tracestate", &trace.tracestate), ("baggage", &trace.baggage)];
        for (name, value) in all {
            if let Some(value) = value.as_deref().and_then(|v| v.parse().ok()) {
                md.insert(name, value);
            }
        }
        if let Some(token) = &self.token {
            md.insert(TOKEN_HEADER, token.clone());
        }
        req
    }

    /// `OnInvoke`. Read as a stream of one message: a unary call of the client library puts
    /// headers and trailers into one map.
    async fn on_invoke(&self, mut req: tonic::Request<common::InvokeRequest>) -> Result<Invoked, Status> {
        let mut client = Grpc::new(self.channel.clone())
            .max_decoding_message_size(self.max_body)
            .max_encoding_message_size(self.max_body);
        client.ready().await.map_err(|e| Status::from_error(e.into()))?;
        req.extensions_mut().insert(GrpcMethod::new("dapr.proto.runtime.v1.AppCallback", "OnInvoke"));
        let codec = ProstCodec::<common::InvokeRequest, common::InvokeResponse>::default();
        let res = client.server_streaming(req, PathAndQuery::from_static(ON_INVOKE), codec).await?;
        let (headers, mut messages, _) = res.into_parts();
        let Some(message) = messages.message().await? else {
            return Err(Status::internal("the app answered without a message"));
        };
        // To the end of the stream: its status may still be an error.
        let trailers = messages.trailers().await?.unwrap_or_default();
        Ok(Invoked { headers, message, trailers })
    }

    /// Runs one call behind the gate and counts it.
    async fn call<T: Message>(
        &self,
        method: &'static str,
        sent: usize,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<tonic::Response<T>, AppError> {
        let _pass = self.gate.enter().await?;
        let began = Instant::now();
        let result = call.await;
        self.count(method, sent, began, result.as_ref().map(|res| res.get_ref().encoded_len()));
        result.map_err(|s| failed(&s))
    }

    /// Counts a call; `answer` holds the size of its message.
    fn count(&self, method: &'static str, sent: usize, began: Instant, answer: Result<usize, &Status>) {
        let code = answer.map_or_else(Status::code, |_| Code::Ok);
        self.metrics.grpc_called(RpcExchange {
            method,
            status: mecha_core::invoke::code_name(code as i32),
            request_bytes: sent as u64,
            response_bytes: answer.unwrap_or_default() as u64,
            elapsed: began.elapsed(),
        });
    }

    async fn setup<T: Message>(
        &self,
        method: &'static str,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<tonic::Response<T>, AppError> {
        match tokio::time::timeout(SETUP_LIMIT, self.call(method, 0, call)).await {
            Ok(result) => result,
            Err(_) => {
                Err(AppError::transport(Error::timeout(format!("the app did not answer {method} in {SETUP_LIMIT:?}"))))
            }
        }
    }
}

/// What an app answers to `OnInvoke`.
struct Invoked {
    headers: MetadataMap,
    message: common::InvokeResponse,
    trailers: MetadataMap,
}

/// A status of the app, or a failure on the way that tonic shows as a status.
fn failed(status: &Status) -> AppError {
    let transport = std::error::Error::source(status).is_some();
    let kind = match status.code() {
        Code::Unavailable => ErrorKind::Unavailable,
        Code::DeadlineExceeded => ErrorKind::Timeout,
        Code::Unimplemented => ErrorKind::Unsupported,
        _ => ErrorKind::Internal,
    };
    let retry = if transport { Retry::Always } else { Retry::IfIdempotent };
    AppError {
        error: Error::new(kind, status.message().to_owned()).with_retry(retry),
        http_status: None,
        grpc_code: (!transport).then_some(status.code() as i32),
    }
}

fn is_unimplemented(e: &AppError) -> bool {
    e.grpc_code == Some(Code::Unimplemented as i32)
}

fn verdict(status: i32) -> AppVerdict {
    match runtime::topic_event_response::TopicEventResponseStatus::try_from(status) {
        Ok(runtime::topic_event_response::TopicEventResponseStatus::Success) => AppVerdict::Success,
        Ok(runtime::topic_event_response::TopicEventResponseStatus::Drop) => AppVerdict::Drop,
        Ok(runtime::topic_event_response::TopicEventResponseStatus::Retry) | Err(_) => AppVerdict::Retry,
    }
}

#[async_trait]
impl AppChannel for GrpcApp {
    fn protocol(&self) -> AppProtocol {
        self.protocol
    }

    async fn config(&self) -> Result<Option<AppConfig>, AppError> {
        Ok(None)
    }

    async fn subscriptions(&self) -> Result<Option<Vec<AppSubscription>>, AppError> {
        let req = self.request((), &TraceHeaders::default());
        let mut client = self.callback();
        let listed = self
            .setup("/dapr.proto.runtime.v1.AppCallback/ListTopicSubscriptions", client.list_topic_subscriptions(req))
            .await;
        match listed {
            Ok(res) => Ok(Some(res.into_inner().subscriptions.into_iter().map(subscription).collect())),
            Err(e) if is_unimplemented(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    async fn topic_event(&self, event: &TopicEvent) -> Result<AppVerdict, AppError> {
        let Some(message) = events::topic_event_request(event) else {
            // Text promised by the content type, and none there: the contract calls for a retry.
            return Ok(AppVerdict::Retry);
        };
        let sent = message.encoded_len();
        let mut req = self.request(message, &event.trace);
        add_metadata(req.metadata_mut(), event.metadata.iter());
        let mut client = self.callback();
        match self.call("/dapr.proto.runtime.v1.AppCallback/OnTopicEvent", sent, client.on_topic_event(req)).await {
            Ok(res) => Ok(verdict(res.into_inner().status)),
            Err(e) if is_unimplemented(&e) => {
                tracing::error!(
                    target: "dapr.runtime",
                    "the app does not implement OnTopicEvent: the event of topic {} is dropped", event.topic
                );
                Ok(AppVerdict::Discard)
            }
            Err(e) => Err(e),
        }
    }

    async fn bulk_topic_event(&self, event: &BulkTopicEvent) -> Result<Vec<AppVerdict>, AppError> {
        let message = events::topic_event_bulk_request(event);
        let sent = message.encoded_len();
        let mut client = self.callback();
        let req = self.request(message.clone(), &event.trace);
        let mut result = self
            .call("/dapr.proto.runtime.v1.AppCallback/OnBulkTopicEvent", sent, client.on_bulk_topic_event(req))
            .await;
        if result.as_ref().is_err_and(is_unimplemented) {
            let req = self.request(message, &event.trace);
            let mut client = self.alpha();
            let method = "/dapr.proto.runtime.v1.AppCallbackAlpha/OnBulkTopicEventAlpha1";
            result = self.call(method, sent, client.on_bulk_topic_event_alpha1(req)).await;
        }
        let statuses = match result {
            Ok(res) => res.into_inner().statuses,
            Err(e) if is_unimplemented(&e) => return Ok(vec![AppVerdict::Discard; event.entries.len()]),
            Err(e) => return Err(e),
        };
        let of = |id: &str| statuses.iter().find(|s| s.entry_id == id).map_or(AppVerdict::Retry, |s| verdict(s.status));
        Ok(event.entries.iter().map(|e| of(&e.entry_id)).collect())
    }

    async fn takes_binding(&self, name: &str, _route: &str, limit: Duration) -> Result<bool, AppError> {
        let req = self.request((), &TraceHeaders::default());
        let mut client = self.callback();
        let call =
            self.call("/dapr.proto.runtime.v1.AppCallback/ListInputBindings", 0, client.list_input_bindings(req));
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(res)) => Ok(res.into_inner().bindings.iter().any(|b| b == name)),
            Ok(Err(e)) if is_unimplemented(&e) => Ok(false),
            Ok(Err(e)) => Err(e),
            Err(_) => {
                Err(AppError::transport(Error::timeout(format!("the app did not list its bindings in {limit:?}"))))
            }
        }
    }

    async fn binding_event(
        &self,
        name: &str,
        _route: &str,
        event: &BindingEvent,
        trace: &TraceHeaders,
    ) -> Result<BindingReply, AppError> {
        let message = runtime::BindingEventRequest {
            name: name.to_owned(),
            data: event.data.clone(),
            metadata: event.metadata.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        };
        let sent = message.encoded_len();
        let req = self.request(message, trace);
        let mut client = self.callback();
        let res =
            self.call("/dapr.proto.runtime.v1.AppCallback/OnBindingEvent", sent, client.on_binding_event(req)).await?;
        let reply = res.into_inner();
        let parallel = reply.concurrency == runtime::binding_event_response::BindingEventConcurrency::Parallel as i32;
        Ok(BindingReply {
            data: reply.data,
            store_name: reply.store_name,
            states: reply.states.into_iter().map(state_item).collect(),
            to: reply.to,
            parallel,
        })
    }

    async fn configuration_event(
        &self,
        _store: &str,
        _id: &str,
        _key: &str,
        _items: &BTreeMap<String, ConfigItem>,
    ) -> Result<(), AppError> {
        // gRPC apps get changes on their SubscribeConfiguration stream.
        Err(AppError::transport(Error::unsupported("gRPC apps take configuration changes on their stream")))
    }

    async fn probe(&self, _path: &str, limit: Duration) -> Result<(), AppError> {
        let began = Instant::now();
        let mut client = HealthCheck::new(self.channel.clone());
        // Neither traced nor counted against the concurrency limit.
        let answer = tokio::time::timeout(limit, client.health_check(())).await;
        let code = match &answer {
            Ok(Ok(_)) => Code::Ok,
            Ok(Err(s)) => s.code(),
            Err(_) => Code::DeadlineExceeded,
        };
        self.metrics.grpc_probed(mecha_core::invoke::code_name(code as i32), began.elapsed());
        match answer {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(s)) => Err(failed(&s)),
            Err(_) => Err(AppError::transport(Error::timeout(format!("the app's health did not answer in {limit:?}")))),
        }
    }

    async fn invoke(&self, req: Request<Body>) -> Result<Response<Body>, AppError> {
        let (mut parts, body) = req.into_parts();
        let invocation = parts.extensions.remove::<Invocation>();
        let (method, verb, query, type_url) = match invocation {
            Some(i) => (i.method.as_str().to_owned(), i.verb, i.query, i.type_url),
            None => (
                parts.uri.path().trim_start_matches('/').to_owned(),
                Verb::Http(parts.method.clone()),
                parts.uri.query().unwrap_or_default().to_owned(),
                String::new(),
            ),
        };
        let data = read(body, self.max_body).await?;
        let content_type = parts.headers.remove(CONTENT_TYPE);
        let message = common::InvokeRequest {
            method,
            data: Some(mecha_proto::Any { type_url, value: data }),
            content_type: content_type.and_then(|v| v.to_str().ok().map(str::to_owned)).unwrap_or_default(),
            http_extension: extension(&verb, query),
        };
        let sent = message.encoded_len();
        let mut req = self.request(message, &TraceHeaders::default());
        for (name, value) in &parts.headers {
            copy_header(req.metadata_mut(), name, value);
        }
        let _pass = self.gate.enter().await?;
        let began = Instant::now();
        let result = self.on_invoke(req).await;
        self.count(ON_INVOKE, sent, began, result.as_ref().map(|invoked| invoked.message.encoded_len()));
        match result {
            Ok(invoked) => Ok(answer(invoked)),
            Err(status) if std::error::Error::source(&status).is_none() => Ok(error_answer(&status)),
            Err(status) => Err(failed(&status)),
        }
    }
}

fn extension(verb: &Verb, querystring: String) -> Option<common::HttpExtension> {
    let verb = match verb {
        Verb::Missing => return None,
        Verb::None => common::http_extension::Verb::None,
        Verb::Http(method) => {
            common::http_extension::Verb::from_str_name(method.as_str()).unwrap_or(common::http_extension::Verb::Post)
        }
    };
    Some(common::HttpExtension { verb: verb as i32, querystring })
}

async fn read(mut body: Body, limit: usize) -> Result<Bytes, AppError> {
    let mut all: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|e| AppError::transport(Error::invalid(format!("reading the request for the app failed: {e}"))))?;
        let Ok(data) = frame.into_data() else { continue };
        if all.len() + data.len() > limit {
            let text = format!("the request is larger than the limit of {limit} bytes (max-body-size)");
            return Err(AppError::transport(Error::new(ErrorKind::TooLarge, text)));
        }
        if all.is_empty() && http_body::Body::is_end_stream(&body) {
            // One piece needs no copy.
            return Ok(data);
        }
        all.extend_from_slice(&data);
    }
    Ok(all.into())
}

/// Copies one HTTP header into gRPC metadata; binary values are decoded.
fn copy_header(md: &mut MetadataMap, name: &HeaderName, value: &HeaderValue) {
    if name.as_str().ends_with("-bin") {
        if let (Ok(key), Ok(raw)) = (
            tonic::metadata::BinaryMetadataKey::from_bytes(name.as_str().as_bytes()),
            BASE64_STANDARD_NO_PAD.decode(value.as_bytes().strip_suffix(b"==").unwrap_or(value.as_bytes())),
        ) {
            md.append_bin(key, MetadataValue::from_bytes(&raw));
        }
        return;
    }
    if let (Ok(key), Ok(value)) = (
        tonic::metadata::AsciiMetadataKey::from_bytes(name.as_str().as_bytes()),
        MetadataValue::try_from(value.as_bytes()),
    ) {
        md.append(key, value);
    }
}

/// Adds message metadata; what cannot be metadata is left out.
fn add_metadata<'a>(md: &mut MetadataMap, metadata: impl Iterator<Item = (&'a str, &'a str)>) {
    for (k, v) in metadata {
        let key = k.to_ascii_lowercase();
        if key.ends_with("-bin") || key == TOKEN_HEADER || key.starts_with("grpc-") || key == "content-type" {
            continue;
        }
        if let (Ok(key), Ok(value)) =
            (tonic::metadata::AsciiMetadataKey::from_bytes(key.as_bytes()), MetadataValue::try_from(v))
        {
            md.append(key, value);
        }
    }
}

fn headers(md: &MetadataMap) -> HeaderMap {
    let mut out = HeaderMap::new();
    for entry in md.iter() {
        let (name, value) = match entry {
            KeyAndValueRef::Ascii(k, v) => (k.as_str(), HeaderValue::from_bytes(v.as_bytes()).ok()),
            // On the wire binary values are base64 already.
            KeyAndValueRef::Binary(k, v) => (k.as_str(), HeaderValue::from_bytes(v.as_encoded_bytes()).ok()),
        };
        if let (Ok(name), Some(value)) = (HeaderName::try_from(name), value) {
            out.append(name, value);
        }
    }
    out
}

fn answer(Invoked { headers: before, message, trailers }: Invoked) -> Response<Body> {
    let data = message.data.unwrap_or_default();
    let mut out = Response::new(full(data.value));
    *out.headers_mut() = headers(&before);
    if let Ok(value) = HeaderValue::from_str(&message.content_type)
        && !message.content_type.is_empty()
    {
        out.headers_mut().insert(CONTENT_TYPE, value);
    }
    out.extensions_mut().insert(GrpcAnswer {
        type_url: data.type_url,
        trailers: headers(&trailers),
        ..GrpcAnswer::default()
    });
    out
}

/// An error status of the app is its answer.
fn error_answer(status: &Status) -> Response<Body> {
    let details = events::RpcStatus::decode(status.details()).unwrap_or_default().details;
    let mut out = Response::new(full(Bytes::new()));
    out.extensions_mut().insert(GrpcAnswer {
        code: status.code() as i32,
        message: status.message().to_owned(),
        details: details.into_iter().map(|d| StatusDetail { type_url: d.type_url, value: d.value }).collect(),
        trailers: headers(status.metadata()),
        type_url: String::new(),
    });
    out
}

fn subscription(s: runtime::TopicSubscription) -> AppSubscription {
    let routes = s.routes.unwrap_or_default();
    // gRPC apps need no path: without any rule an empty route is one.
    let default_route = (!routes.default.is_empty() || routes.rules.is_empty()).then_some(routes.default);
    AppSubscription {
        pubsub: s.pubsub_name,
        topic: s.topic,
        metadata: s.metadata.into_iter().collect(),
        rules: routes.rules.into_iter().map(|r| RouteRule { matches: r.r#match, path: r.path }).collect(),
        default_route,
        dead_letter_topic: (!s.dead_letter_topic.is_empty()).then_some(s.dead_letter_topic),
        bulk: s.bulk_subscribe.filter(|b| b.enabled).map(|b| {
            let number = |n: i32| u64::try_from(n).ok().filter(|n| *n > 0);
            answers::bulk_options(number(b.max_messages_count), number(b.max_await_duration_ms))
        }),
    }
}

fn state_item(item: common::StateItem) -> SaveItem {
    let options = item.options.unwrap_or_default();
    let first = common::state_options::StateConcurrency::ConcurrencyFirstWrite as i32;
    let strong = common::state_options::StateConsistency::ConsistencyStrong as i32;
    SaveItem {
        key: item.key,
        value: Value::Binary(item.value),
        etag: item.etag.map(|e| e.value),
        concurrency: if options.concurrency == first { Concurrency::FirstWrite } else { Concurrency::LastWrite },
        consistency: if options.consistency == strong { Consistency::Strong } else { Consistency::Eventual },
        metadata: item.metadata.into_iter().collect(),
    }
}
