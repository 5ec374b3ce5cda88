//! OTLP over gRPC and HTTP.

use std::collections::HashMap;

use opentelemetry_otlp::tonic_types::metadata::MetadataMap;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig};
use tokio::runtime::Handle;

use super::client::ExportClient;
use super::plan::{OtlpPlan, OtlpProtocol};

/// Builds the exporter; it connects, on `runtime`, with its first export.
///
/// # Errors
/// The URL or its TLS make no sense.
pub fn exporter(plan: &OtlpPlan, runtime: Handle) -> Result<SpanExporter, String> {
    match plan.protocol {
        OtlpProtocol::Http => {
            let headers: HashMap<String, String> = plan
                .headers
                .iter()
                .filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())))
                .collect();
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
            // The channel's worker must run on the program's runtime.
            let _guard = runtime.enter();
            let mut builder = SpanExporter::builder()
                .with_tonic()
                .with_endpoint(&plan.url)
                .with_metadata(MetadataMap::from_headers(plan.headers.clone()))
                .with_timeout(plan.timeout);
            if plan.url.starts_with("https:") {
                builder = builder.with_tls_config(ClientTlsConfig::new().with_native_roots());
            }
            builder.build()
        }
    }
    .map_err(|error| error.to_string())
}
