//! Spans of the roles to a collector, when OpenTelemetry's own variables name one.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mecha_apiserver::trace::{Sampler, SpanSink, Tracer};
use mecha_otlp::{OtelEnv, OtlpProtocol, Sink};
use tokio::runtime::Handle;

use crate::cli::{Common, TraceProtocol};
use crate::program::Failed;

/// Who makes the spans.
const SCOPE: &str = "mecha-control";

/// Tracing of one run. Without a collector it starts nothing and costs nothing.
#[derive(Default)]
pub(crate) struct Telemetry {
    /// The exporter with its queue; none where nothing is traced.
    running: Option<(Tracer, Exporters)>,
}

type Exporters = Arc<[mecha_otlp::BatchSpanProcessor]>;

impl Telemetry {
    /// Starts the exporter that flags and the environment ask for; `service` is what the collector calls the program
    /// when they do not say otherwise. It connects with the first spans. Must be called
    /// on the runtime that will carry its connections.
    ///
    /// # Errors
    /// The address of the collector makes no sense.
    pub(crate) fn start(common: &Common, service: &str) -> Result<Self, Failed> {
        let mut warnings = Vec::new();
        let env = environment(common, &|name| std::env::var(name).ok(), &mut warnings);
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        let Some(plan) = env.otlp().filter(|_| !env.disabled) else { return Ok(Self::default()) };
        let sampler = env.sampler.unwrap_or(Sampler::new(1.0));
        let shown = plan.to_string();
        let refused = |why: &dyn std::fmt::Display| {
            let how = "check --trace-endpoint and the variables OTEL_EXPORTER_OTLP_*";
            Failed::new("traces", format!("cannot export traces to {shown}: {why}; {how}"))
        };
        let runtime = Handle::try_current().map_err(|e| refused(&e))?;
        let exporter = mecha_otlp::exporter(&plan, runtime).map_err(|e| refused(&e))?;
        let resource = mecha_otlp::resource(&env.resource(&env.service_name(service)));
        let report = {
            let shown = shown.clone();
            Box::new(move |spans: usize, error: &mecha_otlp::ExportError| {
                tracing::warn!(spans, %error, "could not export traces to {shown}");
            })
        };
        let exporters: Exporters = [mecha_otlp::processor(exporter, &resource, report)].into();
        let sink: Arc<dyn SpanSink> = Arc::new(Sink::new(SCOPE, exporters.clone(), Arc::new(OnceLock::new())));
        tracing::info!(collector = shown, share = sampler.ratio(), "what the roles do is traced");
        Ok(Self { running: Some((Tracer::on(sampler, Some(sink)), exporters)) })
    }

    /// Starts spans.
    pub(crate) fn tracer(&self) -> Tracer {
        self.running.as_ref().map_or_else(Tracer::off, |(tracer, _)| tracer.clone())
    }

    /// Sends what waits, for `limit` at most. Call it after the roles have ended.
    pub(crate) async fn shutdown(self, limit: Duration) {
        let Some((_, exporters)) = self.running else { return };
        if !mecha_otlp::flush(exporters, Arc::new(OnceLock::new()), limit).await {
            tracing::warn!("not all traces could be exported within {limit:?}");
        }
    }
}

/// The variables, with what flags say instead.
fn environment(common: &Common, lookup: &dyn Fn(&str) -> Option<String>, warnings: &mut Vec<String>) -> OtelEnv {
    let mut env = OtelEnv::read(lookup, warnings);
    if let Some(endpoint) = &common.trace_endpoint {
        env.endpoint = Some(endpoint.clone());
    }
    if let Some(protocol) = common.trace_protocol {
        let protocol = match protocol {
            TraceProtocol::Grpc => OtlpProtocol::Grpc,
            TraceProtocol::Http => OtlpProtocol::Http,
        };
        env.protocol = Some(protocol.as_str().to_owned());
    }
    if let Some(share) = common.trace_share {
        env.sampler = Some(Sampler::new(share));
    }
    env
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    fn read(arguments: &[&str], variables: &[(&str, &str)]) -> OtelEnv {
        let cli = Cli::try_parse_from([&["mecha-control", "hub"], arguments].concat()).unwrap();
        let lookup = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        environment(&cli.common, &lookup, &mut Vec::new())
    }

    #[test]
    fn nothing_is_traced_unless_somebody_names_a_collector() {
        let cli = Cli::try_parse_from(["mecha-control", "hub"]).unwrap();
        assert!(environment(&cli.common, &|_| None, &mut Vec::new()).otlp().is_none());
        assert!(Telemetry::default().tracer().mode() == mecha_apiserver::trace::Mode::Off);
    }

    #[test]
    fn flags_win_over_variables() {
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://variable:4317"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_TRACES_SAMPLER", "always_off"),
        ];
        let plan = read(&[], &variables).otlp().unwrap();
        assert_eq!((plan.protocol, plan.url.as_str()), (OtlpProtocol::Grpc, "http://variable:4317"));
        let flags = ["--trace-endpoint=http://flag:4318", "--trace-protocol=http", "--trace-share=0.5"];
        let env = read(&flags, &variables);
        let plan = env.otlp().unwrap();
        assert_eq!((plan.protocol, plan.url.as_str()), (OtlpProtocol::Http, "http://flag:4318/v1/traces"));
        assert_eq!(env.sampler.map(|s| s.ratio()), Some(0.5));
    }
}
