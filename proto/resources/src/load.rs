//! Reading of folders and files; the only part of this crate that touches the disk.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::component::Component;
use crate::configuration::Configuration;
use crate::decode::{Obj, Sink};
use crate::diagnostic::{Diagnostic, Located, Origin, Severity};
use crate::endpoint::HttpEndpoint;
use crate::other::Other;
use crate::resiliency::{Resiliency, unknown_policies};
use crate::subscription::Subscription;
use crate::text::{did_you_mean, expand};
use crate::value::{Meta, Resource};
use crate::yaml::{self, Node};

/// Largest file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 4 << 20;
/// Most files of one folder that are read.
pub const MAX_FILES: usize = 2_000;

const GROUP: &str = "dapr.io/";

/// Kinds with their API versions.
const KINDS: [(&str, &[&str]); 7] = [
    ("Component", &["dapr.io/v1alpha1"]),
    ("Configuration", &["dapr.io/v1alpha1"]),
    ("Subscription", &["dapr.io/v1alpha1", "dapr.io/v2alpha1"]),
    ("HTTPEndpoint", &["dapr.io/v1alpha1"]),
    ("Resiliency", &["dapr.io/v1alpha1"]),
    ("MCPServer", &["dapr.io/v1alpha1"]),
    ("WorkflowAccessPolicy", &["dapr.io/v1alpha1"]),
];

/// Everything that was read, by kind, in the order it was found, with all findings.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Components.
    pub components: Vec<Located<Component>>,
    /// Subscriptions of both versions.
    pub subscriptions: Vec<Located<Subscription>>,
    /// HTTP endpoints.
    pub http_endpoints: Vec<Located<HttpEndpoint>>,
    /// Resiliency documents.
    pub resiliencies: Vec<Located<Resiliency>>,
    /// Configurations, variables not expanded: to notice changes. Those to use are loaded
    /// by [`load_configuration_files`].
    pub configurations: Vec<Located<Configuration>>,
    /// MCPServer and WorkflowAccessPolicy documents.
    pub others: Vec<Located<Other>>,
    /// All findings, file by file. A document with an error is in none of the lists.
    pub diagnostics: Vec<Diagnostic>,
    /// Documents of a known kind that an error keeps out of the lists.
    pub refused: Vec<Located<Refused>>,
}

/// A document that is not used because of what its findings say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its kind, such as `Resiliency`.
    pub kind: &'static str,
    /// Name, namespace and scopes as far as they could be read.
    pub meta: Meta,
}

/// Why nothing could be loaded.
#[derive(Debug)]
#[non_exhaustive]
pub enum LoadError {
    /// A folder or a file that must be there cannot be read.
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that must be right is not.
    Invalid(Vec<Diagnostic>),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, source } => write!(f, "cannot read {}: {source}", path.display()),
            Self::Invalid(list) => {
                for (i, d) in list.iter().enumerate() {
                    if i > 0 {
                        f.write_str("\n")?;
                    }
                    write!(f, "{d}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable { source, .. } => Some(source),
            Self::Invalid(_) => None,
        }
    }
}

/// Reads every `*.yaml` and `*.yml` directly in `dir`, in the order of their names.
///
/// # Errors
/// The folder cannot be listed. Files that cannot be read are in the findings.
pub fn load_dir(dir: &Path) -> Result<Loaded, LoadError> {
    load_dirs(&[dir])
}

/// Reads several folders, one after the other.
///
/// # Errors
/// See [`load_dir`].
pub fn load_dirs<P: AsRef<Path>>(dirs: &[P]) -> Result<Loaded, LoadError> {
    let mut loaded = Loaded::default();
    for dir in dirs {
        let dir = dir.as_ref();
        for path in yaml_files(dir, &mut loaded.diagnostics)? {
            match read_limited(&path) {
                Ok(text) => loaded.read_text(&path.to_string_lossy(), &text),
                Err(e) => {
                    let name = path.to_string_lossy().into_owned();
                    loaded.diagnostics.push(Diagnostic::file_error(name, format!("cannot be read: {e}")));
                }
            }
        }
    }
    loaded.check_policy_names();
    Ok(loaded)
}

