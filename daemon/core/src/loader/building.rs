//! A build that takes long goes on beside other changes: a backend that does not answer holds up nothing but itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mecha_components_api::Hold;
use mecha_resources::Component;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::time::timeout;

use super::instance::{Draft, Instance};
use super::{Failure, Loader};
use crate::swap::Pending;
use crate::tasks::Tasks;

/// How long other changes wait for a build; most take less.
const SOON: Duration = Duration::from_millis(250);

type Made = Result<Instance, Failure>;

/// A build that goes on. Dropping it ends the build and closes what came of it.
#[derive(Debug)]
pub(super) struct Building {
    /// What it is built from.
    pub(super) content: u64,
    pub(super) holds: Option<Hold>,
    pub(super) pending: Option<Pending>,
    made: oneshot::Receiver<Made>,
    /// Nobody waits for it any more, so its end has to be told.
    late: Arc<AtomicBool>,
    tasks: Tasks,
}

impl Building {
    /// What came of it, once it has ended.
    pub(super) fn ended(&mut self, c: &Component) -> Option<Made> {
        match self.made.try_recv() {
            Ok(made) => Some(made),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Closed) => Some(Err(lost(c))),
        }
    }

    /// The same, if that is soon. If not, [`Loader::built`] tells when it is.
    pub(super) async fn ended_soon(&mut self, c: &Component) -> Option<Made> {
        if let Ok(made) = timeout(SOON, &mut self.made).await {
            return Some(made.unwrap_or_else(|_| Err(lost(c))));
        }
        self.late.store(true, Ordering::SeqCst);
        // It may have ended just before that.
        self.ended(c)
    }
}

fn lost(c: &Component) -> Failure {
    Failure::init(c, "its build did not come to an end", false)
}

impl Drop for Building {
    fn drop(&mut self) {
        self.made.close();
        if let Ok(Ok(instance)) = self.made.try_recv() {
            self.tasks.spawn("close of what was built in vain", async move { instance.parts.close().await });
        }
    }
}

impl Loader {
    /// Begins to build what was prepared; its backend has to answer as well.
    pub(super) fn begin_build(self: &Arc<Self>, c: &Component, draft: Draft, content: u64) -> Building {
        let tasks = self.core.tasks.clone();
        let (mut made, receiver) = oneshot::channel();
        let late = Arc::new(AtomicBool::new(false));
        let is_late = late.clone();
        let (holds, loader, c) = (draft.holds.clone(), self.clone(), c.clone());
        tasks.spawn("build of a component", async move {
            let built = tokio::select! {
                built = loader.make(&c, draft, true) => built,
                () = made.closed() => return,
                () = loader.core.tasks.stopping().cancelled() => return,
            };
            if let Err(Ok(instance)) = made.send(built) {
                instance.parts.close().await;
            }
            if is_late.load(Ordering::SeqCst) {
                loader.built.notify_one();
            }
        });
        Building { content, holds, pending: None, made: receiver, late, tasks }
    }

    /// Ends when a build has ended that took long: then [`Loader::retry`] should be called.
    pub async fn built(&self) {
        self.built.notified().await;
    }
}
