//! Statements, their parameters and rows, in both forms they travel in: the extended protocol
//! with binary values, and plain text for servers and poolers that know nothing else.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use mecha_components_api::{Error, Result};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Row, SimpleQueryRow};
use uuid::Uuid;

/// A statement whose parameter types are known.
#[derive(Debug)]
pub(crate) struct Sql {
    pub(crate) text: String,
    pub(crate) types: Box<[Type]>,
    /// Worth keeping prepared. What an application composes is not: there may be any number of it.
    pub(crate) keep: bool,
}

/// One value for a statement. Borrowed: values are copied once, into the send buffer.
#[derive(Clone, Copy)]
pub(crate) enum Param<'a> {
    Text(&'a str),
    Texts(&'a [&'a str]),
    Bytes(&'a [u8]),
    /// JSON text for a `jsonb` column.
    Json(&'a [u8]),
    Int(Option<i64>),
    Bool(bool),
    Uuid(Uuid),
    Xid(u32),
}

/// All rows of an answer.
#[derive(Debug)]
pub(crate) enum Rows {
    Binary(Vec<Row>),
    Text(Vec<SimpleQueryRow>),
}

/// One row. Statements of ours select `text`, `bytea`, `bigint` and `boolean` only.
#[derive(Clone, Copy)]
pub(crate) enum RowRef<'a> {
    Binary(&'a Row),
    Text(&'a SimpleQueryRow),
}

/// The bytes of a column as they came.
struct Raw<'a>(&'a [u8]);

impl Sql {
    pub(crate) fn new(text: String, types: &[Type]) -> Self {
        Self { text, types: types.into(), keep: true }
    }

    /// A statement that is not expected again.
    pub(crate) fn once(text: String) -> Self {
        Self { text, types: Box::default(), keep: false }
    }
}

/// Values are payloads and never shown; the driver prints parameters at level debug.
impl fmt::Debug for Param<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Param<'_> {
    pub(crate) fn ty(&self) -> Type {
        match self {
            Self::Text(_) => Type::TEXT,
            Self::Texts(_) => Type::TEXT_ARRAY,
            Self::Bytes(_) => Type::BYTEA,
            Self::Json(_) => Type::JSONB,
            Self::Int(_) => Type::INT8,
            Self::Bool(_) => Type::BOOL,
            Self::Uuid(_) => Type::UUID,
            Self::Xid(_) => Type::XID,
        }
    }

    /// Appends the value as a literal that means the same whatever the session's settings are.
    fn literal(&self, out: &mut String) -> Result<()> {
        match self {
            Self::Text(text) => {
                quote(text, out);
                out.push_str("::text");
            }
            Self::Texts(texts) => {
                out.push_str("ARRAY[");
                for (i, text) in texts.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    quote(text, out);
                }
                out.push_str("]::text[]");
            }
            Self::Bytes(bytes) => {
                out.push_str("E'\\\\x");
                out.reserve(bytes.len() * 2);
                for byte in *bytes {
                    for digit in [byte >> 4, byte & 15] {
                        out.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
                    }
                }
                out.push_str("'::bytea");
            }
            Self::Json(text) => {
                let text = std::str::from_utf8(text).map_err(|_| Error::invalid("the value is not valid UTF-8"))?;
                quote(text, out);
                out.push_str("::jsonb");
            }
            Self::Int(None) => out.push_str("NULL::bigint"),
            Self::Int(Some(n)) => out.push_str(&format!("'{n}'::bigint")),
            Self::Bool(b) => out.push_str(if *b { "TRUE" } else { "FALSE" }),
            Self::Uuid(id) => out.push_str(&format!("'{id}'::uuid")),
            Self::Xid(id) => out.push_str(&format!("'{id}'::xid")),
        }
        Ok(())
    }
}

impl ToSql for Param<'_> {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> std::result::Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Self::Text(text) => out.put_slice(text.as_bytes()),
            Self::Texts(texts) => return texts.to_sql(ty, out),
            Self::Bytes(bytes) => out.put_slice(bytes),
            Self::Json(text) => {
                // Version of the binary form of jsonb.
                out.put_u8(1);
                out.put_slice(text);
            }
            Self::Int(None) => return Ok(IsNull::Yes),
            Self::Int(Some(n)) => out.put_i64(*n),
            Self::Bool(b) => out.put_u8((*b).into()),
            Self::Uuid(id) => out.put_slice(id.as_bytes()),
            Self::Xid(id) => out.put_u32(*id),
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> std::result::Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

