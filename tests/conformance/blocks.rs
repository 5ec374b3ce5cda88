//! Manifest entries × cases, block by block.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use mecha_components_api::{Error, NameResolver, PubSub, PubSubCaps, Result};
use mecha_testkit::{
    BINDING_CASES, BindingBench, PUBSUB_CASES, PubSubBench, PubSubProfile, RESOLVER_CASES, ResolverBench, SECRET_CASES,
    STATE_CASES, SecretBench, StateProfile,
};
use tempfile::TempDir;
use tokio::sync::Mutex;

use crate::fronts::{Members, Wire, limits};
use crate::manifest::{OutputEntry, PubSubEntry, Recipe, ResolverEntry, SecretEntry, StateEntry, fill, variables};
use crate::plan::{Ending as _, Place, Plan, Shared};
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

/// `state/sqlite/case` as it is, `state/sqlite+http/case` through a front.
fn title(block: &str, recipe: &Recipe, front: &str) -> String {
    if front == "trait" { format!("{block}/{}", recipe.name) } else { format!("{block}/{}+{front}", recipe.name) }
}

/// The daemon's front of this name; `None` is the component itself.
fn wire(recipe: &Recipe, front: &str) -> Option<Wire> {
    let wire = Wire::named(front);
    assert!(
        wire.is_some() || front == "trait",
        "conformance/manifest.toml: '{}' names the unknown front '{front}'",
        recipe.name
    );
    wire
}

/// What is left out of a front is left out by the name of a case that exists.
pub(crate) fn limits(plan: &mut Plan) {
    plan.test("fronts/limits_name_cases".to_owned(), || {
        Box::pin(async {
            let unknown = limits::unknown();
            if unknown.is_empty() { Ok(()) } else { Err(format!("fronts/limits.rs names unknown cases: {unknown:?}")) }
        })
    });
}

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
            let title = title("state", &recipe, name);
            let (wire, entry_name) = (front.wire(), recipe.name.clone());
            let declared = front.profile(entry.profile());
            let looks = Arc::clone(&front);
            let instance = Shared::new(move || {
                let (front, recipe, dir) = (Arc::clone(&front), recipe.clone(), Arc::clone(&dir));
                Box::pin(async move { front.state(&recipe, dir.path()).await })
            });
            let observed = instance.clone();
            plan.test(format!("{title}/declares_what_the_manifest_says"), move || {
                Box::pin(async move {
                    let observed = StateProfile::observed(&*observed.get().await?, &declared);
                    same(&looks.seen(observed, &declared), &declared)
                })
            });
            let without = |case: &str| limits::of("state", &entry_name, wire, case);
            let place = Place { title: &title, without: &without };
            plan.cases(&place, STATE_CASES.iter().copied().flatten(), &declared, &instance);
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
        for front in &entry.fronts {
            match wire(&recipe, front) {
                None => brokers(plan, entry),
                Some(wire) => served_brokers(plan, entry, wire),
            }
        }
    }
}

/// The broker itself.
fn brokers(plan: &mut Plan, entry: &PubSubEntry) {
    let recipe = entry.recipe();
    let (title, declared) = (format!("pubsub/{}", recipe.name), entry.profile());
    let bench = Arc::new(Brokers { recipe, dir: folder(), one_instance: entry.one_instance, made: Mutex::default() });
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
    let place = Place { title: &title, without: &|_| None };
    plan.cases(&place, PUBSUB_CASES.iter(), &declared, &instance);
    plan.finally(move || {
        Box::pin(async move {
            for broker in bench.made.lock().await.drain(..) {
                broker.close().await;
            }
        })
    });
}

/// The broker behind daemons, which are those of one case.
fn served_brokers(plan: &mut Plan, entry: &PubSubEntry, wire: Wire) {
    let recipe = entry.recipe();
    let (title, declared) = (title("pubsub", &recipe, wire.name()), entry.profile());
    let (dir, one_instance, entry_name) = (folder(), entry.one_instance, recipe.name.clone());
    let make = move || Arc::new(Members::new(wire, recipe.clone(), Arc::clone(&dir), one_instance));
    plan.test(format!("{title}/declares_what_the_manifest_says"), {
        let make = make.clone();
        move || {
            Box::pin(async move {
                let members = make();
                let broker = members.member("declaration").await.map_err(|e| e.to_string())?;
                // The metadata API does not tell what is durable and what comes again.
                let seen = PubSubCaps {
                    durable: declared.caps.durable,
                    redelivers: declared.caps.redelivers,
                    ..broker.caps()
                };
                members.end();
                same(&seen, &declared.caps)
            })
        }
    });
    // Every broker takes the batches of the API.
    let applies = PubSubProfile { caps: PubSubCaps { bulk: true, ..declared.caps }, ..declared };
    let without = |case: &str| limits::of("pubsub", &entry_name, Some(wire), case);
    let place = Place { title: &title, without: &without };
    plan.cases_apart(&place, PUBSUB_CASES.iter(), &applies, make, |members| members);
}

