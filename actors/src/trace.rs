//! The thread that ties one query's spans together.
//!
//! A trace crosses actors, tasks and nodes as a W3C `traceparent`: take it with [`traceparent`] where
//! work is handed over, and give it to [`adopt`] where the work goes on. Work in the background
//! belongs to no query; [`follow`] links it to the calls that caused it.

use std::collections::HashMap;

use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TraceContextExt;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Name of the header and metadata entry that carries the parent of a span.
pub const TRACEPARENT: &str = "traceparent";

/// The `traceparent` of `span`, or `None` if it is not traced.
#[must_use]
pub fn traceparent(span: &Span) -> Option<String> {
    let context = span.context();
    if !context.span().span_context().is_valid() {
        return None;
    }
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&context, &mut carrier);
    carrier.remove(TRACEPARENT)
}

/// The `traceparent` of the span that is entered now, or `None` if it is not traced.
#[must_use]
pub fn current_traceparent() -> Option<String> {
    traceparent(&Span::current())
}

/// Makes `span` a child of the span that `traceparent` names. Call it before `span` is entered.
///
/// Without a `traceparent`, or with one that is not well formed, nothing changes.
pub fn adopt(span: &Span, traceparent: Option<&str>) {
    if let Some(context) = traceparent.and_then(context_of) {
        // Fails if spans are not traced, which is no mistake.
        let _untraced = span.set_parent(context);
    }
}

/// Links `span` to the span that `traceparent` names: a decision to one of the calls behind it.
pub fn follow(span: &Span, traceparent: &str) {
    if let Some(context) = context_of(traceparent) {
        span.add_link(context.span().span_context().clone());
    }
}

/// The 32 hexadecimal digits of the trace that `traceparent` belongs to.
#[must_use]
pub fn trace_id(traceparent: &str) -> Option<String> {
    let context = context_of(traceparent)?;
    Some(context.span().span_context().trace_id().to_string())
}

fn context_of(traceparent: &str) -> Option<Context> {
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    // Extraction goes out from an empty context: the span that is entered now is no parent here.
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
    context.span().span_context().is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry::trace::TracerProvider;
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData};
    use tracing::info_span;
    use tracing_subscriber::Registry;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    /// Keeps what is exported.
    #[derive(Clone, Debug, Default)]
    struct Kept(Arc<Mutex<Vec<SpanData>>>);

    impl opentelemetry_sdk::trace::SpanExporter for Kept {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().unwrap().extend(batch);
            Ok(())
        }
    }

    fn traced(work: impl FnOnce()) -> Vec<SpanData> {
        let kept = Kept::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(kept.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::with_default(Registry::default().with(layer), work);
        std::mem::take(&mut *kept.0.lock().unwrap())
    }

    #[test]
    fn a_span_goes_on_with_the_trace_of_the_client() {
        let spans = traced(|| {
            let span = info_span!("query");
            adopt(&span, Some(PARENT));
            let ours = span.in_scope(current_traceparent).unwrap();
            assert_eq!(trace_id(&ours), trace_id(PARENT));
            assert_ne!(ours, PARENT);
        });
        assert_eq!(spans[0].parent_span_id.to_string(), "b7ad6b7169203331");
    }

    #[test]
    fn a_parent_that_is_not_well_formed_starts_a_new_trace() {
        let spans = traced(|| {
            for parent in [None, Some("00-zz"), Some(""), Some("00-0-0-01")] {
                adopt(&info_span!("query"), parent);
            }
        });
        assert_eq!(spans.len(), 4);
        assert!(spans.iter().all(|span| span.parent_span_id.to_string() == "0000000000000000"));
    }

    #[test]
    fn background_work_is_linked_and_not_a_child() {
        let spans = traced(|| follow(&info_span!("decision"), PARENT));
        let link = &spans[0].links.links[0].span_context;
        assert_eq!(link.span_id().to_string(), "b7ad6b7169203331");
        assert_eq!(spans[0].parent_span_id.to_string(), "0000000000000000");
    }

    #[test]
    fn nothing_is_traced_without_a_tracer() {
        assert_eq!(traceparent(&info_span!("query")), None);
        assert_eq!(current_traceparent(), None);
    }
}
