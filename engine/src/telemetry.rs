//! Logs to stderr and traces to OTLP; [`trace`](foreshard_actors::trace) ties one query's spans together.

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanLimits};
use tracing::Subscriber;
use tracing_subscriber::filter::{EnvFilter, LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry};

use crate::config::TelemetryConfig;
use crate::error::EngineError;

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
