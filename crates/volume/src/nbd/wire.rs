//! The protocol's numbers and the pure encoding and decoding of its messages, with every bound on what a peer may
//! announce. It must not read or write a stream.

use super::{NbdError, NbdResult};

pub const NBDMAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
pub const IHAVEOPT: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// The longest read or write: what every client may assume, and what we keep a buffer for.
pub const MAX_PAYLOAD_BYTES: u32 = 32 << 20;
/// The longest option: a name (4096 at most) and a few queries.
pub const MAX_OPTION_BYTES: u32 = 16 * 1024;
pub const MAX_NAME_BYTES: usize = 4096;
/// Options a client may send in one phase.
pub const MAX_OPTIONS: usize = 64;
/// Meta context queries in one option.
pub const MAX_QUERIES: u32 = 32;
/// Extents in one answer to BLOCK_STATUS; the client asks again from where they end.
pub const MAX_EXTENTS: usize = 4096;
/// Chunks of one reply.
pub const MAX_CHUNKS: usize = 8192;
/// Bytes of the volume that one request for hashes covers: 1024 of them.
pub const MAX_HASHED_BYTES: u32 = 64 << 20;

pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
pub const FLAG_NO_ZEROES: u16 = 2;

pub mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

pub mod reply {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERROR: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERROR + 1;
    pub const ERR_POLICY: u32 = ERROR + 2;
    pub const ERR_INVALID: u32 = ERROR + 3;
    pub const ERR_TLS_REQD: u32 = ERROR + 5;
    pub const ERR_UNKNOWN: u32 = ERROR + 6;
    pub const ERR_TOO_BIG: u32 = ERROR + 9;
}

pub mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags of an export.
pub mod export_flag {
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

pub mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
    /// Ours, valid only once the context `godwit:blake3` is chosen: the BLAKE3 of each 64 KiB block of a range.
    pub const HASHES: u16 = 0x4742;
}

pub mod command_flag {
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
}

pub mod chunk {
    pub const DONE: u16 = 1;
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const HASHES: u16 = 0x4742;
    pub const ERROR: u16 = 1 << 15;
    pub const ERROR_PLAIN: u16 = ERROR + 1;
}

pub mod errno {
    pub const EPERM: u32 = 1;
    pub const EIO: u32 = 5;
    pub const EINVAL: u32 = 22;
    pub const ENOSPC: u32 = 28;
    pub const EOVERFLOW: u32 = 75;
}

pub const CONTEXT_ALLOCATION: &str = "base:allocation";
pub const CONTEXT_BLAKE3: &str = "godwit:blake3";
pub const STATE_HOLE: u32 = 1;
pub const STATE_ZERO: u32 = 2;

/// Reads numbers off a message that is whole in memory; running out is the peer's fault.
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
    pub fn take(&mut self, len: usize) -> NbdResult<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(NbdError::Protocol("a message is cut short"))?;
        self.rest = rest;
        Ok(head)
    }
    fn array<const N: usize>(&mut self) -> NbdResult<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }
    pub fn u16(&mut self) -> NbdResult<u16> {
        self.array().map(u16::from_be_bytes)
    }
    pub fn u32(&mut self) -> NbdResult<u32> {
        self.array().map(u32::from_be_bytes)
    }
    pub fn u64(&mut self) -> NbdResult<u64> {
        self.array().map(u64::from_be_bytes)
    }
    /// A length and that many bytes of UTF-8.
    pub fn text(&mut self) -> NbdResult<&'a str> {
        let len = self.u32()? as usize;
        if len > MAX_NAME_BYTES {
            return Err(NbdError::Protocol("a name is too long"));
        }
        std::str::from_utf8(self.take(len)?).map_err(|_| NbdError::Protocol("a name is not UTF-8"))
    }
    pub fn end(&self) -> NbdResult<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(NbdError::Protocol("a message is too long")) }
    }
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }
}

pub const OPTION_HEADER_BYTES: usize = 16;

