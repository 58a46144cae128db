//! Makes the worker of a node in this process reachable for tasks that run in other processes.

use std::net::{IpAddr, SocketAddr};

use datafusion_distributed::Worker;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use url::Url;

use crate::serve::control::MESSAGE_BYTES_MAX;

/// The port of one node. It is closed when this is dropped.
#[derive(Debug)]
pub struct Endpoint {
    url: Url,
    _server: JoinSet<()>,
}

impl Endpoint {
    /// Serves `worker` on any free port of `host`; its tasks run on `threads`.
    ///
    /// # Errors
    /// If no port can be opened.
    pub async fn open(host: IpAddr, worker: Worker, threads: &Handle) -> std::io::Result<Self> {
        let listener = TcpListener::bind(SocketAddr::new(host, 0)).await?;
        let url = url_of(listener.local_addr()?)?;
        let mut server = JoinSet::new();
        let serving = Server::builder()
            // What is sent to a worker are plans; rows go the other way.
            .add_service(worker.into_worker_server().max_decoding_message_size(MESSAGE_BYTES_MAX))
            .serve_with_incoming(incoming(listener));
        let place = url.clone();
        let serving = async move {
            if let Err(error) = serving.await {
                tracing::warn!(url = %place, %error, "a node's port was closed");
            }
        };
        server.spawn_on(serving, threads);
        Ok(Self { url, _server: server })
    }

    /// Where it is reached.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }
}

/// Connections without Nagle's delay: with it every small query costs 40 ms.
pub(crate) fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

/// The URL under which a listener on `address` is dialled.
pub(crate) fn url_of(address: SocketAddr) -> std::io::Result<Url> {
    Url::parse(&format!("http://{address}"))
        .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidInput, error))
}
