//! Streams between control and the inside of a Machine: sessions (a command, a copy of files), whose frames go to the
//! Machine's holder and back unread, and plain connections to one of its ports. The end of either side ends the other;
//! the agent's own end ends all, and a session that ends without an exit frame was cut.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use axum::extract::{Query, Request, State};
use axum::response::Response;
use nix::sched::{CloneFlags, setns};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};

use godwit_api::host::ConnectQuery;
use godwit_api::ids::MachineId;
use godwit_api::session::{self, Failed, Frame, HEADER_BYTES, MAX_OPEN_BYTES, Open};
use godwit_api::{ApiError, Status};
use godwit_base::http::Failure;
use godwit_base::http::upgrade::{Stream, asked, granted, relay};
use godwit_driver::{Handle, Session, SessionRequest};

use super::inside::{refused, running};
use super::{HostApi, Id, stopped};

/// Streams at once over all Machines of the host; each holder bounds its own besides.
const MAX_STREAMS: usize = 1024;
static STREAMS: Semaphore = Semaphore::const_new(MAX_STREAMS);
/// The first frame is here by then.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// A port on the Machine's own loopback answers at once, or a program is too busy to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

fn slot() -> Result<SemaphorePermit<'static>, ApiError> {
    let busy = |_| ApiError::unavailable(format!("this host carries {MAX_STREAMS} streams already; try again"), 5);
    STREAMS.try_acquire().map_err(busy)
}

pub async fn session(State(api): State<HostApi>, Id(machine): Id, mut request: Request) -> Result<Response, Failure> {
    let upgrade = asked(&mut request, session::PROTOCOL)?;
    let slot = slot()?;
    let handle = match running(&api, &machine).await {
        Ok(handle) => Some(handle),
        // Its volumes can be reached all the same.
        Err(error) if error.status == Status::Conflict && stopped::has_volumes(&api, &machine).await => None,
        Err(error) => return Err(error.into()),
    };
    tokio::spawn(async move {
        let _slot = slot;
        let Ok(stream) = upgrade.await else { return };
        let stopping = api.stopping.clone();
        let serving = serve(&api, &machine, handle.as_ref(), hyper_util::rt::TokioIo::new(stream));
        if let Some(Err(error)) = stopping.run_until_cancelled(serving).await {
            tracing::debug!(%machine, %error, "a session broke");
        }
    });
    Ok(granted(session::PROTOCOL))
}

/// `handle`: of its process; without one only its volumes are there.
async fn serve(api: &HostApi, machine: &MachineId, handle: Option<&Handle>, mut stream: Stream) -> io::Result<()> {
    let mut buffer = Vec::new();
    let opened = tokio::time::timeout(OPEN_TIMEOUT, first_frame(&mut stream, &mut buffer)).await;
    let request = match opened {
        Ok(opened) => opened?,
        Err(_) => Err(ApiError::new(408, Status::Timeout, "no session was opened in time")),
    };
    let opened = match (request, handle) {
        (Ok(request), Some(handle)) => {
            let session = api.effects.organs().driver.session(handle, &request).await;
            session.map(Opened::Inside).map_err(|error| refused(machine, &error))
        }
        (Ok(request), None) => stopped::open(api, machine, &request).await.map(Opened::Volumes),
        (Err(error), _) => Err(error),
    };
    match opened {
        Ok(Opened::Inside(session)) => carry(stream, &buffer, session).await,
        Ok(Opened::Volumes(copy)) => {
            let carried = tokio::time::timeout(stopped::COPY_TIMEOUT, carry(stream, &buffer, copy.session)).await;
            copy.after.settle(api).await;
            carried.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        }
        Err(error) => {
            let mut bytes = Vec::new();
            Frame::Failed(Failed { error: error.error, status: error.status }).encode(&mut bytes);
            stream.write_all(&bytes).await?;
            stream.shutdown().await
        }
    }
}

enum Opened {
    Inside(Session),
    Volumes(stopped::Copy),
}

/// `buffer`: stdin that came on the heels of the first frame.
async fn carry(mut stream: Stream, buffer: &[u8], mut session: Session) -> io::Result<()> {
    stream.write_all(&session.first).await?;
    session.stream.write_all(buffer).await?;
    relay(stream, session.stream).await
}

