//! A JSON object whose values stay text, so that what nobody looks at is neither parsed nor
//! changed: numbers keep their digits, strings their escapes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// Names that nearly every event has; they need no allocation.
const KNOWN: [&str; 18] = [
    "baggage",
    "data",
    "data_base64",
    "datacontenttype",
    "dataschema",
    "expiration",
    "id",
    "pubsubname",
    "source",
    "specversion",
    "subject",
    "time",
    "topic",
    "traceid",
    "traceparent",
    "tracestate",
    "type",
    "version",
];

/// The members of an object: name and JSON text. Of a repeated name the last one counts.
#[derive(Clone, Default)]
pub(super) struct Members(BTreeMap<Cow<'static, str>, Bytes>);

impl Members {
    /// Reads one object and nothing after it. The values share `source`.
    pub(super) fn parse(source: &Bytes) -> Result<Self, serde_json::Error> {
        let mut de = serde_json::Deserializer::from_slice(source);
        let members = de.deserialize_map(ObjectVisitor { source })?;
        de.end()?;
        Ok(members)
    }

    /// JSON text of a member.
    pub(super) fn raw(&self, name: &str) -> Option<&Bytes> {
        self.0.get(name)
    }

    /// A member that is a string.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        let raw = self.raw(name)?;
        if !raw.starts_with(b"\"") {
            return None;
        }
        serde_json::from_slice(raw).ok()
    }

    /// Whether the member is absent or `null`.
    pub(super) fn lacks(&self, name: &str) -> bool {
        self.raw(name).is_none_or(|raw| raw.as_ref() == b"null")
    }

    /// Sets a member to a string.
    pub(super) fn set(&mut self, name: &str, text: &str) {
        self.0.insert(intern(name), json_text(text));
    }

    /// Sets a member to JSON text.
    pub(super) fn set_raw(&mut self, name: &'static str, json: Bytes) {
        self.0.insert(Cow::Borrowed(name), json);
    }

    /// The object as JSON text.
    pub(super) fn to_json(&self) -> Bytes {
        let size: usize = self.0.iter().map(|(name, value)| name.len() + value.len() + 6).sum();
        let mut out = Vec::with_capacity(size + 2);
        for (name, value) in &self.0 {
            out.push(if out.is_empty() { b'{' } else { b',' });
            push_text(&mut out, name);
            out.push(b':');
            out.extend_from_slice(value);
        }
        if out.is_empty() {
            out.push(b'{');
        }
        out.push(b'}');
        out.into()
    }

    /// The object as a value. A value that has none (a number beyond every float, nesting
    /// beyond every stack) is left out.
    pub(super) fn to_map(&self) -> Map<String, Value> {
        let read = |(name, raw): (&Cow<'static, str>, &Bytes)| {
            serde_json::from_slice(raw).ok().map(|value| (name.clone().into_owned(), value))
        };
        self.0.iter().filter_map(read).collect()
    }

    /// Every member.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.0.iter().map(|(name, raw)| (name.as_ref(), raw))
    }
}

impl fmt::Debug for Members {
    /// Names only: the values are payload.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// `text` as JSON.
pub(super) fn json_text(text: &str) -> Bytes {
    let mut out = Vec::with_capacity(text.len() + 2);
    push_text(&mut out, text);
    out.into()
}

/// Appends `text` as JSON.
pub(super) fn push_text(out: &mut Vec<u8>, text: &str) {
    // Neither a string nor a Vec can make this fail.
    let _ = serde_json::to_writer(out, text);
}

/// The text of `data` if it is one JSON value, without the white space around it.
pub(super) fn json_value(data: &Bytes) -> Option<Bytes> {
    serde_json::from_slice::<&RawValue>(data).ok().map(|raw| data.slice_ref(raw.get().as_bytes()))
}

fn intern(name: &str) -> Cow<'static, str> {
    match KNOWN.binary_search(&name) {
        Ok(at) => Cow::Borrowed(KNOWN[at]),
        Err(_) => Cow::Owned(name.to_owned()),
    }
}

struct ObjectVisitor<'s> {
    source: &'s Bytes,
}

impl<'de> Visitor<'de> for ObjectVisitor<'_> {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
        let mut members = BTreeMap::new();
        while let Some(Name(name)) = map.next_key()? {
            let raw: &'de RawValue = map.next_value()?;
            members.insert(name, self.source.slice_ref(raw.get().as_bytes()));
        }
        Ok(Members(members))
    }
}

struct Name(Cow<'static, str>);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl Visitor<'_> for NameVisitor {
            type Value = Name;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a member name")
            }
            fn visit_str<E>(self, name: &str) -> Result<Name, E> {
                Ok(Name(intern(name)))
            }
        }
        de.deserialize_str(NameVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Members, serde_json::Error> {
        Members::parse(&Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn known_names_are_sorted() {
        assert!(KNOWN.is_sorted());
    }

    #[test]
    fn values_keep_their_text() {
        let m = parse(r#" {"n": 1.500, "big":12345678901234567890123, "s":"\u00e9","n":2.50 } "#).unwrap();
        assert_eq!(m.raw("n").unwrap(), "2.50");
        assert_eq!(m.raw("big").unwrap(), "12345678901234567890123");
        assert_eq!(m.text("s").unwrap(), "é");
        assert_eq!(m.text("n"), None);
        assert_eq!(m.to_json(), r#"{"big":12345678901234567890123,"n":2.50,"s":"\u00e9"}"#);
        assert_eq!(Members::default().to_json(), "{}");
    }

    #[test]
    fn only_one_object_is_one() {
        for bad in ["", "null", "[]", "1", "\"{}\"", "{", "{} {}", "{\"a\":}", "{\"a\":1,}", "{'a':1}"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(Members::parse(&Bytes::from_static(b"{\"a\":\"\xff\"}")).is_err());
    }

    #[test]
    fn what_no_value_can_hold_is_left_out() {
        let m = parse(r#"{"data":1e999,"id":"1"}"#).unwrap();
        assert_eq!(m.to_map().keys().collect::<Vec<_>>(), ["id"]);
        let deep = format!("{{\"data\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(parse(&deep).unwrap().to_map().is_empty());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Members::parse(&bytes.into());
        }

        #[test]
        fn what_is_written_reads_back(pairs in proptest::collection::btree_map("\\PC{0,12}", "\\PC{0,12}", 0..8)) {
            let mut m = Members::default();
            for (name, text) in &pairs {
                m.set(name, text);
            }
            let back = Members::parse(&m.to_json()).unwrap();
            for (name, text) in &pairs {
                prop_assert_eq!(back.text(name), Some(text.clone()));
            }
        }
    }
}
