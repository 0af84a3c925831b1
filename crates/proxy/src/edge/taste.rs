//! Rows of the store are tried aside before this process reads them: a row that makes its reader panic, spin or want huge
//! memory must not take an edge with it, and with it all its clients. A taster is this same program, started again with
//! bounds on its memory; it reads each row as the edge will, and says so. What it dies of, twice, is left out: readers find
//! an empty value, which they do not understand, and serve on what the row held before.
//!
//! ```text
//!   edge                                             taster (no sockets, no threads, MEMORY_MAX_BYTES)
//!    │◀───────────── "taster ready\n" ────────────────│
//!    │── key length, key, value length, value ───────▶│  parses, builds a view, chooses
//!    │◀─────────────────── `.` ───────────────────────│
//! ```
//!
//! It stands between the store and everything of the edge that follows it, so it must not know who reads what.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use godwit_api::hostname::{CertificateRow, ChallengeAnswer, ChallengeRow, HostnameRow};
use godwit_api::keys;
use godwit_api::route::{AppRegions, RouteRow};
use godwit_api::row::PortRow;
use godwit_store::{BoxFuture, Error, Identity, Range, RangeReply, Store, Txn, TxnReply, Watch, WatchBatch};
use prometheus_client::metrics::counter::Counter;
use rustls::crypto::CryptoProvider;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::tls::certificates::{Certificate, challenge};
use super::view::{Lessons, View, build};
use crate::choose::choose;

/// Of address space, beyond what a taster begins with (an allocator may set a piece aside then); it needs a tenth of it.
const MEMORY_MAX_BYTES: u64 = 1 << 30;
/// No row takes a thousandth of it.
const PATIENCE: Duration = Duration::from_secs(1);
/// For a taster that starts on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// A taster that cannot be had is asked for again after this.
const START_PAUSE: Duration = Duration::from_secs(10);
const READY: &str = "taster ready";
/// Lines that a program may say before it is ready.
const LINES_BEFORE_MAX: usize = 16;
const WELL: u8 = b'.';
/// Rows that are remembered as poisoned, so that telling them again costs nothing.
const REMEMBERED_MAX: usize = 1024;
/// Longer keys and values are none of the store's.
const PART_MAX_BYTES: u32 = 64 << 20;

/// What is read of the store, and so is worth a try.
const TASTED: [&str; 6] =
    [keys::ROUTES, keys::APP_REGIONS, keys::PORTS, keys::HOSTNAMES, keys::CERTIFICATES, keys::CHALLENGES];

#[derive(Clone, Default)]
pub struct TasteMetrics {
    pub poisoned: Counter,
    /// Told while no taster could be had: the edge reads them all the same.
    pub untried: Counter,
}

/// The store as the edge shall see it. `program` starts a taster.
pub fn over(store: Arc<dyn Store>, program: Vec<String>, metrics: TasteMetrics) -> Arc<dyn Store> {
    let taster = Taster {
        program,
        metrics,
        work: tokio::sync::Mutex::default(),
        poisoned: Mutex::default(),
        hasher: RandomState::new(),
    };
    Arc::new(Tasting { store, taster: Arc::new(taster) })
}

struct Tasting {
    store: Arc<dyn Store>,
    taster: Arc<Taster>,
}

impl Store for Tasting {
    fn range(&self, range: Range) -> BoxFuture<'_, Result<RangeReply, Error>> {
        Box::pin(async move {
            let mut reply = self.store.range(range).await?;
            let rows = reply.rows.iter_mut().map(|row| (row.key.as_str(), &mut row.value));
            self.taster.clean(rows.collect()).await;
            Ok(reply)
        })
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnReply, Error>> {
        self.store.txn(txn)
    }

    fn watch(&self, prefix: String, from_revision: u64) -> BoxFuture<'_, Result<Watch, Error>> {
        Box::pin(async move {
            let watch = self.store.watch(prefix, from_revision).await?;
            let generation = watch.generation().to_owned();
            let batches = stream::unfold((watch, self.taster.clone()), |(mut watch, taster)| async {
                let batch = match watch.next().await.transpose()? {
                    Ok(batch) => Ok(taster.clean_batch(batch).await),
                    Err(error) => Err(error),
                };
                Some((batch, (watch, taster)))
            });
            Ok(Watch::new(generation, batches))
        })
    }

    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<(), Error>> {
        self.store.compact(revision)
    }

    fn identity(&self) -> BoxFuture<'_, Result<Identity, Error>> {
        self.store.identity()
    }
}

