//! The configuration that answers are given by, kept current from the cluster without a question in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use mecha_apiserver::{Events, Failure, Followed, Gate, Role, Selection, call, follow};
use mecha_patch::{Config, inject};
use serde_json::{Value, json};

use crate::metrics::Metrics;
use crate::options::Options;
use crate::registrar::shortened;

/// Keys of the ConfigMap that may hold the configuration; the first that is there counts.
const KEYS: [&str; 3] = ["config.yaml", "config.yml", "config.json"];
/// Key of the roots in their ConfigMap.
const ROOTS: &str = "ca.crt";
/// Largest configuration; a ConfigMap is at most 1 MiB.
const LENGTH: usize = 256 << 10;
/// How often the API server is asked for its version: it may be updated while we run.
const VERSION_EVERY: Duration = Duration::from_secs(600);
const VERSION_RETRY: Duration = Duration::from_secs(2);

/// Keeps the configuration current.
pub(crate) struct Settings {
    current: Arc<ArcSwap<Config>>,
    defaults: Config,
    /// What the ConfigMap last said that could be used.
    written: Config,
    map: Followed<ConfigMap>,
    roots: Followed<ConfigMap>,
    names: [String; 2],
    namespace: String,
    minor: Arc<AtomicU32>,
    /// The text that was refused last, so that it is complained about once.
    refused: Option<String>,
    events: Events,
    metrics: Metrics,
}

impl Settings {
    pub(crate) fn new(
        options: &Options,
        role: &Role,
        minor: Arc<AtomicU32>,
        events: Events,
        metrics: Metrics,
    ) -> (Self, Arc<ArcSwap<Config>>) {
        let one = |name: &str| -> Followed<ConfigMap> {
            let selection = Selection {
                namespace: Some(role.namespace.clone()),
                fields: Some(format!("metadata.name={name}")),
                labels: None,
            };
            follow(role.client.clone(), &selection, &role.tasks)
        };
        let current = Arc::new(ArcSwap::from_pointee(options.defaults.clone()));
        let settings = Self {
            current: current.clone(),
            defaults: options.defaults.clone(),
            written: options.defaults.clone(),
            map: one(&options.name),
            roots: one(&options.trust_bundle),
            names: [options.name.clone(), options.trust_bundle.clone()],
            namespace: role.namespace.clone(),
            minor,
            refused: None,
            events,
            metrics,
        };
        (settings, current)
    }

    /// Takes changes into use until it is dropped; opens `gate` when the first configuration is.
    pub(crate) async fn run(mut self, gate: Gate) {
        let (mut map, mut roots) = (self.map.changes(), self.roots.changes());
        self.map.listed().await;
        self.roots.listed().await;
        self.take();
        gate.open();
        loop {
            tokio::select! {
                changed = map.changed() => if changed.is_err() { return },
                changed = roots.changed() => if changed.is_err() { return },
                // The version of the API server.
                () = tokio::time::sleep(VERSION_EVERY / 10) => {}
            }
            self.take();
        }
    }

    fn take(&mut self) {
        // A ConfigMap that is gone is no order to forget what it said.
        if let Some(map) = self.map.get(&self.namespace, &self.names[0]) {
            match KEYS.iter().find_map(|key| map.data.as_ref()?.get(*key)).map_or_else(
                || Err(format!("it has none of the keys {}", KEYS.join(", "))),
                |text| read(text, &self.defaults, self.minor.load(Ordering::Relaxed)),
            ) {
                Ok(config) => {
                    self.written = config;
                    self.refused = None;
                    self.metrics.configuration_refused.set(0);
                }
                Err(why) => self.refuse(&map, why),
            }
        }
        let roots = self.roots.get(&self.namespace, &self.names[1]);
        let roots = roots.and_then(|map| map.data.as_ref()?.get(ROOTS).cloned());
        let effective = Config {
            trust_anchors: roots.unwrap_or_else(|| self.written.trust_anchors.clone()),
            kubernetes_minor: self.minor.load(Ordering::Relaxed),
            ..self.written.clone()
        };
        if self.metrics.configuration.get() == 0 || **self.current.load() != effective {
            self.current.store(Arc::new(effective));
            let generation = self.metrics.configuration.inc() + 1;
            tracing::info!(generation, "a configuration of the injector was taken into use");
        }
    }

