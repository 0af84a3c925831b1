//! The durable form of one slot: 4 KiB, a head of 64 bytes with identity, sequence number and checksum, then either
//! the head's facts or two planes of bits. Pure.
//!
//! ```text
//! 0  magic "GWVM"   4  version   6  kind (0 head, 1 page)   8  page   16 sequence   24 generation   32 epoch n
//! 40 volume (8 bytes of its BLAKE3)   48 checksum: BLAKE3 of all other bytes, 16 of them   64 payload
//! ```

use super::{Head, MapError, Page};

pub const SLOT_BYTES: usize = 4096;
const HEADER_BYTES: usize = 64;
/// Words of each plane in a page: (4096 - 64) / 8 / 2.
pub const WORDS_PER_PAGE: usize = 252;
/// 16,128 blocks, which is 1 GiB less 16 MiB of volume.
pub const BLOCKS_PER_PAGE: u64 = WORDS_PER_PAGE as u64 * 64;
const MAGIC: [u8; 4] = *b"GWVM";
const VERSION: u16 = 1;
const KIND_HEAD: u16 = 0;
const KIND_PAGE: u16 = 1;
const CHECKSUM: std::ops::Range<usize> = 48..64;

/// Whose map it is. A map of another volume or epoch is never believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    volume: [u8; 8],
    generation: u64,
    n: u64,
}

impl Identity {
    pub fn new(volume: &str, epoch: godwit_api::ids::Epoch) -> Self {
        let mut tag = [0; 8];
        tag.copy_from_slice(&blake3::hash(volume.as_bytes()).as_bytes()[..8]);
        Self { volume: tag, generation: epoch.generation, n: epoch.n }
    }
}

/// Why a slot does not count.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum SlotFault {
    #[error("never written")]
    Empty,
    #[error("torn: its checksum does not fit")]
    Torn,
    #[error("of another version")]
    Version,
    #[error("of another volume, epoch or place")]
    Foreign,
}

/// A slot that counts.
#[derive(Debug)]
pub(super) struct Found<T> {
    pub seq: u64,
    pub value: T,
}

/// Where the slot of pair `pair` with this sequence number stands: even numbers in A, odd ones in B.
pub fn offset(pair: u64, seq: u64) -> u64 {
    (pair * 2 + seq % 2) * SLOT_BYTES as u64
}

pub(super) fn encode_head(identity: &Identity, seq: u64, size_bytes: u64, head: Head) -> Vec<u8> {
    let mut bytes = start(identity, KIND_HEAD, 0, seq);
    bytes[64..72].copy_from_slice(&size_bytes.to_le_bytes());
    bytes[72] = u8::from(head.complete);
    bytes[73] = u8::from(head.verified);
    bytes[74] = u8::from(head.clean);
    seal(bytes)
}

pub(super) fn encode_page(identity: &Identity, page: u64, seq: u64, present: &[u64], written: &[u64]) -> Vec<u8> {
    let mut bytes = start(identity, KIND_PAGE, page, seq);
    let words = present.iter().take(WORDS_PER_PAGE).chain(written.iter().take(WORDS_PER_PAGE));
    for (place, word) in bytes[HEADER_BYTES..].chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    seal(bytes)
}

pub(super) fn decode_head(identity: &Identity, bytes: &[u8]) -> Result<Found<(u64, Head)>, SlotFault> {
    let seq = open(identity, KIND_HEAD, 0, bytes)?;
    let [complete, verified, clean] = [bytes[72] == 1, bytes[73] == 1, bytes[74] == 1];
    Ok(Found { seq, value: (word(bytes, 64), Head { complete, verified, clean }) })
}

pub(super) fn decode_page(identity: &Identity, page: u64, bytes: &[u8]) -> Result<Found<Page>, SlotFault> {
    let seq = open(identity, KIND_PAGE, page, bytes)?;
    let words = |from: usize| (0..WORDS_PER_PAGE).map(|i| word(bytes, from + i * 8)).collect();
    let value = Page { present: words(HEADER_BYTES), written: words(HEADER_BYTES + WORDS_PER_PAGE * 8) };
    Ok(Found { seq, value })
}

/// Of both slots of a pair, the valid one with the higher number.
pub(super) fn choose<T>(
    file: &[u8],
    pair: u64,
    what: &str,
    decode: impl Fn(&[u8]) -> Result<Found<T>, SlotFault>,
) -> Result<Found<T>, MapError> {
    let read = |seq| {
        let from = offset(pair, seq) as usize;
        // A slot of A that carries an odd number was never written by us.
        file.get(from..from + SLOT_BYTES)
            .ok_or(SlotFault::Empty)
            .and_then(&decode)
            .and_then(|found: Found<T>| if found.seq % 2 == seq { Ok(found) } else { Err(SlotFault::Foreign) })
    };
    match (read(0), read(1)) {
        (Ok(a), Ok(b)) => Ok(if a.seq > b.seq { a } else { b }),
        (Ok(found), Err(_)) | (Err(_), Ok(found)) => Ok(found),
        (Err(a), Err(b)) => Err(MapError::Corrupt { what: what.to_owned(), a, b }),
    }
}

fn start(identity: &Identity, kind: u16, page: u64, seq: u64) -> Vec<u8> {
    let mut bytes = vec![0; SLOT_BYTES];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
    bytes[6..8].copy_from_slice(&kind.to_le_bytes());
    for (at, value) in [(8, page), (16, seq), (24, identity.generation), (32, identity.n)] {
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    bytes[40..48].copy_from_slice(&identity.volume);
    bytes
}

fn checksum(bytes: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..CHECKSUM.start]).update(&bytes[CHECKSUM.end..]);
    let mut sum = [0; 16];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    sum
}

fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = checksum(&bytes);
    bytes[CHECKSUM].copy_from_slice(&sum);
    bytes
}

fn open(identity: &Identity, kind: u16, page: u64, bytes: &[u8]) -> Result<u64, SlotFault> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Err(SlotFault::Empty);
    }
    if bytes[CHECKSUM] != checksum(bytes) || bytes[..4] != MAGIC {
        return Err(SlotFault::Torn);
    }
    if bytes[4..6] != VERSION.to_le_bytes() {
        return Err(SlotFault::Version);
    }
    let expected = start(identity, kind, page, word(bytes, 16));
    if bytes[6..48] == expected[6..48] { Ok(word(bytes, 16)) } else { Err(SlotFault::Foreign) }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}
