//! From the Machine's stdout and stderr to its log files: lines, stamped, in files of bounded size and number.
//!
//! The app never waits for a full disk: what cannot be written is dropped and counted, and the count is written as
//! soon as something can be. The line format is the driver's (`push_log_line`).

use godwit_driver::{LOG_NAME, LogLimits, LogStream, MAX_LINE_BYTES, push_log_line, rotated_name};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use time::OffsetDateTime;

/// The bytes of one stream that do not make a line yet.
pub struct Lines {
    stream: LogStream,
    held: Vec<u8>,
}

impl Lines {
    pub fn new(stream: LogStream) -> Self {
        Self { stream, held: Vec::new() }
    }

    /// Appends what these bytes complete to `out`; answers how many lines that was.
    pub fn push(&mut self, mut bytes: &[u8], now: OffsetDateTime, out: &mut Vec<u8>) -> u64 {
        let mut lines = 0;
        while !bytes.is_empty() {
            let room = MAX_LINE_BYTES - self.held.len();
            let newline = bytes.iter().take(room + 1).position(|b| *b == b'\n');
            let (text, rest, whole) = match newline {
                Some(at) => (&bytes[..at], &bytes[at + 1..], true),
                None => (&bytes[..bytes.len().min(room)], &bytes[bytes.len().min(room)..], false),
            };
            self.held.extend_from_slice(text);
            // A full buffer is cut only once more bytes of the same line follow.
            if whole || (self.held.len() == MAX_LINE_BYTES && !rest.is_empty()) {
                push_log_line(out, now, self.stream, !whole, &self.held);
                self.held.clear();
                lines += 1;
            }
            bytes = rest;
        }
        lines
    }

    /// The stream has ended: what is held is the last line.
    pub fn finish(&mut self, now: OffsetDateTime, out: &mut Vec<u8>) -> u64 {
        if self.held.is_empty() {
            return 0;
        }
        push_log_line(out, now, self.stream, false, &self.held);
        self.held = Vec::new();
        1
    }
}

/// Kept of a log while its disk is nearly full: logs are in no ledger, and volumes need the room more.
const FILES_ON_A_FULL_DISK: u32 = 3;
/// A disk with less than one part in so many free is nearly full.
const FREE_PART: u64 = 20;

fn disk_is_nearly_full(path: &Path) -> bool {
    let folder = path.parent().unwrap_or(path);
    nix::sys::statvfs::statvfs(folder).is_ok_and(|disk| disk.blocks_available() < disk.blocks() / FREE_PART)
}

/// The files of one Machine.
pub struct LogFiles {
    path: PathBuf,
    limits: LogLimits,
    file: Option<File>,
    size: u64,
    dropped: u64,
    is_full: fn(&Path) -> bool,
}

