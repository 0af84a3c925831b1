//! What a worker does next, purely: a block that a guest waits for, then what lies around it, then the background
//! copy, in that order. It owns the queues and the phases of hydration; it must not know threads, clocks or files.
//!
//! ```text
//! Scan (holes of the source become present) ─► Check (what the local file holds already, by its hashes) ─► Copy
//!   ─► Verify (local bytes against the source's hashes) ─► Finish ─► Done
//! ```
//!
//! Demand is served in every phase. Nothing is ever queued twice: a block is queued, or in flight, or neither.

use std::collections::{HashSet, VecDeque};

use crate::map::{GROUP_BLOCKS, LiveMap};

/// Groups around demanded blocks that are remembered; the oldest is dropped, the copier comes by anyway.
const MAX_AHEAD: usize = 64;
/// Blocks of one scan job: 1 GiB of extents in one question.
pub const SCAN_BLOCKS: u64 = 16 * 1024;
/// Blocks of one check job: 16 MiB, whose hashes are 8 KiB of answer.
pub const CHECK_BLOCKS: u64 = 256;
/// Blocks of one verify job: 4 MiB, so that a demand is never far behind one.
pub const VERIFY_BLOCKS: u64 = 64;

/// Blocks next to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub first: u64,
    pub count: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Read from the source; `demand` if a guest waits for it.
    Fetch {
        run: Run,
        demand: bool,
    },
    Scan(Run),
    /// Compare absent blocks whose bytes may stand in the local file already.
    Check(Run),
    Verify(Run),
    /// All is fetched and verified: make that durable.
    Finish,
}

/// In this order, but that a block found missing leads back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Scan,
    Check,
    Copy,
    Verify,
    Done,
}

/// What a worker may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// Only what a guest waits for.
    Demand,
    /// Anything; `background` says whether the copier may move now.
    Any { background: bool },
}

#[derive(Debug)]
pub struct Schedule {
    blocks: u64,
    phase: Phase,
    /// Whether the local file holds anything yet.
    prefilled: bool,
    demand: VecDeque<u64>,
    queued: HashSet<u64>,
    flying: HashSet<u64>,
    ahead: VecDeque<u64>,
    cursor: u64,
    /// Scan or verify jobs that are out.
    out: u64,
    /// Runs of those that failed.
    again: Vec<Run>,
    finishing: bool,
}

impl Schedule {
    /// `prefilled`: absent blocks may stand in the local file all the same.
    pub fn new(blocks: u64, complete: bool, prefilled: bool) -> Self {
        Self {
            blocks,
            prefilled,
            phase: if complete { Phase::Done } else { Phase::Scan },
            demand: VecDeque::new(),
            queued: HashSet::new(),
            flying: HashSet::new(),
            ahead: VecDeque::new(),
            cursor: 0,
            out: 0,
            again: Vec::new(),
            finishing: false,
        }
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }
    /// Guests' blocks that wait for a worker. Bounded by the guests' requests in flight.
    pub fn demanded(&self) -> usize {
        self.queued.len()
    }

    /// A guest waits for these blocks. Says whether anything was queued.
    pub fn demand(&mut self, run: Run, map: &LiveMap) -> bool {
        let mut any = false;
        for block in run.first..(run.first + run.count).min(self.blocks) {
            if !map.present(block) && !self.flying.contains(&block) && self.queued.insert(block) {
                self.demand.push_back(block);
                any = true;
            }
        }
        any
    }

    pub fn next(&mut self, duty: Duty, map: &LiveMap) -> Option<Job> {
        if let Some(run) = self.next_demand(map) {
            return Some(Job::Fetch { run, demand: true });
        }
        match duty {
            Duty::Any { background: true } => self.next_background(map),
            // Asking for holes moves no data, and spares guests from waiting for zeros.
            Duty::Any { background: false } if self.phase == Phase::Scan => self.next_background(map),
            _ => None,
        }
    }

    fn next_demand(&mut self, map: &LiveMap) -> Option<Run> {
        while let Some(first) = self.demand.pop_front() {
            if !self.queued.remove(&first) || map.present(first) || self.flying.contains(&first) {
                continue;
            }
            // What was asked for in one read, or by a neighbour meanwhile, is fetched in one.
            let end = (first / GROUP_BLOCKS + 1) * GROUP_BLOCKS;
            let mut count = 1;
            while first + count < end && self.queued.remove(&(first + count)) {
                count += 1;
            }
            let group = first / GROUP_BLOCKS;
            if self.ahead.back() != Some(&group) {
                self.ahead.push_back(group);
                if self.ahead.len() > MAX_AHEAD {
                    self.ahead.pop_front();
                }
            }
            return Some(self.fly(Run { first, count }));
        }
        None
    }

