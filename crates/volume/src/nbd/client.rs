//! The NBD client: one connection, one request at a time, but for a read and its hashes, which go out together so that
//! a checked block costs one round trip. Every length that a server announces is bounded by what was asked for, and a
//! read whose chunks do not tile the request exactly is an error: a gap must never pass for zeros.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::stream::{Socket, Stream, write_both};
use super::wire::{self, ChunkHeader, Cursor, Request, chunk, command, command_flag, export_flag, info, option, reply};
use super::{NbdError, NbdResult};
use crate::map::BLOCK_BYTES;
use crate::source::{BlockHash, Extent};

#[derive(Debug, Clone)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// TLS with the name that the server's certificate must carry.
#[derive(Clone)]
pub struct ClientTls {
    pub config: Arc<ClientConfig>,
    pub server_name: String,
}

/// Which export of which server, and how long to wait for it.
#[derive(Clone)]
pub struct Target {
    pub address: Address,
    pub export: String,
    pub tls: Option<ClientTls>,
    pub connect_timeout: Duration,
    /// For each read and write of the socket.
    pub io_timeout: Duration,
}

impl Target {
    pub fn new(address: Address, export: impl Into<String>) -> Self {
        let (connect_timeout, io_timeout) = (Duration::from_secs(5), Duration::from_secs(10));
        Self { address, export: export.into(), tls: None, connect_timeout, io_timeout }
    }
}

/// What the server said of the export.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExportFacts {
    pub size_bytes: u64,
    pub flags: u16,
    pub structured: bool,
    /// The server's ids of the contexts that it gave us. Zero is an id like any other.
    pub allocation: Option<u32>,
    pub hashes: Option<u32>,
}

pub struct NbdClient<S> {
    stream: S,
    facts: ExportFacts,
    cookie: u64,
    received: u64,
}

impl NbdClient<Stream> {
    pub fn connect(target: &Target) -> NbdResult<Self> {
        let mut socket = match &target.address {
            Address::Tcp(addr) => Socket::Tcp(TcpStream::connect_timeout(addr, target.connect_timeout)?),
            Address::Unix(path) => Socket::Unix(UnixStream::connect(path)?),
        };
        socket.set_timeouts(Some(target.io_timeout), Some(target.io_timeout))?;
        greet(&mut socket)?;
        let stream = match &target.tls {
            None => Stream::Plain(socket),
            Some(tls) => start_tls(socket, tls)?,
        };
        Self::negotiate(stream, &target.export)
    }
    pub fn socket(&self) -> &Socket {
        self.stream.socket()
    }
}

/// Reads the server's greeting and answers it.
pub fn greet(stream: &mut (impl Read + Write)) -> NbdResult<()> {
    let mut hello = [0; 18];
    stream.read_exact(&mut hello)?;
    let mut cursor = Cursor::new(&hello);
    if cursor.u64()? != wire::NBDMAGIC || cursor.u64()? != wire::IHAVEOPT {
        return Err(NbdError::Protocol("not a newstyle NBD server"));
    }
    let flags = cursor.u16()?;
    if flags & wire::FLAG_FIXED_NEWSTYLE == 0 {
        return Err(NbdError::Protocol("not a fixed newstyle server"));
    }
    let ours = u32::from(flags & (wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES));
    stream.write_all(&ours.to_be_bytes())?;
    Ok(stream.flush()?)
}

fn start_tls(mut socket: Socket, tls: &ClientTls) -> NbdResult<Stream> {
    socket.write_all(&wire::encode_option(option::STARTTLS, &[]))?;
    match option_reply(&mut socket, option::STARTTLS)? {
        (reply::ACK, _) => {}
        (kind, text) => return Err(refused("STARTTLS", kind, &text)),
    }
    let name = ServerName::try_from(tls.server_name.clone()).map_err(|error| NbdError::Tls(error.to_string()))?;
    let mut connection =
        ClientConnection::new(Arc::clone(&tls.config), name).map_err(|error| NbdError::Tls(error.to_string()))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut socket)?;
    }
    Ok(Stream::Client(Box::new(StreamOwned::new(connection, socket))))
}

