//! Cross-origin rules, on only when origins are allowed by flag.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderValue, ORIGIN, VARY,
};
use http::{Method, Response};

use super::respond::Answer;
use crate::body::OutBody;

/// Allowed origins.
#[derive(Clone, Debug)]
pub struct Cors {
    any: bool,
    origins: Vec<String>,
}

impl Cors {
    /// Reads `allowed-origins`; empty means no CORS.
    #[must_use]
    pub fn new(allowed: &str) -> Option<Self> {
        let origins: Vec<String> =
            allowed.split(',').map(str::trim).filter(|o| !o.is_empty()).map(str::to_owned).collect();
        (!origins.is_empty()).then(|| Self { any: origins.iter().any(|o| o == "*"), origins })
    }

    /// The origin to name in the answer.
    pub(super) fn origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(ORIGIN)?;
        if self.any {
            return Some(HeaderValue::from_static("*"));
        }
        let text = origin.to_str().ok()?;
        self.origins.iter().any(|o| o.eq_ignore_ascii_case(text)).then(|| origin.clone())
    }

    /// The answer to a preflight request.
    pub(super) fn preflight(&self, method: &Method, headers: &HeaderMap) -> Option<Answer> {
        if method != Method::OPTIONS {
            return None;
        }
        let asked = headers.get(ACCESS_CONTROL_REQUEST_METHOD)?;
        let mut res = Response::new(OutBody::empty());
        if let Some(origin) = self.origin(headers) {
            let out = res.headers_mut();
            out.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            out.insert(ACCESS_CONTROL_ALLOW_METHODS, asked.clone());
            if let Some(names) = headers.get(ACCESS_CONTROL_REQUEST_HEADERS) {
                out.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
            }
            out.insert(VARY, HeaderValue::from_static("Origin"));
        }
        Some(res)
    }

    /// Adds the headers to an ordinary answer.
    pub(super) fn mark(origin: Option<HeaderValue>, res: &mut Answer) {
        if let Some(origin) = origin {
            res.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            res.headers_mut().append(VARY, HeaderValue::from_static("Origin"));
        }
    }
}
