//! From nodes to fields, with every mistake noted on the way.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::diagnostic::{Diagnostic, Severity};
use crate::text::{did_you_mean, parse_duration};
use crate::value::{NameValue, OpaqueJson, SecretRef, Sensitive, ValueSource};
use crate::yaml::{Entry, Node, Value};

/// Findings kept per document; a broken file must not fill the memory with them.
const MAX_FINDINGS: usize = 200;

/// Where the findings of one document go.
pub(crate) struct Sink {
    file: Arc<str>,
    document: u32,
    findings: RefCell<Vec<Diagnostic>>,
    failed: Cell<bool>,
}

impl Sink {
    pub(crate) fn new(file: Arc<str>, document: u32) -> Self {
        Self { file, document, findings: RefCell::default(), failed: Cell::new(false) }
    }

    pub(crate) fn push(
        &self,
        severity: Severity,
        at: (u32, u32),
        path: &str,
        message: impl Into<String>,
        suggestion: Option<&str>,
    ) {
        if severity == Severity::Error {
            self.failed.set(true);
        }
        let mut findings = self.findings.borrow_mut();
        if findings.len() < MAX_FINDINGS {
            findings.push(Diagnostic {
                file: Arc::clone(&self.file),
                document: self.document,
                line: at.0,
                column: at.1,
                path: path.to_owned(),
                severity,
                message: message.into(),
                suggestion: suggestion.map(str::to_owned),
            });
        }
    }

    /// Whether the document has to be skipped.
    pub(crate) fn failed(&self) -> bool {
        self.failed.get()
    }

    pub(crate) fn into_findings(self) -> Vec<Diagnostic> {
        let mut list = self.findings.into_inner();
        list.sort_by_key(|d| (d.line, d.column));
        list
    }
}

/// A mapping that is being read.
///
/// Each field asked for becomes a known one; what is left when the reader goes out of
/// scope is reported as unknown. Hence reading a field and knowing it cannot drift apart.
pub(crate) struct Obj<'d> {
    sink: &'d Sink,
    path: String,
    at: (u32, u32),
    entries: &'d [Entry],
    asked: RefCell<Vec<&'static str>>,
    open: bool,
}

impl Drop for Obj<'_> {
    fn drop(&mut self) {
        if self.open {
            return;
        }
        let asked = self.asked.borrow();
        for entry in self.entries {
            let at = (entry.line, entry.column);
            if asked.contains(&entry.key.as_str()) {
                continue;
            }
            let path = self.child(&entry.key);
            if let Some(known) = asked.iter().find(|k| k.eq_ignore_ascii_case(&entry.key)) {
                let message = format!("spelled differently, read as '{known}'");
                self.sink.push(Severity::Warning, at, &path, message, None);
            } else if self.path == "spec" && matches!(entry.key.as_str(), "scopes" | "auth") {
                let message = "unknown field; it belongs beside spec, not inside";
                self.sink.push(Severity::Warning, at, &path, message, None);
            } else {
                let suggestion = did_you_mean(&entry.key, asked.iter().copied());
                self.sink.push(Severity::Warning, at, &path, "unknown field", suggestion);
            }
        }
    }
}

impl<'d> Obj<'d> {
    pub(crate) fn root(sink: &'d Sink, node: &'d Node) -> Option<Self> {
        Self::of(sink, node, String::new(), "a mapping with apiVersion and kind")
    }

