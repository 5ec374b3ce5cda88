//! OpenTelemetry's own variables.

use std::time::Duration;

use http::HeaderMap;
use mecha_trace::Sampler;

use crate::SERVICE_NAME;
use crate::plan::{DEFAULT_TIMEOUT, OtlpPlan, OtlpProtocol, header, pairs};

/// `OTEL_*`. A variable for traces wins over the one for all signals.
#[derive(Clone, Debug, Default)]
pub struct OtelEnv {
    /// `OTEL_SERVICE_NAME`.
    pub service_name: Option<String>,
    /// `OTEL_RESOURCE_ATTRIBUTES`.
    pub resource_attributes: Vec<(String, String)>,
    /// `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, else `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub endpoint: Option<String>,
    /// `…_PROTOCOL`.
    pub protocol: Option<String>,
    /// `…_INSECURE`.
    pub insecure: bool,
    /// `…_HEADERS`. Tokens are put there: values are marked as sensitive.
    pub headers: HeaderMap,
    /// `…_TIMEOUT`, milliseconds.
    pub timeout: Option<Duration>,
    /// `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`.
    pub sampler: Option<Sampler>,
    /// `OTEL_SDK_DISABLED`, or `OTEL_TRACES_EXPORTER=none`.
    pub disabled: bool,
}

