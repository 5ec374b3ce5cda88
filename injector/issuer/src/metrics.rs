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

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PartLabel {
    part: String,
}

/// The metrics. Registered once.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    issued: Counter,
    refused: Family<ReasonLabel, Counter>,
    /// Days until the root that signs ends.
    pub(crate) root_days: Gauge<f64, AtomicU64>,
    control_days: Family<PartLabel, Gauge<f64, AtomicU64>>,
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
            "Days until a certificate of the control part itself ends",
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

    /// Days until the certificate of `part` of the control part ends; there are as many parts as the program has.
    pub(crate) fn control_certificate(&self, part: &str, days: f64) {
        self.control_days.get_or_create(&PartLabel { part: part.to_owned() }).set(days);
    }

    pub(crate) fn refused(&self, reason: Reason) {
        self.refused.get_or_create(&ReasonLabel { reason: reason.word() }).inc();
    }
}
