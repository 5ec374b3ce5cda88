//! The documents of a run, filtered for this app.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

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
    /// Files that hold a document of ours, also of another app.
    pub(super) holding: BTreeSet<Arc<str>>,
}

/// A document that stays as it was, because what its files say now cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) cause: String,
}

/// A finding, with the Resiliency document that it keeps out, if it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) diagnostic: Diagnostic,
    resiliency: Option<String>,
}

/// The documents of a set that concern this app. Nothing is logged: see [`report`].
pub(super) fn select(set: DocumentSet, options: &Options) -> Documents {
    let DocumentSet { configuration, loaded, moves, .. } = set;
    let policy = |d: &Diagnostic| {
        let found = loaded.refused.iter().find(|r| r.origin.file == d.file && r.origin.document == d.document)?;
        (d.severity == Severity::Error && found.kind == Resiliency::KIND).then(|| found.meta.name.clone())
    };
    let finding = |d: &Diagnostic| Finding { resiliency: policy(d), diagnostic: d.clone() };
    let mut findings: Vec<Finding> = loaded.diagnostics.iter().map(finding).collect();
    let holding = holding(&loaded);
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
        holding,
    }
}

/// The files that hold a document of ours.
pub(super) fn holding(loaded: &Loaded) -> BTreeSet<Arc<str>> {
    fn files<T>(list: &[Located<T>]) -> impl Iterator<Item = Arc<str>> {
        list.iter().map(|d| d.origin.file.clone())
    }
    let Loaded { components, subscriptions, http_endpoints, resiliencies, configurations, others, .. } = loaded;
    let first = files(components).chain(files(subscriptions)).chain(files(http_endpoints));
    first.chain(files(resiliencies)).chain(files(configurations)).chain(files(others)).collect()
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

    /// Keeps what nobody took away on purpose: documents of `before` that are missing here while their file has an
    /// error, or is there without any document, as it is while it is being written; and those that several places
    /// define now.
    pub(super) fn keep_broken(&mut self, before: &Self) -> Vec<Kept> {
        let Self { components, subscriptions, endpoints, resiliencies, findings, holding, .. } = self;
        let mut kept = Vec::new();
        keep(components, &before.components, findings, holding, &mut kept);
        keep(subscriptions, &before.subscriptions, findings, holding, &mut kept);
        keep(endpoints, &before.endpoints, findings, holding, &mut kept);
        keep(resiliencies, &before.resiliencies, findings, holding, &mut kept);
        keep_ambiguous(components, &before.components, &mut kept);
        keep_ambiguous(endpoints, &before.endpoints, &mut kept);
        kept
    }
}

fn keep<T: Resource + Clone>(
    now: &mut Vec<Located<T>>,
    before: &[Located<T>],
    findings: &[Finding],
    holding: &BTreeSet<Arc<str>>,
    kept: &mut Vec<Kept>,
) {
    for old in before.iter().filter(|old| !old.origin.file.is_empty()) {
        if now.iter().any(|d| d.value.name() == old.value.name()) {
            continue;
        }
        let file = &old.origin.file;
        // A folder of too many files hides the last ones.
        let hidden = |d: &Diagnostic| Path::new(&**file).parent() == Some(Path::new(&*d.file)) && is_there(file);
        let broken = findings.iter().map(|f| &f.diagnostic);
        let broken = broken.filter(|d| d.severity == Severity::Error && (d.file == *file || hidden(d)));
        let mut causes: Vec<String> = broken.map(ToString::to_string).collect();
        if causes.is_empty() && !holding.contains(file) && is_half_written(file) {
            causes.push(format!("{file}: holds no document any more; delete the file to take away what it declared"));
        }
        if !causes.is_empty() {
            kept.push(Kept { kind: T::KIND, name: old.value.name().to_owned(), cause: causes.join("; ") });
            now.push(old.clone());
        }
    }
}

fn is_there(file: &str) -> bool {
    std::fs::symlink_metadata(file).is_ok()
}

/// Whether a file that holds no document is there and does not look as if that were meant: writers in place begin by
/// making it empty. Comments alone are meant.
fn is_half_written(file: &str) -> bool {
    if !is_there(file) || ![".yaml", ".yml"].iter().any(|end| file.ends_with(end)) {
        return false;
    }
    // A folder or a pipe in its place; the latter would wait for a writer.
    if std::fs::metadata(file).is_ok_and(|m| !m.is_file()) {
        return true;
    }
    std::fs::read_to_string(file).is_ok_and(|text| {
        let mut lines = text.lines().map(str::trim).filter(|line| !matches!(*line, "" | "---" | "...")).peekable();
        lines.peek().is_none() || lines.any(|line| !line.starts_with('#'))
    })
}

