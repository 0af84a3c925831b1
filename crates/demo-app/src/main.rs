//! The test app with eyes: a small HTTP server that runs inside a Machine and tells what it sees there. One static
//! binary, so that an image needs nothing else. It owns its own process and `/data`; it must not know Godwit beyond
//! the environment variables that every Machine gets.

mod burden;
mod fill;
mod lives;
mod record;
mod routes;
mod websocket;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn6, setsockopt, sockopt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use routes::App;

/// Where it listens unless `PORT` says otherwise; at all addresses, unless `LISTEN` names one.
const PORT: u16 = 8080;
/// Connections that wait to be accepted: a thousand requests may arrive at once.
const BACKLOG: i32 = 4096;
/// How long requests in flight may go on after the signal to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(25);
/// A client that has not sent its head by then is closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Threads for work that blocks: `/burn`, `/alloc`, and all that touches `/data`.
const BLOCKING_THREADS: usize = 32;
/// The folder that may be a volume.
const DATA: &str = "/data";

fn main() -> ExitCode {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING_THREADS).build();
    let served = runtime.and_then(|runtime| runtime.block_on(serve()));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo-app: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> io::Result<()> {
    let stop = stop_signal()?;
    let app = Arc::new(App::new(Path::new(DATA), stop.clone()));
    println!("demo-app: start {} of this Machine, pid {}", app.boot_count(), std::process::id());
    let delay_ms = number_from_env("LISTEN_DELAY_MS").unwrap_or(0);
    if delay_ms > 0 {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(delay_ms)) => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
    let port = number_from_env("PORT").and_then(|port| u16::try_from(port).ok()).unwrap_or(PORT);
    let listener = match std::env::var("LISTEN") {
        Ok(address) => listen_at(&address, port)?,
        Err(_) => listen(port)?,
    };
    println!("demo-app: listening on {}", listener.local_addr()?);
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                // Small answers should not wait for an acknowledgement of the last one.
                let _ = stream.set_nodelay(true);
                let app = app.clone();
                let service = service_fn(move |request| routes::answer(app.clone(), request));
                let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
                builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
                let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
                let watched = graceful.watch(connection.into_owned());
                // How a connection ends is its client's affair.
                tokio::spawn(async move { drop(watched.await) });
            }
            Err(error) => {
                eprintln!("demo-app: cannot accept: {error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    drop(listener);
    println!("demo-app: asked to end; finishing requests in flight");
    let drained = tokio::time::timeout(DRAIN_TIMEOUT, async {
        graceful.shutdown().await;
        app.sockets_closed().await;
    });
    let drained = drained.await.is_ok();
    app.end_life();
    println!("demo-app: {}", if drained { "bye" } else { "some requests did not end in time" });
    Ok(())
}

/// One socket for both address families where the kernel has IPv6, else IPv4 alone.
fn listen(port: u16) -> io::Result<TcpListener> {
    let dual_stack = || -> io::Result<std::net::TcpListener> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = nix::sys::socket::socket(AddressFamily::Inet6, SockType::Stream, flags, None)?;
        setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let SocketAddr::V6(address) = address else { return Err(io::Error::other("not IPv6")) };
        nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrIn6::from(address))?;
        nix::sys::socket::listen(&socket, Backlog::new(BACKLOG)?)?;
        Ok(socket.into())
    };
    let listener = match dual_stack() {
        Ok(listener) => listener,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
        Err(_) => {
            let listener = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
            listener.set_nonblocking(true)?;
            listener
        }
    };
    TcpListener::from_std(listener)
}

/// At one address only, as a framework that was told `--host` listens. IPv6 alone, if it is one of IPv6.
fn listen_at(address: &str, port: u16) -> io::Result<TcpListener> {
    let address: IpAddr = address.parse().map_err(io::Error::other)?;
    let socket = match address {
        IpAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        IpAddr::V6(_) => {
            let socket = tokio::net::TcpSocket::new_v6()?;
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            socket
        }
    };
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(address, port))?;
    socket.listen(BACKLOG.unsigned_abs())
}

/// Cancelled at SIGTERM or SIGINT. As the first process of a Machine it gets no default action for either.
fn stop_signal() -> io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancelled.cancel();
    });
    Ok(token)
}

fn number_from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
