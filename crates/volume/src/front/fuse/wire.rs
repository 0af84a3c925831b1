//! The kernel's FUSE structs (include/uapi/linux/fuse.h, 7.42 and before), as far as a file system of one file needs
//! them, and the calls on /dev/fuse. It must not know the device.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Largest read or write; loop and page cache send up to this.
pub const MAX_IO_BYTES: usize = 1 << 20;
/// Room for the head of any request, beside its payload.
pub const MAX_HEAD_BYTES: usize = 8192;
const HEAD: usize = 40;
const ROOT: u64 = 1;
pub const FILE: u64 = 2;
/// Attributes never change, so the kernel may keep them.
const VALID_S: u64 = 3600;
const MINOR: u32 = 42;

/// What the kernel wants, decoded as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Init {
        minor: u32,
        flags: u64,
    },
    Lookup,
    Attributes {
        node: u64,
    },
    SetAttributes {
        node: u64,
        size: Option<u64>,
    },
    Open {
        folder: bool,
    },
    Read {
        offset: u64,
        size: u32,
    },
    Write {
        offset: u64,
        size: u32,
    },
    Sync,
    Allocate {
        offset: u64,
        len: u64,
        mode: u32,
    },
    Statistics,
    /// Answered with nothing: release, flush and the like.
    Nothing,
    /// Not answered at all: forget, interrupt.
    Silent,
    Unknown,
}

#[derive(Debug)]
pub struct Request<'a> {
    /// With bit 63 as it came: a resent request whose answer lacks it waits for ever.
    pub unique: u64,
    pub operation: Operation,
    pub payload: &'a [u8],
}

pub enum Reply {
    Data,
    Error(i32),
}

