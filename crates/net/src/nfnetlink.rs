//! Owns changes of set elements, spoken to the kernel directly: starting `nft` for
//! them costs more than all else on a Machine's way to its network (3 to 9 ms of
//! 16, measured with 100 Machines), and this is on the path of a waking request.
//! Must not know why an element is there. Tables, chains and rules are `nft.rs`.
//!
//! Wire form: netlink(7), linux/netfilter/nfnetlink.h and nf_tables.h. A batch is
//! one transaction: all of it or nothing.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::Error;
use crate::namespace::{self, Entry, io_error};
use crate::rules::Element;

/// The kernel answers inside `send`; a lost answer must still not hang a Machine.
const ANSWER_LIMIT_S: i64 = 10;
/// Answers quote the refused message; ours have less than 200 bytes.
const ANSWER_MAX_BYTES: usize = 16 << 10;
/// `IFNAMSIZ`: how wide an interface name is inside a key.
const NAME_WIDTH: usize = 16;

const NFNL_BATCH_BEGIN: u16 = 0x10;
const NFNL_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWSETELEM: u16 = NFNL_SUBSYS_NFTABLES << 8 | 12;
const NFT_MSG_DELSETELEM: u16 = NFNL_SUBSYS_NFTABLES << 8 | 14;
const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_KEY_END: u16 = 10;
const NFTA_DATA_VALUE: u16 = 1;
const NLA_NESTED: u16 = 1 << 15;
const NLM_REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const NLM_ACK: u16 = libc::NLM_F_ACK as u16;
const NLM_CREATE: u16 = libc::NLM_F_CREATE as u16;
/// `sizeof(struct nlmsghdr)`.
const HEADER_LEN: usize = 16;

/// A socket that stays with the namespace it was opened in. Locked for a whole
/// exchange, also when the caller that started it has gone.
pub(crate) struct Nfnetlink {
    socket: Arc<Mutex<OwnedFd>>,
}

impl Nfnetlink {
    pub(crate) async fn open(namespace: &File) -> Result<Self, Error> {
        let opened = namespace::on_thread(Entry::Into(namespace), || {
            let socket =
                socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
            setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(ANSWER_LIMIT_S))?;
            Ok::<_, io::Error>(socket)
        });
        let socket = opened
            .await
            .and_then(|opened| opened)
            .map_err(|source| io_error("open a netfilter socket in", Path::new("netns"), source))?;
        Ok(Self { socket: Arc::new(Mutex::new(socket)) })
    }

    /// Deletes `stale` and adds `wanted`, in one transaction. An element that is
    /// there already is no error; one to delete that is not is `NotFound`.
    pub(crate) async fn change(
        &self,
        table: &str,
        interface: &str,
        stale: &BTreeSet<Element>,
        wanted: &BTreeSet<Element>,
    ) -> io::Result<()> {
        let mut batch = Batch::default();
        for (kind, flags, elements) in
            [(NFT_MSG_DELSETELEM, NLM_ACK, stale), (NFT_MSG_NEWSETELEM, NLM_ACK | NLM_CREATE, wanted)]
        {
            for element in elements {
                batch.element(kind, flags, table, interface, element);
            }
        }
        let answers = batch.count;
        let bytes = batch.finish();
        let socket = Arc::clone(&self.socket);
        // The kernel works inside `send` and may wait there for other writers.
        tokio::task::spawn_blocking(move || {
            let socket = socket.lock().unwrap_or_else(PoisonError::into_inner);
            exchange(&socket, &bytes, answers)
        })
        .await
        .map_err(io::Error::other)?
    }
}

/// Sends a batch and reads one answer a message; the first refusal is the result.
/// (A batch refused as a whole, for want of a right, is answered once.)
fn exchange(socket: &OwnedFd, bytes: &[u8], answers: u32) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    let mut buffer = [0u8; ANSWER_MAX_BYTES];
    // What a call that gave up left behind must not be taken for our answer.
    while recv(fd, &mut buffer, MsgFlags::MSG_DONTWAIT).is_ok() {}
    send(fd, bytes, MsgFlags::empty())?;
    let mut verdict = Ok(());
    let mut seen = 0;
    while seen < answers {
        let len = recv(fd, &mut buffer, MsgFlags::empty())?;
        for errno in errors(&buffer[..len]) {
            if errno == libc::EPERM {
                return Err(io::Error::from_raw_os_error(errno));
            }
            seen += 1;
            if errno != 0 && verdict.is_ok() {
                verdict = Err(io::Error::from_raw_os_error(errno));
            }
        }
    }
    verdict
}

