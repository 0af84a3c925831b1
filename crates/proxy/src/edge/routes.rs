//! Where routes come from: the directory (which regions an app has Machines in, who serves a raw port) is watched as a
//! whole, an app's own rows from its first request on, for a bounded number of apps.
//!
//! An unknown app costs no call to the store: the directory answers. With the store away, what was known is served.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use godwit_api::ids::AppName;
use godwit_api::keys;
use godwit_api::route::{AppRegions, RouteRow};
use godwit_api::row::PortRow;
use godwit_base::TaskGroup;
use godwit_store::{Heard, Mirror, Store, Update, follow};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::app::App;
use super::hosts::Hosts;
use super::metrics::EdgeMetrics;
use super::snapshot::{Directory, Rows, Snapshots};
use crate::Error;

/// The store counts as away when nothing was heard of it for so long.
pub const STORE_SILENCE: Duration = Duration::from_secs(3);
/// A first request waits so long for fresh rows when there are none, or the store is well.
const FIRST_ROWS_TIMEOUT: Duration = Duration::from_secs(2);
/// A request for an app that the directory lacks waits so long when the store is well: who has just created an app and
/// asks for it at once is ahead of the directory by a few milliseconds.
const UNKNOWN_PATIENCE: Duration = Duration::from_millis(300);
/// Requests that wait so; the others are told at once.
const UNKNOWN_WAITING_MAX: usize = 1024;
/// Changes are gathered this long before they are written to disk.
const GATHER: Duration = Duration::from_secs(1);

/// Why an app has no routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoApp {
    /// The directory does not have it.
    Unknown,
    /// Nothing is known of the fleet yet.
    NotYet,
}

/// An app that is watched, and the regions in which to watch it.
struct Watched {
    app: Arc<App>,
    regions: watch::Sender<Vec<String>>,
}

pub struct Routes {
    store: Arc<dyn Store>,
    region: String,
    max_apps: usize,
    base: Instant,
    hosts: Arc<Hosts>,
    metrics: Arc<EdgeMetrics>,
    snapshots: Snapshots,
    directory: RwLock<Directory>,
    /// Turns true with the first directory, from the store or from disk.
    known: watch::Sender<bool>,
    /// Fires when the directory has changed.
    named: watch::Sender<()>,
    unknown_waiting: tokio::sync::Semaphore,
    heard: Mutex<Option<Heard>>,
    /// When the copy that is served was written, until the store was heard.
    kept_at_ms: Mutex<Option<u64>>,
    apps: RwLock<HashMap<AppName, Watched>>,
    pub ports: watch::Sender<()>,
    group: TaskGroup,
}

impl Routes {
    pub fn new(
        store: Arc<dyn Store>,
        config: &super::EdgeConfig,
        hosts: Arc<Hosts>,
        metrics: Arc<EdgeMetrics>,
        group: TaskGroup,
    ) -> Result<Arc<Self>, Error> {
        let snapshots = Snapshots::new(&config.snapshot_dir)?;
        let kept = snapshots.directory();
        let routes = Arc::new(Self {
            store,
            region: config.region.clone(),
            max_apps: config.max_apps,
            base: Instant::now(),
            hosts,
            metrics,
            known: watch::Sender::new(kept.is_some()),
            named: watch::Sender::new(()),
            unknown_waiting: tokio::sync::Semaphore::new(UNKNOWN_WAITING_MAX),
            kept_at_ms: Mutex::new(kept.as_ref().map(|(at, _)| *at)),
            directory: RwLock::new(kept.map(|(_, directory)| directory).unwrap_or_default()),
            snapshots,
            heard: Mutex::new(None),
            apps: RwLock::default(),
            ports: watch::Sender::new(()),
            group: group.clone(),
        });
        group.spawn_cancellable(routes.clone().follow_directory());
        group.spawn_cancellable(routes.clone().keep());
        Ok(routes)
    }

