//! Reads a tree of nodes into any serde type, and says where a mistake is.

use std::cell::RefCell;
use std::fmt;

use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Visitor};

use super::{Entry, Node, Value};
use crate::text::did_you_mean;

/// A mistake and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// Path of the field, such as `spec.entries[0].claim`.
    pub path: String,
    /// Line, counted from 1; 0 when unknown.
    pub line: u32,
    /// Column, counted from 1; 0 when unknown.
    pub column: u32,
    /// What is wrong and what is expected.
    pub message: String,
}

/// Reads `node` as a `T`. Fields that `T` does not have come back beside it, with the place of each.
///
/// # Errors
/// The first field that does not fit.
pub fn from_node<T: DeserializeOwned>(node: &Node) -> Result<(T, Vec<Misfit>), Misfit> {
    let unknown = RefCell::default();
    let reader = Reader { node, path: String::new(), unknown: &unknown };
    match T::deserialize(reader) {
        Ok(value) => Ok((value, unknown.into_inner())),
        Err(error) => Err(Misfit { path: error.path, line: error.line, column: error.column, message: error.message }),
    }
}

#[derive(Debug)]
struct Error {
    path: String,
    line: u32,
    column: u32,
    message: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { path: String::new(), line: 0, column: 0, message: message.to_string() }
    }

    fn missing_field(field: &'static str) -> Self {
        Self::custom(format_args!("lacks '{field}', which is required"))
    }
}

struct Reader<'n, 'u> {
    node: &'n Node,
    path: String,
    unknown: &'u RefCell<Vec<Misfit>>,
}

impl<'n, 'u> Reader<'n, 'u> {
    fn fail<T>(&self, expected: &str) -> Result<T, Error> {
        let mut message = format!("must be {expected}, found {}", self.node.describe());
        let scalar = matches!(self.node.value, Value::Bool(_) | Value::Int(_) | Value::Float(_));
        if scalar && expected == "text" {
            message.push_str("; put it in quotes");
        }
        Err(self.place(Error { path: String::new(), line: 0, column: 0, message }))
    }

    /// Gives an error its place, unless a field further inside has done so.
    fn place(&self, mut error: Error) -> Error {
        if error.path.is_empty() && error.line == 0 {
            (error.path, error.line, error.column) = (self.path.clone(), self.node.line, self.node.column);
        }
        error
    }

    fn child(&self, node: &'n Node, name: &str) -> Self {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        Self { node, path, unknown: self.unknown }
    }

    fn map<V: Visitor<'n>>(&self, entries: &'n [Entry], visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Fields { of: self, rest: entries.iter(), value: None }).map_err(|e| self.place(e))
    }

    fn list<V: Visitor<'n>>(&self, items: &'n [Node], visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Items { of: self, rest: items.iter(), index: 0 }).map_err(|e| self.place(e))
    }

    fn any<V: Visitor<'n>>(&self, visitor: V) -> Result<V::Value, Error> {
        let result = match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::Int(i) => match (i64::try_from(*i), u64::try_from(*i)) {
                (Ok(i), _) => visitor.visit_i64(i),
                (_, Ok(u)) => visitor.visit_u64(u),
                _ => return self.fail("a number of at most 64 bits"),
            },
            Value::Float(f) if f.fract() == 0.0 && f.abs() < 9.0e15 => visitor.visit_i64(*f as i64),
            Value::Float(f) => visitor.visit_f64(*f),
            Value::Text(t) => visitor.visit_str(t),
            Value::List(items) => return self.list(items, visitor),
            Value::Map(entries) => return self.map(entries, visitor),
        };
        result.map_err(|e| self.place(e))
    }

    fn whole<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.node.value {
            Value::Int(_) => self.any(visitor),
            Value::Float(f) if f.fract() == 0.0 => self.any(visitor),
            _ => self.fail("a whole number"),
        }
    }
}

macro_rules! whole_numbers {
    ($($method:ident)+) => {
        $(fn $method<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Error> { self.whole(visitor) })+
    };
}

impl<'n> de::Deserializer<'n> for Reader<'n, '_> {
    type Error = Error;

    whole_numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
    }

    fn deserialize_any<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Error> {
        self.any(visitor)
    }

    fn deserialize_bool<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.node.value {
            Value::Bool(_) => self.any(visitor),
            Value::Text(_) => self.fail("true or false without quotes"),
            _ => self.fail("true or false"),
        }
    }

    fn deserialize_str<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.node.value {
            Value::Text(_) => self.any(visitor),
            _ => self.fail("text"),
        }
    }

    fn deserialize_string<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.node.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'n>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::List(items) => self.list(items, visitor),
            Value::Null => self.list(&[], visitor),
            _ => self.fail("a list"),
        }
    }

    fn deserialize_map<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Map(entries) => self.map(entries, visitor),
            Value::Null => self.map(&[], visitor),
            _ => self.fail("a mapping"),
        }
    }

    fn deserialize_struct<V: Visitor<'n>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        // Kubernetes keeps much in the metadata that is none of our business.
        if let Value::Map(entries) = &self.node.value
            && name != "ObjectMeta"
        {
            let strangers = entries.iter().filter(|e| !fields.contains(&e.key.as_str()));
            self.unknown.borrow_mut().extend(strangers.map(|entry| {
                let close = did_you_mean(&entry.key, fields.iter().copied());
                let hint = close.map(|name| format!("; did you mean '{name}'?")).unwrap_or_default();
                Misfit {
                    path: self.child(&entry.node, &entry.key).path,
                    line: entry.line,
                    column: entry.column,
                    message: format!("unknown field{hint}"),
                }
            }));
        }
        self.deserialize_map(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        <V: Visitor<'n>>
        f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct enum identifier
    }
}

struct Fields<'r, 'n, 'u> {
    of: &'r Reader<'n, 'u>,
    rest: std::slice::Iter<'n, Entry>,
    value: Option<&'n Entry>,
}

impl<'n> de::MapAccess<'n> for Fields<'_, 'n, '_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'n>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        // A field without a value counts as one that is not there, as in Kubernetes.
        let Some(entry) = self.rest.find(|entry| !entry.node.is_null()) else { return Ok(None) };
        self.value = Some(entry);
        seed.deserialize(entry.key.as_str().into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'n>>(&mut self, seed: V) -> Result<V::Value, Error> {
        match self.value.take() {
            Some(entry) => {
                let reader = self.of.child(&entry.node, &entry.key);
                let place = self.of.child(&entry.node, &entry.key);
                seed.deserialize(reader).map_err(|e| place.place(e))
            }
            None => Err(de::Error::custom("a value without its key")),
        }
    }
}

struct Items<'r, 'n, 'u> {
    of: &'r Reader<'n, 'u>,
    rest: std::slice::Iter<'n, Node>,
    index: usize,
}

impl<'n> de::SeqAccess<'n> for Items<'_, 'n, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'n>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some(node) = self.rest.next() else { return Ok(None) };
        let path = format!("{}[{}]", self.of.path, self.index);
        self.index += 1;
        let place = Reader { node, path: path.clone(), unknown: self.of.unknown };
        seed.deserialize(Reader { node, path, unknown: self.of.unknown }).map(Some).map_err(|e| place.place(e))
    }
}
