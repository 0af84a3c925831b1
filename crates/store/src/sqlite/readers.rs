//! A small pool of read-only connections. Reads run on tokio's blocking threads, at most one a connection.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::Semaphore;

use crate::error::Error;

/// A read that finds no free connection for so long is refused.
const READER_WAIT: Duration = Duration::from_secs(5);

pub(super) struct Readers {
    idle: Mutex<Vec<Connection>>,
    free: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn open(path: &Path, count: usize) -> Result<Readers, Error> {
        let connections: Result<Vec<_>, _> = (0..count.max(1)).map(|_| super::schema::open_reader(path)).collect();
        let connections = connections?;
        Ok(Readers { free: Arc::new(Semaphore::new(connections.len())), idle: Mutex::new(connections) })
    }

    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Readers>,
        read: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let permit = tokio::time::timeout(READER_WAIT, self.free.clone().acquire_owned())
            .await
            .map_err(|_| Error::Busy { reason: "every reader is taken".to_owned() })?
            .map_err(|_| Error::Closed)?;
        let readers = self.clone();
        let work = move || {
            // A permit stands for a connection, unless a read panicked and took its own along.
            let conn = readers.take().ok_or(Error::Closed)?;
            let result = read(&conn);
            readers.put_back(conn);
            drop(permit);
            result
        };
        let joined = tokio::task::spawn_blocking(work).await;
        joined.unwrap_or(Err(Error::Closed))
    }

    fn take(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.pop()
    }

    fn put_back(&self, conn: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(conn);
    }
}
