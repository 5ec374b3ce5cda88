use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The document is used; something in it has no effect or is doubtful.
    Warning,
    /// The document is not used.
    Error,
}

/// One finding in a file of documents. Never holds a value of component metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// File as it was named, or the name of another source.
    pub file: Arc<str>,
    /// Place of the document in the file, counted from 1; 0 when it concerns the whole file.
    pub document: u32,
    /// Line, counted from 1; 0 when unknown.
    pub line: u32,
    /// Column, counted from 1; 0 when unknown.
    pub column: u32,
    /// Path of the field, such as `spec.metadata[2].secretKeyRef.name`; may be empty.
    pub path: String,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong and what is expected.
    pub message: String,
    /// A known name that is close to the one given.
    pub suggestion: Option<String>,
}

impl Diagnostic {
    /// An error about a whole file.
    #[must_use]
    pub fn file_error(file: impl Into<Arc<str>>, message: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            document: 0,
            line: 0,
            column: 0,
            path: String::new(),
            severity: Severity::Error,
            message: message.into(),
            suggestion: None,
        }
    }
}

/// `components/redis.yaml:12:7: spec.metadata[1].vaule: unknown field; did you mean 'value'?`
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        } else if self.document > 0 {
            write!(f, " (document {})", self.document)?;
        }
        f.write_str(": ")?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if let Some(name) = &self.suggestion {
            write!(f, "; did you mean '{name}'?")?;
        }
        Ok(())
    }
}

/// Where a document was found.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Origin {
    /// File as it was named, or the name of another source.
    pub file: Arc<str>,
    /// Place of the document in the file, counted from 1.
    pub document: u32,
    /// Its first line, counted from 1; 0 when it did not come from text.
    pub line: u32,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 { write!(f, ":{}", self.line) } else { Ok(()) }
    }
}

/// A value and the document that it was read from. Equal when the values are.
#[derive(Clone, Debug, Serialize)]
pub struct Located<T> {
    /// What was read.
    #[serde(flatten)]
    pub value: T,
    /// Where.
    pub origin: Origin,
}

impl<T> std::ops::Deref for Located<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: PartialEq> PartialEq for Located<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}
