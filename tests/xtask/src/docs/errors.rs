use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use mecha_components_api::ErrorKind;
use mecha_core::codes::Code;
use serde::Deserialize;

use super::Pages;
use super::included::wire::wire;
use super::markdown::{cell, table};

/// The hand-written part: why it happens and what to do, by code.
const PROSE: &str = "docs/errors/pages.toml";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Prose {
    why: String,
    next: String,
}

/// Every kind, with its word for people.
const KINDS: &[(ErrorKind, &str)] = &[
    (ErrorKind::InvalidArgument, "the input is wrong"),
    (ErrorKind::Unauthenticated, "the backend refused the credentials"),
    (ErrorKind::PermissionDenied, "not allowed"),
    (ErrorKind::NotFound, "the named thing does not exist"),
    (ErrorKind::FailedPrecondition, "something that has to be there first is missing"),
    (ErrorKind::Conflict, "somebody else was first, such as a stale ETag"),
    (ErrorKind::TooLarge, "larger than a limit"),
    (ErrorKind::Overloaded, "shed or rate limited"),
    (ErrorKind::Unsupported, "the component does not have this power, or the API is not built"),
    (ErrorKind::Unavailable, "the backend cannot be reached"),
    (ErrorKind::Timeout, "a deadline passed"),
    (ErrorKind::Internal, "a defect, or a broken answer of the backend"),
];

pub(super) fn pages(root: &Path, pages: &mut Pages) -> Result<(), String> {
    let text = fs::read_to_string(root.join(PROSE)).map_err(|e| format!("cannot read {PROSE}: {e}"))?;
    let prose = parse(&text)?;
    let mut list = String::from(
        "# Error codes\n\nOver HTTP an error is `{\"errorCode\":\"…\",\"message\":\"…\"}`, for some codes with \
         `details`; over gRPC it is a status whose details carry the same facts. Codes are stable: match them, not \
         the messages. Each code has a page that says what happened, why, and what to do.\n\n## Status by cause\n\n\
         This is the answer unless the code fixes another one.\n\n",
    );
    // No code of its own, so it shows the defaults.
    let defaults = KINDS.iter().map(|(kind, words)| {
        let (http, grpc) = wire(Code::Generic, *kind);
        [(*words).to_owned(), http.as_u16().to_string(), format!("{grpc:?}")]
    });
    list.push_str(&table(["Cause", "HTTP", "gRPC"], defaults));
    list.push_str("\n## Codes\n\n");
    let rows = Code::ALL.iter().map(|code| {
        [
            format!("[`{0}`](../errors/{0}.md)", code.as_str()),
            code.category().as_str().to_owned(),
            cell(code.summary()),
            status(*code),
        ]
    });
    list.push_str(&table(["Code", "Group", "What happened", "HTTP / gRPC"], rows));
    pages.insert("docs/reference/errors.md".to_owned(), list);

    for code in Code::ALL {
        // `parse` has made sure that there is one.
        let Some(prose) = prose.get(code.as_str()) else { continue };
        let page = format!(
            "# {code}\n\n## What happened\n\n{what}\n\n## Why\n\n{why}\n\n## Next step\n\n{next}\n\n\
             Status (HTTP / gRPC): {status}. Group: {group}.\n\n[All codes](../reference/errors.md)\n",
            code = code.as_str(),
            what = code.summary(),
            why = prose.why.trim(),
            next = prose.next.trim(),
            status = status(*code),
            group = code.category().as_str(),
        );
        pages.insert(format!("docs/errors/{}.md", code.as_str()), page);
    }
    Ok(())
}

/// The fixed answer of a code, or that it goes by cause, with the exceptions.
fn status(code: Code) -> String {
    let text = |(http, grpc): (http::StatusCode, tonic::Code)| format!("{} / {grpc:?}", http.as_u16());
    let all: Vec<_> = KINDS.iter().map(|(kind, _)| wire(code, *kind)).collect();
    if all.iter().all(|one| *one == all[0]) {
        return text(all[0]);
    }
    let fixed = |index: &usize| all[*index] != wire(Code::Generic, KINDS[*index].0);
    let differing: Vec<usize> = (0..all.len()).filter(fixed).collect();
    let Some(first) = differing.first() else { return "by cause".to_owned() };
    let same = differing.iter().all(|index| all[*index] == all[*first]);
    match (same, differing.len()) {
        // Most causes give one answer: that is the rule, the others go by cause.
        (true, 3..) => format!("{}; what the caller can mend goes by cause", text(all[*first])),
        _ => {
            let mut out: Vec<String> =
                differing.iter().map(|index| format!("{} ({})", text(all[*index]), KINDS[*index].1)).collect();
            out.push("else by cause".to_owned());
            out.join("; ")
        }
    }
}

fn parse(text: &str) -> Result<BTreeMap<String, Prose>, String> {
    let prose: BTreeMap<String, Prose> = toml::from_str(text).map_err(|e| format!("{PROSE}: {e}"))?;
    let mut mistakes = Vec::new();
    for code in Code::ALL {
        match prose.get(code.as_str()) {
            None => mistakes.push(format!("{} has no entry", code.as_str())),
            Some(Prose { why, next }) if why.trim().is_empty() || next.trim().is_empty() => {
                mistakes.push(format!("{} lacks `why` or `next`", code.as_str()));
            }
            Some(_) => {}
        }
    }
    for name in prose.keys() {
        if !Code::ALL.iter().any(|code| code.as_str() == name) {
            mistakes.push(format!("{name} is not a code of daemon/core/src/codes.rs"));
        }
    }
    if mistakes.is_empty() {
        return Ok(prose);
    }
    Err(format!(
        "{PROSE}:\n  {}\n  next: write `[CODE]` with `why` and `next` for each code, and only for those",
        mistakes.join("\n  ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_without_its_page_is_named() {
        let report =
            parse("[ERR_NO_SUCH]\nwhy = \"a\"\nnext = \"b\"\n[ERROR]\nwhy = \"\"\nnext = \"b\"\n").err().unwrap();
        assert!(report.contains("ERR_NO_SUCH is not a code"), "{report}");
        assert!(report.contains("ERR_STATE_GET has no entry"), "{report}");
        assert!(report.contains("ERROR lacks"), "{report}");
    }

    #[test]
    fn statuses_say_what_is_fixed() {
        assert_eq!(status(Code::SecretGet), "500 / Internal");
        assert_eq!(status(Code::Generic), "by cause");
        assert_eq!(status(Code::StateGet), "500 / Internal; what the caller can mend goes by cause");
        assert!(status(Code::StateStoreNotConfigured).starts_with("500 / FailedPrecondition ("));
    }
}
