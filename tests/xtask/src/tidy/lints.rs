//! Every crate takes the lints of the workspace, and those forbid `unsafe`.

use super::Finding;

/// The root manifest forbids `unsafe`.
pub(super) fn check_root(manifest: &str) -> Option<Finding> {
    let forbidden = value(manifest, "workspace.lints.rust", "unsafe_code");
    (forbidden != Some("\"forbid\"")).then(|| {
        Finding::new(
            "Cargo.toml",
            "`unsafe_code` is not forbidden",
            "write `unsafe_code = \"forbid\"` below `[workspace.lints.rust]`",
        )
    })
}

/// A member takes the lints of the workspace.
pub(super) fn check_member(path: &str, manifest: &str) -> Option<Finding> {
    (value(manifest, "lints", "workspace") != Some("true")).then(|| {
        Finding::new(
            path,
            "the crate does not take the lints of the workspace, so `unsafe` is not forbidden in it",
            "add `[lints]` with `workspace = true`",
        )
    })
}

/// The text after `key =` in `[table]`. Our manifests are plain: a table's header and each key have a line.
fn value<'a>(manifest: &'a str, table: &str, key: &str) -> Option<&'a str> {
    let mut inside = false;
    for line in manifest.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(header) = line.strip_prefix('[') {
            inside = header.strip_suffix(']') == Some(table);
        } else if inside
            && let Some((name, value)) = line.split_once('=')
            && name.trim() == key
        {
            return Some(value.trim());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_forbids_unsafe() {
        assert_eq!(check_root("[workspace.lints.rust]\nunsafe_code = \"forbid\" # always\n"), None);
        assert!(check_root("[workspace.lints.rust]\nunsafe_code = \"warn\"\n").is_some());
        assert!(check_root("[workspace.lints.clippy]\nunsafe_code = \"forbid\"\n").is_some());
    }

    #[test]
    fn a_member_takes_the_lints_of_the_workspace() {
        assert_eq!(check_member("a/Cargo.toml", "[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n"), None);
        for other in ["[package]\n", "[lints]\n", "[lints]\n# workspace = true\n", "[dependencies]\nworkspace = true\n"]
        {
            let found = check_member("a/Cargo.toml", other).unwrap().to_string();
            assert!(found.starts_with("a/Cargo.toml: "), "{found}");
        }
    }
}
