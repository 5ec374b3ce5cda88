//! App health: probes at once and then each interval; so many failures in a row make the app
//! unhealthy, one success makes it healthy.

use std::sync::Arc;
use std::time::Duration;

use mecha_core::Tasks;
use mecha_core::app::AppChannel;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::gate::Gate;

/// Probe settings.
#[derive(Clone, Debug)]
pub struct HealthSettings {
    /// Path; HTTP apps only.
    pub path: String,
    /// Time between probes.
    pub interval: Duration,
    /// Time for one probe.
    pub timeout: Duration,
    /// Failures in a row that count.
    pub threshold: u32,
}

/// What the probes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthEvent {
    /// No good probe yet.
    Unknown,
    /// Well.
    Healthy,
    /// Unwell.
    Unhealthy,
}

/// The running probes.
#[derive(Debug)]
pub struct AppHealth {
    state: watch::Receiver<HealthEvent>,
}

impl AppHealth {
    /// Starts probing. The app counts as unhealthy until the first good probe.
    #[must_use]
    pub fn start(app: Arc<dyn AppChannel>, gate: Arc<Gate>, settings: HealthSettings, tasks: &Tasks) -> Self {
        let (tell, state) = watch::channel(HealthEvent::Unknown);
        gate.set_healthy(false);
        let stop = tasks.stopping().clone();
        tasks.spawn("app health probes", async move {
            let mut ticks = tokio::time::interval(settings.interval);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut failures = 0;
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = stop.cancelled() => return,
                }
                let now = *tell.borrow();
                match app.probe(&settings.path, settings.timeout).await {
                    Ok(()) => {
                        failures = 0;
                        if now != HealthEvent::Healthy {
                            gate.set_healthy(true);
                            tracing::info!(target: "dapr.runtime", "App entered healthy status");
                            tell.send_replace(HealthEvent::Healthy);
                        }
                    }
                    Err(e) => {
                        failures += 1;
                        if failures >= settings.threshold && now == HealthEvent::Healthy {
                            gate.set_healthy(false);
                            tracing::warn!(target: "dapr.runtime", "App entered un-healthy status: {e}");
                            tell.send_replace(HealthEvent::Unhealthy);
                        }
                    }
                }
            }
        });
        Self { state }
    }

    /// Follows the health.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<HealthEvent> {
        self.state.clone()
    }
}
