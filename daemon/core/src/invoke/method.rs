//! Methods of invocations, normalised once. The text a [`Method`] holds is the text
//! access control judges and the text that goes on: there is no second reading.

use std::fmt;
use std::fmt::Write;
use std::sync::Arc;

use percent_encoding::percent_decode_str;

/// The method of an invocation: valid UTF-8 without `#`, `?`, NUL or control characters,
/// with `.`, `..` and `//` resolved. A leading slash is kept when the caller gave one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Method(Arc<str>);

/// Why a text is no method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidMethod {
    /// A `%` without two hexadecimal digits after it.
    Escape,
    /// The decoded bytes are no text.
    Utf8,
    /// `#`, `?` or NUL.
    Forbidden,
    /// A byte below 0x20, or DEL.
    Control,
}

impl InvalidMethod {
    fn text(self) -> &'static str {
        match self {
            Self::Escape => "method contains an invalid percent escape",
            Self::Utf8 => "method is not valid UTF-8",
            Self::Forbidden => "method contains forbidden character",
            Self::Control => "method contains control character",
        }
    }
}

impl fmt::Display for InvalidMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid method: {}", self.text())
    }
}

impl std::error::Error for InvalidMethod {}

/// A method that cannot be put on an HTTP request line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadEscape(String);

impl fmt::Display for BadEscape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid URL escape {:?}", self.0)
    }
}

impl std::error::Error for BadEscape {}

impl Method {
    /// From the path of an HTTP request, which is percent-encoded.
    ///
    /// # Errors
    /// When the path cannot be decoded or holds characters no method may have.
    pub fn from_http(path: &str) -> Result<Self, InvalidMethod> {
        if !path.contains('%') {
            return Self::new(path);
        }
        if bad_escape(path).is_some() {
            return Err(InvalidMethod::Escape);
        }
        let decoded = percent_decode_str(path).decode_utf8().map_err(|_| InvalidMethod::Utf8)?;
        Self::new(&decoded)
    }

    /// From a text that is not percent-encoded: a gRPC caller's method, or one a peer sent.
    ///
    /// # Errors
    /// When it holds characters no method may have.
    pub fn new(text: &str) -> Result<Self, InvalidMethod> {
        for b in text.bytes() {
            match b {
                b'#' | b'?' | 0 => return Err(InvalidMethod::Forbidden),
                0x01..=0x1f | 0x7f => return Err(InvalidMethod::Control),
                _ => {}
            }
        }
        if is_clean(text) { Ok(Self(text.into())) } else { Ok(Self(clean(text).into())) }
    }

    /// The text that is judged and sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What an HTTP app reads when it decodes the escapes that are left in the method,
    /// when that differs. Access control judges both, so that `%2561dmin` cannot slip
    /// past a rule for `admin`.
    #[must_use]
    pub fn read_by_app(&self) -> Option<String> {
        if !self.0.contains('%') {
            return None;
        }
        let decoded = percent_decode_str(&self.0).decode_utf8_lossy();
        let read = clean(&decoded);
        (read != *self.0).then_some(read)
    }

    /// Appends the method to `out` as an absolute URL path: a leading slash, escapes as they
    /// are, everything a path may not hold escaped.
    ///
    /// # Errors
    /// When the method holds a `%` that starts no escape.
    pub fn write_path(&self, out: &mut String) -> Result<(), BadEscape> {
        if let Some(at) = bad_escape(&self.0) {
            return Err(BadEscape(self.0[at..].chars().take(3).collect()));
        }
        if !self.0.starts_with('/') {
            out.push('/');
        }
        if self.0.bytes().all(path_byte) {
            out.push_str(&self.0);
            return Ok(());
        }
        for b in self.0.bytes() {
            if path_byte(b) {
                out.push(char::from(b));
            } else {
                let _ = write!(out, "%{b:02X}");
            }
        }
        Ok(())
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Position of the first `%` without two hexadecimal digits after it.
fn bad_escape(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            let digits = bytes.get(at + 1..at + 3);
            if !digits.is_some_and(|d| d.iter().all(u8::is_ascii_hexdigit)) {
                return Some(at);
            }
            at += 3;
        } else {
            at += 1;
        }
    }
    None
}

/// Whether `b` goes into a URL path as it is (RFC 3986, path characters and the slash,
/// with the brackets that every HTTP server takes).
fn path_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/[]%".contains(&b)
}

/// Whether cleaning would change nothing; the usual case, which then copies nothing.
fn is_clean(text: &str) -> bool {
    if text.is_empty() || text == "/" {
        return true;
    }
    text.strip_prefix('/').unwrap_or(text).split('/').all(|s| !matches!(s, "" | "." | ".."))
}

