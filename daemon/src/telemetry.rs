//! Span export: what the Configuration's `tracing` section and `OTEL_*` ask
//! for, as a [`Tracer`] and the exporters behind it.
//!
//! Every exporter has a bounded queue and a thread of its own; a collector
//! that is slow or away costs spans, never requests.

mod config;
mod document;
mod stdout;
#[cfg(test)]
mod tests;
mod zipkin;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mecha_components_api::Secret;
use mecha_core::trace::{Mode, Sampler, SpanSink, Tracer};
use mecha_otlp::{OtelEnv, OtlpPlan, Sink, flush, resource};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanExporter};
use thiserror::Error;
use tokio::runtime::Handle;

pub use config::{ExporterPlan, OtelConfig, Plan, TracingConfig, plan};

/// Why export could not be set up.
#[derive(Debug, Error)]
#[error("cannot export traces to {exporter}: {reason}. Check the Configuration's tracing section and OTEL_* variables")]
pub struct TelemetryError {
    /// Kind and address.
    pub exporter: String,
    /// What is wrong.
    pub reason: String,
}

/// Tracing of one run of the daemon.
#[derive(Debug)]
pub struct Telemetry {
    tracer: Tracer,
    sampler: Sampler,
    processors: Arc<[BatchSpanProcessor]>,
    late: Arc<OnceLock<BatchSpanProcessor>>,
    /// An exporter that waits for its headers.
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    otlp: OtlpPlan,
    resource: Resource,
    service_name: String,
}

impl Telemetry {
    /// Starts the exporters. Connects to nothing yet. Must be called on the
    /// runtime that will carry the exporters' connections.
    pub fn start(config: &TracingConfig, env: &OtelEnv, app_id: &str) -> Result<Self, TelemetryError> {
        let plan = plan(config, env, app_id);
        for warning in &plan.warnings {
            tracing::warn!(target: "dapr.runtime", "{warning}");
        }
        let telemetry = Self::from_plan(plan, config.otel.headers_follow)?;
        tracing::info!(target: "dapr.runtime", "Dapr trace sampler initialized: {}", telemetry.sampler);
        Ok(telemetry)
    }

    /// Starts the OTLP exporter that waits for headers whose values lie in a secret store.
    /// Headers it has already, such as those of the environment, stay. Without such an
    /// exporter nothing happens. Where to call it: see [`Telemetry::start`].
    pub fn complete(&mut self, headers: Vec<(String, Secret)>) -> Result<(), TelemetryError> {
        let Some(Waiting { mut otlp, resource, service_name }) = self.waiting.take() else { return Ok(()) };
        for (name, value) in headers {
            match mecha_otlp::header(&name, value.expose()) {
                Some((name, value)) => drop(otlp.headers.entry(name).or_insert(value)),
                None => {
                    tracing::warn!(target: "dapr.runtime", "tracing.otel.headers: {name:?} is not a valid header; ignored");
                }
            }
        }
        // Set once: there is one waiting exporter at most.
        let _ = self.late.set(ExporterPlan::Otlp(otlp).build(&resource, &service_name)?);
        Ok(())
    }

    fn from_plan(plan: Plan, headers_follow: bool) -> Result<Self, TelemetryError> {
        let resource = resource(&plan.resource);
        let mut processors = Vec::new();
        let mut waiting = None;
        for exporter in plan.exporters {
            match exporter {
                ExporterPlan::Otlp(otlp) if headers_follow => {
                    let (resource, service_name) = (resource.clone(), plan.service_name.clone());
                    waiting = Some(Waiting { otlp, resource, service_name });
                }
                other => processors.push(other.build(&resource, &plan.service_name)?),
            }
        }
        let processors: Arc<[BatchSpanProcessor]> = processors.into();
        let late = Arc::new(OnceLock::new());
        let tracer = match plan.mode {
            Mode::Off => Tracer::off(),
            Mode::PassThrough => Tracer::pass_through(),
            Mode::On => {
                let sink: Option<Arc<dyn SpanSink>> = (!processors.is_empty() || waiting.is_some())
                    .then(|| Arc::new(Sink::new("mechad", Arc::clone(&processors), Arc::clone(&late))) as _);
                Tracer::on(plan.sampler, sink)
            }
        };
        Ok(Self { tracer, sampler: plan.sampler, processors, late, waiting })
    }

    /// Starts spans.
    pub fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// Sends what waits and ends the exporters, for `limit` at most. Call it
    /// after the last request. `false`: some spans may be lost.
    pub async fn shutdown(self, limit: Duration) -> bool {
        flush(self.processors, self.late, limit).await
    }
}

impl ExporterPlan {
    fn build(self, resource: &Resource, service_name: &str) -> Result<BatchSpanProcessor, TelemetryError> {
        let name = self.to_string();
        let fail = |reason: String| TelemetryError { exporter: name.clone(), reason };
        match self {
            ExporterPlan::Stdout => Ok(processor(stdout::Stdout::default(), "stdout".to_owned(), resource)),
            ExporterPlan::Zipkin { url } => {
                let exporter = zipkin::Zipkin::new(&url, service_name, runtime(&fail)?).map_err(&fail)?;
                Ok(processor(exporter, name, resource))
            }
            ExporterPlan::Otlp(otlp) => {
                let exporter = mecha_otlp::exporter(&otlp, runtime(&fail)?).map_err(&fail)?;
                Ok(processor(exporter, name, resource))
            }
        }
    }
}

fn runtime(fail: &dyn Fn(String) -> TelemetryError) -> Result<Handle, TelemetryError> {
    Handle::try_current().map_err(|error| fail(error.to_string()))
}

fn processor<E: SpanExporter + 'static>(exporter: E, name: String, resource: &Resource) -> BatchSpanProcessor {
    let report = move |spans: usize, error: &OTelSdkError| {
        tracing::warn!(target: "dapr.runtime", spans, "could not export traces to {name}: {error}");
    };
    mecha_otlp::processor(exporter, resource, Box::new(report))
}
