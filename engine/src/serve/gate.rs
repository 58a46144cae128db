//! Where every query from outside comes through: traced, counted, refused when the server stops.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use arrow::record_batch::RecordBatch;
use foreshard_actors::trace;
use futures::Stream;
use tracing::{Instrument, Span, info_span};

use crate::engine::Engine;
use crate::error::EngineError;
use crate::query_stream::QueryStream;
use crate::session::Session;

/// A way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// HTTP.
    Http,
    /// Arrow Flight SQL.
    Flight,
}

impl Way {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Flight => "flight",
        }
    }
}

/// The engine as servers see it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Gate {
    engine: Engine,
    closed: Arc<AtomicBool>,
}

impl Gate {
    /// An open gate to `engine`.
    #[must_use]
    pub fn new(engine: Engine) -> Self {
        Self { engine, closed: Arc::default() }
    }

    /// The engine behind it.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Whether queries are taken.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.closed.load(Ordering::Acquire)
    }

    /// Takes no queries any more; those that run go on.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Runs `ask` on `session`, made part of the trace of `traceparent`.
    ///
    /// # Errors
    /// [`EngineError::ShuttingDown`], or what `ask` fails with.
    pub async fn query<Asked>(
        &self,
        way: Way,
        traceparent: Option<&str>,
        session: Session,
        ask: impl FnOnce(Session) -> Asked,
    ) -> Result<Admitted, EngineError>
    where
        Asked: Future<Output = Result<QueryStream, EngineError>>,
    {
        let span = info_span!("request", way = way.as_str(), "otel.kind" = "server");
        trace::adopt(&span, traceparent);
        let ours = trace::traceparent(&span).or_else(|| traceparent.map(str::to_owned));
        let admitted = async {
            if !self.is_open() {
                return Err(EngineError::ShuttingDown);
            }
            let stream = ask(session.with_trace_parent(ours.clone())).await?;
            Ok(Admitted { stream, traceparent: ours.clone(), span: span.clone() })
        };
        let admitted = admitted.instrument(span.clone()).await;
        let code = admitted.as_ref().map_or_else(EngineError::code, |_| "ok");
        let help = "Queries from outside by how they began.";
        let labels = [("way", way.as_str()), ("code", code)];
        self.engine.inner.metrics.counter("foreshard_serve_queries_total", help, &labels).add(1);
        admitted
    }
}

/// The rows of a query that was let in. Dropping it cancels the query.
#[derive(Debug)]
pub struct Admitted {
    stream: QueryStream,
    traceparent: Option<String>,
    span: Span,
}

impl Admitted {
    /// The schema of the rows.
    #[must_use]
    pub fn schema(&self) -> arrow::datatypes::SchemaRef {
        self.stream.schema()
    }

    /// Rows that the statement changed, if it changes rows.
    #[must_use]
    pub fn rows_affected(&self) -> Option<u64> {
        self.stream.rows_affected()
    }

    /// The trace that the query belongs to, as 32 hexadecimal digits, if it is traced.
    #[must_use]
    pub fn trace_id(&self) -> Option<String> {
        self.traceparent.as_deref().and_then(trace::trace_id)
    }
}

impl Stream for Admitted {
    type Item = Result<RecordBatch, EngineError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let span = self.span.clone();
        let _entered = span.enter();
        Pin::new(&mut self.stream).poll_next(cx)
    }
}