impl Rows {
    pub(crate) fn iter(&self) -> impl Iterator<Item = RowRef<'_>> {
        let (binary, text) = match self {
            Self::Binary(rows) => (rows.as_slice(), [].as_slice()),
            Self::Text(rows) => ([].as_slice(), rows.as_slice()),
        };
        binary.iter().map(RowRef::Binary).chain(text.iter().map(RowRef::Text))
    }
}

impl<'a> RowRef<'a> {
    /// The bytes of a `text` column, or of any column in text form.
    fn raw(self, column: usize) -> Result<Option<&'a [u8]>> {
        let raw = match self {
            Self::Binary(row) => row.try_get::<_, Option<Raw<'a>>>(column).map(|v| v.map(|r| r.0)),
            Self::Text(row) => row.try_get(column).map(|v| v.map(str::as_bytes)),
        };
        raw.map_err(|_| Error::internal(format!("column {column} of the answer is missing")))
    }

    /// A `text` column.
    pub(crate) fn text(self, column: usize) -> Result<Option<&'a str>> {
        self.raw(column)?.map(|b| std::str::from_utf8(b).map_err(|_| odd(column))).transpose()
    }

    /// A `text` column that is not null.
    pub(crate) fn needed(self, column: usize) -> Result<&'a str> {
        self.text(column)?.ok_or_else(|| odd(column))
    }

    /// A `text` column, copied.
    pub(crate) fn text_bytes(self, column: usize) -> Result<Bytes> {
        Ok(Bytes::copy_from_slice(self.raw(column)?.ok_or_else(|| odd(column))?))
    }

    /// A `bytea` column, copied.
    pub(crate) fn bytea(self, column: usize) -> Result<Bytes> {
        let raw = self.raw(column)?.ok_or_else(|| odd(column))?;
        match self {
            Self::Binary(_) => Ok(Bytes::copy_from_slice(raw)),
            Self::Text(_) => unhex(raw).ok_or_else(|| odd(column)),
        }
    }

    /// A `bigint` column.
    pub(crate) fn int(self, column: usize) -> Result<Option<i64>> {
        let Some(raw) = self.raw(column)? else { return Ok(None) };
        let parsed = match self {
            Self::Binary(_) => raw.try_into().ok().map(i64::from_be_bytes),
            Self::Text(_) => std::str::from_utf8(raw).ok().and_then(|t| t.parse().ok()),
        };
        parsed.map(Some).ok_or_else(|| odd(column))
    }

    /// A `boolean` column; null is false.
    pub(crate) fn bool(self, column: usize) -> Result<bool> {
        // Binary is one byte, 0 or 1; text is `f` or `t`.
        Ok(matches!(self.raw(column)?, Some([1 | b't', ..])))
    }
}

fn odd(column: usize) -> Error {
    Error::internal(format!("column {column} of the answer does not have the expected type"))
}

