//! Colours, only where a person looks at a terminal and has not refused them.

use anstyle::{AnsiColor, Effects, Style};
use std::io::IsTerminal;

const ERROR: Style = AnsiColor::Red.on_default().effects(Effects::BOLD);
const WARNING: Style = AnsiColor::Yellow.on_default().effects(Effects::BOLD);
const SUCCESS: Style = AnsiColor::Green.on_default().effects(Effects::BOLD);
const INFO: Style = AnsiColor::Cyan.on_default();
const DIM: Style = Style::new().effects(Effects::DIMMED);

/// One colour per app, in the order of the apps; they repeat when there are more apps than colours.
const APPS: [AnsiColor; 6] = [
    AnsiColor::Blue,
    AnsiColor::Magenta,
    AnsiColor::Cyan,
    AnsiColor::Green,
    AnsiColor::BrightBlue,
    AnsiColor::BrightMagenta,
];

/// Paints text, or leaves it as it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint {
    enabled: bool,
}

/// The painter of standard output.
pub(crate) fn stdout() -> Paint {
    Paint { enabled: wanted(std::io::stdout().is_terminal()) }
}

/// The painter of standard error.
pub(crate) fn stderr() -> Paint {
    Paint { enabled: wanted(std::io::stderr().is_terminal()) }
}

fn wanted(terminal: bool) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if set("NO_COLOR") {
        return false;
    }
    if std::env::var_os("CLICOLOR_FORCE").is_some_and(|value| !value.is_empty() && value != "0") {
        return true;
    }
    terminal && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

impl Paint {
    fn with(self, style: Style, text: &str) -> String {
        if self.enabled { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    pub(crate) fn error(self, text: &str) -> String {
        self.with(ERROR, text)
    }

    pub(crate) fn warning(self, text: &str) -> String {
        self.with(WARNING, text)
    }

    pub(crate) fn success(self, text: &str) -> String {
        self.with(SUCCESS, text)
    }

    pub(crate) fn info(self, text: &str) -> String {
        self.with(INFO, text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.with(DIM, text)
    }

    /// The colour of the app with this position in the run.
    pub(crate) fn app(self, index: usize, text: &str) -> String {
        self.with(APPS[index % APPS.len()].on_default(), text)
    }
}