impl OtelEnv {
    /// Reads them with `lookup`; mistakes cost the setting, not the start, and are added to `warnings`.
    pub fn read(lookup: &dyn Fn(&str) -> Option<String>, warnings: &mut Vec<String>) -> Self {
        let get = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
        let otlp = |name: &str| {
            get(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}")).or_else(|| get(&format!("OTEL_EXPORTER_OTLP_{name}")))
        };
        let timeout = otlp("TIMEOUT").and_then(|text| match text.trim().parse() {
            Ok(0) => None,
            Ok(ms) => Some(Duration::from_millis(ms)),
            Err(_) => {
                warnings.push(format!("OTEL_EXPORTER_OTLP_TIMEOUT: {text:?} is not a number of milliseconds; ignored"));
                None
            }
        });
        let mut headers = HeaderMap::new();
        let variable = "OTEL_EXPORTER_OTLP_HEADERS";
        for (name, value) in pairs(&otlp("HEADERS").unwrap_or_default(), variable, warnings) {
            match header(&name, &value) {
                Some((name, value)) => drop(headers.insert(name, value)),
                None => warnings.push(format!("{variable}: {name:?} is not a valid header; ignored")),
            }
        }
        let attributes = get("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
        let exporter = get("OTEL_TRACES_EXPORTER").map(|name| name.trim().to_ascii_lowercase());
        Self {
            service_name: get("OTEL_SERVICE_NAME"),
            resource_attributes: pairs(&attributes, "OTEL_RESOURCE_ATTRIBUTES", warnings),
            endpoint: otlp("ENDPOINT"),
            protocol: otlp("PROTOCOL"),
            insecure: otlp("INSECURE").is_some_and(|value| is_truthy(&value)),
            headers,
            timeout,
            sampler: sampler(&get, warnings),
            disabled: get("OTEL_SDK_DISABLED").is_some_and(|value| is_truthy(&value))
                || exporter.as_deref() == Some("none"),
        }
    }

    /// The name of the service: its variable, else `default`.
    #[must_use]
    pub fn service_name(&self, default: &str) -> String {
        self.service_name.as_deref().map_or(default, str::trim).to_owned()
    }

    /// What all spans say of the program that is called `service_name`.
    #[must_use]
    pub fn resource(&self, service_name: &str) -> Vec<(String, String)> {
        let named = (SERVICE_NAME.to_owned(), service_name.to_owned());
        let others = self.resource_attributes.iter().filter(|(key, _)| key != SERVICE_NAME);
        std::iter::once(named).chain(others.cloned()).collect()
    }

    /// The exporter that they ask for; `None` without an endpoint.
    #[must_use]
    pub fn otlp(&self) -> Option<OtlpPlan> {
        let endpoint = self.endpoint.as_deref().map(str::trim)?;
        let plan = OtlpPlan::new(OtlpProtocol::of(self.protocol.as_deref()), endpoint, self.insecure);
        Some(OtlpPlan { headers: self.headers.clone(), timeout: self.timeout.unwrap_or(DEFAULT_TIMEOUT), ..plan })
    }
}

/// The specification's samplers; those that follow no parent are taken as those that do, which differ only for
/// spans with a parent.
fn sampler(get: &dyn Fn(&str) -> Option<String>, warnings: &mut Vec<String>) -> Option<Sampler> {
    let name = get("OTEL_TRACES_SAMPLER")?;
    let name = name.trim().to_ascii_lowercase();
    let ratio = match name.strip_prefix("parentbased_").unwrap_or(&name) {
        "always_on" => 1.0,
        "always_off" => 0.0,
        "traceidratio" => {
            let argument = get("OTEL_TRACES_SAMPLER_ARG");
            let ratio = argument.as_deref().map_or(Some(1.0), |text| text.trim().parse::<f64>().ok());
            match ratio.filter(|ratio| (0.0..=1.0).contains(ratio)) {
                Some(ratio) => ratio,
                None => {
                    let argument = argument.unwrap_or_default();
                    warnings.push(format!("OTEL_TRACES_SAMPLER_ARG: {argument:?} is no number from 0 to 1; using 1"));
                    1.0
                }
            }
        }
        _ => {
            warnings.push(format!(
                "OTEL_TRACES_SAMPLER: {name:?} is not known; use always_on, always_off or traceidratio, each with or \
                 without parentbased_; ignored"
            ));
            return None;
        }
    };
    Some(Sampler::new(ratio))
}

/// The texts that mean yes.
fn is_truthy(text: &str) -> bool {
    ["y", "yes", "true", "t", "on", "1"].iter().any(|yes| text.trim().eq_ignore_ascii_case(yes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> (OtelEnv, Vec<String>) {
        let mut warnings = Vec::new();
        let lookup = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        (OtelEnv::read(&lookup, &mut warnings), warnings)
    }

    #[test]
    fn without_variables_nothing_is_exported() {
        let (env, warnings) = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]);
        assert!(env.otlp().is_none() && env.sampler.is_none() && !env.disabled && warnings.is_empty());
        assert_eq!(env.resource(&env.service_name("me")), [("service.name".into(), "me".into())]);
    }

    #[test]
    fn the_variables_of_traces_win() {
        let (env, warnings) = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4317"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces:4318/"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=a%20b, authorization=Bearer%20t"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
            ("OTEL_SERVICE_NAME", "hub"),
            ("OTEL_RESOURCE_ATTRIBUTES", "team=shop%20floor,service.name=other"),
        ]);
        assert_eq!(warnings, Vec::<String>::new());
        let plan = env.otlp().unwrap();
        assert_eq!((plan.protocol, plan.url.as_str()), (OtlpProtocol::Http, "http://traces:4318/v1/traces"));
        assert_eq!((plan.headers["x-key"].to_str().unwrap(), plan.timeout), ("a b", Duration::from_millis(250)));
        assert!(!format!("{env:?} {plan:?}").contains("Bearer"), "tokens are not shown");
        let named = [("service.name".into(), "hub".into()), ("team".into(), "shop floor".into())];
        assert_eq!(env.resource(&env.service_name("me")), named);
    }

    #[test]
    fn the_samplers_of_the_specification() {
        for (name, argument, ratio) in [
            ("always_on", "", 1.0),
            ("always_off", "0.5", 0.0),
            ("traceidratio", "0.25", 0.25),
            ("parentbased_traceidratio", "", 1.0),
            ("ParentBased_Always_On", "", 1.0),
        ] {
            let (env, warnings) = read(&[("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", argument)]);
            assert_eq!((env.sampler.map(|s| s.ratio()), warnings.len()), (Some(ratio), 0), "{name}");
        }
    }

    #[test]
    fn mistakes_cost_the_setting_and_are_said_without_values() {
        let (env, warnings) = read(&[
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "lots"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "t0ken, bad name=t0ken"),
        ]);
        assert_eq!(env.sampler.map(|s| s.ratio()), Some(1.0));
        assert_eq!((env.timeout, env.headers.len(), warnings.len()), (None, 0, 4), "{warnings:?}");
        assert!(!warnings.iter().any(|warning| warning.contains("t0ken")), "{warnings:?}");
        let (env, warnings) = read(&[("OTEL_TRACES_SAMPLER", "jaeger_remote")]);
        assert!(env.sampler.is_none() && warnings.len() == 1);
    }

    #[test]
    fn it_can_be_switched_off() {
        assert!(read(&[("OTEL_SDK_DISABLED", "true")]).0.disabled);
        assert!(read(&[("OTEL_TRACES_EXPORTER", "none")]).0.disabled);
        assert!(!read(&[("OTEL_TRACES_EXPORTER", "otlp")]).0.disabled);
    }
}
