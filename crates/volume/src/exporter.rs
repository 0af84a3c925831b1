//! The exporter: after a handoff, the source's files are served read-only by a server process that its keeper starts
//! again when it dies. The keeper holds the listening socket, so that the address survives the server, and a board of
//! counters and ticket holders, so that they do too. It knows no Machine and no volume but by name and file.
//!
//! If the keeper dies, the server dies with it; the agent starts another with the concrete port in the spec. Clients
//! reconnect; who holds a ticket is then decided anew, by TLS: `trusted` is one certificate, and it is the holder's.

mod board;

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use godwit_api::ids::Epoch;
use godwit_base::backoff::Backoff;
use serde::{Deserialize, Serialize};

pub use self::board::ExportStatus;
use self::board::{Counted, ExportBoard};
use crate::device::lock;
use crate::error::{Result, VolumeError};
use crate::keeper::control;
use crate::lock::{Lock, path_of};
use crate::nbd::export::{FileExport, Tickets};
use crate::nbd::server::{Listener, NbdServer, Security};
use crate::nbd::tls::Identity;
use crate::process;
use crate::shm::SharedBoard;

/// Where a server finds what its keeper holds.
const LISTENER_FD: RawFd = 3;
const BOARD_FD: RawFd = 4;
/// Exports of one migration: a Machine's volumes.
const MAX_EXPORTS: usize = 64;
/// Connections of one migration's clients: a few for each volume, and as many again after a cut.
const MAX_CONNECTIONS: usize = 256;
const RESTART_FIRST: Duration = Duration::from_millis(10);
const RESTART_MAX: Duration = Duration::from_millis(500);
/// A server that lived this long starts the waits anew.
const LIVED_WELL: Duration = Duration::from_secs(5);
/// The port of a keeper that was just killed is free once its server is dead too.
const BIND_PATIENCE: Duration = Duration::from_secs(5);
const BIND_AGAIN: Duration = Duration::from_millis(20);
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// What an exporter is told, as one JSON file. It holds tokens: mode 0600.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportSpec {
    pub migration: String,
    /// Port 0: any, or one of `ports`; `ExporterStatus` says which.
    pub listen: SocketAddr,
    /// The first and the last port that may be taken where `listen` names none: those that a firewall lets through.
    #[serde(default)]
    pub ports: Option<(u16, u16)>,
    pub exports: Vec<ExportEntry>,
    pub tls: Option<ExportTls>,
    /// Where the keeper listens.
    pub control: PathBuf,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportEntry {
    pub volume: String,
    /// Of the clone: clients ask for `volume@epoch+token`.
    pub epoch: Epoch,
    pub token: String,
    pub local: PathBuf,
    pub size_bytes: u64,
}

