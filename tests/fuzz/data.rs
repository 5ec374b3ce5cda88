//! Small texts: durations, sizes, trace context, schedules, bodies of requests.

use std::time::Duration;

use bytes::Bytes;
use mecha_components_api::{did_you_mean, parse_bool, parse_go_duration, parse_quantity};
use mecha_core::trace::{TRACEPARENT_LEN, TraceContext, validate_baggage};
use mechad::fuzzing::http as front;

use crate::engine::{Checked, Target};

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "duration", words: &["1h", "30m", "5s", "ms", "us", "µs", "ns", ".", "-", "+"], check: duration },
    Target { name: "quantity", words: &["Ki", "Mi", "Gi", "Ti", "k", "M", "G", "T", "e", "."], check: quantity },
    Target {
        name: "traceparent",
        words: &["00-", "-01", "ff-", "0000000000000000", "a=b", ",", "=", "\n"],
        check: traceparent,
    },
    Target { name: "grpc-trace-bin", words: &["\0\0", "\u{1}", "\u{2}"], check: trace_bin },
    Target { name: "baggage", words: &["a=b", ";", ",", "%", "%20", "=", "\"", " "], check: baggage },
    Target {
        name: "cron",
        words: &[
            "*/5",
            "@every ",
            "@daily",
            "TZ=",
            "CRON_TZ=Europe/Berlin ",
            "mon-fri",
            "1-59/2",
            "?",
            "31",
            ",",
            "jan",
        ],
        check: cron,
    },
    Target {
        name: "state-body",
        words: &[
            "\"key\":",
            "\"value\":",
            "\"VALUE\":",
            "\"metadata\":{",
            "\"etag\":",
            "[",
            "]",
            "{",
            "}",
            "null",
            ",",
            "\\u0000",
        ],
        check: state_body,
    },
    Target {
        name: "bulk-publish-body",
        words: &[
            "\"entryId\":",
            "\"event\":",
            "\"contentType\":",
            "application/octet-stream",
            "text/plain",
            "application/json",
            "application/cloudevents+json",
            "\"aGk=\"",
            "null",
            "[",
            "{",
            "}",
        ],
        check: bulk_publish,
    },
    Target {
        name: "secrets-file",
        words: &["{\"a\":", "}", "[", "]", "null", "\"", ":", "\\u", "1e5", "\u{feff}", "true"],
        check: secrets_file,
    },
    Target {
        name: "resiliency-match",
        words: &["code", "==", "(", ")", "&&", "!", "500", "in", "[", "]"],
        check: resiliency_match,
    },
];

/// Longest message about a text somebody else wrote.
const LONGEST_MESSAGE: usize = 500;

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

fn duration(bytes: &[u8]) -> Checked {
    let Some(text) = text(bytes) else { return Ok(false) };
    let parsed = parse_go_duration(text, Duration::from_secs(1));
    let _ = (parse_bool(text), did_you_mean(&text[..text.floor_char_boundary(64)], ["redisHost", "timeout"]));
    if let Some(d) = mecha_resources::parse_duration(text, Duration::from_secs(1)) {
        let written = mecha_resources::format_duration(d);
        let again = mecha_resources::parse_duration(&written, Duration::from_secs(1));
        if again != Some(d) {
            return Err(format!("{d:?} is written as {written}, which reads as {again:?}"));
        }
    }
    Ok(parsed.is_some())
}

fn quantity(bytes: &[u8]) -> Checked {
    let Some(text) = text(bytes) else { return Ok(false) };
    match parse_quantity(text) {
        Some(size) if size >= 1 << 53 => Err(format!("{text:?} is {size} bytes")),
        parsed => Ok(parsed.is_some()),
    }
}

fn traceparent(bytes: &[u8]) -> Checked {
    let Some(text) = text(bytes) else { return Ok(false) };
    let (parent, state) = text.split_once('\n').map_or((text, None), |(parent, state)| (parent, Some(state)));
    let Some(context) = TraceContext::parse(parent, state) else { return Ok(false) };
    let written = context.traceparent();
    if written.len() != TRACEPARENT_LEN || !parent.to_ascii_lowercase().contains(&written[3..52]) {
        return Err(format!("{parent:?} goes on as {written:?}"));
    }
    let again = TraceContext::parse(&written, context.tracestate.as_deref());
    let same = again.as_ref().is_some_and(|a| (a.trace_id, a.span_id) == (context.trace_id, context.span_id));
    if !same || again.and_then(|a| a.tracestate) != context.tracestate {
        return Err(format!("{written:?} does not read as what it was written from"));
    }
    let state = context.tracestate.as_deref().unwrap_or_default();
    if state.contains(['\r', '\n']) {
        return Err(format!("a line break in the tracestate {state:?}"));
    }
    Ok(true)
}

