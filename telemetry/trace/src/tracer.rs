use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;

use super::context::TraceContext;
use super::ids::{SpanId, TraceId};
use super::sampler::Sampler;
use super::span::{FinishedSpan, Recording, Span, SpanKind, SpanStatus};

/// What the daemon does with trace context.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Sampling rate "0": trace headers and baggage are ordinary headers,
    /// forwarded untouched, unchecked and not echoed; none are made.
    Off,
    /// Neither a sampling rate nor an exporter: a context that comes in goes
    /// on as it is; without one nothing is sent.
    PassThrough,
    /// Spans are made.
    On,
}

/// Takes finished spans. Must not block: it is called on request paths.
pub trait SpanSink: fmt::Debug + Send + Sync + 'static {
    /// Hands a span over; when the exporter is behind, it is dropped.
    fn export(&self, span: FinishedSpan);
}

/// Starts spans. Cheap to clone; all clones follow [`Tracer::replace`].
#[derive(Clone, Debug)]
pub struct Tracer(Arc<ArcSwap<Settings>>);

#[derive(Debug)]
struct Settings {
    mode: Mode,
    sampler: Sampler,
    sink: Option<Arc<dyn SpanSink>>,
}

impl Tracer {
    /// See [`Mode::Off`].
    pub fn off() -> Self {
        Self::with(Mode::Off, Sampler::new(0.0), None)
    }

    /// See [`Mode::PassThrough`].
    pub fn pass_through() -> Self {
        Self::with(Mode::PassThrough, Sampler::new(0.0), None)
    }

    /// See [`Mode::On`]. Without a sink contexts are made and sampled, but
    /// nothing is recorded.
    pub fn on(sampler: Sampler, sink: Option<Arc<dyn SpanSink>>) -> Self {
        Self::with(Mode::On, sampler, sink)
    }

    fn with(mode: Mode, sampler: Sampler, sink: Option<Arc<dyn SpanSink>>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Settings { mode, sampler, sink })))
    }

    /// Makes this tracer and its clones do what `next` does. Spans that run keep their sink.
    pub fn replace(&self, next: &Self) {
        self.0.store(next.0.load_full());
    }

    /// What the daemon does with trace context.
    pub fn mode(&self) -> Mode {
        self.0.load().mode
    }

    /// How new traces are sampled.
    pub fn sampler(&self) -> Sampler {
        self.0.load().sampler
    }

    /// The context a caller sent. W3C headers win over the binary one, which
    /// only gRPC has. Nothing in mode off, where headers are not looked at.
    pub fn extract(
        &self,
        traceparent: Option<&str>,
        tracestate: Option<&str>,
        grpc_trace_bin: Option<&[u8]>,
    ) -> Option<TraceContext> {
        if self.mode() == Mode::Off {
            return None;
        }
        traceparent
            .and_then(|traceparent| TraceContext::parse(traceparent, tracestate))
            .or_else(|| grpc_trace_bin.and_then(TraceContext::parse_binary))
    }

    /// Starts a span below a context from another process, or a new trace.
    /// `name` is called only if the span is recorded.
    pub fn start<N: Into<Cow<'static, str>>>(
        &self,
        kind: SpanKind,
        parent: Option<&TraceContext>,
        name: impl FnOnce() -> N,
    ) -> Span {
        self.begin(kind, parent, true, name)
    }

    /// Starts a span below one of this process.
    pub fn start_child<N: Into<Cow<'static, str>>>(
        &self,
        kind: SpanKind,
        parent: &Span,
        name: impl FnOnce() -> N,
    ) -> Span {
        self.begin(kind, parent.context(), false, name)
    }

    fn begin<N: Into<Cow<'static, str>>>(
        &self,
        kind: SpanKind,
        parent: Option<&TraceContext>,
        remote: bool,
        name: impl FnOnce() -> N,
    ) -> Span {
        let settings = self.0.load();
        match settings.mode {
            Mode::Off => return Span::default(),
            Mode::PassThrough => return Span { context: parent.cloned(), recording: None },
            Mode::On => {}
        }
        let trace_id = parent.map_or_else(TraceId::random, |parent| parent.trace_id);
        let sampled = settings.sampler.is_sampled(parent, trace_id);
        let context = TraceContext {
            trace_id,
            span_id: SpanId::random(),
            flags: u8::from(sampled),
            tracestate: parent.and_then(|parent| parent.tracestate.clone()),
        };
        let recording = settings.sink.as_ref().filter(|_| sampled).map(|sink| {
            Box::new(Recording {
                sink: Arc::clone(sink),
                started: Instant::now(),
                span: FinishedSpan {
                    context: context.clone(),
                    parent: parent.map(|parent| parent.span_id),
                    parent_is_remote: remote && parent.is_some(),
                    name: name().into(),
                    kind,
                    start: SystemTime::now(),
                    elapsed: Duration::ZERO,
                    attributes: Vec::new(),
                    dropped_attributes: 0,
                    status: SpanStatus::Unset,
                },
            })
        });
        Span { context: Some(context), recording }
    }
}

#[cfg(test)]
mod tests {
    use super::super::span::{AttributeValue, attribute};
    use super::*;
    use parking_lot::Mutex;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[derive(Debug, Default)]
    struct Kept(Mutex<Vec<FinishedSpan>>);

