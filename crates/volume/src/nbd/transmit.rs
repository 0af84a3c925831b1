//! The server's second phase: requests and replies over an export, one at a time on each connection. Parallel clients
//! open several. It owns the checks of every request; it must not know sockets or threads.

use std::io::{Read, Write};

use super::export::Export;
use super::negotiate::{ALLOCATION_ID, Chosen};
use super::stream::write_both;
use super::wire::{self, ChunkHeader, Request, chunk, command, command_flag, errno};
use super::{NbdError, NbdResult};
use crate::error::VolumeError;
use crate::map::BLOCK_BYTES;
use crate::source::is_zero;

/// Serves until the client leaves or breaks the protocol.
pub fn serve(stream: &mut (impl Read + Write), chosen: &Chosen) -> NbdResult<()> {
    let _joined = Joined::new(chosen.export.as_ref());
    let mut connection = Connection { stream, chosen, buf: Vec::new() };
    loop {
        let mut bytes = [0; wire::REQUEST_BYTES];
        connection.stream.read_exact(&mut bytes)?;
        let request = Request::decode(&bytes)?;
        if request.command == command::DISC {
            return Ok(());
        }
        connection.answer(&request)?;
    }
}

/// A client's stay, also if it ends by a panic.
struct Joined<'a>(&'a dyn Export);

impl<'a> Joined<'a> {
    fn new(export: &'a dyn Export) -> Self {
        export.joined();
        Self(export)
    }
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        self.0.left();
    }
}

struct Connection<'a, S> {
    stream: &'a mut S,
    chosen: &'a Chosen,
    buf: Vec<u8>,
}

/// What one request came to: an error number for the client.
type Answer = Result<(), u32>;

fn number(error: &VolumeError) -> u32 {
    match error.errno() {
        libc::ENOSPC | libc::EDQUOT => errno::ENOSPC,
        libc::EINVAL => errno::EINVAL,
        libc::EROFS | libc::EPERM => errno::EPERM,
        _ => errno::EIO,
    }
}