/// Resolves `.`, `..`, `//` and a trailing slash; `..` above the start is dropped.
fn clean(text: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    let mut out = String::with_capacity(text.len());
    if text.starts_with('/') {
        out.push('/');
    }
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            out.push('/');
        }
        out.push_str(part);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn http(text: &str) -> Result<String, InvalidMethod> {
        Method::from_http(text).map(|m| m.as_str().to_owned())
    }

    #[test]
    fn hostile_and_odd_methods() {
        for (given, sent) in [
            ("orders", "orders"),
            ("orders/1", "orders/1"),
            ("/orders", "/orders"),
            ("", ""),
            ("/", "/"),
            (".", ""),
            ("..", ""),
            ("orders/", "orders"),
            ("a//b", "a/b"),
            ("a/./b", "a/b"),
            ("a/../b", "b"),
            ("a/../../b", "b"),
            ("../../admin", "admin"),
            ("/../../admin", "/admin"),
            ("%2e%2e/admin", "admin"),
            ("a/%2e%2e/admin", "admin"),
            ("a%2f..%2fadmin", "admin"),
            ("a%2F%2e%2E%2Fadmin", "admin"),
            ("%2525", "%25"),
            ("%252e%252e/admin", "%2e%2e/admin"),
            ("...", "..."),
            ("a/..b", "a/..b"),
            ("caf%C3%A9", "café"),
            ("a%20b", "a b"),
            ("a+b", "a+b"),
            ("%22*%5C", "\"*\\"),
            ("..\\admin", "..\\admin"),
        ] {
            assert_eq!(http(given).as_deref(), Ok(sent), "{given}");
        }
        for (given, why) in [
            ("a%3Fb", InvalidMethod::Forbidden),
            ("a%23b", InvalidMethod::Forbidden),
            ("a%00b", InvalidMethod::Forbidden),
            ("a%0d%0aX: y", InvalidMethod::Control),
            ("a%1f", InvalidMethod::Control),
            ("a%7f", InvalidMethod::Control),
            ("a%zz", InvalidMethod::Escape),
            ("a%", InvalidMethod::Escape),
            ("a%2", InvalidMethod::Escape),
            ("%ff", InvalidMethod::Utf8),
            ("%c0%ae%c0%ae/admin", InvalidMethod::Utf8),
        ] {
            assert_eq!(http(given), Err(why), "{given}");
        }
    }

    #[test]
    fn grpc_methods_are_not_decoded() {
        assert_eq!(Method::new("test%2Fx").unwrap().as_str(), "test%2Fx");
        assert_eq!(Method::new("a/../b").unwrap().as_str(), "b");
    }

    #[test]
    fn paths_on_the_wire() {
        for (method, path) in [
            ("orders", "/orders"),
            ("/orders", "/orders"),
            ("", "/"),
            ("a b", "/a%20b"),
            ("%25", "/%25"),
            ("café/é", "/caf%C3%A9/%C3%A9"),
            ("\"*\\", "/%22*%5C"),
            ("a;b=c,d@e:f!$&'()+", "/a;b=c,d@e:f!$&'()+"),
        ] {
            let mut out = String::new();
            Method::new(method).unwrap().write_path(&mut out).unwrap();
            assert_eq!(out, path);
        }
        let lone = Method::from_http("100%25").unwrap();
        assert_eq!(lone.write_path(&mut String::new()).unwrap_err().to_string(), "invalid URL escape \"%\"");
    }

    #[test]
    fn what_an_app_decodes_is_judged_too() {
        assert_eq!(Method::from_http("%2561dmin").unwrap().read_by_app().as_deref(), Some("admin"));
        assert_eq!(Method::from_http("x/%252e%252e/admin").unwrap().read_by_app().as_deref(), Some("admin"));
        assert_eq!(Method::from_http("admin").unwrap().read_by_app(), None);
    }

    proptest! {
        #[test]
        fn normal_form_is_stable_and_cannot_climb(text in "[a-z./%2eEfF\\\\\" é]{0,40}") {
            if let Ok(m) = Method::from_http(&text) {
                let again = Method::new(m.as_str()).unwrap();
                prop_assert_eq!(&again, &m);
                prop_assert!(m.as_str().split('/').all(|s| s != ".." && s != "."));
                prop_assert!(!m.as_str().contains("//"));
            }
        }

        #[test]
        fn a_path_on_the_wire_decodes_to_the_text_judged(text in "[a-z/. é\"]{0,40}") {
            let m = Method::new(&text).unwrap();
            let mut path = String::new();
            m.write_path(&mut path).unwrap();
            prop_assert!(path.parse::<http::uri::PathAndQuery>().is_ok());
            let decoded = percent_decode_str(&path).decode_utf8().unwrap().into_owned();
            prop_assert_eq!(decoded.trim_start_matches('/'), m.as_str().trim_start_matches('/'));
        }

        #[test]
        fn nothing_panics(text in "\\PC{0,40}") {
            if let Ok(m) = Method::from_http(&text) {
                let _ = m.read_by_app();
                let _ = m.write_path(&mut String::new());
            }
        }
    }
}