fn trace_bin(bytes: &[u8]) -> Checked {
    let Some(context) = TraceContext::parse_binary(bytes) else { return Ok(false) };
    let again = TraceContext::parse_binary(&context.to_binary());
    let same =
        again.is_some_and(|a| (a.trace_id, a.span_id, a.flags) == (context.trace_id, context.span_id, context.flags));
    if same { Ok(true) } else { Err(format!("{context:?} does not survive the way through bytes")) }
}

fn baggage(bytes: &[u8]) -> Checked {
    let Some(text) = text(bytes) else { return Ok(false) };
    let valid = validate_baggage(text).is_ok();
    if valid && http::HeaderValue::from_str(text).is_err() {
        return Err(format!("valid baggage that no header can hold: {text:?}"));
    }
    Ok(valid)
}

fn cron(bytes: &[u8]) -> Checked {
    const START: i64 = 1_700_000_000;
    let Some(text) = text(bytes) else { return Ok(false) };
    let Ok(times) = mecha_builtin::fuzzing::schedule(text, START) else { return Ok(false) };
    let mut before = START;
    for at in times {
        if at <= before {
            return Err(format!("{text:?} fires at {at}, not after {before}"));
        }
        before = at;
    }
    Ok(true)
}

/// Is `part` a slice of `whole`? Values are handed on as they stand in the body.
fn lies_in(part: &Bytes, whole: &Bytes) -> bool {
    let (whole, part) = (whole.as_ptr_range(), part.as_ptr_range());
    whole.start <= part.start && part.end <= whole.end
}

fn is_json(bytes: &[u8]) -> bool {
    serde_json::from_slice::<&serde_json::value::RawValue>(bytes).is_ok()
}

fn state_body(bytes: &[u8]) -> Checked {
    let body = Bytes::copy_from_slice(bytes);
    let Ok(items) = front::items(&body) else { return Ok(false) };
    if std::str::from_utf8(bytes).is_err() {
        return Err("a body that is no UTF-8 is taken".to_owned());
    }
    for (key, value) in items {
        let Some(value) = value else { continue };
        if !lies_in(&value, &body) || !is_json(&value) {
            return Err(format!("the value of {key:?} is not the text of the body"));
        }
    }
    Ok(true)
}

fn bulk_publish(bytes: &[u8]) -> Checked {
    let body = Bytes::copy_from_slice(bytes);
    let Ok(entries) = front::entries(&body) else { return Ok(false) };
    for (id, content_type, event) in entries {
        let base = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if base == "application/json" && !is_json(&event) {
            return Err(format!("the event {id:?} is no JSON"));
        }
        if base.starts_with("text/") && std::str::from_utf8(&event).is_err() {
            return Err(format!("the event {id:?} is no text"));
        }
    }
    Ok(true)
}

fn secrets_file(bytes: &[u8]) -> Checked {
    let single = mecha_builtin::fuzzing::secrets(bytes, false);
    let multi = mecha_builtin::fuzzing::secrets(bytes, true);
    for (name, parts) in single.iter().flatten() {
        if parts.len() != 1 || !parts.contains_key(name) {
            return Err(format!("a single-valued secret is not under its own name {name:?}"));
        }
    }
    if let (Ok(single), Ok(multi)) = (&single, &multi)
        && single.is_empty() != multi.values().all(|parts| parts.is_empty())
    {
        return Err("one reading finds secrets where the other finds none".to_owned());
    }
    Ok(single.is_ok() && multi.is_ok())
}

fn resiliency_match(bytes: &[u8]) -> Checked {
    let Some(text) = text(bytes) else { return Ok(false) };
    match mecha_resiliency::compile_cel(text) {
        Ok(_) => Ok(true),
        // It goes into a line of the log.
        Err(e) if e.to_string().len() > LONGEST_MESSAGE => Err(format!("a message of {} bytes", e.to_string().len())),
        Err(_) => Ok(false),
    }
}
