//! Configuration stores, written to as their users write to them.

use std::sync::Arc;

use async_trait::async_trait;
use mecha_components_api::ConfigurationStore;
use mecha_testkit::{CONFIGURATION_CASES, ConfigurationBench, Failure, Outcome};
use tempfile::TempDir;

use crate::manifest::ConfigurationEntry;
use crate::plan::{Place, Plan, Shared};
use crate::{instances, servers};

/// A store, and the server behind it.
struct Settings {
    store: Arc<dyn ConfigurationStore>,
    server: String,
    _dir: TempDir,
}

#[async_trait]
impl ConfigurationBench for Settings {
    fn store(&self) -> Arc<dyn ConfigurationStore> {
        Arc::clone(&self.store)
    }

    async fn put(&self, key: &str, value: &str, version: &str) -> Outcome {
        servers::put_setting(&self.server, key, value, version).map_err(Failure::new)
    }

    async fn remove(&self, key: &str) -> Outcome {
        servers::remove_setting(&self.server, key).map_err(Failure::new)
    }
}

pub(crate) fn configuration(plan: &mut Plan, entries: &[ConfigurationEntry]) {
    let registry = &instances::REGISTRY.configuration;
    plan.complete("configuration", registry, entries.iter().map(|e| e.recipe().kind).collect());
    for entry in entries {
        let recipe = entry.recipe();
        if !plan.present("configuration", &recipe, registry) {
            continue;
        }
        let title = format!("configuration/{}", recipe.name);
        let server = entry.server.clone();
        let instance: Shared<dyn ConfigurationBench> = Shared::new(move || {
            let (recipe, server) = (recipe.clone(), server.clone());
            Box::pin(async move {
                let dir = TempDir::new().map_err(|e| format!("no folder: {e}"))?;
                let store = instances::configuration(&recipe, dir.path()).await?;
                Ok(Arc::new(Settings { store, server, _dir: dir }) as Arc<dyn ConfigurationBench>)
            })
        });
        let place = Place { title: &title, without: &|_| None };
        plan.cases(&place, CONFIGURATION_CASES.iter(), &entry.profile(), &instance);
        plan.finally(move || {
            Box::pin(async move {
                if let Some(bench) = instance.made() {
                    bench.store().close().await;
                }
            })
        });
    }
}
