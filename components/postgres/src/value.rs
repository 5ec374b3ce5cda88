//! Values of any type, to JSON and from JSON.

use std::fmt::Write;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use mecha_components_api::{Error, ErrorKind, Result};
use serde_json::value::RawValue;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Kind, Type};

/// Rows as a JSON array of arrays, bounded in size.
pub(crate) struct Answer {
    json: Vec<u8>,
    limit: usize,
    rows: bool,
}

/// A column's bytes and type.
struct Any<'a>(&'a [u8], Type);

impl<'a> FromSql<'a> for Any<'a> {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> std::result::Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw, ty.clone()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

impl Answer {
    pub(crate) fn new(limit: usize) -> Self {
        Self { json: b"[".to_vec(), limit, rows: false }
    }

    pub(crate) fn row(&mut self, row: &Row) -> Result<()> {
        self.json.extend_from_slice(if self.rows { b",[" } else { b"[" });
        self.rows = true;
        for i in 0..row.len() {
            if i > 0 {
                self.json.push(b',');
            }
            match row.try_get::<_, Option<Any<'_>>>(i) {
                Ok(None) => self.json.extend_from_slice(b"null"),
                Ok(Some(Any(raw, ty))) => {
                    let text = json(&ty, raw).ok_or_else(|| {
                        let name = row.columns().get(i).map_or("?", |c| c.name());
                        let text =
                            format!("column '{name}' has the type {ty}, which has no JSON form here; cast it to text");
                        Error::new(ErrorKind::InvalidArgument, text)
                    })?;
                    self.json.extend_from_slice(text.as_bytes());
                }
                Err(e) => return Err(Error::internal(format!("cannot read column {i}: {e}"))),
            }
        }
        self.json.push(b']');
        if self.json.len() > self.limit {
            let text = format!("the answer is larger than {} MiB; use LIMIT", self.limit >> 20);
            return Err(Error::new(ErrorKind::TooLarge, text));
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.json.push(b']');
        self.json
    }
}

/// A value in the binary form of its type as JSON text; `None` when there is no rule for it.
fn json(ty: &Type, raw: &[u8]) -> Option<String> {
    if let Kind::Array(inner) = ty.kind() {
        return array(inner, raw);
    }
    if let Kind::Domain(inner) = ty.kind() {
        return json(inner, raw);
    }
    if let Kind::Enum(_) = ty.kind() {
        return text(raw);
    }
    Some(match *ty {
        Type::BOOL => (*raw.first()? != 0).to_string(),
        Type::INT2 => i16::from_be_bytes(raw.try_into().ok()?).to_string(),
        Type::INT4 => i32::from_be_bytes(raw.try_into().ok()?).to_string(),
        Type::INT8 => i64::from_be_bytes(raw.try_into().ok()?).to_string(),
        Type::OID | Type::XID | Type::CID => u32::from_be_bytes(raw.try_into().ok()?).to_string(),
        Type::FLOAT4 => float(f32::from_be_bytes(raw.try_into().ok()?)),
        Type::FLOAT8 => float(f64::from_be_bytes(raw.try_into().ok()?)),
        Type::NUMERIC => numeric(raw)?,
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::UNKNOWN | Type::CHAR | Type::XML => text(raw)?,
        Type::JSON => std::str::from_utf8(raw).ok()?.to_owned(),
        // One byte of version first.
        Type::JSONB => std::str::from_utf8(raw.strip_prefix(&[1])?).ok()?.to_owned(),
        Type::UUID => quoted(&uuid::Uuid::from_slice(raw).ok()?.to_string()),
        Type::BYTEA => quoted(&STANDARD.encode(raw)),
        Type::TIMESTAMPTZ | Type::TIMESTAMP => match i64::from_be_bytes(raw.try_into().ok()?) {
            i64::MAX => quoted("infinity"),
            i64::MIN => quoted("-infinity"),
            micros => quoted(&instant(SignedDuration::from_micros(micros))?),
        },
        Type::DATE => match i32::from_be_bytes(raw.try_into().ok()?) {
            i32::MAX => quoted("infinity"),
            i32::MIN => quoted("-infinity"),
            days => quoted(&instant(SignedDuration::from_hours(i64::from(days) * 24))?),
        },
        Type::TIME => {
            let micros = i64::from_be_bytes(raw.try_into().ok()?);
            let (seconds, rest) = (micros / 1_000_000, micros % 1_000_000);
            quoted(&format!("{:02}:{:02}:{:02}.{rest:06}", seconds / 3600, seconds / 60 % 60, seconds % 60))
        }
        Type::VOID => "null".to_owned(),
        _ => return None,
    })
}

