//! The runs. Each has a store of its own in a temporary folder on the disk that is measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use godwit_store::{Options, RemoteStore, SqliteStore, Store, StoreExt, Watch, router};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::report::{Lateness, Percentiles, Throughput};
use crate::{Settings, VALUE_BYTES};

#[derive(Clone, Copy)]
pub enum Way {
    Direct,
    Remote,
}

#[derive(Clone, Copy)]
pub enum Load {
    /// As in a fleet: each watcher has its own prefix, and the writes are spread over them.
    OwnPrefix,
    /// Every watcher sees every write.
    Everything,
}

impl Way {
    pub fn name(self) -> &'static str {
        match self {
            Way::Direct => "direct",
            Way::Remote => "remote",
        }
    }
}

impl Load {
    pub fn name(self) -> &'static str {
        match self {
            Load::OwnPrefix => "each watcher its own prefix",
            Load::Everything => "each watcher everything",
        }
    }
}

struct Stand {
    _folder: TempDir,
    sqlite: Arc<SqliteStore>,
    way: Way,
    url: String,
    server: JoinHandle<()>,
}

impl Drop for Stand {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Stand {
    async fn new(settings: &Settings, way: Way) -> Stand {
        let folder = tempfile::tempdir_in(&settings.folder).expect("the folder is writable");
        let path = folder.path().join("store.db");
        let store = SqliteStore::open(path, Options::default()).expect("the store opens");
        let sqlite = Arc::new(store);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a loopback port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let app = router(sqlite.clone(), Arc::new(|_, _, _| Ok(())));
        let server = tokio::spawn(async move {
            use axum::serve::ListenerExt;
            let listener = listener.tap_io(|socket| {
                let _ = socket.set_nodelay(true);
            });
            axum::serve(listener, app).await.expect("serving goes on");
        });
        Stand { _folder: folder, sqlite, way, url, server }
    }

    /// A client; each remote one has connections of its own, as another host would.
    fn client(&self) -> Arc<dyn Store> {
        match self.way {
            Way::Direct => self.sqlite.clone(),
            Way::Remote => Arc::new(RemoteStore::new(self.url.clone(), "bench")),
        }
    }

