//! Logs to stderr, traces to OTLP, and the thread that ties one query's spans together.
//!
//! A trace crosses actors, tasks and nodes as a W3C `traceparent`: take it with [`traceparent`] where
//! work is handed over, and give it to [`adopt`] where the work goes on. Work in the background
//! belongs to no query; [`follow`] links it to the queries that caused it.

use std::collections::HashMap;

use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanLimits};
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::{EnvFilter, LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry};

use crate::config::TelemetryConfig;
use crate::error::EngineError;

/// Name of the header and metadata entry that carries the parent of a span.
pub const TRACEPARENT: &str = "traceparent";
/// Environment variable that says what is logged; it wins over the settings.
const LOG_VARIABLE: &str = "RUST_LOG";
/// Spans of these crates are exported; those of the exporter's own transport would never end.
const EXPORTED_TARGETS: [&str; 1] = ["foreshard"];
/// Attributes, events and links of one span.
const PER_SPAN_MAX: u32 = 128;

/// A layer for any subscriber that spans can be looked up in.
type BoxedLayer<S> = Box<dyn Layer<S> + Send + Sync>;

/// The exporter of traces, if one is configured. Keep it until the program ends, then [`stop`] it.
///
/// [`stop`]: Self::stop
#[derive(Debug, Default)]
#[must_use = "spans that were not sent yet are lost unless it is stopped"]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Sets up logs and traces for a whole program. Call it once, within a tokio runtime.
    ///
    /// A program that embeds the engine and has a subscriber of its own takes [`Telemetry::layer`].
    ///
    /// # Errors
    /// [`EngineError::Telemetry`] if the endpoint is no URL; [`EngineError::Request`] if the log filter
    /// cannot be read or a subscriber is there already.
    pub fn start(config: &TelemetryConfig) -> Result<Self, EngineError> {
        let (telemetry, traces) = Self::layer(config)?;
        let subscriber = Registry::default().with(traces).with(log_layer(config)?);
        tracing::subscriber::set_global_default(subscriber)
            .map_err(|error| EngineError::Request { reason: error.to_string() })?;
        Ok(telemetry)
    }

    /// The layer that sends spans of the engine to the configured endpoint; it does nothing if none
    /// is configured. Call it within a tokio runtime.
    ///
    /// # Errors
    /// [`EngineError::Telemetry`] if the endpoint is no URL.
    pub fn layer<S>(config: &TelemetryConfig) -> Result<(Self, BoxedLayer<S>), EngineError>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        install_tls();
        let endpoint = config.otlp_endpoint();
        if endpoint.is_empty() {
            return Ok((Self::default(), Box::new(LevelFilter::OFF)));
        }
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
        let exporter = exporter.map_err(|error| EngineError::Telemetry {
            endpoint: endpoint.to_owned(),
            reason: error.to_string(),
        })?;
        let limits = SpanLimits {
            max_events_per_span: PER_SPAN_MAX,
            max_attributes_per_span: PER_SPAN_MAX,
            max_links_per_span: PER_SPAN_MAX,
            ..SpanLimits::default()
        };
        let resource = Resource::builder().with_service_name(config.service_name().to_owned());
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_span_limits(limits)
            .with_resource(resource.build())
            .build();
        let targets = EXPORTED_TARGETS.map(|target| (target, LevelFilter::DEBUG));
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("foreshard"))
            .with_location(false)
            .with_threads(false)
            .with_filter(Targets::new().with_targets(targets));
        Ok((Self { provider: Some(provider) }, Box::new(layer)))
    }

    /// Sends the spans that ended so far.
    pub async fn flush(&self) {
        if let Some(provider) = self.provider.clone() {
            off_runtime(move || provider.force_flush()).await;
        }
    }

    /// Sends the spans that ended so far and closes the exporter.
    pub async fn stop(mut self) {
        if let Some(provider) = self.provider.take() {
            off_runtime(move || provider.shutdown()).await;
        }
    }
}

/// Runs what blocks until the exporter's thread answers, and logs if it fails.
async fn off_runtime(
    send: impl FnOnce() -> opentelemetry_sdk::error::OTelSdkResult + Send + 'static,
) {
    match tokio::task::spawn_blocking(send).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "some spans could not be sent"),
        Err(error) => tracing::warn!(%error, "the exporter of spans could not be closed"),
    }
}

/// Lines on stderr, for people or as JSON.
fn log_layer<S>(config: &TelemetryConfig) -> Result<BoxedLayer<S>, EngineError>
where
    S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
{
    let wanted = std::env::var(LOG_VARIABLE).ok().filter(|text| !text.is_empty());
    let wanted = wanted.as_deref().unwrap_or(config.log());
    let filter = EnvFilter::try_new(wanted).map_err(|error| EngineError::Request {
        reason: format!("{wanted:?} does not say what to log: {error}"),
    })?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    Ok(match config.log_format() {
        "json" => Box::new(lines.json().with_filter(filter)),
        _ => Box::new(lines.compact().with_filter(filter)),
    })
}

/// Makes ring the TLS provider of this process: two are linked in, and rustls refuses to choose.
///
/// A program that installed another one before keeps it.
pub fn install_tls() {
    let _already = rustls::crypto::ring::default_provider().install_default();
}

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

    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::SpanData;
    use tracing::info_span;

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