/// The error numbers (0 is an acknowledgement) of the messages in one datagram.
fn errors(mut datagram: &[u8]) -> Vec<i32> {
    let mut found = Vec::new();
    while datagram.len() >= HEADER_LEN + 4 {
        let word = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&datagram[at..at + 4]);
            i32::from_ne_bytes(bytes)
        };
        let kind = u16::from_ne_bytes([datagram[4], datagram[5]]);
        if i32::from(kind) == libc::NLMSG_ERROR {
            found.push(-word(HEADER_LEN));
        }
        let len = aligned(word(0).max(HEADER_LEN as i32) as usize);
        datagram = datagram.get(len..).unwrap_or_default();
    }
    found
}

/// A transaction under construction.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    count: u32,
}

impl Batch {
    fn element(&mut self, kind: u16, flags: u16, table: &str, interface: &str, element: &Element) {
        if self.count == 0 {
            let subsystem = NFNL_SUBSYS_NFTABLES;
            self.message(NFNL_BATCH_BEGIN, 0, NFPROTO_UNSPEC, subsystem, |_| {});
        }
        self.count += 1;
        let (first, last) = key(interface, element);
        self.message(kind, flags, NFPROTO_INET, 0, |bytes| {
            attribute(bytes, NFTA_SET_ELEM_LIST_TABLE, |b| text(b, table));
            attribute(bytes, NFTA_SET_ELEM_LIST_SET, |b| text(b, element.set()));
            nested(bytes, NFTA_SET_ELEM_LIST_ELEMENTS, |bytes| {
                nested(bytes, NFTA_LIST_ELEM, |bytes| {
                    for (kind, key) in [(NFTA_SET_ELEM_KEY, Some(&first)), (NFTA_SET_ELEM_KEY_END, last.as_ref())] {
                        let Some(key) = key else { continue };
                        nested(bytes, kind, |bytes| {
                            attribute(bytes, NFTA_DATA_VALUE, |b| b.extend_from_slice(key));
                        });
                    }
                });
            });
        });
    }

    fn finish(mut self) -> Vec<u8> {
        if self.count > 0 {
            let subsystem = NFNL_SUBSYS_NFTABLES;
            self.message(NFNL_BATCH_END, 0, NFPROTO_UNSPEC, subsystem, |_| {});
        }
        self.bytes
    }

    /// `struct nlmsghdr`, `struct nfgenmsg`, attributes.
    fn message(&mut self, kind: u16, flags: u16, family: u8, resource: u16, body: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | NLM_REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&self.count.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        body(&mut self.bytes);
        let len = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }
}

/// The key of an element, and its inclusive end in a set of intervals. Each part
/// of a concatenation starts on a multiple of four bytes.
fn key(interface: &str, element: &Element) -> (Vec<u8>, Option<Vec<u8>>) {
    let name = |address: &[u8]| {
        let mut key = vec![0; NAME_WIDTH];
        let len = interface.len().min(NAME_WIDTH - 1);
        key[..len].copy_from_slice(&interface.as_bytes()[..len]);
        key.extend_from_slice(address);
        key
    };
    match element {
        Element::Own6(address) => (name(&address.octets()), None),
        Element::Own4(address) => (name(&address.octets()), None),
        Element::Peers(base, len) => {
            let first = u128::from(Ipv6Addr::from(*base));
            let behind = u128::MAX.checked_shr(u32::from(*len)).unwrap_or(0);
            let last = Some(name(&(first | behind).to_be_bytes()));
            (name(&first.to_be_bytes()), last)
        }
    }
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
}

fn nested(bytes: &mut Vec<u8>, kind: u16, body: impl FnOnce(&mut Vec<u8>)) {
    attribute(bytes, kind | NLA_NESTED, body);
}

/// `struct nlattr`: length, kind, value, padded to four bytes.
fn attribute(bytes: &mut Vec<u8>, kind: u16, body: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(&kind.to_ne_bytes());
    body(bytes);
    let len = (bytes.len() - start) as u16;
    bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    bytes.resize(aligned(bytes.len()), 0);
}

fn aligned(len: usize) -> usize {
    len.next_multiple_of(4)
}
