//! Which headers travel, under which names, and what a hop adds.

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use http::{HeaderMap, header};

use crate::cx::TraceHeaders;

/// Names the callee of a request; never handed on.
pub const APP_ID: HeaderName = HeaderName::from_static("dapr-app-id");
/// Token of the API, and of calls to the app; never handed on.
pub const API_TOKEN: HeaderName = HeaderName::from_static("dapr-api-token");
/// App that calls.
pub const CALLER_APP_ID: HeaderName = HeaderName::from_static("dapr-caller-app-id");
/// Its namespace.
pub const CALLER_NAMESPACE: HeaderName = HeaderName::from_static("dapr-caller-namespace");
/// App that is called.
pub const CALLEE_APP_ID: HeaderName = HeaderName::from_static("dapr-callee-app-id");
/// The same, only between sidecars.
pub const DESTINATION_APP_ID: HeaderName = HeaderName::from_static("destination-app-id");
/// Number of sidecars an invocation went through.
pub const HOPS: HeaderName = HeaderName::from_static("mecha-hops");
/// W3C trace context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// W3C trace state.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// W3C baggage.
pub const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Sidecars one invocation may go through. Call chains of real systems are far shorter;
/// a loop passes any limit. Apps that hand on all headers send back the three lines that
/// each sidecar adds, and HTTP/1 servers take about a hundred lines: with more hops the loop
/// would end in a complaint about headers.
pub const MAX_HOPS: u32 = 16;

/// Headers that concern one connection only (RFC 9110, section 7.6.1, and what
/// intermediaries have learnt to drop).
static HOP_BY_HOP: [HeaderName; 10] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
    header::TE,
    header::TRAILER,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
];

/// Removes what belongs to one connection, with everything `Connection` names.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .filter_map(|n| n.trim().parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Removes from a request what may not go on: connection headers, tokens, the target,
/// and ids that only sidecars may state.
pub fn clean_request(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    headers.remove(API_TOKEN);
    headers.remove(APP_ID);
    headers.remove(HOST);
    strip_sidecar_ids(headers);
}

/// Removes `dapr-caller-*`, `dapr-callee-*` and `destination-app-id`.
pub fn strip_sidecar_ids(headers: &mut HeaderMap) {
    let ours = |n: &HeaderName| {
        let n = n.as_str();
        n.starts_with("dapr-caller-") || n.starts_with("dapr-callee-") || n == DESTINATION_APP_ID.as_str()
    };
    remove_where(headers, ours);
}

/// Removes from an answer what may not go back.
pub fn clean_response(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    headers.remove(API_TOKEN);
    for_http(headers);
}

/// Names for an HTTP receiver: `-bin` is dropped, `grpc-*` becomes `dapr-grpc-*`.
pub fn for_http(headers: &mut HeaderMap) {
    remove_where(headers, |n| n.as_str().ends_with("-bin"));
    prefix_where(headers, |n| n.starts_with("grpc-"));
}

/// Names for a gRPC receiver: permanent HTTP headers and reserved gRPC names get a `dapr-`
/// prefix. `content-type` is copied, because it also is the content type of the message.
pub fn for_grpc(headers: &mut HeaderMap, from_http: bool) {
    if from_http {
        if let Some(value) = headers.get(CONTENT_TYPE).cloned() {
            headers.insert(HeaderName::from_static("dapr-content-type"), value);
        }
        prefix_where(headers, |n| n.starts_with("grpc-") || is_permanent(n));
    } else {
        // A peer's `:authority`, which no header can be called.
        headers.remove("dapr-authority");
        prefix_where(headers, |n| n.starts_with("grpc-") && n != "grpc-trace-bin");
    }
}

/// Removes the status that an app's gRPC client may leave among the metadata of an answer.
pub fn strip_grpc_status(headers: &mut HeaderMap) {
    for name in ["grpc-status", "grpc-message", "grpc-status-details-bin", "grpc-encoding", "grpc-accept-encoding"] {
        headers.remove(name);
    }
}