    fn of(sink: &'d Sink, node: &'d Node, path: String, expected: &str) -> Option<Self> {
        let at = (node.line, node.column);
        let entries: &[Entry] = match &node.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            _ => {
                let message = format!("must be {expected}, found {}", node.describe());
                sink.push(Severity::Error, at, &path, message, None);
                return None;
            }
        };
        Some(Self { sink, path, at, entries, asked: RefCell::default(), open: false })
    }

    /// Accepts any further field.
    pub(crate) fn open(&mut self) {
        self.open = true;
    }

    pub(crate) fn child(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Notes that `name` is wrong; the document is skipped.
    pub(crate) fn error(&self, name: &str, message: impl Into<String>) {
        self.note(Severity::Error, name, message, None);
    }

    /// Notes that `name` is doubtful; the document is used.
    pub(crate) fn warn(&self, name: &str, message: impl Into<String>, suggestion: Option<&str>) {
        self.note(Severity::Warning, name, message, suggestion);
    }

    fn note(&self, severity: Severity, name: &str, message: impl Into<String>, suggestion: Option<&str>) {
        let at = match self.find(name) {
            Some(e) if e.node.line > 0 => (e.node.line, e.node.column),
            _ => self.at,
        };
        let path = if name.is_empty() { self.path.clone() } else { self.child(name) };
        self.sink.push(severity, at, &path, message, suggestion);
    }

    fn find(&self, name: &str) -> Option<&'d Entry> {
        // Go's JSON decoder, which daprd uses, ignores the case of field names.
        let exact = self.entries.iter().find(|e| e.key == name);
        exact.or_else(|| self.entries.iter().find(|e| e.key.eq_ignore_ascii_case(name)))
    }

    /// Knows `names` without reading them.
    pub(crate) fn accept(&self, names: &[&'static str]) {
        self.asked.borrow_mut().extend_from_slice(names);
    }

    /// The value of `name`, unless it is absent or null.
    pub(crate) fn node(&self, name: &'static str) -> Option<&'d Node> {
        self.asked.borrow_mut().push(name);
        self.find(name).map(|e| &e.node).filter(|n| !n.is_null())
    }

    pub(crate) fn has(&self, name: &'static str) -> bool {
        self.node(name).is_some()
    }

    fn wrong(&self, name: &str, expected: &str, found: &Node) {
        self.error(name, format!("must be {expected}, found {}", found.describe()));
    }

    /// Text; numbers and booleans are taken as they are written.
    pub(crate) fn text(&self, name: &'static str) -> Option<String> {
        let node = self.node(name)?;
        let text = node.scalar_text();
        if text.is_none() {
            self.wrong(name, "text", node);
        }
        text
    }

    /// Text, empty when absent.
    pub(crate) fn text_or_empty(&self, name: &'static str) -> String {
        self.text(name).unwrap_or_default()
    }

    /// Text that must be there and not empty.
    pub(crate) fn required(&self, name: &'static str) -> String {
        let text = match self.node(name) {
            None => String::new(),
            Some(node) => match node.scalar_text() {
                Some(text) => text,
                None => {
                    self.wrong(name, "text", node);
                    return String::new();
                }
            },
        };
        if text.is_empty() {
            self.error(name, "is required");
        }
        text
    }

    pub(crate) fn flag(&self, name: &'static str) -> Option<bool> {
        let node = self.node(name)?;
        match node.value {
            Value::Bool(b) => Some(b),
            Value::Text(_) => {
                self.error(name, "must be true or false without quotes");
                None
            }
            _ => {
                self.wrong(name, "true or false", node);
                None
            }
        }
    }

    pub(crate) fn int(&self, name: &'static str, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        let node = self.node(name)?;
        let value = match node.value {
            Value::Int(i) => i64::try_from(i).ok(),
            Value::Float(f) if f.fract() == 0.0 && f.abs() < 9.0e15 => Some(f as i64),
            _ => {
                self.wrong(name, "a whole number", node);
                return None;
            }
        };
        let value = value.filter(|v| range.contains(v));
        if value.is_none() {
            self.error(name, format!("must be a whole number from {} to {}", range.start(), range.end()));
        }
        value
    }

    /// A duration in Go's syntax; a bare number counts in `unit`.
    pub(crate) fn duration(&self, name: &'static str, unit: Duration) -> Option<Duration> {
        let text = self.text(name).filter(|t| !t.is_empty())?;
        let parsed = parse_duration(&text, unit);
        if parsed.is_none() {
            self.error(name, format!("'{text}' is not a duration such as 1m30s, 5s or 500ms"));
        }
        parsed
    }

    /// One of `known`, whatever the case.
    pub(crate) fn one_of<T: Copy>(&self, name: &'static str, known: &[(&'static str, T)]) -> Option<T> {
        let text = self.text(name).filter(|t| !t.is_empty())?;
        let found = known.iter().find(|(k, _)| k.eq_ignore_ascii_case(&text));
        if found.is_none() {
            let names: Vec<_> = known.iter().map(|(k, _)| *k).collect();
            let suggestion = did_you_mean(&text, names.iter().copied());
            self.note(Severity::Error, name, format!("'{text}' is none of {}", names.join(", ")), suggestion);
        }
        found.map(|(_, v)| *v)
    }

    pub(crate) fn nodes(&self, name: &'static str) -> &'d [Node] {
        match self.node(name) {
            None => &[],
            Some(Node { value: Value::List(items), .. }) => items,
            Some(other) => {
                self.wrong(name, "a list", other);
                &[]
            }
        }
    }

    pub(crate) fn texts(&self, name: &'static str) -> Vec<String> {
        let mut out = Vec::new();
        for (i, node) in self.nodes(name).iter().enumerate() {
            match node.scalar_text() {
                Some(text) => out.push(text),
                None => {
                    let message = format!("must be text, found {}", node.describe());
                    let path = format!("{}[{i}]", self.child(name));
                    self.sink.push(Severity::Error, (node.line, node.column), &path, message, None);
                }
            }
        }
        out
    }

    pub(crate) fn object(&self, name: &'static str) -> Option<Obj<'d>> {
        let node = self.node(name)?;
        Self::of(self.sink, node, self.child(name), "a mapping")
    }

    pub(crate) fn required_object(&self, name: &'static str) -> Option<Obj<'d>> {
        if !self.has(name) {
            self.error(name, "is required");
        }
        self.object(name)
    }

    pub(crate) fn objects(&self, name: &'static str) -> Vec<Obj<'d>> {
        let path = self.child(name);
        let items = self.nodes(name).iter().enumerate();
        items.filter_map(|(i, node)| Self::of(self.sink, node, format!("{path}[{i}]"), "a mapping")).collect()
    }

    fn entries_of(&self, name: &'static str) -> &'d [Entry] {
        match self.node(name) {
            None => &[],
            Some(Node { value: Value::Map(entries), .. }) => entries,
            Some(other) => {
                self.wrong(name, "a mapping", other);
                &[]
            }
        }
    }

    /// A mapping from free names to mappings.
    pub(crate) fn named_objects(&self, name: &'static str) -> Vec<(String, Obj<'d>)> {
        let path = self.child(name);
        let entries = self.entries_of(name).iter();
        entries
            .filter_map(|e| {
                let obj = Self::of(self.sink, &e.node, format!("{path}.{}", e.key), "a mapping")?;
                Some((e.key.clone(), obj))
            })
            .collect()
    }

    /// A mapping from free names to text.
    pub(crate) fn named_texts(&self, name: &'static str) -> BTreeMap<String, String> {
        let entries = self.entries_of(name).iter();
        entries.map(|e| (e.key.clone(), e.node.to_text())).collect()
    }

    /// A mapping from free names to durations; a bare number counts in `unit`.
    pub(crate) fn named_durations(&self, name: &'static str, unit: Duration) -> BTreeMap<String, Duration> {
        let mut out = BTreeMap::new();
        for entry in self.entries_of(name) {
            let text = entry.node.to_text();
            match parse_duration(&text, unit) {
                Some(d) => {
                    out.insert(entry.key.clone(), d);
                }
                None => {
                    let path = format!("{}.{}", self.child(name), entry.key);
                    let message = format!("'{text}' is not a duration such as 1m30s, 5s or 500ms");
                    self.sink.push(Severity::Error, (entry.node.line, entry.node.column), &path, message, None);
                }
            }
        }
        out
    }

    pub(crate) fn json(&self, name: &'static str) -> Option<OpaqueJson> {
        self.node(name).map(|n| OpaqueJson::new(n.to_json()))
    }

    /// `value`, `secretKeyRef` or `envRef`; nothing given is an empty value.
    pub(crate) fn source(&self) -> ValueSource {
        let value = self.node("value");
        let secret = self.object("secretKeyRef").map(|r| {
            let name = r.required("name");
            let key = r.text("key").filter(|k| !k.is_empty()).unwrap_or_else(|| name.clone());
            SecretRef { name, key }
        });
        let env = self.text("envRef").filter(|e| !e.is_empty());
        let given = usize::from(value.is_some()) + usize::from(secret.is_some()) + usize::from(env.is_some());
        if given > 1 {
            self.warn("", "has more than one of value, secretKeyRef and envRef; only one is used", None);
        }
        // daprd's precedence: an environment reference counts where no value is given, a
        // secret reference wins over a value.
        match (value, secret, env) {
            (None, _, Some(env)) => ValueSource::Env(env),
            (_, Some(secret), _) => ValueSource::Secret(secret),
            (value, ..) => ValueSource::Plain(Sensitive::new(value.map(Node::to_text).unwrap_or_default())),
        }
    }

    /// A list of named values.
    pub(crate) fn name_values(&self, name: &'static str) -> Vec<NameValue> {
        self.objects(name)
            .into_iter()
            .map(|item| {
                let name = item.required("name");
                NameValue { name, value: item.source() }
            })
            .collect()
    }
}