fn refused(option: &'static str, kind: u32, text: &[u8]) -> NbdError {
    let text: String = String::from_utf8_lossy(text).chars().take(200).collect();
    NbdError::Refused { option, reply: format!("{kind:#x} {text}") }
}

fn option_reply(stream: &mut impl Read, option: u32) -> NbdResult<(u32, Vec<u8>)> {
    let mut header = [0; wire::OPTION_REPLY_HEADER_BYTES];
    stream.read_exact(&mut header)?;
    let header = wire::decode_option_reply(&header)?;
    if header.option != option {
        return Err(NbdError::Protocol("a reply to another option"));
    }
    let mut data = vec![0; header.len as usize];
    stream.read_exact(&mut data)?;
    Ok((header.kind, data))
}

impl<S: Read + Write> NbdClient<S> {
    /// Options, after the greeting and TLS.
    pub fn negotiate(mut stream: S, export: &str) -> NbdResult<Self> {
        let mut facts = ExportFacts::default();
        let ask = |stream: &mut S, option: u32, data: &[u8]| -> NbdResult<()> {
            stream.write_all(&wire::encode_option(option, data))?;
            Ok(stream.flush()?)
        };
        ask(&mut stream, option::STRUCTURED_REPLY, &[])?;
        facts.structured = option_reply(&mut stream, option::STRUCTURED_REPLY)?.0 == reply::ACK;
        if facts.structured {
            let mut data = Vec::new();
            wire::encode_text(export, &mut data);
            data.extend(2u32.to_be_bytes());
            wire::encode_text(wire::CONTEXT_ALLOCATION, &mut data);
            wire::encode_text(wire::CONTEXT_BLAKE3, &mut data);
            ask(&mut stream, option::SET_META_CONTEXT, &data)?;
            contexts(&mut stream, &mut facts)?;
        }
        let mut data = Vec::new();
        wire::encode_text(export, &mut data);
        data.extend(0u16.to_be_bytes());
        ask(&mut stream, option::GO, &data)?;
        go(&mut stream, &mut facts)?;
        Ok(Self { stream, facts, cookie: 0, received: 0 })
    }

    pub fn facts(&self) -> &ExportFacts {
        &self.facts
    }
    /// Bytes of replies so far, heads included.
    pub fn received_bytes(&self) -> u64 {
        self.received
    }

    pub fn read(&mut self, offset: u64, buf: &mut [u8]) -> NbdResult<()> {
        let request = self.request(command::READ, 0, offset, bounded(buf.len(), wire::MAX_PAYLOAD_BYTES)?);
        self.stream.write_all(&request.encode())?;
        self.stream.flush()?;
        self.read_reply(&request, buf)
    }

    /// A read and the hashes of its blocks in one round trip; no hashes if the server has none.
    pub fn read_with_hashes(&mut self, offset: u64, buf: &mut [u8], hashes: &mut Vec<BlockHash>) -> NbdResult<()> {
        hashes.clear();
        if self.facts.hashes.is_none() {
            return self.read(offset, buf);
        }
        let len = bounded(buf.len(), wire::MAX_PAYLOAD_BYTES)?;
        let read = self.request(command::READ, 0, offset, len);
        let hash = self.request(command::HASHES, 0, offset, len);
        self.stream.write_all(&[read.encode(), hash.encode()].concat())?;
        self.stream.flush()?;
        self.read_reply(&read, buf)?;
        self.hash_reply(&hash, hashes)
    }

    /// The hashes of the blocks in a range that starts at a block; `None` if the server has none.
    pub fn hashes(&mut self, offset: u64, len: u64) -> NbdResult<Option<Vec<BlockHash>>> {
        if self.facts.hashes.is_none() {
            return Ok(None);
        }
        let len = bounded(len as usize, wire::MAX_HASHED_BYTES)?;
        let request = self.request(command::HASHES, 0, offset, len);
        self.stream.write_all(&request.encode())?;
        self.stream.flush()?;
        let mut hashes = Vec::new();
        self.hash_reply(&request, &mut hashes)?;
        Ok(Some(hashes))
    }

