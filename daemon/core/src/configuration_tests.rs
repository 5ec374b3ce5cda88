use std::time::Duration;

use mecha_components_api::{Component, ConfigurationStore, Result, async_trait};
use tokio::sync::broadcast;

use super::*;
use crate::ops::Ops;
use crate::store::{Handle, Info};

/// A store with fixed values that tells its watchers what a test sends.
#[derive(Debug)]
struct Fake {
    values: Changes,
    told: broadcast::Sender<Changes>,
}

#[async_trait]
impl Component for Fake {}

#[async_trait]
impl ConfigurationStore for Fake {
    async fn get(&self, keys: &[&str], _: &Metadata) -> Result<Changes> {
        let wanted = self.values.iter().filter(|(key, _)| keys.is_empty() || keys.contains(&key.as_str()));
        Ok(wanted.map(|(key, item)| (key.clone(), item.clone())).collect())
    }

    async fn watch(
        &self,
        _: Vec<String>,
        _: Metadata,
        out: mpsc::Sender<Changes>,
        stop: CancellationToken,
    ) -> Result<()> {
        let mut told = self.told.subscribe();
        loop {
            tokio::select! {
                changes = told.recv() => drop(out.send(changes.unwrap()).await),
                () = stop.cancelled() => return Ok(()),
            }
        }
    }
}

fn changes(pairs: &[(&str, &str)]) -> Changes {
    let item = |value: &str| ConfigItem { value: value.into(), version: "1".into(), ..ConfigItem::default() };
    pairs.iter().map(|(key, value)| ((*key).to_owned(), item(value))).collect()
}

fn handle(values: &[(&str, &str)]) -> (Arc<ConfigurationHandle>, broadcast::Sender<Changes>) {
    let told = broadcast::Sender::new(8);
    let inner: Arc<dyn ConfigurationStore> = Arc::new(Fake { values: changes(values), told: told.clone() });
    let info = Info { name: "config".into(), kind: "fake".into(), version: "v1".into(), capabilities: Vec::new() };
    (Arc::new(Handle { info, ops: Ops::default(), extra: (), inner }), told)
}

async fn watched(told: &broadcast::Sender<Changes>, watchers: usize) {
    while told.receiver_count() != watchers {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn watches_move_to_the_next_instance_and_hear_what_differs_there() {
    let (store, tasks) = (Arc::new(Store::default()), Tasks::new());
    let (old, old_told) = handle(&[("same", "1"), ("other", "1"), ("gone", "1")]);
    store.edit(|s| s.configuration.insert("config".into(), old.clone())).await;
    let api = ConfigurationApi::new(store, tasks);
    let mut watch = api.subscribe("config", Vec::new(), Metadata::new()).unwrap();
    watched(&old_told, 1).await;

    let (next, next_told) = handle(&[("same", "1"), ("other", "2")]);
    assert_eq!(api.follow(&old, &next).await, 1);
    let heard = watch.changes.recv().await.unwrap();
    let values: Vec<_> = heard.iter().map(|(key, item)| (key.as_str(), item.value.as_str())).collect();
    assert_eq!(values, [("gone", ""), ("other", "2")]);
    // The old one is left, and the new one is heard under the same id.
    watched(&old_told, 0).await;
    watched(&next_told, 1).await;
    next_told.send(changes(&[("same", "3")])).unwrap();
    assert_eq!(watch.changes.recv().await.unwrap(), changes(&[("same", "3")]));

    // A store that goes takes its watches with it.
    api.forget("config");
    assert_eq!(watch.changes.recv().await, None);
}
