//! JSON that is not what was asked for, in plain words. Nothing here runs while bodies are right.

use serde::de::{Deserialize, DeserializeOwned};
use serde_json::Error;
use serde_json::error::Category;

/// Values whose name people know.
pub(crate) trait Named: DeserializeOwned {
    /// What is expected.
    const NAME: &'static str;
}

impl Named for String {
    const NAME: &'static str = "a string";
}

impl Named for Option<String> {
    const NAME: &'static str = "a string";
}

impl Named for i64 {
    const NAME: &'static str = "a whole number";
}

impl Named for Vec<String> {
    const NAME: &'static str = "a list of strings";
}

impl Named for std::collections::BTreeMap<String, String> {
    const NAME: &'static str = "an object whose values are strings";
}

/// Reads one JSON value and nothing after it.
///
/// # Errors
/// What was expected, and what came.
pub(crate) fn read<'a, T: Deserialize<'a>>(text: &'a str, expected: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|e| told(text.as_bytes(), expected, &e))
}

/// What is wrong with a text that serde could not read.
#[cold]
pub(crate) fn told(text: &[u8], expected: &str, e: &Error) -> String {
    let first = text.iter().copied().find(|b| !b.is_ascii_whitespace());
    match (e.classify(), first) {
        (_, None) => format!("expected {expected}, got nothing"),
        (Category::Data, Some(first)) => {
            let got = kind(first);
            if got == "a number" && expected == i64::NAME {
                return format!("expected {expected}, got a fraction or a number beyond 64 bits");
            }
            let plain = expected.replacen("a JSON list", "a list", 1).replacen("a JSON object", "an object", 1);
            match got {
                // The outer value is of the right kind, what is in it is not.
                "an object" | "a list" if plain.starts_with(got) => {
                    format!("expected {expected}, got {got} with something else in it")
                }
                _ => format!("expected {expected}, got {got}"),
            }
        }
        (Category::Eof, _) => format!("expected {expected}, got JSON that breaks off"),
        (Category::Syntax | Category::Io, _) => format!("expected {expected}, got text that is no JSON: {e}"),
    }
}

/// The kind of a JSON value by its first character.
fn kind(first: u8) -> &'static str {
    match first {
        b'{' => "an object",
        b'[' => "a list",
        b'"' => "a string",
        b't' | b'f' => "true or false",
        b'n' => "null",
        _ => "a number",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn wrong<'a, T: Deserialize<'a>>(text: &'a str, expected: &str) -> String {
        read::<T>(text, expected).err().unwrap()
    }

    #[test]
    fn mistakes_name_what_was_expected_and_what_came() {
        let list = "a JSON list of {key, value}";
        for (text, end) in [
            ("", "got nothing"),
            (" \n", "got nothing"),
            ("{}", "got an object"),
            ("7", "got a number"),
            ("-7", "got a number"),
            ("\"a\"", "got a string"),
            ("true", "got true or false"),
            ("null", "got null"),
            ("[1,", "got JSON that breaks off"),
            ("hello", "got text that is no JSON: expected value at line 1 column 1"),
            ("[1,]", "got text that is no JSON: trailing comma at line 1 column 4"),
            ("[] []", "got text that is no JSON: trailing characters at line 1 column 4"),
        ] {
            assert_eq!(wrong::<Vec<&serde_json::value::RawValue>>(text, list), format!("expected {list}, {end}"));
        }
        assert_eq!(
            wrong::<Vec<String>>("[\"a\", 1]", Vec::<String>::NAME),
            "expected a list of strings, got a list with something else in it"
        );
        assert_eq!(
            wrong::<BTreeMap<String, String>>("{\"a\": 1}", "an object whose values are strings"),
            "expected an object whose values are strings, got an object with something else in it"
        );
        assert_eq!(
            wrong::<BTreeMap<String, String>>("{\"a\": 1}", "a JSON object of strings"),
            "expected a JSON object of strings, got an object with something else in it"
        );
        assert_eq!(wrong::<String>("[]", String::NAME), "expected a string, got a list");
        assert_eq!(
            wrong::<i64>("1.5", i64::NAME),
            "expected a whole number, got a fraction or a number beyond 64 bits"
        );
    }
}
