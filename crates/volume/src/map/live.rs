//! The map as the server uses it: atomic bits on a board of words that may be shared memory, so that it outlives the
//! process. It owns the layout of the board and the order of its stores; it must not know where the words come from.
//!
//! A process may be killed between any two stores. So: a block is `present` only after its data is in the file (the
//! page cache outlives a process), and `written` is set *before* a guest's write to a present block begins, because a
//! block that is wrongly called written is merely never compared, while one wrongly called unwritten could be fetched
//! over.

use std::sync::atomic::{AtomicU64, Ordering};

use godwit_api::ids::Epoch;

use super::slot::WORDS_PER_PAGE;
use super::{Geometry, Head, Page, PageImage, Slots, Snapshot};

const MAGIC: u64 = u64::from_le_bytes(*b"GWLIVE02");
const HEADER_WORDS: usize = 64;
const AT_MAGIC: usize = 0;
const AT_SIZE: usize = 1;
const AT_GENERATION: usize = 2;
const AT_N: usize = 3;
const AT_POISONED: usize = 4;
const AT_COMPLETE: usize = 5;
const AT_VERIFIED: usize = 6;
const AT_RELEASED: usize = 7;
const AT_TALLIES: usize = 16;
/// Counters of a page: all changes, those that a flush must make durable, and writers that have not counted yet.
const COUNTERS: usize = 3;

/// Counters on the board, which outlive the server as the map does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tally {
    DemandFetches,
    HydratedBytes,
    WireBytes,
    Mismatches,
    Connects,
    Flushes,
    MapWrites,
    NoSpace,
    /// One more than the bytes of data at the source; 0: not known yet.
    SourceData,
    /// One more than the time of the host's clock, in ms, when the first server began, or was released.
    Began,
    /// One more than the ms from then to the first answered read.
    FirstRead,
    /// Bytes that were found in the local file already, equal to the source.
    FoundBytes,
}

const _: () = assert!(AT_TALLIES + (Tally::FoundBytes as usize) < HEADER_WORDS);

/// Words that stay where they are for as long as the map lives.
pub trait Board: Send + Sync + 'static {
    fn words(&self) -> &[AtomicU64];
}

impl Board for Vec<AtomicU64> {
    fn words(&self) -> &[AtomicU64] {
        self
    }
}

pub struct LiveMap {
    board: Box<dyn Board>,
    geometry: Geometry,
}

impl LiveMap {
    /// Words that a map of this size needs.
    pub fn board_words(geometry: &Geometry) -> usize {
        HEADER_WORDS + geometry.pages() as usize * (COUNTERS + 2 * WORDS_PER_PAGE)
    }

    /// A map on a zeroed board, filled from what is durable.
    ///
    /// After a crash (`head` is neither clean nor complete) a block that is here, and not durably the guest's, may hold
    /// what a guest wrote without a flush. Either content is legal, but only one of them, for good: so such a block
    /// counts as absent until it was compared with the source, before anybody reads it.
    pub fn fresh(board: Box<dyn Board>, geometry: Geometry, epoch: Epoch, head: Head, pages: &[Page]) -> Option<Self> {
        if board.words().len() < Self::board_words(&geometry) {
            return None;
        }
        let map = Self { board, geometry };
        for (page, durable) in pages.iter().enumerate() {
            for (i, (present, written)) in durable.present.iter().zip(&durable.written).enumerate() {
                let present = if head.complete || head.clean { *present } else { *present & *written };
                map.word(map.present_at(page, i)).store(present, Ordering::Relaxed);
                map.word(map.written_at(page, i)).store(*written, Ordering::Relaxed);
            }
        }
        map.word(AT_SIZE).store(geometry.size_bytes(), Ordering::Relaxed);
        map.word(AT_GENERATION).store(epoch.generation, Ordering::Relaxed);
        map.word(AT_N).store(epoch.n, Ordering::Relaxed);
        map.word(AT_COMPLETE).store(u64::from(head.complete), Ordering::Relaxed);
        map.word(AT_VERIFIED).store(u64::from(head.verified), Ordering::Relaxed);
        // Last: a board is adopted only when it was filled to the end.
        map.word(AT_MAGIC).store(MAGIC, Ordering::Release);
        Some(map)
    }

