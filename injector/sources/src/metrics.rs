//! What is counted about sources.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The metrics. Registered once.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Backends that are ready.
    pub(crate) ready: Gauge,
    /// Backends that are not.
    pub(crate) not_ready: Gauge,
    /// Secrets of documents that are as they should be.
    pub(crate) current: Gauge,
    /// Secrets of documents that wait for their source.
    pub(crate) waiting: Gauge,
    /// Writes that failed.
    pub(crate) failed: Counter,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("mecha_sources_backends_ready", "Backends that are ready", metrics.ready.clone());
        registry.register("mecha_sources_backends_not_ready", "Backends that are not ready", metrics.not_ready.clone());
        registry.register(
            "mecha_sources_secrets_current",
            "Secrets of documents that are current",
            metrics.current.clone(),
        );
        registry.register(
            "mecha_sources_secrets_waiting",
            "Secrets of documents that wait for their source",
            metrics.waiting.clone(),
        );
        registry.register("mecha_sources_write_failures", "Writes that failed", metrics.failed.clone());
        metrics
    }
}
