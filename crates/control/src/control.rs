//! What all of control shares: the store and its picture in memory, images, hosts, keys. Handlers and reconcilers
//! read the picture, decide, and commit what they decided by compare-and-set.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use godwit_api::fact::MachineFact;
use godwit_api::row::{GenerationRow, MachineRow, ProofsRow, TokenRow, VolumeRow};
use godwit_api::{ApiError, AppName, HostId, MachineId, VolumeId, keys};
use godwit_base::http::client::Body;
use godwit_base::metrics::Metrics;
use godwit_base::{Distrust, Peer, Prover, clock, durable, folder, secret};
use godwit_oci::{ContentStore, Limits};
use godwit_store::{Compare, Heard, Options, SqliteStore, Store, StoreExt, Txn, TxnReply, follow, put_json};
use tokio::sync::{Semaphore, watch};

use crate::claims::Claims;
use crate::config::Config;
use crate::counters::Counters;
use crate::edge_ports::Told;
use crate::host_clients::HostClients;
use crate::liveness::Liveness;
use crate::rows::store_error;
use crate::stalls::{STALLED_AFTER, Stalls};
use crate::world::{Known, World};
use crate::{StartError, mounts, view};

/// What was committed is seen in memory by then, or the answer is that the store is away.
const SEEN_WAIT: Duration = Duration::from_secs(10);
/// The first picture of the store is there by then.
const FIRST_WAIT: Duration = Duration::from_secs(30);
/// The store counts as away when nothing was heard from it for so long.
const STORE_STALE: Duration = Duration::from_secs(5);
/// Requests that wait for a Machine's state at once.
const WAITS_MAX: usize = 4_096;
/// Uploads at once: each holds a thread.
const UPLOADS_MAX: usize = 4;
/// What an operator reads in the log of the first start, and does next.
const ADMIN_TOKEN_NEXT: &str =
    "the first operator's token; on your workstation: `godwit config set token \"$(cat THIS_FILE)\"`";
const JOIN_TOKEN_NEXT: &str =
    "the token that admits hosts and edges; copy this file to each of them, where their join_token_file points";
/// Host names that are looked for at once.
const CHECKS_MAX: usize = 16;
/// A transaction that loses its compare is decided anew so many times.
pub(crate) const COMMIT_ATTEMPTS: usize = 8;

pub struct Control {
    pub(crate) config: Config,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) images: Arc<ContentStore>,
    pub(crate) hosts: HostClients,
    pub(crate) liveness: Liveness,
    pub(crate) metrics: Metrics,
    pub(crate) counters: Counters,
    pub(crate) stalls: Stalls,
    pub(crate) distrust: Distrust,
    pub(crate) claims: Claims,
    pub(crate) edge_ports: Told,
    pub(crate) join_token_sha256: String,
    pub(crate) waits: Semaphore,
    pub(crate) uploads: Semaphore,
    pub(crate) checks: Semaphore,
    world: RwLock<World>,
    changed: watch::Sender<u64>,
    heard: Heard,
}

impl Control {
    /// Opens the store and the images, writes the first tokens, and has the whole picture when it returns.
    pub async fn open(config: Config) -> Result<Arc<Self>, StartError> {
        folder::private(&config.data_dir).map_err(|source| StartError::Io { path: config.data_dir.clone(), source })?;
        let store = SqliteStore::open(config.data_dir.join("store.db"), Options::default())?;
        if config.restored {
            // Watchers that knew the lost history must not take this copy for it.
            store.bump_generation().await?;
        }
        let images_dir = config.data_dir.join("images");
        let images = ContentStore::open(images_dir, Limits::default()).map_err(StartError::Images)?;
        Self::with_store(config, Arc::new(store), Arc::new(images)).await
    }

