//! Manifest entries × cases, block by block.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use mecha_components_api::{Error, NameResolver, PubSub, Result};
use mecha_testkit::{
    BINDING_CASES, BindingBench, PUBSUB_CASES, PubSubBench, PubSubProfile, RESOLVER_CASES, ResolverBench, SECRET_CASES,
    STATE_CASES, SecretBench, StateProfile,
};
use tempfile::TempDir;
use tokio::sync::Mutex;

use crate::manifest::{OutputEntry, PubSubEntry, Recipe, ResolverEntry, SecretEntry, StateEntry, fill};
use crate::plan::{Plan, Shared};
use crate::{fronts, instances};

fn folder() -> Arc<TempDir> {
    match TempDir::new() {
        Ok(dir) => Arc::new(dir),
        Err(e) => panic!("cannot make a folder for the components: {e}"),
    }
}

fn same<T: PartialEq + Debug>(observed: &T, declared: &T) -> std::result::Result<(), String> {
    if observed == declared {
        return Ok(());
    }
    Err(format!(
        "the component and tests/conformance/manifest.toml disagree\n component: {observed:?}\n  manifest: {declared:?}"
    ))
}

/// `state/sqlite/case` as it is, `state/sqlite+slow/case` through a front.
pub(crate) fn state(plan: &mut Plan, entries: &[StateEntry]) {
    let registry = &instances::REGISTRY.state;
    plan.complete("state", registry, entries.iter().map(|e| e.recipe().kind).collect());
    let fronts = fronts::all();
    for entry in entries {
        let recipe = entry.recipe();
        if !plan.present("state", &recipe, registry) {
            continue;
        }
        for name in &entry.fronts {
            let Some(front) = fronts.iter().find(|f| f.name() == name) else {
                panic!("conformance/manifest.toml: '{}' names the unknown front '{name}'", recipe.name);
            };
            let (front, recipe, dir) = (Arc::clone(front), recipe.clone(), folder());
            let title = if name == "trait" {
                format!("state/{}", recipe.name)
            } else {
                format!("state/{}+{name}", recipe.name)
            };
            let declared = front.profile(entry.profile());
            let instance = Shared::new(move || {
                let (front, recipe, dir) = (Arc::clone(&front), recipe.clone(), Arc::clone(&dir));
                Box::pin(async move { front.state(&recipe, dir.path()).await })
            });
            let observed = instance.clone();
            plan.test(format!("{title}/declares_what_the_manifest_says"), move || {
                Box::pin(async move { same(&StateProfile::observed(&*observed.get().await?, &declared), &declared) })
            });
            plan.cases(&title, STATE_CASES.iter().copied().flatten(), &declared, &instance);
            plan.finally(move || {
                Box::pin(async move {
                    if let Some(store) = instance.made() {
                        store.close().await;
                    }
                })
            });
        }
    }
}

/// Connects members as sidecars would: same metadata, the group as app id.
struct Brokers {
    recipe: Recipe,
    dir: Arc<TempDir>,
    one_instance: bool,
    made: Mutex<Vec<Arc<dyn PubSub>>>,
}

#[async_trait]
impl PubSubBench for Brokers {
    async fn member(&self, group: &str) -> Result<Arc<dyn PubSub>> {
        let mut made = self.made.lock().await;
        if let (true, Some(first)) = (self.one_instance, made.first()) {
            return Ok(Arc::clone(first));
        }
        let broker = instances::pubsub(&self.recipe, self.dir.path(), group).await.map_err(Error::unavailable)?;
        made.push(Arc::clone(&broker));
        Ok(broker)
    }
}

pub(crate) fn pubsub(plan: &mut Plan, entries: &[PubSubEntry]) {
    let registry = &instances::REGISTRY.pubsub;
    plan.complete("pubsub", registry, entries.iter().map(|e| e.recipe().kind).collect());
    for entry in entries {
        let recipe = entry.recipe();
        if !plan.present("pubsub", &recipe, registry) {
            continue;
        }
        let (title, declared) = (format!("pubsub/{}", recipe.name), entry.profile());
        let bench =
            Arc::new(Brokers { recipe, dir: folder(), one_instance: entry.one_instance, made: Mutex::default() });
        let instance: Shared<dyn PubSubBench> = Shared::new({
            let bench = Arc::clone(&bench);
            move || {
                let bench: Arc<dyn PubSubBench> = bench.clone();
                Box::pin(async move { Ok(bench) })
            }
        });
        plan.test(format!("{title}/declares_what_the_manifest_says"), {
            let bench = Arc::clone(&bench);
            move || {
                Box::pin(async move {
                    let broker = bench.member("declaration").await.map_err(|e| e.to_string())?;
                    same(&broker.bulk().is_some(), &broker.caps().bulk)?;
                    same(&PubSubProfile { caps: broker.caps(), ..declared }, &declared)
                })
            }
        });
        plan.cases(&title, PUBSUB_CASES.iter(), &declared, &instance);
        plan.finally(move || {
            Box::pin(async move {
                for broker in bench.made.lock().await.drain(..) {
                    broker.close().await;
                }
            })
        });
    }
}

