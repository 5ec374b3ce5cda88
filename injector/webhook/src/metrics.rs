//! What the role measures.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Upper bounds in seconds: fine around the aim of 5 ms, then up to the deadline.
const LATENCY: [f64; 12] = [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 2.5];

/// A label of a closed set.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Labels {
    result: &'static str,
}

/// What became of a request to the webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Injected,
    Whole,
    NotAsked,
    Denied,
    Checked,
    Misdirected,
    Unreadable,
    TooLarge,
    TooSlow,
    Shed,
    Failed,
}

/// How a self-check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    Injected,
    NotInjected,
    Refused,
    Unreachable,
}

/// How an eviction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Eviction {
    Evicted,
    Held,
    Gone,
    Failed,
}

impl Admission {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Whole => "whole",
            Self::NotAsked => "not_asked",
            Self::Denied => "denied",
            Self::Checked => "checked",
            Self::Misdirected => "misdirected",
            Self::Unreadable => "unreadable",
            Self::TooLarge => "too_large",
            Self::TooSlow => "too_slow",
            Self::Shed => "shed",
            Self::Failed => "failed",
        }
    }
}

impl Check {
    fn label(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::NotInjected => "not_injected",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
        }
    }
}

impl Eviction {
    fn label(self) -> &'static str {
        match self {
            Self::Evicted => "evicted",
            Self::Held => "held",
            Self::Gone => "gone",
            Self::Failed => "failed",
        }
    }
}

/// All of the role's metrics. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    admissions: Family<Labels, Counter>,
    pub(crate) latency: Histogram,
    pub(crate) configuration: Gauge,
    pub(crate) configuration_refused: Gauge,
    pub(crate) certificate_days: Gauge<f64, AtomicU64>,
    pub(crate) rotations: Counter,
    pub(crate) registration_writes: Counter,
    checks: Family<Labels, Counter>,
    pub(crate) checked: Gauge<f64, AtomicU64>,
    pub(crate) bare: Gauge,
    evictions: Family<Labels, Counter>,
    pub(crate) services: Gauge,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            admissions: Family::default(),
            latency: Histogram::new(LATENCY),
            configuration: Gauge::default(),
            configuration_refused: Gauge::default(),
            certificate_days: Gauge::default(),
            rotations: Counter::default(),
            registration_writes: Counter::default(),
            checks: Family::default(),
            checked: Gauge::default(),
            bare: Gauge::default(),
            evictions: Family::default(),
            services: Gauge::default(),
        };
        let m = metrics.clone();
        registry.register("mecha_injector_admissions", "Requests to the webhook", m.admissions);
        registry.register("mecha_injector_admission_seconds", "Time to answer a request", m.latency);
        registry.register(
            "mecha_injector_configuration_generation",
            "Configurations taken into use since the start",
            m.configuration,
        );
        registry.register(
            "mecha_injector_configuration_refused",
            "1 while the ConfigMap holds a configuration that is not used",
            m.configuration_refused,
        );
        registry.register(
            "mecha_injector_certificate_days_left",
            "Days until the serving certificate expires",
            m.certificate_days,
        );
        registry.register(
            "mecha_injector_certificate_rotations",
            "Replacements of the serving certificate",
            m.rotations,
        );
        registry.register(
            "mecha_injector_registration_writes",
            "Writes of the MutatingWebhookConfiguration",
            m.registration_writes,
        );
        registry.register("mecha_injector_canary_checks", "Self-checks through the API server", m.checks);
        registry.register(
            "mecha_injector_canary_success_timestamp_seconds",
            "When a self-check last passed; 0 before the first",
            m.checked,
        );
        registry.register("mecha_injector_bare_pods", "Pods that ask for a sidecar and have none", m.bare);
        registry.register("mecha_injector_evictions", "Evictions of such pods", m.evictions);
        registry.register("mecha_injector_services", "Headless Services of apps that are kept", m.services);
        metrics
    }

    pub(crate) fn admission(&self, result: Admission) {
        self.admissions.get_or_create(&Labels { result: result.label() }).inc();
    }

    pub(crate) fn check(&self, result: Check) {
        self.checks.get_or_create(&Labels { result: result.label() }).inc();
    }

    pub(crate) fn eviction(&self, result: Eviction) {
        self.evictions.get_or_create(&Labels { result: result.label() }).inc();
    }
}
