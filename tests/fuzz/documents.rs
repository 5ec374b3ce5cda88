//! YAML documents of every kind.

use mecha_resources::{Loaded, Severity, expand, yaml};

use crate::engine::{Checked, Target};

const WORDS: &[&str] = &[
    "apiVersion: dapr.io/v1alpha1\n",
    "kind: Component\n",
    "kind: Subscription\n",
    "kind: Resiliency\n",
    "kind: HTTPEndpoint\n",
    "kind: Configuration\n",
    "spec:\n",
    "metadata:\n",
    "  name: ",
    "- name: a\n",
    "---\n",
    "&a ",
    "*a",
    "<<: *a\n",
    "!!binary ",
    "!!str ",
    "|\n",
    ">-\n",
    "{",
    "}",
    "[",
    "]",
    "? ",
    ": ",
    "\t",
    "'",
    "\"",
    "#",
    "null",
    "~",
    "true",
    "1e999",
    "secretKeyRef:\n",
    "${A}",
];

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "yaml-component", words: WORDS, check: document },
    Target { name: "yaml-configuration", words: WORDS, check: document },
    Target { name: "yaml-subscription", words: WORDS, check: document },
    Target { name: "yaml-resiliency", words: WORDS, check: document },
    Target { name: "yaml-endpoint", words: WORDS, check: document },
    Target { name: "yaml-expand", words: &["$", "${", "}", "$$", "A", "_", "\\"], check: expansion },
];

/// Every finding has a place in the text, and a document with an error is not used.
fn document(bytes: &[u8]) -> Checked {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(false) };
    let mut loaded = Loaded::default();
    loaded.read_text("fuzz.yaml", text);
    // The parser counts line breaks as YAML does, which are a few more than Rust's.
    let lines = 1 + text.chars().filter(|c| matches!(c, '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}')).count();
    for finding in &loaded.diagnostics {
        if finding.line as usize > lines + 1 {
            return Err(format!("line {} of {lines}: {finding}", finding.line));
        }
        if finding.message.is_empty() {
            return Err("a finding without words".to_owned());
        }
    }
    let used = loaded.components.len()
        + loaded.subscriptions.len()
        + loaded.http_endpoints.len()
        + loaded.resiliencies.len()
        + loaded.configurations.len()
        + loaded.others.len();
    for parsed in yaml::parse(text).documents {
        let _ = (parsed.root.to_text(), parsed.root.to_json());
    }
    Ok(used > 0 && !loaded.diagnostics.iter().any(|d| d.severity == Severity::Error))
}

/// What has no `$` stays; values are not expanded again.
fn expansion(bytes: &[u8]) -> Checked {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(false) };
    let expanded = expand(text, &|_| Some("${A}".to_owned()));
    if !text.contains('$') && expanded != text {
        return Err(format!("{text:?} has no variable and becomes {expanded:?}"));
    }
    if expanded.len() > text.len() * 4 + 4 {
        return Err(format!("{} bytes become {}", text.len(), expanded.len()));
    }
    Ok(expanded != text)
}
