//! Fleet state: ordered keys with revisions, compare-and-set transactions, and watches that miss nothing.
//!
//! [`Store`] is the contract. [`SqliteStore`] keeps it in one file; [`RemoteStore`] keeps it through another process
//! that serves [`router`]. Most readers want [`follow`], and most writers [`put_json`] with a [`Compare`].
//!
//! The store must not know what its keys mean, who the callers are (the role hands an authoriser in), or anything of
//! hosts and Machines.

mod backoff;
mod error;
mod follow;
mod http;
pub mod journal;
pub mod limits;
mod mirror;
mod remote;
mod sqlite;
mod typed;
mod types;
mod watch;
mod wire;

use std::future::Future;
use std::pin::Pin;

pub use error::Error;
pub use follow::{Follow, Heard, follow};
pub use http::{Authorize, Refused, router};
pub use mirror::{Mirror, Update};
pub use remote::RemoteStore;
pub use sqlite::{Options, SqliteStore, Stats};
pub use typed::{Listing, StoreExt, Versioned, put_json};
pub use types::{
    Compare, Event, Identity, KeyRange, Op, Range, RangeReply, Relation, Row, Txn, TxnReply, Verb, WatchBatch,
};
pub use watch::{PROGRESS_INTERVAL, Watch};

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One strictly serialisable store. Held as `Arc<dyn Store>`.
///
/// A revision is a transaction that changed something; they count up by one, and all changes of a transaction share
/// one. What was acknowledged is on disk, and is seen by every read that starts afterwards.
pub trait Store: Send + Sync {
    /// Rows in key order, all at one revision.
    fn range(&self, range: Range) -> BoxFuture<'_, Result<RangeReply, Error>>;

    /// All of a branch or nothing. See [`Error::outcome_unknown`] for what an error leaves behind.
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnReply, Error>>;

    /// Every change under `prefix` with a revision of at least `from_revision`, first those of the past.
    /// [`Error::Compacted`] if the past is gone.
    fn watch(&self, prefix: String, from_revision: u64) -> BoxFuture<'_, Result<Watch, Error>>;

    /// Forgets history: reads before `revision` and watches from `revision` or earlier end with
    /// [`Error::Compacted`] from now on. Rows that still stand are kept. Space is given back in small steps later.
    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<(), Error>>;

    fn identity(&self) -> BoxFuture<'_, Result<Identity, Error>>;
}