    /// The same on a store that is open already.
    pub async fn with_store(
        config: Config,
        store: Arc<dyn Store>,
        images: Arc<ContentStore>,
    ) -> Result<Arc<Self>, StartError> {
        let admin = token_file(&config.admin_token_file, "gwo", ADMIN_TOKEN_NEXT)?;
        let join = token_file(&config.join_token_file, "gwj", JOIN_TOKEN_NEXT)?;
        write_admin_token(&*store, &admin).await?;
        let prover = begin_proofs(&*store).await?;
        begin_generation(&*store, config.restored, &prover).await?;
        let metrics = Metrics::new();
        let mut following = follow(store.clone(), "");
        let control = Arc::new(Self {
            counters: Counters::register(&metrics),
            stalls: Stalls::new(STALLED_AFTER),
            distrust: Distrust::register(&metrics),
            claims: Claims::default(),
            edge_ports: Told::default(),
            liveness: Liveness::new(config.lost_after),
            hosts: HostClients::default(),
            join_token_sha256: secret::sha256_hex(&join),
            waits: Semaphore::new(WAITS_MAX),
            uploads: Semaphore::new(UPLOADS_MAX),
            checks: Semaphore::new(CHECKS_MAX),
            world: RwLock::default(),
            changed: watch::Sender::new(0),
            heard: following.heard(),
            config,
            store,
            images,
            metrics,
        });
        let weak = Arc::downgrade(&control);
        tokio::spawn(async move {
            // Ends with the last handle on control, or with the store.
            while let Ok(update) = following.next().await {
                let Some(control) = weak.upgrade() else { return };
                control.take_in(update);
            }
        });
        let mut changed = control.changed.subscribe();
        let complete = changed.wait_for(|_| control.world().complete);
        match tokio::time::timeout(FIRST_WAIT, complete).await {
            Ok(_) => {}
            Err(_) => return Err(StartError::StoreSilent { waited_s: FIRST_WAIT.as_secs() }),
        }
        Ok(control)
    }

