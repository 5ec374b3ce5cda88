use std::time::Duration;

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

/// Logs what an exporter fails to send: the SDK itself is silent.
#[derive(Debug)]
pub(super) struct Reporting<E> {
    inner: E,
    name: String,
}

impl<E> Reporting<E> {
    pub(super) fn new(inner: E, name: String) -> Self {
        Self { inner, name }
    }
}

impl<E: SpanExporter> SpanExporter for Reporting<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.inner.export(batch).await;
        if let Err(error) = &result {
            tracing::warn!(target: "dapr.runtime", spans, "could not export traces to {}: {error}", self.name);
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
