//! The one error of this crate, and the two questions it answers: may the call be repeated, and whose fault was it?
//!
//! It must not know who called: roles turn it into their own statuses and log the chain once.

use std::error::Error as StdError;
use std::path::PathBuf;

/// What a store call can end in. `Display` names the failure, `source()` its cause.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("key {key:?} is not a store key: {reason}")]
    InvalidKey { key: String, reason: String },
    #[error("invalid request: {reason}")]
    InvalidRequest { reason: String },
    #[error("{what} is {size}, above the limit of {limit}")]
    TooLarge { what: String, size: u64, limit: u64 },
    #[error("key {key:?} is named twice in one branch of a transaction")]
    RepeatedKey { key: String },

    /// History up to and including `at` is gone: list again, then watch from there.
    #[error("history up to revision {at} has been compacted")]
    Compacted { at: u64 },
    /// The caller has seen a revision that this store never reached: it holds another store's history.
    #[error("revision {asked} lies in the future of this store, which is at {current}")]
    FutureRevision { asked: u64, current: u64 },
    /// The watcher read too slowly. Watching again from its last revision + 1 loses nothing.
    #[error("the watcher fell behind and was cut off at revision {at}")]
    Lagged { at: u64 },

    #[error("the store does not know the caller")]
    Unauthenticated,
    #[error("the caller may not do this: {reason}")]
    Forbidden { reason: String },

    /// Nothing was done.
    #[error("the store is busy: {reason}")]
    Busy { reason: String },
    /// A transaction may or may not have happened.
    #[error("no answer within {waited_ms} ms")]
    Timeout { waited_ms: u64 },
    /// The peer could not be reached, or went away. A transaction may or may not have happened.
    #[error("the store at {url} is unavailable: {reason}")]
    Unavailable { url: String, reason: String, source: Option<Box<dyn StdError + Send + Sync>> },
    #[error("the store's peer broke the protocol: {reason}")]
    Protocol { reason: String },
    /// The far store failed inside; its own log has the cause.
    #[error("the far store failed: {reason}")]
    Remote { reason: String },

    #[error("the store is closed")]
    Closed,
    /// The disk failed under a commit. Nothing more is written until the process starts again and recovers the log.
    #[error("the store stopped writing after a disk failure: {reason}")]
    Broken { reason: String },
    #[error("{} is open in another process or store", path.display())]
    InUse { path: PathBuf },
    #[error("{} is not a store of this version: {reason}", path.display())]
    Format { path: PathBuf, reason: String },
    #[error("the value of {key:?} is not the JSON that was expected")]
    Json { key: String, source: serde_json::Error },
    #[error("sqlite failed to {action}")]
    Sqlite { action: &'static str, source: rusqlite::Error },
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
}

impl Error {
    /// The same call may succeed later. After [`Error::outcome_unknown`], repeat a transaction only if its compares
    /// make that safe.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Lagged { .. }
            | Error::Busy { .. }
            | Error::Timeout { .. }
            | Error::Unavailable { .. }
            | Error::Remote { .. }
            | Error::Closed
            | Error::Broken { .. } => true,
            Error::Sqlite { source, .. } => is_passing(source),
            _ => false,
        }
    }

    /// The request itself was wrong; sending it again cannot help.
    pub fn is_callers_fault(&self) -> bool {
        matches!(
            self,
            Error::InvalidKey { .. }
                | Error::InvalidRequest { .. }
                | Error::TooLarge { .. }
                | Error::RepeatedKey { .. }
                | Error::Compacted { .. }
                | Error::FutureRevision { .. }
                | Error::Unauthenticated
                | Error::Forbidden { .. }
        )
    }

    /// A transaction that ended so may have been applied.
    pub fn outcome_unknown(&self) -> bool {
        matches!(
            self,
            Error::Timeout { .. }
                | Error::Unavailable { .. }
                | Error::Protocol { .. }
                | Error::Remote { .. }
                | Error::Closed
                | Error::Broken { .. }
        )
    }

    /// What was held is too old or from another history: only a new listing helps.
    pub fn needs_listing(&self) -> bool {
        matches!(self, Error::Compacted { .. } | Error::FutureRevision { .. })
    }

    pub(crate) fn invalid(reason: impl Into<String>) -> Error {
        Error::InvalidRequest { reason: reason.into() }
    }

    /// For `map_err`: says what was being done when SQLite failed.
    pub(crate) fn sqlite(action: &'static str) -> impl FnOnce(rusqlite::Error) -> Error {
        move |source| Error::Sqlite { action, source }
    }
}

/// Failures that leave the database sound and may pass: a full disk, a lock held by a backup.
pub(crate) fn is_passing(source: &rusqlite::Error) -> bool {
    matches!(
        source.sqlite_error_code(),
        Some(rusqlite::ErrorCode::DiskFull | rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked)
    )
}
