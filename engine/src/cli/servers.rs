//! `foreshard serve` and `foreshard node`: run until they are asked to stop.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;

use super::{Failure, Settings, block_on};
use crate::engine::Engine;
use crate::serve::Servers;

/// How long a node whose starter is gone may take to end in order.
const FAREWELL_MAX: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Address of HTTP, host:port or off; port 0 takes any free port.
    #[arg(long, value_name = "ADDRESS")]
    http: Option<String>,
    /// Address of Arrow Flight SQL, host:port or off; port 0 takes any free port.
    #[arg(long, value_name = "ADDRESS")]
    flight: Option<String>,
    /// Address where other nodes join, host:port or off.
    #[arg(long, value_name = "ADDRESS")]
    control: Option<String>,
    /// In-process nodes at start.
    #[arg(long, value_name = "NUMBER")]
    nodes: Option<u32>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    /// Control address of the server to join.
    #[arg(long, value_name = "ADDRESS")]
    join: String,
    /// Name by which whoever started this node knows it.
    #[arg(long, value_name = "NAME", default_value = "")]
    name: String,
    /// End when the standard input is closed: with the process that started this one.
    #[arg(long)]
    until_stdin_closes: bool,
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn serve(args: &ServeArgs) -> Result<(), Failure> {
    let config = args
        .settings
        .load(&[
            ("serve.http-address", args.http.clone()),
            ("serve.flight-address", args.flight.clone()),
            ("serve.control-address", args.control.clone()),
            ("nodes", args.nodes.map(|nodes| nodes.to_string())),
        ])?
        .config;
    block_on(&config, async {
        let engine = Engine::builder().config(config.clone()).keep_state(true).start().await?;
        let servers = match Servers::start(&engine).await {
            Ok(servers) => servers,
            Err(error) => {
                let stopped = engine.shutdown().await;
                return Err(stopped.err().unwrap_or(error).into());
            }
        };
        let announced = announce(&servers);
        if announced.is_ok() {
            asked_to_stop().await;
        }
        servers.stop().await;
        engine.shutdown().await?;
        announced
    })?
}

/// Says what is listened on, once it is.
fn announce(servers: &Servers) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let ways = [
        ("http", "http", servers.http_address()),
        ("flight", "grpc", servers.flight_address()),
        ("control", "grpc", servers.control_address()),
        ("scaler", "grpc", servers.scaler_address()),
    ];
    for (way, scheme, address) in ways {
        let Some(address) = address else { continue };
        writeln!(out, "{way}: {scheme}://{address}")?;
        warn_if_open(way, address);
    }
    Ok(out.flush()?)
}

/// Nothing asks for a password, so an address that others can reach is worth a word.
fn warn_if_open(way: &str, address: SocketAddr) {
    if !address.ip().is_loopback() {
        tracing::warn!(way, %address, "anybody who can reach this address can read and write");
    }
}

pub(super) fn node(args: &NodeArgs) -> Result<(), Failure> {
    let config = args.settings.load(&[])?.config;
    block_on(&config, async {
        tokio::select! {
            done = crate::serve::control::run_node(&config, &args.join, &args.name) => Ok(done?),
            () = asked_to_stop() => Ok(()),
            () = stdin_closed(args.until_stdin_closes) => Ok(()),
        }
    })?
}

/// Waits until the standard input is closed, or for ever. Then the process ends, if need be by force: a thread
/// of its own sees to that, which no function that loops can hold up.
async fn stdin_closed(is_wanted: bool) {
    if !is_wanted {
        std::future::pending::<()>().await;
    }
    let (tell, closed) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        // An input that cannot be read is as good as closed; nobody writes to it.
        let _read = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _gone = tell.send(());
        std::thread::sleep(FAREWELL_MAX);
        std::process::exit(0);
    });
    // An error means that the thread could not even say so.
    let _said = closed.await;
}

/// Waits for ctrl-c or a request to end.
async fn asked_to_stop() {
    let interrupted = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = interrupted => {}
        () = terminated() => {}
    }
}

#[cfg(unix)]
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            terminate.recv().await;
        }
        Err(_) => std::future::pending().await,
    }
}

#[cfg(not(unix))]
async fn terminated() {
    std::future::pending::<()>().await;
}
