//! When the API server took an edit of the class, as a watch of it says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use kube::api::{ApiResource, DynamicObject, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use mecha_testkit::servers::Kubernetes;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

/// Pause before a watch that was refused is tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// Follows one class until it is dropped.
pub(crate) struct Edits {
    seen: Arc<Mutex<BTreeMap<i64, Timestamp>>>,
    task: JoinHandle<()>,
}

impl Edits {
    pub(crate) async fn follow(server: &Kubernetes) -> Self {
        let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        let resource = ApiResource {
            group: "mecha.dev".to_owned(),
            version: "v1alpha1".to_owned(),
            api_version: "mecha.dev/v1alpha1".to_owned(),
            kind: "EnvironmentClass".to_owned(),
            plural: "environmentclasses".to_owned(),
        };
        let api: Api<DynamicObject> = Api::all_with(Client::try_from(config).unwrap(), &resource);
        let seen: Arc<Mutex<BTreeMap<i64, Timestamp>>> = Arc::default();
        let noted = seen.clone();
        let task = tokio::spawn(async move {
            loop {
                let Ok(events) = api.watch(&WatchParams::default(), "0").await else {
                    tokio::time::sleep(AGAIN).await;
                    continue;
                };
                let mut events = std::pin::pin!(events);
                while let Some(Ok(event)) = events.next().await {
                    if let WatchEvent::Added(class) | WatchEvent::Modified(class) = event {
                        let generation = class.metadata.generation.unwrap_or_default();
                        noted.lock().entry(generation).or_insert_with(Timestamp::now);
                    }
                }
            }
        });
        Self { seen, task }
    }

    /// When the class became what it is now.
    pub(crate) fn latest(&self) -> Timestamp {
        self.seen.lock().last_key_value().map(|(_, at)| *at).unwrap()
    }
}

impl Drop for Edits {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The middle and the slowest but one percent of some times, in words.
pub(crate) fn spread(mut times: Vec<SignedDuration>) -> String {
    times.sort();
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100).saturating_sub(1)].as_millis();
    format!("p50 {} ms, p99 {} ms, over {} sidecars", at(50), at(99), times.len())
}