    /// The map that an earlier process left on the board, or the board back if there is none of this volume and epoch.
    pub fn adopt(board: Box<dyn Board>, geometry: Geometry, epoch: Epoch) -> Result<Self, Box<dyn Board>> {
        if board.words().len() < Self::board_words(&geometry) {
            return Err(board);
        }
        let map = Self { board, geometry };
        let found = [AT_MAGIC, AT_SIZE, AT_GENERATION, AT_N].map(|at| map.word(at).load(Ordering::Acquire));
        if found != [MAGIC, geometry.size_bytes(), epoch.generation, epoch.n] {
            return Err(map.board);
        }
        for page in 0..geometry.pages() as usize {
            // Its writers died: what they wrote was not acknowledged, and one that left a bit uncounted is counted now.
            if map.word(map.counter_at(page, 2)).swap(0, Ordering::SeqCst) != 0 {
                map.guest_changed(page);
            }
        }
        Ok(map)
    }

    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }
    pub fn present(&self, block: u64) -> bool {
        let (page, word, bit) = place(block);
        self.word(self.present_at(page, word)).load(Ordering::Acquire) & bit != 0
    }
    pub fn written(&self, block: u64) -> bool {
        let (page, word, bit) = place(block);
        self.word(self.written_at(page, word)).load(Ordering::SeqCst) & bit != 0
    }
    /// The block's data is in the file, as the source has it.
    pub fn fetched(&self, block: u64) {
        let (page, word, bit) = place(block);
        self.word(self.present_at(page, word)).fetch_or(bit, Ordering::AcqRel);
        self.word(self.counter_at(page, 0)).fetch_add(1, Ordering::AcqRel);
    }
    /// The guest is about to write to a present block.
    pub fn will_write(&self, block: u64) {
        let (page, word, bit) = place(block);
        if self.word(self.written_at(page, word)).load(Ordering::SeqCst) & bit != 0 {
            return;
        }
        // Another writer may see the bit before it is counted, end, and be flushed: meanwhile the page counts as changed.
        self.word(self.counter_at(page, 2)).fetch_add(1, Ordering::SeqCst);
        if self.word(self.written_at(page, word)).fetch_or(bit, Ordering::SeqCst) & bit == 0 {
            self.guest_changed(page);
        }
        self.word(self.counter_at(page, 2)).fetch_sub(1, Ordering::SeqCst);
    }
    /// The guest's data or discard for a whole block, absent until now, is in the file.
    pub fn overwritten(&self, block: u64) {
        let (page, word, bit) = place(block);
        self.word(self.written_at(page, word)).fetch_or(bit, Ordering::SeqCst);
        self.word(self.present_at(page, word)).fetch_or(bit, Ordering::AcqRel);
        // After the bits: a counter that ran ahead could be committed without them, and the next flush would skip them.
        self.guest_changed(page);
    }
    /// A block that proved to differ from the source is fetched again.
    pub fn distrust(&self, block: u64) {
        let (page, word, bit) = place(block);
        self.word(self.present_at(page, word)).fetch_and(!bit, Ordering::AcqRel);
        self.word(self.counter_at(page, 0)).fetch_add(1, Ordering::AcqRel);
    }
    pub fn count_present(&self) -> u64 {
        let pages = self.geometry.pages() as usize;
        let words = (0..pages).flat_map(|page| (0..WORDS_PER_PAGE).map(move |word| (page, word)));
        words.map(|(page, i)| u64::from(self.word(self.present_at(page, i)).load(Ordering::Relaxed).count_ones())).sum()
    }
    /// The first absent block at or after `from`.
    pub fn next_absent(&self, from: u64) -> Option<u64> {
        let blocks = self.geometry.blocks();
        let mut block = from;
        while block < blocks {
            let (page, word, bit) = place(block);
            // Bits below `block` count as present.
            let absent = !self.word(self.present_at(page, word)).load(Ordering::Acquire) & !(bit - 1);
            if absent != 0 {
                let found = block / 64 * 64 + u64::from(absent.trailing_zeros());
                return (found < blocks).then_some(found);
            }
            block = (block / 64 + 1) * 64;
        }
        None
    }
    pub fn poison(&self) {
        self.word(AT_POISONED).store(1, Ordering::SeqCst);
    }
    pub fn poisoned(&self) -> bool {
        self.word(AT_POISONED).load(Ordering::Acquire) != 0
    }
    pub fn release(&self) {
        self.word(AT_RELEASED).store(1, Ordering::SeqCst);
    }
    /// Whether a map that was made ahead of a handoff may be filled now.
    pub fn released(&self) -> bool {
        self.word(AT_RELEASED).load(Ordering::Acquire) != 0
    }
    /// All is here; `verified`: and was compared with the source. Only after the same is durable.
    pub fn set_complete(&self, verified: bool) {
        self.word(AT_VERIFIED).store(u64::from(verified), Ordering::SeqCst);
        self.word(AT_COMPLETE).store(1, Ordering::SeqCst);
    }
    pub fn verified(&self) -> bool {
        self.complete() && self.word(AT_VERIFIED).load(Ordering::Acquire) != 0
    }
    pub fn tally(&self, tally: Tally) -> &AtomicU64 {
        self.word(AT_TALLIES + tally as usize)
    }
    pub fn complete(&self) -> bool {
        self.word(AT_COMPLETE).load(Ordering::Acquire) != 0
    }

    /// Copies what a commit needs. `all`: every page that changed; otherwise only those where a guest's write or
    /// discard made a block present or written since: bits of the copier may lag, they merely cost a fetch.
    pub fn snapshot(&self, slots: &Slots, all: bool, head: Option<Head>) -> Snapshot {
        let mut pages = Vec::new();
        for page in 0..self.geometry.pages() {
            let at = page as usize;
            // Before the counters: a writer counts first and leaves then. The counters before the bits: a change that
            // comes after is seen again by the next commit.
            let is_counting = self.word(self.counter_at(at, 2)).load(Ordering::SeqCst) != 0;
            let changes = self.word(self.counter_at(at, 0)).load(Ordering::SeqCst);
            let guest_changes = self.word(self.counter_at(at, 1)).load(Ordering::SeqCst);
            let (committed, guest_committed) = slots.committed_changes(page);
            if !(is_counting || guest_changes != guest_committed || (all && changes != committed)) {
                continue;
            }
            let read = |at| self.word(at).load(Ordering::SeqCst);
            let present: Vec<u64> = (0..WORDS_PER_PAGE).map(|i| read(self.present_at(at, i))).collect();
            // Present was read first: whoever saw it sees `written` too. Written without present is not yet a fact.
            let written = (0..WORDS_PER_PAGE).map(|i| read(self.written_at(at, i)) & present[i]).collect();
            pages.push(PageImage { page, present, written, changes, guest_changes });
        }
        Snapshot { pages, head }
    }

    fn guest_changed(&self, page: usize) {
        self.word(self.counter_at(page, 0)).fetch_add(1, Ordering::SeqCst);
        self.word(self.counter_at(page, 1)).fetch_add(1, Ordering::SeqCst);
    }
    fn word(&self, at: usize) -> &AtomicU64 {
        &self.board.words()[at]
    }
    fn page_at(&self, page: usize) -> usize {
        HEADER_WORDS + page * (COUNTERS + 2 * WORDS_PER_PAGE)
    }
    fn counter_at(&self, page: usize, counter: usize) -> usize {
        self.page_at(page) + counter
    }
    fn present_at(&self, page: usize, word: usize) -> usize {
        self.page_at(page) + COUNTERS + word
    }
    fn written_at(&self, page: usize, word: usize) -> usize {
        self.page_at(page) + COUNTERS + WORDS_PER_PAGE + word
    }
}

fn place(block: u64) -> (usize, usize, u64) {
    let word = (block / 64) as usize;
    (word / WORDS_PER_PAGE, word % WORDS_PER_PAGE, 1 << (block % 64))
}
