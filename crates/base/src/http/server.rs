//! Serving an axum router on TCP or a unix socket, HTTP/1 and HTTP/2 (prior knowledge), until told to stop; then
//! requests in flight end within a bound.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use crate::task::TaskGroup;

/// A client that has not sent its head by then is closed.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes at once; they cost more than what follows.
const HANDSHAKES_MAX: usize = 1_024;
/// How long requests in flight may go on after the stop.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until the group stops.
pub async fn serve_tcp(listener: TcpListener, router: Router, group: TaskGroup) {
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = group.stopping() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                // Small answers should not wait for an acknowledgement of the last one.
                let _ = stream.set_nodelay(true);
                keep_alive(&stream);
                serve_connection(stream, router.clone(), &graceful);
            }
            Err(error) => pause_after_accept_error(&error).await,
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await;
}

/// The same with TLS. The certificate is the one that `secured` holds when a connection comes.
pub async fn serve_tls(
    listener: TcpListener,
    secured: watch::Receiver<Arc<rustls::ServerConfig>>,
    router: Router,
    group: TaskGroup,
) {
    let graceful = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = group.stopping() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                pause_after_accept_error(&error).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        keep_alive(&stream);
        // Whoever comes while so many shake hands is closed: waiting here would hold up those that can.
        let Ok(permit) = room.clone().try_acquire_owned() else { continue };
        let acceptor = TlsAcceptor::from(secured.borrow().clone());
        let (router, watcher) = (router.clone(), graceful.watcher());
        tokio::spawn(async move {
            let shaken = tokio::time::timeout(HEAD_TIMEOUT, acceptor.accept(stream)).await;
            drop(permit);
            match shaken {
                Ok(Ok(stream)) => drop(watcher.watch(connection(stream, router)).await),
                Ok(Err(error)) => tracing::debug!(%error, "a handshake failed"),
                Err(_) => tracing::debug!("a handshake took too long"),
            }
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await;
}

/// The same on a unix socket, whose file `bind_unix` made.
pub async fn serve_unix(listener: UnixListener, router: Router, group: TaskGroup) {
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = group.stopping() => break,
        };
        match accepted {
            Ok((stream, _)) => serve_connection(stream, router.clone(), &graceful),
            Err(error) => pause_after_accept_error(&error).await,
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await;
}

/// Binds a unix socket, replacing the file that a killed predecessor left. Only its owner may connect.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn serve_connection<S>(stream: S, router: Router, graceful: &GracefulShutdown)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let watched = graceful.watch(connection(stream, router));
    tokio::spawn(async move {
        if let Err(error) = watched.await {
            tracing::debug!(%error, "connection ended");
        }
    });
}

/// Has the kernel probe a silent client: one that is gone without a word must not keep its stream, and what runs for
/// it, for ever.
fn keep_alive(stream: &tokio::net::TcpStream) {
    use nix::sys::socket::{setsockopt, sockopt};
    let idle_s = u32::try_from(super::client::KEEPALIVE_IDLE.as_secs()).unwrap_or(60);
    // A socket that refuses works all the same.
    let _ = setsockopt(stream, sockopt::KeepAlive, &true);
    let _ = setsockopt(stream, sockopt::TcpKeepIdle, &idle_s);
    let _ = setsockopt(stream, sockopt::TcpKeepInterval, &(idle_s / 3));
    let _ = setsockopt(stream, sockopt::TcpKeepCount, &3);
}

fn connection<S>(
    stream: S,
    router: Router,
) -> auto::UpgradeableConnection<'static, TokioIo<S>, TowerToHyperService<Router>, TokioExecutor>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder.http2().timer(TokioTimer::new());
    builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(router)).into_owned()
}

/// Out of descriptors is the usual reason: going on at once would spin.
pub async fn pause_after_accept_error(error: &io::Error) {
    tracing::warn!(%error, "cannot accept a connection");
    tokio::time::sleep(Duration::from_millis(50)).await;
}
