//! SPIFFE ids: `spiffe://<trust domain>/<path>`.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

const SCHEME: &str = "spiffe://";
/// Longest id that the standard allows, in bytes.
const MAX_ID: usize = 2048;
/// Longest trust domain that the standard allows, in bytes.
const MAX_TRUST_DOMAIN: usize = 255;

/// The name of a workload, as its certificate carries it: always valid, compared byte by byte.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Box<str>,
    /// Where the path begins, with its slash.
    path: usize,
}

/// Why a text is no SPIFFE id. The texts name the rule that is broken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpiffeIdError {
    /// Another scheme, or none.
    #[error("a SPIFFE id begins with {SCHEME}")]
    Scheme,
    /// Longer than the standard allows.
    #[error("a SPIFFE id has at most {MAX_ID} bytes")]
    TooLong,
    /// The trust domain is empty, too long, or has a character that is not allowed.
    #[error("the trust domain {0:?} is not made of 1 to {MAX_TRUST_DOMAIN} of the characters a-z 0-9 . - _")]
    TrustDomain(String),
    /// A part between slashes is empty, is `.` or `..`, or has a character that is not allowed.
    #[error("the path segment {0:?} is not made of the characters A-Z a-z 0-9 . - _, or is empty, '.' or '..'")]
    Segment(String),
}

impl SpiffeId {
    /// Reads an id. A trust domain without a path is an id as well.
    ///
    /// # Errors
    /// The rule of the standard that the text breaks.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        if text.len() > MAX_ID {
            return Err(SpiffeIdError::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let domain = rest.split('/').next().unwrap_or_default();
        check_trust_domain(domain)?;
        let path = SCHEME.len() + domain.len();
        if let Some(segments) = text[path..].strip_prefix('/') {
            segments.split('/').try_for_each(check_segment)?;
        }
        Ok(Self { text: text.into(), path })
    }

    /// The id of a workload: `spiffe://<trust domain>/ns/<namespace>/<app id>`.
    ///
    /// # Errors
    /// The part that may not be in an id.
    pub fn workload(trust_domain: &str, namespace: &str, app_id: &str) -> Result<Self, SpiffeIdError> {
        check_trust_domain(trust_domain)?;
        check_segment(namespace)?;
        check_segment(app_id)?;
        Self::parse(&format!("{SCHEME}{trust_domain}/ns/{namespace}/{app_id}"))
    }

    /// The id of a part of the control plane, such as `dapr-sentry` or `dapr-operator`: the
    /// workload of that name in the control plane's trust domain and namespace.
    ///
    /// # Errors
    /// The part that may not be in an id.
    pub fn control(trust_domain: &str, namespace: &str, part: &str) -> Result<Self, SpiffeIdError> {
        Self::workload(trust_domain, namespace, part)
    }

    /// The whole id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..self.path]
    }

    /// The path with its leading slash, or nothing.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.text[self.path..]
    }

    /// The namespace, for an id of the form `/ns/<namespace>/<app id>`.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        Some(self.parts()?.0)
    }

    /// The app id (or the name of a part of the control plane), for an id of the form
    /// `/ns/<namespace>/<app id>`.
    #[must_use]
    pub fn app_id(&self) -> Option<&str> {
        Some(self.parts()?.1)
    }

    fn parts(&self) -> Option<(&str, &str)> {
        let (namespace, app_id) = self.path().strip_prefix("/ns/")?.split_once('/')?;
        (!app_id.contains('/')).then_some((namespace, app_id))
    }
}

fn check_trust_domain(text: &str) -> Result<(), SpiffeIdError> {
    let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    if (1..=MAX_TRUST_DOMAIN).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(())
    } else {
        Err(SpiffeIdError::TrustDomain(shown(text)))
    }
}

fn check_segment(text: &str) -> Result<(), SpiffeIdError> {
    let allowed = |b: u8| matches!(b, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    if !matches!(text, "" | "." | "..") && text.bytes().all(allowed) {
        Ok(())
    } else {
        Err(SpiffeIdError::Segment(shown(text)))
    }
}

/// Enough of a bad text to find it.
fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_id_has_its_parts() {
        let id = SpiffeId::workload("public", "shop", "orders").unwrap();
        assert_eq!(id.to_string(), "spiffe://public/ns/shop/orders");
        assert_eq!((id.trust_domain(), id.path()), ("public", "/ns/shop/orders"));
        assert_eq!((id.namespace(), id.app_id()), (Some("shop"), Some("orders")));
        assert_eq!("spiffe://public/ns/shop/orders".parse(), Ok(id));
    }

    #[test]
    fn other_paths_are_ids_of_no_workload() {
        for text in ["spiffe://td", "spiffe://td/ns/a", "spiffe://td/ns/a/b/c", "spiffe://td/x/a/b"] {
            let id = SpiffeId::parse(text).unwrap();
            assert_eq!((id.namespace(), id.app_id()), (None, None), "{text}");
        }
    }

    #[test]
    fn what_the_standard_forbids_is_refused() {
        for text in [
            "",
            "spiffe:/td/a",
            "SPIFFE://td/a",
            "https://td/a",
            "spiffe://",
            "spiffe:///a",
            "spiffe://TD/a",
            "spiffe://td:80/a",
            "spiffe://u@td/a",
            "spiffe://td/",
            "spiffe://td/a/",
            "spiffe://td//a",
            "spiffe://td/./a",
            "spiffe://td/a/..",
            "spiffe://td/a%2fb",
            "spiffe://td/a?b",
            "spiffe://td/a#b",
            "spiffe://td/ä",
            "spiffe://td/a\u{0}",
        ] {
            assert!(SpiffeId::parse(text).is_err(), "{text:?}");
        }
        assert!(SpiffeId::parse(&format!("spiffe://{}/a", "a".repeat(256))).is_err());
        assert_eq!(SpiffeId::parse(&format!("spiffe://td/{}", "a".repeat(2048))), Err(SpiffeIdError::TooLong));
    }

    #[test]
    fn a_name_cannot_become_a_path() {
        assert!(SpiffeId::workload("td", "a", "b/../c").is_err());
        assert!(SpiffeId::workload("td", "a/b", "c").is_err());
        assert!(SpiffeId::workload("td/ns/x", "a", "c").is_err());
        assert!(SpiffeId::workload("td", "", "c").is_err());
    }
}
