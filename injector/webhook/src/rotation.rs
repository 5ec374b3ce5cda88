//! Certificates come and go so that at every moment each API server trusts what the webhook shows.
//!
//! A new root is registered beside the old one; when the API server shows both, and some time later for the others,
//! the webhook switches; when a pod comes through, the old root goes.

use std::time::{Duration, SystemTime};

use mecha_apiserver::Gate;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use crate::canary::{Broken, Canary};
use crate::certificate::{CertificateError, Generation, Serving};
use crate::metrics::Metrics;
use crate::options::{CertificateOptions, Options, Reach};
use crate::registrar::{Registrar, shortened};

/// Seconds of a day.
const DAY: f64 = 86_400.0;
/// Tries of a pod before the webhook counts as reachable or not.
const PROBES: u32 = 5;
const PROBE_PAUSE: Duration = Duration::from_secs(1);
/// Pause after a rotation that did not succeed.
const AGAIN: Duration = Duration::from_secs(60);
/// How often the metric about the certificate is brought up to date.
const MEASURE: Duration = Duration::from_secs(30);

/// Makes, registers and switches certificates.
pub(crate) struct Rotation {
    options: CertificateOptions,
    instance: String,
    host: String,
    registrar: Registrar,
    canary: Canary,
    metrics: Metrics,
    current: Generation,
    serving: Serving,
    /// Whether API servers trust the certificate.
    trusted: watch::Sender<bool>,
}

impl Rotation {
    /// With a first certificate, which nobody trusts yet.
    pub(crate) fn new(
        options: &Options,
        (instance, namespace): (&str, &str),
        registrar: Registrar,
        canary: Canary,
        metrics: Metrics,
    ) -> Result<(Self, Serving), CertificateError> {
        let host = match &options.reach {
            Reach::Service { name, .. } => format!("{name}.{namespace}.svc"),
            Reach::Url { host, .. } => host.clone(),
        };
        let current = Generation::make(instance, &host, options.certificate.lifetime)?;
        let serving = Serving::new(&current);
        let rotation = Self {
            options: options.certificate,
            instance: instance.to_owned(),
            host,
            registrar,
            canary,
            metrics,
            current,
            serving: serving.clone(),
            trusted: watch::Sender::new(false),
        };
        Ok((rotation, serving))
    }

    /// Becomes true when pods can come through.
    pub(crate) fn trusted(&self) -> watch::Receiver<bool> {
        self.trusted.subscribe()
    }

    /// Runs until it is dropped; opens `gate` when API servers trust the first certificate.
    pub(crate) async fn run(mut self, gate: Gate) {
        self.registrar.hold(vec![self.current.root.clone()]);
        let mut gate = Some(gate);
        tokio::select! {
            () = self.registrar.held() => {}
            () = self.registrar.unknown() => {
                tracing::warn!(
                    "the API server serves no admissionregistration.k8s.io/v1, so no pod gets a sidecar by itself; give \
                     them theirs with `mecha inject`, or switch that API on"
                );
                // What else this role does it can do.
                gate.take().into_iter().for_each(Gate::open);
                self.registrar.held().await;
            }
        }
        tokio::time::sleep(self.options.settle).await;
        if let Err(error) = self.probe().await {
            // Not a reason to stay unready: a webhook that nobody may reach mends nothing.
            tracing::warn!(%error, "the webhook is registered, and no pod came through it yet");
        }
        self.trusted.send_replace(true);
        gate.into_iter().for_each(Gate::open);
        loop {
            // The clock of the wall decides where it and ours differ, as after a suspended machine.
            self.wait(shortened(self.options.renew_after, 10), self.options.lifetime / 4).await;
            while let Err(why) = self.rotate().await {
                tracing::warn!(error = why, left = ?self.left(), "the certificate could not be replaced; it is tried again");
                self.wait(shortened(AGAIN.min(self.options.renew_after), 2), Duration::ZERO).await;
            }
        }
    }

    /// One rotation. When it fails the old certificate is in use and registered, as before.
    async fn rotate(&mut self) -> Result<(), String> {
        let next = Generation::make(&self.instance, &self.host, self.options.lifetime).map_err(|e| e.to_string())?;
        self.registrar.hold(vec![self.current.root.clone(), next.root.clone()]);
        let limit = self.left().unwrap_or_default().max(AGAIN);
        if tokio::time::timeout(limit, self.registrar.held()).await.is_err() {
            self.register_only(self.current.root.clone());
            return Err("the new root is not registered".to_owned());
        }
        tokio::time::sleep(self.options.settle).await;
        self.serving.switch(&next);
        match self.probe().await {
            // Both are registered, so going back is safe. Any other reason says nothing about certificates, and must
            // not keep this one until it expires.
            Err(error) if error.is_about_trust() && self.left().is_some() => {
                self.serving.switch(&self.current);
                self.register_only(self.current.root.clone());
                return Err(error.to_string());
            }
            _ => {}
        }
        self.current = next;
        self.register_only(self.current.root.clone());
        self.metrics.rotations.inc();
        tracing::info!(until = ?self.current.not_after, "the webhook has a new certificate");
        Ok(())
    }

    fn register_only(&self, root: CertificateDer<'static>) {
        self.registrar.hold(vec![root]);
    }

    async fn probe(&self) -> Result<(), Broken> {
        let mut tried = 0;
        loop {
            match self.canary.check().await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tried += 1;
                    if tried == PROBES {
                        return Err(error);
                    }
                }
            }
            tokio::time::sleep(PROBE_PAUSE).await;
        }
    }

    /// How long the certificate in use holds; `None` when it does no more.
    fn left(&self) -> Option<Duration> {
        self.current.not_after.duration_since(SystemTime::now()).ok()
    }

    /// Waits for `time`, or until the certificate holds for less than `least`.
    async fn wait(&self, time: Duration, least: Duration) {
        let until = tokio::time::Instant::now() + time;
        loop {
            self.metrics.certificate_days.set(self.left().unwrap_or_default().as_secs_f64() / DAY);
            let now = tokio::time::Instant::now();
            if now >= until || self.left().unwrap_or_default() < least {
                return;
            }
            tokio::time::sleep((until - now).min(MEASURE)).await;
        }
    }
}
