//! What a role of the control part gets, and how it ends.

use std::future::Future;
use std::sync::Arc;

use kube::Client;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ready::Readiness;

/// What every role gets from the program that starts it. Clones are the same.
#[derive(Clone)]
pub struct Role {
    /// The API server.
    pub client: Client,
    /// Namespace of the control part.
    pub namespace: String,
    /// Name of this replica, such as the pod's; two replicas differ.
    pub instance: String,
    /// The tasks of the role.
    pub tasks: Tasks,
    /// Where metrics are registered, once, when the role starts. All of them begin with `mecha_`.
    pub metrics: Arc<Mutex<Registry>>,
    /// What must have happened before the program calls itself ready.
    pub ready: Readiness,
}

impl std::fmt::Debug for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Role")
            .field("namespace", &self.namespace)
            .field("instance", &self.instance)
            .finish_non_exhaustive()
    }
}

/// Owner of the tasks of a role. Tasks end by themselves soon after [`Tasks::stopping`] fires.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// No tasks yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Fires when everything is to end.
    #[must_use]
    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// Runs `task` until it ends. It has to watch [`Tasks::stopping`] itself; use this for what must finish
    /// a step before it ends.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(async move {
            task.await;
            tracing::debug!(task = name, "task has ended");
        });
    }

    /// Runs `task` until it ends or everything is to end; then it is dropped at its next await.
    pub fn run(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.spawn(name, async move {
            let _ = stop.run_until_cancelled(task).await;
        });
    }

    /// Tells all tasks to end, and waits for them. Whoever calls bounds the wait.
    pub async fn drain(&self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}
