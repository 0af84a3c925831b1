//! The wire protocol: paths, headers, errors as JSON, and lines of a watch. Both ends use it; neither's transport is
//! known here. Pure.
//!
//! Requests and replies are the types of `types.rs` as JSON. A watch is answered with NDJSON: each line a
//! [`WatchLine`], at least one a second. An error is [`Fault`], under its HTTP status or as a watch's last line.

use bytes::{Buf, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::types::WatchBatch;

pub(crate) const RANGE_PATH: &str = "/store/v1/range";
pub(crate) const TXN_PATH: &str = "/store/v1/txn";
pub(crate) const WATCH_PATH: &str = "/store/v1/watch";
pub(crate) const COMPACT_PATH: &str = "/store/v1/compact";
pub(crate) const IDENTITY_PATH: &str = "/store/v1/identity";

/// On a watch's answer: the generation of the store that feeds it.
pub(crate) const GENERATION_HEADER: &str = "godwit-store-generation";

/// A transaction's 1.5 MiB in base64, and its JSON.
pub(crate) const MAX_REQUEST_BYTES: usize = 4 * 1024 * 1024;
/// A page of a range: 4 MiB and one value, in base64, and its JSON.
pub(crate) const MAX_REPLY_BYTES: usize = 16 * 1024 * 1024;
/// A watch batch: 1 MiB and one transaction, in base64, and its JSON.
pub(crate) const MAX_LINE_BYTES: usize = 8 * 1024 * 1024;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WatchRequest {
    pub prefix: String,
    pub from_revision: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CompactRequest {
    pub revision: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WatchLine {
    Batch(WatchBatch),
    Error(Fault),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FaultBody {
    pub error: Fault,
}

/// [`Error`] as it travels. What the far side cannot act upon arrives as `Failed`, without its cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub(crate) enum Fault {
    InvalidKey { key: String, reason: String },
    InvalidRequest { reason: String },
    TooLarge { what: String, size: u64, limit: u64 },
    RepeatedKey { key: String },
    Compacted { at: u64 },
    FutureRevision { asked: u64, current: u64 },
    Lagged { at: u64 },
    Unauthenticated,
    Forbidden { reason: String },
    Busy { reason: String },
    Closed,
    Failed { reason: String },
}

impl Fault {
    pub(crate) fn status(&self) -> http::StatusCode {
        use http::StatusCode;
        match self {
            Fault::InvalidKey { .. } | Fault::InvalidRequest { .. } | Fault::RepeatedKey { .. } => {
                StatusCode::BAD_REQUEST
            }
            Fault::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Fault::Compacted { .. } => StatusCode::GONE,
            Fault::FutureRevision { .. } => StatusCode::CONFLICT,
            Fault::Unauthenticated => StatusCode::UNAUTHORIZED,
            Fault::Forbidden { .. } => StatusCode::FORBIDDEN,
            Fault::Lagged { .. } | Fault::Busy { .. } | Fault::Closed => StatusCode::SERVICE_UNAVAILABLE,
            Fault::Failed { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        match error {
            Error::InvalidKey { key, reason } => Fault::InvalidKey { key, reason },
            Error::InvalidRequest { reason } => Fault::InvalidRequest { reason },
            Error::TooLarge { what, size, limit } => Fault::TooLarge { what, size, limit },
            Error::RepeatedKey { key } => Fault::RepeatedKey { key },
            Error::Compacted { at } => Fault::Compacted { at },
            Error::FutureRevision { asked, current } => Fault::FutureRevision { asked, current },
            Error::Lagged { at } => Fault::Lagged { at },
            Error::Unauthenticated => Fault::Unauthenticated,
            Error::Forbidden { reason } => Fault::Forbidden { reason },
            Error::Busy { reason } => Fault::Busy { reason },
            Error::Closed => Fault::Closed,
            other => Fault::Failed { reason: other.to_string() },
        }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        match fault {
            Fault::InvalidKey { key, reason } => Error::InvalidKey { key, reason },
            Fault::InvalidRequest { reason } => Error::InvalidRequest { reason },
            Fault::TooLarge { what, size, limit } => Error::TooLarge { what, size, limit },
            Fault::RepeatedKey { key } => Error::RepeatedKey { key },
            Fault::Compacted { at } => Error::Compacted { at },
            Fault::FutureRevision { asked, current } => Error::FutureRevision { asked, current },
            Fault::Lagged { at } => Error::Lagged { at },
            Fault::Unauthenticated => Error::Unauthenticated,
            Fault::Forbidden { reason } => Error::Forbidden { reason },
            Fault::Busy { reason } => Error::Busy { reason },
            Fault::Closed => Error::Closed,
            Fault::Failed { reason } => Error::Remote { reason },
        }
    }
}

/// One JSON value as a line.
pub(crate) fn line(value: &WatchLine) -> Result<Bytes, serde_json::Error> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line.into())
}

/// Cuts a byte stream into lines of bounded length.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    buffer: BytesMut,
    /// So much of the buffer has no newline in it.
    searched: usize,
}

impl Lines {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let unsearched = &self.buffer[self.searched..];
        match unsearched.iter().position(|byte| *byte == b'\n') {
            Some(at) => {
                let line = self.buffer.split_to(self.searched + at).freeze();
                self.buffer.advance(1);
                self.searched = 0;
                Ok(Some(line))
            }
            None if self.buffer.len() > MAX_LINE_BYTES => {
                Err(Error::Protocol { reason: format!("a line is longer than {MAX_LINE_BYTES} bytes") })
            }
            None => {
                self.searched = self.buffer.len();
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for byte in b"one\ntwo\n\nlast" {
            lines.push(&[*byte]);
            while let Some(line) = lines.next().expect("short lines") {
                seen.push(line);
            }
        }
        assert_eq!(seen, ["one", "two", ""]);
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; MAX_LINE_BYTES]);
        assert!(lines.next().expect("at the bound").is_none());
        lines.push(b"x");
        assert!(lines.next().is_err());
    }

    #[test]
    fn an_error_keeps_its_meaning_across_the_wire() {
        let fault = Fault::from(Error::Compacted { at: 7 });
        let json = serde_json::to_string(&fault).expect("plain data");
        assert_eq!(json, r#"{"code":"compacted","at":7}"#);
        let back: Fault = serde_json::from_str(&json).expect("just written");
        assert!(Error::from(back).needs_listing());
    }
}