/// PEM files. `trusted` is the one certificate whose holder may connect.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportTls {
    pub certificates: PathBuf,
    pub key: PathBuf,
    pub trusted: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum ExporterAsk {
    Status,
    /// Ends the server, every connection, and then the keeper.
    Stop,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExporterStatus {
    pub migration: String,
    pub pid: u32,
    /// 0 while none runs.
    pub server_pid: u32,
    pub server_starts: u64,
    /// What it listens on: goes into the spec of a keeper that takes over.
    pub addr: SocketAddr,
    pub exports: Vec<ExportStatus>,
}

impl ExportSpec {
    pub fn read(path: &Path) -> Result<Self> {
        let what = |verb: &str| VolumeError::io(format!("{verb} {}", path.display()));
        let text = std::fs::read(path).map_err(what("reading"))?;
        let spec: Self = serde_json::from_slice(&text).map_err(|error| what("understanding")(error.into()))?;
        match spec.exports.len() {
            1..=MAX_EXPORTS => Ok(spec),
            found => Err(VolumeError::Process { what: format!("{found} exports; 1 to {MAX_EXPORTS} are supported") }),
        }
    }

    fn security(&self) -> Result<Security> {
        let Some(tls) = &self.tls else { return Ok(Security::Plain) };
        let read =
            |path: &Path| std::fs::read_to_string(path).map_err(VolumeError::io(format!("reading {}", path.display())));
        let identity = Identity {
            certificates_pem: read(&tls.certificates)?,
            key_pem: read(&tls.key)?,
            trusted_pem: read(&tls.trusted)?,
        };
        Ok(Security::Tls(identity.server()?))
    }
}

impl ExportEntry {
    /// For reading only: whatever a client does, the file stays as it is.
    fn open(&self) -> Result<FileExport> {
        let file = File::open(&self.local).map_err(VolumeError::io(format!("opening {}", self.local.display())))?;
        let len = file.metadata().map_err(VolumeError::io("measuring the export"))?.len();
        if len != self.size_bytes {
            let (path, size) = (self.local.display(), self.size_bytes);
            return Err(VolumeError::Process { what: format!("{path} has {len} bytes, not {size}") });
        }
        FileExport::new(file, true)
    }
}

struct Keeper {
    spec: ExportSpec,
    listener: TcpListener,
    addr: SocketAddr,
    shared: File,
    board: ExportBoard,
    server_pid: AtomicU32,
    server_starts: AtomicU64,
    stopping: AtomicBool,
    waits: Mutex<()>,
    stop: Condvar,
}

/// The keeper's whole life. `server` makes the command of a server of this spec.
pub fn run(spec: ExportSpec, server: impl Fn() -> Command) -> Result<()> {
    let _only = Lock::take(&path_of(&spec.control), LOCK_PATIENCE)?;
    // What cannot work is said now, not by servers that die again and again.
    spec.security()?;
    spec.exports.iter().try_for_each(|entry| entry.open().map(drop))?;
    let listener = bind(spec.listen, spec.ports)?;
    let addr = listener.local_addr().map_err(VolumeError::io("asking for the port"))?;
    let shared = SharedBoard::create(ExportBoard::words(spec.exports.len()))?;
    let board = ExportBoard::map(&shared, spec.exports.len())?;
    let keeper = Arc::new(Keeper {
        spec,
        listener,
        addr,
        shared,
        board,
        server_pid: AtomicU32::new(0),
        server_starts: AtomicU64::new(0),
        stopping: AtomicBool::new(false),
        waits: Mutex::new(()),
        stop: Condvar::new(),
    });
    let answering = Arc::clone(&keeper);
    let _listening = control::listen(&keeper.spec.control, move |ask| Ok(answering.answer(&ask)))?;
    keeper.keep(&server)
}

/// With SO_REUSEADDR, which the standard library sets: connections of an earlier life do not hold the port.
fn bind(addr: SocketAddr, ports: Option<(u16, u16)>) -> Result<TcpListener> {
    if let Some((first, last)) = ports.filter(|_| addr.port() == 0) {
        return first_free(addr, first, last);
    }
    let deadline = Instant::now() + BIND_PATIENCE;
    loop {
        match TcpListener::bind(addr) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(BIND_AGAIN);
            }
            result => return result.map_err(VolumeError::io(format!("listening on {addr}"))),
        }
    }
}

/// Others may hold any of them; all of them in use is for the operator to mend.
fn first_free(addr: SocketAddr, first: u16, last: u16) -> Result<TcpListener> {
    for port in first..=last {
        match TcpListener::bind(SocketAddr::new(addr.ip(), port)) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            result => return result.map_err(VolumeError::io(format!("listening on {}, port {port}", addr.ip()))),
        }
    }
    let all = std::io::Error::from(std::io::ErrorKind::AddrInUse);
    Err(VolumeError::io(format!("listening on {}: every port of {first}-{last} (export_ports)", addr.ip()))(all))
}