    fn refuse(&mut self, map: &ConfigMap, why: String) {
        self.metrics.configuration_refused.set(1);
        if self.refused.as_ref() == Some(&why) {
            return;
        }
        let note = format!("The configuration is not used, the last good one stays: {why}");
        tracing::warn!(
            config_map = self.names[0],
            error = why,
            "the configuration is not used, the last good one stays"
        );
        self.events.warning(map, "ConfigurationRefused", "Configure", &note);
        self.refused = Some(why);
    }
}

/// The configuration in `text`, YAML or JSON. What it does not say is as in `defaults`.
fn read(text: &str, defaults: &Config, minor: u32) -> Result<Config, String> {
    if text.len() > LENGTH {
        return Err(format!("it is longer than {LENGTH} bytes"));
    }
    // First as it is: errors name the line.
    serde_saphyr::from_str::<Config>(text).map_err(|e| e.to_string())?;
    let said: Value = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    let mut whole = serde_json::to_value(defaults).map_err(|e| e.to_string())?;
    overlay(&mut whole, said);
    let config: Config = serde_json::from_value(whole).map_err(|e| e.to_string())?;
    if !["Always", "IfNotPresent", "Never"].contains(&config.image_pull_policy.as_str()) {
        let policy = &config.image_pull_policy;
        return Err(format!("imagePullPolicy is '{policy}'; write Always, IfNotPresent or Never"));
    }
    if let Some(problem) = config.problem() {
        return Err(problem);
    }
    // Whatever would deny every pod denies this one.
    let plain = json!({
        "metadata": {"name": "any", "annotations": {"dapr.io/enabled": "true"}},
        "spec": {"containers": [{"name": "app"}]},
    });
    let tried = Config { kubernetes_minor: minor, ..config.clone() };
    inject(&plain, "default", &tried).map_err(|denied| format!("no pod could be injected with it: {denied}"))?;
    Ok(config)
}

/// Puts what `said` says over `base`.
fn overlay(base: &mut Value, said: Value) {
    match (base, said) {
        (Value::Object(base), Value::Object(said)) => {
            for (key, value) in said {
                overlay(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, said) => *base = said,
    }
}

/// The minor version of the API server: of the one that it plays, since that says what it knows.
pub(crate) async fn minor_version(client: &Client) -> Result<u32, Failure> {
    let version = call(client.apiserver_version()).await?;
    let minor = version.emulation_minor.unwrap_or(version.minor);
    // Some providers write `30+`.
    let digits: String = minor.chars().take_while(char::is_ascii_digit).collect();
    Ok(digits.parse().unwrap_or_else(|_| {
        tracing::warn!(minor, "the API server's version cannot be read; the oldest known is assumed");
        0
    }))
}

/// Asks for the version until there is an answer, then again and again.
pub(crate) async fn follow_version(client: Client, minor: Arc<AtomicU32>) {
    loop {
        let pause = match minor_version(&client).await {
            Ok(version) => {
                minor.store(version, Ordering::Relaxed);
                VERSION_EVERY
            }
            Err(error) => {
                tracing::debug!(%error, "the API server does not tell its version");
                VERSION_RETRY
            }
        };
        tokio::time::sleep(shortened(pause, 10)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_text_does_not_say_is_as_the_program_was_started() {
        let mut defaults = Config { control_plane_namespace: "platform".to_owned(), ..Config::default() };
        defaults.addresses.operator = "agent.platform:443".to_owned();
        let config =
            read("image: mechad@sha256:1\nrings: {canary: 'mechad:2'}\naddresses: {sentry: 's:1'}\n", &defaults, 36)
                .unwrap();
        assert_eq!(config.image, "mechad@sha256:1");
        assert_eq!(config.rings["canary"], "mechad:2");
        assert_eq!(config.control_plane_namespace, "platform");
        assert_eq!(
            (config.addresses.operator.as_str(), config.addresses.sentry.as_str()),
            ("agent.platform:443", "s:1")
        );
        assert_eq!(read("{\"image\": \"a\"}", &defaults, 36).unwrap().image, "a");
        assert_eq!(read("{}", &defaults, 36).unwrap(), defaults);
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_the_reason() {
        for (text, reason) in [
            ("imagePullPolicy: Sometimes", "imagePullPolicy"),
            ("image: ''", "image"),
            ("imgae: a", "imgae"),
            ("telemetry: {variables: {LD_PRELOAD: x}}", "LD_PRELOAD"),
            ("strict: perhaps", "line"),
            ("[", ""),
        ] {
            let why = read(text, &Config::default(), 36).unwrap_err();
            assert!(why.contains(reason), "{text}: {why}");
        }
        assert!(read(&"# ".repeat(LENGTH), &Config::default(), 36).unwrap_err().contains("longer"));
    }
}
