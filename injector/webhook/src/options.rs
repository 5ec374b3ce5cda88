//! What the role is started with.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use mecha_apiserver::Timing;
use mecha_apiserver::trace::Tracer;
use mecha_patch::Config;

/// Settings of the role. Plain data; the program maps its flags to it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the webhook listens.
    pub listen: SocketAddr,
    /// How the API server reaches it.
    pub reach: Reach,
    /// Who writes the webhook's registration.
    pub registration: Registration,
    /// Name of the MutatingWebhookConfiguration and of the ConfigMap with [`Config`].
    pub name: String,
    /// ConfigMap of the role's namespace with the roots that sidecars trust, key `ca.crt`.
    pub trust_bundle: String,
    /// What counts before the ConfigMap is there.
    pub defaults: Config,
    /// Namespaces that are never injected, beside `kube-system` and the role's own.
    pub skipped_namespaces: Vec<String>,
    /// Minor version of the API server; asked from the server where it is not given.
    pub kubernetes_minor: Option<u32>,
    /// The serving certificate.
    pub certificate: CertificateOptions,
    /// The self-check through the API server.
    pub canary: CanaryOptions,
    /// What is done about pods that should have a sidecar and have none.
    pub repair: RepairOptions,
    /// Keep a headless Service per app.
    pub services: bool,
    /// The lease of the replica that repairs, checks and keeps Services.
    pub lease: Timing,
    /// How long the webhook goes on answering after it was told to stop: as long as others may take to notice.
    pub linger: Duration,
    /// Makes the spans of admissions.
    pub tracer: Tracer,
}

/// How the API server reaches the webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// A Service of the role's namespace.
    Service {
        /// Its name.
        name: String,
        /// Its port.
        port: u16,
    },
    /// `https://HOST:PORT/mutate`, for an API server that is outside, as in tests.
    Url {
        /// The URL.
        url: String,
        /// Its host, a name or an address, for the certificate.
        host: String,
    },
}

/// Who writes the MutatingWebhookConfiguration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registration {
    /// This role, all of it; what others change is put back.
    Whole,
    /// Somebody else, such as a chart; this role only fills in the roots (`caBundle`).
    Roots,
}

/// Settings of the serving certificate.
#[derive(Clone, Copy, Debug)]
pub struct CertificateOptions {
    /// How long a certificate holds.
    pub lifetime: Duration,
    /// When the next one is made; up to a tenth less by chance, so that replicas do not do it together.
    pub renew_after: Duration,
    /// How long API servers may take to use roots that they have stored.
    pub settle: Duration,
}

/// Settings of the self-check: a pod is created through the API server without being stored.
#[derive(Clone, Debug)]
pub struct CanaryOptions {
    /// Namespace of that pod; one that is injected.
    pub namespace: String,
    /// Time between two checks.
    pub every: Duration,
}

/// Settings of the repair.
#[derive(Clone, Copy, Debug)]
pub struct RepairOptions {
    /// Evict bare pods, so that their owner makes them anew. Without it they are only reported.
    pub evict: bool,
    /// How long a pod is only reported.
    pub after: Duration,
    /// Most evictions in a minute.
    pub per_minute: u32,
    /// Most evictions of pods of one owner in an hour.
    pub tries: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 9443),
            reach: Reach::Service { name: "mecha-injector".to_owned(), port: 443 },
            registration: Registration::Whole,
            name: "mecha-injector".to_owned(),
            trust_bundle: "mecha-trust-bundle".to_owned(),
            defaults: Config::default(),
            skipped_namespaces: Vec::new(),
            kubernetes_minor: None,
            certificate: CertificateOptions::default(),
            canary: CanaryOptions::default(),
            repair: RepairOptions::default(),
            services: true,
            lease: Timing::default(),
            linger: Duration::from_secs(5),
            tracer: Tracer::off(),
        }
    }
}

impl Default for CertificateOptions {
    fn default() -> Self {
        let hours = |n: u64| Duration::from_secs(n * 3600);
        Self { lifetime: hours(24), renew_after: hours(16), settle: Duration::from_secs(5) }
    }
}

impl Default for CanaryOptions {
    fn default() -> Self {
        Self { namespace: "default".to_owned(), every: Duration::from_secs(60) }
    }
}

impl Default for RepairOptions {
    fn default() -> Self {
        Self { evict: true, after: Duration::from_secs(20), per_minute: 10, tries: 3 }
    }
}

impl Options {
    /// Whether pods of the namespace are left alone, whatever they ask for.
    pub(crate) fn skips(&self, own: &str, namespace: &str) -> bool {
        self.skipped(own).any(|skipped| skipped == namespace)
    }

    /// Namespaces whose pods are left alone.
    pub(crate) fn skipped<'a>(&'a self, own: &'a str) -> impl Iterator<Item = &'a str> {
        ["kube-system", own].into_iter().chain(self.skipped_namespaces.iter().map(String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registrar::shortened;

    #[test]
    fn the_way_to_the_webhook_is_tried_each_minute_or_a_little_more_often() {
        let every = Options::default().canary.every;
        assert_eq!(every, Duration::from_secs(60));
        for _ in 0..100 {
            let pause = shortened(every, 10);
            assert!(pause <= every && pause >= Duration::from_secs(54), "{pause:?}");
        }
    }
}
