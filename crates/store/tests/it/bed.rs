//! What a test stands on: a store in a temporary folder, used directly or through a server on a loopback port.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use godwit_store::{Authorize, Error, Event, Options, RemoteStore, SqliteStore, Store, Watch, WatchBatch, router};
use tempfile::TempDir;

/// Any wait for something that must happen; long, because the machine may be busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Bed {
    pub dir: TempDir,
    pub sqlite: Arc<SqliteStore>,
    /// What the test uses: `sqlite` itself, or the way to it over a socket.
    pub store: Arc<dyn Store>,
    server: Option<Server>,
}

pub struct Server(tokio::task::JoinHandle<()>);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Bed {
    pub fn direct() -> Bed {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let sqlite = open(dir.path().join("store.db"));
        let store = sqlite.clone();
        Bed { dir, sqlite, store, server: None }
    }

    pub async fn remote() -> Bed {
        Bed::authorized(Arc::new(|_, _, _| Ok(()))).await
    }

    pub async fn authorized(authorize: Authorize) -> Bed {
        let mut bed = Bed::direct();
        let (server, url) = serve(bed.sqlite.clone(), authorize).await;
        bed.store = Arc::new(RemoteStore::new(url, "a-token"));
        bed.server = Some(server);
        bed
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("store.db")
    }

    /// Log rows on disk: what compaction is there to remove.
    pub fn log_rows(&self) -> u64 {
        let conn = rusqlite::Connection::open(self.path()).expect("the database opens");
        let count = conn.query_row("select count(*) from log", [], |row| row.get::<_, i64>(0));
        count.expect("the log can be counted") as u64
    }
}

pub fn open(path: PathBuf) -> Arc<SqliteStore> {
    Arc::new(SqliteStore::open(path, Options::default()).expect("the store opens"))
}

pub async fn serve(store: Arc<SqliteStore>, authorize: Authorize) -> (Server, String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0");
    let listener = listener.await.expect("a loopback port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let app = router(store, authorize);
    let task = tokio::spawn(async move {
        axum::serve(listener, app).await.expect("serving goes on");
    });
    (Server(task), url)
}

pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(value) => value,
        Err(_) => panic!("did not happen in {PATIENCE:?}: {what}"),
    }
}

/// Polls until `condition` holds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    within(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

pub async fn next(watch: &mut Watch) -> Result<WatchBatch, Error> {
    let batch = within("a batch", watch.next()).await?;
    Ok(batch.expect("a watch ends with an error first"))
}

/// Reads on until the watch has told everything up to `revision`, and checks that revisions only rise.
pub async fn read_to(watch: &mut Watch, revision: u64) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    loop {
        let batch = next(watch).await.expect("the watch goes on");
        for event in &batch.events {
            let last = events.last().map_or(0, |event| event.mod_revision);
            assert!(event.mod_revision >= last, "out of order: {event:?}");
            assert!(event.mod_revision <= batch.revision);
        }
        events.extend(batch.events);
        if batch.revision >= revision {
            return events;
        }
    }
}

/// The events' keys in short: `+key` was put, `-key` deleted.
pub fn brief(events: &[Event]) -> Vec<String> {
    let sign = |event: &Event| if event.value.is_some() { '+' } else { '-' };
    events.iter().map(|event| format!("{}{}", sign(event), event.key)).collect()
}
