//! JSON as binary Avro.

use serde_json::{Map, Value};

use super::schema::{At, Field, Kind, Schema};
use super::{DEPTH, Style};

/// Most values that are looked at for each byte of JSON, and for any: a union tries its types one by one.
const STEPS_PER_BYTE: usize = 16;
const STEPS: usize = 10_000;

impl Schema {
    /// The binary value of a JSON text.
    ///
    /// # Errors
    /// Says where the JSON does not fit the schema, and no value.
    pub(crate) fn encode(&self, json: &[u8], style: Style) -> Result<Vec<u8>, String> {
        let value: Value = serde_json::from_slice(json).map_err(|e| {
            // The parser's words name a place, never a value.
            format!("it is no JSON: line {} column {}", e.line(), e.column())
        })?;
        let steps = json.len().saturating_mul(STEPS_PER_BYTE).saturating_add(STEPS);
        let mut writer = Writer { schema: self, style, out: Vec::with_capacity(json.len()), steps };
        writer.write(self.root(), &value, 0).map_err(Misfit::told)?;
        Ok(writer.out)
    }
}

struct Writer<'s> {
    schema: &'s Schema,
    style: Style,
    out: Vec<u8>,
    /// How many are left.
    steps: usize,
}

/// What does not fit, and where.
struct Misfit {
    /// From the inside out.
    path: Vec<String>,
    what: String,
}

impl Misfit {
    fn told(self) -> String {
        let path = self.path.iter().rev().map(String::as_str).collect::<String>();
        match path.trim_start_matches('.') {
            "" => self.what,
            path => format!("at {path}: {}", self.what),
        }
    }

    fn within(mut self, step: String) -> Self {
        self.path.push(step);
        self
    }
}

type Outcome = Result<(), Misfit>;

fn misfit(what: impl Into<String>) -> Misfit {
    Misfit { path: Vec::new(), what: what.into() }
}

/// What a JSON value is, for messages.
fn sort(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A whole number, also where it is written with a point or exponent.
fn whole(value: &Value) -> Option<i64> {
    /// Larger ones are not exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_i64().or_else(|| {
        let number = value.as_f64().filter(|n| n.fract() == 0.0 && n.abs() <= EXACT && !value.is_u64())?;
        #[allow(clippy::cast_possible_truncation, reason = "whole and within the range")]
        Some(number as i64)
    })
}