pub(crate) fn secrets(plan: &mut Plan, entries: &[SecretEntry]) {
    let registry = &instances::REGISTRY.secrets;
    plan.complete("secrets", registry, entries.iter().map(|e| e.recipe().kind).collect());
    for entry in entries {
        let recipe = entry.recipe();
        if !plan.present("secrets", &recipe, registry) {
            continue;
        }
        let (title, declared) = (format!("secrets/{}", recipe.name), entry.profile());
        let (entry, dir) = (entry.clone(), folder());
        let instance = Shared::new(move || {
            let (entry, dir) = (entry.clone(), Arc::clone(&dir));
            Box::pin(async move {
                for (name, text) in &entry.files {
                    std::fs::write(dir.path().join(name), text).map_err(|e| format!("cannot write {name}: {e}"))?;
                }
                let store = instances::secrets(&entry.recipe(), dir.path()).await?;
                let filled = |parts: &BTreeMap<String, String>| {
                    parts.iter().map(|(k, v)| (k.clone(), fill(v, dir.path()))).collect()
                };
                let known = entry.known.iter().map(|(name, parts)| (name.clone(), filled(parts))).collect();
                Ok(Arc::new(SecretBench { store, known, unknown_is_empty: entry.unknown_is_empty }))
            })
        });
        let observed = instance.clone();
        plan.test(format!("{title}/declares_what_the_manifest_says"), move || {
            Box::pin(async move { same(&observed.get().await?.store.caps(), &declared) })
        });
        plan.cases(&title, SECRET_CASES.iter(), &declared, &instance);
        plan.finally(move || {
            Box::pin(async move {
                if let Some(bench) = instance.made() {
                    bench.store.close().await;
                }
            })
        });
    }
}

pub(crate) fn output(plan: &mut Plan, entries: &[OutputEntry]) {
    let registry = &instances::REGISTRY.output;
    plan.complete("output", registry, entries.iter().map(|e| e.recipe().kind).collect());
    for entry in entries {
        let recipe = entry.recipe();
        if !plan.present("output", &recipe, registry) {
            continue;
        }
        let title = format!("output/{}", recipe.name);
        let (object_key, dir) = (entry.object_key.clone(), folder());
        let instance = Shared::new(move || {
            let (recipe, object_key, dir) = (recipe.clone(), object_key.clone(), Arc::clone(&dir));
            Box::pin(async move {
                let binding = instances::output(&recipe, dir.path()).await?;
                Ok(Arc::new(BindingBench { binding, object_key }))
            })
        });
        let mut declared = entry.operations.clone();
        // Without a name for objects there are none to create and get.
        let applies = if entry.object_key.is_some() { declared.clone() } else { Vec::new() };
        declared.sort();
        let observed = instance.clone();
        plan.test(format!("{title}/declares_what_the_manifest_says"), move || {
            Box::pin(async move {
                let bench = observed.get().await?;
                let mut operations: Vec<String> = bench.binding.operations().iter().map(|o| (*o).to_owned()).collect();
                operations.sort();
                same(&operations, &declared)
            })
        });
        plan.cases(&title, BINDING_CASES.iter(), &applies, &instance);
        plan.finally(move || {
            Box::pin(async move {
                if let Some(bench) = instance.made() {
                    bench.binding.close().await;
                }
            })
        });
    }
}

/// Each member is a sidecar of its own on the same machine.
struct Resolvers {
    recipe: Recipe,
    dir: PathBuf,
    made: Mutex<Vec<Arc<dyn NameResolver>>>,
}

#[async_trait]
impl ResolverBench for Resolvers {
    async fn member(&self) -> Result<Arc<dyn NameResolver>> {
        let resolver = instances::resolver(&self.recipe, &self.dir).await.map_err(Error::unavailable)?;
        self.made.lock().await.push(Arc::clone(&resolver));
        Ok(resolver)
    }
}

pub(crate) fn resolvers(plan: &mut Plan, entries: &[ResolverEntry]) {
    let registry = &instances::REGISTRY.resolvers;
    plan.complete("resolver", registry, entries.iter().map(|e| e.recipe().kind).collect());
    for entry in entries {
        let recipe = entry.recipe();
        if !plan.present("resolver", &recipe, registry) {
            continue;
        }
        let title = format!("resolver/{}", recipe.name);
        let dir = folder();
        let bench = Arc::new(Resolvers { recipe, dir: dir.path().to_owned(), made: Mutex::default() });
        let instance: Shared<dyn ResolverBench> = Shared::new({
            let bench = Arc::clone(&bench);
            move || {
                let bench: Arc<dyn ResolverBench> = bench.clone();
                Box::pin(async move { Ok(bench) })
            }
        });
        plan.cases(&title, RESOLVER_CASES.iter(), &entry.profile(), &instance);
        plan.finally(move || {
            Box::pin(async move {
                for resolver in bench.made.lock().await.drain(..) {
                    resolver.close().await;
                }
                drop(dir);
            })
        });
    }
}