struct Taster {
    program: Vec<String>,
    metrics: TasteMetrics,
    work: tokio::sync::Mutex<Work>,
    poisoned: Mutex<HashSet<u64>>,
    hasher: RandomState,
}

#[derive(Default)]
struct Work {
    running: Option<Running>,
    not_before: Option<tokio::time::Instant>,
}

struct Running {
    /// Killed when it is dropped.
    _child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

/// No taster can be had.
struct Unavailable;

impl Taster {
    async fn clean_batch(&self, mut batch: WatchBatch) -> WatchBatch {
        let rows = batch.events.iter_mut().filter_map(|event| Some((event.key.as_str(), event.value.as_mut()?)));
        self.clean(rows.collect()).await;
        batch
    }

    /// Empties the values that no reader shall see.
    async fn clean(&self, mut rows: Vec<(&str, &mut Bytes)>) {
        rows.retain(|(key, _)| TASTED.iter().any(|prefix| key.starts_with(prefix)));
        for (key, value) in &mut rows {
            if self.is_known(key, value) {
                **value = Bytes::new();
            }
        }
        rows.retain(|(_, value)| !value.is_empty());
        if rows.is_empty() {
            return;
        }
        // One at a time: what is told meanwhile waits, for two times the patience at most for each poisoned row.
        let mut work = self.work.lock().await;
        let (mut done, mut suspect) = (0, None);
        while done < rows.len() {
            let told: Vec<(&str, &[u8])> = rows[done..].iter().map(|(key, value)| (*key, &value[..])).collect();
            match self.try_on(&mut work, &told).await {
                Ok(well) => done += well,
                Err(Unavailable) => {
                    self.metrics.untried.inc_by(u64::try_from(rows.len() - done).unwrap_or(u64::MAX));
                    return;
                }
            }
            // A taster that was killed by somebody else says nothing about a row.
            if done < rows.len() && suspect.replace(done) == Some(done) {
                let (key, value) = &mut rows[done];
                tracing::error!(
                    key,
                    "a row of the store cannot be read without harm: what it held before is served on"
                );
                self.remember(key, value);
                self.metrics.poisoned.inc();
                **value = Bytes::new();
                done += 1;
            }
        }
    }

    /// How many of the rows, from the first on, were read without harm. Fewer than all: the taster is gone.
    async fn try_on(&self, work: &mut Work, rows: &[(&str, &[u8])]) -> Result<usize, Unavailable> {
        // Taken out, so that whoever gives this up half-way leaves no taster that waits for the rest of a row.
        let mut running = match work.running.take() {
            Some(running) => running,
            None => self.start(work).await?,
        };
        let Running { to, from, .. } = &mut running;
        let mut well = 0;
        let telling = async {
            for (key, value) in rows {
                if to.write_all(&frame(key, value)).await.is_err() {
                    break;
                }
            }
            // A pipe that is broken is found out by whoever hears nothing more.
            std::future::pending::<Infallible>().await
        };
        let hearing = async {
            while well < rows.len() {
                match tokio::time::timeout(PATIENCE, from.read_u8()).await {
                    Ok(Ok(WELL)) => well += 1,
                    _ => return false,
                }
            }
            true
        };
        let all = tokio::select! {
            all = hearing => all,
            never = telling => match never {},
        };
        work.running = all.then_some(running);
        Ok(well)
    }

    async fn start(&self, work: &mut Work) -> Result<Running, Unavailable> {
        if work.not_before.is_some_and(|until| tokio::time::Instant::now() < until) {
            return Err(Unavailable);
        }
        let started = tokio::time::timeout(START_TIMEOUT, self.started()).await;
        let why = match started {
            Ok(Ok(running)) => return Ok(running),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it is not ready within {} s", START_TIMEOUT.as_secs()),
        };
        work.not_before = Some(tokio::time::Instant::now() + START_PAUSE);
        tracing::warn!(why, "rows of the store are not tried aside for now");
        Err(Unavailable)
    }

    async fn started(&self) -> io::Result<Running> {
        let (program, arguments) = self.program.split_first().ok_or(io::ErrorKind::NotFound)?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        // A terminal's signals to the edge are not for it.
        command.process_group(0);
        let mut child = command.spawn()?;
        let (to, from) = child.stdin.take().zip(child.stdout.take()).ok_or(io::ErrorKind::BrokenPipe)?;
        let mut from = BufReader::new(from);
        for _ in 0..LINES_BEFORE_MAX {
            let mut line = String::new();
            if from.read_line(&mut line).await? == 0 {
                break;
            }
            if line.trim_end() == READY {
                return Ok(Running { _child: child, to, from });
            }
        }
        Err(io::Error::other("it does not say that it is ready"))
    }

