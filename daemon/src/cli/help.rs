//! Texts for people: `--help`, `--version`, `--build-info`.

use std::fmt::Write;

use super::flags::{FLAGS, FlagDoc, FlagGroup, FlagValue};

/// The release of the incumbent whose contract we keep; `ver` of log lines.
pub const RUNTIME_VERSION: &str = "1.18.0";

/// Commit this binary was built from, if the build knew it.
pub const GIT_COMMIT: &str = match option_env!("MECHA_GIT_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// Our own version.
pub const MECHA_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Column the descriptions start at.
const COLUMN: usize = 44;

/// Answer to `--version`.
pub fn version() -> String {
    format!("{RUNTIME_VERSION}\n")
}

/// Answer to `--build-info`: three lines, fixed keys.
pub fn build_info() -> String {
    format!("Version: {RUNTIME_VERSION}\nGit Commit: {GIT_COMMIT}\nGit Version: mecha-{MECHA_VERSION}\n")
}

/// Answer to `--help`.
pub fn help() -> String {
    let mut out = String::from(
        "mechad: a sidecar that speaks the Dapr 1.18 APIs\n\n\
         Usage:\n  mechad --app-id ID [flags]\n\n\
         Example:\n  mechad --app-id orders --app-port 8080 --resources-path ./components\n",
    );
    let mut groups: Vec<FlagGroup> = FLAGS.iter().map(|flag| flag.group).collect();
    groups.sort_unstable();
    groups.dedup();
    for group in groups {
        let _ = write!(out, "\n{}:\n", group.title());
        for flag in FLAGS.iter().filter(|flag| flag.group == group) {
            line(&mut out, flag);
        }
    }
    out.push_str(
        "\nFlags are written --flag value or --flag=value; switches may stand alone. Lists are comma-separated.\n",
    );
    out
}

/// The word that stands for a flag's value.
pub fn placeholder(value: FlagValue) -> &'static str {
    match value {
        FlagValue::Bool => "",
        FlagValue::Text => "TEXT",
        FlagValue::Int => "N",
        FlagValue::Port => "PORT",
        FlagValue::Duration => "DURATION",
        FlagValue::Quantity => "SIZE",
        FlagValue::List => "LIST",
        FlagValue::Choice(_) => "WORD",
        FlagValue::Strict => "[=PARTS]",
    }
}

fn line(out: &mut String, flag: &FlagDoc) {
    let mut head = format!("  --{}", flag.name);
    for alias in flag.aliases {
        let dashes = if alias.len() == 1 { "-" } else { "--" };
        let _ = write!(head, ", {dashes}{alias}");
    }
    match flag.value {
        FlagValue::Bool => {}
        FlagValue::Strict => head.push_str(placeholder(flag.value)),
        value => {
            let _ = write!(head, " {}", placeholder(value));
        }
    }
    let mut text = flag.help.to_owned();
    if let FlagValue::Choice(words) = flag.value {
        let _ = write!(text, " One of {}.", words.join(", "));
    }
    if let Some(instead) = flag.deprecated {
        let _ = write!(text, " Deprecated: use {instead}.");
    } else if !flag.default.is_empty() && flag.default != "false" {
        let _ = write!(text, " [default: {}]", flag.default);
    }
    if head.len() + 2 > COLUMN {
        let _ = write!(out, "{head}\n{:COLUMN$}{text}\n", "");
    } else {
        let _ = writeln!(out, "{head:COLUMN$}{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_every_flag_with_its_default() {
        let help = help();
        for flag in FLAGS {
            assert!(help.contains(&format!("--{}", flag.name)), "{}", flag.name);
        }
        assert!(help.contains("[default: 50001]"));
        assert!(help.contains("Deprecated: use --max-body-size."));
        assert!(help.contains("--resources-path, --components-path LIST"));
    }

    #[test]
    fn build_info_has_its_three_keys() {
        let info = build_info();
        let keys: Vec<_> = info.lines().map(|line| line.split_once(": ").unwrap().0).collect();
        assert_eq!(keys, ["Version", "Git Commit", "Git Version"]);
    }
}
