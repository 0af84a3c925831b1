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
use futures_util::StreamExt;
use futures_util::stream::unfold;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use godwit_api::host::{LogLine, LogQuery, PLATFORM_STREAM};
use godwit_base::clock;
use godwit_base::http::Failure;
use godwit_driver::{LogStream, log_files, parse_log_line};

use super::remarks::{self, Remarks};
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
    let (lines, place) = tail(&dir, count).await;
    let follow = query.follow.unwrap_or(false);
    let mut remarks = Remarks::of(api.view.clone(), machine);
    let lines = lines.iter().filter_map(|line| read(line)).collect();
    let merged = remarks::merge(lines, &remarks.new_ones());
    let first = encode(merged.iter().skip(merged.len().saturating_sub(count)));
    let stream = unfold((Some(first), place, remarks), move |(first, mut place, mut remarks)| async move {
        let bytes = match first {
            Some(bytes) => bytes,
            None if follow => next(&mut place, &mut remarks).await,
            None => return None,
        };
        Some((Ok::<Bytes, Infallible>(bytes), (None, place, remarks)))
    });
    let stream = stream.take_until(api.stopping.clone().cancelled_owned());
    Ok(([("content-type", "application/x-ndjson")], Body::from_stream(stream)).into_response())
}

/// What is new: lines as they are written, and remarks after all that was written before them.
async fn next(place: &mut Place, remarks: &mut Remarks) -> Bytes {
    // Whichever is cut off has taken nothing yet: a read that is under way stays in the file's own buffer.
    let events = tokio::select! {
        biased;
        lines = place.more() => return lines,
        events = remarks.more() => events,
    };
    let mut bytes = place.rest_now().await.to_vec();
    bytes.extend(encode(events.iter().map(remarks::line).collect::<Vec<_>>().iter()));
    Bytes::from(bytes)
}

/// A line as the host API tells it, with its Unix milliseconds. Remarks of the holder's are the platform's.
fn read(line: &[u8]) -> Option<(u64, LogLine)> {
    let line = parse_log_line(line)?;
    let unix_ms = u64::try_from(line.time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
    let stream = match line.stream {
        LogStream::Stdout | LogStream::Stderr => line.stream.name(),
        LogStream::Shim => PLATFORM_STREAM,
    };
    let message = String::from_utf8_lossy(line.text).into_owned();
    let shown = LogLine { timestamp: clock::rfc3339(unix_ms), stream: stream.into(), message, partial: line.partial };
    Some((unix_ms, shown))
}

/// One JSON object a line.
fn encode<'a>(lines: impl Iterator<Item = &'a LogLine>) -> Bytes {
    let mut out = Vec::new();
    for line in lines {
        // Plain data always becomes JSON.
        out.extend(serde_json::to_vec(line).unwrap_or_default());
        out.push(b'\n');
    }
    Bytes::from(out)
}

fn encode_written(bytes: &[u8]) -> Bytes {
    let lines: Vec<LogLine> = bytes.split(|b| *b == b'\n').filter_map(read).map(|(_, line)| line).collect();
    encode(lines.iter())
}

/// The last `count` lines over all files, and where to go on.
async fn tail(dir: &Path, count: usize) -> (Vec<Vec<u8>>, Place) {
    let mut lines: VecDeque<Vec<u8>> = VecDeque::new();
    let mut place = Place { dir: dir.to_owned(), file: None, rest: Vec::new() };
    let mut budget = MAX_TAIL_BYTES;
    // Newest file first, until there are enough.
    for path in log_files(dir).into_iter().rev() {
        let Ok((file, bytes)) = read_back(&path, budget).await else { continue };
        budget = budget.saturating_sub(bytes.len() as u64);
        let mut whole: Vec<&[u8]> = bytes.split(|b| *b == b'\n').collect();
        let open_line = whole.pop().unwrap_or_default();
        if place.file.is_none() {
            place.rest = open_line.to_vec();
            place.file = Some(file);
        }
        for line in whole.into_iter().rev().filter(|line| !line.is_empty()) {
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

/// At most the last `budget` bytes of a file, which stands at its end then.
async fn read_back(path: &Path, budget: u64) -> io::Result<(File, Vec<u8>)> {
    let mut file = File::open(path).await?;
    let len = file.metadata().await?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(budget))).await?;
    let mut bytes = Vec::new();
    (&mut file).take(budget).read_to_end(&mut bytes).await?;
    Ok((file, bytes))
}

/// How far a follower has read.
struct Place {
    dir: PathBuf,
    /// Held open, so that what is written to it after it was rotated away is read too, and its inode stays its own.
    file: Option<File>,
    /// A line whose end has not been written yet.
    rest: Vec<u8>,
}

impl Place {
    /// What was added since, as far as it is there now and bounded by one answer's bytes; it may be nothing.
    async fn rest_now(&mut self) -> Bytes {
        while self.rest.len() < CHUNK_BYTES * 4 {
            let bytes = self.read().await.unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            self.rest.extend(bytes);
        }
        self.take_lines()
    }

    /// The whole lines of what was read.
    fn take_lines(&mut self) -> Bytes {
        let Some(end) = self.rest.iter().rposition(|b| *b == b'\n') else { return Bytes::new() };
        let lines: Vec<u8> = self.rest.drain(..=end).collect();
        encode_written(&lines)
    }

    /// What was added since, at least one line; waits for it.
    async fn more(&mut self) -> Bytes {
        loop {
            // A file that cannot be read now (it is being rotated, or the Machine is gone) may be readable later.
            let bytes = self.read().await.unwrap_or_default();
            let nothing = bytes.is_empty();
            self.rest.extend(bytes);
            let encoded = self.take_lines();
            if !encoded.is_empty() {
                return encoded;
            }
            if self.rest.len() > MAX_LINE_BYTES {
                self.rest.clear();
            }
            if nothing {
                tokio::time::sleep(POLL).await;
            }
        }
    }

    /// New bytes: those of the file at hand, and when it is read to its end, of the one after it.
    async fn read(&mut self) -> io::Result<Vec<u8>> {
        if let Some(file) = &mut self.file {
            let bytes = chunk(file).await?;
            if !bytes.is_empty() {
                return Ok(bytes);
            }
        }
        let Some(next) = self.next().await? else { return Ok(Vec::new()) };
        // Whoever rotates writes nothing to the old file afterwards, but may have since it was last read.
        let rest = match &mut self.file {
            Some(file) => chunk(file).await?,
            None => Vec::new(),
        };
        if rest.is_empty() {
            self.file = Some(next);
        }
        Ok(rest)
    }

    /// The file that was begun after the one at hand; the oldest if that one is not there any more.
    async fn next(&self) -> io::Result<Option<File>> {
        let files = listed(&self.dir);
        // Listed twice alike: no rotation went on in between.
        if files != listed(&self.dir) {
            return Ok(None);
        }
        let at_hand = match &self.file {
            Some(file) => Some(file.metadata().await?.ino()),
            None => None,
        };
        let at = files.iter().position(|(_, inode)| Some(*inode) == at_hand);
        let Some((path, inode)) = files.get(at.map_or(0, |at| at + 1)) else { return Ok(None) };
        let file = File::open(path).await?;
        Ok((file.metadata().await?.ino() == *inode).then_some(file))
    }
}

async fn chunk(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; CHUNK_BYTES];
    let read = file.read(&mut bytes).await?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Oldest first.
fn listed(dir: &Path) -> Vec<(PathBuf, u64)> {
    let files = log_files(dir).into_iter();
    files.filter_map(|path| Some((path.clone(), std::fs::metadata(&path).ok()?.ino()))).collect()
}