/// A merged configuration and what was found on the way.
#[derive(Clone, Debug, Default)]
pub struct LoadedConfiguration {
    /// All files merged, the last one wins per section.
    pub configuration: Configuration,
    /// Warnings.
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads the files of `--config`: expands `$VAR` in their text from `env`, and merges them.
///
/// # Errors
/// A file that is missing or wrong, with every mistake of all files.
pub fn load_configuration_files<P: AsRef<Path>>(
    paths: &[P],
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<LoadedConfiguration, LoadError> {
    let mut result = LoadedConfiguration::default();
    for path in paths {
        let path = path.as_ref();
        let text = read_limited(path).map_err(|source| LoadError::Unreadable { path: path.to_owned(), source })?;
        let file: Arc<str> = path.to_string_lossy().into();
        let (configuration, findings) = read_configuration(&file, &expand(&text, env));
        result.diagnostics.extend(findings);
        if let Some(configuration) = configuration {
            result.configuration.merge(configuration);
        }
    }
    if result.diagnostics.iter().any(|d| d.severity == Severity::Error) {
        return Err(LoadError::Invalid(result.diagnostics));
    }
    Ok(result)
}

/// The Configuration of a text: its documents of that kind, merged. As in daprd, a document that
/// names no kind counts as one.
fn read_configuration(file: &Arc<str>, text: &str) -> (Option<Configuration>, Vec<Diagnostic>) {
    let mut findings = Vec::new();
    let mut merged: Option<Configuration> = None;
    let parsed = yaml::parse(text);
    findings.extend(parsed.faults.into_iter().map(|f| fault(file, f)));
    for document in parsed.documents {
        let kind = document.root.get("kind").and_then(Node::scalar_text).unwrap_or_default();
        if document.root.is_null() || !(kind.is_empty() || kind == Configuration::KIND) {
            continue;
        }
        let sink = Sink::new(Arc::clone(file), document.index);
        note_repeated(&sink, &document.repeated);
        if let Some(root) = Obj::root(&sink, &document.root) {
            root.accept(&["apiVersion", "kind", "status"]);
            let meta = meta(&root, false);
            let configuration = Configuration::decode(&root, meta);
            match &mut merged {
                Some(before) => before.merge(configuration),
                None => merged = Some(configuration),
            }
        }
        findings.extend(sink.into_findings());
    }
    if merged.is_none() && !findings.iter().any(|d| d.severity == Severity::Error) {
        let mut note = Diagnostic::file_error(Arc::clone(file), "holds no Configuration document");
        note.severity = Severity::Warning;
        findings.push(note);
    }
    (merged, findings)
}

impl Loaded {
    /// Whether a document had to be skipped.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|d| d.severity == Severity::Error)
    }

    /// Adds the documents of `text`, which came from `file`.
    pub fn read_text(&mut self, file: &str, text: &str) {
        let file: Arc<str> = file.into();
        let parsed = yaml::parse(text);
        let mut findings: Vec<_> = parsed.faults.into_iter().map(|f| fault(&file, f)).collect();
        for document in parsed.documents {
            let sink = Sink::new(Arc::clone(&file), document.index);
            let origin = Origin { file: Arc::clone(&file), document: document.index, line: document.root.line };
            self.read_node(&document.root, origin, &sink, &document.repeated);
            findings.extend(sink.into_findings());
        }
        findings.sort_by_key(|d| (d.document, d.line, d.column));
        self.diagnostics.extend(findings);
    }

    /// Adds one document that came as JSON from `source`, such as the control plane.
    pub fn read_json(&mut self, source: &str, json: &serde_json::Value) {
        let file: Arc<str> = source.into();
        let sink = Sink::new(Arc::clone(&file), 1);
        self.read_node(&Node::from_json(json), Origin { file, document: 1, line: 0 }, &sink, &[]);
        self.diagnostics.extend(sink.into_findings());
    }

    /// Adds what was loaded elsewhere.
    pub fn append(&mut self, mut other: Self) {
        self.components.append(&mut other.components);
        self.subscriptions.append(&mut other.subscriptions);
        self.http_endpoints.append(&mut other.http_endpoints);
        self.resiliencies.append(&mut other.resiliencies);
        self.configurations.append(&mut other.configurations);
        self.others.append(&mut other.others);
        self.diagnostics.append(&mut other.diagnostics);
        self.refused.append(&mut other.refused);
    }

    fn read_node(&mut self, node: &Node, origin: Origin, sink: &Sink, repeated: &[(String, u32, u32)]) {
        // Anything may lie beside our documents: what does not say it is one of ours is not looked at.
        let field = |name| node.get(name).and_then(Node::scalar_text).unwrap_or_default();
        let (version, kind) = (field("apiVersion"), field("kind"));
        if !version.starts_with(GROUP) {
            return;
        }
        let Some(root) = Obj::root(sink, node) else { return };
        root.accept(&["apiVersion", "kind", "status"]);
        let Some((known, versions)) = KINDS.iter().find(|(k, _)| *k == kind) else {
            let mut root = root;
            root.open();
            let suggestion = did_you_mean(&kind, KINDS.iter().map(|(k, _)| *k));
            root.warn("kind", format!("'{kind}' is no kind of {version}; the document is ignored"), suggestion);
            return;
        };
        if !versions.contains(&version.as_str()) {
            let mut root = root;
            root.open();
            let suggestion = did_you_mean(&version, versions.iter().copied());
            root.warn("apiVersion", format!("{kind} has no '{version}'; the document is ignored"), suggestion);
            return;
        }
        note_repeated(sink, repeated);
        let meta = meta(&root, true);
        let refused = Located { value: Refused { kind: known, meta: meta.clone() }, origin: origin.clone() };
        match kind.as_str() {
            Component::KIND => keep(&mut self.components, sink, origin, Component::decode(&root, meta)),
            Configuration::KIND => keep(&mut self.configurations, sink, origin, Configuration::decode(&root, meta)),
            Subscription::KIND => {
                let v2 = version.ends_with("/v2alpha1");
                keep(&mut self.subscriptions, sink, origin, Subscription::decode(&root, meta, v2));
            }
            HttpEndpoint::KIND => keep(&mut self.http_endpoints, sink, origin, HttpEndpoint::decode(&root, meta)),
            Resiliency::KIND => keep(&mut self.resiliencies, sink, origin, Resiliency::decode(&root, meta)),
            _ => keep(&mut self.others, sink, origin, Other::decode(&root, meta, &kind)),
        }
        if sink.failed() {
            self.refused.push(refused);
        }
    }

    /// Warns of policy names that targets use and nothing defines.
    fn check_policy_names(&mut self) {
        for unknown in unknown_policies(self.resiliencies.iter().map(|r| &r.value)) {
            let origin = &self.resiliencies[unknown.document].origin;
            self.diagnostics.push(Diagnostic {
                file: Arc::clone(&origin.file),
                document: origin.document,
                line: 0,
                column: 0,
                path: unknown.path,
                severity: Severity::Warning,
                message: format!("no policy is named '{}', so none applies", unknown.name),
                suggestion: unknown.suggestion,
            });
        }
    }
}

fn keep<T>(list: &mut Vec<Located<T>>, sink: &Sink, origin: Origin, value: T) {
    if !sink.failed() {
        list.push(Located { value, origin });
    }
}

fn meta(root: &Obj<'_>, name_required: bool) -> Meta {
    let mut meta = Meta { scopes: root.texts("scopes"), ..Meta::default() };
    if let Some(mut fields) = root.object("metadata") {
        // Kubernetes adds many more.
        fields.open();
        meta.name = if name_required { fields.required("name") } else { fields.text_or_empty("name") };
        meta.namespace = fields.text_or_empty("namespace");
        if matches!(meta.name.as_str(), "." | "..") || meta.name.contains(['/', '%']) {
            fields
                .error("name", format!("'{}' is no valid name: it may be neither . nor .. nor hold / or %", meta.name));
        }
    } else if name_required && !root.has("metadata") {
        root.error("metadata", "is required, with a name");
    }
    meta
}

fn note_repeated(sink: &Sink, repeated: &[(String, u32, u32)]) {
    for (key, line, column) in repeated {
        sink.push(Severity::Warning, (*line, *column), key, "is given twice; the last one counts", None);
    }
}

fn fault(file: &Arc<str>, fault: yaml::Fault) -> Diagnostic {
    Diagnostic {
        document: fault.document,
        line: fault.line,
        column: fault.column,
        ..Diagnostic::file_error(Arc::clone(file), fault.message)
    }
}

/// The YAML files directly in `dir`, by name. Links are followed, since mounted volumes are made of them.
pub(crate) fn yaml_files(dir: &Path, findings: &mut Vec<Diagnostic>) -> Result<Vec<PathBuf>, LoadError> {
    let unreadable = |source| LoadError::Unreadable { path: dir.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let yaml = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
        // A pipe or a device would block; a broken link is reported when it is opened.
        if yaml && std::fs::metadata(&path).map_or_else(|_| !is_lock_of_emacs(&path), |m| m.is_file()) {
            files.push(path);
        }
    }
    files.sort();
    if files.len() > MAX_FILES {
        let message = format!("holds {} files, only the first {MAX_FILES} are read", files.len());
        findings.push(Diagnostic::file_error(dir.to_string_lossy().into_owned(), message));
        files.truncate(MAX_FILES);
    }
    Ok(files)
}

/// Emacs marks a file that somebody edits by a link to nowhere beside it.
fn is_lock_of_emacs(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".#")) && path.is_symlink()
}

pub(crate) fn read_limited(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        let message = format!("larger than {MAX_FILE_BYTES} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(text)
}
