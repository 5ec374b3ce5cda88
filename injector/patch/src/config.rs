//! What the cluster's platform team says once for all pods.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The injector's configuration. One ConfigMap holds it; nothing of it is secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Image of the sidecar, best by digest.
    pub image: String,
    /// Images by ring, which a pod picks with `mecha.dev/ring`.
    pub rings: BTreeMap<String, String>,
    /// `Always`, `IfNotPresent` or `Never`.
    pub image_pull_policy: String,
    /// Namespace of the control part.
    pub control_plane_namespace: String,
    /// Trust domain of the control part.
    pub trust_domain: String,
    /// Roots that peers and the control part are checked against, as PEM. What the mounted
    /// bundle says wins; this is for the time before it is there.
    pub trust_anchors: String,
    /// ConfigMap with the roots in the pod's own namespace, mounted and read again when it
    /// changes; empty: none is mounted.
    pub trust_bundle_config_map: String,
    /// Where the services of the control part are.
    pub addresses: Addresses,
    /// Audience of the projected token that proves the workload's identity.
    pub token_audience: String,
    /// Encrypt the traffic between sidecars.
    pub mtls: bool,
    /// Minor version of the API server: native sidecars need 29, see [`Placement`].
    pub kubernetes_minor: u32,
    /// User and group the sidecar runs as; 0: the image's own.
    pub run_as_user: u32,
    /// Turn strict mode on; a pod can say otherwise with `mecha.dev/strict`.
    pub strict: bool,
    /// Tolerations of virtual nodes, which ignore the image's entry point.
    pub ignore_entrypoint_tolerations: Vec<String>,
    /// Where sidecars send their spans.
    pub telemetry: Telemetry,
}

/// OpenTelemetry's own variables (`OTEL_*`) for sidecars. What a pod says with `dapr.io/env` wins. No place for
/// tokens: these come from Secrets, by `dapr.io/env-from-secret`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Telemetry {
    /// For every sidecar.
    pub variables: BTreeMap<String, String>,
    /// For the sidecars of an environment, by its CONNECT-TO namespace. They win over those for all.
    pub environments: BTreeMap<String, BTreeMap<String, String>>,
}

impl Telemetry {
    /// The variables for a sidecar in `namespace`.
    pub(crate) fn of<'t>(&'t self, namespace: &str) -> BTreeMap<&'t str, &'t str> {
        let own = self.environments.get(namespace).into_iter().flatten();
        self.variables.iter().chain(own).map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    /// The first name that is none of OpenTelemetry's.
    pub(crate) fn stranger(&self) -> Option<&str> {
        let own = self.environments.values().flatten();
        let mut names = self.variables.iter().chain(own).map(|(name, _)| name.as_str());
        names.find(|name| {
            let rest = name.strip_prefix("OTEL_").unwrap_or_default();
            rest.is_empty() || !rest.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
        })
    }
}

/// Addresses of services of the control part; an empty one is not given to the sidecar.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Addresses {
    /// Delivers documents.
    pub operator: String,
    /// Issues certificates.
    pub sentry: String,
    /// Places actors.
    pub placement: String,
    /// Runs jobs.
    pub scheduler: String,
}

/// Where the sidecar's container goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// An init container that keeps running: it starts before the app and ends after it, so
    /// Jobs end and init containers can call. Kubernetes 1.29 and newer.
    Native,
    /// An ordinary container beside the app's.
    Classic,
}

/// First minor version of Kubernetes 1 where native sidecars are on by default.
pub(crate) const NATIVE_SINCE: u32 = 29;

impl Default for Config {
    fn default() -> Self {
        Self {
            image: format!("mechad:{}", env!("CARGO_PKG_VERSION")),
            rings: BTreeMap::new(),
            image_pull_policy: "IfNotPresent".to_owned(),
            control_plane_namespace: "mecha-system".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            trust_anchors: String::new(),
            trust_bundle_config_map: "mecha-trust-bundle".to_owned(),
            addresses: Addresses::default(),
            token_audience: "dapr.io/sentry".to_owned(),
            mtls: true,
            kubernetes_minor: NATIVE_SINCE,
            run_as_user: 65_532,
            strict: true,
            ignore_entrypoint_tolerations: vec!["virtual-kubelet.io/provider".to_owned()],
            telemetry: Telemetry::default(),
        }
    }
}

impl Config {
    /// What is wrong with it, in words; `None` when it can be used.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let name = self.telemetry.stranger()?;
        Some(format!("telemetry: '{name}' is no variable of OpenTelemetry; write names such as OTEL_TRACES_SAMPLER"))
    }

    /// Whether the API server knows native sidecars.
    #[must_use]
    pub fn knows_native_sidecars(&self) -> bool {
        self.kubernetes_minor >= NATIVE_SINCE
    }
}
