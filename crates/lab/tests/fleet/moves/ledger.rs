//! A client that writes all the time and believes nothing: it keeps what was acknowledged, with number and checksum,
//! and every start of the app that it met. It must not know what is being done to the fleet meanwhile.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use godwit_lab::fleet::Fleet;
use godwit_lab::plain;

use crate::support::PATIENCE;

/// Between two writes: each is synced, and two cores carry the fleet as well.
const PAUSE: Duration = Duration::from_millis(25);
/// One look at who answers after so many writes.
const LOOK_EVERY: u64 = 4;

#[derive(Default)]
struct Seen {
    /// Number to checksum, as acknowledged.
    acknowledged: BTreeMap<u64, String>,
    /// The app's count of its starts to one start of it: two starts with one count saw the same past, so one of them
    /// ran beside the other.
    starts: BTreeMap<u64, String>,
    /// What cannot be true of one copy.
    contradictions: Vec<String>,
    failures: Vec<String>,
    longest_gap: Duration,
}

impl Seen {
    fn acknowledged(&mut self, number: u64, checksum: String) {
        match self.acknowledged.get(&number) {
            Some(before) if *before != checksum => {
                self.contradictions.push(format!("record {number} was acknowledged twice"))
            }
            _ => drop(self.acknowledged.insert(number, checksum)),
        }
    }

    fn met(&mut self, count: u64, start: String) {
        match self.starts.get(&count) {
            Some(before) if *before != start => {
                self.contradictions.push(format!("start {count} happened twice: {before} and {start}"))
            }
            _ => drop(self.starts.insert(count, start)),
        }
    }
}

/// Goes on writing until it is dropped.
pub struct Ledger {
    seen: Arc<Mutex<Seen>>,
    writing: tokio::task::JoinHandle<()>,
}

/// How it stands at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    pub acknowledged: usize,
    pub failed: usize,
    pub starts: usize,
    pub longest_gap: Duration,
}

impl Ledger {
    pub fn begin(fleet: &Fleet, app: &str) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let addr = fleet.dev().expect("dev.json").http_addr;
        let writing = tokio::spawn(write(addr, format!("{app}.localhost"), seen.clone()));
        Self { seen, writing }
    }

    fn seen<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn tally(&self) -> Tally {
        self.seen(|seen| Tally {
            acknowledged: seen.acknowledged.len(),
            failed: seen.failures.len(),
            starts: seen.starts.len(),
            longest_gap: seen.longest_gap,
        })
    }

    /// The longest gap counts from here on.
    pub fn forget_gap(&self) {
        self.seen(|seen| seen.longest_gap = Duration::ZERO);
    }

    pub fn failures_after(&self, count: usize) -> Vec<String> {
        self.seen(|seen| seen.failures[count.min(seen.failures.len())..].to_vec())
    }

    pub fn contradictions(&self) -> Vec<String> {
        self.seen(|seen| seen.contradictions.clone())
    }

    /// Number to checksum of all that has been acknowledged so far.
    pub fn acknowledged(&self) -> BTreeMap<u64, String> {
        self.seen(|seen| seen.acknowledged.clone())
    }
}

/// What of `wanted` does not stand in `log`, the app's file.
pub fn lost(wanted: &BTreeMap<u64, String>, log: &[u8]) -> Vec<String> {
    let mut stands = BTreeMap::new();
    for line in log.split(|byte| *byte == b'\n') {
        let mut fields = line.splitn(3, |byte| *byte == b' ').map(String::from_utf8_lossy);
        if let (Some(number), Some(checksum), Some(_)) = (fields.next(), fields.next(), fields.next())
            && let Ok(number) = number.parse::<u64>()
        {
            stands.insert(number, checksum.into_owned());
        }
    }
    let missing = wanted.iter().filter(|(number, checksum)| stands.get(number) != Some(checksum));
    missing.map(|(number, checksum)| format!("{number} {checksum}")).collect()
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.writing.abort();
    }
}

async fn write(addr: String, host: String, seen: Arc<Mutex<Seen>>) {
    let note = |change: &dyn Fn(&mut Seen)| change(&mut seen.lock().unwrap_or_else(PoisonError::into_inner));
    let mut last = Instant::now();
    for round in 0u64.. {
        let content = format!("write {round} of the ledger");
        let answer = plain::request(&addr, "POST", &host, "/log", &[], content.as_bytes(), PATIENCE).await;
        match answer {
            Ok(answer) if answer.status == 200 => {
                let told = answer.json();
                let number = told["number"].as_u64().unwrap_or_default();
                let checksum = told["sha256"].as_str().unwrap_or_default().to_owned();
                let gap = last.elapsed();
                last = Instant::now();
                note(&|seen| {
                    seen.acknowledged(number, checksum.clone());
                    seen.longest_gap = seen.longest_gap.max(gap);
                });
            }
            Ok(answer) => note(&|seen| seen.failures.push(format!("{} {}", answer.status, answer.text().trim()))),
            Err(error) => note(&|seen| seen.failures.push(error.to_string())),
        }
        if round % LOOK_EVERY == 0
            && let Ok(answer) = plain::get(&addr, &host, "/", PATIENCE).await
            && answer.status == 200
        {
            let told = answer.json();
            let start = format!("{} on {}", told["started_at"], told["host"]);
            note(&|seen| seen.met(told["boot_count"].as_u64().unwrap_or_default(), start.clone()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}