impl<S: Read + Write> Connection<'_, S> {
    fn export(&self) -> &dyn Export {
        self.chosen.export.as_ref()
    }

    fn answer(&mut self, request: &Request) -> NbdResult<()> {
        match request.command {
            command::READ => self.read(request),
            command::BLOCK_STATUS => self.block_status(request),
            command::HASHES => self.hashes(request),
            command::WRITE => {
                // The payload is on its way whatever we think of it. One that is too long for us ends the connection.
                if request.len > wire::MAX_PAYLOAD_BYTES {
                    return Err(NbdError::Protocol("a write is too long"));
                }
                self.buf.resize(request.len as usize, 0);
                self.stream.read_exact(&mut self.buf)?;
                let answer = self.change(request, |export, buf| export.write(request.offset, buf));
                self.simple(request, answer)
            }
            command::TRIM => {
                let len = u64::from(request.len);
                let answer = self.change(request, |export, _| export.discard(request.offset, len));
                self.simple(request, answer)
            }
            command::WRITE_ZEROES => {
                let keep_space = request.flags & command_flag::NO_HOLE != 0;
                let len = u64::from(request.len);
                let answer = self.change(request, |export, _| export.write_zeroes(request.offset, len, keep_space));
                self.simple(request, answer)
            }
            command::FLUSH => {
                let answer = self.export().flush().map_err(|error| number(&error));
                self.simple(request, answer)
            }
            _ => self.simple(request, Err(errno::EINVAL)),
        }
    }

    fn in_range(&self, request: &Request) -> Answer {
        match request.offset.checked_add(u64::from(request.len)) {
            Some(end) if end <= self.export().size_bytes() && request.len > 0 => Ok(()),
            _ => Err(errno::EINVAL),
        }
    }

    fn change(&self, request: &Request, act: impl FnOnce(&dyn Export, &[u8]) -> crate::Result<()>) -> Answer {
        if self.export().is_read_only() {
            return Err(errno::EPERM);
        }
        if request.flags & !(command_flag::FUA | command_flag::NO_HOLE) != 0 {
            return Err(errno::EINVAL);
        }
        self.in_range(request)
            .map_err(|_| if request.command == command::TRIM { errno::EINVAL } else { errno::ENOSPC })?;
        act(self.export(), &self.buf).map_err(|error| number(&error))?;
        if request.flags & command_flag::FUA != 0 {
            self.export().flush().map_err(|error| number(&error))?;
        }
        Ok(())
    }

    fn simple(&mut self, request: &Request, answer: Answer) -> NbdResult<()> {
        let error = answer.err().unwrap_or(0);
        self.stream.write_all(&wire::encode_simple_reply(error, request.cookie))?;
        Ok(self.stream.flush()?)
    }

    /// An error in the form that fits what was agreed on.
    fn fail(&mut self, request: &Request, error: u32) -> NbdResult<()> {
        if !self.chosen.structured {
            return self.simple(request, Err(error));
        }
        let mut payload = error.to_be_bytes().to_vec();
        payload.extend(0u16.to_be_bytes());
        self.chunk(request, chunk::ERROR_PLAIN, true, &payload, &[])
    }

    fn chunk(&mut self, request: &Request, kind: u16, done: bool, head: &[u8], payload: &[u8]) -> NbdResult<()> {
        let flags = if done { chunk::DONE } else { 0 };
        let len = (head.len() + payload.len()) as u32;
        let mut bytes = ChunkHeader { flags, kind, cookie: request.cookie, len }.encode().to_vec();
        bytes.extend(head);
        Ok(write_both(self.stream, &bytes, payload)?)
    }

    fn read(&mut self, request: &Request) -> NbdResult<()> {
        let answer = self.in_range(request).and_then(|()| {
            if request.len > wire::MAX_PAYLOAD_BYTES {
                return Err(errno::EOVERFLOW);
            }
            if request.flags & !(command_flag::DF | command_flag::FUA) != 0 {
                return Err(errno::EINVAL);
            }
            let mut buf = std::mem::take(&mut self.buf);
            buf.resize(request.len as usize, 0);
            let read = self.export().read(request.offset, &mut buf);
            self.buf = buf;
            read.map_err(|error| number(&error))
        });
        if let Err(error) = answer {
            return self.fail(request, error);
        }
        let buf = std::mem::take(&mut self.buf);
        let sent = self.send(request, &buf);
        self.buf = buf;
        sent
    }

    /// The bytes that were read; stretches of zeros cross the wire as a length.
    fn send(&mut self, request: &Request, buf: &[u8]) -> NbdResult<()> {
        if !self.chosen.structured {
            return Ok(write_both(self.stream, &wire::encode_simple_reply(0, request.cookie), buf)?);
        }
        let whole = request.flags & command_flag::DF != 0;
        let mut at = 0;
        while at < buf.len() {
            let (end, zero) = if whole { (buf.len(), false) } else { stretch(request.offset, buf, at) };
            let done = end == buf.len();
            let mut head = (request.offset + at as u64).to_be_bytes().to_vec();
            if zero {
                head.extend(((end - at) as u32).to_be_bytes());
                self.chunk(request, chunk::OFFSET_HOLE, done, &head, &[])?;
            } else {
                self.chunk(request, chunk::OFFSET_DATA, done, &head, &buf[at..end])?;
            }
            at = end;
        }
        Ok(())
    }

    fn block_status(&mut self, request: &Request) -> NbdResult<()> {
        let answer = self.in_range(request).and_then(|()| {
            if !self.chosen.contexts.allocation || request.flags & !command_flag::REQ_ONE != 0 {
                return Err(errno::EINVAL);
            }
            self.export().extents(request.offset, u64::from(request.len)).map_err(|error| number(&error))
        });
        let extents = match answer {
            Ok(extents) => extents,
            Err(error) => return self.fail(request, error),
        };
        let most = if request.flags & command_flag::REQ_ONE != 0 { 1 } else { wire::MAX_EXTENTS };
        let mut payload = ALLOCATION_ID.to_be_bytes().to_vec();
        for extent in extents.iter().take(most) {
            // An extent lies within the request, so its length fits 32 bits.
            payload.extend((extent.len as u32).to_be_bytes());
            payload.extend((if extent.zero { wire::STATE_HOLE | wire::STATE_ZERO } else { 0 }).to_be_bytes());
        }
        self.chunk(request, chunk::BLOCK_STATUS, true, &payload, &[])
    }

    fn hashes(&mut self, request: &Request) -> NbdResult<()> {
        let answer = self.in_range(request).and_then(|()| {
            let aligned = request.offset.is_multiple_of(BLOCK_BYTES);
            if !self.chosen.contexts.hashes || !aligned || request.len > wire::MAX_HASHED_BYTES {
                return Err(errno::EINVAL);
            }
            let count = u64::from(request.len).div_ceil(BLOCK_BYTES);
            self.export().hashes(request.offset / BLOCK_BYTES, count).map_err(|error| number(&error))
        });
        match answer {
            Ok(hashes) => {
                self.chunk(request, chunk::HASHES, true, &request.offset.to_be_bytes(), hashes.as_flattened())
            }
            Err(error) => self.fail(request, error),
        }
    }
}

/// Where the stretch that starts at `at` ends, and whether it is zeros, judged by whole blocks of the volume.
fn stretch(offset: u64, buf: &[u8], at: usize) -> (usize, bool) {
    let block_end = |at: usize| {
        let next = ((offset + at as u64) / BLOCK_BYTES + 1) * BLOCK_BYTES - offset;
        buf.len().min(next as usize)
    };
    let mut end = block_end(at);
    let zero = is_zero(&buf[at..end]);
    while end < buf.len() {
        let next = block_end(end);
        if is_zero(&buf[end..next]) != zero {
            break;
        }
        end = next;
    }
    (end, zero)
}
