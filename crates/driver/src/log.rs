//! The log files of a Machine: their names and their line format, for whoever writes or reads them.
//!
//! One line is `TIME STREAM FLAG TEXT\n`, as Kubernetes' container runtimes write it: RFC 3339 time in UTC,
//! `stdout`, `stderr` or `shim` (remarks of ours, such as lines lost to a full disk), `F` for a whole line or `P` for
//! a piece of one that goes on in the stream's next line.

use std::path::{Path, PathBuf};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The file being written; rotated ones end in `.1` (the newest of them), `.2` and so on.
pub const LOG_NAME: &str = "machine.log";
/// Longest text of one line; longer ones are cut into pieces.
pub const MAX_LINE_BYTES: usize = 16 << 10;
/// Bound on the rotated files that are looked for.
const MAX_FILES: u32 = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStream {
    Stdout,
    Stderr,
    Shim,
}

impl LogStream {
    pub fn name(self) -> &'static str {
        match self {
            LogStream::Stdout => "stdout",
            LogStream::Stderr => "stderr",
            LogStream::Shim => "shim",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct LogLine<'a> {
    pub time: OffsetDateTime,
    pub stream: LogStream,
    /// The text goes on in the next line of the same stream.
    pub partial: bool,
    /// Bytes as the Machine wrote them: they need not be UTF-8.
    pub text: &'a [u8],
}

/// A line whose time is left as it is written: for whoever passes lines on by the million.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RawLogLine<'a> {
    /// RFC 3339 in UTC, with as many digits as the moment needed.
    pub time: &'a str,
    pub stream: LogStream,
    pub partial: bool,
    pub text: &'a [u8],
}

/// Reads one line (without its newline); `None` when it is none of ours.
pub fn parse_log_line(line: &[u8]) -> Option<LogLine<'_>> {
    let RawLogLine { time, stream, partial, text } = split_log_line(line)?;
    Some(LogLine { time: OffsetDateTime::parse(time, &Rfc3339).ok()?, stream, partial, text })
}

/// The same without a look at the time, which only has to end in `Z`.
pub fn split_log_line(line: &[u8]) -> Option<RawLogLine<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok().filter(|time| time.ends_with('Z'))?;
    let stream = match parts.next()? {
        b"stdout" => LogStream::Stdout,
        b"stderr" => LogStream::Stderr,
        b"shim" => LogStream::Shim,
        _ => return None,
    };
    let partial = match parts.next()? {
        b"F" => false,
        b"P" => true,
        _ => return None,
    };
    Some(RawLogLine { time, stream, partial, text: parts.next()? })
}

/// Appends one line in the format.
pub fn push_log_line(out: &mut Vec<u8>, time: OffsetDateTime, stream: LogStream, partial: bool, text: &[u8]) {
    // Formatting a time of this era in UTC cannot fail; an empty stamp would only make the line unreadable.
    out.extend_from_slice(time.format(&Rfc3339).unwrap_or_default().as_bytes());
    out.push(b' ');
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(if partial { b" P " } else { b" F " });
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// The file that is written now, of the Machine whose folder is `dir`.
pub fn current_log(dir: &Path) -> PathBuf {
    dir.join("log").join(LOG_NAME)
}

/// The log files of the Machine whose folder is `dir`, oldest first.
pub fn log_files(dir: &Path) -> Vec<PathBuf> {
    let current = current_log(dir);
    let rotated = (1..MAX_FILES).map(|n| rotated_name(&current, n)).take_while(|path| path.exists());
    let mut files: Vec<PathBuf> = rotated.collect();
    files.reverse();
    if current.exists() {
        files.push(current);
    }
    files
}

/// The name that a file bears after `n` rotations.
pub fn rotated_name(current: &Path, n: u32) -> PathBuf {
    let mut name = current.as_os_str().to_owned();
    name.push(format!(".{n}"));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_bytes_and_all() {
        let now = OffsetDateTime::from_unix_timestamp_nanos(1_795_500_000_123_456_789).unwrap();
        let mut out = Vec::new();
        push_log_line(&mut out, now, LogStream::Stderr, true, b"two  words \xff");
        let line = parse_log_line(out.strip_suffix(b"\n").unwrap()).unwrap();
        assert_eq!(line, LogLine { time: now, stream: LogStream::Stderr, partial: true, text: b"two  words \xff" });
        assert!(parse_log_line(b"no line of ours").is_none());
    }
}
