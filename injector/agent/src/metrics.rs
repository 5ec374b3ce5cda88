//! What can be measured of the delivery.

use std::fmt;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

macro_rules! words {
    ($($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $word:ident = $text:literal,)+ })+) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        pub(crate) enum $name { $($(#[$doc])* $word),+ }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                match self { $(Self::$word => $text),+ }.encode(encoder)
            }
        }
    )+};
}

words! {
    /// Which protocol a sidecar speaks.
    Protocol {
        Mecha = "mecha",
        Dapr = "dapr",
    }

    /// Why a connection or a request was refused.
    Refusal {
        /// The TLS handshake failed, or took too long.
        Handshake = "handshake",
        /// The certificate names no workload.
        Identity = "identity",
        /// It asked for another namespace.
        Namespace = "namespace",
        /// Too many connections or sidecars.
        Limit = "limit",
        /// It does not keep to the protocol.
        Protocol = "protocol",
    }

    /// What a read of a Secret gave.
    SecretRead {
        Found = "found",
        Missing = "missing",
        Failed = "failed",
    }
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct ByProtocol {
    protocol: Protocol,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct ByReason {
    reason: Refusal,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct ByResult {
    result: SecretRead,
}

/// The metrics of the agent. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    streams: Family<ByProtocol, Gauge<i64, AtomicI64>>,
    sets: Counter,
    bytes: Counter,
    to_sent: Histogram,
    to_reported: Histogram,
    secret_reads: Family<ByResult, Counter>,
    refused: Family<ByReason, Counter>,
    status_writes: Counter,
}

/// Counts a stream for as long as it is held.
#[derive(Debug)]
pub(crate) struct Counted(Gauge<i64, AtomicI64>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// From a millisecond to half a minute.
const SECONDS: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            streams: Family::default(),
            sets: Counter::default(),
            bytes: Counter::default(),
            to_sent: Histogram::new(SECONDS),
            to_reported: Histogram::new(SECONDS),
            secret_reads: Family::default(),
            refused: Family::default(),
            status_writes: Counter::default(),
        };
        let agent = registry.sub_registry_with_prefix("mecha_agent");
        agent.register("streams", "Streams of sidecars", metrics.streams.clone());
        agent.register("sets_sent", "Sets of documents sent", metrics.sets.clone());
        agent.register_with_unit("sets_sent", "Size of the sets sent", Unit::Bytes, metrics.bytes.clone());
        let changed = "Time from a change of documents until";
        agent.register_with_unit("to_sent", format!("{changed} it was sent"), Unit::Seconds, metrics.to_sent.clone());
        agent.register_with_unit(
            "to_reported",
            format!("{changed} a sidecar reported on it"),
            Unit::Seconds,
            metrics.to_reported.clone(),
        );
        agent.register("secret_reads", "Reads of Secrets", metrics.secret_reads.clone());
        agent.register("refused", "Connections and requests refused", metrics.refused.clone());
        agent.register("status_writes", "Writes of the status of bindings", metrics.status_writes.clone());
        metrics
    }

    pub(crate) fn stream(&self, protocol: Protocol) -> Counted {
        let gauge = self.streams.get_or_create(&ByProtocol { protocol }).clone();
        gauge.inc();
        Counted(gauge)
    }

    pub(crate) fn set_sent(&self, bytes: usize, since_change: Option<Duration>) {
        self.sets.inc();
        self.bytes.inc_by(u64::try_from(bytes).unwrap_or(u64::MAX));
        if let Some(since) = since_change {
            self.to_sent.observe(since.as_secs_f64());
        }
    }

    pub(crate) fn reported(&self, since_change: Duration) {
        self.to_reported.observe(since_change.as_secs_f64());
    }

    pub(crate) fn secret_read(&self, result: SecretRead) {
        self.secret_reads.get_or_create(&ByResult { result }).inc();
    }

    pub(crate) fn refused(&self, reason: Refusal) {
        self.refused.get_or_create(&ByReason { reason }).inc();
    }

    pub(crate) fn status_written(&self) {
        self.status_writes.inc();
    }
}
