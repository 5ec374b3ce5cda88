//! What the node says about a pod.

use serde_json::{Value, json};

use super::container::{Container, State};
use super::pod::ADDRESS;

/// A pod's phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

impl Phase {
    pub(super) fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// The pod's status. Times are left to the server's managed fields: only changes are written.
pub(super) fn of(phase: &Phase, inits: &[Container], apps: &[Container]) -> Value {
    let began = !matches!(phase, Phase::Pending);
    let natives = inits.iter().filter(|container| container.native);
    let ready = *phase == Phase::Running && apps.iter().chain(natives).all(|container| container.ready);
    let condition = |kind: &str, holds: bool| json!({"type": kind, "status": if holds { "True" } else { "False" }});
    json!({
        "phase": format!("{phase:?}"),
        "hostIP": ADDRESS,
        "podIP": ADDRESS,
        "podIPs": [{"ip": ADDRESS}],
        "conditions": [
            condition("PodScheduled", true),
            condition("Initialized", began),
            condition("ContainersReady", ready),
            condition("Ready", ready),
        ],
        "initContainerStatuses": inits.iter().map(container).collect::<Vec<_>>(),
        "containerStatuses": apps.iter().map(container).collect::<Vec<_>>(),
    })
}

fn container(container: &Container) -> Value {
    let state = match &container.state {
        State::Waiting => {
            let message = container.trouble.clone().unwrap_or_default();
            let reason = if message.is_empty() { "PodInitializing" } else { "CreateContainerError" };
            json!({"waiting": {"reason": reason, "message": message}})
        }
        State::Running(_) => json!({"running": {}}),
        State::Terminated(code) => {
            json!({"terminated": {"exitCode": code, "reason": if *code == 0 { "Completed" } else { "Error" }}})
        }
    };
    json!({
        "name": container.name,
        "image": container.spec["image"],
        "imageID": container.spec["image"],
        "ready": container.ready,
        "started": container.started,
        "restartCount": container.restarts,
        "state": state,
    })
}
