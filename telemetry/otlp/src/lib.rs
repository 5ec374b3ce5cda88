//! Spans to collectors over OTLP: the pieces that the sidecar and the control part share.
//!
//! Every exporter has a bounded queue and a thread of its own; a collector
//! that is slow or away costs spans, never requests.

mod client;
mod convert;
mod otlp;
mod plan;
mod report;
mod variables;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
pub use opentelemetry_sdk::error::OTelSdkError as ExportError;
pub use opentelemetry_sdk::trace::BatchSpanProcessor;
use opentelemetry_sdk::trace::{BatchConfigBuilder, SpanExporter, SpanProcessor};

pub use client::ExportClient;
pub use convert::{Sink, convert};
pub use otlp::exporter;
pub use plan::{DEFAULT_TIMEOUT, OtlpPlan, OtlpProtocol, header, pairs, without_userinfo};
pub use report::Report;
pub use variables::OtelEnv;

/// Spans that may wait for an exporter; more are dropped.
pub const QUEUE: usize = 2048;

/// Spans sent at a time.
const BATCH: usize = 512;

/// Longest a span waits for its batch to fill.
const DELAY: Duration = Duration::from_secs(2);

/// The attribute that names the service.
pub const SERVICE_NAME: &str = "service.name";

/// What all spans of a program say of it.
#[must_use]
pub fn resource(attributes: &[(String, String)]) -> Resource {
    let attributes = attributes.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    Resource::builder_empty().with_attributes(attributes).build()
}

/// Starts an exporter with its queue and thread. What it cannot send goes to `report`.
pub fn processor<E: SpanExporter + 'static>(exporter: E, resource: &Resource, report: Report) -> BatchSpanProcessor {
    let config = BatchConfigBuilder::default()
        .with_max_queue_size(QUEUE)
        .with_max_export_batch_size(BATCH)
        .with_scheduled_delay(DELAY)
        .build();
    let mut processor =
        BatchSpanProcessor::builder(report::Reporting::new(exporter, report)).with_batch_config(config).build();
    processor.set_resource(resource);
    processor
}

/// Sends what waits and ends the exporters, for `limit` at most. `false`: some spans may be lost.
pub async fn flush(
    processors: Arc<[BatchSpanProcessor]>,
    late: Arc<OnceLock<BatchSpanProcessor>>,
    limit: Duration,
) -> bool {
    if processors.is_empty() && late.get().is_none() {
        return true;
    }
    // The processors block while they flush; the connections they flush
    // through need this runtime's threads.
    let flush = tokio::task::spawn_blocking(move || {
        std::thread::scope(|scope| {
            let flushing: Vec<_> = processors
                .iter()
                .chain(late.get())
                .map(|processor| scope.spawn(move || processor.shutdown_with_timeout(limit).is_ok()))
                .collect();
            flushing.into_iter().all(|thread| thread.join().unwrap_or(false))
        })
    });
    matches!(tokio::time::timeout(limit, flush).await, Ok(Ok(true)))
}