/// Reads the frame that says what is wanted; what follows it stays in the buffer.
async fn first_frame(stream: &mut Stream, buffer: &mut Vec<u8>) -> io::Result<Result<SessionRequest, ApiError>> {
    loop {
        match Frame::decode(buffer) {
            Ok(Some((Frame::Open(open), taken))) => {
                buffer.drain(..taken);
                return Ok(Ok(wanted(open)));
            }
            Ok(Some(_)) => return Ok(Err(ApiError::bad_request("a session begins with what it is for"))),
            Ok(None) if buffer.len() > HEADER_BYTES + MAX_OPEN_BYTES => {
                return Ok(Err(ApiError::bad_request("the first frame is too large")));
            }
            Ok(None) => {}
            Err(error) => return Ok(Err(ApiError::bad_request(error.to_string()))),
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn wanted(open: Open) -> SessionRequest {
    match open {
        Open::Exec(exec) => SessionRequest::Exec {
            argv: exec.command,
            env: exec.env,
            user: exec.user,
            terminal: exec.terminal.map(|size| (size.rows, size.columns)),
        },
        Open::CopyOut { path, name } => SessionRequest::CopyOut { path, name },
        Open::CopyIn(copy) => SessionRequest::CopyIn {
            path: copy.path,
            into_folder: copy.into_folder,
            content_only: copy.content_only,
            keep_owners: copy.keep_owners,
        },
    }
}

/// One connection to a port of the Machine, dialled from inside its network: what listens on its loopback only is
/// reached too.
pub async fn connect(
    State(api): State<HostApi>,
    Id(machine): Id,
    Query(query): Query<ConnectQuery>,
    mut request: Request,
) -> Result<Response, Failure> {
    let upgrade = asked(&mut request, "tcp")?;
    let slot = slot()?;
    let handle = running(&api, &machine).await?;
    let namespace = api.effects.organs().network.namespace(machine.as_str());
    let dialled = match dial(namespace, query.port).await {
        Ok(dialled) => dialled,
        Err(error) => return Err(not_reached(&api, &machine, &handle, query.port, &error).await.into()),
    };
    tokio::spawn(async move {
        let _slot = slot;
        let Ok(stream) = upgrade.await else { return };
        let relaying = relay(hyper_util::rt::TokioIo::new(stream), dialled);
        if let Some(Err(error)) = api.stopping.run_until_cancelled(relaying).await {
            tracing::debug!(%machine, %error, "a connection broke");
        }
    });
    Ok(granted("tcp"))
}

/// Dials the loopback of a network namespace: IPv4 first, then IPv6. A socket stays in the namespace in which it was
/// made; the thread that goes there never comes back.
async fn dial(namespace: Option<PathBuf>, port: u16) -> io::Result<TcpStream> {
    let (answer, wait) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("dial".to_owned()).spawn(move || {
        let dialling = || -> io::Result<std::net::TcpStream> {
            if let Some(path) = namespace {
                setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
            }
            let at = |address: IpAddr| {
                std::net::TcpStream::connect_timeout(&SocketAddr::new(address, port), CONNECT_TIMEOUT)
            };
            let stream = at(Ipv4Addr::LOCALHOST.into()).or_else(|_| at(Ipv6Addr::LOCALHOST.into()))?;
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        // A caller that has gone away needs no answer.
        let _ = answer.send(dialling());
    })?;
    let stream = wait.await.map_err(io::Error::other)??;
    TcpStream::from_std(stream)
}

async fn not_reached(api: &HostApi, machine: &MachineId, handle: &Handle, port: u16, error: &io::Error) -> ApiError {
    let processes = api.effects.organs().driver.processes(handle).await.unwrap_or_default();
    let sockets = processes.into_iter().flat_map(|process| process.listen_sockets);
    let mut listening: Vec<String> =
        sockets.filter(|socket| socket.proto.starts_with("tcp")).map(|socket| socket.address).collect();
    listening.sort();
    listening.dedup();
    let hint = match listening.is_empty() {
        true => "it listens on no TCP port".to_owned(),
        false => format!("it listens on {}", listening.join(", ")),
    };
    ApiError::new(502, Status::Unavailable, format!("port {port} of Machine {machine} is not reached: {error}; {hint}"))
}
