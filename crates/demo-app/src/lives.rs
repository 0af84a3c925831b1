//! The count of copies of this program that ever ran at one time on the same volume. Every life (start of the program)
//! appends a slot of its own to a file in the volume and beats in it for as long as it runs; lives whose first and last
//! beats enclose a common moment ran at the same time. It sees what the volume sees: a copy that writes elsewhere shows
//! by the records that are missing here, which the log tells. Clocks of hosts must agree.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// A slot is written whole, as one page.
const SLOT_BYTES: usize = 4096;
/// Starts that are remembered; with more the program does not count any longer, and says so.
const LIVES_MAX: usize = 4096;
const BEAT_INTERVAL: Duration = Duration::from_millis(20);

/// One life, beating until it is ended.
pub struct Lives {
    path: std::path::PathBuf,
    beating: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Life {
    begin_us: u64,
    last_us: u64,
}

impl Lives {
    /// Begins a life in `folder`, if it is a volume: elsewhere nothing outlives the program, and nothing is counted.
    pub fn begin(folder: &Path) -> Self {
        let path = folder.join("lives");
        let beating = is_mount(folder).then(|| begin(&path)).transpose().unwrap_or_else(|error| {
            eprintln!("demo-app: lives are not counted: {error}");
            None
        });
        Self { path, beating }
    }

    /// The last beat. After it the program must do nothing.
    pub fn end(&mut self) {
        if let Some((stop, thread)) = self.beating.take() {
            stop.store(true, Ordering::Relaxed);
            // It only writes; a panic there has been told on standard error.
            let _ = thread.join();
        }
    }

    pub fn tell(&self) -> io::Result<Value> {
        if self.beating.is_none() {
            return Ok(json!({ "counted": false }));
        }
        let lives = parse(&std::fs::read(&self.path)?)?;
        Ok(json!({ "counted": true, "lives": lives.len(), "most_at_once": most_at_once(&lives) }))
    }
}

fn begin(path: &Path) -> io::Result<(Arc<AtomicBool>, JoinHandle<()>)> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let begin_us = now_us();
    // Appended, so that two that begin at the same moment have two slots.
    file.write_all(&slot(Life { begin_us, last_us: begin_us }))?;
    file.sync_all()?;
    let ours = own_slot(&file, begin_us)?;
    let writable = OpenOptions::new().write(true).open(path)?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let thread = std::thread::spawn(move || {
        loop {
            let last = stopped.load(Ordering::Relaxed);
            let beat = slot(Life { begin_us, last_us: now_us() });
            if let Err(error) = writable.write_all_at(&beat, (ours * SLOT_BYTES) as u64) {
                eprintln!("demo-app: no beat: {error}");
            }
            if last {
                return;
            }
            std::thread::sleep(BEAT_INTERVAL);
        }
    });
    Ok((stop, thread))
}

/// Where the slot went that was appended last with this beginning.
fn own_slot(file: &File, begin_us: u64) -> io::Result<usize> {
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, 0)?;
    let lives = parse(&bytes)?;
    if lives.len() > LIVES_MAX {
        return Err(io::Error::other(format!("there were more than {LIVES_MAX}")));
    }
    let found = lives.iter().rposition(|life| life.begin_us == begin_us);
    found.ok_or_else(|| io::Error::other("the slot that was just written is not there"))
}

fn is_mount(folder: &Path) -> bool {
    let device = |path: &Path| path.metadata().map(|metadata| metadata.dev()).ok();
    device(folder).is_some() && device(folder) != device(Path::new("/"))
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn slot(life: Life) -> Vec<u8> {
    let mut bytes = format!("{} {}\n", life.begin_us, life.last_us).into_bytes();
    bytes.resize(SLOT_BYTES, b' ');
    bytes
}

fn parse(bytes: &[u8]) -> io::Result<Vec<Life>> {
    let lives = bytes.chunks(SLOT_BYTES).enumerate().map(|(number, slot)| {
        let text = std::str::from_utf8(slot).ok();
        let mut words = text.into_iter().flat_map(str::split_whitespace).map(str::parse);
        match (words.next(), words.next(), words.next()) {
            (Some(Ok(begin_us)), Some(Ok(last_us)), None) => Ok(Life { begin_us, last_us }),
            _ => Err(io::Error::other(format!("slot {number} of the lives holds something else"))),
        }
    });
    lives.collect()
}

/// The most lives that any one moment lay in. One that ends in the moment in which another begins does not overlap it.
fn most_at_once(lives: &[Life]) -> usize {
    let at = |moment: u64| {
        lives.iter().filter(|life| life.begin_us == moment || (life.begin_us..life.last_us).contains(&moment)).count()
    };
    lives.iter().map(|life| at(life.begin_us)).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_that_share_a_moment_are_counted_together() {
        let check = |lives: &[(u64, u64)], most: usize| {
            let lives: Vec<Life> = lives.iter().map(|&(begin_us, last_us)| Life { begin_us, last_us }).collect();
            assert_eq!(most_at_once(&lives), most, "{lives:?}");
            let bytes: Vec<u8> = lives.iter().flat_map(|life| slot(*life)).collect();
            assert_eq!(parse(&bytes).unwrap(), lives);
        };
        check(&[], 0);
        check(&[(1, 5), (7, 9), (9, 12)], 1);
        check(&[(1, 8), (7, 9), (12, 13)], 2);
        check(&[(1, 100), (10, 20), (15, 16), (30, 40)], 3);
        check(&[(5, 5), (5, 9)], 2);
        assert!(parse(b"nonsense").is_err());
    }

    #[test]
    fn a_life_beats_until_its_end_and_the_next_one_sees_that_it_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lives");
        for lives in 1..=3 {
            let mut life = Lives { path: path.clone(), beating: Some(begin(&path).unwrap()) };
            assert_eq!(life.tell().unwrap(), json!({ "counted": true, "lives": lives, "most_at_once": 1 }));
            life.end();
        }
        let mut first = Lives { path: path.clone(), beating: Some(begin(&path).unwrap()) };
        let mut second = Lives { path: path.clone(), beating: Some(begin(&path).unwrap()) };
        first.end();
        assert_eq!(second.tell().unwrap()["most_at_once"], 2);
        second.end();
    }

    #[test]
    fn a_folder_that_is_no_volume_counts_nothing() {
        let folder = tempfile::tempdir_in("/").unwrap();
        let mut lives = Lives::begin(folder.path());
        assert_eq!(lives.tell().unwrap(), json!({ "counted": false }));
        lives.end();
    }
}
