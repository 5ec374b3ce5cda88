//! `xtask tidy`: the rules of the house that the compiler does not enforce.
//!
//! Rules read a [`Graph`] or a text and return [`Finding`]s; only this file touches the file system.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

mod arrows;
mod graph;
mod lints;
mod lock;
mod paths;

use graph::Graph;

/// A broken rule: what, where, what to do next.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    /// File, relative to the root, with a line where there is one.
    place: String,
    what: String,
    next: String,
}

impl Finding {
    fn new(place: impl Into<String>, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { place: place.into(), what: what.into(), next: next.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n  next: {}", self.place, self.what, self.next)
    }
}

/// Checks every rule; all findings are reported together.
pub(crate) fn run(root: &Path) -> Result<String, String> {
    let graph = Graph::parse(&metadata(root)?)?;
    let mut findings = arrows::check(&graph);
    findings.extend(lock::check(&graph));

    let manifest = |path: &str| read(root, path);
    findings.extend(lints::check_root(&manifest("Cargo.toml")?));
    for member in graph.members() {
        findings.extend(lints::check_member(&member.manifest, &manifest(&member.manifest)?));
    }

    let top = top_level(root)?;
    let pages = pages(root)?;
    for page in &pages {
        findings.extend(paths::check(page, &read(root, page)?, &top, &|path| root.join(path).exists()));
    }

    if findings.is_empty() {
        return Ok(format!(
            "tidy: {} crates and {} pages keep the rules of the house",
            graph.members().count(),
            pages.len()
        ));
    }
    findings.sort();
    findings.dedup();
    let list: Vec<_> = findings.iter().map(|finding| format!("error: {finding}\n")).collect();
    Err(format!("{}\ntidy: {} found", list.join("\n"), findings.len()))
}

/// What Cargo knows of the workspace with all features on: what is off by default has to keep the rules too.
fn metadata(root: &Path) -> Result<Vec<u8>, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--all-features", "--locked"])
        .current_dir(root)
        .output()
        .map_err(|e| format!("cannot run `cargo metadata`: {e}\n  next: install the Rust toolchain (rustup)"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(format!(
        "`cargo metadata --all-features --locked` failed:\n{}\
         next: if Cargo.lock is out of date, run `cargo check` and commit it",
        String::from_utf8_lossy(&output.stderr)
    ))
}

fn read(root: &Path, path: &str) -> Result<String, String> {
    fs::read_to_string(root.join(path)).map_err(|e| format!("cannot read {path}: {e}"))
}

/// Names of files and folders in the root.
fn top_level(root: &Path) -> Result<Vec<String>, String> {
    let fail = |e: std::io::Error| format!("cannot read {}: {e}", root.display());
    fs::read_dir(root)
        .map_err(fail)?
        .map(|entry| Ok(entry.map_err(fail)?.file_name().to_string_lossy().into_owned()))
        .filter(|name| !matches!(name.as_deref(), Ok(".git" | "target")))
        .collect()
}

/// README.md and every page below docs, relative to the root.
fn pages(root: &Path) -> Result<Vec<String>, String> {
    let mut pages = Vec::new();
    let mut folders = vec![PathBuf::from("docs")];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(root.join(&folder)) else { continue };
        for entry in entries {
            let entry = entry.map_err(|e| format!("cannot read {}: {e}", folder.display()))?;
            let path = folder.join(entry.file_name());
            if entry.path().is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                pages.push(path.to_string_lossy().into_owned());
            }
        }
    }
    if root.join("README.md").exists() {
        pages.push("README.md".to_owned());
    }
    pages.sort();
    Ok(pages)
}