/// HTTP headers that gRPC metadata may not carry under their own name.
fn is_permanent(name: &str) -> bool {
    matches!(
        name,
        "accept"
            | "accept-charset"
            | "accept-language"
            | "accept-ranges"
            | "cache-control"
            | "connection"
            | "content-length"
            | "cookie"
            | "date"
            | "expect"
            | "from"
            | "host"
            | "if-match"
            | "if-modified-since"
            | "if-none-match"
            | "if-schedule-tag-match"
            | "if-unmodified-since"
            | "keep-alive"
            | "max-forwards"
            | "origin"
            | "pragma"
            | "proxy-connection"
            | "referer"
            | "transfer-encoding"
            | "upgrade"
            | "via"
            | "warning"
    )
}

fn remove_where(headers: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    // Requests hold one or none of these: finding them one at a time keeps the usual case
    // free of allocations.
    while let Some(name) = headers.keys().find(|n| unwanted(n)).cloned() {
        headers.remove(name);
    }
}

fn prefix_where(headers: &mut HeaderMap, wanted: impl Fn(&str) -> bool) {
    while let Some(name) = headers.keys().find(|n| wanted(n.as_str())).cloned() {
        let values: Vec<HeaderValue> = headers.get_all(&name).iter().cloned().collect();
        headers.remove(&name);
        let Ok(prefixed) = HeaderName::try_from(format!("dapr-{name}")) else { continue };
        for value in values {
            headers.append(prefixed.clone(), value);
        }
    }
}

/// Puts the trace context of the running span in place of the caller's.
pub fn set_trace(headers: &mut HeaderMap, trace: &TraceHeaders) {
    for (name, value) in [(TRACEPARENT, &trace.traceparent), (TRACESTATE, &trace.tracestate), (BAGGAGE, &trace.baggage)]
    {
        if let Some(value) = value.as_deref().and_then(|v| HeaderValue::from_str(v).ok()) {
            headers.insert(name, value);
        }
    }
}

/// Counts this sidecar.
///
/// # Errors
/// The count, when the invocation went through too many.
pub fn count_hop(headers: &mut HeaderMap) -> Result<(), u32> {
    let before: u32 = headers.get(HOPS).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok()).unwrap_or(0);
    if before >= MAX_HOPS {
        return Err(before);
    }
    headers.insert(HOPS, HeaderValue::from(before + 1));
    Ok(())
}

/// The announced length of a body.
#[must_use]
pub fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// What this sidecar adds to calls that leave it, made once.
#[derive(Clone, Debug)]
pub struct HopHeaders {
    caller: HeaderValue,
    namespace: HeaderValue,
    forwarded_for: Option<HeaderValue>,
    forwarded_host: Option<HeaderValue>,
    forwarded: Option<HeaderValue>,
}

impl HopHeaders {
    /// For an app in a namespace on a host. An address or host name that cannot be a header
    /// value is left out.
    #[must_use]
    pub fn new(app_id: &str, namespace: &str, host_address: &str, host_name: &str) -> Self {
        let value = |text: &str| HeaderValue::from_str(text).ok().filter(|v| !v.is_empty());
        let mut forwarded = String::new();
        if !host_address.is_empty() {
            forwarded = format!("for={host_address};by={host_address};");
        }
        if !host_name.is_empty() {
            forwarded.push_str("host=");
            forwarded.push_str(host_name);
        }
        Self {
            caller: value(app_id).unwrap_or_else(|| HeaderValue::from_static("unknown")),
            namespace: value(namespace).unwrap_or_else(|| HeaderValue::from_static("default")),
            forwarded_for: value(host_address),
            forwarded_host: value(host_name),
            forwarded: value(&forwarded),
        }
    }

    /// Adds caller, callee and forwarding lines to a call to `callee`.
    pub fn add(&self, headers: &mut HeaderMap, callee: &str) {
        self.add_ids(headers, callee);
        if let Some(callee) = headers.get(CALLEE_APP_ID).cloned() {
            headers.insert(DESTINATION_APP_ID, callee);
        }
        self.forward(headers);
    }

    /// Adds caller and callee only: what a proxied gRPC call gains.
    pub fn add_ids(&self, headers: &mut HeaderMap, callee: &str) {
        headers.insert(CALLER_APP_ID, self.caller.clone());
        headers.insert(CALLER_NAMESPACE, self.namespace.clone());
        if let Ok(callee) = HeaderValue::from_str(callee) {
            headers.insert(CALLEE_APP_ID, callee);
        }
    }

