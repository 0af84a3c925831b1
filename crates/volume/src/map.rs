//! The block map, purely: which blocks of a clone stand in the local file (`present`), and which of those the guest
//! has written (`written`, so no longer comparable with the source). It owns geometry, the durable encoding, and the
//! order in which a commit may happen. It must not know files, clocks or threads: `map_file` does what it asks for.
//!
//! **Map ⇒ data.** A bit may be durable only after the data that it vouches for. The order is in the types:
//!
//! ```text
//! LiveMap::snapshot ──► Snapshot ──(the caller syncs the data file)──► data_synced() ──► Writes
//!                                                                                          │ write each slot, sync
//!                                              Slots::committed(writes) ◄──────────────────┘ the map file
//! ```
//!
//! There is no way from a `Snapshot` to bytes for the map file but through `data_synced`. The bits are copied *before*
//! the data is synced, so a bit that is set while the sync runs waits for the next commit.
//!
//! The file is pairs of 4 KiB slots, A and B: pair 0 is the head (size, whether all is verified), pair `p + 1` holds
//! page `p` of the bits. A commit writes only changed pages, each to the slot that does not hold its newest state, so
//! a torn write costs nothing but itself. Pages need no common commit point: each bit is a fact of its own.

pub mod live;
pub mod slot;

pub use live::{Board, LiveMap, Tally};
pub use slot::{Identity, SlotFault};

/// What is fetched, mapped and hashed as one. 64 KiB: one BLAKE3 a block costs 0.05 % of the wire.
pub const BLOCK_BYTES: u64 = 64 * 1024;
/// One fetch reads at most this many blocks (1 MiB), and locks are taken for as many.
pub const GROUP_BLOCKS: u64 = 16;
/// Largest volume: 64 TiB. Bounds every allocation that a size from outside leads to.
pub const MAX_BYTES: u64 = 64 << 40;

#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum MapError {
    #[error("a volume of {0} bytes is not supported: 1 byte to 64 TiB")]
    Size(u64),
    #[error("both slots of {what} are unreadable ({a}; {b})")]
    Corrupt { what: String, a: SlotFault, b: SlotFault },
    #[error("the map is of a volume of {found} bytes, and {wanted} were expected")]
    OtherSize { found: u64, wanted: u64 },
}

/// How a volume of some size falls into blocks and pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    size_bytes: u64,
}

impl Geometry {
    pub fn new(size_bytes: u64) -> Result<Self, MapError> {
        if size_bytes == 0 || size_bytes > MAX_BYTES {
            Err(MapError::Size(size_bytes))
        } else {
            Ok(Self { size_bytes })
        }
    }
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    pub fn blocks(&self) -> u64 {
        self.size_bytes.div_ceil(BLOCK_BYTES)
    }
    pub fn pages(&self) -> u64 {
        self.blocks().div_ceil(slot::BLOCKS_PER_PAGE)
    }
    /// Bytes of the map file: a pair for the head and one for each page.
    pub fn map_file_bytes(&self) -> u64 {
        (self.pages() + 1) * 2 * slot::SLOT_BYTES as u64
    }
    /// Where a run of blocks starts and ends, in bytes; the last block may be short.
    pub fn span(&self, first: u64, count: u64) -> (u64, u64) {
        (first * BLOCK_BYTES, ((first + count) * BLOCK_BYTES).min(self.size_bytes))
    }
    /// The blocks that `[offset, offset + len)` touches.
    pub fn touched(&self, offset: u64, len: u64) -> std::ops::Range<u64> {
        if len == 0 {
            return 0..0;
        }
        offset / BLOCK_BYTES..(offset + len).div_ceil(BLOCK_BYTES)
    }
    /// Whether `[offset, end)` covers the whole of a block.
    pub fn covers(&self, block: u64, offset: u64, end: u64) -> bool {
        let (first, last) = self.span(block, 1);
        offset <= first && end >= last
    }
}

/// What the head says of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// Every block is present and synced, and was compared with what the source told: the source is needed no more.
    pub complete: bool,
    /// And the source told the hash of every block that the guest did not write.
    pub verified: bool,
    /// The last server ended in order: nothing stands in the file that a guest wrote and did not flush.
    pub clean: bool,
}

/// Bits copied out of the live map, and of no use until the data is synced.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub(crate) pages: Vec<PageImage>,
    pub(crate) head: Option<Head>,
}

/// A copy of one page, and the change counters as they stood before it was copied.
#[derive(Debug, Clone)]
pub(crate) struct PageImage {
    pub page: u64,
    pub present: Vec<u64>,
    pub written: Vec<u64>,
    pub changes: u64,
    pub guest_changes: u64,
}

