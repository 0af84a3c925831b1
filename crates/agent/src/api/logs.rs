//! A Machine's output: the last lines of its log, with the platform's remarks among them, and what is added, for as long
//! as the caller listens. Lines leave in the order in which they were written; no more than a piece of a file is in
//! memory. It must not hold a Machine up: a reader that is slower than the rotation loses lines, and is told so in their
//! place.

mod place;

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::unfold;

use godwit_api::event::MachineEvent;
use godwit_api::host::{LogLine, LogQuery, PLATFORM_STREAM};
use godwit_api::log::{Head, push_message};
use godwit_base::clock;
use godwit_base::http::Failure;
use godwit_driver::{LogStream, RawLogLine, split_log_line};
use memchr::memchr_iter;

use place::{Piece, Place, newest};

use super::remarks::{self, Remarks};
use super::{HostApi, Id};

const DEFAULT_TAIL: u64 = 100;
/// Digits behind a second's point: stamps of one width compare as texts.
const FRACTION_DIGITS: usize = 6;
/// Lines that are sent at once before a remark, which follows all that was written before it.
const BEFORE_REMARK_BYTES: usize = 256 << 10;

pub async fn logs(
    State(api): State<HostApi>,
    Id(machine): Id,
    Query(query): Query<LogQuery>,
) -> Result<Response, Failure> {
    api.held(&machine)?;
    let dir = api.effects.machine_dir(&machine);
    let wanted = query.tail.unwrap_or(DEFAULT_TAIL);
    let (place, lines) = Place::before_the_last(&dir, wanted).await;
    let mut remarks = Remarks::of(api.view.clone(), machine);
    let mut opening = Opening::new(&remarks.new_ones(), wanted, lines);
    opening.since = query.since;
    let follow = query.follow.unwrap_or(false);
    let reader = Reader { place, remarks, opening, until: Some(newest(&dir)), follow, telling: Telling::default() };
    let stream = unfold(reader, async |mut reader| {
        let lines = reader.next().await?;
        Some((Ok::<Bytes, Infallible>(lines), reader))
    });
    let stream = stream.take_until(api.stopping.clone().cancelled_owned());
    Ok(([("content-type", "application/x-ndjson")], Body::from_stream(Box::pin(stream))).into_response())
}

/// First what was there when it was asked; then, for who follows, what comes.
struct Reader {
    place: Place,
    remarks: Remarks,
    opening: Opening,
    /// Where the first part ends (inode and length); `None` behind it.
    until: Option<(u64, u64)>,
    follow: bool,
    telling: Telling,
}

impl Reader {
    /// The next lines, at least one.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        while out.is_empty() {
            match self.until {
                Some(end) => match self.place.more(Some(end)).await {
                    // A log that is read whole is as long as one that is followed.
                    Some(piece) if self.opening.is_over() => self.telling.piece(&piece, &mut out),
                    Some(piece) => values_of(&piece).for_each(|line| self.opening.take(line, &mut out)),
                    None => {
                        self.until = None;
                        self.opening.finish(&mut out);
                    }
                },
                None if self.follow => self.what_comes(&mut out).await,
                None => return None,
            }
        }
        Some(Bytes::from(out))
    }

    async fn what_comes(&mut self, out: &mut Vec<u8>) {
        let events = tokio::select! {
            biased;
            piece = self.place.more(None) => {
                piece.iter().for_each(|piece| self.telling.piece(piece, out));
                return;
            }
            events = self.remarks.more() => events,
        };
        while out.len() < BEFORE_REMARK_BYTES
            && let Some(piece) = self.place.now().await
        {
            self.telling.piece(&piece, out);
        }
        events.iter().map(remark).for_each(|line| push(&line, out));
    }
}

/// The last so many of lines and remarks together: lines in their own order, remarks among them by their times.
struct Opening {
    remarks: VecDeque<LogLine>,
    wanted: u64,
    /// Lines that are to come.
    lines: u64,
    /// Of the merged, how many are too many at the front; known with the first line.
    skip: Option<u64>,
    /// Nothing is shown before a line with this stamp or a higher one.
    since: Option<String>,
}

