//! The documents of a run, filtered for this app.

use std::collections::BTreeMap;

use mecha_core::loader::{Moving, Wanted};
use mecha_core::pubsub::check_rule;
use mecha_resources::{
    Component, Configuration, DEFAULT_INIT_TIMEOUT, Diagnostic, HttpEndpoint, Loaded, Located, Meta, Origin,
    Resiliency, Resource, Severity, Subscription,
};

use super::source::DocumentSet;
use crate::cli::{Mode, Options};

/// Name and type of the secret store that is there in Kubernetes mode.
const BUILT_IN_STORE: &str = "kubernetes";
const BUILT_IN_TYPE: &str = "secretstores.kubernetes";

/// Everything a runtime is built from.
#[derive(Clone, Debug, Default)]
pub(super) struct Documents {
    pub(super) configuration: Configuration,
    pub(super) components: Vec<Located<Component>>,
    pub(super) subscriptions: Vec<Located<Subscription>>,
    pub(super) endpoints: Vec<Located<HttpEndpoint>>,
    pub(super) resiliencies: Vec<Located<Resiliency>>,
    /// Moves of components between backends, by name of the component.
    pub(super) moves: BTreeMap<String, Moving>,
    /// What was found in all of them, also in those that are missing above.
    pub(super) findings: Vec<Finding>,
}

/// A finding, with the Resiliency document that it keeps out, if it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) diagnostic: Diagnostic,
    resiliency: Option<String>,
}

/// The documents of a set that concern this app. Nothing is logged: see [`report`].
pub(super) fn select(set: DocumentSet, options: &Options) -> Documents {
    let DocumentSet { configuration, loaded, moves } = set;
    let policy = |d: &Diagnostic| {
        let found = loaded.refused.iter().find(|r| r.origin.file == d.file && r.origin.document == d.document)?;
        (d.severity == Severity::Error && found.kind == Resiliency::KIND).then(|| found.meta.name.clone())
    };
    let finding = |d: &Diagnostic| Finding { resiliency: policy(d), diagnostic: d.clone() };
    let mut findings: Vec<Finding> = loaded.diagnostics.iter().map(finding).collect();
    let Loaded { components, mut subscriptions, http_endpoints, resiliencies, .. } = loaded;
    refuse_bad_rules(&mut subscriptions, options, &mut findings);
    let mut components = mine(components, options);
    components.extend(built_in_store(options, &components));
    Documents {
        configuration,
        components,
        subscriptions: mine(subscriptions, options),
        endpoints: mine(http_endpoints, options),
        resiliencies: mine(resiliencies, options),
        moves,
        findings,
    }
}

/// Logs findings. A mistake in a Resiliency document names its policy in the words that
/// operators look for.
pub(super) fn report(findings: &[Finding]) {
    for Finding { diagnostic: d, resiliency } in findings {
        match (d.severity, resiliency) {
            (Severity::Error, Some(name)) => {
                tracing::error!(target: "dapr.runtime.resiliency", "Could not read resiliency policy {name}: {d}");
            }
            (Severity::Error, None) => tracing::error!(target: "dapr.runtime.loader", "{d}"),
            (Severity::Warning, _) => tracing::warn!(target: "dapr.runtime.loader", "{d}"),
        }
    }
}

/// The secret store that nobody has to write a document for: that of the cluster the process runs in, or that
/// KUBECONFIG names. A document of its name takes its place.
fn built_in_store(options: &Options, components: &[Located<Component>]) -> Option<Located<Component>> {
    let known = options.env.in_kubernetes || options.env.kubeconfig.is_some();
    let wanted = options.mode == Mode::Kubernetes && !options.disable_builtin_k8s_secret_store && known;
    let given = components.iter().any(|c| c.value.name() == BUILT_IN_STORE);
    let compiled_in = mecha_components::left_out(BUILT_IN_TYPE).is_none();
    (wanted && !given && compiled_in).then(|| Located {
        value: Component {
            meta: Meta { name: BUILT_IN_STORE.to_owned(), ..Meta::default() },
            kind: BUILT_IN_TYPE.to_owned(),
            version: "v1".to_owned(),
            metadata: Vec::new(),
            ignore_errors: false,
            init_timeout: DEFAULT_INIT_TIMEOUT,
            secret_store: String::new(),
        },
        origin: Origin { file: "".into(), document: 0, line: 0 },
    })
}

fn mine<T: Resource>(documents: Vec<Located<T>>, options: &Options) -> Vec<Located<T>> {
    documents.into_iter().filter(|d| concerns(&d.value, options)).collect()
}

fn concerns(document: &impl Resource, options: &Options) -> bool {
    // Without NAMESPACE documents on disk are not filtered by namespace.
    document.applies_to(&options.app_id, options.env.namespace.as_deref())
}

/// Takes out subscriptions with a rule that is no expression.
fn refuse_bad_rules(subscriptions: &mut Vec<Located<Subscription>>, options: &Options, findings: &mut Vec<Finding>) {
    subscriptions.retain(|document| {
        if !concerns(&document.value, options) {
            return false;
        }
        let rules = document.routes.rules.iter().enumerate();
        let bad: Vec<_> = rules.filter_map(|(i, rule)| Some((i, check_rule(&rule.expression).err()?))).collect();
        for (i, e) in &bad {
            let message = format!("{e}; subscription {} is left out", document.name());
            let diagnostic = Diagnostic {
                document: document.origin.document,
                line: document.origin.line,
                path: format!("spec.routes.rules[{i}].match"),
                ..Diagnostic::file_error(document.origin.file.clone(), message)
            };
            findings.push(Finding { diagnostic, resiliency: None });
        }
        bad.is_empty()
    });
}

impl Documents {
    /// The components with their moves.
    pub(super) fn wanted(&self) -> Vec<Wanted> {
        let moving = |name: &str| self.moves.get(name).cloned();
        let wanted = self.components.iter().map(|d| d.value.clone());
        wanted.map(|document| Wanted { moving: moving(document.name()), document }).collect()
    }

    /// Keeps what a broken file took away: documents of `before` that are missing here and whose
    /// file has an error now. Kind, name and cause of each.
    pub(super) fn keep_broken(&mut self, before: &Self) -> Vec<(&'static str, String, String)> {
        let findings = &self.findings;
        let mut kept = Vec::new();
        keep(&mut self.components, &before.components, findings, &mut kept);
        keep(&mut self.subscriptions, &before.subscriptions, findings, &mut kept);
        keep(&mut self.endpoints, &before.endpoints, findings, &mut kept);
        keep(&mut self.resiliencies, &before.resiliencies, findings, &mut kept);
        kept
    }
}

fn keep<T: Resource + Clone>(
    now: &mut Vec<Located<T>>,
    before: &[Located<T>],
    findings: &[Finding],
    kept: &mut Vec<(&'static str, String, String)>,
) {
    for old in before.iter().filter(|old| !findings.is_empty() && !old.origin.file.is_empty()) {
        if now.iter().any(|d| d.value.name() == old.value.name()) {
            continue;
        }
        let broken = findings.iter().map(|f| &f.diagnostic);
        let broken = broken.filter(|d| d.severity == Severity::Error && d.file == old.origin.file);
        let causes: Vec<String> = broken.map(ToString::to_string).collect();
        if !causes.is_empty() {
            kept.push((T::KIND, old.value.name().to_owned(), causes.join("; ")));
            now.push(old.clone());
        }
    }
}
