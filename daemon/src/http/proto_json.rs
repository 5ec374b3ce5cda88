//! Bodies that mirror a protobuf message: names in lowerCamelCase or snake_case only,
//! unknown members accepted.

use mecha_core::ApiError;
use serde_json::{Map, Value};

use crate::plain;

/// Members of one message.
#[derive(Debug)]
pub(super) struct Members(Map<String, Value>);

impl Members {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        plain::read(text, "a JSON object").map(Self)
    }

    fn get(&self, camel: &str) -> Option<&Value> {
        self.0.get(camel).or_else(|| self.0.get(&snake(camel))).filter(|v| !v.is_null())
    }

    /// A text member; absent is empty.
    pub(super) fn text(&self, name: &str) -> Result<String, ApiError> {
        match self.get(name) {
            None => Ok(String::new()),
            Some(Value::String(s)) => Ok(s.clone()),
            Some(_) => Err(wrong(name, "a string")),
        }
    }

    /// An integer member, which protobuf JSON also allows as text; absent is 0.
    pub(super) fn int(&self, name: &str) -> Result<i64, ApiError> {
        match self.get(name) {
            None => Ok(0),
            Some(Value::Number(n)) => {
                // protobuf JSON accepts 1.0 and 1e2 for integers.
                let whole = |f: f64| (f.fract() == 0.0 && f.abs() < 9e15).then_some(f as i64);
                n.as_i64().or_else(|| n.as_f64().and_then(whole)).ok_or_else(|| wrong(name, "an integer"))
            }
            Some(Value::String(s)) => s.parse().map_err(|_| wrong(name, "an integer")),
            Some(_) => Err(wrong(name, "an integer")),
        }
    }
}

fn wrong(name: &str, want: &str) -> ApiError {
    ApiError::malformed(format!("failed deserializing HTTP body: member \"{name}\" must be {want}"))
}

fn snake(camel: &str) -> String {
    let mut out = String::with_capacity(camel.len() + 4);
    for c in camel.chars() {
        if c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_and_no_other() {
        for body in [r#"{"resourceId":"a"}"#, r#"{"resource_id":"a","x":1}"#] {
            assert_eq!(Members::parse(body).unwrap().text("resourceId").unwrap(), "a");
        }
        assert_eq!(Members::parse(r#"{"ResourceId":"a"}"#).unwrap().text("resourceId").unwrap(), "");
    }

    #[test]
    fn integers_may_be_text() {
        let m = Members::parse(r#"{"n":"7","m":2.0,"x":1.5}"#).unwrap();
        assert_eq!(m.int("n").unwrap(), 7);
        assert_eq!(m.int("m").unwrap(), 2);
        assert!(m.int("x").is_err());
    }
}
