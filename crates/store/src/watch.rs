//! `Watch`: the reader's end of a prefix, whichever backend feeds it.
//!
//! It must not know where batches come from: a backend hands in a stream.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};

use crate::error::Error;
use crate::types::WatchBatch;

/// A watch that has nothing to tell says so, with the store's revision, at least this often.
pub const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Changes under one prefix from one revision on: ordered, without a gap, without a repetition.
///
/// It ends with an error only: `Lagged` (the reader was too slow), `Compacted`, `Closed` or `Unavailable`. Whichever it
/// was, a new watch from the last batch's `revision + 1` goes on where this one stopped.
pub struct Watch {
    generation: Arc<str>,
    batches: Pin<Box<dyn Stream<Item = Result<WatchBatch, Error>> + Send>>,
    ended: bool,
}

impl Watch {
    pub fn new(
        generation: impl Into<Arc<str>>,
        batches: impl Stream<Item = Result<WatchBatch, Error>> + Send + 'static,
    ) -> Watch {
        Watch { generation: generation.into(), batches: Box::pin(batches), ended: false }
    }

    /// The generation of the store that feeds this watch. Revisions of another generation mean nothing here.
    pub fn generation(&self) -> &str {
        &self.generation
    }

    /// The next batch; `None` only after an error was returned. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Option<WatchBatch>, Error> {
        if self.ended {
            return Ok(None);
        }
        match self.batches.next().await {
            Some(Ok(batch)) => Ok(Some(batch)),
            Some(Err(error)) => {
                self.ended = true;
                Err(error)
            }
            None => {
                self.ended = true;
                Err(Error::Closed)
            }
        }
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("generation", &self.generation)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}
