//! Stores of leases.

use mecha_components_api::LockStore;
use mecha_testkit::{LOCK_CASES, LockProfile};
use tempfile::TempDir;

use crate::instances;
use crate::manifest::LockEntry;
use crate::plan::{Place, Plan, Shared};

pub(crate) fn locks(plan: &mut Plan, entries: &[LockEntry]) {
    let registry = &instances::REGISTRY.lock;
    plan.complete("lock", registry, entries.iter().map(|e| e.recipe().kind).collect());
    for entry in entries {
        let recipe = entry.recipe();
        if !plan.present("lock", &recipe, registry) {
            continue;
        }
        let title = format!("lock/{}", recipe.name);
        let declared = entry.profile();
        let instance: Shared<dyn LockStore> = Shared::new(move || {
            let recipe = recipe.clone();
            Box::pin(async move {
                // No lock store keeps files once it is built.
                let dir = TempDir::new().map_err(|e| format!("no folder: {e}"))?;
                instances::lock(&recipe, dir.path()).await
            })
        });
        let observed = instance.clone();
        plan.test(format!("{title}/declares_what_the_manifest_says"), move || {
            Box::pin(async move {
                let observed = LockProfile { fenced: observed.get().await?.fenced().is_some() };
                if observed == declared {
                    return Ok(());
                }
                Err(format!("the component is {observed:?}, tests/conformance/manifest.toml says {declared:?}"))
            })
        });
        let place = Place { title: &title, without: &|_| None };
        plan.cases(&place, LOCK_CASES.iter(), &declared, &instance);
        plan.finally(move || {
            Box::pin(async move {
                if let Some(store) = instance.made() {
                    store.close().await;
                }
            })
        });
    }
}
