//! Schemas as JSON has them, with names resolved.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::DEPTH;

/// A schema.
#[derive(Debug)]
pub(crate) struct Schema {
    kinds: Vec<Kind>,
    root: At,
}

/// Place of a kind in its schema.
pub(super) type At = usize;

/// What a value is.
#[derive(Debug)]
pub(super) enum Kind {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Record { name: String, fields: Vec<Field> },
    Enum { name: String, symbols: Vec<String> },
    Fixed { name: String, size: usize },
    Array(At),
    Map(At),
    Union(Vec<At>),
}

/// A field of a record.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) kind: At,
    pub(super) default: Option<Value>,
}

impl Kind {
    fn primitive(name: &str) -> Option<Self> {
        Some(match name {
            "null" => Self::Null,
            "boolean" => Self::Boolean,
            "int" => Self::Int,
            "long" => Self::Long,
            "float" => Self::Float,
            "double" => Self::Double,
            "bytes" => Self::Bytes,
            "string" => Self::String,
            _ => return None,
        })
    }

    /// How a union in Avro's JSON calls it, and messages.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Null => "null",
            Self::Boolean => "boolean",
            Self::Int => "int",
            Self::Long => "long",
            Self::Float => "float",
            Self::Double => "double",
            Self::Bytes => "bytes",
            Self::String => "string",
            Self::Record { name, .. } | Self::Enum { name, .. } | Self::Fixed { name, .. } => name,
            Self::Array(_) => "array",
            Self::Map(_) => "map",
            Self::Union(_) => "union",
        }
    }
}

impl Schema {
    /// Reads a schema.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text: Value = serde_json::from_str(text).map_err(|e| format!("the schema is no JSON: {e}"))?;
        let mut reader = Reader::default();
        let root = reader.read(&text, "", 0)?;
        Ok(Self { kinds: reader.kinds, root })
    }

    pub(super) fn root(&self) -> At {
        self.root
    }

    pub(super) fn kind(&self, at: At) -> &Kind {
        &self.kinds[at]
    }
}

#[derive(Default)]
struct Reader {
    kinds: Vec<Kind>,
    names: HashMap<String, At>,
}

impl Reader {
    fn add(&mut self, kind: Kind) -> At {
        self.kinds.push(kind);
        self.kinds.len() - 1
    }

    fn read(&mut self, text: &Value, space: &str, depth: usize) -> Result<At, String> {
        if depth > DEPTH {
            return Err(format!("the schema is deeper than {DEPTH} levels"));
        }
        match text {
            Value::String(name) => self.find(name, space),
            Value::Array(branches) => self.union(branches, space, depth),
            Value::Object(members) => self.complex(members, space, depth),
            _ => Err("a schema is a name, an object or an array".to_owned()),
        }
    }

    fn find(&mut self, name: &str, space: &str) -> Result<At, String> {
        if let Some(kind) = Kind::primitive(name) {
            return Ok(self.add(kind));
        }
        let found = self.names.get(&full(name, space)).or_else(|| self.names.get(name));
        found.copied().ok_or_else(|| format!("the schema has no type '{name}' at this place"))
    }

    fn union(&mut self, branches: &[Value], space: &str, depth: usize) -> Result<At, String> {
        let branches = branches.iter().map(|branch| self.read(branch, space, depth + 1));
        let branches = branches.collect::<Result<Vec<_>, _>>()?;
        if branches.is_empty() {
            return Err("a union has no types".to_owned());
        }
        if branches.iter().any(|at| matches!(self.kinds[*at], Kind::Union(_))) {
            return Err("a union is a type of a union".to_owned());
        }
        Ok(self.add(Kind::Union(branches)))
    }

    fn complex(&mut self, members: &Map<String, Value>, space: &str, depth: usize) -> Result<At, String> {
        let kind = match members.get("type") {
            Some(Value::String(kind)) => kind.as_str(),
            // {"type": {…}} is what is inside.
            Some(inner) => return self.read(inner, space, depth + 1),
            None => return Err("an object of the schema has no 'type'".to_owned()),
        };
        match kind {
            "array" => {
                let items = members.get("items").ok_or("an array has no 'items'")?;
                let items = self.read(items, space, depth + 1)?;
                Ok(self.add(Kind::Array(items)))
            }
            "map" => {
                let values = members.get("values").ok_or("a map has no 'values'")?;
                let values = self.read(values, space, depth + 1)?;
                Ok(self.add(Kind::Map(values)))
            }
            "enum" => {
                let name = named(members, space)?;
                let symbols = members.get("symbols").and_then(Value::as_array).map(|symbols| {
                    symbols.iter().map(|symbol| symbol.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
                });
                let symbols = symbols.flatten().ok_or_else(|| format!("enum '{name}' has no list of 'symbols'"))?;
                self.name(name.clone(), Kind::Enum { name, symbols })
            }
            "fixed" => {
                let name = named(members, space)?;
                let size = members.get("size").and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
                let size = size.ok_or_else(|| format!("fixed '{name}' has no 'size'"))?;
                self.name(name.clone(), Kind::Fixed { name, size })
            }
            "record" | "error" => self.record(named(members, space)?, members, depth),
            other => self.find(other, space),
        }
    }

    fn record(&mut self, name: String, members: &Map<String, Value>, depth: usize) -> Result<At, String> {
        let given = members.get("fields").and_then(Value::as_array);
        let given = given.ok_or_else(|| format!("record '{name}' has no list of 'fields'"))?;
        let space = name.rsplit_once('.').map_or("", |(space, _)| space).to_owned();
        // Known before its fields are, which may be of its own type.
        let at = self.name(name.clone(), Kind::Record { name: name.clone(), fields: Vec::new() })?;
        let mut fields = Vec::with_capacity(given.len());
        for field in given {
            let own = field.get("name").and_then(Value::as_str);
            let own = own.ok_or_else(|| format!("a field of record '{name}' has no 'name'"))?;
            let kind = field.get("type").ok_or_else(|| format!("field '{own}' of record '{name}' has no 'type'"))?;
            let kind = self.read(kind, &space, depth + 1)?;
            fields.push(Field { name: own.to_owned(), kind, default: field.get("default").cloned() });
        }
        self.kinds[at] = Kind::Record { name, fields };
        Ok(at)
    }

    fn name(&mut self, name: String, kind: Kind) -> Result<At, String> {
        let at = self.add(kind);
        match self.names.insert(name.clone(), at) {
            None => Ok(at),
            Some(_) => Err(format!("the schema defines '{name}' twice")),
        }
    }
}

/// The full name of a definition.
fn named(members: &Map<String, Value>, space: &str) -> Result<String, String> {
    let name = members.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
    let name = name.ok_or("a record, enum or fixed has no 'name'")?;
    Ok(full(name, members.get("namespace").and_then(Value::as_str).unwrap_or(space)))
}

fn full(name: &str, space: &str) -> String {
    if name.contains('.') || space.is_empty() { name.to_owned() } else { format!("{space}.{name}") }
}