    async fn watch(&self, prefix: String) -> Watch {
        let watch = self.client().watch(prefix, 1).await;
        watch.expect("the watch opens")
    }
}

/// A value that carries when its put began.
fn value(start: Instant) -> Vec<u8> {
    let mut value = vec![b'x'; VALUE_BYTES];
    value[..8].copy_from_slice(&(start.elapsed().as_micros() as u64).to_le_bytes());
    value
}

fn began_us(value: &[u8]) -> u64 {
    let head = value.first_chunk::<8>().copied().unwrap_or_default();
    u64::from_le_bytes(head)
}

pub async fn throughput(settings: &Settings, way: Way, load: Load) -> Throughput {
    let stand = Stand::new(settings, way).await;
    let start = Instant::now();
    let told = Arc::new(AtomicU64::new(0));
    let (late_sender, mut late_receiver) = mpsc::unbounded_channel();
    let mut watchers = Vec::new();
    for n in 0..settings.watchers {
        let prefix = match load {
            Load::OwnPrefix => format!("hosts/{n}/"),
            Load::Everything => String::new(),
        };
        let mut watch = stand.watch(prefix).await;
        let (told, late_sender) = (told.clone(), late_sender.clone());
        watchers.push(tokio::spawn(async move {
            let mut late = Vec::new();
            // Ends when the store closes.
            while let Ok(Some(batch)) = watch.next().await {
                let now = start.elapsed().as_micros() as u64;
                told.fetch_add(batch.events.len() as u64, Ordering::Relaxed);
                let values = batch.events.iter().filter_map(|event| event.value.as_deref());
                late.extend(values.map(|value| now.saturating_sub(began_us(value))));
            }
            let _ = late_sender.send(late);
        }));
    }
    drop(late_sender);

    let before = stand.sqlite.stats();
    let client = stand.client();
    let begin = Instant::now();
    let until = begin + Duration::from_secs(settings.seconds);
    let writers = (0..settings.writers).map(|writer| {
        let (store, watchers) = (client.clone(), settings.watchers);
        tokio::spawn(async move {
            let mut took_us = Vec::new();
            while Instant::now() < until {
                let n = took_us.len();
                let key = format!("hosts/{}/machines/{writer}-{}", (writer + n) % watchers, n % 50);
                let put = Instant::now();
                store.put(&key, value(start)).await.expect("put");
                took_us.push(put.elapsed().as_micros() as u64);
            }
            took_us
        })
    });
    let mut put = Vec::new();
    for writer in writers.collect::<Vec<_>>() {
        put.extend(writer.await.expect("no panic"));
    }
    let took = begin.elapsed();
    let commits = stand.sqlite.stats().commits - before.commits;
    let expected = match load {
        Load::OwnPrefix => put.len() as u64,
        Load::Everything => (put.len() * settings.watchers) as u64,
    };
    let patience = Instant::now() + Duration::from_secs(30);
    while told.load(Ordering::Relaxed) < expected && Instant::now() < patience {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let heard = told.load(Ordering::Relaxed);
    assert_eq!(heard, expected, "watchers missed events or were cut off");
    stand.sqlite.close().await;
    let mut late = Vec::new();
    while let Some(some) = late_receiver.recv().await {
        late.extend(some);
    }
    Throughput {
        name: format!("{}, {}", way.name(), load.name()),
        writes: put.len() as u64,
        commits,
        writes_per_s: put.len() as f64 / took.as_secs_f64(),
        put: Percentiles::of(put),
        put_start_to_watcher: Percentiles::of(late),
        told: expected,
    }
}

/// Paced puts, one after the other is due, each of which every watcher sees.
pub async fn lateness(settings: &Settings, way: Way) -> Lateness {
    let stand = Stand::new(settings, way).await;
    let start = Instant::now();
    let (heard_sender, mut heard) = mpsc::unbounded_channel();
    let mut watchers = Vec::new();
    for _ in 0..settings.watchers {
        let mut watch = stand.watch("late/".to_owned()).await;
        let heard_sender = heard_sender.clone();
        watchers.push(tokio::spawn(async move {
            while let Ok(Some(batch)) = watch.next().await {
                let now = start.elapsed().as_micros() as u64;
                for event in &batch.events {
                    let began = began_us(event.value.as_deref().unwrap_or_default());
                    let _ = heard_sender.send((event.mod_revision, began, now));
                }
            }
        }));
    }
    drop(heard_sender);

    let client = stand.client();
    let puts = settings.pace * settings.seconds;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / settings.pace as u32);
    let mut running = Vec::new();
    for n in 0..puts {
        ticks.tick().await;
        let store = client.clone();
        running.push(tokio::spawn(async move {
            let put = Instant::now();
            let key = format!("late/{}", n % 100);
            let reply = store.put(&key, value(start)).await.expect("put");
            let acknowledged = start.elapsed().as_micros() as u64;
            (reply.revision, acknowledged, put.elapsed().as_micros() as u64)
        }));
    }
    let mut acknowledged = std::collections::HashMap::new();
    let mut put = Vec::new();
    for task in running {
        let (revision, at, took) = task.await.expect("no panic");
        acknowledged.insert(revision, at);
        put.push(took);
    }
    let (mut from_start, mut from_ack) = (Vec::new(), Vec::new());
    for _ in 0..puts * settings.watchers as u64 {
        let told = tokio::time::timeout(Duration::from_secs(30), heard.recv()).await;
        let (revision, began, now) = told.expect("told in time").expect("watchers live");
        from_start.push(now.saturating_sub(began));
        // Watchers are often told before the writer has its answer in hand: that counts as 0.
        from_ack.push(now.saturating_sub(acknowledged[&revision]));
    }
    stand.sqlite.close().await;
    Lateness {
        name: format!("{}, lateness", way.name()),
        puts,
        put: Percentiles::of(put),
        put_start_to_each: Percentiles::of(from_start),
        put_ack_to_each: Percentiles::of(from_ack),
    }
}

/// The peer: SQLite alone, one thread, the same rows in commits of 256, with no callers and no watchers.
pub fn plain_sqlite(settings: &Settings) -> f64 {
    let folder = tempfile::tempdir_in(&settings.folder).expect("the folder is writable");
    let conn = rusqlite::Connection::open(folder.path().join("plain.db")).expect("opens");
    let set = |name: &str, value: &str| conn.pragma_update(None, name, value).expect("is set");
    set("journal_mode", "wal");
    set("synchronous", "full");
    conn.execute_batch(
        "create table log (id integer primary key, key text, value blob);
         create table current (key text primary key, id integer) without rowid;",
    )
    .expect("is created");
    let value = vec![b'x'; VALUE_BYTES];
    let begin = Instant::now();
    let until = Duration::from_secs(settings.seconds.min(2));
    let mut writes = 0;
    while begin.elapsed() < until {
        let txn = conn.unchecked_transaction().expect("begins");
        for _ in 0..256 {
            let key = format!("hosts/{}/machines/{}", writes % 100, writes % 12_800);
            txn.prepare_cached("insert into log (key, value) values (?1, ?2)")
                .and_then(|mut insert| insert.execute((&key, &value)))
                .expect("is inserted");
            let id = txn.last_insert_rowid();
            txn.prepare_cached("insert or replace into current (key, id) values (?1, ?2)")
                .and_then(|mut insert| insert.execute((&key, id)))
                .expect("is inserted");
            writes += 1;
        }
        txn.commit().expect("commits");
    }
    writes as f64 / begin.elapsed().as_secs_f64()
}