/// Of two documents of one name neither is meant for sure: the one that was there before stays, as it was.
fn keep_ambiguous<T: Resource + Clone>(now: &mut Vec<Located<T>>, before: &[Located<T>], kept: &mut Vec<Kept>) {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for d in now.iter() {
        places.entry(d.value.name().to_owned()).or_default().push(d.origin.to_string());
    }
    for (name, places) in places.into_iter().filter(|(_, places)| places.len() > 1) {
        let is_it = |d: &&Located<T>| d.value.name() == name;
        let Some(stays) = before.iter().find(is_it).or_else(|| now.iter().find(is_it)).cloned() else { continue };
        now.retain(|d| d.value.name() != name);
        now.push(stays);
        let cause = format!("it is defined {} times: {}; keep one of them", places.len(), places.join(", "));
        kept.push(Kept { kind: T::KIND, name, cause });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(name: &str, kind: &str) -> String {
        format!(
            "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {{name: {name}}}\nspec: {{type: {kind}, version: v1}}\n"
        )
    }

    fn read(folder: &std::path::Path) -> Documents {
        let loaded = mecha_resources::load_dir(folder).unwrap();
        let holding = holding(&loaded);
        let findings = loaded.diagnostics.iter().map(|d| Finding { diagnostic: d.clone(), resiliency: None }).collect();
        Documents { components: loaded.components, findings, holding, ..Documents::default() }
    }

    fn types(documents: &Documents) -> Vec<(&str, &str)> {
        let mut all: Vec<_> = documents.components.iter().map(|d| (d.value.name(), d.value.kind.as_str())).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn only_what_is_taken_away_on_purpose_goes() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        std::fs::write(file("one.yaml"), component("one", "state.a") + "---\n" + &component("two", "state.a")).unwrap();
        let before = read(folder.path());
        let step = |text: &str| {
            std::fs::write(file("one.yaml"), text).unwrap();
            let mut next = read(folder.path());
            let kept = next.keep_broken(&before);
            (next, kept)
        };
        // As it is while somebody writes it in place, whole or from the first bytes on.
        for text in ["", "\n", "---\n", "api", "apiVersion: dap"] {
            let (next, kept) = step(text);
            assert_eq!(types(&next), types(&before), "{text:?}");
            assert_eq!(kept.len(), 2, "{text:?}");
            assert!(kept[0].cause.ends_with("delete the file to take away what it declared"), "{kept:?}");
        }
        let (next, kept) = step(&(component("one", "state.a") + "---\n# gone\n"));
        assert_eq!((types(&next), kept), (vec![("one", "state.a")], vec![]));
        let (next, kept) = step("# apiVersion: dapr.io/v1alpha1\n---\n  # kind: Component\n");
        assert_eq!((types(&next), kept), (vec![], vec![]));
        std::fs::remove_file(file("one.yaml")).unwrap();
        let mut next = read(folder.path());
        assert_eq!((next.keep_broken(&before), types(&next)), (vec![], vec![]));
    }

    #[test]
    fn a_second_document_of_a_name_takes_nothing_over() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        std::fs::write(file("m.yaml"), component("one", "state.a")).unwrap();
        let before = read(folder.path());
        std::fs::write(file("a.yaml"), component("one", "state.b")).unwrap();
        std::fs::write(file("z.yaml"), component("two", "state.b")).unwrap();
        let mut next = read(folder.path());
        let kept = next.keep_broken(&before);
        assert_eq!(types(&next), [("one", "state.a"), ("two", "state.b")]);
        assert_eq!((kept.len(), kept[0].name.as_str()), (1, "one"));
        assert!(kept[0].cause.starts_with("it is defined 2 times: ") && kept[0].cause.contains("a.yaml:1"), "{kept:?}");
        // Where both are new, the first one is what a start uses, too.
        let mut first = read(folder.path());
        assert_eq!(first.keep_broken(&Documents::default()).len(), 1);
        assert_eq!(types(&first), [("one", "state.b"), ("two", "state.b")]);
    }
}