    impl SpanSink for Kept {
        fn export(&self, span: FinishedSpan) {
            self.0.lock().push(span);
        }
    }

    fn recording(ratio: f64) -> (Tracer, Arc<Kept>) {
        let sink = Arc::new(Kept::default());
        let shared: Arc<dyn SpanSink> = Arc::<Kept>::clone(&sink);
        (Tracer::on(Sampler::new(ratio), Some(shared)), sink)
    }

    fn no_name() -> &'static str {
        panic!("a name was built for a span nobody records")
    }

    #[test]
    fn off_looks_at_nothing_and_sends_nothing() {
        let tracer = Tracer::off();
        assert_eq!(tracer.extract(Some(PARENT), None, None), None);
        let parent = TraceContext::parse(PARENT, None);
        let span = tracer.start(SpanKind::Client, parent.as_ref(), no_name);
        assert!(span.context().is_none() && !span.is_recording());
    }

    #[test]
    fn pass_through_hands_on_what_came() {
        let tracer = Tracer::pass_through();
        let parent = tracer.extract(Some(PARENT), Some("a=1"), None);
        let span = tracer.start(SpanKind::Client, parent.as_ref(), no_name);
        assert_eq!(span.context(), parent.as_ref());
        let child = tracer.start_child(SpanKind::Server, &span, no_name);
        assert_eq!(child.context().unwrap().traceparent(), PARENT);
        assert!(tracer.start(SpanKind::Client, None, no_name).context().is_none());
    }

    #[test]
    fn on_makes_children_and_records_sampled_ones() {
        let (tracer, sink) = recording(0.0);
        let parent = tracer.extract(Some(PARENT), Some("a=1"), None).unwrap();
        let mut span = tracer.start(SpanKind::Client, Some(&parent), || "/v1.0/state/s");
        span.set(attribute::DAPR_API, "GET /v1.0/state/s");
        span.set(attribute::DB_NAME, String::new());
        span.http_status(500);
        let child = tracer.start_child(SpanKind::Server, &span, || String::from("CallLocal/a/b"));
        let child_context = child.context().unwrap().clone();
        child.end();
        let context = span.context().unwrap().clone();
        drop(span);
        let spans = sink.0.lock();
        assert_eq!(spans.len(), 2);
        assert_eq!(spans[0].context, child_context);
        assert_eq!((spans[0].parent, spans[0].parent_is_remote), (Some(context.span_id), false));
        assert_eq!(spans[1].context, context);
        assert_eq!(context.trace_id, parent.trace_id);
        assert_eq!(context.tracestate.as_deref(), Some("a=1"));
        assert_eq!((spans[1].parent, spans[1].parent_is_remote), (Some(parent.span_id), true));
        assert_eq!(spans[1].status, SpanStatus::Error("HTTP 500".into()));
        assert_eq!(
            spans[1].attributes,
            [
                (attribute::DAPR_API.into(), "GET /v1.0/state/s".into()),
                (attribute::DAPR_STATUS_CODE.into(), AttributeValue::Int(500)),
            ]
        );
    }

    #[test]
    fn an_unsampled_trace_is_passed_on_but_not_recorded() {
        let (tracer, sink) = recording(0.0);
        let span = tracer.start(SpanKind::Client, None, no_name);
        assert!(!span.context().unwrap().is_sampled());
        let child = tracer.start_child(SpanKind::Client, &span, no_name);
        assert_eq!(child.context().unwrap().trace_id, span.context().unwrap().trace_id);
        drop((span, child));
        assert!(sink.0.lock().is_empty());
    }

    #[test]
    fn the_binary_header_counts_only_without_traceparent() {
        let tracer = Tracer::pass_through();
        let other = TraceContext::root(true);
        let both = tracer.extract(Some(PARENT), None, Some(&other.to_binary())).unwrap();
        assert_eq!(both.traceparent(), PARENT);
        assert_eq!(tracer.extract(None, None, Some(&other.to_binary())), Some(other.clone()));
        assert_eq!(tracer.extract(Some("bad"), None, Some(&other.to_binary())), Some(other));
    }

    #[test]
    fn attributes_are_bounded() {
        let (tracer, sink) = recording(1.0);
        let mut span = tracer.start(SpanKind::Producer, None, || "pubsub/t");
        for at in 0..100 {
            span.set(format!("dapr-{at}"), "v".repeat(5000));
        }
        span.end();
        let spans = sink.0.lock();
        assert_eq!((spans[0].attributes.len(), spans[0].dropped_attributes), (64, 36));
        let AttributeValue::Text(text) = &spans[0].attributes[0].1 else { panic!("text") };
        assert_eq!(text.len(), 4096);
    }

    #[test]
    fn tokens_never_become_attributes() {
        assert!(attribute::is_header("dapr-app-id"));
        assert!(attribute::is_header("Dapr-Custom"));
        for name in ["dapr-api-token", "Dapr-API-Token", "dapr-app-token", "dapr-x-bin", "dapr-", "traceparent"] {
            assert!(!attribute::is_header(name), "{name}");
        }
    }
}
