use std::future::Future;

use mecha_components_api::CancellationToken;
use tokio_util::task::TaskTracker;

/// Owner of background work. Everything long-lived is spawned here and nowhere else, so
/// that a drain can wait for it.
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

    /// A group of tasks that stops with this one, and can be stopped and waited for alone.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { tracker: TaskTracker::new(), stop: self.stop.child_token() }
    }

    /// Fires when the tasks have to settle and end.
    #[must_use]
    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// Runs `work` until it ends by itself; it has to watch [`Tasks::stopping`]. A panic is logged.
    pub fn spawn<F>(&self, name: &'static str, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let task = tokio::spawn(work);
        self.tracker.spawn(async move {
            if let Err(e) = task.await
                && e.is_panic()
            {
                tracing::error!(target: "dapr.runtime", "task '{name}' panicked; please report this as a defect");
            }
        });
    }

    /// Asks all tasks to end, without waiting.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until all tasks have ended by themselves.
    pub async fn ended(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Asks all tasks to end and waits for them.
    pub async fn shut_down(&self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn shut_down_waits_for_every_task() {
        let tasks = Tasks::new();
        let (tx, rx) = tokio::sync::oneshot::channel();
        let stop = tasks.stopping().clone();
        tasks.spawn("worker", async move {
            stop.cancelled().await;
            let _ = tx.send(());
        });
        tasks.shut_down().await;
        assert!(rx.await.is_ok());
    }
}
