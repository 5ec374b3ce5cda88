//! The Configuration's `tracing` section.

use mecha_components_api::Secret;
use mecha_resources::{NameValue, OtelProtocol, Tracing, ValueSource};

use super::config::{OtelConfig, TracingConfig};

impl TracingConfig {
    /// Takes the section over. `value` gives a header's value as far as it is known; `None`
    /// leaves the header out. Those that secret stores hold come with `Telemetry::complete`.
    pub fn from_document(document: &Tracing, mut value: impl FnMut(&NameValue) -> Option<Secret>) -> Self {
        let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let otel = document.otel.as_ref().map_or_else(OtelConfig::default, |otel| OtelConfig {
            endpoint_address: given(&otel.endpoint_address),
            protocol: otel.protocol.map(|protocol| {
                match protocol {
                    OtelProtocol::Http => "http",
                    OtelProtocol::Grpc => "grpc",
                }
                .to_owned()
            }),
            is_secure: otel.is_secure,
            headers_follow: otel.headers.iter().any(|header| matches!(header.value, ValueSource::Secret(_))),
            headers: otel.headers.iter().filter_map(|header| Some((header.name.clone(), value(header)?))).collect(),
            timeout: otel.timeout.filter(|timeout| !timeout.is_zero()),
        });
        Self {
            sampling_rate: given(&document.sampling_rate),
            stdout: document.stdout,
            zipkin_endpoint: given(&document.zipkin_endpoint),
            otel,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mecha_resources::Otel;

    #[test]
    fn the_section_is_taken_over() {
        let document = Tracing {
            sampling_rate: "0.5".into(),
            stdout: true,
            otel: Some(Otel {
                endpoint_address: "c:4318".into(),
                protocol: Some(OtelProtocol::Http),
                is_secure: false,
                headers: Vec::new(),
                timeout: None,
            }),
            zipkin_endpoint: String::new(),
        };
        let config = TracingConfig::from_document(&document, |_| None);
        assert_eq!(config.sampling_rate.as_deref(), Some("0.5"));
        assert!(config.stdout && config.zipkin_endpoint.is_none());
        assert_eq!(config.otel.endpoint_address.as_deref(), Some("c:4318"));
        assert_eq!(config.otel.protocol.as_deref(), Some("http"));
        assert!(!config.otel.is_secure);
        let empty = TracingConfig::from_document(&Tracing::default(), |_| None);
        assert!(empty.sampling_rate.is_none() && empty.otel.is_secure);
    }
}
