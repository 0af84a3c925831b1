//! The stream behind a SQLite watch: history from the log until it meets the live queue, then the queue.
//!
//! Invariant: everything up to `told` has been yielded, and what comes next is above it. History may run ahead of what
//! the hub has published, so live events at or below `told` are skipped.

use std::pin::pin;
use std::sync::Arc;

use futures_util::Stream;
use futures_util::stream::try_unfold;
use tokio::time::{Instant, timeout_at};

use super::hub::{Hub, Subscription};
use super::read;
use super::readers::Readers;
use crate::error::Error;
use crate::types::WatchBatch;
use crate::watch::PROGRESS_INTERVAL;

/// A history reader that is so near to the head joins the live queue; what it still lacks is read beside it.
const JOIN_WITHIN_REVISIONS: u64 = 1024;

struct Feed {
    prefix: String,
    hub: Arc<Hub>,
    readers: Arc<Readers>,
    told: u64,
    /// Read already, to be yielded first.
    ready: Option<WatchBatch>,
    /// The live queue, and the revision above which it has everything.
    live: Option<(Subscription, u64)>,
}

/// Opens a watch. Reads the first piece of history, so that a wrong `from_revision` fails here.
pub(super) async fn open(
    hub: Arc<Hub>,
    readers: Arc<Readers>,
    prefix: String,
    from_revision: u64,
) -> Result<impl Stream<Item = Result<WatchBatch, Error>> + Send + 'static, Error> {
    let mut feed = Feed { prefix, hub, readers, told: from_revision.saturating_sub(1), ready: None, live: None };
    feed.read_history().await?;
    Ok(try_unfold(feed, |mut feed| async move {
        let batch = feed.next().await?;
        Ok(Some((batch, feed)))
    }))
}

impl Feed {
    async fn next(&mut self) -> Result<WatchBatch, Error> {
        loop {
            if let Some(batch) = self.ready.take() {
                return Ok(batch);
            }
            match &self.live {
                Some((_, from)) if *from <= self.told => return self.next_live().await,
                _ => self.read_history().await?,
            }
        }
    }

    /// Reads on from `told`, and joins the live queue when the head is near.
    async fn read_history(&mut self) -> Result<(), Error> {
        let from = self.told + 1;
        if self.live.is_none() && from + JOIN_WITHIN_REVISIONS > self.hub.published() {
            // Before the reading: whatever commits after it is in the queue.
            self.live = Some(self.hub.subscribe(&self.prefix));
        }
        let prefix = self.prefix.clone();
        let history = self.readers.run(move |conn| read::history(conn, &prefix, from)).await?;
        self.told = history.batch.revision;
        let caught_up = self.told == history.store_revision;
        // A reader far behind hears how far it has come; one at the head hears that soon enough from the queue.
        if !history.batch.events.is_empty() || !caught_up {
            self.ready = Some(history.batch);
        }
        Ok(())
    }

    async fn next_live(&mut self) -> Result<WatchBatch, Error> {
        let Some((live, _)) = &self.live else {
            return Err(Error::Closed);
        };
        let deadline = Instant::now() + PROGRESS_INTERVAL;
        let mut due = false;
        loop {
            let mut changed = pin!(live.changed());
            // Read before the queue is: a queue found empty after it held nothing up to here.
            let published = live.hub().published();
            while let Some(batch) = live.pop()? {
                if let Some(batch) = above(batch, self.told) {
                    self.told = batch.revision;
                    return Ok(batch);
                }
            }
            if due {
                self.told = self.told.max(published);
                return Ok(WatchBatch { revision: self.told, events: Vec::new() });
            }
            due = timeout_at(deadline, changed.as_mut()).await.is_err();
        }
    }
}

/// What of a batch is above `told`.
fn above(batch: Arc<WatchBatch>, told: u64) -> Option<WatchBatch> {
    if batch.revision <= told {
        return None;
    }
    let mut batch = Arc::unwrap_or_clone(batch);
    batch.events.retain(|event| event.mod_revision > told);
    (!batch.events.is_empty()).then_some(batch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Event;

    #[test]
    fn what_history_has_told_is_not_told_again() {
        let event = |mod_revision| Event { key: "a".to_owned(), value: None, mod_revision };
        let batch = Arc::new(WatchBatch { revision: 5, events: vec![event(3), event(4), event(4), event(5)] });
        assert_eq!(above(batch.clone(), 2).as_ref(), Some(&*batch));
        let rest = above(batch.clone(), 4).expect("one is new");
        assert_eq!((rest.revision, rest.events), (5, vec![event(5)]));
        assert_eq!(above(batch, 5), None);
    }
}
