//! YAML text as a tree of nodes that know their place in the file.
//!
//! Values are read by YAML 1.1 rules, because documents written for
//! daprd mean `true` when they say `on`. Input is bounded in size, depth, number of
//! nodes and bytes of text, *after* aliases are expanded, so a small file cannot
//! become a large one.

mod build;
mod de;
mod scalar;

pub use build::{Document, Fault, MAX_DEPTH, MAX_NODES, MAX_TEXT_BYTES, Parsed, parse};
pub use de::{Misfit, from_node};

use serde_json::{Map, Number};

/// A value and where it starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it is.
    pub value: Value,
    /// Line, counted from 1; 0 when the document did not come from text.
    pub line: u32,
    /// Column, counted from 1; 0 when the document did not come from text.
    pub column: u32,
}

/// A resolved YAML value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// `true`, `yes`, `on`, … unquoted.
    Bool(bool),
    /// A whole number in decimal, octal (`0777`), hexadecimal or binary notation.
    Int(i128),
    /// A number with fraction or exponent; always finite.
    Float(f64),
    /// Everything else.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the document, each key once.
    Map(Vec<Entry>),
}

/// One key and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key as text.
    pub key: String,
    /// Line of the key.
    pub line: u32,
    /// Column of the key.
    pub column: u32,
    /// Its value.
    pub node: Node,
}

impl Node {
    /// A node from nowhere in particular.
    #[must_use]
    pub fn synthetic(value: Value) -> Self {
        Self { value, line: 0, column: 0 }
    }

    /// Whether it is `null`.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    /// The value of `key` in a mapping.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|e| e.key == key).map(|e| &e.node),
            _ => None,
        }
    }

    /// The text of a scalar: `null` is empty, numbers are in their shortest form.
    /// `None` for a list or a mapping.
    #[must_use]
    pub fn scalar_text(&self) -> Option<String> {
        match &self.value {
            Value::Null => Some(String::new()),
            Value::Bool(b) => Some(b.to_string()),
            Value::Int(i) => Some(i.to_string()),
            Value::Float(f) => Some(scalar::float_text(*f)),
            Value::Text(t) => Some(t.clone()),
            Value::List(_) | Value::Map(_) => None,
        }
    }

    /// The text of any value: a list or a mapping becomes compact JSON.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.scalar_text().unwrap_or_else(|| self.to_json().to_string())
    }

    /// The same value as JSON.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(b) => serde_json::Value::Bool(*b),
            Value::Int(i) => Number::from_i128(*i)
                .map_or_else(|| serde_json::Value::String(i.to_string()), serde_json::Value::Number),
            // A float without fraction is a whole number in JSON text, as daprd writes it.
            Value::Float(f) if f.fract() == 0.0 && f.abs() < 9.0e15 => serde_json::Value::from(*f as i64),
            Value::Float(f) => Number::from_f64(*f).map_or(serde_json::Value::Null, serde_json::Value::Number),
            Value::Text(t) => serde_json::Value::String(t.clone()),
            Value::List(items) => serde_json::Value::Array(items.iter().map(Self::to_json).collect()),
            Value::Map(entries) => {
                let map: Map<_, _> = entries.iter().map(|e| (e.key.clone(), e.node.to_json())).collect();
                serde_json::Value::Object(map)
            }
        }
    }

    /// A tree without places, from JSON as the control plane sends it.
    #[must_use]
    pub fn from_json(json: &serde_json::Value) -> Self {
        let value = match json {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(b) => Value::Bool(*b),
            serde_json::Value::Number(n) => match n.as_i128() {
                Some(i) => Value::Int(i),
                None => n.as_f64().filter(|f| f.is_finite()).map_or_else(|| Value::Text(n.to_string()), Value::Float),
            },
            serde_json::Value::String(s) => Value::Text(s.clone()),
            serde_json::Value::Array(items) => Value::List(items.iter().map(Self::from_json).collect()),
            serde_json::Value::Object(map) => Value::Map(
                map.iter()
                    .map(|(k, v)| Entry { key: k.clone(), line: 0, column: 0, node: Self::from_json(v) })
                    .collect(),
            ),
        };
        Self::synthetic(value)
    }

    /// What it is, for messages; never the value.
    #[must_use]
    pub fn describe(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

#[cfg(test)]
mod tests;
