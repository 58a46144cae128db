//! The ways in for other programs: HTTP and Arrow Flight SQL, and what they share.
//!
//! Nothing here asks who the client is: listen on loopback, or behind something that does.

pub mod control;
pub mod flight;
mod gate;
pub mod http;
pub mod scaler;

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use foreshard_policy::config::Provider;

pub use self::gate::{Admitted, Gate, Way};
use crate::config::Config;
use crate::engine::Engine;
use crate::error::EngineError;

/// The servers of one engine, running until they are stopped.
#[derive(Debug)]
#[must_use = "stop the servers, or they run until the process ends"]
pub struct Servers {
    gate: Gate,
    http: Option<http::HttpServer>,
    flight: Option<flight::FlightServer>,
    control: Option<control::ControlServer>,
    scaler: Option<scaler::ScalerServer>,
}

impl Servers {
    /// Opens the addresses of `engine`'s settings and answers from then on.
    ///
    /// # Errors
    /// [`EngineError::PortInUse`] or [`EngineError::Address`] if one cannot be opened; then none is.
    pub async fn start(engine: &Engine) -> Result<Self, EngineError> {
        let config = engine.config().serve();
        let gate = Gate::new(engine.clone());
        let http = config.http_address().map(listen).transpose()?;
        let flight = config.flight_address().map(listen).transpose()?;
        let control = control_address(engine.config()).map(listen).transpose()?;
        let scaler = config.scaler_address().map(listen).transpose()?;
        let drain = Duration::from_secs(config.drain_seconds());
        let http = match http {
            Some(listener) => Some(http::HttpServer::start(gate.clone(), listener, drain).await?),
            None => None,
        };
        let flight =
            flight.map(|it| flight::FlightServer::start(gate.clone(), it, drain)).transpose()?;
        let control = match control {
            Some(listener) => Some(control::ControlServer::start(engine.clone(), listener).await?),
            None => None,
        };
        let scaler =
            scaler.map(|it| scaler::ScalerServer::start(engine.clone(), it)).transpose()?;
        Ok(Self { gate, http, flight, control, scaler })
    }

    /// The address of HTTP as it was bound.
    #[must_use]
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(http::HttpServer::address)
    }

    /// The address of Flight SQL as it was bound.
    #[must_use]
    pub fn flight_address(&self) -> Option<SocketAddr> {
        self.flight.as_ref().map(flight::FlightServer::address)
    }

    /// The address where nodes join, as it was bound.
    #[must_use]
    pub fn control_address(&self) -> Option<SocketAddr> {
        self.control.as_ref().map(control::ControlServer::address)
    }

    /// The address of KEDA's external scaler, as it was bound.
    #[must_use]
    pub fn scaler_address(&self) -> Option<SocketAddr> {
        self.scaler.as_ref().map(scaler::ScalerServer::address)
    }

    /// Takes no new queries, gives running ones `serve.drain-seconds`, and ends.
    pub async fn stop(self) {
        self.gate.close();
        let http = async {
            if let Some(http) = self.http {
                http.stop().await;
            }
        };
        let flight = async {
            if let Some(flight) = self.flight {
                flight.stop().await;
            }
        };
        tokio::join!(http, flight);
        if let Some(scaler) = self.scaler {
            scaler.stop().await;
        }
        if let Some(control) = self.control {
            control.stop().await;
        }
    }
}

/// Where nodes join. Processes that are started here need such a place, so it is any loopback port if they are
/// to be and none is set.
fn control_address(config: &Config) -> Option<&str> {
    let starts_processes = config.loop_config().allocate().provider() == Provider::Process;
    config.serve().control_address().or_else(|| starts_processes.then_some("127.0.0.1:0"))
}

/// Opens `address`; the port that port 0 became is known at once.
pub(crate) fn listen(address: &str) -> Result<TcpListener, EngineError> {
    let listener =
        TcpListener::bind(address).map_err(|error| EngineError::listen(address, &error))?;
    listener.set_nonblocking(true).map_err(|error| EngineError::listen(address, &error))?;
    Ok(listener)
}

/// The address that `listener` is bound to.
fn bound(listener: &TcpListener) -> Result<SocketAddr, EngineError> {
    listener.local_addr().map_err(|error| EngineError::listen("local", &error))
}
