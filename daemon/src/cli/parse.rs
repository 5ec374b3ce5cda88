//! Command line to raw values, by Go's rules for long flags.

use std::collections::BTreeMap;

use super::flags::{FlagDoc, FlagValue, closest, find};

/// Values as written, by canonical name, in the order given.
#[derive(Debug, Default)]
pub(super) struct Raw {
    values: BTreeMap<&'static str, Vec<String>>,
    /// Arguments that belong to no flag; the incumbent ignores them too.
    pub(super) extra: Vec<String>,
    pub(super) errors: Vec<String>,
}

impl Raw {
    pub(super) fn is_given(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// The last value wins.
    pub(super) fn last(&self, name: &str) -> Option<&str> {
        self.values.get(name)?.last().map(String::as_str)
    }

    /// All values, split at commas, trimmed, without empty ones.
    pub(super) fn list(&self, name: &str) -> Vec<String> {
        let values = self.values.get(name).into_iter().flatten();
        values.flat_map(|value| value.split(',')).map(str::trim).filter(|v| !v.is_empty()).map(str::to_owned).collect()
    }

    fn push(&mut self, flag: &'static FlagDoc, value: impl Into<String>) {
        self.values.entry(flag.name).or_default().push(value.into());
    }
}

/// Reads all arguments (without the program's name); mistakes are collected.
pub(super) fn parse<S: AsRef<str>>(args: &[S]) -> Raw {
    let mut raw = Raw::default();
    let mut args = args.iter().map(AsRef::as_ref).peekable();
    while let Some(arg) = args.next() {
        if arg == "--" {
            raw.extra.extend(args.map(str::to_owned));
            break;
        }
        let Some(body) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).filter(|body| !body.is_empty())
        else {
            raw.extra.push(arg.to_owned());
            continue;
        };
        let (name, inline) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (body, None),
        };
        let Some(flag) = find(name) else {
            raw.errors.push(match closest(name) {
                Some(known) => format!("unknown flag: --{name}. Did you mean --{known}?"),
                None => format!("unknown flag: --{name}. See --help for the known ones"),
            });
            // The value of an unknown flag must not become an argument of its own.
            if inline.is_none() && args.peek().is_some_and(|next| !next.starts_with('-')) {
                args.next();
            }
            continue;
        };
        match (flag.value, inline) {
            (_, Some(value)) => raw.push(flag, value),
            (FlagValue::Bool | FlagValue::Strict, None) => {
                let value = args.next_if(|next| parse_bool(next).is_some()).unwrap_or("true");
                raw.push(flag, value);
            }
            (_, None) => match args.next() {
                Some(value) => raw.push(flag, value),
                None => raw.errors.push(format!("flag needs an argument: --{name}")),
            },
        }
    }
    raw
}

/// The booleans Go's `strconv.ParseBool` knows.
pub(super) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last<'a>(raw: &'a Raw, name: &str) -> Option<&'a str> {
        raw.last(name)
    }

    #[test]
    fn all_spellings_of_a_flag_mean_the_same() {
        for args in [&["--app-id", "a"][..], &["--app-id=a"], &["-app-id", "a"], &["-app-id=a"]] {
            let raw = parse(args);
            assert_eq!(last(&raw, "app-id"), Some("a"), "{args:?}");
            assert!(raw.errors.is_empty() && raw.extra.is_empty());
        }
    }

    #[test]
    fn booleans_may_be_bare() {
        for (args, value) in [
            (&["--enable-mtls"][..], "true"),
            (&["--enable-mtls=false"], "false"),
            (&["--enable-mtls", "false"], "false"),
            (&["--enable-mtls", "--app-id", "x"], "true"),
            (&["--enable-mtls", "word"], "true"),
        ] {
            assert_eq!(last(&parse(args), "enable-mtls"), Some(value), "{args:?}");
        }
    }

    #[test]
    fn lists_repeat_and_split() {
        let raw = parse(&["--components-path", "a, b", "--resources-path=c,,"]);
        assert_eq!(raw.list("resources-path"), ["a", "b", "c"]);
    }

    #[test]
    fn mistakes_are_collected() {
        let raw = parse(&["--app-idd", "x", "--nonsense=1", "stray", "--app-port"]);
        assert_eq!(
            raw.errors,
            [
                "unknown flag: --app-idd. Did you mean --app-id?",
                "unknown flag: --nonsense. See --help for the known ones",
                "flag needs an argument: --app-port",
            ]
        );
        assert_eq!(raw.extra, ["stray"]);
        assert_eq!(parse(&["--", "--app-id"]).extra, ["--app-id"]);
        assert_eq!(parse(&["-", ""]).extra, ["-", ""]);
    }

    #[test]
    fn a_value_may_look_like_a_flag() {
        assert_eq!(last(&parse(&["--app-max-concurrency", "-1"]), "app-max-concurrency"), Some("-1"));
        assert_eq!(last(&parse(&["--config="]), "config"), Some(""));
    }
}
