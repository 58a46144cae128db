//! `POST /v1/sql`, `/healthz`, `/readyz` and `/metrics` over HTTP.
//!
//! actix answers on its own threads; a query runs on the runtime that started the server and hands
//! its bytes over through a bounded channel, so that a slow client slows its query and no other one.
//! An error after the first rows breaks the connection: a client never takes half an answer for one.

mod ask;

use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::http::StatusCode;
use actix_web::http::header::{ACCEPT, CONTENT_TYPE, HeaderName};
use actix_web::web::{Bytes, Data, Payload};
use actix_web::{App, HttpRequest, HttpResponse, web};
use foreshard_actors::trace::TRACEPARENT;
use futures::StreamExt;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use self::ask::{Ask, accepted};
use super::{Admitted, Gate, Way, bound};
use crate::encode::{Encoder, Format};
use crate::error::EngineError;

/// Pieces of an answer that wait for a slow client.
const PIECES_WAITING_MAX: usize = 2;
/// Header of an answer that names the trace of its query.
const TRACE_ID: &str = "x-foreshard-trace-id";
/// Threads that parse requests and write answers; queries run elsewhere.
const WORKERS: usize = 2;

/// The HTTP server of one engine.
#[derive(Debug)]
pub struct HttpServer {
    address: SocketAddr,
    handle: ServerHandle,
    thread: JoinHandle<()>,
}

#[derive(Clone)]
struct Shared {
    gate: Gate,
    /// Where queries run.
    runtime: Handle,
}

impl HttpServer {
    /// Answers on `listener`. Queries run on the runtime that this is called in.
    ///
    /// # Errors
    /// [`EngineError::Address`] if the server cannot be started.
    pub async fn start(
        gate: Gate,
        listener: TcpListener,
        drain: Duration,
    ) -> Result<Self, EngineError> {
        let address = bound(&listener)?;
        let shared = Shared { gate, runtime: Handle::current() };
        let (started, handle) = oneshot::channel();
        let serve = move || {
            actix_web::rt::System::new().block_on(serve(shared, listener, drain, started));
        };
        let failed = |reason: String| EngineError::Address { address: address.to_string(), reason };
        let thread = std::thread::Builder::new()
            .name("foreshard-http".to_owned())
            .spawn(serve)
            .map_err(|error| failed(error.to_string()))?;
        let handle = handle.await.map_err(|_| failed("its thread ended".to_owned()))?;
        let handle = handle.map_err(|error| failed(error.to_string()))?;
        Ok(Self { address, handle, thread })
    }

    /// The address it is bound to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops listening, gives running requests the drain time, and ends.
    pub async fn stop(self) {
        self.handle.stop(true).await;
        let thread = self.thread;
        if tokio::task::spawn_blocking(move || thread.join()).await.is_err() {
            tracing::warn!("the HTTP server did not end well");
        }
    }
}

async fn serve(
    shared: Shared,
    listener: TcpListener,
    drain: Duration,
    started: oneshot::Sender<std::io::Result<ServerHandle>>,
) {
    let app = move || {
        App::new()
            .app_data(Data::new(shared.clone()))
            .route("/v1/sql", web::post().to(sql))
            .route("/healthz", web::get().to(health))
            .route("/readyz", web::get().to(ready))
            .route("/metrics", web::get().to(metrics))
            .default_service(web::to(elsewhere))
    };
    let server = actix_web::HttpServer::new(app)
        .workers(WORKERS)
        .tcp_nodelay(true)
        .shutdown_timeout(drain.as_secs())
        .disable_signals()
        .listen(listener);
    match server {
        Ok(server) => {
            let server = server.run();
            if started.send(Ok(server.handle())).is_ok()
                && let Err(error) = server.await
            {
                tracing::error!(%error, "the HTTP server failed");
            }
        }
        Err(error) => drop(started.send(Err(error))),
    }
}

/// The process answers.
async fn health() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain").body("ok\n")
}

/// Queries are taken.
async fn ready(shared: Data<Shared>) -> HttpResponse {
    if shared.gate.is_open() {
        HttpResponse::Ok().content_type("text/plain").body("ready\n")
    } else {
        HttpResponse::ServiceUnavailable().content_type("text/plain").body("stopping\n")
    }
}

async fn metrics(shared: Data<Shared>) -> HttpResponse {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    HttpResponse::Ok().content_type(kind).body(shared.gate.engine().metrics())
}

async fn elsewhere(request: HttpRequest) -> HttpResponse {
    let reason = format!(
        "there is no {} {}; try POST /v1/sql, GET /healthz, GET /readyz or GET /metrics",
        request.method(),
        request.path()
    );
    let mut answer = failure(&EngineError::Request { reason });
    *answer.status_mut() = StatusCode::NOT_FOUND;
    answer
}