    fn next_background(&mut self, map: &LiveMap) -> Option<Job> {
        match self.phase {
            Phase::Scan => self.next_chunk(SCAN_BLOCKS).map(Job::Scan),
            Phase::Check => self.next_chunk(CHECK_BLOCKS).map(Job::Check),
            Phase::Copy => self.next_copy(map),
            Phase::Verify => match self.next_chunk(VERIFY_BLOCKS) {
                Some(run) => Some(Job::Verify(run)),
                // One that was distrusted and could not be fetched again then.
                None if self.out == 0 && map.next_absent(0).is_some() => {
                    self.phase = Phase::Copy;
                    self.cursor = 0;
                    self.next_copy(map)
                }
                None if self.out == 0 && !self.finishing => {
                    self.finishing = true;
                    Some(Job::Finish)
                }
                None => None,
            },
            Phase::Done => None,
        }
    }

    fn next_chunk(&mut self, blocks: u64) -> Option<Run> {
        let run = self.again.pop().or_else(|| {
            let run = Run { first: self.cursor, count: blocks.min(self.blocks - self.cursor) };
            self.cursor += run.count;
            (run.count > 0).then_some(run)
        })?;
        self.out += 1;
        Some(run)
    }

    fn next_copy(&mut self, map: &LiveMap) -> Option<Job> {
        while let Some(group) = self.ahead.front().copied() {
            let end = ((group + 1) * GROUP_BLOCKS).min(self.blocks);
            match self.absent_run(group * GROUP_BLOCKS, end, map) {
                Some(run) => return Some(Job::Fetch { run: self.fly(run), demand: false }),
                None => self.ahead.pop_front(),
            };
        }
        if let Some(run) = self.absent_run(self.cursor, self.blocks, map) {
            self.cursor = run.first + run.count;
            return Some(Job::Fetch { run: self.fly(run), demand: false });
        }
        // Behind the cursor only what failed once is absent, and that was queued again.
        self.cursor = 0;
        if self.flying.is_empty() && map.next_absent(0).is_none() {
            self.phase = Phase::Verify;
            return self.next_background(map);
        }
        None
    }

    /// The first absent run in `[from, end)` that nobody fetches, within one group.
    fn absent_run(&self, from: u64, end: u64, map: &LiveMap) -> Option<Run> {
        let mut first = from;
        loop {
            first = map.next_absent(first).filter(|block| *block < end)?;
            if !self.flying.contains(&first) {
                break;
            }
            first += 1;
        }
        let end = ((first / GROUP_BLOCKS + 1) * GROUP_BLOCKS).min(end);
        let count = (first..end).take_while(|b| !map.present(*b) && !self.flying.contains(b)).count() as u64;
        Some(Run { first, count })
    }

    fn fly(&mut self, run: Run) -> Run {
        self.flying.extend(run.first..run.first + run.count);
        run
    }

    /// A worker is done with its job, or failed at it.
    pub fn finished(&mut self, job: Job, ok: bool) {
        match job {
            Job::Fetch { run, .. } => {
                for block in (run.first..run.first + run.count).rev() {
                    self.flying.remove(&block);
                    // Somebody may have come to wait for it while it flew, so it goes to the front.
                    if !ok && self.queued.insert(block) {
                        self.demand.push_front(block);
                    }
                }
            }
            Job::Scan(run) | Job::Check(run) | Job::Verify(run) => {
                self.out -= 1;
                if !ok {
                    self.again.push(run);
                }
                let through = self.out == 0 && self.again.is_empty() && self.cursor >= self.blocks;
                if through && matches!(self.phase, Phase::Scan | Phase::Check) {
                    let next = if self.phase == Phase::Scan && self.prefilled { Phase::Check } else { Phase::Copy };
                    self.phase = next;
                    self.cursor = 0;
                }
            }
            Job::Finish => {
                self.finishing = false;
                if ok {
                    self.phase = Phase::Done;
                }
            }
        }
    }
}
