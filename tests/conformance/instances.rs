//! Instances of components, made the way the daemon makes them.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use mecha_components_api::{
    BuildCx, ConfigurationStore, LockStore, Lookup, NameResolver, OutputBinding, PubSub, Registration, Registry,
    SecretStore, StateStore,
};

use crate::manifest::Recipe;

/// Everything that is compiled in.
pub(crate) static REGISTRY: LazyLock<Registry> = LazyLock::new(|| {
    let mut registry = Registry::new();
    mecha_components::register_all(&mut registry);
    registry
});

/// Prepares and builds; `app` is the app id, and with it the default consumer group.
async fn make<C: ?Sized + 'static>(
    list: &[Registration<C>],
    recipe: &Recipe,
    dir: &Path,
    app: &str,
) -> Result<Arc<C>, String> {
    let Lookup::Found(registration) = Registry::find(list, &recipe.kind, &recipe.version) else {
        return Err(format!("{} {} is not registered", recipe.kind, recipe.version));
    };
    let metadata = recipe.metadata(dir);
    if let Some((key, known)) = registration.unknown_keys(&metadata, &[]).first() {
        return Err(format!("the manifest uses the unknown metadata key {key} (known: {known:?})"));
    }
    let version = registration.versions.first().copied().unwrap_or_default();
    let version = if recipe.version.is_empty() { version } else { &recipe.version };
    let prepared = (registration.prepare)(&metadata, version).map_err(|e| e.to_string())?;
    let cx = BuildCx::for_app(app, &recipe.name, dir);
    prepared.build(&cx).await.map_err(|e| e.to_string())
}

pub(crate) async fn state(recipe: &Recipe, dir: &Path) -> Result<Arc<dyn StateStore>, String> {
    make(&REGISTRY.state, recipe, dir, "conformance").await
}

pub(crate) async fn pubsub(recipe: &Recipe, dir: &Path, group: &str) -> Result<Arc<dyn PubSub>, String> {
    make(&REGISTRY.pubsub, recipe, dir, group).await
}

pub(crate) async fn secrets(recipe: &Recipe, dir: &Path) -> Result<Arc<dyn SecretStore>, String> {
    make(&REGISTRY.secrets, recipe, dir, "conformance").await
}

pub(crate) async fn output(recipe: &Recipe, dir: &Path) -> Result<Arc<dyn OutputBinding>, String> {
    make(&REGISTRY.output, recipe, dir, "conformance").await
}

pub(crate) async fn configuration(recipe: &Recipe, dir: &Path) -> Result<Arc<dyn ConfigurationStore>, String> {
    make(&REGISTRY.configuration, recipe, dir, "conformance").await
}

pub(crate) async fn lock(recipe: &Recipe, dir: &Path) -> Result<Arc<dyn LockStore>, String> {
    make(&REGISTRY.lock, recipe, dir, "conformance").await
}

pub(crate) async fn resolver(recipe: &Recipe, dir: &Path) -> Result<Arc<dyn NameResolver>, String> {
    make(&REGISTRY.resolvers, recipe, dir, "conformance").await
}
