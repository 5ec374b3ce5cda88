//! One byte sequence for equal values, and its SHA-256.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// A SHA-256, written as `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest over several others, in their order.
    pub(crate) fn over<'d>(parts: impl IntoIterator<Item = &'d Digest>) -> Self {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update(part.0);
        }
        Self(hasher.finalize().into())
    }

    /// The first `digits` digits (at most 64) in an alphabet without vowels, which spells no words.
    pub(crate) fn short(&self, digits: usize) -> String {
        const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
        self.0.iter().cycle().take(digits.min(32)).map(|byte| char::from(ALPHABET[usize::from(*byte) % 27])).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.strip_prefix("sha256:").filter(|digits| digits.len() == 64 && digits.is_ascii());
        let bytes = digits.and_then(|digits| {
            let byte = |i: usize| u8::from_str_radix(digits.get(2 * i..2 * i + 2)?, 16).ok();
            (0..32).map(byte).collect::<Option<Vec<u8>>>()?.try_into().ok()
        });
        bytes.map(Self).ok_or_else(|| serde::de::Error::custom("a digest is sha256: and 64 hexadecimal digits"))
    }
}

/// The digest of a value: the same for values that are equal as JSON, whatever the order of their keys.
#[must_use]
pub fn digest_of<T: Serialize>(value: &T) -> Digest {
    let mut text = String::new();
    // Our own types have text keys and finite numbers, so this cannot fail; a foreign one digests as null.
    write(&serde_json::to_value(value).unwrap_or_default(), &mut text);
    Digest::of_bytes(text.as_bytes())
}

/// Compact JSON with sorted keys.
fn write(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            out.push('{');
            for (i, (key, value)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(&Value::String(key.clone()).to_string());
                out.push(':');
                write(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write(item, out);
            }
            out.push(']');
        }
        other => out.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_order_of_keys_does_not_matter() {
        let one: Value = serde_json::from_str(r#"{"a":[1,{"x":null,"y":"z"}],"b":true}"#).unwrap();
        let two: Value = serde_json::from_str(r#"{"b":true,"a":[1,{"y":"z","x":null}]}"#).unwrap();
        assert_eq!(digest_of(&one), digest_of(&two));
        assert_ne!(digest_of(&one), digest_of(&json!({"a": 1})));
        let text = digest_of(&one).to_string();
        assert_eq!(text.len(), 71);
        let back: Digest = serde_json::from_value(json!(text)).unwrap();
        assert_eq!(back, digest_of(&one));
        assert!(serde_json::from_value::<Digest>(json!("sha256:zz")).is_err());
    }
}
