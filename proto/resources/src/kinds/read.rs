//! Files with documents of our kinds; what else lies beside them is left alone.

use std::path::Path;
use std::sync::Arc;

use super::object::{API_VERSION, GROUP, KindSpec, Object};
use super::{
    AppPlacement, AppPlacementSpec, CapabilityBackend, CapabilityBackendSpec, CapabilityBinding, CapabilityBindingSpec,
    CapabilityClaim, CapabilityClaimSpec, Environment, EnvironmentClass, EnvironmentClassSpec, EnvironmentSpec,
    MemberCluster, MemberClusterSpec,
};
use crate::diagnostic::{Diagnostic, Located, Origin, Severity};
use crate::load::{LoadError, read_limited, yaml_files};
use crate::text::did_you_mean;
use crate::yaml::{self, Misfit, Node};

/// A document of another API, such as a Secret.
#[derive(Clone, Debug, PartialEq)]
pub struct Foreign {
    /// Its API version.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// The whole of it. It may hold secrets.
    pub document: crate::value::OpaqueJson,
}

/// Everything that was read, by kind, in the order it was found, with all findings.
#[derive(Clone, Debug, Default)]
pub struct Documents {
    /// MemberClusters.
    pub clusters: Vec<Located<MemberCluster>>,
    /// EnvironmentClasses.
    pub classes: Vec<Located<EnvironmentClass>>,
    /// Environments.
    pub environments: Vec<Located<Environment>>,
    /// CapabilityBackends.
    pub backends: Vec<Located<CapabilityBackend>>,
    /// CapabilityClaims.
    pub claims: Vec<Located<CapabilityClaim>>,
    /// AppPlacements.
    pub placements: Vec<Located<AppPlacement>>,
    /// CapabilityBindings.
    pub bindings: Vec<Located<CapabilityBinding>>,
    /// Documents of other APIs.
    pub others: Vec<Located<Foreign>>,
    /// All findings. A document with an error is in none of the lists.
    pub diagnostics: Vec<Diagnostic>,
}

const KINDS: [&str; 7] = [
    MemberClusterSpec::KIND,
    EnvironmentClassSpec::KIND,
    EnvironmentSpec::KIND,
    CapabilityBackendSpec::KIND,
    CapabilityClaimSpec::KIND,
    AppPlacementSpec::KIND,
    CapabilityBindingSpec::KIND,
];

/// Reads every `*.yaml` and `*.yml` directly in `dir`, in the order of their names.
///
/// # Errors
/// The folder cannot be listed. Files that cannot be read are in the findings.
pub fn read_dir(dir: &Path) -> Result<Documents, LoadError> {
    let mut documents = Documents::default();
    for path in yaml_files(dir, &mut documents.diagnostics)? {
        let name = path.to_string_lossy();
        match read_limited(&path) {
            Ok(text) => documents.read_text(&name, &text),
            Err(e) => {
                documents.diagnostics.push(Diagnostic::file_error(name.into_owned(), format!("cannot be read: {e}")));
            }
        }
    }
    Ok(documents)
}

