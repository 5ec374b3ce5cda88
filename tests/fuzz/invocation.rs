//! Paths, methods, targets and headers of calls.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use mecha_core::invoke::{Id, Method, Target as Called, headers};
use mecha_core::keys::KeyScheme;
use mechad::fuzzing::http as front;

use crate::engine::{Checked, Target};

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "http-path",
        words: &[
            "/v1.0/",
            "/v1.0-alpha1/",
            "invoke/",
            "/method/",
            "state/",
            "bulk",
            "transaction",
            "..",
            "/../",
            "//",
            "%2e%2e",
            "%2F",
            "%00",
            "publish/",
            "configuration/",
            "/v1.0-mecha/",
            "healthz",
            "+",
        ],
        check: path,
    },
    Target { name: "http-query", words: &["metadata.", "&", "=", "%", "%zz", "+", "consistency=strong"], check: query },
    Target {
        name: "invoke-method",
        words: &["%25", "%2561", "%2e", "%2F", "..", "/", "#", "?", "%00", "%0a", "%C3%A9", "é", ";", "[", " "],
        check: method,
    },
    Target {
        name: "invoke-target",
        words: &[
            "/v1.0/invoke/",
            "/method/",
            "dapr-app-id: ",
            "Basic ",
            "authorization: ",
            "http://",
            "https%3A%2F%2F",
            ".",
        ],
        check: target,
    },
    Target {
        name: "headers",
        words: &[
            "connection: ",
            "keep-alive",
            "dapr-api-token: ",
            "dapr-caller-app-id: ",
            "grpc-status: ",
            "-bin: ",
            "te: ",
            "dapr-app-id: ",
            "grpc-trace-bin: ",
            "content-length: ",
            "destination-app-id: ",
            "\n",
        ],
        check: header_filter,
    },
    Target {
        name: "state-key",
        words: &["||", "|", "appid", "none", "name", "namespace", "\n", "."],
        check: state_key,
    },
];

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

fn holds(condition: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(what()) }
}

/// What is cleaned stays clean, and a route is a part of what was cleaned.
fn path(bytes: &[u8]) -> Checked {
    let Some(path) = text(bytes) else { return Ok(false) };
    let clean = front::clean(path);
    holds(front::clean(&clean) == clean, || format!("cleaning {clean:?} again changes it"))?;
    holds(clean.starts_with('/'), || format!("{clean:?} does not begin with a slash"))?;
    holds(!clean.split('/').skip(1).any(|s| matches!(s, "." | "..")), || format!("{clean:?} has a dot segment"))?;
    let mut known = false;
    for verb in [http::Method::GET, http::Method::POST, http::Method::DELETE] {
        if let Some((api, version, route)) = front::route(&verb, &clean) {
            known = true;
            holds(!api.is_empty() && !version.is_empty(), || format!("{route} belongs to no API"))?;
        }
    }
    if let Some(decoded) = front::unescape(path) {
        let again = mecha_tests::escape(&decoded);
        holds(front::unescape(&again).as_deref() == Some(&decoded), || {
            format!("{decoded:?} does not survive escaping")
        })?;
    }
    Ok(known)
}

fn query(bytes: &[u8]) -> Checked {
    let Some(text) = text(bytes) else { return Ok(false) };
    let pairs = front::query(text);
    holds(pairs.len() <= text.split('&').count(), || "more parameters than parts".to_owned())?;
    Ok(!pairs.is_empty())
}

/// The method as an app reads it from a request line: decoded once, then resolved.
fn as_app_reads(line: &str) -> String {
    let decoded = percent_encoding::percent_decode_str(line).decode_utf8_lossy().into_owned();
    resolved(&decoded)
}

fn resolved(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()),
            other => kept.push(other),
        }
    }
    kept.join("/")
}

/// What access control judges is what the app reads.
fn check_method(method: &Method) -> Result<(), String> {
    let judged = method.as_str();
    holds(Method::new(judged).as_ref() == Ok(method), || format!("{judged:?} changes when it is read again"))?;
    let bad = |c: char| c.is_ascii_control() || matches!(c, '#' | '?');
    holds(!judged.contains(bad), || format!("{judged:?} holds a forbidden character"))?;
    holds(!judged.split('/').any(|s| matches!(s, "." | "..")), || format!("{judged:?} has a dot segment"))?;
    let mut line = String::new();
    if method.write_path(&mut line).is_err() {
        return Ok(());
    }
    holds(line.is_ascii() && !line.contains([' ', '?', '#']) && line.starts_with('/'), || {
        format!("request line {line:?}")
    })?;
    let read = as_app_reads(&line);
    let known = [Some(judged.to_owned()), method.read_by_app()];
    let known: Vec<String> = known.into_iter().flatten().map(|m| resolved(&m)).collect();
    holds(known.contains(&read), || format!("judged {known:?}, but the app reads {read:?} from {line:?}"))
}