    pub fn write(&mut self, offset: u64, buf: &[u8], fua: bool) -> NbdResult<()> {
        let flags = if fua { command_flag::FUA } else { 0 };
        let request = self.request(command::WRITE, flags, offset, bounded(buf.len(), wire::MAX_PAYLOAD_BYTES)?);
        write_both(&mut self.stream, &request.encode(), buf)?;
        self.done_reply(&request)
    }
    pub fn write_zeroes(&mut self, offset: u64, len: u32, keep_space: bool) -> NbdResult<()> {
        self.simple(command::WRITE_ZEROES, if keep_space { command_flag::NO_HOLE } else { 0 }, offset, len)
    }
    pub fn trim(&mut self, offset: u64, len: u32) -> NbdResult<()> {
        self.simple(command::TRIM, 0, offset, len)
    }
    pub fn flush(&mut self) -> NbdResult<()> {
        self.simple(command::FLUSH, 0, 0, 0)
    }
    /// Says good-bye. The server does not answer.
    pub fn disconnect(mut self) -> NbdResult<()> {
        let request = self.request(command::DISC, 0, 0, 0);
        self.stream.write_all(&request.encode())?;
        Ok(self.stream.flush()?)
    }

    /// What lies at `offset`; may answer for less than `len`. Without the context, all of it is data.
    pub fn extents(&mut self, offset: u64, len: u32) -> NbdResult<Vec<Extent>> {
        let Some(context) = self.facts.allocation else {
            return Ok(vec![Extent { len: u64::from(len), zero: false }]);
        };
        let request = self.request(command::BLOCK_STATUS, 0, offset, len);
        self.stream.write_all(&request.encode())?;
        self.stream.flush()?;
        let mut found = Vec::new();
        loop {
            let header = self.chunk(&request)?;
            let payload = self.small(&header)?;
            match header.kind {
                chunk::BLOCK_STATUS => {
                    let mut cursor = Cursor::new(&payload);
                    if cursor.u32()? == context {
                        found = extents(&mut cursor, u64::from(len))?;
                    }
                }
                chunk::NONE => {}
                kind => return Err(failure(kind, &payload)),
            }
            if header.is_done() {
                break;
            }
        }
        if found.is_empty() { Err(NbdError::Protocol("a block status without extents")) } else { Ok(found) }
    }

    fn request(&mut self, command: u16, flags: u16, offset: u64, len: u32) -> Request {
        self.cookie += 1;
        Request { flags, command, cookie: self.cookie, offset, len }
    }
    fn simple(&mut self, command: u16, flags: u16, offset: u64, len: u32) -> NbdResult<()> {
        let request = self.request(command, flags, offset, len);
        self.stream.write_all(&request.encode())?;
        self.stream.flush()?;
        self.done_reply(&request)
    }