impl Documents {
    /// Whether a document had to be skipped.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|d| d.severity == Severity::Error)
    }

    /// Adds the documents of `text`, which came from `file`.
    pub fn read_text(&mut self, file: &str, text: &str) {
        let file: Arc<str> = file.into();
        let parsed = yaml::parse(text);
        for fault in parsed.faults {
            self.diagnostics.push(Diagnostic {
                document: fault.document,
                line: fault.line,
                column: fault.column,
                ..Diagnostic::file_error(Arc::clone(&file), fault.message)
            });
        }
        for document in parsed.documents {
            let origin = Origin { file: Arc::clone(&file), document: document.index, line: document.root.line };
            for (key, line, column) in &document.repeated {
                let at = Misfit {
                    path: key.clone(),
                    line: *line,
                    column: *column,
                    message: "is given twice; the last one counts".to_owned(),
                };
                self.note(&origin, at, Severity::Error);
            }
            self.read_node(&document.root, origin);
        }
    }

    fn note(&mut self, origin: &Origin, at: Misfit, severity: Severity) {
        self.diagnostics.push(Diagnostic {
            file: Arc::clone(&origin.file),
            document: origin.document,
            line: at.line,
            column: at.column,
            path: at.path,
            severity,
            message: at.message,
            suggestion: None,
        });
    }

    fn read_node(&mut self, node: &Node, origin: Origin) {
        let field = |name| node.get(name).and_then(Node::scalar_text).unwrap_or_default();
        let (version, kind) = (field("apiVersion"), field("kind"));
        if version.split('/').next() != Some(GROUP) {
            if !version.is_empty() && !kind.is_empty() {
                let document = crate::value::OpaqueJson::new(node.to_json());
                self.others.push(Located { value: Foreign { api_version: version, kind, document }, origin });
            }
            return;
        }
        let wrong = |path: &str, message: String| Misfit {
            path: path.to_owned(),
            line: node.get(path).map_or(node.line, |n| n.line),
            column: node.get(path).map_or(node.column, |n| n.column),
            message,
        };
        if version != API_VERSION {
            let message = format!("'{version}' is not served; use {API_VERSION}");
            self.note(&origin, wrong("apiVersion", message), Severity::Error);
            return;
        }
        match kind.as_str() {
            MemberClusterSpec::KIND => self.keep(node, origin, |d| &mut d.clusters),
            EnvironmentClassSpec::KIND => self.keep(node, origin, |d| &mut d.classes),
            EnvironmentSpec::KIND => self.keep(node, origin, |d| &mut d.environments),
            CapabilityBackendSpec::KIND => self.keep(node, origin, |d| &mut d.backends),
            CapabilityClaimSpec::KIND => self.keep(node, origin, |d| &mut d.claims),
            AppPlacementSpec::KIND => self.keep(node, origin, |d| &mut d.placements),
            CapabilityBindingSpec::KIND => self.keep(node, origin, |d| &mut d.bindings),
            _ => {
                let hint = did_you_mean(&kind, KINDS).map(|k| format!("; did you mean '{k}'?")).unwrap_or_default();
                let message = format!("'{kind}' is no kind of {API_VERSION}{hint}");
                self.note(&origin, wrong("kind", message), Severity::Error);
            }
        }
    }

    fn keep<S: KindSpec>(
        &mut self,
        node: &Node,
        origin: Origin,
        list: impl Fn(&mut Self) -> &mut Vec<Located<Object<S>>>,
    ) {
        let (mut object, unknown) = match yaml::from_node::<Object<S>>(node) {
            Ok(read) => read,
            Err(misfit) => return self.note(&origin, misfit, Severity::Error),
        };
        let at = |path: &str| place(node, path);
        let mut found: Vec<Misfit> = unknown;
        let mut wrong = |path: &str, message: String| {
            let (line, column) = at(path);
            found.push(Misfit { path: path.to_owned(), line, column, message });
        };
        let name = &object.metadata.name;
        if let Some(why) = name_problem(name) {
            wrong("metadata.name", why);
        }
        if S::NAMESPACED && object.metadata.namespace.is_empty() {
            object.metadata.namespace = "default".to_owned();
        } else if !S::NAMESPACED && !object.metadata.namespace.is_empty() {
            wrong("metadata.namespace", format!("{} is cluster-wide; leave the namespace out", S::KIND));
        }
        for problem in object.spec.check() {
            wrong(&problem.path, problem.message);
        }
        let repeated = list(self).iter().find(|o| o.value.key() == object.key()).map(|o| o.origin.to_string());
        if let Some(first) = repeated {
            wrong("metadata.name", format!("{} {} is defined already in {first}", S::KIND, object.key()));
        }
        let fine = found.is_empty();
        for misfit in found {
            self.note(&origin, misfit, Severity::Error);
        }
        if fine {
            list(self).push(Located { value: object, origin });
        }
    }
}

/// Why `name` is no name of an object (a DNS subdomain).
fn name_problem(name: &str) -> Option<String> {
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends = name.bytes().next().is_some_and(edge) && name.bytes().last().is_some_and(edge);
    let inside = name.bytes().all(|b| edge(b) || b == b'-' || b == b'.');
    if name.is_empty() {
        Some("is required".to_owned())
    } else if !ends || !inside || name.len() > 253 {
        Some(format!("'{name}' is no valid name: lower case letters, digits, - and . inside"))
    } else {
        None
    }
}

/// Line and column of the field at `path`, or of the nearest one around it.
fn place(root: &Node, path: &str) -> (u32, u32) {
    let mut node = root;
    for step in path.split(['.', '[']) {
        let next = match step.strip_suffix(']').and_then(|n| n.parse::<usize>().ok()) {
            Some(index) => match &node.value {
                yaml::Value::List(items) => items.get(index),
                _ => None,
            },
            None => node.get(step),
        };
        match next {
            Some(next) => node = next,
            None => break,
        }
    }
    (node.line, node.column)
}
