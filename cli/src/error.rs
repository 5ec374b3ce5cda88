//! What the CLI tells a person when something goes wrong.

use crate::style;
use std::fmt;

/// Exit status of a command that did what was asked.
pub(crate) const OK: u8 = 0;
/// Exit status of a command that failed.
pub(crate) const FAILURE: u8 = 1;
/// Exit status of a command that was called wrongly; clap uses the same number.
pub(crate) const USAGE: u8 = 2;
/// Exit status of a dry run that found something to change.
pub(crate) const CHANGES: u8 = 3;

/// Result of everything in this crate that can fail in front of the user.
pub(crate) type Result<T, E = CliError> = std::result::Result<T, E>;

/// A failure with a stable code for scripts, a sentence for people and, where we know one, the next step.
#[derive(Debug)]
pub(crate) struct CliError {
    code: &'static str,
    message: String,
    hint: Option<String>,
    status: u8,
}

impl CliError {
    /// A failure: exit status 1.
    pub(crate) fn new(code: &'static str, message: impl fmt::Display) -> Self {
        Self { code, message: message.to_string(), hint: None, status: FAILURE }
    }

    /// A command that was called wrongly: exit status 2.
    pub(crate) fn usage(code: &'static str, message: impl fmt::Display) -> Self {
        Self { status: USAGE, ..Self::new(code, message) }
    }

    /// Adds what to do next.
    pub(crate) fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// The process exit status that belongs to this error.
    pub(crate) fn status(&self) -> u8 {
        self.status
    }

    /// Prints the error to standard error.
    pub(crate) fn report(&self) {
        let paint = style::stderr();
        eprintln!("{} {}", paint.error(&format!("error[{}]:", self.code)), self.message);
        if let Some(hint) = &self.hint {
            eprintln!("  {} {hint}", paint.dim("help:"));
        }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for CliError {}
