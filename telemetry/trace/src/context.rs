use std::fmt;
use std::sync::Arc;

use super::ids::{SpanId, TraceId};

/// Length of a version 00 `traceparent`.
pub const TRACEPARENT_LEN: usize = 55;

/// Length of a version 0 `grpc-trace-bin` value.
pub const GRPC_TRACE_BIN_LEN: usize = 29;

const SAMPLED: u8 = 0x01;

/// Longest `tracestate` we pass on; the specification asks for at least 512.
const MAX_TRACESTATE_LEN: usize = 512;
const MAX_TRACESTATE_MEMBERS: usize = 32;
const MAX_KEY_LEN: usize = 256;
const MAX_VALUE_LEN: usize = 256;

/// Field ids of the binary format (OpenCensus `grpc-trace-bin`, version 0).
const FIELD_TRACE_ID: u8 = 0;
const FIELD_SPAN_ID: u8 = 1;
const FIELD_OPTIONS: u8 = 2;

/// Where a span stands in its trace (W3C Trace Context level 1).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: TraceId,
    /// The span that does the call.
    pub span_id: SpanId,
    /// Trace flags; only the sampled bit has a meaning.
    pub flags: u8,
    /// Vendors' data, valid and not empty.
    pub tracestate: Option<Arc<str>>,
}

impl TraceContext {
    /// A new sampled or unsampled root.
    pub fn root(sampled: bool) -> Self {
        Self { trace_id: TraceId::random(), span_id: SpanId::random(), flags: u8::from(sampled), tracestate: None }
    }

    /// The same trace with a new span.
    pub fn child(&self) -> Self {
        Self { span_id: SpanId::random(), ..self.clone() }
    }

    /// Whether the caller records this trace.
    pub const fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// Reads the two W3C headers. An invalid `traceparent` gives nothing; an
    /// invalid `tracestate` is left out, as the specification demands.
    pub fn parse(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        let (trace_id, span_id, flags) = parse_traceparent(traceparent.trim_matches([' ', '\t']))?;
        let tracestate = tracestate.and_then(parse_tracestate).map(Arc::from);
        Some(Self { trace_id, span_id, flags, tracestate })
    }

    /// Reads a `grpc-trace-bin` value (after base64). Unknown fields at the end are ignored.
    pub fn parse_binary(bytes: &[u8]) -> Option<Self> {
        let (version, mut rest) = bytes.split_first()?;
        if *version != 0 {
            return None;
        }
        let mut trace_id = None;
        let mut span_id = None;
        let mut flags = 0;
        while let Some((field, body)) = rest.split_first() {
            rest = match *field {
                FIELD_TRACE_ID if trace_id.is_none() => {
                    let (id, rest) = body.split_first_chunk::<16>()?;
                    trace_id = Some(TraceId::from_bytes(*id)?);
                    rest
                }
                FIELD_SPAN_ID if span_id.is_none() => {
                    let (id, rest) = body.split_first_chunk::<8>()?;
                    span_id = Some(SpanId::from_bytes(*id)?);
                    rest
                }
                FIELD_OPTIONS => {
                    let (options, rest) = body.split_first()?;
                    flags = options & SAMPLED;
                    rest
                }
                _ => break,
            };
        }
        Some(Self { trace_id: trace_id?, span_id: span_id?, flags, tracestate: None })
    }

    /// The `traceparent` header, always version 00.
    pub fn traceparent(&self) -> String {
        self.to_string()
    }

