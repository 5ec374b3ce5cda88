//! Where spans go over OTLP, resolved without doing anything yet.

use std::fmt;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

/// Until an export has failed, when nobody says how long.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Path of OTLP over HTTP.
const OTLP_PATH: &str = "/v1/traces";

/// OTLP's two transports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OtlpProtocol {
    /// Port 4317 by custom.
    Grpc,
    /// Protobuf over HTTP; port 4318 by custom.
    Http,
}

impl OtlpProtocol {
    /// Its name in variables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http/protobuf",
        }
    }

    /// What `text` asks for, such as `http/protobuf`; everything that does not begin with `http` is gRPC.
    #[must_use]
    pub fn of(text: Option<&str>) -> Self {
        match text {
            Some(text) if text.trim().to_ascii_lowercase().starts_with("http") => Self::Http,
            _ => Self::Grpc,
        }
    }
}

/// An OTLP exporter.
#[derive(Clone, Debug)]
pub struct OtlpPlan {
    /// Transport.
    pub protocol: OtlpProtocol,
    /// With scheme; for HTTP with path.
    pub url: String,
    /// Sent with every export; values are marked as sensitive.
    pub headers: HeaderMap,
    /// Limit of one export.
    pub timeout: Duration,
}

impl OtlpPlan {
    /// An exporter to `endpoint`, with or without scheme and path.
    #[must_use]
    pub fn new(protocol: OtlpProtocol, endpoint: &str, insecure: bool) -> Self {
        let (scheme, rest) = match endpoint.split_once("://") {
            Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
            None => (String::new(), endpoint),
        };
        // A scheme is the clearest word on TLS; the incumbent drops it and then
        // talks TLS to a plain port.
        let scheme = if insecure || scheme == "http" { "http" } else { "https" };
        let rest = rest.trim_end_matches('/');
        let url = match protocol {
            OtlpProtocol::Grpc => format!("{scheme}://{rest}"),
            OtlpProtocol::Http if rest.ends_with(OTLP_PATH) => format!("{scheme}://{rest}"),
            OtlpProtocol::Http => format!("{scheme}://{rest}{OTLP_PATH}"),
        };
        Self { protocol, url, headers: HeaderMap::new(), timeout: DEFAULT_TIMEOUT }
    }
}

impl fmt::Display for OtlpPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OTLP at {}", without_userinfo(&self.url))
    }
}

/// A header as exports carry it; `None` when it is not valid.
#[must_use]
pub fn header(name: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    let name = HeaderName::try_from(name).ok()?;
    let mut value = HeaderValue::try_from(value).ok()?;
    value.set_sensitive(true);
    Some((name, value))
}

/// csv of `key=value`, values percent-decoded. Warnings name no value: it may be a token.
pub fn pairs(text: &str, variable: &str, warnings: &mut Vec<String>) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for (at, pair) in text.split(',').enumerate().filter(|(_, pair)| !pair.trim().is_empty()) {
        let decoded = pair.split_once('=').and_then(|(key, value)| {
            let key = key.trim();
            let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
            (!key.is_empty()).then(|| (key.to_owned(), value.into_owned()))
        });
        match decoded {
            Some(pair) => pairs.push(pair),
            None => warnings.push(format!("{variable}: entry {} is not key=value; ignored", at + 1)),
        }
    }
    pairs
}

/// For logs and errors: a URL may hold a password.
#[must_use]
pub fn without_userinfo(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let host_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..host_end].rfind('@') {
        Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
        None => url.to_owned(),
    }
}