/// `\x00ff…`.
fn unhex(text: &[u8]) -> Option<Bytes> {
    let digits = text.strip_prefix(b"\\x")?;
    if digits.len() % 2 != 0 {
        return None;
    }
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    digits
        .chunks_exact(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect::<Option<Vec<u8>>>()
        .map(Bytes::from)
}

/// Appends `text` as a string literal. The `E` form means the same whatever
/// `standard_conforming_strings` says.
pub(crate) fn quote(text: &str, out: &mut String) {
    out.reserve(text.len() + 2);
    if text.contains('\\') {
        out.push_str(" E");
    }
    out.push('\'');
    for c in text.chars() {
        if c == '\'' || c == '\\' {
            out.push(c);
        }
        out.push(c);
    }
    out.push('\'');
}

/// Appends `name` as an identifier that keeps its case.
pub(crate) fn quote_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `sql` with `$1`, `$2`… replaced by literals.
pub(crate) fn inline(sql: &str, params: &[Param<'_>]) -> Result<String> {
    let mut literals = Vec::with_capacity(params.len());
    for param in params {
        let mut literal = String::new();
        param.literal(&mut literal)?;
        literals.push(literal);
    }
    substitute(sql, &literals)
}

/// Replaces parameters outside of strings, names and comments.
pub(crate) fn substitute(sql: &str, literals: &[String]) -> Result<String> {
    let mut out = String::with_capacity(sql.len() + literals.iter().map(String::len).sum::<usize>());
    let mut rest = sql;
    let mut word = false;
    while let Some(c) = rest.chars().next() {
        let end = match c {
            '\'' | '"' => closed(rest, c, word && out.ends_with(['e', 'E'])),
            '-' if rest.starts_with("--") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => comment(rest),
            '$' if !word => {
                let digits = rest[1..].bytes().take_while(u8::is_ascii_digit).count();
                if digits > 0 {
                    let number: usize = rest[1..=digits].parse().unwrap_or(0);
                    let literal = number.checked_sub(1).and_then(|i| literals.get(i)).ok_or_else(|| {
                        Error::invalid(format!(
                            "the statement has ${number}, but {} parameters were given",
                            literals.len()
                        ))
                    })?;
                    out.push(' ');
                    out.push_str(literal);
                    out.push(' ');
                    rest = &rest[1 + digits..];
                    continue;
                }
                dollar_quoted(rest)
            }
            _ => c.len_utf8(),
        };
        out.push_str(&rest[..end]);
        rest = &rest[end..];
        word = end == c.len_utf8() && (c.is_alphanumeric() || c == '_' || (c == '$' && word));
    }
    Ok(out)
}

/// Length of the quoted text that `text` begins with.
fn closed(text: &str, quote: char, escapes: bool) -> usize {
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == '\\' && escapes {
            chars.next();
        } else if c == quote {
            // A doubled quote begins another quoted text, which comes to the same.
            return at + 1;
        }
    }
    text.len()
}

/// Length of the comment that `text` begins with; they nest.
fn comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// Length of `$tag$ … $tag$`, or of the dollar sign alone.
fn dollar_quoted(text: &str) -> usize {
    let Some(end) = text[1..].find('$').map(|i| i + 2) else { return 1 };
    let tag = &text[..end];
    let inner = &tag[1..tag.len() - 1];
    if inner.starts_with(|c: char| c.is_ascii_digit()) || !inner.chars().all(|c| c.is_alphanumeric() || c == '_') {
        return 1;
    }
    text[end..].find(tag).map_or(text.len(), |i| end + i + end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parameters_are_found_where_they_count() {
        let sql = "SELECT '$1', \"$1\", $1, a$1, E'\\'$1', -- $1\n /* $1 /* $2 */ $1 */ $$ $1 $$ $t$ $1 $t$ $2 FROM x";
        let text = substitute(sql, &["one".into(), "two".into()]).unwrap();
        assert_eq!(
            text,
            "SELECT '$1', \"$1\",  one , a$1, E'\\'$1', -- $1\n /* $1 /* $2 */ $1 */ $$ $1 $$ $t$ $1 $t$  two  FROM x"
        );
        assert!(substitute("SELECT $3", &["one".into()]).is_err());
    }

    #[test]
    fn literals() {
        let text = inline(
            "$1 $2 $3 $4 $5 $6",
            &[
                Param::Text("o'b\\x"),
                Param::Bytes(&[0, 255]),
                Param::Int(None),
                Param::Int(Some(-5)),
                Param::Bool(true),
                Param::Texts(&["a", "b'"]),
            ],
        )
        .unwrap();
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(
            words,
            [
                r"E'o''b\\x'::text",
                r"E'\\x00ff'::bytea",
                "NULL::bigint",
                "'-5'::bigint",
                "TRUE",
                "ARRAY['a','b''']::text[]"
            ]
        );
    }

    proptest! {
        #[test]
        fn a_literal_ends_where_it_should(value in "\\PC{0,40}") {
            let mut literal = String::new();
            quote(&value, &mut literal);
            // Nothing of the value is outside of the quotes: a parameter behind it is still found.
            let text = substitute(&format!("{literal} $1"), &["HERE".into()]).unwrap();
            prop_assert_eq!(text, format!("{literal}  HERE "));
        }

        #[test]
        fn any_sql_is_read(sql in "\\PC{0,60}|[$'\"/*\\-a1E\n\\\\]{0,40}") {
            let _ = substitute(&sql, &["x".into()]);
        }

        #[test]
        fn hex_comes_back(bytes in proptest::collection::vec(any::<u8>(), 0..50)) {
            let mut text = String::new();
            Param::Bytes(&bytes).literal(&mut text).unwrap();
            let hex = text.strip_prefix("E'\\").and_then(|t| t.strip_suffix("'::bytea")).unwrap();
            let back = unhex(hex.as_bytes()).unwrap();
            prop_assert_eq!(back.as_ref(), bytes.as_slice());
        }
    }
}