    /// The `grpc-trace-bin` value (before base64).
    pub fn to_binary(&self) -> [u8; GRPC_TRACE_BIN_LEN] {
        let mut bytes = [0; GRPC_TRACE_BIN_LEN];
        bytes[1] = FIELD_TRACE_ID;
        bytes[2..18].copy_from_slice(&self.trace_id.to_bytes());
        bytes[18] = FIELD_SPAN_ID;
        bytes[19..27].copy_from_slice(&self.span_id.to_bytes());
        bytes[27] = FIELD_OPTIONS;
        bytes[28] = self.flags & SAMPLED;
        bytes
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

fn parse_traceparent(text: &str) -> Option<(TraceId, SpanId, u8)> {
    let bytes = text.as_bytes();
    if bytes.len() < TRACEPARENT_LEN || bytes[2] != b'-' || bytes[35] != b'-' || bytes[52] != b'-' {
        return None;
    }
    let [version] = hex(&bytes[..2])?;
    match version {
        0 if bytes.len() != TRACEPARENT_LEN => return None,
        0xff => return None,
        // A later version may append fields, after another dash.
        1.. if bytes.len() > TRACEPARENT_LEN && bytes[TRACEPARENT_LEN] != b'-' => return None,
        _ => {}
    }
    let trace_id = TraceId::from_bytes(hex(&bytes[3..35])?)?;
    let span_id = SpanId::from_bytes(hex(&bytes[36..52])?)?;
    let [flags] = hex(&bytes[53..55])?;
    // Bits of later versions mean nothing to us and must not be passed on.
    Some((trace_id, span_id, if version == 0 { flags } else { flags & SAMPLED }))
}

/// Lower-case only: the specification calls upper case invalid.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

/// The text as given if it is valid, trimmed.
fn parse_tracestate(text: &str) -> Option<&str> {
    let text = text.trim_matches([' ', '\t']);
    if text.is_empty() || text.len() > MAX_TRACESTATE_LEN {
        return None;
    }
    let mut keys: Vec<&str> = Vec::new();
    for member in text.split(',') {
        let member = member.trim_matches([' ', '\t']);
        // Empty members are allowed and mean nothing.
        if member.is_empty() {
            continue;
        }
        let (key, value) = member.split_once('=')?;
        if !is_tracestate_key(key) || !is_tracestate_value(value) || keys.contains(&key) {
            return None;
        }
        keys.push(key);
        if keys.len() > MAX_TRACESTATE_MEMBERS {
            return None;
        }
    }
    (!keys.is_empty()).then_some(text)
}

fn is_tracestate_key(key: &str) -> bool {
    let rest = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'_' | b'-' | b'*' | b'/');
    let part = |part: &str, max: usize, digit_first: bool| {
        let bytes = part.as_bytes();
        bytes.len() <= max
            && bytes.first().is_some_and(|c| c.is_ascii_lowercase() || (digit_first && c.is_ascii_digit()))
            && bytes.iter().all(|c| rest(*c))
    };
    match key.split_once('@') {
        Some((tenant, system)) => part(tenant, 241, true) && part(system, 14, false),
        None => part(key, MAX_KEY_LEN, false),
    }
}

fn is_tracestate_value(value: &str) -> bool {
    let bytes = value.as_bytes();
    (1..=MAX_VALUE_LEN).contains(&bytes.len())
        && bytes.iter().all(|c| matches!(c, 0x20..=0x7e) && !matches!(c, b',' | b'='))
        && bytes.last() != Some(&b' ')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_valid_traceparent_reads_back() {
        let context = TraceContext::parse(GOOD, Some("a=1, b@v=2")).unwrap();
        assert!(context.is_sampled());
        assert_eq!(context.traceparent(), GOOD);
        assert_eq!(context.tracestate.as_deref(), Some("a=1, b@v=2"));
        assert_eq!(TraceContext::parse(&format!(" {GOOD} "), None).unwrap().traceparent(), GOOD);
    }

    #[test]
    fn later_versions_are_read_as_version_0() {
        let later = GOOD.replacen("00", "cc", 1).replace("-01", "-09");
        assert_eq!(TraceContext::parse(&later, None).unwrap().traceparent(), GOOD);
        assert!(TraceContext::parse(&format!("{later}-what-ever"), None).is_some());
        assert!(TraceContext::parse(&format!("{later}.x"), None).is_none());
    }

    #[test]
    fn invalid_traceparents_are_refused() {
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-extra",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01",
        ] {
            assert!(TraceContext::parse(bad, None).is_none(), "{bad}");
        }
    }

    #[test]
    fn an_invalid_tracestate_is_left_out() {
        let many = (0..33).map(|at| format!("k{at}=v")).collect::<Vec<_>>().join(",");
        let long = format!("k={}", "v".repeat(257));
        for bad in ["", " ", "a", "A=1", "a=1,a=2", "a=", "a=b=c", "1a=1", "a@1=2", "a=\u{e9}", &many, &long, ",,"] {
            assert_eq!(TraceContext::parse(GOOD, Some(bad)).unwrap().tracestate, None, "{bad}");
        }
        for good in ["1a@v=x y", "a=1,,b=2", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "a*/-_=!"] {
            assert_eq!(TraceContext::parse(GOOD, Some(good)).unwrap().tracestate.as_deref(), Some(good));
        }
    }

    #[test]
    fn the_binary_form_reads_back() {
        let context = TraceContext::parse(GOOD, None).unwrap();
        let bytes = context.to_binary();
        assert_eq!(bytes[..3], [0, 0, 0x4b]);
        assert_eq!(TraceContext::parse_binary(&bytes), Some(context));
        assert_eq!(TraceContext::parse_binary(&bytes[..27]).unwrap().flags, 0);
        assert_eq!(TraceContext::parse_binary(&bytes[..26]), None);
        assert_eq!(TraceContext::parse_binary(&[]), None);
        assert_eq!(TraceContext::parse_binary(&[1; 29]), None);
        assert_eq!(TraceContext::parse_binary(&[0; 29]), None);
    }

    #[test]
    fn a_child_stays_in_its_trace() {
        let parent = TraceContext::parse(GOOD, Some("a=1")).unwrap();
        let child = parent.child();
        assert_eq!((child.trace_id, child.flags, &child.tracestate), (parent.trace_id, 1, &parent.tracestate));
        assert_ne!(child.span_id, parent.span_id);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,80}", bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = TraceContext::parse(&text, Some(&text));
            let _ = TraceContext::parse_binary(&bytes);
        }

        #[test]
        fn what_we_write_we_read(trace: [u8; 16], span: [u8; 8], flags: u8) {
            if let (Some(trace_id), Some(span_id)) = (TraceId::from_bytes(trace), SpanId::from_bytes(span)) {
                let context = TraceContext { trace_id, span_id, flags, tracestate: None };
                prop_assert_eq!(TraceContext::parse(&context.traceparent(), None), Some(context.clone()));
                let binary = TraceContext::parse_binary(&context.to_binary());
                prop_assert_eq!(binary, Some(TraceContext { flags: flags & 1, ..context }));
            }
        }
    }
}