    fn hash(&self, key: &str, value: &[u8]) -> u64 {
        self.hasher.hash_one((key, value))
    }

    fn is_known(&self, key: &str, value: &[u8]) -> bool {
        let poisoned = self.poisoned.lock().unwrap_or_else(PoisonError::into_inner);
        !poisoned.is_empty() && poisoned.contains(&self.hash(key, value))
    }

    fn remember(&self, key: &str, value: &[u8]) {
        let hash = self.hash(key, value);
        let mut poisoned = self.poisoned.lock().unwrap_or_else(PoisonError::into_inner);
        if poisoned.len() >= REMEMBERED_MAX {
            poisoned.clear();
        }
        poisoned.insert(hash);
    }
}

fn frame(key: &str, value: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(8 + key.len() + value.len());
    for part in [key.as_bytes(), value] {
        // The store's own bounds are far below.
        frame.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        frame.extend_from_slice(part);
    }
    frame
}

// ---- the taster's end ------------------------------------------------------------------

/// Reads rows until there are none, each as `read` does.
pub fn serve(mut from: impl Read, mut to: impl Write, read: impl Fn(&str, &[u8])) -> io::Result<()> {
    use nix::sys::resource::{Resource, setrlimit};
    let memory = address_space()? + MEMORY_MAX_BYTES;
    setrlimit(Resource::RLIMIT_AS, memory, memory)?;
    writeln!(to, "\n{READY}")?;
    to.flush()?;
    loop {
        let key = match part(&mut from) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            key => String::from_utf8(key?).map_err(io::Error::other)?,
        };
        read(&key, &part(&mut from)?);
        to.write_all(&[WELL])?;
        to.flush()?;
    }
}

/// What this process has, in bytes (proc(5), the first number of `statm`, in pages).
fn address_space() -> io::Result<u64> {
    use nix::unistd::{SysconfVar, sysconf};
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split(' ').next().and_then(|pages| pages.parse::<u64>().ok());
    let page = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|bytes| u64::try_from(bytes).ok());
    pages.zip(page).map(|(pages, page)| pages * page).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn part(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > PART_MAX_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length as usize];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// What certificates are read by.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Reads a row as an edge does. One that is not understood does no harm, and is as good as any other here.
pub fn read(key: &str, value: &[u8], provider: &Arc<CryptoProvider>) {
    if key.starts_with(keys::ROUTES) {
        if let Ok(row) = serde_json::from_slice::<RouteRow>(value) {
            route(row);
        }
    } else if key.starts_with(keys::APP_REGIONS) {
        let _ = serde_json::from_slice::<AppRegions>(value);
    } else if key.starts_with(keys::PORTS) {
        let _ = serde_json::from_slice::<PortRow>(value);
    } else if key.starts_with(keys::HOSTNAMES) {
        let _ = serde_json::from_slice::<HostnameRow>(value);
    } else if key.starts_with(keys::CERTIFICATES) {
        if let Ok(row) = serde_json::from_slice::<CertificateRow>(value) {
            let _ = Certificate::from_pem(format!("{}{}", row.chain_pem, row.key_pem.0).as_bytes(), provider);
        }
    } else if key.starts_with(keys::CHALLENGES)
        && let Ok(ChallengeRow { answer: ChallengeAnswer::TlsAlpn01 { chain_pem, key_pem }, .. }) =
            serde_json::from_slice(value)
    {
        let _ = challenge(&chain_pem, &key_pem.0, provider);
    }
}

fn route(row: RouteRow) {
    let region = row.region.clone();
    let rows = BTreeMap::from([(region.clone(), row)]);
    let mut lessons: Lessons = HashMap::new();
    let view = build(&rows, &region, &mut lessons, |_| None, &View::default(), 0);
    let services = view.targets.iter().map(|target| target.services.len()).max().unwrap_or(0);
    for service in 0..services {
        let with_it = view.targets.iter().filter(|target| target.services.len() > service);
        let candidates: Vec<_> = with_it.map(|target| target.candidate(service, 0, false)).collect();
        choose(&candidates, 0);
    }
}
