//! The configuration API: reads, and watches that push into a sink.

use std::collections::HashMap;
use std::sync::Arc;

use mecha_components_api::{CancellationToken, Changes, ConfigItem, ErrorKind, Metadata};
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
/// What reading both instances of a store that is swapped may take, and what its differences
/// may wait for a slow receiver.
const COMPARE_LIMIT: std::time::Duration = std::time::Duration::from_secs(2);

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
    /// Ends the reading of the present instance only.
    reading: CancellationToken,
    keys: Vec<String>,
    metadata: Metadata,
    /// The reader has the strong one, so that the receiver learns when it ends.
    out: mpsc::WeakSender<Changes>,
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
        let reading = stop.child_token();
        let watch = Watch {
            store: store.to_owned(),
            stop: stop.clone(),
            reading: reading.clone(),
            keys: keys.clone(),
            metadata: metadata.clone(),
            out: out.downgrade(),
        };
        self.watches.lock().insert(id.clone(), watch);
        self.read(h, keys, metadata, out, reading);
        Ok(Subscription { id, changes, watches: self.watches.clone(), stop })
    }

    /// Moves the watches of a store to its next instance and sends what differs there. Each is
    /// on the new instance before it leaves the old one. Returns how many there are.
    pub async fn follow(&self, before: &ConfigurationHandle, next: &Arc<ConfigurationHandle>) -> usize {
        let name = next.info.name.as_ref();
        let mut moved = Vec::new();
        {
            let mut watches = self.watches.lock();
            for watch in watches.values_mut().filter(|w| w.store == name) {
                let Some(out) = watch.out.upgrade() else { continue };
                let old = std::mem::replace(&mut watch.reading, watch.stop.child_token());
                moved.push((watch.keys.clone(), watch.metadata.clone(), out, old, watch.reading.clone()));
            }
        }
        let count = moved.len();
        for (keys, metadata, out, old, reading) in moved {
            self.read(next.clone(), keys.clone(), metadata.clone(), out.clone(), reading);
            let names: Vec<&str> = keys.iter().map(String::as_str).collect();
            let read = |h: &'_ ConfigurationHandle| {
                let inner = h.inner.clone();
                let (names, metadata) = (&names, &metadata);
                async move { tokio::time::timeout(COMPARE_LIMIT, inner.get(names, metadata)).await.ok()?.ok() }
            };
            if let (Some(was), Some(mut now)) = tokio::join!(read(before), read(next)) {
                for key in was.keys().filter(|key| !now.contains_key(*key)).cloned().collect::<Vec<_>>() {
                    now.insert(key, ConfigItem::default());
                }
                now.retain(|key, item| was.get(key).is_none_or(|old| old.value != item.value));
                if !now.is_empty() {
                    let _ = tokio::time::timeout(COMPARE_LIMIT, out.send(now)).await;
                }
            }
            old.cancel();
        }
        count
    }

    /// Ends the watches of a store that is gone.
    pub fn forget(&self, store: &str) {
        let mut watches = self.watches.lock();
        for watch in watches.values().filter(|w| w.store == store) {
            watch.stop.cancel();
        }
        watches.retain(|_, w| w.store != store);
    }

    fn read(
        &self,
        h: Arc<ConfigurationHandle>,
        keys: Vec<String>,
        metadata: Metadata,
        out: mpsc::Sender<Changes>,
        ends: CancellationToken,
    ) {
        self.tasks.spawn("configuration watch", async move {
            if let Err(e) = h.inner.watch(keys, metadata, out, ends).await {
                tracing::error!(target: "dapr.runtime", "watching configuration store {} failed: {e}", h.info.name);
            }
        });
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

#[cfg(test)]
#[path = "configuration_tests.rs"]
mod tests;
