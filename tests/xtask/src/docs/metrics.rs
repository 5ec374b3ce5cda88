use mecha_core::metrics::{Kind, Metric, Scale};

use super::markdown::{cell, code, codes, table};

pub(super) fn page() -> String {
    let rows = Metric::ALL.iter().map(|metric| {
        let desc = metric.desc();
        let kind = match desc.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(Scale::LatencyMs) => "histogram, ms",
            Kind::Histogram(Scale::Bytes) => "histogram, bytes",
        };
        [code(&desc.scraped_name()), kind.to_owned(), codes(desc.labels), cell(desc.help)]
    });
    format!(
        "# Metrics\n\nServed in the Prometheus text format on `--metrics-port`. Every series also has the label \
         `app_id`; every label is present, empty when unset. A series appears with its first value. How to set them \
         up is in [observability](../observability.md).\n\n{}",
        table(["Name", "Kind", "Labels", "Meaning"], rows)
    )
}
