//! Where a reader of a Machine's log stands: in which of its files, and how far. It reads files that the Machine's holder
//! writes and rotates, a piece at a time, and knows no line's meaning.

use std::io::{self, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use godwit_driver::{current_log, log_files};

const POLL: Duration = Duration::from_millis(100);
const CHUNK_BYTES: usize = 256 << 10;
/// A piece without an end of line beyond this is given up as no line.
const MAX_LINE_BYTES: usize = 128 << 10;
/// Listings that a rotation may disturb before a reader waits a moment.
const LIST_ATTEMPTS: u32 = 3;

/// The end of what is there now: the newest file's inode and length.
pub fn newest(dir: &Path) -> (u64, u64) {
    let found = log_files(dir).pop().and_then(|path| std::fs::metadata(path).ok());
    found.map_or((0, 0), |found| (found.ino(), found.len()))
}

/// How far a reader has read.
pub struct Place {
    dir: PathBuf,
    /// Held open, so that what is written to it after it was rotated away is read too, and its inode stays its own.
    file: Option<File>,
    /// Bytes of the file that were read.
    offset: u64,
    /// A line whose end has not been written yet.
    rest: Vec<u8>,
}

/// What a reader is given.
pub enum Piece {
    /// Whole lines, with their ends.
    Lines(Vec<u8>),
    /// Lines were rotated away before they could be read.
    Gap,
}

enum Step {
    Piece(Piece),
    /// Bytes, but no end of a line yet.
    More,
    Nothing,
}

/// What a look at the files brings.
enum Found {
    Bytes(Vec<u8>),
    Nothing,
    /// The file at hand is read to its end, and whatever came after it has been rotated away.
    Gap,
}

impl Place {
    /// Before the last `count` lines over all files; and how many lines follow. All of them (`u64::MAX`) are not counted.
    pub async fn before_the_last(dir: &Path, count: u64) -> (Self, u64) {
        let mut place = Self { dir: dir.to_owned(), file: None, offset: 0, rest: Vec::new() };
        let mut wanted = count;
        // Newest file first, until there are enough.
        for path in log_files(dir).into_iter().rev() {
            let Ok((file, offset, found)) = start_of_last(&path, wanted).await else { continue };
            (place.file, place.offset) = (Some(file), offset);
            wanted = wanted.saturating_sub(found);
            if wanted == 0 {
                break;
            }
        }
        (place, count - wanted)
    }

    /// What comes next. Waits for it; or, with an end (inode and length), answers `None` there. May be dropped and
    /// called again: what was read is kept or was not taken.
    pub async fn more(&mut self, until: Option<(u64, u64)>) -> Option<Piece> {
        loop {
            if let Some((inode, length)) = until
                && self.offset >= length
                && self.inode().await.is_none_or(|at_hand| at_hand == inode)
            {
                return None;
            }
            match self.step().await {
                Step::Piece(piece) => return Some(piece),
                Step::More => {}
                Step::Nothing if until.is_some() => return None,
                Step::Nothing => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// What is there now, without waiting.
    pub async fn now(&mut self) -> Option<Piece> {
        loop {
            match self.step().await {
                Step::Piece(piece) => return Some(piece),
                Step::More => {}
                Step::Nothing => return None,
            }
        }
    }

    async fn step(&mut self) -> Step {
        // A file that cannot be read now (it is being rotated, or the Machine is gone) may be readable later.
        match self.look().await.unwrap_or(Found::Nothing) {
            Found::Bytes(bytes) => self.take(&bytes).map_or(Step::More, |lines| Step::Piece(Piece::Lines(lines))),
            Found::Gap => {
                self.rest.clear();
                Step::Piece(Piece::Gap)
            }
            Found::Nothing => Step::Nothing,
        }
    }

    /// The whole lines of what was read.
    fn take(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.rest.extend_from_slice(bytes);
        let end = self.rest.iter().rposition(|b| *b == b'\n');
        let lines = end.map(|end| self.rest.drain(..=end).collect());
        if self.rest.len() > MAX_LINE_BYTES {
            self.rest.clear();
        }
        lines
    }

    async fn inode(&self) -> Option<u64> {
        Some(self.file.as_ref()?.metadata().await.ok()?.ino())
    }

    /// New bytes: those of the file at hand, and when it is read to its end, of the one after it.
    async fn look(&mut self) -> io::Result<Found> {
        if let Some(bytes) = self.chunk().await? {
            return Ok(Found::Bytes(bytes));
        }
        let Some((next, gap)) = self.next().await? else { return Ok(Found::Nothing) };
        // Whoever rotates writes nothing to the old file afterwards, but may have since it was last read.
        if let Some(bytes) = self.chunk().await? {
            return Ok(Found::Bytes(bytes));
        }
        (self.file, self.offset) = (Some(next), 0);
        match gap {
            true => Ok(Found::Gap),
            false => Ok(self.chunk().await?.map_or(Found::Nothing, Found::Bytes)),
        }
    }

    async fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = &mut self.file else { return Ok(None) };
        let mut bytes = vec![0; CHUNK_BYTES];
        let read = file.read(&mut bytes).await?;
        bytes.truncate(read);
        self.offset += read as u64;
        Ok((read > 0).then_some(bytes))
    }

    /// The file that was begun after the one at hand; the oldest if that one is not there any more, and whether lines
    /// may lie between the two.
    async fn next(&self) -> io::Result<Option<(File, bool)>> {
        let at_hand = self.inode().await;
        // Mostly it is the one that is being written, and none is after it: the others need no look.
        let current = std::fs::metadata(current_log(&self.dir)).ok().map(|found| found.ino());
        if current.is_some() && current == at_hand {
            return Ok(None);
        }
        for _ in 0..LIST_ATTEMPTS {
            let files = listed(&self.dir);
            // Listed twice alike: no rotation went on in between.
            if files != listed(&self.dir) {
                continue;
            }
            let at = files.iter().position(|(_, inode)| Some(*inode) == at_hand);
            let Some((path, inode)) = files.get(at.map_or(0, |at| at + 1)) else { return Ok(None) };
            let file = File::open(path).await?;
            if file.metadata().await?.ino() == *inode {
                return Ok(Some((file, at_hand.is_some() && at.is_none())));
            }
        }
        Ok(None)
    }
}

/// A file at the start of its last `count` lines (or at its own start), that offset, and how many lines follow it (not
/// counted for `u64::MAX`, which is all).
async fn start_of_last(path: &Path, count: u64) -> io::Result<(File, u64, u64)> {
    let mut file = File::open(path).await?;
    let mut end = file.metadata().await?.len();
    let mut ends_seen = 0;
    let mut chunk = vec![0; CHUNK_BYTES];
    while end > 0 && count < u64::MAX {
        let start = end.saturating_sub(CHUNK_BYTES as u64);
        let piece = &mut chunk[..usize::try_from(end - start).unwrap_or(CHUNK_BYTES)];
        file.seek(SeekFrom::Start(start)).await?;
        file.read_exact(piece).await?;
        // The end of the line before the first that is wanted is the one too many.
        for at in (0..piece.len()).rev().filter(|at| piece[*at] == b'\n') {
            if ends_seen == count {
                let offset = start + at as u64 + 1;
                file.seek(SeekFrom::Start(offset)).await?;
                return Ok((file, offset, count));
            }
            ends_seen += 1;
        }
        end = start;
    }
    file.seek(SeekFrom::Start(0)).await?;
    Ok((file, 0, ends_seen))
}

/// Oldest first.
fn listed(dir: &Path) -> Vec<(PathBuf, u64)> {
    let files = log_files(dir).into_iter();
    files.filter_map(|path| Some((path.clone(), std::fs::metadata(&path).ok()?.ino()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_driver::{LOG_NAME, rotated_name, split_log_line};

    fn write(path: &Path, numbers: std::ops::Range<u32>) {
        let text: String = numbers.map(|n| format!("2026-01-01T00:00:00.{n}Z stdout F {n}\n")).collect();
        std::fs::write(path, text).unwrap();
    }

    fn numbers(piece: Option<Piece>) -> Vec<u32> {
        let Some(Piece::Lines(lines)) = piece else { panic!("no lines") };
        let lines = lines.split(|b| *b == b'\n').filter_map(split_log_line);
        lines.map(|line| std::str::from_utf8(line.text).unwrap().parse().unwrap()).collect()
    }

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        std::fs::create_dir(&log).unwrap();
        (folder, log.join(LOG_NAME))
    }

    #[tokio::test]
    async fn the_last_lines_are_the_last_over_all_files_whatever_their_number() {
        let (folder, current) = folder();
        assert_eq!(Place::before_the_last(folder.path(), 5).await.1, 0);
        write(&rotated_name(&current, 2), 0..5000);
        write(&rotated_name(&current, 1), 5000..7000);
        write(&current, 7000..9000);
        for count in [0, 1, 1999, 2000, 2001, 4000, 4001, 8999, 9000, 9001, u64::MAX] {
            let ((mut place, follow), until) =
                (Place::before_the_last(folder.path(), count).await, newest(folder.path()));
            let mut read = Vec::new();
            while let Some(piece) = place.more(Some(until)).await {
                read.extend(numbers(Some(piece)));
            }
            let first = 9000 - u32::try_from(count.min(9000)).unwrap();
            assert_eq!(read, (first..9000).collect::<Vec<u32>>(), "count {count}");
            let counted = if count == u64::MAX { 0 } else { read.len() as u64 };
            assert_eq!(follow, counted, "count {count}");
        }
    }

    #[tokio::test]
    async fn a_reader_that_was_overtaken_by_the_rotation_is_told_and_goes_on() {
        let (folder, current) = folder();
        write(&current, 0..3);
        let (mut place, _) = Place::before_the_last(folder.path(), u64::MAX).await;
        assert_eq!(numbers(place.more(None).await), [0, 1, 2]);
        // What lay between is gone.
        std::fs::remove_file(&current).unwrap();
        write(&current, 7..9);
        assert!(matches!(place.more(None).await, Some(Piece::Gap)));
        assert_eq!(numbers(place.more(None).await), [7, 8]);
        assert!(place.now().await.is_none());
    }
}
