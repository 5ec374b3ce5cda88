use std::fmt;

use tracing::Metadata;

/// Name of the field that makes an error fatal.
const FATAL_FIELD: &str = "fatal";

/// Severity of a line, in order.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum Level {
    /// For people who look for a cause.
    Debug,
    /// What happens.
    Info,
    /// Something to look at.
    Warning,
    /// Something failed.
    Error,
    /// The process ends because of it.
    Fatal,
}

impl Level {
    /// The word on the command line; any case, `warning` counts as `warn`.
    pub fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "debug" => Some(Level::Debug),
            "info" => Some(Level::Info),
            "warn" | "warning" => Some(Level::Warning),
            "error" => Some(Level::Error),
            "fatal" => Some(Level::Fatal),
            _ => None,
        }
    }

    /// The word on the command line.
    pub const fn flag(self) -> &'static str {
        match self {
            Level::Warning => "warn",
            other => other.name(),
        }
    }

    /// The word in log lines.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warning => "warning",
            Level::Error => "error",
            Level::Fatal => "fatal",
        }
    }

    pub(super) const fn from_u8(value: u8) -> Self {
        match value {
            0 => Level::Debug,
            1 => Level::Info,
            2 => Level::Warning,
            3 => Level::Error,
            _ => Level::Fatal,
        }
    }

    pub(super) fn of(metadata: &Metadata<'_>) -> Self {
        match *metadata.level() {
            tracing::Level::ERROR if metadata.fields().field(FATAL_FIELD).is_some() => Level::Fatal,
            tracing::Level::ERROR => Level::Error,
            tracing::Level::WARN => Level::Warning,
            tracing::Level::INFO => Level::Info,
            _ => Level::Debug,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
