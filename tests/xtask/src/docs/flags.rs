use super::included::flags::{FLAGS, FlagDoc, FlagGroup, FlagValue};
use super::markdown::{cell, code, codes, table};

pub(super) fn page() -> String {
    let mut out = String::from(
        "# Flags of mechad\n\nFlags are written `--flag value` or `--flag=value`, with one dash or two; switches may \
         stand alone. Lists are comma-separated, and repeatable where it says so. Durations are Go's (`1m30s`), sizes \
         Kubernetes quantities (`4Mi`). The same table drives the parser and `mechad --help`. For environment \
         variables see [configuration](../configuration.md).\n",
    );
    let mut groups: Vec<FlagGroup> = FLAGS.iter().map(|flag| flag.group).collect();
    groups.sort_unstable();
    groups.dedup();
    for group in groups {
        out.push_str(&format!("\n## {}\n\n", group.title()));
        let flags = FLAGS.iter().filter(|flag| flag.group == group);
        out.push_str(&table(["Flag", "Value", "Default", "Meaning"], flags.map(row)));
    }
    out
}

fn row(flag: &FlagDoc) -> [String; 4] {
    let mut name = code(&format!("--{}", flag.name));
    for alias in flag.aliases {
        let dashes = if alias.len() == 1 { "-" } else { "--" };
        name.push_str(&format!(", `{dashes}{alias}`"));
    }
    let value = match flag.value {
        FlagValue::Bool => "switch".to_owned(),
        FlagValue::Text => "text".to_owned(),
        FlagValue::Int => "whole number".to_owned(),
        FlagValue::Port => "port".to_owned(),
        FlagValue::Duration => "duration".to_owned(),
        FlagValue::Quantity => "size".to_owned(),
        FlagValue::List => "list".to_owned(),
        FlagValue::Choice(words) => codes(words),
        FlagValue::Strict => "switch or list".to_owned(),
    };
    let mut help = cell(flag.help);
    if let Some(instead) = flag.deprecated {
        help.push_str(&format!(" *Deprecated:* use {}.", cell(instead)));
    }
    [name, value, code(flag.default), help]
}