impl Opening {
    fn new(events: &[MachineEvent], wanted: u64, lines: u64) -> Self {
        Self { remarks: events.iter().map(remark).collect(), wanted, lines, skip: None, since: None }
    }

    fn take(&mut self, line: LogLine, out: &mut Vec<u8>) {
        if self.since.as_ref().is_some_and(|since| line.timestamp < *since) {
            self.lines = self.lines.saturating_sub(1);
            return;
        }
        if let Some(since) = self.since.take() {
            self.remarks.retain(|remark| remark.timestamp >= since);
        }
        if self.skip.is_none() {
            if self.lines >= self.wanted {
                // Older than the oldest line that is shown: among lines that are not.
                self.remarks.retain(|remark| remark.timestamp >= line.timestamp);
            }
            self.count();
        }
        while self.remarks.front().is_some_and(|remark| remark.timestamp < line.timestamp) {
            self.next_remark(out);
        }
        self.show(&line, out);
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        if self.skip.is_none() {
            self.lines = 0;
            self.count();
        }
        while !self.remarks.is_empty() {
            self.next_remark(out);
        }
    }

    /// No remark is to come, and no line too many.
    fn is_over(&self) -> bool {
        self.remarks.is_empty() && self.skip == Some(0)
    }

    fn count(&mut self) {
        self.skip = Some((self.lines + self.remarks.len() as u64).saturating_sub(self.wanted));
    }

    fn next_remark(&mut self, out: &mut Vec<u8>) {
        if let Some(remark) = self.remarks.pop_front() {
            self.show(&remark, out);
        }
    }

    fn show(&mut self, line: &LogLine, out: &mut Vec<u8>) {
        match &mut self.skip {
            Some(skip @ 1..) => *skip -= 1,
            _ => push(line, out),
        }
    }
}

/// Written lines as the host API tells them, from the files' form straight to the wire's.
#[derive(Default)]
struct Telling {
    /// What stands before the text of the last line, as in the file and as JSON: neighbours mostly share it.
    written: Vec<u8>,
    told: Vec<u8>,
    partial: bool,
}

impl Telling {
    fn piece(&mut self, piece: &Piece, out: &mut Vec<u8>) {
        match piece {
            Piece::Lines(written) => lines_in(written).for_each(|line| self.line(line, out)),
            Piece::Gap => push(&gap(), out),
        }
    }

    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        if self.written.is_empty() || !line.starts_with(&self.written) {
            let Some(split) = split_log_line(line) else { return };
            self.written = line[..line.len() - split.text.len()].to_vec();
            self.told = head(&split).json();
            self.partial = split.partial;
        }
        out.extend_from_slice(&self.told);
        push_message(&line[self.written.len()..], self.partial, out);
    }
}

/// Remarks of the holder's are the platform's.
fn head(line: &RawLogLine<'_>) -> Head {
    let stream = match line.stream {
        LogStream::Stdout | LogStream::Stderr => line.stream.name(),
        LogStream::Shim => PLATFORM_STREAM,
    };
    Head { timestamp: of_one_width(line.time), stream: stream.into() }
}

/// Without their ends; what follows the last end is none.
fn lines_in(written: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut start = 0;
    memchr_iter(b'\n', written).map(move |end| &written[std::mem::replace(&mut start, end + 1)..end])
}

/// As values, for the few that are shown first.
fn values_of(piece: &Piece) -> Box<dyn Iterator<Item = LogLine> + '_> {
    let written = match piece {
        Piece::Lines(written) => written,
        Piece::Gap => return Box::new(std::iter::once(gap())),
    };
    Box::new(lines_in(written).filter_map(split_log_line).map(|line| {
        let Head { timestamp, stream } = head(&line);
        LogLine { timestamp, stream, message: String::from_utf8_lossy(line.text).into_owned(), partial: line.partial }
    }))
}