/// The head of a client's option: which, and how many bytes follow.
pub fn decode_option_header(bytes: &[u8; OPTION_HEADER_BYTES]) -> NbdResult<(u32, u32)> {
    let mut cursor = Cursor::new(bytes);
    if cursor.u64()? != IHAVEOPT {
        return Err(NbdError::Protocol("an option without its magic"));
    }
    Ok((cursor.u32()?, cursor.u32()?))
}

pub fn encode_option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(OPTION_HEADER_BYTES + data.len());
    bytes.extend(IHAVEOPT.to_be_bytes());
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

pub const OPTION_REPLY_HEADER_BYTES: usize = 20;

pub struct OptionReply {
    pub option: u32,
    pub kind: u32,
    pub len: u32,
}

pub fn decode_option_reply(bytes: &[u8; OPTION_REPLY_HEADER_BYTES]) -> NbdResult<OptionReply> {
    let mut cursor = Cursor::new(bytes);
    if cursor.u64()? != OPTION_REPLY_MAGIC {
        return Err(NbdError::Protocol("an option reply without its magic"));
    }
    let reply = OptionReply { option: cursor.u32()?, kind: cursor.u32()?, len: cursor.u32()? };
    if reply.len > MAX_OPTION_BYTES {
        return Err(NbdError::Protocol("an option reply is too long"));
    }
    Ok(reply)
}

pub fn encode_option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(OPTION_REPLY_HEADER_BYTES + data.len());
    bytes.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// A name as options carry it.
pub fn encode_text(text: &str, into: &mut Vec<u8>) {
    into.extend((text.len() as u32).to_be_bytes());
    into.extend(text.as_bytes());
}

/// INFO and GO: a name and the kinds of information wished for.
pub fn decode_go(data: &[u8]) -> NbdResult<(&str, Vec<u16>)> {
    let mut cursor = Cursor::new(data);
    let name = cursor.text()?;
    let count = cursor.u16()?;
    let wished = (0..count).map(|_| cursor.u16()).collect::<NbdResult<Vec<_>>>()?;
    cursor.end()?;
    Ok((name, wished))
}

/// LIST_META_CONTEXT and SET_META_CONTEXT: a name and queries.
pub fn decode_meta(data: &[u8]) -> NbdResult<(&str, Vec<&str>)> {
    let mut cursor = Cursor::new(data);
    let name = cursor.text()?;
    let count = cursor.u32()?;
    if count > MAX_QUERIES {
        return Err(NbdError::Protocol("too many queries"));
    }
    let queries = (0..count).map(|_| cursor.text()).collect::<NbdResult<Vec<_>>>()?;
    cursor.end()?;
    Ok((name, queries))
}

pub const REQUEST_BYTES: usize = 28;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub len: u32,
}

impl Request {
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> NbdResult<Self> {
        let mut cursor = Cursor::new(bytes);
        if cursor.u32()? != REQUEST_MAGIC {
            return Err(NbdError::Protocol("a request without its magic"));
        }
        Ok(Self {
            flags: cursor.u16()?,
            command: cursor.u16()?,
            cookie: cursor.u64()?,
            offset: cursor.u64()?,
            len: cursor.u32()?,
        })
    }
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }
}

pub fn encode_simple_reply(error: u32, cookie: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    pub flags: u16,
    pub kind: u16,
    pub cookie: u64,
    pub len: u32,
}

/// A chunk's head without its magic.
pub const CHUNK_HEADER_REST: usize = 16;

impl ChunkHeader {
    pub fn encode(&self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.kind.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }
    /// What follows the magic. Longer than any reply that we could have asked for is the peer's fault.
    pub fn decode(bytes: &[u8; CHUNK_HEADER_REST]) -> NbdResult<Self> {
        let mut cursor = Cursor::new(bytes);
        let header = Self { flags: cursor.u16()?, kind: cursor.u16()?, cookie: cursor.u64()?, len: cursor.u32()? };
        if header.len > MAX_PAYLOAD_BYTES + 64 {
            return Err(NbdError::Protocol("a chunk is too long"));
        }
        Ok(header)
    }
    pub fn is_done(&self) -> bool {
        self.flags & chunk::DONE != 0
    }
}