impl LogFiles {
    /// Goes on where the last instance stopped.
    pub fn open(folder: &Path, limits: LogLimits) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let path = folder.join(LOG_NAME);
        let mut files = Self { path, limits, file: None, size: 0, dropped: 0, is_full: disk_is_nearly_full };
        files.reopen()?;
        Ok(files)
    }

    fn reopen(&mut self) -> io::Result<()> {
        let file = OpenOptions::new().append(true).create(true).open(&self.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Writes `lines` whole lines, or counts them as dropped.
    pub fn write(&mut self, bytes: &[u8], lines: u64) {
        if lines == 0 {
            return;
        }
        if self.dropped > 0 && !self.confess() {
            self.dropped += lines;
            return;
        }
        if self.append(bytes).is_err() {
            self.dropped += lines;
        }
    }

    fn confess(&mut self) -> bool {
        let mut line = Vec::new();
        let text = format!("{} lines were dropped: the log could not be written", self.dropped);
        push_log_line(&mut line, OffsetDateTime::now_utc(), LogStream::Shim, false, text.as_bytes());
        let written = self.append(&line).is_ok();
        if written {
            self.dropped = 0;
        }
        written
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + bytes.len() as u64 > self.limits.file_bytes {
            self.rotate()?;
        }
        if self.file.is_none() {
            self.reopen()?;
        }
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        if let Err(e) = file.write_all(bytes) {
            // Half a line would spoil the next one.
            let _ = file.set_len(self.size);
            return Err(e);
        }
        self.size += bytes.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        let files = match (self.is_full)(&self.path) {
            true => self.limits.files.min(FILES_ON_A_FULL_DISK),
            false => self.limits.files,
        };
        let kept = files.max(1) - 1;
        // Beyond what is kept now, because more was kept before.
        for path in (kept + 1..).map(|n| rotated_name(&self.path, n)).take_while(|path| path.exists()) {
            fs::remove_file(path)?;
        }
        match kept {
            0 => fs::remove_file(&self.path)?,
            _ => {
                for n in (1..kept).rev() {
                    let from = rotated_name(&self.path, n);
                    if from.exists() {
                        fs::rename(from, rotated_name(&self.path, n + 1))?;
                    }
                }
                fs::rename(&self.path, rotated_name(&self.path, 1))?;
            }
        }
        self.size = 0;
        self.reopen()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_driver::{log_files, parse_log_line};

    fn texts(bytes: &[u8]) -> Vec<(bool, usize)> {
        let lines = bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty());
        lines.map(|l| parse_log_line(l).unwrap()).map(|l| (l.partial, l.text.len())).collect()
    }

    #[test]
    fn long_lines_are_cut_and_flagged_wherever_the_reads_fall() {
        let input = [vec![b'a'; MAX_LINE_BYTES], b"\n".to_vec(), vec![b'b'; MAX_LINE_BYTES * 2 + 5], b"\nend".to_vec()];
        let input = input.concat();
        for step in [1, 7, 4096, MAX_LINE_BYTES, input.len()] {
            let (mut lines, mut out) = (Lines::new(LogStream::Stdout), Vec::new());
            let now = OffsetDateTime::UNIX_EPOCH;
            let counted: u64 = input.chunks(step).map(|c| lines.push(c, now, &mut out)).sum();
            let counted = counted + lines.finish(now, &mut out);
            let wanted =
                [(false, MAX_LINE_BYTES), (true, MAX_LINE_BYTES), (true, MAX_LINE_BYTES), (false, 5), (false, 3)];
            assert_eq!(texts(&out), wanted, "step {step}");
            assert_eq!(counted, 5);
        }
    }

    #[test]
    fn files_are_bounded_in_size_and_number_and_the_newest_lines_survive() {
        let folder = tempfile::tempdir().unwrap();
        let limits = LogLimits { file_bytes: 1000, files: 3 };
        let mut files = LogFiles::open(&folder.path().join("log"), limits).unwrap();
        for n in 0..200 {
            let mut line = Vec::new();
            let text = format!("line {n}");
            push_log_line(&mut line, OffsetDateTime::UNIX_EPOCH, LogStream::Stdout, false, text.as_bytes());
            files.write(&line, 1);
        }
        let found = log_files(folder.path());
        assert_eq!(found.len(), 3);
        let mut all = Vec::new();
        for file in &found {
            let bytes = fs::read(file).unwrap();
            assert!(bytes.len() <= 1000);
            all.extend(bytes);
        }
        let all = String::from_utf8(all).unwrap();
        let numbers: Vec<u32> = all.lines().map(|l| l.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert_eq!(numbers.last(), Some(&199));
        assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1), "a gap or a wrong order: {numbers:?}");
    }

    #[test]
    fn a_disk_that_is_nearly_full_keeps_the_newest_files_alone() {
        let folder = tempfile::tempdir().unwrap();
        let limits = LogLimits { file_bytes: 100, files: 9 };
        let mut files = LogFiles::open(&folder.path().join("log"), limits).unwrap();
        let mut fill = |is_full: fn(&Path) -> bool| {
            files.is_full = is_full;
            for _ in 0..9 {
                files.write(&[b'x'; 100], 1);
            }
            log_files(folder.path()).len()
        };
        assert_eq!((fill(|_| false), fill(|_| true), fill(|_| false)), (9, 3, 9));
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_confessed() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = LogFiles::open(folder.path(), LogLimits { file_bytes: 100_000, files: 2 }).unwrap();
        files.file = Some(File::open("/dev/null").unwrap());
        files.write(b"lost\n", 1);
        files.write(b"lost\nlost\n", 2);
        assert_eq!(files.dropped, 3);
        files.file = None;
        files.write(b"kept\n", 1);
        let text = fs::read_to_string(folder.path().join(LOG_NAME)).unwrap();
        assert!(text.contains("shim F 3 lines were dropped") && text.ends_with("kept\n"), "{text}");
    }
}