    /// The fleet store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    fn take_in(&self, update: godwit_store::Update) {
        let (revision, unreadable, disbelieved) = {
            let mut world = self.world_mut();
            let before = world.unreadable.len();
            world.apply(update);
            let new = world.unreadable.len() > before;
            let disbelieved = std::mem::take(&mut world.disbelieved);
            (world.revision, new.then(|| world.unreadable.clone()), disbelieved)
        };
        for told in disbelieved {
            self.distrust.note(Some(&Peer::Host(told.host)), told.kind, &told.key);
        }
        if let Some(keys) = unreadable {
            tracing::error!(?keys, "the store holds rows that cannot be read; they are passed over");
        }
        self.changed.send_replace(revision);
    }

    /// The picture, for reading: hold it shortly, never over an await.
    pub(crate) fn world(&self) -> RwLockReadGuard<'_, World> {
        self.world.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn world_mut(&self) -> RwLockWriteGuard<'_, World> {
        self.world.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Tells each new revision of the picture.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Waits until the picture is so, at most so long; false when it is not.
    pub(crate) async fn sees(&self, bound: Duration, is_so: impl Fn(&World) -> bool) -> bool {
        let mut changes = self.changes();
        let seen = changes.wait_for(|_| is_so(&self.world()));
        matches!(tokio::time::timeout(bound, seen).await, Ok(Ok(_)))
    }

    /// Commits, and returns once the picture holds what was committed (or what made it fail).
    pub(crate) async fn commit(&self, txn: Txn) -> Result<TxnReply, ApiError> {
        let reply = self.store.txn(txn).await.map_err(store_error)?;
        let mut changed = self.changed.subscribe();
        let seen = changed.wait_for(|revision| *revision >= reply.revision);
        match tokio::time::timeout(SEEN_WAIT, seen).await {
            Ok(Ok(_)) => {}
            _ => return Err(ApiError::unavailable("the fleet store reports no changes; try again", 1)),
        }
        if !reply.succeeded {
            self.counters.conflicts.inc();
        }
        Ok(reply)
    }

    pub(crate) fn healthy(&self) -> Result<(), String> {
        match self.heard.age() {
            Some(age) if age < STORE_STALE => Ok(()),
            Some(age) => Err(format!("the fleet store has not answered for {} s", age.as_secs())),
            None => Err("the fleet store has not been read yet".into()),
        }
    }

    // ---- what handlers ask for ---------------------------------------------------------

    /// A Machine's row, or the 404 that names what is unknown.
    pub(crate) fn machine_row(&self, app: &AppName, machine: &MachineId) -> Result<Known<MachineRow>, ApiError> {
        let world = self.world();
        if !world.apps.contains_key(app) {
            return Err(no_app(app));
        }
        let row = world.machine(app, machine).cloned();
        row.ok_or_else(|| ApiError::not_found(format!("app {app} has no Machine {machine}")))
    }

    /// The same for what changes a Machine: one that is destroyed, or about to be, changes no more.
    pub(crate) fn living_row(&self, app: &AppName, machine: &MachineId) -> Result<Known<MachineRow>, ApiError> {
        let row = self.machine_row(app, machine)?;
        let world = self.world();
        let placement = world.placement(&row.host, machine);
        if row.destroyed_at_ms.is_some() || placement.is_none_or(|placement| placement.destroy) {
            return Err(ApiError::conflict(format!("Machine {machine} is destroyed or being destroyed")));
        }
        Ok(row)
    }

    /// 422 for a raw port that apps may not have, or that an edge listens on itself.
    pub(crate) fn may_open(&self, ports: &[u16]) -> Result<(), ApiError> {
        self.config.raw_ports.judge(ports)?;
        let now = Instant::now();
        match ports.iter().find_map(|port| Some((port, self.edge_ports.owner(*port, now)?))) {
            None => Ok(()),
            Some((port, edge)) => Err(ApiError::unprocessable(format!(
                "config.services: port {port} cannot be opened for raw TCP: edge {edge} itself listens on it; choose another"
            ))),
        }
    }

    /// A volume's row, or the 404 that names what is unknown.
    pub(crate) fn volume_row(&self, app: &AppName, volume: &VolumeId) -> Result<Known<VolumeRow>, ApiError> {
        let world = self.world();
        if !world.apps.contains_key(app) {
            return Err(no_app(app));
        }
        let row = world.volume(app, volume).cloned();
        row.ok_or_else(|| ApiError::not_found(format!("app {app} has no volume {volume}")))
    }

    pub(crate) fn view_volume(&self, row: &VolumeRow) -> godwit_api::volume::Volume {
        let world = self.world();
        let placement = world.placement(&row.host, &row.id.carrier()).map(|placement| &**placement);
        let fact = world.volume_fact(row).map(|fact| &**fact);
        let encrypted = self.config.volume_encryption == crate::config::VolumeEncryption::Hosts;
        view::volume(row, placement, fact, self.liveness.reach(&row.host), encrypted)
    }

    pub(crate) fn view(&self, row: &MachineRow) -> godwit_api::machine::Machine {
        let world = self.world();
        let placement = world.placement(&row.host, &row.id).map(|placement| &**placement);
        let fact = world.fact_of(row).map(|fact| &**fact);
        let lease = world.leases.get(&row.id).filter(|lease| lease.expires_at_ms > clock::unix_ms());
        let nonce = lease.map(|lease| lease.nonce.clone());
        view::machine(row, placement, fact, self.liveness.reach(&row.host), mounts::told(&world, row), nonce)
    }

    /// Manifests that Machines run: never collected.
    pub(crate) fn images_in_use(&self) -> BTreeSet<String> {
        let world = self.world();
        let rows = world.machines.values().flat_map(|rows| rows.values());
        rows.filter(|row| row.destroyed_at_ms.is_none()).map(|row| row.image_ref.digest.clone()).collect()
    }
}

pub(crate) fn no_app(app: &AppName) -> ApiError {
    ApiError::not_found(format!("there is no app {app}"))
}

