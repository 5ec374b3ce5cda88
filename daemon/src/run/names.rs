//! Name resolution: which resolver, and the announcement of this sidecar.

use std::sync::Arc;

use mecha_components_api::{BuildCx, Instance, Lookup, Metadata, NameResolver, Registry};
use mecha_core::Tasks;
use mecha_resources::Configuration;

use super::settings;

/// Names a SQLite file that sidecars of one machine find each other by, where the Configuration
/// names no resolver. Multicast does not work everywhere; a file does.
pub(super) const REGISTRY_VARIABLE: &str = "MECHA_NAME_REGISTRY";

/// Builds the resolver of this run.
///
/// # Errors
/// An unknown type, or settings that are not valid.
pub(super) async fn build(
    registry: &Registry,
    config: &Configuration,
    local_registry: Option<String>,
    cx: &BuildCx,
) -> Result<Arc<dyn NameResolver>, String> {
    let named = config.name_resolution.as_ref().filter(|n| !n.component.is_empty());
    let (kind, version, metadata) = match (named, local_registry) {
        (Some(n), _) => (n.component.clone(), n.version.clone(), settings::resolver_metadata(n.configuration.expose())),
        (None, Some(path)) => {
            let md: Metadata = [("connectionString", path)].into_iter().collect();
            ("sqlite".to_owned(), String::new(), md)
        }
        (None, None) => ("mdns".to_owned(), String::new(), Metadata::new()),
    };
    let full = format!("nameresolution.{kind}");
    let Lookup::Found(reg) = Registry::find(&registry.resolvers, &full, &version) else {
        let known: Vec<&str> = registry.resolvers.iter().map(|r| r.kind).collect();
        return Err(format!("couldn't find name resolver {full}/{version} (known: {})", known.join(", ")));
    };
    let version = if version.is_empty() { "v1" } else { &version };
    let prepared = (reg.prepare)(&metadata, version).map_err(|e| format!("name resolution {full}: {e}"))?;
    let resolver = prepared.build(cx).await.map_err(|e| format!("name resolution {full}: {e}"))?;
    tracing::info!(target: "dapr.runtime", "Initialized name resolution to {kind}");
    Ok(resolver)
}

/// Makes this sidecar known until `tasks` stop.
pub(super) fn announce(resolver: Arc<dyn NameResolver>, me: Instance, tasks: &Tasks) {
    let stop = tasks.stopping().clone();
    tasks.spawn("name announcement", async move {
        let app_id = me.app_id.clone();
        let up = Box::new(move || tracing::debug!(target: "dapr.runtime", "app id {app_id} is announced"));
        if let Err(e) = resolver.announce(me, up, stop).await {
            tracing::error!(target: "dapr.runtime", "other sidecars cannot find this one by name: {e}");
        }
    });
}
