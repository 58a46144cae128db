//! Arrow Flight SQL: statements, prepared statements with parameters, and what ADBC, ODBC and JDBC
//! clients ask about a database.
//!
//! Each prepared statement has a session of its own, so `SET` lasts as long as its handle; there are
//! no transactions. Any handshake is accepted: see [`crate::serve`].

mod describe;
mod kind;
mod parameters;
mod service;
mod statements;

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use arrow_flight::flight_service_server::FlightServiceServer;
use foreshard_actors::ports::{SharedClock, SystemClock};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use self::service::Service;
use super::{Gate, bound};
use crate::error::EngineError;

/// A client that is silent for so long is asked whether it is there.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
/// A client that does not answer that within this time is gone.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests of one connection that are worked on at the same time.
const STREAMS_PER_CONNECTION_MAX: u32 = 256;

/// The Flight SQL server of one engine.
#[derive(Debug)]
pub struct FlightServer {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinSet<Result<(), tonic::transport::Error>>,
    drain: Duration,
}

impl FlightServer {
    /// Answers on `listener`, on the runtime that this is called in.
    ///
    /// # Errors
    /// [`EngineError::Address`] if the listener cannot be used.
    pub fn start(gate: Gate, listener: TcpListener, drain: Duration) -> Result<Self, EngineError> {
        Self::start_with_clock(gate, listener, drain, std::sync::Arc::new(SystemClock))
    }

    /// As [`Self::start`], with the clock that idle statements are closed by.
    ///
    /// # Errors
    /// [`EngineError::Address`] if the listener cannot be used.
    pub fn start_with_clock(
        gate: Gate,
        listener: TcpListener,
        drain: Duration,
        clock: SharedClock,
    ) -> Result<Self, EngineError> {
        let address = bound(&listener)?;
        let failed = |error| EngineError::listen(&address.to_string(), &error);
        let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
        // Without TCP_NODELAY every small query costs 40 ms.
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let bytes_max = gate.engine().config().limits().request_bytes();
        let service = FlightServiceServer::new(Service::new(gate, clock)?)
            .max_decoding_message_size(bytes_max);
        let (stop, stopped) = oneshot::channel::<()>();
        let mut task = JoinSet::new();
        task.spawn(
            Server::builder()
                .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
                .http2_keepalive_interval(Some(KEEPALIVE_AFTER))
                .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
                .add_service(service)
                .serve_with_incoming_shutdown(incoming, async {
                    // An error means that the server was dropped: stop as well.
                    let _dropped = stopped.await;
                }),
        );
        Ok(Self { address, stop, task, drain })
    }

    /// The address it is bound to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops listening, gives running requests the drain time, and ends.
    pub async fn stop(self) {
        let Self { stop, mut task, drain, .. } = self;
        // An error means that the server ended by itself.
        let _ended = stop.send(());
        if tokio::time::timeout(drain, task.join_next()).await.is_err() {
            tracing::warn!(seconds = drain.as_secs(), "Flight SQL requests were cut off");
            task.shutdown().await;
        }
    }
}