impl Keeper {
    /// Starts the server again and again, until asked to stop.
    fn keep(&self, server: &impl Fn() -> Command) -> Result<()> {
        let mut backoff = Backoff::new(RESTART_FIRST, RESTART_MAX);
        while !self.stopping.load(Ordering::SeqCst) {
            let began = Instant::now();
            let mut child = self.spawn(server())?;
            self.server_pid.store(child.id(), Ordering::SeqCst);
            self.server_starts.fetch_add(1, Ordering::SeqCst);
            if self.stopping.load(Ordering::SeqCst) {
                // `Stop` came before it could see this one.
                let _ = child.kill();
            }
            let status = child.wait().map_err(VolumeError::io("waiting for the server"))?;
            self.server_pid.store(0, Ordering::SeqCst);
            self.board.nobody_is_connected();
            if self.stopping.load(Ordering::SeqCst) {
                break;
            }
            tracing::warn!(%status, "the export's server ended; it is started again");
            if began.elapsed() > LIVED_WELL {
                backoff.reset();
            }
            let waits = lock(&self.waits);
            let still = |_: &mut ()| !self.stopping.load(Ordering::SeqCst);
            drop(self.stop.wait_timeout_while(waits, backoff.next_wait(), still));
        }
        Ok(())
    }

    fn spawn(&self, mut command: Command) -> Result<Child> {
        let fds = [(self.listener.as_raw_fd(), LISTENER_FD), (self.shared.as_raw_fd(), BOARD_FD)];
        process::hand_over(&mut command, fds);
        command.spawn().map_err(VolumeError::io("starting the export's server"))
    }

    fn answer(&self, ask: &ExporterAsk) -> ExporterStatus {
        if *ask == ExporterAsk::Stop {
            let waits = lock(&self.waits);
            self.stopping.store(true, Ordering::SeqCst);
            drop(waits);
            self.stop.notify_all();
            let pid = self.server_pid.load(Ordering::SeqCst);
            if pid != 0 {
                // SAFETY: a plain system call. The pid is of our own child, which `keep` has not waited for yet or is
                // just waiting for; in the worst case it is a zombie.
                unsafe { libc::kill(pid as i32, libc::SIGKILL) };
            }
        }
        let exports = self.spec.exports.iter().enumerate();
        ExporterStatus {
            migration: self.spec.migration.clone(),
            pid: std::process::id(),
            server_pid: self.server_pid.load(Ordering::SeqCst),
            server_starts: self.server_starts.load(Ordering::SeqCst),
            addr: self.addr,
            exports: exports.map(|(index, entry)| self.board.status(index, &entry.volume, entry.epoch)).collect(),
        }
    }
}

/// The server's whole life, started by a keeper: until it is killed.
pub fn serve(spec: &ExportSpec, keeper_pid: u32) -> Result<()> {
    process::die_with_parent(keeper_pid)?;
    // SAFETY: the keeper put these two descriptors here for us, and nothing else in this process knows them.
    let (listener, shared) = unsafe { (TcpListener::from_raw_fd(LISTENER_FD), File::from_raw_fd(BOARD_FD)) };
    let board = Arc::new(ExportBoard::map(&shared, spec.exports.len())?);
    let tickets = Tickets::default();
    for (index, entry) in spec.exports.iter().enumerate() {
        let export = Arc::new(Counted::new(entry.open()?, Arc::clone(&board), index));
        let name = format!("{}@{}", entry.volume, entry.epoch);
        let remembering = Arc::clone(&board);
        let claimed = Box::new(move |peer: &_| remembering.claim(index, peer));
        tickets.add_claimed(&name, &entry.token, export, board.holder(index), claimed);
    }
    let started = NbdServer::start(Listener::Tcp(listener), spec.security()?, Arc::new(tickets), MAX_CONNECTIONS);
    // Never stopped: a shutdown of the listening socket would be one of the keeper's too.
    let _server = std::mem::ManuallyDrop::new(started.map_err(VolumeError::io("starting to serve"))?);
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_free_port_of_the_range_is_taken_and_none_beyond_it() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let below = bind(any, None).unwrap();
        let first = below.local_addr().unwrap().port();
        let refused = bind(any, Some((first, first))).unwrap_err();
        assert!(refused.to_string().contains(&format!("{first}-{first}")), "{refused}");
        drop(below);
        let taken = bind(any, Some((first, first))).unwrap();
        assert_eq!(taken.local_addr().unwrap().port(), first);
    }
}
