//! Zipkin v2 JSON over HTTP.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::Request;
use http::header::CONTENT_TYPE;
use mecha_otlp::ExportClient;
use opentelemetry::trace::{SpanId, SpanKind, Status};
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use serde_json::{Map, Value, json};
use tokio::runtime::Handle;

/// Limit of one post.
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Zipkin {
    url: http::Uri,
    service_name: String,
    client: ExportClient,
}

impl Zipkin {
    pub(super) fn new(url: &str, service_name: &str, runtime: Handle) -> Result<Self, String> {
        let parsed: http::Uri = url.parse().map_err(|error| format!("invalid URL: {error}"))?;
        if !matches!(parsed.scheme_str(), Some("http" | "https")) || parsed.host().is_none() {
            return Err("the URL must start with http:// or https:// and name a host".to_owned());
        }
        let client = ExportClient::new(url, TIMEOUT, runtime)?;
        Ok(Self { url: parsed, service_name: service_name.to_owned(), client })
    }

    fn encode(&self, batch: &[SpanData]) -> Value {
        batch.iter().map(|span| encode(span, &self.service_name)).collect()
    }
}

impl SpanExporter for Zipkin {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let fail = |reason: String| OTelSdkError::InternalFailure(reason);
        let body = Bytes::from(self.encode(&batch).to_string());
        let request = Request::post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|error| fail(error.to_string()))?;
        let response = self.client.send(request).await.map_err(|error| fail(error.to_string()))?;
        match response.status() {
            status if status.is_success() => Ok(()),
            status => Err(fail(format!("the collector answered {status}"))),
        }
    }
}

pub(super) fn encode(span: &SpanData, service_name: &str) -> Value {
    let mut tags: Map<String, Value> =
        span.attributes.iter().map(|pair| (pair.key.to_string(), Value::from(pair.value.to_string()))).collect();
    match &span.status {
        Status::Unset => {}
        Status::Ok => {
            tags.insert("otel.status_code".to_owned(), "OK".into());
        }
        Status::Error { description } => {
            tags.insert("otel.status_code".to_owned(), "ERROR".into());
            // Zipkin marks spans with this tag as failed, whatever its value.
            tags.insert("error".to_owned(), Value::from(description.as_ref()));
        }
    }
    let start = micros(span.start_time);
    let mut out = json!({
        "traceId": span.span_context.trace_id().to_string(),
        "id": span.span_context.span_id().to_string(),
        "name": span.name,
        "timestamp": start,
        // Zipkin takes 0 for "unknown".
        "duration": micros(span.end_time).saturating_sub(start).max(1),
        "localEndpoint": { "serviceName": service_name },
        "tags": tags,
    });
    let kind = match span.span_kind {
        SpanKind::Client => Some("CLIENT"),
        SpanKind::Server => Some("SERVER"),
        SpanKind::Producer => Some("PRODUCER"),
        SpanKind::Consumer => Some("CONSUMER"),
        SpanKind::Internal => None,
    };
    if let (Some(kind), Some(members)) = (kind, out.as_object_mut()) {
        members.insert("kind".to_owned(), kind.into());
    }
    if let (true, Some(members)) = (span.parent_span_id != SpanId::INVALID, out.as_object_mut()) {
        members.insert("parentId".to_owned(), span.parent_span_id.to_string().into());
    }
    out
}

fn micros(time: SystemTime) -> u64 {
    let micros = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    u64::try_from(micros).unwrap_or(u64::MAX)
}
