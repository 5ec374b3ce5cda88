//! Paths of this repository that pages name have to exist.

use super::Finding;

/// Checks the paths in backticks and the relative links of a Markdown page.
///
/// In backticks a word counts as a path of this repository when it has a slash and starts with a file or
/// folder of the root (`top`); what comes after a placeholder (`*`, `<name>`, `{name}`, `…`) is not checked.
/// Fenced blocks are examples and are left alone.
pub(super) fn check(page: &str, text: &str, top: &[String], exists: &dyn Fn(&str) -> bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut fence: Option<&str> = None;
    for (index, line) in text.lines().enumerate() {
        let start = line.trim_start();
        match fence {
            Some(mark) if start.starts_with(mark) => fence = None,
            Some(_) => {}
            None if start.starts_with("```") => fence = Some("```"),
            None if start.starts_with("~~~") => fence = Some("~~~"),
            None => {
                let mut missing = |path: &str, what: String| {
                    if !exists(path) {
                        findings.push(Finding::new(
                            format!("{page}:{}", index + 1),
                            what,
                            "correct the path, or create the file",
                        ));
                    }
                };
                for word in code_spans(line) {
                    if let Some(path) = repository_path(word, top) {
                        missing(&path, format!("`{word}` does not exist in this repository"));
                    }
                }
                for target in links(line) {
                    let path = beside(page, target);
                    missing(&path, format!("the link to {target} leads nowhere"));
                }
            }
        }
    }
    findings
}

fn code_spans(line: &str) -> impl Iterator<Item = &str> {
    // Between the first and the second backtick, between the third and the fourth, …
    let mut parts = line.split('`').skip(1);
    std::iter::from_fn(move || {
        let span = parts.next()?;
        parts.next()?;
        Some(span)
    })
}

fn repository_path(word: &str, top: &[String]) -> Option<String> {
    let word = word.strip_prefix("./").unwrap_or(word);
    if word.contains(char::is_whitespace) || word.contains("://") || !word.contains('/') {
        return None;
    }
    // `file.rs:12` and `file.rs#anchor` name a place in the file.
    let word = word.split(['#', ':']).next()?;
    let placeholder = |part: &&str| !part.contains(['*', '<', '{', '…', '$']);
    let path: Vec<_> = word.split('/').take_while(placeholder).collect();
    let first = *path.first()?;
    top.iter().any(|name| name == first).then(|| path.join("/"))
}

/// Targets of inline links into this repository, without their anchors.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| {
        let target = rest.split([')', ' ', '#']).next()?;
        let outside = target.is_empty() || target.contains(':') || target.starts_with('/');
        (!outside).then_some(target)
    })
}

/// `target` as seen from the folder of `page`.
fn beside(page: &str, target: &str) -> String {
    let mut parts: Vec<_> = page.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." if parts.pop().is_some() => {}
            other => parts.push(other),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(page: &str, text: &str) -> Vec<String> {
        let top = ["docs", "daemon", "README.md", ".ci"].map(str::to_owned);
        let there = ["docs/guide.md", "docs", "daemon/core", "daemon/core/src/state.rs", "README.md", ".ci/run"];
        check(page, text, &top, &|path| there.contains(&path.trim_end_matches('/')))
            .into_iter()
            .map(|f| format!("{}: {}", f.place, f.what))
            .collect()
    }

    #[test]
    fn paths_that_exist_and_words_that_are_none_pass() {
        let text = "See `docs/guide.md`, `daemon/core/`, `./daemon/core/src/state.rs:12`, `.ci/run`,\n\
                    `daemon/core/<any>/x.rs`, `docs/*.md`, `text/plain`, `docs`, `GET /docs/none`, `a.rs`,\n\
                    `https://docs/none` and [the guide](docs/guide.md#start), [out](https://example.org/docs/x).\n";
        assert_eq!(found("README.md", text), [""; 0]);
    }

    #[test]
    fn a_path_that_is_gone_is_named_with_its_line() {
        let text = "first\nsee `docs/old.md` and `daemon/core`\n";
        assert_eq!(found("README.md", text), ["README.md:2: `docs/old.md` does not exist in this repository"]);
        assert_eq!(found("README.md", "`daemon/none/*.rs`").len(), 1);
    }

    #[test]
    fn links_are_relative_to_their_page() {
        assert_eq!(found("docs/guide.md", "[up](../README.md) [self](guide.md) [here](#part)"), [""; 0]);
        assert_eq!(
            found("docs/guide.md", "[gone](docs/guide.md)"),
            ["docs/guide.md:1: the link to docs/guide.md leads nowhere"]
        );
    }

    #[test]
    fn fenced_blocks_are_examples() {
        assert_eq!(found("README.md", "```sh\n`docs/none.md`\n```\n`docs/none.md`\n").len(), 1);
    }
}
