//! The configuration API: reads, and watches that push into a sink.

use std::collections::HashMap;
use std::sync::Arc;

use mecha_components_api::{CancellationToken, Changes, ErrorKind, Metadata};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::codes::Code;
use crate::cx::Cx;
use crate::error::{ApiError, Detail, Shape};
use crate::ops::Operation;
use crate::store::{ConfigurationHandle, Found, Store, degraded_error};
use crate::tasks::Tasks;

/// Changes that may wait for a slow receiver before the store is held back.
const PENDING_CHANGES: usize = 64;

/// The configuration API.
#[derive(Debug)]
pub struct ConfigurationApi {
    store: Arc<Store>,
    tasks: Tasks,
    watches: Arc<Mutex<HashMap<String, Watch>>>,
}

#[derive(Debug)]
struct Watch {
    store: String,
    stop: CancellationToken,
}

/// A running watch. Dropping it ends the watch.
#[derive(Debug)]
pub struct Subscription {
    /// Id for unsubscribing.
    pub id: String,
    /// The changes.
    pub changes: mpsc::Receiver<Changes>,
    watches: Arc<Mutex<HashMap<String, Watch>>>,
    stop: CancellationToken,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.stop.cancel();
        self.watches.lock().remove(&self.id);
    }
}

impl ConfigurationApi {
    /// The API over the live snapshot.
    #[must_use]
    pub fn new(store: Arc<Store>, tasks: Tasks) -> Self {
        Self { store, tasks, watches: Arc::default() }
    }

    fn handle(&self, store: &str, code: Code) -> Result<Arc<ConfigurationHandle>, ApiError> {
        let info = |e: ApiError| {
            let reason = e.code().as_str().into();
            e.with_detail(Detail::ErrorInfo { reason, metadata: None }).with_shape(Shape::PlainHttp)
        };
        match self.store.configuration(store) {
            Found::Running(handle) => Ok(handle),
            Found::Degraded(cause) => {
                let e = degraded_error(store, &cause);
                Err(info(ApiError::component(code, &e, e.to_string())))
            }
            Found::Unknown => Err(info(ApiError::new(
                Code::ConfigurationStoreNotFound,
                ErrorKind::InvalidArgument,
                format!("configuration store {store} not found"),
            ))),
            Found::NoneConfigured => Err(info(ApiError::new(
                Code::ConfigurationStoreNotConfigured,
                ErrorKind::FailedPrecondition,
                "configuration stores not configured",
            ))),
        }
    }

    /// Reads the named keys, or all.
    ///
    /// # Errors
    /// Unknown store, or the store's failure.
    pub async fn get(&self, cx: &Cx, store: &str, keys: &[&str], metadata: &Metadata) -> Result<Changes, ApiError> {
        let h = self.handle(store, Code::ConfigurationGet)?;
        h.ops.run(cx, Operation::Get, true, || h.inner.get(keys, metadata)).await.map_err(|e| {
            let text = format!("failed to get {keys:?} from Configuration store {store}: {e}");
            ApiError::component(Code::ConfigurationGet, &e, text)
                .with_detail(Detail::ErrorInfo { reason: Code::ConfigurationGet.as_str().into(), metadata: None })
                .with_shape(Shape::PlainHttp)
        })
    }

    /// Starts a watch.
    ///
    /// # Errors
    /// Unknown store. Later failures of the store are retried inside the component.
    pub fn subscribe(&self, store: &str, keys: Vec<String>, metadata: Metadata) -> Result<Subscription, ApiError> {
        let h = self.handle(store, Code::ConfigurationSubscribe)?;
        let (out, changes) = mpsc::channel(PENDING_CHANGES);
        let id = uuid::Uuid::new_v4().to_string();
        let stop = self.tasks.stopping().child_token();
        self.watches.lock().insert(id.clone(), Watch { store: store.to_owned(), stop: stop.clone() });
        let (name, ends) = (store.to_owned(), stop.clone());
        self.tasks.spawn("configuration watch", async move {
            if let Err(e) = h.inner.watch(keys, metadata, out, ends).await {
                tracing::error!(target: "dapr.runtime", "watching configuration store {name} failed: {e}");
            }
        });
        Ok(Subscription { id, changes, watches: self.watches.clone(), stop })
    }

    /// Ends a watch.
    ///
    /// # Errors
    /// Unknown store, or no watch of it with this id.
    pub fn unsubscribe(&self, store: &str, id: &str) -> Result<(), ApiError> {
        self.handle(store, Code::ConfigurationUnsubscribe)?;
        let mut watches = self.watches.lock();
        match watches.get(id) {
            Some(watch) if watch.store == store => {
                watch.stop.cancel();
                watches.remove(id);
                Ok(())
            }
            _ => Err(ApiError::new(
                Code::ConfigurationUnsubscribe,
                ErrorKind::Internal,
                format!("failed to unsubscribe to configuration request {id}: subscription does not exist"),
            )),
        }
    }
}
