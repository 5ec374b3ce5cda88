//! The Configuration's `metrics` section.

use super::{HttpLabelConfig, LabelRule, MetricRule, MetricsConfig};

impl MetricsConfig {
    /// Lays the document over the settings so far. Metrics switched off by
    /// flag stay off.
    #[must_use]
    pub fn with_document(mut self, document: &mecha_resources::Metrics) -> Self {
        self.enabled &= document.enabled.unwrap_or(true);
        self.record_error_codes = document.record_error_codes.unwrap_or(false);
        let buckets = &document.latency_distribution_buckets;
        // Milliseconds: far below where an f64 stops holding every integer.
        self.latency_buckets_ms = (!buckets.is_empty()).then(|| buckets.iter().map(|bound| *bound as f64).collect());
        let http = document.http.clone().unwrap_or_default();
        self.http = HttpLabelConfig {
            increased_cardinality: http.increased_cardinality.unwrap_or(true),
            path_matching: http.path_matching,
            exclude_verbs: http.exclude_verbs.unwrap_or(false),
        };
        let label = |label: &mecha_resources::MetricLabel| LabelRule {
            name: label.name.clone(),
            regex: label.regex.iter().map(|(new, pattern)| (new.clone(), pattern.clone())).collect(),
        };
        self.rules = document
            .rules
            .iter()
            .map(|rule| MetricRule { name: rule.name.clone(), labels: rule.labels.iter().map(label).collect() })
            .collect();
        self
    }
}
