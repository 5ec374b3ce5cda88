//! The documents of a run, read from disk and filtered for this app.

use std::path::PathBuf;

use mecha_resources::{
    Component, Configuration, Diagnostic, HttpEndpoint, Loaded, Located, Resiliency, Resource, Severity, Subscription,
    load_configuration_files, load_dirs,
};

use crate::cli::Options;

/// Everything a runtime is built from.
#[derive(Debug, Default)]
pub(super) struct Documents {
    pub(super) configuration: Configuration,
    pub(super) components: Vec<Component>,
    pub(super) subscriptions: Vec<Subscription>,
    pub(super) endpoints: Vec<HttpEndpoint>,
    pub(super) resiliencies: Vec<Resiliency>,
}

/// Reads the files that the options name. Mistakes in single documents are logged, and those
/// documents left out.
///
/// # Errors
/// A `--config` file that is missing or wrong, or a resources folder that cannot be listed.
pub(super) fn read(options: &Options, vars: &dyn Fn(&str) -> Option<String>) -> Result<Documents, String> {
    let files: Vec<PathBuf> = options.configs.iter().map(PathBuf::from).collect();
    let configuration = load_configuration_files(&files, vars)
        .map_err(|e| format!("error loading configuration: {e}"))
        .map(|loaded| {
            report(&loaded.diagnostics);
            loaded.configuration
        })?;
    let loaded = load_dirs(&options.resources_paths).map_err(|e| format!("failed to load resources: {e}"))?;
    report(&loaded.diagnostics);
    let Loaded { components, subscriptions, http_endpoints, resiliencies, .. } = loaded;
    Ok(Documents {
        configuration,
        components: mine(components, options),
        subscriptions: mine(subscriptions, options),
        endpoints: mine(http_endpoints, options),
        resiliencies: mine(resiliencies, options),
    })
}

fn mine<T: Resource>(documents: Vec<Located<T>>, options: &Options) -> Vec<T> {
    // Without NAMESPACE documents on disk are not filtered by namespace.
    let namespace = options.env.namespace.as_deref();
    documents.into_iter().map(|d| d.value).filter(|d| d.applies_to(&options.app_id, namespace)).collect()
}

fn report(diagnostics: &[Diagnostic]) {
    for d in diagnostics {
        match d.severity {
            Severity::Error => tracing::error!(target: "dapr.runtime.loader", "{d}"),
            Severity::Warning => tracing::warn!(target: "dapr.runtime.loader", "{d}"),
        }
    }
}