async fn sql(shared: Data<Shared>, request: HttpRequest, body: Payload) -> HttpResponse {
    match answer(&shared, &request, body).await {
        Ok(answer) => answer,
        Err(error) => failure(&error),
    }
}

async fn answer(
    shared: &Shared,
    request: &HttpRequest,
    body: Payload,
) -> Result<HttpResponse, EngineError> {
    let format = accepted(text_of(request, &ACCEPT))?;
    let bytes_max = shared.gate.engine().config().limits().request_bytes();
    let body = read(body, bytes_max).await?;
    let ask = Ask::parse(text_of(request, &CONTENT_TYPE), &body)?;
    let traceparent = text_of(request, &HeaderName::from_static(TRACEPARENT)).map(str::to_owned);

    let (pieces, mut answer) = mpsc::channel(PIECES_WAITING_MAX);
    let (head, headed) = oneshot::channel();
    // The task lives as long as the set, and the set as long as the answer: a client that goes away
    // cancels its query.
    let mut running = JoinSet::new();
    let gate = shared.gate.clone();
    running.spawn_on(
        async move { run(&gate, ask, traceparent.as_deref(), format, head, pieces).await },
        &shared.runtime,
    );
    let head = headed.await.map_err(|_| EngineError::Cancelled)??;

    let mut response = HttpResponse::Ok();
    response.content_type(format.media_type());
    if let Some(id) = head.trace_id {
        response.insert_header((TRACE_ID, id));
    }
    if let Some(rows) = head.rows_affected {
        response.insert_header(("x-foreshard-rows-affected", rows.to_string()));
    }
    let pieces = futures::stream::poll_fn(move |cx| {
        let _held = &running;
        answer.poll_recv(cx)
    });
    Ok(response.streaming(pieces))
}

/// What is known of an answer before its first byte.
struct Head {
    trace_id: Option<String>,
    rows_affected: Option<u64>,
}

/// Runs one query and hands over its head, then its bytes. An error before the first rows are ready
/// goes to `head`; a later one breaks the answer.
async fn run(
    gate: &Gate,
    ask: Ask,
    traceparent: Option<&str>,
    format: Format,
    head: oneshot::Sender<Result<Head, EngineError>>,
    pieces: mpsc::Sender<Result<Bytes, EngineError>>,
) {
    let session = gate.engine().session();
    let admitted = gate.query(Way::Http, traceparent, session, |session| ask.run(session)).await;
    let begun = match admitted {
        Ok(admitted) => begin(admitted, format).await,
        Err(error) => Err(error),
    };
    let (mut rows, mut encoder, first) = match begun {
        Ok(begun) => begun,
        Err(error) => return drop(head.send(Err(error))),
    };
    let told = Head { trace_id: rows.trace_id(), rows_affected: rows.rows_affected() };
    if head.send(Ok(told)).is_err() || pieces.send(Ok(first.into())).await.is_err() {
        return;
    }
    while let Some(batch) = rows.next().await {
        let piece = batch.and_then(|batch| Ok(encoder.batch(&batch)?));
        if let Err(error) = &piece {
            tracing::warn!(code = error.code(), %error, "an answer broke off");
        }
        let broken = piece.is_err();
        if pieces.send(piece.map(Bytes::from)).await.is_err() || broken {
            return;
        }
    }
    let end = encoder.finish().map(Bytes::from).map_err(EngineError::from);
    drop(pieces.send(end).await);
}

/// Waits for the first batch, so that its error can still become the status of the answer.
async fn begin(
    mut rows: Admitted,
    format: Format,
) -> Result<(Admitted, Encoder, Vec<u8>), EngineError> {
    let mut encoder = Encoder::new(format, &rows.schema())?;
    let mut first = encoder.start();
    if let Some(batch) = rows.next().await {
        first.extend(encoder.batch(&batch?)?);
    }
    Ok((rows, encoder, first))
}

async fn read(mut body: Payload, bytes_max: usize) -> Result<Vec<u8>, EngineError> {
    let mut bytes = Vec::new();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| EngineError::Request {
            reason: format!("the request broke off: {error}"),
        })?;
        if bytes.len() + piece.len() > bytes_max {
            return Err(EngineError::RequestTooLarge { bytes_max });
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

fn text_of<'a>(request: &'a HttpRequest, header: &HeaderName) -> Option<&'a str> {
    request.headers().get(header).and_then(|value| value.to_str().ok())
}

fn failure(error: &EngineError) -> HttpResponse {
    let status = StatusCode::from_u16(error.http_status());
    HttpResponse::build(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)).json(
        serde_json::json!({
            "code": error.code(),
            "message": error.to_string(),
            "sqlstate": error.sqlstate(),
            "retryable": error.is_retryable(),
        }),
    )
}

impl actix_web::ResponseError for EngineError {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        failure(self)
    }
}