    /// Milliseconds on this edge's own clock.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub fn region(&self) -> &str {
        &self.region
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// How old what is served may be; `None` when nothing is known at all.
    pub fn age(&self) -> Option<Duration> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(Heard::age);
        heard.or_else(|| {
            let kept_at = *self.kept_at_ms.lock().unwrap_or_else(PoisonError::into_inner);
            kept_at.map(|at| Duration::from_millis(godwit_base::clock::unix_ms().saturating_sub(at)))
        })
    }

    /// Resolves when a directory is known, from the store or from disk.
    pub async fn known(&self) {
        // The sender is this one's own: it is there.
        let _ = self.known.subscribe().wait_for(|known| *known).await;
    }

    pub fn is_store_well(&self) -> bool {
        self.age().is_some_and(|age| age < STORE_SILENCE)
    }

    /// Whether the directory has the app.
    pub fn has(&self, app: &AppName) -> bool {
        self.directory().regions.contains_key(app)
    }

    pub fn app_of_port(&self, port: u16) -> Option<AppName> {
        self.directory().ports.get(&port).cloned()
    }

    pub fn tcp_ports(&self) -> Vec<u16> {
        self.directory().ports.keys().copied().collect()
    }

    fn directory(&self) -> std::sync::RwLockReadGuard<'_, Directory> {
        self.directory.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The app, watched from now on. Waits for its first rows if it is new here.
    pub async fn app(self: &Arc<Self>, name: &AppName) -> Result<Arc<App>, NoApp> {
        if let Some(app) = self.watched(name) {
            return Ok(app);
        }
        if !*self.known.borrow() {
            let mut known = self.known.subscribe();
            let known = known.wait_for(|known| *known);
            if tokio::time::timeout(FIRST_ROWS_TIMEOUT, known).await.is_err() {
                return Err(NoApp::NotYet);
            }
        }
        let Some(regions) = self.regions_of(name).await else { return Err(NoApp::Unknown) };
        let app = self.watch(name, regions);
        let mut live = app.live();
        if !*live.borrow() && (self.is_store_well() || !app.has_rows()) {
            // Late rows are no error: the request is held like any other that finds no Machine.
            let _ = tokio::time::timeout(FIRST_ROWS_TIMEOUT, live.wait_for(|live| *live)).await;
        }
        Ok(app)
    }

    /// The regions in which the directory has the app, now or in a moment.
    async fn regions_of(&self, name: &AppName) -> Option<Vec<String>> {
        let mut named = self.named.subscribe();
        let look = || self.directory().regions.get(name).cloned();
        if let Some(regions) = look() {
            return Some(regions);
        }
        let _waiting = self.unknown_waiting.try_acquire().ok().filter(|_| self.is_store_well())?;
        let appears = async {
            loop {
                named.changed().await.ok()?;
                if let Some(regions) = look() {
                    return Some(regions);
                }
            }
        };
        tokio::time::timeout(UNKNOWN_PATIENCE, appears).await.ok().flatten()
    }

    fn watched(&self, name: &AppName) -> Option<Arc<App>> {
        let apps = self.apps.read().unwrap_or_else(PoisonError::into_inner);
        let app = &apps.get(name)?.app;
        // One that has neither rows nor the store's word is still new.
        if !*app.live().borrow() && !app.has_rows() {
            return None;
        }
        app.touch(self.now_ms());
        Some(app.clone())
    }

    pub fn all(&self) -> Vec<Arc<App>> {
        let apps = self.apps.read().unwrap_or_else(PoisonError::into_inner);
        apps.values().map(|watched| watched.app.clone()).collect()
    }

    fn apps(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<AppName, Watched>> {
        self.apps.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(self: &Arc<Self>, name: &AppName, regions: Vec<String>) -> Arc<App> {
        let mut apps = self.apps();
        if let Some(watched) = apps.get(name) {
            watched.app.touch(self.now_ms());
            return watched.app.clone();
        }
        if apps.len() >= self.max_apps {
            self.evict(&mut apps);
        }
        let token = self.group.token().child_token();
        let metrics = self.metrics.app(name);
        let app = Arc::new(App::new(name.clone(), &self.region, self.hosts.clone(), metrics, token));
        app.touch(self.now_ms());
        if let Some((_, rows)) = self.snapshots.rows(name) {
            app.set_rows(rows, self.now_ms());
        }
        let (tell, told) = watch::channel(regions);
        self.group.spawn_cancellable(self.clone().follow_app(app.clone(), told));
        apps.insert(name.clone(), Watched { app: app.clone(), regions: tell });
        app
    }

    /// The app that was longest not asked for gives its place. Requests of it that are under way keep what they hold.
    fn evict(&self, apps: &mut HashMap<AppName, Watched>) {
        let oldest = apps.values().filter(|one| one.app.gate.held() == 0).min_by_key(|one| one.app.last_used_ms());
        if let Some(name) = oldest.map(|one| one.app.name.clone())
            && let Some(watched) = apps.remove(&name)
        {
            watched.app.token.cancel();
            self.metrics.forget_app(&name);
        }
    }

    async fn follow_directory(self: Arc<Self>) {
        let mut regions = follow(self.store.clone(), keys::APP_REGIONS);
        let mut ports = follow(self.store.clone(), keys::PORTS);
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(regions.heard());
        let (mut region_rows, mut port_rows) = (Mirror::new(), Mirror::new());
        loop {
            let told = tokio::select! {
                told = regions.next() => told.map(|update| self.apply_regions(&mut region_rows, update)),
                told = ports.next() => told.map(|update| self.apply_ports(&mut port_rows, update)),
            };
            if let Err(error) = told {
                tracing::warn!(%error, "the store does not show this edge its directory");
            }
        }
    }

    fn apply_regions(&self, rows: &mut Mirror, update: Update) {
        let first = !rows.is_complete();
        let changed = rows.apply(update);
        let mut gone = Vec::new();
        {
            let mut directory = self.directory.write().unwrap_or_else(PoisonError::into_inner);
            if first {
                // What only the copy on disk knew is no more.
                let known = |app: &AppName| rows.get(&keys::app_regions(app)).is_some();
                gone.extend(directory.regions.keys().filter(|app| !known(app)).cloned());
            }
            for key in &changed {
                let Some(app) = key.strip_prefix(keys::APP_REGIONS).and_then(|name| AppName::parse(name).ok()) else {
                    continue;
                };
                match rows.get(key).map(|row| serde_json::from_slice::<AppRegions>(&row.value)) {
                    Some(Ok(row)) => {
                        directory.regions.insert(app, row.regions);
                    }
                    Some(Err(error)) => tracing::warn!(key, %error, "a row of the directory is not understood"),
                    None => gone.push(app),
                }
            }
            for app in &gone {
                directory.regions.remove(app);
            }
        }
        self.known.send_if_modified(|known| !std::mem::replace(known, true));
        if !changed.is_empty() || !gone.is_empty() {
            self.snapshots.mark_directory();
            self.tell_watches(&gone);
            self.named.send_replace(());
        }
    }

    /// Watched apps follow their regions; apps that are no more are forgotten.
    fn tell_watches(&self, gone: &[AppName]) {
        let mut apps = self.apps();
        for name in gone {
            if let Some(watched) = apps.remove(name) {
                watched.app.token.cancel();
                watched.app.set_rows(Rows::new(), self.now_ms());
                self.metrics.forget_app(name);
            }
            self.snapshots.forget(name);
        }
        let directory = self.directory();
        for (name, watched) in apps.iter() {
            if let Some(regions) = directory.regions.get(name) {
                watched.regions.send_if_modified(|known| {
                    let differs = known != regions;
                    known.clone_from(regions);
                    differs
                });
            }
        }
    }

    fn apply_ports(&self, rows: &mut Mirror, update: Update) {
        let first = !rows.is_complete();
        let changed = rows.apply(update);
        if changed.is_empty() && !first {
            return;
        }
        let mut directory = self.directory.write().unwrap_or_else(PoisonError::into_inner);
        let ports = rows.rows().filter_map(|(key, row)| {
            let port = key.strip_prefix(keys::PORTS)?.parse().ok()?;
            match serde_json::from_slice::<PortRow>(&row.value) {
                Ok(row) => Some((port, row.app)),
                Err(error) => {
                    tracing::warn!(key, %error, "a port's row is not understood");
                    // The last good row stays in force.
                    Some((port, directory.ports.get(&port)?.clone()))
                }
            }
        });
        let ports = ports.collect();
        directory.ports = ports;
        drop(directory);
        self.snapshots.mark_directory();
        self.ports.send_replace(());
    }

    /// Follows an app in all its regions, until its token ends it.
    async fn follow_app(self: Arc<Self>, app: Arc<App>, mut regions: watch::Receiver<Vec<String>>) {
        let mut following: HashMap<String, CancellationToken> = HashMap::new();
        let token = app.token.clone();
        loop {
            let wanted = regions.borrow_and_update().clone();
            following.retain(|region, token| {
                let keep = wanted.contains(region);
                if !keep {
                    token.cancel();
                    app.set_row(region, None, self.now_ms());
                    self.snapshots.mark_app(&app.name);
                }
                keep
            });
            for region in &wanted {
                if !following.contains_key(region) {
                    let token = token.child_token();
                    following.insert(region.clone(), token.clone());
                    let following = self.clone().follow_region(app.clone(), region.clone());
                    self.group.spawn_cancellable(async move {
                        let _ = token.run_until_cancelled(following).await;
                    });
                }
            }
            if wanted.is_empty() {
                app.set_live();
            }
            tokio::select! {
                changed = regions.changed() => if changed.is_err() { return },
                () = token.cancelled() => return,
            }
        }
    }

    async fn follow_region(self: Arc<Self>, app: Arc<App>, region: String) {
        let mut rows = Mirror::new();
        let key = keys::route(&region, &app.name);
        let mut updates = follow(self.store.clone(), keys::routes_of(&region, &app.name));
        loop {
            match updates.next().await {
                Ok(update) => {
                    let first = !rows.is_complete();
                    let changed = rows.apply(update);
                    if changed.contains(&key) || first {
                        self.apply_row(&app, &region, rows.get(&key).map(|row| &row.value[..]));
                    }
                }
                Err(error) => tracing::warn!(app = %app.name, region, %error, "the store does not show a route"),
            }
        }
    }

    fn apply_row(&self, app: &App, region: &str, value: Option<&[u8]>) {
        match value.map(serde_json::from_slice::<RouteRow>).transpose() {
            Ok(row) => app.set_row(region, row, self.now_ms()),
            // The last good row is served on.
            Err(error) => tracing::warn!(app = %app.name, region, %error, "a route is not understood"),
        }
        app.set_live();
        self.snapshots.mark_app(&app.name);
    }

    /// Writes what changed to disk, again and again.
    async fn keep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(GATHER).await;
            let routes = self.clone();
            let written = tokio::task::spawn_blocking(move || routes.keep_now()).await;
            if written.is_err() {
                tracing::warn!("writing the kept routes failed");
            }
        }
    }

    /// Blocks on the disk.
    pub fn keep_now(&self) {
        let rows = |name: &AppName| {
            let apps = self.apps.read().unwrap_or_else(PoisonError::into_inner);
            apps.get(name).map(|watched| watched.app.rows())
        };
        self.snapshots.write(|| self.directory().clone(), rows);
    }
}