    fn forward(&self, headers: &mut HeaderMap) {
        for (name, value) in [
            (X_FORWARDED_FOR, &self.forwarded_for),
            (X_FORWARDED_HOST, &self.forwarded_host),
            (header::FORWARDED, &self.forwarded),
        ] {
            if let Some(value) = value {
                headers.append(name, value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(entries: &[(&str, &str)]) -> HeaderMap {
        let mut m = HeaderMap::new();
        for (k, v) in entries {
            m.append(k.parse::<HeaderName>().unwrap(), v.parse().unwrap());
        }
        m
    }

    fn names(m: &HeaderMap) -> Vec<&str> {
        let mut n: Vec<_> = m.keys().map(HeaderName::as_str).collect();
        n.sort_unstable();
        n
    }

    #[test]
    fn connection_headers_and_what_they_name_are_dropped() {
        let mut m = map(&[
            ("connection", "close, X-Secret"),
            ("connection", "x-other"),
            ("x-secret", "1"),
            ("x-other", "1"),
            ("keep-alive", "1"),
            ("proxy-connection", "1"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("proxy-authorization", "x"),
            ("proxy-authenticate", "x"),
            ("x-kept", "1"),
        ]);
        strip_hop_by_hop(&mut m);
        assert_eq!(names(&m), ["x-kept"]);
    }

    #[test]
    fn tokens_and_claimed_ids_do_not_leave() {
        let mut m = map(&[
            ("dapr-api-token", "canary"),
            ("dapr-app-id", "b"),
            ("dapr-caller-app-id", "forged"),
            ("dapr-caller-namespace", "forged"),
            ("dapr-callee-app-id", "forged"),
            ("destination-app-id", "forged"),
            ("host", "h"),
            ("authorization", "Bearer x"),
        ]);
        clean_request(&mut m);
        assert_eq!(names(&m), ["authorization"]);
    }

    #[test]
    fn names_for_http_and_grpc() {
        let mut m = map(&[("grpc-encoding", "gzip"), ("key-bin", "AAA"), ("x", "1")]);
        for_http(&mut m);
        assert_eq!(names(&m), ["dapr-grpc-encoding", "x"]);

        let mut m = map(&[("cookie", "a"), ("cookie", "b"), ("content-type", "text/plain"), ("x", "1")]);
        for_grpc(&mut m, true);
        assert_eq!(names(&m), ["content-type", "dapr-content-type", "dapr-cookie", "x"]);
        assert_eq!(m.get_all("dapr-cookie").iter().count(), 2);
    }

    #[test]
    fn a_hop_adds_its_lines_after_those_of_the_client() {
        let hop = HopHeaders::new("a", "default", "10.0.0.1", "box");
        let mut m = map(&[("x-forwarded-for", "1.2.3.4")]);
        hop.add(&mut m, "b");
        let lines: Vec<_> = m.get_all("x-forwarded-for").iter().collect();
        assert_eq!(lines, ["1.2.3.4", "10.0.0.1"]);
        assert_eq!(m["forwarded"], "for=10.0.0.1;by=10.0.0.1;host=box");
        assert_eq!(m["x-forwarded-host"], "box");
        assert_eq!(m["dapr-caller-app-id"], "a");
        assert_eq!(m["dapr-caller-namespace"], "default");
        assert_eq!(m["dapr-callee-app-id"], "b");
    }

    #[test]
    fn loops_end() {
        let mut m = HeaderMap::new();
        let passed = std::iter::repeat_with(|| count_hop(&mut m)).take_while(Result::is_ok).count();
        assert_eq!(passed, MAX_HOPS as usize);
    }

    proptest! {
        #[test]
        fn no_set_of_headers_leaks_a_token(names in proptest::collection::vec("[a-z-]{1,20}", 0..12)) {
            let mut m = map(&[("dapr-api-token", "canary"), ("dapr-caller-x", "canary")]);
            m.append("connection", names.join(",").parse().unwrap());
            for n in &names {
                if let Ok(n) = n.parse::<HeaderName>() {
                    m.append(n, HeaderValue::from_static("1"));
                }
            }
            clean_request(&mut m);
            prop_assert!(m.values().all(|v| v != "canary"));
            for n in &names {
                prop_assert!(!m.contains_key(n.as_str()));
            }
        }
    }
}
