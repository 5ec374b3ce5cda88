//! OTLP over gRPC and HTTP.

use std::collections::HashMap;

use opentelemetry_otlp::tonic_types::metadata::MetadataMap;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig};
use tokio::runtime::Handle;

use super::client::ExportClient;
use super::config::{OtlpPlan, OtlpProtocol};

/// Builds the exporter; connects lazily.
pub(super) fn exporter(plan: &OtlpPlan, runtime: Handle) -> Result<SpanExporter, String> {
    match plan.protocol {
        OtlpProtocol::Http => {
            let headers: HashMap<String, String> =
                plan.headers.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect();
            SpanExporter::builder()
                .with_http()
                .with_http_client(ExportClient::new(&plan.url, plan.timeout, runtime)?)
                .with_protocol(Protocol::HttpBinary)
                .with_endpoint(&plan.url)
                .with_headers(headers)
                .with_timeout(plan.timeout)
                .build()
        }
        OtlpProtocol::Grpc => {
            let mut headers = http::HeaderMap::with_capacity(plan.headers.len());
            for (name, value) in &plan.headers {
                if let (Ok(name), Ok(mut value)) =
                    (http::HeaderName::try_from(name), http::HeaderValue::try_from(value.expose()))
                {
                    value.set_sensitive(true);
                    headers.insert(name, value);
                }
            }
            // The channel's worker must run on the daemon's runtime.
            let _guard = runtime.enter();
            let mut builder = SpanExporter::builder()
                .with_tonic()
                .with_endpoint(&plan.url)
                .with_metadata(MetadataMap::from_headers(headers))
                .with_timeout(plan.timeout);
            if plan.url.starts_with("https:") {
                builder = builder.with_tls_config(ClientTlsConfig::new().with_native_roots());
            }
            builder.build()
        }
    }
    .map_err(|error| error.to_string())
}
