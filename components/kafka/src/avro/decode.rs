//! Binary Avro as JSON.

use std::io::Write as _;

use super::schema::{At, Field, Kind, Schema};
use super::{DEPTH, Style};

/// Largest text that a value may become, and how many bytes more for each of its own. A few bytes can stand for any
/// number of values that take none.
const LARGEST: usize = 1 << 20;
const LARGEST_PER_BYTE: usize = 64;

impl Schema {
    /// The JSON text of a binary value.
    ///
    /// # Errors
    /// Says why the bytes are no value of the schema.
    pub(crate) fn decode(&self, bytes: &[u8], style: Style) -> Result<Vec<u8>, String> {
        let largest = bytes.len().saturating_mul(LARGEST_PER_BYTE).saturating_add(LARGEST);
        let out = Vec::with_capacity(bytes.len().saturating_mul(2));
        let mut reader = Reader { schema: self, style, rest: bytes, out, largest };
        reader.read(self.root(), 0)?;
        match reader.rest.len() {
            0 => Ok(reader.out),
            left => Err(format!("{left} bytes are left behind the value")),
        }
    }
}

struct Reader<'s, 'b> {
    schema: &'s Schema,
    style: Style,
    rest: &'b [u8],
    out: Vec<u8>,
    largest: usize,
}

type Outcome = Result<(), String>;

impl<'b> Reader<'_, 'b> {
    fn read(&mut self, at: At, depth: usize) -> Outcome {
        if depth > DEPTH || self.out.len() > self.largest {
            return Err(format!("the value is deeper than {DEPTH} levels or far larger than its bytes"));
        }
        let schema = self.schema;
        match schema.kind(at) {
            Kind::Null => self.put("null"),
            Kind::Boolean => match self.take(1)? {
                [0] => self.put("false"),
                [1] => self.put("true"),
                _ => return Err("a boolean is neither 0 nor 1".to_owned()),
            },
            Kind::Int => {
                let number = i32::try_from(self.number()?).map_err(|_| "an int is too large")?;
                self.put(&number.to_string());
            }
            Kind::Long => {
                let number = self.number()?;
                self.put(&number.to_string());
            }
            // The shortest text that is this float, not the double it is within.
            Kind::Float => {
                let number = f32::from_le_bytes(self.array()?);
                self.float(number.into(), serde_json::to_string(&number));
            }
            Kind::Double => {
                let number = f64::from_le_bytes(self.array()?);
                self.float(number, serde_json::to_string(&number));
            }
            Kind::String => {
                let size = self.size()?;
                let text = std::str::from_utf8(self.take(size)?).map_err(|_| "a string is no UTF-8")?;
                self.show(text)?;
            }
            Kind::Bytes => {
                let size = self.size()?;
                self.bytes(size)?;
            }
            Kind::Fixed { size, .. } => self.bytes(*size)?,
            Kind::Enum { name, symbols } => {
                let symbol = symbols.get(self.size()?).ok_or_else(|| format!("enum {name} has no such symbol"))?;
                self.show(symbol)?;
            }
            Kind::Array(items) => self.blocks(['[', ']'], |reader| reader.read(*items, depth + 1))?,
            Kind::Map(values) => self.blocks(['{', '}'], |reader| {
                let size = reader.size()?;
                let key = std::str::from_utf8(reader.take(size)?).map_err(|_| "a key of a map is no UTF-8")?;
                reader.show(key)?;
                reader.put(":");
                reader.read(*values, depth + 1)
            })?,
            Kind::Record { fields, .. } => self.record(fields, depth)?,
            Kind::Union(branches) => {
                let branch = *branches.get(self.size()?).ok_or("a union has no such type")?;
                let kind = schema.kind(branch);
                if self.style == Style::Standard || matches!(kind, Kind::Null) {
                    return self.read(branch, depth + 1);
                }
                self.put("{");
                self.show(kind.name())?;
                self.put(":");
                self.read(branch, depth + 1)?;
                self.put("}");
            }
        }
        Ok(())
    }

    fn record(&mut self, fields: &[Field], depth: usize) -> Outcome {
        self.put("{");
        for (index, field) in fields.iter().enumerate() {
            if index > 0 {
                self.put(",");
            }
            self.show(&field.name)?;
            self.put(":");
            self.read(field.kind, depth + 1).map_err(|e| format!("{}: {e}", field.name))?;
        }
        self.put("}");
        Ok(())
    }

    /// Items of an array or map, which come in blocks; the last one is empty.
    fn blocks(&mut self, ends: [char; 2], mut item: impl FnMut(&mut Self) -> Outcome) -> Outcome {
        self.put(ends[0].encode_utf8(&mut [0; 4]));
        let mut first = true;
        loop {
            let mut count = self.number()?;
            if count == 0 {
                break;
            }
            if count < 0 {
                // Whoever wants to skip the block is told its length.
                self.number()?;
                count = count.checked_neg().ok_or("a block is too long")?;
            }
            for _ in 0..count {
                if !first {
                    self.put(",");
                }
                first = false;
                item(self)?;
            }
        }
        self.put(ends[1].encode_utf8(&mut [0; 4]));
        Ok(())
    }

    fn put(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn show(&mut self, text: &str) -> Outcome {
        serde_json::to_writer(&mut self.out, text).map_err(|e| e.to_string())
    }

    /// What JSON has no number for is null, or a number that is too large for any reader.
    fn float(&mut self, number: f64, text: serde_json::Result<String>) {
        match (number, text) {
            (f64::INFINITY, _) => self.put("1e999"),
            (f64::NEG_INFINITY, _) => self.put("-1e999"),
            (n, Ok(text)) if !n.is_nan() => self.put(&text),
            _ => self.put("null"),
        }
    }

    fn bytes(&mut self, size: usize) -> Outcome {
        let bytes = self.take(size)?;
        self.put("\"");
        for byte in bytes {
            match byte {
                b'"' | b'\\' => self.out.extend([b'\\', *byte]),
                b' '..=b'~' => self.out.push(*byte),
                _ => write!(self.out, "\\u{byte:04x}").map_err(|e| e.to_string())?,
            }
        }
        self.put("\"");
        Ok(())
    }

    fn take(&mut self, size: usize) -> Result<&'b [u8], String> {
        let (taken, rest) = self.rest.split_at_checked(size).ok_or("the value ends too soon")?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or("the value ends too soon")?;
        self.rest = rest;
        Ok(*taken)
    }

    fn size(&mut self) -> Result<usize, String> {
        usize::try_from(self.number()?).map_err(|_| "a length is below zero".to_owned())
    }

    fn number(&mut self) -> Result<i64, String> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed());
            }
        }
        Err("a number is too long".to_owned())
    }
}