impl Writer<'_> {
    fn write(&mut self, at: At, value: &Value, depth: usize) -> Outcome {
        self.steps = self.steps.saturating_sub(1);
        if depth > DEPTH || self.steps == 0 {
            return Err(misfit(format!("the value is deeper than {DEPTH} levels or takes too long to match")));
        }
        let schema = self.schema;
        let kind = schema.kind(at);
        let wrong = || misfit(format!("{} does not fit {}", sort(value), kind.name()));
        match kind {
            Kind::Null => value.is_null().then_some(()).ok_or_else(wrong)?,
            Kind::Boolean => self.out.push(value.as_bool().ok_or_else(wrong)?.into()),
            Kind::Int => {
                let number = whole(value).and_then(|number| i32::try_from(number).ok());
                self.number(number.ok_or_else(wrong)?.into());
            }
            Kind::Long => self.number(whole(value).ok_or_else(wrong)?),
            Kind::Float => {
                #[allow(clippy::cast_possible_truncation, reason = "that is what a float keeps")]
                let number = value.as_f64().ok_or_else(wrong)? as f32;
                self.out.extend(number.to_le_bytes());
            }
            Kind::Double => self.out.extend(value.as_f64().ok_or_else(wrong)?.to_le_bytes()),
            Kind::String => {
                let text = value.as_str().ok_or_else(wrong)?;
                self.count(text.len());
                self.out.extend(text.as_bytes());
            }
            Kind::Bytes => {
                let bytes = bytes(value).ok_or_else(wrong)?;
                self.count(bytes.len());
                self.out.extend(bytes);
            }
            Kind::Fixed { name, size } => {
                let bytes = bytes(value).filter(|bytes| bytes.len() == *size);
                self.out.extend(bytes.ok_or_else(|| misfit(format!("{} is no {name} of {size} bytes", sort(value))))?);
            }
            Kind::Enum { symbols, .. } => {
                let place = value.as_str().and_then(|text| symbols.iter().position(|symbol| symbol == text));
                self.count(place.ok_or_else(|| misfit(format!("it is no symbol of {}", kind.name())))?);
            }
            Kind::Array(items) => self.array(*items, value.as_array().ok_or_else(wrong)?, depth)?,
            Kind::Map(values) => self.map(*values, value.as_object().ok_or_else(wrong)?, depth)?,
            Kind::Record { name, fields } => {
                self.record(name, fields, value.as_object().ok_or_else(wrong)?, depth)?;
            }
            Kind::Union(branches) => self.union(branches, value, depth)?,
        }
        Ok(())
    }

    fn array(&mut self, items: At, values: &[Value], depth: usize) -> Outcome {
        if !values.is_empty() {
            self.count(values.len());
        }
        for (index, value) in values.iter().enumerate() {
            self.write(items, value, depth + 1).map_err(|e| e.within(format!("[{index}]")))?;
        }
        self.number(0);
        Ok(())
    }

    fn map(&mut self, kind: At, members: &Map<String, Value>, depth: usize) -> Outcome {
        if !members.is_empty() {
            self.count(members.len());
        }
        for (index, (key, value)) in members.iter().enumerate() {
            self.count(key.len());
            self.out.extend(key.as_bytes());
            // Keys are data, so they are not shown.
            self.write(kind, value, depth + 1).map_err(|e| e.within(format!("{{{index}}}")))?;
        }
        self.number(0);
        Ok(())
    }

    fn record(&mut self, name: &str, fields: &[Field], members: &Map<String, Value>, depth: usize) -> Outcome {
        let mut used = 0;
        for field in fields {
            let outcome = match (members.get(&field.name), &field.default) {
                (Some(value), _) => {
                    used += 1;
                    self.write(field.kind, value, depth + 1)
                }
                (None, Some(default)) => self.default(field.kind, default, depth + 1),
                (None, None) => Err(misfit(format!("record {name} needs the field '{}'", field.name))),
            };
            outcome.map_err(|e| e.within(format!(".{}", field.name)))?;
        }
        if used == members.len() {
            return Ok(());
        }
        let unknown = members.keys().find(|key| !fields.iter().any(|field| field.name == **key));
        let unknown = unknown.map(|key| key.escape_debug().take(80).collect::<String>()).unwrap_or_default();
        Err(misfit(format!("record {name} has no field '{unknown}'")))
    }

    /// The default of a union is of its first type, and stands without its name in any style.
    fn default(&mut self, at: At, default: &Value, depth: usize) -> Outcome {
        if let Kind::Union(branches) = self.schema.kind(at)
            && let Some(first) = branches.first()
        {
            self.number(0);
            return self.write(*first, default, depth);
        }
        self.write(at, default, depth)
    }

    fn union(&mut self, branches: &[At], value: &Value, depth: usize) -> Outcome {
        match self.style {
            Style::Standard => {
                let before = self.out.len();
                for (index, at) in branches.iter().enumerate() {
                    self.count(index);
                    if self.write(*at, value, depth + 1).is_ok() {
                        return Ok(());
                    }
                    self.out.truncate(before);
                }
                Err(misfit(format!("{} fits no type of the union", sort(value))))
            }
            Style::AvroJson => {
                let (name, value) = match value {
                    Value::Null => ("null", value),
                    Value::Object(one) if one.len() == 1 => match one.iter().next() {
                        Some((name, value)) => (name.as_str(), value),
                        None => return Err(misfit("an empty object fits no type of the union")),
                    },
                    _ => return Err(misfit(format!("{} is no {{\"type\": value}} of the union", sort(value)))),
                };
                let found = branches.iter().enumerate().find(|(_, at)| self.schema.kind(**at).name() == name);
                let (index, at) = found.ok_or_else(|| misfit("the union has no type of this name"))?;
                self.count(index);
                self.write(*at, value, depth + 1)
            }
        }
    }

    fn count(&mut self, count: usize) {
        self.number(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Zigzag, then seven bits a byte.
    fn number(&mut self, number: i64) {
        let mut rest = number.cast_unsigned() << 1 ^ (number >> 63).cast_unsigned();
        while rest > 0x7f {
            self.out.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        self.out.push((rest & 0x7f) as u8);
    }
}

/// Bytes as text, a character for each.
fn bytes(value: &Value) -> Option<Vec<u8>> {
    value.as_str()?.chars().map(|c| u8::try_from(c).ok()).collect()
}
