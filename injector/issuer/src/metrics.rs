//! What the issuer counts.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::workload::Reason;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// The metrics. Registered once.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    issued: Counter,
    refused: Family<ReasonLabel, Counter>,
    /// Days until the root that signs ends.
    pub(crate) root_days: Gauge<f64, AtomicU64>,
    /// Days until the certificate of the control part that ends first does.
    pub(crate) control_days: Gauge<f64, AtomicU64>,
    /// Roots in the bundle.
    pub(crate) roots: Gauge,
    /// Namespaces that should have the present bundle and have not.
    pub(crate) behind: Gauge,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("mecha_issuer_certificates", "Certificates issued", metrics.issued.clone());
        registry.register(
            "mecha_issuer_refusals",
            "Requests without a certificate, by reason",
            metrics.refused.clone(),
        );
        registry.register("mecha_issuer_root_days_left", "Days until the signing root ends", metrics.root_days.clone());
        registry.register(
            "mecha_issuer_control_certificate_days_left",
            "Days until the first certificate of the control part ends",
            metrics.control_days.clone(),
        );
        registry.register("mecha_issuer_roots", "Roots in the trust bundle", metrics.roots.clone());
        registry.register(
            "mecha_issuer_namespaces_behind",
            "Namespaces that have not got the present trust bundle",
            metrics.behind.clone(),
        );
        // Present from the start, so that a rate can be taken of the first one.
        for reason in Reason::ALL {
            drop(metrics.refused.get_or_create(&ReasonLabel { reason: reason.word() }));
        }
        metrics
    }

    pub(crate) fn issued(&self) {
        self.issued.inc();
    }

    pub(crate) fn refused(&self, reason: Reason) {
        self.refused.get_or_create(&ReasonLabel { reason: reason.word() }).inc();
    }
}