impl Snapshot {
    /// Nothing to write: a flush of data alone.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty() && self.head.is_none()
    }
    /// Says: the data file was synced after this snapshot was taken. Only now do bytes for the map exist.
    pub fn data_synced(self, slots: &Slots) -> Writes {
        let mut writes = Vec::with_capacity(self.pages.len() + 1);
        for image in &self.pages {
            let seq = slots.seq[image.page as usize + 1] + 1;
            let bytes = slot::encode_page(&slots.identity, image.page, seq, &image.present, &image.written);
            writes.push(SlotWrite { offset: slot::offset(image.page + 1, seq), bytes });
        }
        // The head is last: it may claim what the pages prove.
        if let Some(head) = self.head {
            let seq = slots.seq[0] + 1;
            let bytes = slot::encode_head(&slots.identity, seq, slots.geometry.size_bytes(), head);
            writes.push(SlotWrite { offset: slot::offset(0, seq), bytes });
        }
        Writes { writes, snapshot: self }
    }
}

/// One slot to write, somewhere in the map file.
#[derive(Debug, Clone)]
pub struct SlotWrite {
    pub offset: u64,
    pub bytes: Vec<u8>,
}

/// What must be written and synced before the commit counts.
#[derive(Debug)]
pub struct Writes {
    writes: Vec<SlotWrite>,
    snapshot: Snapshot,
}

impl Writes {
    pub fn slots(&self) -> &[SlotWrite] {
        &self.writes
    }
}

/// What is durable: the sequence number of each pair, and the change counters that each page had when it was written.
#[derive(Debug, Clone)]
pub struct Slots {
    identity: Identity,
    geometry: Geometry,
    seq: Vec<u64>,
    committed: Vec<(u64, u64)>,
    head: Head,
}

impl Slots {
    /// A map with no bit set, and the writes that make it so on an empty file.
    pub fn create(identity: Identity, geometry: Geometry) -> (Self, Vec<SlotWrite>) {
        let pairs = geometry.pages() as usize + 1;
        let slots =
            Self { identity, geometry, seq: vec![0; pairs], committed: vec![(0, 0); pairs - 1], head: Head::default() };
        let empty = vec![0u64; slot::WORDS_PER_PAGE];
        let mut writes: Vec<SlotWrite> = (0..geometry.pages())
            .map(|page| SlotWrite {
                offset: slot::offset(page + 1, 0),
                bytes: slot::encode_page(&identity, page, 0, &empty, &empty),
            })
            .collect();
        let bytes = slot::encode_head(&identity, 0, geometry.size_bytes(), Head::default());
        writes.push(SlotWrite { offset: slot::offset(0, 0), bytes });
        (slots, writes)
    }

    /// Reads a whole map file. Of each pair the valid slot with the higher number counts; a pair without any is an
    /// error, never "absent": a block that the guest wrote would be fetched over.
    pub fn load(identity: Identity, geometry: Geometry, file: &[u8]) -> Result<(Self, Head, Vec<Page>), MapError> {
        let head = slot::choose(file, 0, "the head", |bytes| slot::decode_head(&identity, bytes))?;
        if head.value.0 != geometry.size_bytes() {
            return Err(MapError::OtherSize { found: head.value.0, wanted: geometry.size_bytes() });
        }
        let mut seq = vec![head.seq];
        let mut pages = Vec::new();
        for page in 0..geometry.pages() {
            let found = slot::choose(file, page + 1, &format!("page {page}"), |bytes| {
                slot::decode_page(&identity, page, bytes)
            })?;
            seq.push(found.seq);
            pages.push(found.value);
        }
        let committed = vec![(0, 0); pages.len()];
        Ok((Self { identity, geometry, seq, committed, head: head.value.1 }, head.value.1, pages))
    }

    /// Says: every write of `writes` is done and the map file was synced after them.
    pub fn committed(&mut self, writes: &Writes) {
        for image in &writes.snapshot.pages {
            self.seq[image.page as usize + 1] += 1;
            self.committed[image.page as usize] = (image.changes, image.guest_changes);
        }
        if let Some(head) = writes.snapshot.head {
            self.seq[0] += 1;
            self.head = head;
        }
    }

    /// The durable head.
    pub fn head(&self) -> Head {
        self.head
    }
    /// The change counters of a page when it was last made durable.
    pub(crate) fn committed_changes(&self, page: u64) -> (u64, u64) {
        self.committed[page as usize]
    }
}

/// The durable bits of one page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub present: Vec<u64>,
    pub written: Vec<u64>,
}