impl<'a> Request<'a> {
    pub fn decode(message: &'a [u8]) -> Option<Self> {
        let (unique, node) = (u64_at(message, 8)?, u64_at(message, 16)?);
        let body = message.get(HEAD..)?;
        // What follows the operation's own struct.
        let after = |len: usize| body.get(len..);
        let (operation, payload) = match u32_at(message, 4)? {
            1 => (Operation::Lookup, body),
            2 | 36 | 42 => (Operation::Silent, body),
            3 => (Operation::Attributes { node }, body),
            4 => {
                const SIZE: u32 = 1 << 3;
                let size = if u32_at(body, 0)? & SIZE != 0 { Some(u64_at(body, 16)?) } else { None };
                (Operation::SetAttributes { node, size }, body)
            }
            14 => (Operation::Open { folder: false }, body),
            27 => (Operation::Open { folder: true }, body),
            15 => (Operation::Read { offset: u64_at(body, 8)?, size: u32_at(body, 16)? }, body),
            16 => (Operation::Write { offset: u64_at(body, 8)?, size: u32_at(body, 16)? }, after(40)?),
            17 => (Operation::Statistics, body),
            20 => (Operation::Sync, body),
            18 | 25 | 28 | 29 | 30 | 38 => (Operation::Nothing, body),
            26 => {
                let high = u32_at(body, 16).unwrap_or(0);
                let flags = u64::from(u32_at(body, 12)?) | u64::from(high) << 32;
                (Operation::Init { minor: u32_at(body, 4)?, flags }, body)
            }
            43 => {
                let (offset, len, mode) = (u64_at(body, 8)?, u64_at(body, 16)?, u32_at(body, 24)?);
                (Operation::Allocate { offset, len, mode }, body)
            }
            _ => (Operation::Unknown, body),
        };
        Some(Self { unique, operation, payload })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}
fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

fn push_u64(out: &mut Vec<u8>, values: &[u64]) {
    values.iter().for_each(|value| out.extend(value.to_le_bytes()));
}
fn push_u32(out: &mut Vec<u8>, values: &[u32]) {
    values.iter().for_each(|value| out.extend(value.to_le_bytes()));
}

/// fuse_init_out: what we can do, of what the kernel can.
pub fn init(minor: u32, offered: u64, out: &mut Vec<u8>) {
    const ASYNC_READ: u64 = 1;
    const BIG_WRITES: u64 = 1 << 5;
    const ASYNC_DIO: u64 = 1 << 15;
    const MAX_PAGES: u64 = 1 << 22;
    const INIT_EXT: u64 = 1 << 30;
    const HAS_RESEND: u64 = 1 << 39;
    /// More than the loop device ever has in flight: reads that wait for the source must not hold up the others.
    const BACKGROUND: u16 = 256;
    let flags = offered & (ASYNC_READ | BIG_WRITES | ASYNC_DIO | MAX_PAGES | INIT_EXT | HAS_RESEND);
    push_u32(out, &[7, MINOR.min(minor), MAX_IO_BYTES as u32, flags as u32]);
    out.extend(BACKGROUND.to_le_bytes());
    out.extend((BACKGROUND * 3 / 4).to_le_bytes());
    push_u32(out, &[MAX_IO_BYTES as u32, 1]);
    out.extend(((MAX_IO_BYTES / 4096) as u16).to_le_bytes());
    out.extend(0u16.to_le_bytes());
    push_u32(out, &[(flags >> 32) as u32]);
    out.extend([0; 28]);
}

/// fuse_attr, 88 bytes.
fn attr(node: u64, size: u64, out: &mut Vec<u8>) {
    let (mode, size) = if node == ROOT { (0o040_700, 0) } else { (0o100_600, size) };
    push_u64(out, &[node, size, size / 512, 0, 0, 0]);
    push_u32(out, &[0, 0, 0, mode, 1, 0, 0, 0, 4096, 0]);
}

/// fuse_entry_out of the one file.
pub fn entry(size: u64, out: &mut Vec<u8>) {
    push_u64(out, &[FILE, 0, VALID_S, VALID_S, 0]);
    attr(FILE, size, out);
}

/// fuse_attr_out.
pub fn attributes(node: u64, size: u64, out: &mut Vec<u8>) {
    push_u64(out, &[VALID_S, 0]);
    attr(node, size, out);
}

/// fuse_open_out: no page cache of the kernel's on the file, and writes side by side.
pub fn opened(folder: bool, out: &mut Vec<u8>) {
    const DIRECT_IO: u32 = 1;
    const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
    push_u64(out, &[0]);
    push_u32(out, &[if folder { 0 } else { DIRECT_IO | PARALLEL_DIRECT_WRITES }, 0]);
}

/// fuse_write_out.
pub fn written(size: u32, out: &mut Vec<u8>) {
    push_u32(out, &[size, 0]);
}

/// fuse_statfs_out: one full file.
pub fn statistics(size: u64, out: &mut Vec<u8>) {
    push_u64(out, &[size / 4096, 0, 0, 2, 0]);
    push_u32(out, &[4096, 255, 4096, 0, 0, 0, 0, 0, 0, 0]);
}

/// The next request's length; `None` once the file system is unmounted or aborted.
pub fn read(fuse: &File, buf: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        // SAFETY: reads at most `buf.len()` bytes into `buf`, which lives through the call.
        let len = unsafe { libc::read(fuse.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len()) };
        if len >= 0 {
            return Ok(Some(len as usize));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // ENOENT: the request was taken back before we read it.
            Some(libc::EINTR | libc::EAGAIN | libc::ENOENT) => {}
            Some(libc::ENODEV | libc::ECONNABORTED) => return Ok(None),
            _ => return Err(error),
        }
    }
}

/// fuse_out_header and the data, which must go in one write.
pub fn reply(fuse: &File, unique: u64, reply: Reply, data: &[u8]) -> io::Result<()> {
    let (error, data) = match reply {
        Reply::Data => (0, data),
        Reply::Error(error) => (-error, &[][..]),
    };
    let mut head = [0; 16];
    head[..4].copy_from_slice(&((16 + data.len()) as u32).to_le_bytes());
    head[4..8].copy_from_slice(&error.to_le_bytes());
    head[8..].copy_from_slice(&unique.to_le_bytes());
    send(fuse, &[io::IoSlice::new(&head), io::IoSlice::new(data)])
}

/// FUSE_NOTIFY_RESEND: gives back every request that was read and not answered.
pub fn send_resend(fuse: &File) -> io::Result<()> {
    const RESEND: i32 = 7;
    let mut head = [0; 16];
    head[..4].copy_from_slice(&16u32.to_le_bytes());
    head[4..8].copy_from_slice(&RESEND.to_le_bytes());
    send(fuse, &[io::IoSlice::new(&head)])
}

fn send(mut fuse: &File, parts: &[io::IoSlice<'_>]) -> io::Result<()> {
    match io::Write::write_vectored(&mut fuse, parts) {
        Ok(_) => Ok(()),
        // The request was taken back (ENOENT) or the file system is gone: nobody waits for this answer.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
        Err(error) => Err(error),
    }
}
