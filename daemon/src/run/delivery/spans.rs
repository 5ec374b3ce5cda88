//! The span of putting a set into effect, in the trace of the change that it was sent for.

use mecha_core::trace::{Span, SpanKind, Tracer};
use mecha_proto::delivery as wire;

use super::set::Received;

/// Follows the set that is being put into effect.
#[derive(Debug, Default)]
pub(super) struct Applying {
    /// Digest of the set that was seen last.
    digest: String,
    /// Open until every document of it has come to where it is to be.
    span: Option<Span>,
}

impl Applying {
    /// Looks at what runs: a set that was not there before begins a span, a report that it is in effect ends it.
    pub(super) fn look(&mut self, tracer: &Tracer, applied: Option<&Received>, report: Option<&wire::Report>) {
        let Some(set) = applied else { return };
        if self.digest != set.digest {
            set.digest.clone_into(&mut self.digest);
            self.span = set.cause.as_ref().map(|cause| begin(tracer, cause, set));
        }
        let Some(report) = report.filter(|report| report.digest == set.digest) else { return };
        if report.entries.iter().all(|entry| entry.reached || entry.failed)
            && let Some(mut span) = self.span.take()
        {
            let failed = report.entries.iter().filter(|entry| entry.failed).count();
            if failed > 0 {
                span.fail(format!("{failed} documents cannot be put into effect"));
            }
        }
    }
}

fn begin(tracer: &Tracer, cause: &mecha_core::trace::TraceContext, set: &Received) -> Span {
    let mut span = tracer.start(SpanKind::Consumer, Some(cause), || "apply documents");
    if span.is_recording() {
        span.set("mecha.documents", i64::try_from(set.documents.len()).unwrap_or(i64::MAX));
        let moving: Vec<_> = set.phases().into_iter().filter(|(_, count)| *count > 0).collect();
        let moves = moving.iter().map(|(_, count)| *count).sum::<u64>();
        span.set("mecha.moves", i64::try_from(moves).unwrap_or(i64::MAX));
        let phases: Vec<_> = moving.into_iter().map(|(phase, _)| phase).collect();
        span.set("mecha.phases", phases.join(","));
    }
    span
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use mecha_core::trace::{FinishedSpan, Sampler, SpanSink, SpanStatus, TraceContext};
    use parking_lot::Mutex;

    use super::*;

    #[derive(Debug, Default)]
    struct Kept(Mutex<Vec<FinishedSpan>>);

    impl SpanSink for Kept {
        fn export(&self, span: FinishedSpan) {
            self.0.lock().push(span);
        }
    }

    fn set(digest: &str, cause: &TraceContext) -> Received {
        let received = Received::new(digest.to_owned(), Vec::new(), SystemTime::now(), None, "shop");
        Received { cause: Some(cause.clone()), ..received }
    }

    fn report(digest: &str, entries: &[(bool, bool)]) -> wire::Report {
        let entry = |(reached, failed): &(bool, bool)| wire::Entry {
            reached: *reached,
            failed: *failed,
            ..wire::Entry::default()
        };
        wire::Report {
            digest: digest.to_owned(),
            entries: entries.iter().map(entry).collect(),
            ..wire::Report::default()
        }
    }

    #[test]
    fn a_set_is_one_span_until_all_of_it_is_in_effect() {
        let kept = Arc::new(Kept::default());
        let sink: Arc<dyn SpanSink> = Arc::<Kept>::clone(&kept);
        let tracer = Tracer::on(Sampler::new(0.0), Some(sink));
        let cause = TraceContext::root(true);
        let mut applying = Applying::default();
        let first = set("sha256:1", &cause);
        applying.look(&tracer, Some(&first), None);
        applying.look(&tracer, Some(&first), Some(&report("sha256:0", &[])));
        applying.look(&tracer, Some(&first), Some(&report("sha256:1", &[(true, false), (false, false)])));
        assert!(kept.0.lock().is_empty());
        applying.look(&tracer, Some(&first), Some(&report("sha256:1", &[(true, false), (false, true)])));
        applying.look(&tracer, Some(&first), Some(&report("sha256:1", &[(true, false), (true, false)])));
        let spans = std::mem::take(&mut *kept.0.lock());
        assert_eq!(spans.len(), 1, "{spans:?}");
        assert_eq!((spans[0].context.trace_id, spans[0].parent), (cause.trace_id, Some(cause.span_id)));
        assert!(matches!(spans[0].status, SpanStatus::Error(_)));
    }

    #[test]
    fn a_set_that_nobody_traces_has_no_span() {
        let mut applying = Applying::default();
        let untraced = Received::new("sha256:1".to_owned(), Vec::new(), SystemTime::now(), None, "shop");
        applying.look(&Tracer::on(Sampler::new(1.0), None), Some(&untraced), None);
        assert!(applying.span.is_none());
        applying.look(&Tracer::off(), Some(&set("sha256:2", &TraceContext::root(true))), None);
        assert!(applying.span.as_ref().is_some_and(|span| span.context().is_none()));
    }
}
