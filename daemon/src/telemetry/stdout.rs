//! A JSON line per span on standard output, for people at a terminal.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{SpanId, Status};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use serde_json::{Map, Value, json};

#[derive(Debug, Default)]
pub(super) struct Stdout {
    resource: Vec<(String, String)>,
}

impl SpanExporter for Stdout {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let mut out = Vec::new();
        for span in &batch {
            out.extend_from_slice(self.line(span).to_string().as_bytes());
            out.push(b'\n');
        }
        // One write: log lines of other threads stay whole.
        std::io::stdout().lock().write_all(&out).map_err(|error| OTelSdkError::InternalFailure(error.to_string()))
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    }
}

impl Stdout {
    pub(super) fn line(&self, span: &SpanData) -> Value {
        let attributes: Map<String, Value> =
            span.attributes.iter().map(|pair| (pair.key.to_string(), Value::from(pair.value.to_string()))).collect();
        let resource: Map<String, Value> =
            self.resource.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect();
        let (status, description) = match &span.status {
            Status::Unset => ("Unset", ""),
            Status::Ok => ("Ok", ""),
            Status::Error { description } => ("Error", description.as_ref()),
        };
        let parent = Some(span.parent_span_id).filter(|id| *id != SpanId::INVALID).map(|id| id.to_string());
        json!({
            "Name": span.name,
            "TraceID": span.span_context.trace_id().to_string(),
            "SpanID": span.span_context.span_id().to_string(),
            "ParentSpanID": parent,
            "SpanKind": format!("{:?}", span.span_kind).to_lowercase(),
            "StartTimeUnixNano": nanos(span.start_time),
            "EndTimeUnixNano": nanos(span.end_time),
            "Attributes": attributes,
            "Status": { "Code": status, "Description": description },
            "Resource": resource,
        })
    }
}

fn nanos(time: SystemTime) -> u64 {
    let nanos = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    u64::try_from(nanos).unwrap_or(u64::MAX)
}