fn gap() -> LogLine {
    LogLine {
        timestamp: of_one_width(&clock::rfc3339(clock::unix_ms())),
        stream: PLATFORM_STREAM.into(),
        message: "lines are missing here: the log was rotated before they were read".into(),
        partial: false,
    }
}

fn remark(event: &MachineEvent) -> LogLine {
    let line = remarks::line(event);
    LogLine { timestamp: of_one_width(&line.timestamp), ..line }
}

/// One JSON object a line.
fn push(line: &LogLine, out: &mut Vec<u8>) {
    // Plain data always becomes JSON.
    out.extend(serde_json::to_vec(line).unwrap_or_default());
    out.push(b'\n');
}

/// `…:05Z` and `…:05.1Z` become `…:05.000000Z` and `…:05.100000Z`.
fn of_one_width(time: &str) -> String {
    let time = time.trim_end_matches('Z');
    let (second, fraction) = time.split_once('.').unwrap_or((time, ""));
    let fraction = &fraction[..fraction.len().min(FRACTION_DIGITS)];
    format!("{second}.{fraction:0<FRACTION_DIGITS$}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(at_ms: u64, message: &str) -> LogLine {
        let timestamp = of_one_width(&clock::rfc3339(at_ms));
        LogLine { timestamp, stream: "stdout".into(), message: message.into(), partial: false }
    }

    fn event(timestamp: u64, kind: &str, status: &str) -> MachineEvent {
        MachineEvent {
            id: format!("{timestamp}"),
            kind: kind.into(),
            status: status.into(),
            source: "flyd".into(),
            timestamp,
            request: None,
        }
    }

    #[test]
    fn remarks_stand_where_they_belong_and_lines_keep_their_order() {
        let events = [event(5, "start", "started"), event(15, "stop", "stopping"), event(20, "stop", "stopped")];
        let told = |wanted: u64, lines: &[LogLine]| {
            let (mut out, mut opening) = (Vec::new(), Opening::new(&events, wanted, lines.len() as u64));
            lines.iter().for_each(|line| opening.take(line.clone(), &mut out));
            opening.finish(&mut out);
            let lines = out.split(|b| *b == b'\n').filter(|line| !line.is_empty());
            lines.map(|line| serde_json::from_slice::<LogLine>(line).unwrap().message).collect::<Vec<_>>()
        };
        // A clock that was set back in between changes no order of what was written.
        let lines = [line(10, "a"), line(9, "b"), line(20, "c")];
        assert_eq!(told(10, &lines), ["started", "a", "b", "stopping, as asked", "c", "stopped"]);
        assert_eq!(told(3, &lines), ["stopping, as asked", "c", "stopped"]);
        let since = |since: &LogLine| {
            let (mut out, mut opening) = (Vec::new(), Opening::new(&events, u64::MAX, 0));
            opening.since = Some(since.timestamp.clone());
            lines.iter().for_each(|line| opening.take(line.clone(), &mut out));
            opening.finish(&mut out);
            out.split(|b| *b == b'\n').filter(|line| !line.is_empty()).count()
        };
        // All lines behind the first with that stamp, also those of a clock that was set back; remarks of that time on.
        assert_eq!((since(&lines[0]), since(&line(11, "")), since(&line(99, ""))), (5, 3, 3));
        assert_eq!((told(2, &[]), told(0, &lines).len()), (vec!["stopping, as asked".into(), "stopped".into()], 0));
    }

    #[test]
    fn stamps_have_one_width_and_so_one_order() {
        assert_eq!(of_one_width("2026-01-01T00:00:05Z"), "2026-01-01T00:00:05.000000Z");
        assert_eq!(of_one_width("2026-01-01T00:00:05.1Z"), "2026-01-01T00:00:05.100000Z");
        assert_eq!(of_one_width("2026-01-01T00:00:05.123456789Z"), "2026-01-01T00:00:05.123456Z");
    }
}