pub(crate) fn no_host(host: &HostId) -> ApiError {
    ApiError::not_found(format!("there is no host {host}"))
}

/// Read-modify-write that lost its compares too often.
pub(crate) fn contended() -> ApiError {
    ApiError::unavailable("others are changing the same thing; try again", 1)
}

/// The token in a file, drawn and written there first if there is none.
fn token_file(path: &Path, prefix: &str, what: &str) -> Result<String, StartError> {
    let failed = |source| StartError::Io { path: path.to_owned(), source };
    let stands = durable::read(path).map_err(failed)?;
    let stands = stands.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()).unwrap_or_default();
    if !stands.is_empty() {
        return Ok(stands);
    }
    let token = secret::new_key(prefix);
    folder::private_parent(path).map_err(failed)?;
    durable::write(path, format!("{token}\n").as_bytes(), 0o600).map_err(failed)?;
    tracing::info!(path = %path.display(), "wrote {what}");
    Ok(token)
}

async fn write_admin_token(store: &dyn Store, token: &str) -> Result<(), StartError> {
    let key = keys::token("admin");
    let sha256 = secret::sha256_hex(token);
    let stands = store.get_json::<TokenRow>(&key).await?;
    if stands.is_some_and(|row| row.value.sha256 == sha256) {
        return Ok(());
    }
    let row = TokenRow { name: "admin".into(), sha256, created_at_ms: clock::unix_ms(), expires_at_ms: None };
    store.txn(Txn::of([put_json(key, &row)?])).await?;
    Ok(())
}

/// The secret of the proofs, drawn with a new store. Of two controls that start at once one draws it.
async fn begin_proofs(store: &dyn Store) -> Result<Prover, StartError> {
    let drawn = ProofsRow { secret: secret::new_key("gwp") };
    let first = Txn::of([put_json(keys::PROOFS, &drawn)?]).when(Compare::absent(keys::PROOFS));
    store.txn(first).await?;
    let row = store.get_json::<ProofsRow>(keys::PROOFS).await?;
    Ok(row.map(|row| Prover::new(&row.value.secret)).unwrap_or_default())
}

/// Epochs of one history of the store share a generation. A new history (the first start, a restored copy) begins a
/// higher one than any that a host has seen, so that nothing of the lost history outranks it.
async fn begin_generation(store: &dyn Store, restored: bool, prover: &Prover) -> Result<(), StartError> {
    let identity = store.identity().await?.generation;
    let stands = store.get_json::<GenerationRow>(keys::GENERATION).await?;
    if let Some(row) = &stands
        && row.value.store_identity == identity
        && !restored
    {
        return Ok(());
    }
    let mut highest = stands.as_ref().map_or(0, |row| row.value.generation);
    for row in store.list(keys::FACTS).await?.rows {
        // Host facts have no epoch; what cannot be read says nothing of one either, and what no control gave is no epoch.
        let Ok(fact) = row.json::<MachineFact>().map(|row| row.value) else { continue };
        if prover.believes(&fact.proof, &fact.host, &fact.machine, fact.epoch) {
            highest = highest.max(fact.epoch.generation);
        }
    }
    let generation = clock::unix_ms().max(highest.saturating_add(1));
    let row = GenerationRow { generation, store_identity: identity };
    let unchanged = Compare::unchanged(keys::GENERATION, stands.map_or(0, |row| row.mod_revision));
    let reply = store.txn(Txn::of([put_json(keys::GENERATION, &row)?]).when(unchanged)).await?;
    if reply.succeeded {
        tracing::info!(generation, "a new generation of epochs begins");
    }
    Ok(())
}

/// A body that streams through us.
pub(crate) fn streamed(response: http::Response<hyper::body::Incoming>) -> axum::response::Response {
    response.map(axum::body::Body::new)
}

/// A request without a body.
pub(crate) fn get_request() -> http::Request<Body> {
    http::Request::new(godwit_base::http::client::empty())
}
