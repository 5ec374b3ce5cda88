use std::sync::Arc;

use arc_swap::ArcSwap;
use mecha_components_api::{ErrorKind, Metadata};
use tokio::sync::watch;

use crate::api_rules::ApiRules;
use crate::app::AppChannel;
use crate::bindings::OutputApi;
use crate::codes::Code;
use crate::configuration::ConfigurationApi;
use crate::error::ApiError;
use crate::health::Health;
use crate::identity::Identity;
use crate::invoke::Invoke;
use crate::lock::LockApi;
use crate::metadata::MetadataApi;
use crate::metrics::Metrics;
use crate::pubsub::PubSubApi;
use crate::secrets::SecretsApi;
use crate::state::StateApi;
use crate::store::Store;
use crate::swap::Swaps;
use crate::tasks::Tasks;
use crate::trace::Tracer;

/// How the process was asked to stop through the API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShutdownRequest {
    /// Nobody asked.
    #[default]
    None,
    /// Stop gracefully.
    Graceful,
    /// Answer, then exit at once.
    Forced,
    /// A component that may not fail has failed: stop gracefully, exit status 1.
    Failed,
}

/// What a runtime is made of besides its components.
#[derive(Debug)]
pub struct CoreParts {
    /// Who this sidecar is.
    pub identity: Identity,
    /// Readiness.
    pub health: Arc<Health>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Tracing.
    pub tracer: Tracer,
    /// The app.
    pub app: Option<Arc<dyn AppChannel>>,
    /// Service invocation.
    pub invoke: Arc<Invoke>,
}

/// One runtime: every API over one set of components. A rebuild (SIGHUP) makes a new one.
#[derive(Debug)]
pub struct Core {
    /// Who this sidecar is.
    pub me: Arc<Identity>,
    /// Live components.
    pub store: Arc<Store>,
    /// Background work.
    pub tasks: Tasks,
    /// Readiness.
    pub health: Arc<Health>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Tracing.
    pub tracer: Tracer,
    /// The app; `None` when the sidecar was started without an app port.
    pub app: Option<Arc<dyn AppChannel>>,
    /// State API.
    pub state: StateApi,
    /// Pub/sub API.
    pub pubsub: PubSubApi,
    /// Output binding API.
    pub output: OutputApi,
    /// Secrets API.
    pub secrets: SecretsApi,
    /// Configuration API.
    pub configuration: ConfigurationApi,
    /// Lock API.
    pub lock: LockApi,
    /// Service invocation.
    pub invoke: Arc<Invoke>,
    /// Metadata API.
    pub metadata: MetadataApi,
    /// Receipts of changes at run time.
    pub swaps: Arc<Swaps>,
    /// Allow and deny lists.
    pub api_rules: ArcSwap<ApiRules>,
    shutdown: watch::Sender<ShutdownRequest>,
}

impl Core {
    /// A runtime without components.
    #[must_use]
    pub fn new(parts: CoreParts) -> Self {
        let CoreParts { identity, health, metrics, tracer, app, invoke } = parts;
        let me = Arc::new(identity);
        let store = Arc::new(Store::default());
        let tasks = Tasks::new();
        let swaps = Arc::new(Swaps::new(metrics.clone()));
        Self {
            state: StateApi::new(store.clone(), me.clone()),
            pubsub: PubSubApi::new(store.clone(), me.clone(), metrics.clone(), tracer.clone(), tasks.clone())
                .with_app(app.clone()),
            output: OutputApi::new(store.clone()),
            secrets: SecretsApi::new(store.clone()),
            configuration: ConfigurationApi::new(store.clone(), tasks.clone()),
            lock: LockApi::new(store.clone()),
            metadata: MetadataApi::new(me.clone(), store.clone(), swaps.clone()),
            swaps,
            api_rules: ArcSwap::default(),
            shutdown: watch::Sender::new(ShutdownRequest::None),
            app,
            invoke,
            me,
            store,
            tasks,
            health,
            metrics,
            tracer,
        }
    }

    /// The app channel.
    ///
    /// # Errors
    /// `ERR_APP_CHANNEL_NIL` without an app.
    pub fn app(&self) -> Result<&Arc<dyn AppChannel>, ApiError> {
        self.app
            .as_ref()
            .ok_or_else(|| ApiError::new(Code::AppChannelNil, ErrorKind::Internal, "app channel is not initialized"))
    }

    /// The metadata document.
    #[must_use]
    pub fn document(&self) -> crate::metadata::Document {
        self.metadata.document(self.pubsub.subscriptions())
    }

    /// Asks the process to stop; the answer to the caller still goes out.
    pub fn request_shutdown(&self, forced: bool) {
        tracing::info!(target: "dapr.runtime", "Shutdown requested via API");
        self.shutdown.send_replace(if forced { ShutdownRequest::Forced } else { ShutdownRequest::Graceful });
    }

    /// Stops the process because something that may not fail has failed.
    pub fn request_failure(&self) {
        self.shutdown.send_replace(ShutdownRequest::Failed);
    }

    /// Follows shutdown requests.
    #[must_use]
    pub fn shutdown_requests(&self) -> watch::Receiver<ShutdownRequest> {
        self.shutdown.subscribe()
    }

    /// Watches configuration keys and pushes each change to the app; returns the id of the watch.
    ///
    /// # Errors
    /// No app, or unknown store.
    pub fn push_configuration(&self, store: &str, keys: Vec<String>, metadata: Metadata) -> Result<String, ApiError> {
        let app = self
            .app()
            .map_err(|e| {
                ApiError::new(e.code(), e.kind(), format!("{}. cannot subscribe to configuration updates", e.message()))
            })?
            .clone();
        let mut watch = self.configuration.subscribe(store, keys, metadata)?;
        let id = watch.id.clone();
        let store = store.to_owned();
        let stop = self.tasks.stopping().clone();
        self.tasks.spawn("configuration push", async move {
            loop {
                let changes = tokio::select! {
                    changes = watch.changes.recv() => changes,
                    () = stop.cancelled() => None,
                };
                let Some(changes) = changes else { return };
                for (key, item) in changes {
                    let items = std::collections::BTreeMap::from([(key.clone(), item)]);
                    if let Err(e) = app.configuration_event(&store, &watch.id, &key, &items).await {
                        tracing::error!(
                            target: "dapr.runtime",
                            "error sending configuration item {key} of store {store} to the app: {e}"
                        );
                    }
                }
            }
        });
        Ok(id)
    }
}