    fn fill<const N: usize>(&mut self) -> NbdResult<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        self.received += N as u64;
        Ok(bytes)
    }

    /// The next chunk of a structured reply to this request.
    fn chunk(&mut self, request: &Request) -> NbdResult<ChunkHeader> {
        if u32::from_be_bytes(self.fill()?) != wire::STRUCTURED_REPLY_MAGIC {
            return Err(NbdError::Protocol("a reply without its magic"));
        }
        let header = ChunkHeader::decode(&self.fill()?)?;
        if header.cookie != request.cookie {
            return Err(NbdError::Protocol("a reply to another request"));
        }
        Ok(header)
    }
    /// The payload of a chunk that carries no data of the volume.
    fn small(&mut self, header: &ChunkHeader) -> NbdResult<Vec<u8>> {
        const MOST: u32 = 1 << 20;
        if header.len > MOST {
            return Err(NbdError::Protocol("a chunk is too long"));
        }
        let mut payload = vec![0; header.len as usize];
        self.stream.read_exact(&mut payload)?;
        self.received += u64::from(header.len);
        Ok(payload)
    }

    /// A reply that is either simple or one empty chunk.
    fn done_reply(&mut self, request: &Request) -> NbdResult<()> {
        match u32::from_be_bytes(self.fill()?) {
            wire::SIMPLE_REPLY_MAGIC => self.simple_rest(request),
            wire::STRUCTURED_REPLY_MAGIC if self.facts.structured => {
                let header = ChunkHeader::decode(&self.fill()?)?;
                let payload = self.small(&header)?;
                match header.kind {
                    _ if header.cookie != request.cookie => Err(NbdError::Protocol("a reply to another request")),
                    chunk::NONE if header.is_done() => Ok(()),
                    kind => Err(failure(kind, &payload)),
                }
            }
            _ => Err(NbdError::Protocol("a reply without its magic")),
        }
    }
    fn simple_rest(&mut self, request: &Request) -> NbdResult<()> {
        let rest: [u8; 12] = self.fill()?;
        let mut cursor = Cursor::new(&rest);
        let (error, cookie) = (cursor.u32()?, cursor.u64()?);
        match error {
            _ if cookie != request.cookie => Err(NbdError::Protocol("a reply to another request")),
            0 => Ok(()),
            error => Err(NbdError::Failed(error)),
        }
    }

    fn read_reply(&mut self, request: &Request, buf: &mut [u8]) -> NbdResult<()> {
        if !self.facts.structured {
            if u32::from_be_bytes(self.fill()?) != wire::SIMPLE_REPLY_MAGIC {
                return Err(NbdError::Protocol("a reply without its magic"));
            }
            self.simple_rest(request)?;
            self.received += buf.len() as u64;
            return Ok(self.stream.read_exact(buf)?);
        }
        let mut tiles: Vec<(usize, usize)> = Vec::new();
        let mut error = None;
        loop {
            let header = self.chunk(request)?;
            match header.kind {
                chunk::OFFSET_DATA | chunk::OFFSET_HOLE => {
                    if tiles.len() == wire::MAX_CHUNKS {
                        return Err(NbdError::Protocol("too many chunks"));
                    }
                    tiles.push(self.read_chunk(request, &header, buf)?);
                }
                chunk::NONE if header.len == 0 => {}
                // After an error the other chunks still come, up to the last.
                kind => error = Some(failure(kind, &self.small(&header)?)),
            }
            if header.is_done() {
                break;
            }
        }
        if let Some(error) = error {
            return Err(error);
        }
        tiles.sort_unstable();
        let end = tiles.iter().try_fold(0, |at, (start, end)| (*start == at).then_some(*end));
        if end == Some(buf.len()) {
            Ok(())
        } else {
            Err(NbdError::Protocol("the chunks of a read leave gaps or overlap"))
        }
    }

    fn read_chunk(&mut self, request: &Request, header: &ChunkHeader, buf: &mut [u8]) -> NbdResult<(usize, usize)> {
        let outside = NbdError::Protocol("a chunk outside of what was asked for");
        let at = u64::from_be_bytes(self.fill()?).checked_sub(request.offset);
        let is_hole = header.kind == chunk::OFFSET_HOLE;
        let len = match (is_hole, header.len) {
            (true, 12) => u32::from_be_bytes(self.fill()?) as usize,
            (false, 9..) => header.len as usize - 8,
            _ => return Err(NbdError::Protocol("a chunk of a wrong length")),
        };
        let start = at.and_then(|at| usize::try_from(at).ok());
        let range = start.and_then(|start| Some(start..start.checked_add(len)?));
        let Some((range, place)) = range.and_then(|range| Some((range.clone(), buf.get_mut(range)?))) else {
            return Err(outside);
        };
        if place.is_empty() {
            return Err(NbdError::Protocol("an empty chunk"));
        }
        if is_hole {
            place.fill(0);
        } else {
            self.stream.read_exact(place)?;
            self.received += len as u64;
        }
        Ok((range.start, range.end))
    }

    fn hash_reply(&mut self, request: &Request, hashes: &mut Vec<BlockHash>) -> NbdResult<()> {
        let header = self.chunk(request)?;
        let payload = self.small(&header)?;
        if header.kind != chunk::HASHES || !header.is_done() {
            return Err(failure(header.kind, &payload));
        }
        let mut cursor = Cursor::new(&payload);
        let count = u64::from(request.len).div_ceil(BLOCK_BYTES) as usize;
        if cursor.u64()? != request.offset || cursor.remaining() != count * size_of::<BlockHash>() {
            return Err(NbdError::Protocol("hashes of other blocks"));
        }
        let (found, _) = payload[8..].as_chunks();
        hashes.extend_from_slice(found);
        Ok(())
    }
}