fn method(bytes: &[u8]) -> Checked {
    let Some(text) = text(bytes) else { return Ok(false) };
    let mut taken = false;
    for method in [Method::from_http(text), Method::new(text)].into_iter().flatten() {
        check_method(&method)?;
        taken = true;
    }
    Ok(taken)
}

/// `name: value` lines as a header map.
fn header_map<'t>(lines: impl Iterator<Item = &'t [u8]>) -> HeaderMap {
    let mut map = HeaderMap::new();
    for line in lines {
        let Some(colon) = line.iter().position(|b| *b == b':') else { continue };
        let name = HeaderName::from_bytes(line[..colon].trim_ascii());
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            map.append(name, value);
        }
    }
    map
}

fn target(bytes: &[u8]) -> Checked {
    let mut lines = bytes.split(|b| *b == b'\n');
    let Some(path) = lines.next().and_then(text) else { return Ok(false) };
    let mut headers = header_map(lines);
    let clean = front::clean(path);
    let Ok(found) = Called::find(&clean, &mut headers) else { return Ok(false) };
    check_method(&found.method)?;
    holds(!found.id.is_empty(), || "an empty id".to_owned())?;
    if let Ok(Id::App { app, namespace }) = Id::parse(&found.id, "own") {
        holds(!namespace.contains('.') && !app.contains('.'), || format!("{} is two apps", found.id))?;
    }
    Ok(true)
}

fn header_filter(bytes: &[u8]) -> Checked {
    let given = header_map(bytes.split(|b| *b == b'\n'));
    let mut request = given.clone();
    headers::clean_request(&mut request);
    let stripped = [
        "connection",
        "keep-alive",
        "transfer-encoding",
        "te",
        "upgrade",
        "dapr-api-token",
        "dapr-app-id",
        "host",
        "dapr-caller-app-id",
        "dapr-callee-app-id",
        "destination-app-id",
        "proxy-authorization",
    ];
    for name in stripped {
        holds(!request.contains_key(name), || format!("{name} goes on"))?;
    }
    for named in given.get_all("connection").iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')) {
        holds(!request.contains_key(named.trim()), || format!("{named}, named by Connection, goes on"))?;
    }
    let again = {
        let mut again = request.clone();
        headers::clean_request(&mut again);
        again
    };
    holds(again == request, || "cleaning again changes the request".to_owned())?;
    let mut answer = given.clone();
    headers::clean_response(&mut answer);
    let grpc = |n: &HeaderName| n.as_str().ends_with("-bin") || n.as_str().starts_with("grpc-");
    holds(!answer.keys().any(grpc), || format!("gRPC names reach an HTTP caller: {answer:?}"))?;
    holds(!answer.contains_key("dapr-api-token"), || "the token goes back".to_owned())?;
    let mut call = request.clone();
    headers::for_grpc(&mut call, true);
    holds(!call.keys().any(|n| n.as_str().starts_with("grpc-")), || format!("reserved names in a call: {call:?}"))?;
    let _ = (headers::count_hop(&mut request), headers::content_length(&given));
    Ok(!given.is_empty())
}

/// Two pairs of app and key share a stored key only when they are the same.
fn state_key(bytes: &[u8]) -> Checked {
    let Some(text) = text(bytes) else { return Ok(false) };
    let mut parts = text.split('\n');
    let mut part = || parts.next().unwrap_or_default();
    let (strategy, app, other_app, key, other_key) = (part(), part(), part(), part(), part());
    let md = [("keyPrefix", strategy)].into_iter().collect();
    let scheme = |app| KeyScheme::from_metadata(&md, "store", app, "");
    let (Ok(one), Ok(two)) = (scheme(app), scheme(other_app)) else { return Ok(false) };
    let (Ok(first), Ok(second)) = (one.encode(key), two.encode(other_key)) else { return Ok(false) };
    holds(one.decode(&first) == key, || format!("{key:?} comes back as {:?}", one.decode(&first)))?;
    let same = one == two && key == other_key;
    holds((first == second) == same, || {
        format!("{app:?}/{key:?} and {other_app:?}/{other_key:?} are stored as {first:?} and {second:?}")
    })?;
    Ok(true)
}
