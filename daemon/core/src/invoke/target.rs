//! Who is called: from the headers, the basic auth user or the path of a request.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use mecha_components_api::ErrorKind;
use percent_encoding::percent_decode_str;

use super::headers::APP_ID;
use super::method::{InvalidMethod, Method};
use crate::codes::Code;
use crate::error::ApiError;

/// Who is called, and which method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `app`, `app.namespace`, the name of an HTTPEndpoint or an absolute URL.
    pub id: String,
    /// The method.
    pub method: Method,
}

/// An id, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Id<'a> {
    /// An app.
    App {
        /// App id.
        app: &'a str,
        /// Namespace; the own one when none was given.
        namespace: &'a str,
    },
    /// An absolute `http(s)` URL.
    Url(&'a str),
}

impl<'a> Id<'a> {
    /// Takes an id apart; the name of an HTTPEndpoint is looked for before.
    ///
    /// # Errors
    /// The text for the caller, when the id is empty or has more than one dot.
    pub fn parse(id: &'a str, own_namespace: &'a str) -> Result<Self, String> {
        if is_url(id) {
            return Ok(Self::Url(id));
        }
        let mut parts = id.split('.');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(""), None, _) | (None, ..) => Err("app id is empty".to_owned()),
            (Some(app), None, _) => Ok(Self::App { app, namespace: own_namespace }),
            (Some(app), Some(namespace), None) => Ok(Self::App { app, namespace }),
            _ => Err(format!("invalid app id {id}")),
        }
    }
}

/// Whether `id` is an absolute URL.
#[must_use]
pub fn is_url(id: &str) -> bool {
    id.starts_with("http://") || id.starts_with("https://")
}

impl Target {
    /// Finds the target of an HTTP request: header `dapr-app-id` (which is removed), basic
    /// auth user `dapr-app-id`, path `/v1.0/invoke/{id}/method/{method…}`. `path` is the
    /// escaped path, already cleaned.
    ///
    /// # Errors
    /// 404 when the request names nobody, otherwise what is wrong with the method.
    pub fn find(path: &str, headers: &mut HeaderMap) -> Result<Self, ApiError> {
        if let Some(id) = headers.get(APP_ID).and_then(|v| v.to_str().ok()).filter(|v| !v.is_empty()) {
            let id = id.to_owned();
            headers.remove(APP_ID);
            return Self::whole_path(id, path);
        }
        if let Some(id) = basic_auth(headers) {
            return Self::whole_path(id, path);
        }
        let (id, method) = split_path(path).ok_or_else(no_target)?;
        let id = decode_id(id).ok_or_else(|| ApiError::malformed("invalid URL escape in the app id"))?;
        if id.is_empty() {
            return Err(no_target());
        }
        Self::new(id, method)
    }

    fn whole_path(id: String, path: &str) -> Result<Self, ApiError> {
        Self::new(id, path.strip_prefix('/').unwrap_or(path))
    }

    fn new(id: String, path: &str) -> Result<Self, ApiError> {
        match Method::from_http(path) {
            Ok(method) => Ok(Self { id, method }),
            Err(e @ InvalidMethod::Escape) => Err(ApiError::malformed(e.to_string())),
            Err(e) => Err(failed(&id, ErrorKind::Internal, e)),
        }
    }
}

/// The error of an invocation that did not happen: 500 / Internal, or 403 / PermissionDenied
/// when `kind` says so.
pub(crate) fn failed(id: &str, kind: ErrorKind, cause: impl std::fmt::Display) -> ApiError {
    let error = ApiError::new(Code::DirectInvoke, kind, format!("failed to invoke, id: {id}, err: {cause}"));
    match kind {
        ErrorKind::PermissionDenied => error.with_status(403, 7),
        _ => error.with_status(500, 13),
    }
}

fn no_target() -> ApiError {
    ApiError::new(
        Code::DirectInvoke,
        ErrorKind::NotFound,
        "failed getting app id either from the URL path or the header dapr-app-id",
    )
    .with_status(404, 5)
}

fn basic_auth(headers: &HeaderMap) -> Option<String> {
    let encoded = headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let decoded = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    let ours = user.eq_ignore_ascii_case(APP_ID.as_str()) && !password.is_empty() && !password.contains(':');
    ours.then(|| password.to_owned())
}

fn split_path(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_prefix("/v1.0/invoke/")?;
    if let Some(at) = rest.find("/method/") {
        return Some((&rest[..at], &rest[at + "/method/".len()..]));
    }
    // The trailing slash of an empty method may have been cleaned away.
    rest.strip_suffix("/method").map(|id| (id, ""))
}