/// Counted from 2000-01-01, as PostgreSQL does.
fn instant(since: SignedDuration) -> Option<String> {
    const EPOCH: Timestamp = Timestamp::constant(946_684_800, 0);
    Some(EPOCH.checked_add(since).ok()?.to_string())
}

fn text(raw: &[u8]) -> Option<String> {
    Some(quoted(std::str::from_utf8(raw).ok()?))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// JSON has no infinities.
fn float(n: impl Into<f64> + std::fmt::Display + Copy) -> String {
    let wide: f64 = n.into();
    if wide.is_finite() { n.to_string() } else { quoted(&n.to_string()) }
}

/// Base 10,000 digits with a weight, every digit of it.
fn numeric(raw: &[u8]) -> Option<String> {
    let word = |i: usize| Some(u16::from_be_bytes(raw.get(i * 2..i * 2 + 2)?.try_into().ok()?));
    let (digits, weight, sign, scale) = (word(0)?, i16::from_be_bytes(word(1)?.to_be_bytes()), word(2)?, word(3)?);
    match sign {
        0xC000 => return Some(quoted("NaN")),
        0xD000 => return Some(quoted("Infinity")),
        0xF000 => return Some(quoted("-Infinity")),
        _ => {}
    }
    let digit = |group: i32| match usize::try_from(group) {
        Ok(at) if at < usize::from(digits) => word(4 + at),
        _ => Some(0),
    };
    let mut text = String::new();
    if sign == 0x4000 {
        text.push('-');
    }
    let weight = i32::from(weight);
    if weight < 0 {
        text.push('0');
    }
    for group in 0..=weight {
        let value = digit(group)?;
        let _ = if group == 0 { write!(text, "{value}") } else { write!(text, "{value:04}") };
    }
    if scale > 0 {
        text.push('.');
        let from = text.len();
        let mut group = weight + 1;
        while text.len() - from < usize::from(scale) {
            let _ = write!(text, "{:04}", digit(group)?);
            group += 1;
        }
        text.truncate(from + usize::from(scale));
    }
    Some(text)
}

/// Dimensions, then elements with their lengths.
fn array(inner: &Type, raw: &[u8]) -> Option<String> {
    let mut at = 0;
    let mut int = |raw: &[u8]| {
        let n = i32::from_be_bytes(raw.get(at..at + 4)?.try_into().ok()?);
        at += 4;
        Some(n)
    };
    let dimensions = usize::try_from(int(raw)?).ok()?;
    int(raw)?;
    int(raw)?;
    let mut sizes = Vec::new();
    for _ in 0..dimensions.min(6) {
        sizes.push(usize::try_from(int(raw)?).ok()?);
        int(raw)?;
    }
    // Every element takes four bytes at least; what claims more elements is no array.
    if sizes.iter().try_fold(1_usize, |all, size| all.checked_mul((*size).max(1)))? > raw.len() / 4 {
        return None;
    }
    let mut out = String::new();
    let mut rest = raw.get(at..)?;
    elements(inner, &sizes, &mut rest, &mut out)?;
    Some(out)
}

fn elements(inner: &Type, sizes: &[usize], rest: &mut &[u8], out: &mut String) -> Option<()> {
    out.push('[');
    if let Some((size, deeper)) = sizes.split_first() {
        for i in 0..*size {
            if i > 0 {
                out.push(',');
            }
            if !deeper.is_empty() {
                elements(inner, deeper, rest, out)?;
                continue;
            }
            let length = i32::from_be_bytes(rest.get(..4)?.try_into().ok()?);
            *rest = rest.get(4..)?;
            match usize::try_from(length) {
                Err(_) => out.push_str("null"),
                Ok(length) => {
                    out.push_str(&json(inner, rest.get(..length)?)?);
                    *rest = rest.get(length..)?;
                }
            }
        }
    }
    out.push(']');
    Some(())
}

/// A JSON value in the text form of the type `ty`; `None` is null. Numbers keep every digit.
pub(crate) fn parameter(value: &RawValue, ty: &Type) -> Option<String> {
    let text = value.get();
    let json = matches!(*ty, Type::JSON | Type::JSONB);
    Some(match text.as_bytes().first() {
        Some(b'n') => return None,
        Some(b'"') => {
            let inner: String = serde_json::from_str(text).unwrap_or_default();
            // As in Dapr a text that is a JSON document already stays one; every other text is a
            // JSON string in a JSON column.
            if json && serde_json::from_str::<&RawValue>(&inner).is_err() { text.to_owned() } else { inner }
        }
        Some(b'[') if matches!(ty.kind(), Kind::Array(_)) => array_text(value, ty),
        _ => text.to_owned(),
    })
}

/// `{a,"b c",NULL}`.
fn array_text(value: &RawValue, ty: &Type) -> String {
    let inner = match ty.kind() {
        Kind::Array(inner) => inner.clone(),
        _ => Type::TEXT,
    };
    let items: Vec<&RawValue> = serde_json::from_str(value.get()).unwrap_or_default();
    let items = items.into_iter().map(|item| {
        if item.get().starts_with('[') && !matches!(inner, Type::JSON | Type::JSONB) {
            return array_text(item, ty);
        }
        match parameter(item, &inner) {
            None => "NULL".to_owned(),
            Some(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        }
    });
    format!("{{{}}}", items.collect::<Vec<_>>().join(","))
}

/// As Go prints durations: `1.5ms`, `2m3.25s`.
pub(crate) fn go_duration(d: Duration) -> String {
    let fraction = |whole: u128, rest: u128, digits: usize| {
        let text = format!("{rest:0digits$}");
        let text = text.trim_end_matches('0');
        if text.is_empty() { whole.to_string() } else { format!("{whole}.{text}") }
    };
    let nanos = d.as_nanos();
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}µs", fraction(nanos / 1_000, nanos % 1_000, 3)),
        1_000_000..1_000_000_000 => format!("{}ms", fraction(nanos / 1_000_000, nanos % 1_000_000, 6)),
        _ => {
            let (seconds, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
            let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
            let tail = format!("{}s", fraction(seconds % 60, rest, 9));
            match (hours, minutes) {
                (0, 0) => tail,
                (0, m) => format!("{m}m{tail}"),
                (h, m) => format!("{h}h{m}m{tail}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_look_like_go() {
        for (nanos, text) in [
            (0, "0s"),
            (999, "999ns"),
            (1_500, "1.5µs"),
            (2_000_000, "2ms"),
            (1_234_567, "1.234567ms"),
            (1_000_000_000, "1s"),
            (62_250_000_000, "1m2.25s"),
            (3_600_000_000_000, "1h0m0s"),
        ] {
            assert_eq!(go_duration(Duration::from_nanos(nanos)), text);
        }
    }

    #[test]
    fn parameters_in_the_form_of_their_type() {
        let text = |json: &str, ty: &Type| parameter(serde_json::from_str(json).unwrap(), ty);
        for (json, ty, wanted) in [
            ("123456789012345678901234567890.10", Type::NUMERIC, "123456789012345678901234567890.10"),
            (r#""a\"b""#, Type::TEXT, r#"a"b"#),
            (r#""plain""#, Type::JSONB, r#""plain""#),
            (r#""{\"a\":1}""#, Type::JSONB, r#"{"a":1}"#),
            (r#"{"a": 2.50}"#, Type::JSON, r#"{"a": 2.50}"#),
            (r#"["a b", "q\"", null]"#, Type::TEXT_ARRAY, r#"{"a b","q\"",NULL}"#),
            ("[[1, 2], [3, 4]]", Type::INT4_ARRAY, r#"{{"1","2"},{"3","4"}}"#),
            ("[1, 2]", Type::JSONB, "[1, 2]"),
            ("true", Type::BOOL, "true"),
        ] {
            assert_eq!(text(json, &ty).as_deref(), Some(wanted), "{json}");
        }
        assert_eq!(text("null", &Type::TEXT), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(raw in proptest::collection::vec(any::<u8>(), 0..40)) {
            for ty in [Type::NUMERIC, Type::INT4_ARRAY, Type::TIMESTAMPTZ, Type::DATE, Type::TIME, Type::JSONB, Type::UUID] {
                let _ = json(&ty, &raw);
            }
        }
    }
}
