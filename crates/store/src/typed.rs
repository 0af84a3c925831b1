//! Reads and writes of JSON values, and whole listings, on any store. It adds no semantics of its own.

use std::future::Future;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Store;
use crate::error::Error;
use crate::types::{Event, Op, Range, Row, Txn, TxnReply};

/// A listing that grows past this is refused: such a prefix must be cut finer.
pub const MAX_LISTING_ROWS: usize = 1_000_000;

/// A value and the revision that wrote it: what [`crate::Compare::unchanged`] wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    pub value: T,
    pub mod_revision: u64,
}

impl<T> Versioned<T> {
    pub fn new(value: T, mod_revision: u64) -> Versioned<T> {
        Versioned { value, mod_revision }
    }
}

/// All rows of a prefix at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    pub rows: Vec<Row>,
    pub revision: u64,
}

/// The operation that writes `value` as JSON.
pub fn put_json<T: Serialize + ?Sized>(key: impl Into<String>, value: &T) -> Result<Op, Error> {
    let key = key.into();
    match serde_json::to_vec(value) {
        Ok(value) => Ok(Op::put(key, value)),
        Err(source) => Err(Error::Json { key, source }),
    }
}

impl Row {
    pub fn json<T: DeserializeOwned>(&self) -> Result<Versioned<T>, Error> {
        decode(&self.key, &self.value).map(|value| Versioned::new(value, self.mod_revision))
    }
}

impl Event {
    /// `None`: the key was deleted.
    pub fn json<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        self.value.as_deref().map(|value| decode(&self.key, value)).transpose()
    }
}

fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(value).map_err(|source| Error::Json { key: key.to_owned(), source })
}

/// What most callers do, in one call each; on every `Store`, also `dyn Store`.
pub trait StoreExt: Store {
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Row>, Error>> + Send {
        let range = Range::exact(key);
        async move { Ok(self.range(range).await?.rows.pop()) }
    }

    fn get_json<T: DeserializeOwned>(
        &self,
        key: &str,
    ) -> impl Future<Output = Result<Option<Versioned<T>>, Error>> + Send {
        let row = self.get(key);
        async move { row.await?.map(|row| row.json()).transpose() }
    }

    /// Without a condition.
    fn put(&self, key: &str, value: impl Into<bytes::Bytes>) -> impl Future<Output = Result<TxnReply, Error>> + Send {
        self.txn(Txn::of([Op::put(key, value)]))
    }

    /// Every row under `prefix` at one revision, page after page.
    fn list(&self, prefix: &str) -> impl Future<Output = Result<Listing, Error>> + Send {
        let first = Range::prefix(prefix);
        async move {
            let mut reply = self.range(first.clone()).await?;
            let revision = reply.revision;
            let mut rows = std::mem::take(&mut reply.rows);
            while reply.more {
                let Some(last) = rows.last() else { break };
                let next = first.clone().at_revision(revision).after(&last.key);
                reply = self.range(next).await?;
                rows.append(&mut reply.rows);
                if rows.len() > MAX_LISTING_ROWS {
                    return Err(Error::TooLarge {
                        what: "the listing in rows".to_owned(),
                        size: rows.len() as u64,
                        limit: MAX_LISTING_ROWS as u64,
                    });
                }
            }
            Ok(Listing { rows, revision })
        }
    }
}

impl<S: Store + ?Sized> StoreExt for S {}