/// Query-unescapes an id and puts back the second slash of a URL's scheme, which cleaning
/// the path has taken away.
fn decode_id(id: &str) -> Option<String> {
    let mut decoded = if id.contains(['%', '+']) {
        let spaced = id.replace('+', " ");
        percent_decode_str(&spaced).decode_utf8().ok()?.into_owned()
    } else {
        id.to_owned()
    };
    if decoded.chars().any(char::is_control) {
        return None;
    }
    for scheme in ["http:/", "https:/"] {
        if let Some(rest) = decoded.strip_prefix(scheme)
            && !rest.starts_with('/')
        {
            decoded = format!("{scheme}/{rest}");
            break;
        }
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(path: &str, headers: &[(&'static str, &str)]) -> Result<(String, String), ApiError> {
        let mut map = HeaderMap::new();
        for (k, v) in headers {
            map.insert(*k, v.parse().unwrap());
        }
        Target::find(path, &mut map).map(|t| (t.id, t.method.as_str().to_owned()))
    }

    fn ok(id: &str, method: &str) -> (String, String) {
        (id.to_owned(), method.to_owned())
    }

    #[test]
    fn the_header_wins_over_user_and_path() {
        let basic = format!("Basic {}", STANDARD.encode("dapr-app-id:b"));
        let both = [("dapr-app-id", "a"), ("authorization", basic.as_str())];
        assert_eq!(find("/v1.0/invoke/c/method/x", &both).unwrap(), ok("a", "v1.0/invoke/c/method/x"));
        assert_eq!(find("/v1.0/invoke/c/method/x", &both[1..]).unwrap(), ok("b", "v1.0/invoke/c/method/x"));
        assert_eq!(find("/v1.0/invoke/c/method/x/y", &[]).unwrap(), ok("c", "x/y"));
        assert_eq!(find("/orders/1", &both[..1]).unwrap(), ok("a", "orders/1"));
    }

    #[test]
    fn the_header_is_removed_and_basic_auth_stays() {
        let mut map = HeaderMap::new();
        map.insert("dapr-app-id", "a".parse().unwrap());
        Target::find("/x", &mut map).unwrap();
        assert!(map.is_empty());
        map.insert(AUTHORIZATION, format!("Basic {}", STANDARD.encode("DAPR-App-Id:a")).parse().unwrap());
        assert_eq!(Target::find("/x", &mut map).unwrap().id, "a");
        assert!(map.contains_key(AUTHORIZATION));
    }

    #[test]
    fn other_users_are_nobody() {
        for user in ["admin:a", "dapr-app-id:", "dapr-app-id", "dapr-app-id:a:b"] {
            let basic = format!("Basic {}", STANDARD.encode(user));
            let e = find("/x", &[("authorization", &basic)]).unwrap_err();
            assert_eq!(e.status(), Some((404, 5)));
        }
        assert_eq!(find("/x", &[]).unwrap_err().code(), Code::DirectInvoke);
        assert_eq!(find("/v1.0/invoke/a", &[]).unwrap_err().status(), Some((404, 5)));
    }

    #[test]
    fn ids_in_paths() {
        let url = ok("https://example.com:8080", "a/b");
        assert_eq!(find("/v1.0/invoke/https%3A%2F%2Fexample.com%3A8080/method/a/b", &[]).unwrap(), url);
        assert_eq!(find("/v1.0/invoke/https://example.com:8080/method/a/b", &[]).unwrap(), url);
        assert_eq!(find("/v1.0/invoke/https:/example.com:8080/method/a/b", &[]).unwrap(), url);
        assert_eq!(find("/v1.0/invoke/a.ns/method/", &[]).unwrap(), ok("a.ns", ""));
        assert_eq!(find("/v1.0/invoke/a/method", &[]).unwrap(), ok("a", ""));
        // The id cannot smuggle a method in: what follows the first literal `/method/` is the method.
        assert_eq!(find("/v1.0/invoke/a%2Fmethod%2Fadmin/method/x", &[]).unwrap(), ok("a/method/admin", "x"));
        assert!(find("/v1.0/invoke/a%0d%0a/method/x", &[]).is_err());
    }

    #[test]
    fn invalid_methods_are_refused_by_name() {
        let e = find("/v1.0/invoke/a/method/x%3Fy", &[]).unwrap_err();
        assert_eq!(e.status(), Some((500, 13)));
        assert_eq!(e.message(), "failed to invoke, id: a, err: invalid method: method contains forbidden character");
        assert_eq!(find("/v1.0/invoke/a/method/x%zz", &[]).unwrap_err().code(), Code::MalformedRequest);
    }

    #[test]
    fn ids_are_taken_apart() {
        assert_eq!(Id::parse("a", "own"), Ok(Id::App { app: "a", namespace: "own" }));
        assert_eq!(Id::parse("a.b", "own"), Ok(Id::App { app: "a", namespace: "b" }));
        assert_eq!(Id::parse("a.b.c", "own"), Err("invalid app id a.b.c".to_owned()));
        assert_eq!(Id::parse("", "own"), Err("app id is empty".to_owned()));
        assert_eq!(Id::parse("http://a.b.c/d", "own"), Ok(Id::Url("http://a.b.c/d")));
    }
}
