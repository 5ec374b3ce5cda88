//! `mecha lint`: resource files and multi-app files, read as the sidecar and `mecha run` read them.

use crate::args::LintArgs;
use crate::error::{FAILURE, OK, Result};
use crate::home::Home;
use crate::output;
use crate::run::runfile;
use mecha_resources::{Component, Diagnostic, Loaded, Located, Severity};
use std::path::Path;

pub(crate) fn run(args: &LintArgs) -> Result<u8> {
    let home = Home::locate()?;
    let mut all = Loaded::default();
    for path in &args.paths {
        lint(path, &home, &mut all);
    }
    let repeated = repeated_names(&all.components);
    all.diagnostics.extend(repeated);
    let findings = &all.diagnostics;
    output::print(args.output, findings, || summary(&all))?;
    Ok(if findings.is_empty() { OK } else { FAILURE })
}

/// Reads one file or folder.
pub(super) fn lint(path: &Path, home: &Home, all: &mut Loaded) {
    let name = path.to_string_lossy();
    if path.is_dir() {
        match mecha_resources::load_dir(path) {
            Ok(loaded) => all.append(loaded),
            Err(error) => all.diagnostics.push(Diagnostic::file_error(name, error.to_string())),
        }
        return;
    }
    let text = match std::fs::metadata(path) {
        Ok(meta) if meta.len() > mecha_resources::MAX_FILE_BYTES => {
            Err(format!("has more than {} bytes", mecha_resources::MAX_FILE_BYTES))
        }
        Ok(_) => std::fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}")),
        Err(error) => Err(format!("cannot be read: {error}")),
    };
    match text {
        Err(message) => all.diagnostics.push(Diagnostic::file_error(name, message)),
        Ok(text) if is_run_file(&text) => {
            let base = path.canonicalize().ok().and_then(|path| path.parent().map(Path::to_owned)).unwrap_or_default();
            all.diagnostics.extend(runfile::check(&name, &text, &base, home).1);
        }
        Ok(text) => {
            let mut loaded = Loaded::default();
            loaded.read_text(&name, &text);
            if documents(&loaded) == 0 && loaded.diagnostics.is_empty() {
                loaded.diagnostics.push(Diagnostic::file_error(name, "holds no resource document"));
            }
            all.append(loaded);
        }
    }
}

/// A multi-app file has `apps`; a resource has a `kind`.
fn is_run_file(text: &str) -> bool {
    let has = |key: &str| text.lines().any(|line| line.starts_with(key));
    has("apps:") && !has("kind:")
}

fn documents(loaded: &Loaded) -> usize {
    loaded.components.len()
        + loaded.subscriptions.len()
        + loaded.http_endpoints.len()
        + loaded.resiliencies.len()
        + loaded.configurations.len()
        + loaded.others.len()
}

/// Components of one name that an app would both get: no app starts with those.
fn repeated_names(components: &[Located<Component>]) -> Vec<Diagnostic> {
    let mut findings = Vec::new();
    for (index, component) in components.iter().enumerate() {
        let clash = components[..index].iter().find(|other| {
            let (one, two) = (&component.value.meta, &other.value.meta);
            let common = |a: &[String], b: &[String]| a.is_empty() || b.is_empty() || a.iter().any(|id| b.contains(id));
            one.name == two.name
                && (one.namespace == two.namespace || one.namespace.is_empty() || two.namespace.is_empty())
                && common(&one.scopes, &two.scopes)
        });
        if let Some(other) = clash {
            findings.push(Diagnostic {
                file: component.origin.file.clone(),
                document: component.origin.document,
                line: component.origin.line,
                column: 1,
                path: "metadata.name".to_owned(),
                severity: Severity::Error,
                message: format!("component {:?} is defined already in {}", component.value.meta.name, other.origin),
                suggestion: None,
            });
        }
    }
    findings
}

fn summary(all: &Loaded) -> String {
    let mut text = String::new();
    for finding in &all.diagnostics {
        let tag = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        text.push_str(&format!("{tag}: {finding}\n"));
    }
    match all.diagnostics.len() {
        0 => text.push_str(&format!("no findings in {} documents\n", documents(all))),
        1 => text.push_str("1 finding\n"),
        count => text.push_str(&format!("{count} findings\n")),
    }
    text
}