fn bounded(len: usize, most: u32) -> NbdResult<u32> {
    u32::try_from(len).ok().filter(|len| *len <= most).ok_or(NbdError::Protocol("a request of ours is too long"))
}

/// An error chunk's number, or the complaint about a chunk that does not belong here.
fn failure(kind: u16, payload: &[u8]) -> NbdError {
    if kind & chunk::ERROR == 0 {
        return NbdError::Protocol("a chunk of an unexpected kind");
    }
    match Cursor::new(payload).u32() {
        Ok(error) => NbdError::Failed(error),
        Err(error) => error,
    }
}

fn extents(cursor: &mut Cursor<'_>, len: u64) -> NbdResult<Vec<Extent>> {
    let mut found = Vec::new();
    let mut at = 0;
    while cursor.remaining() > 0 && at < len {
        let (extent, state) = (u64::from(cursor.u32()?), cursor.u32()?);
        if extent == 0 || found.len() == 2 * wire::MAX_EXTENTS {
            return Err(NbdError::Protocol("extents that make no sense"));
        }
        // The last one may reach beyond what was asked for.
        let extent = extent.min(len - at);
        at += extent;
        found.push(Extent { len: extent, zero: state & wire::STATE_ZERO != 0 });
    }
    Ok(found)
}

fn contexts(stream: &mut impl Read, facts: &mut ExportFacts) -> NbdResult<()> {
    // At most the two that were asked for, then the end.
    for _ in 0..=2 {
        let (kind, data) = option_reply(stream, option::SET_META_CONTEXT)?;
        match kind {
            reply::META_CONTEXT => {
                let mut cursor = Cursor::new(&data);
                let id = cursor.u32()?;
                match cursor.take(cursor.remaining())? {
                    name if name == wire::CONTEXT_ALLOCATION.as_bytes() => facts.allocation = Some(id),
                    name if name == wire::CONTEXT_BLAKE3.as_bytes() => facts.hashes = Some(id),
                    _ => return Err(NbdError::Protocol("a context that was not asked for")),
                }
            }
            // Refused or done: whatever was given counts.
            _ => return Ok(()),
        }
    }
    Err(NbdError::Protocol("too many contexts"))
}

/// Kinds of information that a server may send unasked.
const MAX_INFOS: usize = 16;

fn go(stream: &mut impl Read, facts: &mut ExportFacts) -> NbdResult<()> {
    let mut known = false;
    for _ in 0..MAX_INFOS {
        let (kind, data) = option_reply(stream, option::GO)?;
        match kind {
            reply::INFO => {
                let mut cursor = Cursor::new(&data);
                if cursor.u16()? == info::EXPORT {
                    (facts.size_bytes, facts.flags) = (cursor.u64()?, cursor.u16()?);
                    known = true;
                }
            }
            reply::ACK if known && facts.flags & export_flag::HAS_FLAGS != 0 => return Ok(()),
            reply::ACK => return Err(NbdError::Protocol("an export without its size")),
            kind => return Err(refused("GO", kind, &data)),
        }
    }
    Err(NbdError::Protocol("too much information"))
}
