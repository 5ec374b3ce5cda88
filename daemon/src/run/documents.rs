//! The documents of a run, read from disk and filtered for this app.

use std::path::PathBuf;

use mecha_core::pubsub::check_rule;
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
    let mut loaded = load_dirs(&options.resources_paths).map_err(|e| format!("failed to load resources: {e}"))?;
    report_loaded(&loaded);
    refuse_bad_rules(&mut loaded.subscriptions, options);
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
    documents.into_iter().map(|d| d.value).filter(|d| concerns(d, options)).collect()
}

fn concerns(document: &impl Resource, options: &Options) -> bool {
    // Without NAMESPACE documents on disk are not filtered by namespace.
    document.applies_to(&options.app_id, options.env.namespace.as_deref())
}

/// Drops subscriptions with a rule that is no expression, each with the place of its document.
fn refuse_bad_rules(subscriptions: &mut Vec<Located<Subscription>>, options: &Options) {
    subscriptions.retain(|document| {
        if !concerns(&document.value, options) {
            return false;
        }
        let rules = document.routes.rules.iter().enumerate();
        let bad: Vec<_> = rules.filter_map(|(i, rule)| Some((i, check_rule(&rule.expression).err()?))).collect();
        for (i, e) in &bad {
            tracing::error!(
                target: "dapr.runtime.loader",
                "{}: spec.routes.rules[{i}].match: {e}; subscription {} is left out", document.origin, document.name()
            );
        }
        bad.is_empty()
    });
}

/// Logs the findings. A mistake in a Resiliency document names its policy in the words that
/// operators look for.
fn report_loaded(loaded: &Loaded) {
    let policy = |d: &Diagnostic| {
        let found = loaded.refused.iter().find(|r| r.origin.file == d.file && r.origin.document == d.document)?;
        (d.severity == Severity::Error && found.kind == Resiliency::KIND).then_some(&found.meta.name)
    };
    for d in &loaded.diagnostics {
        match policy(d) {
            Some(name) => {
                tracing::error!(target: "dapr.runtime.resiliency", "Could not read resiliency policy {name}: {d}");
            }
            None => report(std::slice::from_ref(d)),
        }
    }
}

fn report(diagnostics: &[Diagnostic]) {
    for d in diagnostics {
        match d.severity {
            Severity::Error => tracing::error!(target: "dapr.runtime.loader", "{d}"),
            Severity::Warning => tracing::warn!(target: "dapr.runtime.loader", "{d}"),
        }
    }
}
