//! Readiness: a list of targets that must all be ready, and the answers of the health API.

use std::sync::Arc;

use mecha_components_api::ErrorKind;
use parking_lot::Mutex;

use crate::codes::Code;
use crate::error::ApiError;

/// Life phase of the process; visible in the API, in metrics and logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Components and app channel come up.
    #[default]
    Starting,
    /// Everything runs.
    Ready,
    /// Input has stopped, work in flight finishes.
    Draining,
    /// Nothing is in flight.
    Drained,
    /// About to exit.
    Stopped,
}

impl Phase {
    /// Text of the API and of metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Stopped => "stopped",
        }
    }
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    outbound: bool,
    waiting_for: Vec<&'static str>,
}

/// Readiness of the sidecar.
#[derive(Debug)]
pub struct Health {
    app_id: Arc<str>,
    state: Mutex<State>,
    changed: tokio::sync::watch::Sender<Phase>,
}

impl Health {
    /// Not ready; waits for `targets`.
    #[must_use]
    pub fn new(app_id: Arc<str>, targets: Vec<&'static str>) -> Self {
        let state = State { phase: Phase::Starting, outbound: false, waiting_for: targets };
        Self { app_id, state: Mutex::new(state), changed: tokio::sync::watch::Sender::new(Phase::Starting) }
    }

    /// Marks one target as ready.
    pub fn reached(&self, target: &str) {
        self.state.lock().waiting_for.retain(|t| *t != target);
    }

    /// The outgoing APIs work.
    pub fn outbound_ready(&self) {
        self.state.lock().outbound = true;
    }

    /// Enters a phase.
    pub fn enter(&self, phase: Phase) {
        self.state.lock().phase = phase;
        self.changed.send_replace(phase);
    }

    /// The current phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.state.lock().phase
    }

    /// Follows the phase.
    #[must_use]
    pub fn watch(&self) -> tokio::sync::watch::Receiver<Phase> {
        self.changed.subscribe()
    }

    /// `/healthz`.
    ///
    /// # Errors
    /// Not ready, draining, or asked for another app id.
    pub fn ready(&self, asked_app_id: Option<&str>) -> Result<(), ApiError> {
        if asked_app_id.is_some_and(|id| !id.is_empty() && id != self.app_id.as_ref()) {
            return Err(ApiError::new(Code::HealthAppIdNotMatch, ErrorKind::Internal, "dapr app-id does not match"));
        }
        let state = self.state.lock();
        if state.phase == Phase::Ready {
            return Ok(());
        }
        let targets = match state.phase {
            Phase::Starting => format!("{:?}", state.waiting_for),
            phase => format!("[{}]", phase.as_str()),
        };
        Err(ApiError::new(Code::HealthNotReady, ErrorKind::Internal, format!("dapr is not ready: {targets}")))
    }

    /// `/healthz/outbound`.
    ///
    /// # Errors
    /// The outgoing APIs do not work yet.
    pub fn outbound(&self) -> Result<(), ApiError> {
        if self.state.lock().outbound {
            return Ok(());
        }
        Err(ApiError::new(Code::OutboundHealthNotReady, ErrorKind::Internal, "dapr outbound is not ready"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_in_phase_ready_and_for_the_right_app() {
        let h = Health::new("shop".into(), vec!["app"]);
        assert_eq!(h.ready(None).unwrap_err().code(), Code::HealthNotReady);
        h.reached("app");
        h.enter(Phase::Ready);
        assert!(h.ready(None).is_ok() && h.ready(Some("shop")).is_ok());
        assert_eq!(h.ready(Some("other")).unwrap_err().code(), Code::HealthAppIdNotMatch);
        h.enter(Phase::Draining);
        assert!(h.ready(None).is_err());
    }
}
