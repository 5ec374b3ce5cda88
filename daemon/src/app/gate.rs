use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::proxy::Admission;
use async_trait::async_trait;
use mecha_components_api::{Error, ErrorKind, Retry};
use mecha_core::app::AppError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Stands before every call to the app: its concurrency limit, and its health.
#[derive(Debug)]
pub struct Gate {
    limit: Option<Arc<Semaphore>>,
    healthy: AtomicBool,
}

/// A call to the app that is under way. Keep it until the answer's last byte.
#[derive(Debug)]
pub(super) struct Pass(#[allow(dead_code, reason = "held for its drop")] Option<OwnedSemaphorePermit>);

impl Gate {
    /// A gate; the app counts as healthy until a probe says otherwise.
    #[must_use]
    pub fn new(max_concurrency: Option<NonZeroUsize>) -> Self {
        let limit = max_concurrency.map(|n| Arc::new(Semaphore::new(n.get().min(Semaphore::MAX_PERMITS))));
        Self { limit, healthy: AtomicBool::new(true) }
    }

    /// Sets the health of the app.
    pub fn set_healthy(&self, healthy: bool) {
        self.healthy.store(healthy, Ordering::Release);
    }

    /// Whether the app is healthy.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Acquire)
    }

    /// Waits for a place. Fails at once while the app is unhealthy.
    pub(super) async fn enter(&self) -> Result<Pass, AppError> {
        if !self.is_healthy() {
            let e = Error::new(ErrorKind::Internal, "app is not in a healthy state").with_retry(Retry::Always);
            return Err(AppError::transport(e));
        }
        match &self.limit {
            None => Ok(Pass(None)),
            // Never closed, so acquiring cannot fail.
            Some(limit) => Ok(Pass(limit.clone().acquire_owned().await.ok())),
        }
    }
}

#[async_trait]
impl Admission for Gate {
    async fn admit(&self) -> Result<Box<dyn Send + Sync>, String> {
        match self.enter().await {
            Ok(pass) => Ok(Box::new(pass)),
            Err(e) => Err(e.to_string()),
        }
    }
}
