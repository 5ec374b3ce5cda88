//! Answers of commands as a table, JSON or YAML.

use crate::error::{CliError, Result};
use clap::ValueEnum;
use serde::Serialize;
use std::io::{ErrorKind, Write as _};

/// How to print an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// Rows below column titles.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(titles: [&str; N]) -> Self {
        Self { rows: vec![titles.iter().map(|title| (*title).to_owned()).collect()] }
    }

    /// Adds a row; empty cells are shown as such.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Columns as wide as their widest cell, two spaces between, nothing after the last.
    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| self.rows.iter().filter_map(|row| row.get(column)).map(|c| width(c)).max().unwrap_or(0))
            .collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, wide) in row.iter().zip(&widths) {
                let cell = printable(cell);
                line.push_str(&cell);
                line.extend(std::iter::repeat_n(' ', wide - width(&cell) + 2));
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// Cells hold text of others (commands, names): control characters must not reach the terminal.
fn printable(cell: &str) -> String {
    cell.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn width(cell: &str) -> usize {
    cell.chars().count()
}

/// Prints `value` as JSON or YAML, or `table()` for people.
pub(crate) fn print<T: Serialize>(format: Format, value: &T, table: impl FnOnce() -> String) -> Result<()> {
    let text = match format {
        Format::Table => table(),
        Format::Json => {
            let mut text = serde_json::to_string_pretty(value)
                .map_err(|error| CliError::new("output", format!("cannot write the answer as JSON: {error}")))?;
            text.push('\n');
            text
        }
        Format::Yaml => serde_saphyr::to_string(value)
            .map_err(|error| CliError::new("output", format!("cannot write the answer as YAML: {error}")))?,
    };
    write(text.as_bytes())
}

/// Writes to standard output. A reader that has gone away (`mecha list | head -1`) is no failure.
pub(crate) fn write(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(CliError::new("output", format!("cannot write the answer: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_tail() {
        let mut table = Table::new(["APP ID", "PORT", "COMMAND"]);
        table.row(vec!["orders".into(), "6001".into(), "python3 app.py".into()]);
        table.row(vec!["a".into(), String::new(), String::new()]);
        assert_eq!(
            table.render(),
            "APP ID  PORT  COMMAND\n\
             orders  6001  python3 app.py\n\
             a\n"
        );
    }

    #[test]
    fn control_characters_of_others_do_not_reach_the_terminal() {
        let mut table = Table::new(["X"]);
        table.row(vec!["a\u{1b}[31mb\nc".into()]);
        assert_eq!(table.render(), "X\na [31mb c\n");
    }
}