pub(crate) fn secrets(plan: &mut Plan, entries: &[SecretEntry]) {
    let registry = &instances::REGISTRY.secrets;
    plan.complete("secrets", registry, entries.iter().map(|e| e.recipe().kind).collect());
    for entry in entries {
        let recipe = entry.recipe();
        if !plan.present("secrets", &recipe, registry) {
            continue;
        }
        for front in &entry.fronts {
            let wire = wire(&recipe, front);
            let (title, declared) = (title("secrets", &recipe, front), entry.profile());
            let (entry, dir) = (entry.clone(), folder());
            let instance = Shared::new(move || {
                let (entry, dir) = (entry.clone(), Arc::clone(&dir));
                Box::pin(async move { secret_bench(&entry, dir.path(), wire).await.map(Arc::new) })
            });
            let observed = instance.clone();
            plan.test(format!("{title}/declares_what_the_manifest_says"), move || {
                Box::pin(async move { same(&observed.get().await?.store.caps(), &declared) })
            });
            let without = |case: &str| limits::of("secrets", &recipe.name, wire, case);
            let place = Place { title: &title, without: &without };
            plan.cases(&place, SECRET_CASES.iter(), &declared, &instance);
            plan.finally(move || {
                Box::pin(async move {
                    if let Some(bench) = instance.made() {
                        bench.store.close().await;
                    }
                })
            });
        }
    }
}

async fn secret_bench(entry: &SecretEntry, dir: &Path, wire: Option<Wire>) -> std::result::Result<SecretBench, String> {
    for (name, text) in &entry.files {
        std::fs::write(dir.join(name), text).map_err(|e| format!("cannot write {name}: {e}"))?;
    }
    let store = match wire {
        None => instances::secrets(&entry.recipe(), dir).await?,
        Some(wire) => {
            // A daemon has the variables that it was given, and no others.
            let used = entry.known.values().flat_map(BTreeMap::values).flat_map(|value| variables(value));
            let env: Vec<(String, String)> =
                used.map(|name| (name.clone(), std::env::var(name).unwrap_or_default())).collect();
            fronts::secrets(wire, &entry.recipe(), dir, &env).await?
        }
    };
    let filled = |parts: &BTreeMap<String, String>| parts.iter().map(|(k, v)| (k.clone(), fill(v, dir))).collect();
    let known = entry.known.iter().map(|(name, parts)| (name.clone(), filled(parts))).collect();
    Ok(SecretBench { store, known, unknown_is_empty: entry.unknown_is_empty })
}

pub(crate) fn output(plan: &mut Plan, entries: &[OutputEntry]) {
    let registry = &instances::REGISTRY.output;
    plan.complete("output", registry, entries.iter().map(|e| e.recipe().kind).collect());
    for entry in entries {
        let recipe = entry.recipe();
        if !plan.present("output", &recipe, registry) {
            continue;
        }
        for front in &entry.fronts {
            let wire = wire(&recipe, front);
            let title = title("output", &recipe, front);
            let (object_key, dir, made) = (entry.object_key.clone(), folder(), recipe.clone());
            let instance = Shared::new(move || {
                let (recipe, object_key, dir) = (made.clone(), object_key.clone(), Arc::clone(&dir));
                Box::pin(async move {
                    let binding = match wire {
                        None => instances::output(&recipe, dir.path()).await?,
                        Some(wire) => fronts::output(wire, &recipe, dir.path()).await?,
                    };
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
                    let mut operations: Vec<String> =
                        bench.binding.operations().iter().map(|o| (*o).to_owned()).collect();
                    operations.sort();
                    same(&operations, &declared)
                })
            });
            let without = |case: &str| limits::of("output", &recipe.name, wire, case);
            let place = Place { title: &title, without: &without };
            plan.cases(&place, BINDING_CASES.iter(), &applies, &instance);
            plan.finally(move || {
                Box::pin(async move {
                    if let Some(bench) = instance.made() {
                        bench.binding.close().await;
                    }
                })
            });
        }
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
        let place = Place { title: &title, without: &|_| None };
        plan.cases(&place, RESOLVER_CASES.iter(), &entry.profile(), &instance);
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
