//! A Machine's output: the last lines of its log files, and what is added to them, for as long as the caller listens.
//! It reads files that the Machine's holder writes and rotates; it must not hold a Machine up.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::unfold;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use godwit_api::host::{LogLine, LogQuery};
use godwit_base::clock;
use godwit_base::http::Failure;
use godwit_driver::{LOG_NAME, log_files, parse_log_line};

use super::{HostApi, Id};

const DEFAULT_TAIL: u64 = 100;
const MAX_TAIL: u64 = 10_000;
const POLL: Duration = Duration::from_millis(100);
const CHUNK_BYTES: usize = 64 << 10;
/// Bytes that are read back at most to find the last lines.
const MAX_TAIL_BYTES: u64 = 32 << 20;
/// A piece without an end of line beyond this is given up as no line.
const MAX_LINE_BYTES: usize = 128 << 10;

pub async fn logs(
    State(api): State<HostApi>,
    Id(machine): Id,
    Query(query): Query<LogQuery>,
) -> Result<Response, Failure> {
    api.held(&machine)?;
    let dir = api.effects.machine_dir(&machine);
    let count = usize::try_from(query.tail.unwrap_or(DEFAULT_TAIL).min(MAX_TAIL)).unwrap_or(usize::MAX);
    let (lines, mut place) = tail(&dir, count).await;
    let follow = query.follow.unwrap_or(false);
    let first = encode(lines.iter().map(Vec::as_slice));
    place.dir = dir;
    let stream = unfold((Some(first), place), move |(first, mut place)| async move {
        let bytes = match first {
            Some(bytes) => bytes,
            None if follow => place.more().await,
            None => return None,
        };
        Some((Ok::<Bytes, Infallible>(bytes), (None, place)))
    });
    Ok(([("content-type", "application/x-ndjson")], Body::from_stream(stream)).into_response())
}

/// Lines as the host API sends them, one JSON object each. Remarks of the holder's count as stderr.
fn encode<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Bytes {
    let mut out = Vec::new();
    for line in lines.filter_map(parse_log_line) {
        let unix_ms = u64::try_from(line.time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
        let shown = LogLine {
            timestamp: clock::rfc3339(unix_ms),
            stream: if line.stream.name() == "stdout" { "stdout".into() } else { "stderr".into() },
            message: String::from_utf8_lossy(line.text).into_owned(),
            partial: line.partial,
        };
        // Plain data always becomes JSON.
        out.extend(serde_json::to_vec(&shown).unwrap_or_default());
        out.push(b'\n');
    }
    Bytes::from(out)
}

/// The last `count` lines over all files, and where to go on.
async fn tail(dir: &Path, count: usize) -> (Vec<Vec<u8>>, Place) {
    let mut lines: VecDeque<Vec<u8>> = VecDeque::new();
    let mut place = Place::default();
    let mut budget = MAX_TAIL_BYTES;
    // Newest file first, until there are enough.
    for (index, path) in log_files(dir).into_iter().rev().enumerate() {
        let Ok((bytes, inode, end)) = read_back(&path, budget).await else { continue };
        if index == 0 && path.ends_with(LOG_NAME) {
            let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            place.inode = Some(inode);
            place.offset = end - (bytes.len() - whole) as u64;
        }
        budget = budget.saturating_sub(bytes.len() as u64);
        let whole = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        for line in whole.collect::<Vec<_>>().into_iter().rev() {
            if lines.len() < count {
                lines.push_front(line.to_vec());
            }
        }
        if lines.len() >= count || budget == 0 {
            break;
        }
    }
    (lines.into(), place)
}

/// At most the last `budget` bytes of a file, its inode and its length.
async fn read_back(path: &Path, budget: u64) -> io::Result<(Vec<u8>, u64, u64)> {
    let mut file = File::open(path).await?;
    let meta = file.metadata().await?;
    let from = meta.len().saturating_sub(budget);
    file.seek(SeekFrom::Start(from)).await?;
    let mut bytes = Vec::new();
    file.take(budget).read_to_end(&mut bytes).await?;
    Ok((bytes.clone(), meta.ino(), from + bytes.len() as u64))
}

/// How far a follower has read.
#[derive(Default)]
struct Place {
    dir: PathBuf,
    inode: Option<u64>,
    offset: u64,
    /// A line whose end has not been written yet.
    rest: Vec<u8>,
}

impl Place {
    /// What was added since, at least one line; waits for it.
    async fn more(&mut self) -> Bytes {
        loop {
            // A file that cannot be read now (it is being rotated, or the Machine is gone) may be readable later.
            let bytes = self.read().await.unwrap_or_default();
            self.rest.extend(bytes);
            if let Some(end) = self.rest.iter().rposition(|b| *b == b'\n') {
                let lines: Vec<u8> = self.rest.drain(..=end).collect();
                let encoded = encode(lines.split(|b| *b == b'\n').filter(|line| !line.is_empty()));
                if !encoded.is_empty() {
                    return encoded;
                }
            } else if self.rest.len() > MAX_LINE_BYTES {
                self.rest.clear();
            } else {
                tokio::time::sleep(POLL).await;
            }
        }
    }

    /// New bytes: first the rest of a file that was rotated away, then the present one from its beginning.
    async fn read(&mut self) -> io::Result<Vec<u8>> {
        let files = log_files(&self.dir);
        let mut at = None;
        for (index, path) in files.iter().enumerate() {
            if self.inode.is_some() && std::fs::metadata(path).map(|meta| meta.ino()).ok() == self.inode {
                at = Some(index);
            }
        }
        let Some(mut index) = at.or_else(|| files.len().checked_sub(1)) else { return Ok(Vec::new()) };
        if at.is_none() {
            self.offset = 0;
        }
        loop {
            let mut file = File::open(&files[index]).await?;
            self.inode = Some(file.metadata().await?.ino());
            file.seek(SeekFrom::Start(self.offset)).await?;
            let mut bytes = vec![0; CHUNK_BYTES];
            let read = file.read(&mut bytes).await?;
            bytes.truncate(read);
            self.offset += read as u64;
            if read > 0 || index + 1 == files.len() {
                return Ok(bytes);
            }
            (index, self.offset) = (index + 1, 0);
        }
    }
}
