//! The server's first phase: options, until the client has chosen an export, asks for TLS, or leaves. It owns what is
//! refused and when; it must not know sockets, TLS or threads.
//!
//! Where TLS is required, nothing but STARTTLS and ABORT is answered before it, so a name and its token never cross
//! the wire in the clear. After STARTTLS whatever was negotiated before is forgotten. Nothing is read ahead of need
//! here, so no plaintext can wait in a buffer to be believed after the handshake.

use std::io::{Read, Write};
use std::sync::Arc;

use super::export::{Export, Exports, Peer};
use super::wire::{self, export_flag, info, option, reply};
use super::{NbdError, NbdResult};
use crate::map::BLOCK_BYTES;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsState {
    /// Not offered.
    Off,
    /// Nothing goes before STARTTLS.
    Needed,
    Active,
}

/// What the transmission phase starts from.
pub struct Chosen {
    pub export: Arc<dyn Export>,
    pub structured: bool,
    pub contexts: Contexts,
}

/// The meta contexts of a connection; their ids are fixed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Contexts {
    pub allocation: bool,
    pub hashes: bool,
}

pub const ALLOCATION_ID: u32 = 1;
pub const HASHES_ID: u32 = 2;

pub enum Outcome {
    Go(Chosen),
    StartTls,
    Left,
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Go(_) => "Go",
            Self::StartTls => "StartTls",
            Self::Left => "Left",
        })
    }
}

/// The greeting, both ways. Says whether the client wants no zeroes after EXPORT_NAME.
pub fn greet(stream: &mut (impl Read + Write)) -> NbdResult<bool> {
    let mut hello = Vec::with_capacity(18);
    hello.extend(wire::NBDMAGIC.to_be_bytes());
    hello.extend(wire::IHAVEOPT.to_be_bytes());
    hello.extend((wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES).to_be_bytes());
    stream.write_all(&hello)?;
    stream.flush()?;
    let mut flags = [0; 4];
    stream.read_exact(&mut flags)?;
    match u32::from_be_bytes(flags) {
        flags if flags & !3 != 0 => Err(NbdError::Protocol("unknown client flags")),
        flags if flags & 1 == 0 => Err(NbdError::Protocol("a client that is not fixed newstyle")),
        flags => Ok(flags & 2 != 0),
    }
}

/// One round of options.
pub struct Negotiation<'a> {
    pub exports: &'a dyn Exports,
    pub peer: Peer,
    pub tls: TlsState,
    pub no_zeroes: bool,
}

/// What has been agreed on so far.
#[derive(Default)]
struct Agreed {
    structured: bool,
    contexts: Contexts,
    /// Contexts count for this export only.
    contexts_of: String,
}

impl Negotiation<'_> {
    pub fn run(&self, stream: &mut (impl Read + Write)) -> NbdResult<Outcome> {
        let mut agreed = Agreed::default();
        let mut data = Vec::new();
        for _ in 0..wire::MAX_OPTIONS {
            let mut header = [0; wire::OPTION_HEADER_BYTES];
            stream.read_exact(&mut header)?;
            let (option, len) = wire::decode_option_header(&header)?;
            if len > wire::MAX_OPTION_BYTES {
                return Err(NbdError::Protocol("an option is too long"));
            }
            data.resize(len as usize, 0);
            stream.read_exact(&mut data)?;
            if let Some(outcome) = self.answer(stream, &mut agreed, option, &data)? {
                return Ok(outcome);
            }
        }
        Err(NbdError::Protocol("too many options"))
    }

    fn answer(
        &self,
        stream: &mut (impl Read + Write),
        agreed: &mut Agreed,
        option: u32,
        data: &[u8],
    ) -> NbdResult<Option<Outcome>> {
        let mut say = |kind: u32, data: &[u8]| -> NbdResult<()> {
            stream.write_all(&wire::encode_option_reply(option, kind, data))?;
            Ok(stream.flush()?)
        };
        match option {
            option::ABORT => {
                // A client may be gone before it reads the answer.
                let _ = say(reply::ACK, &[]);
                return Ok(Some(Outcome::Left));
            }
            option::STARTTLS => match self.tls {
                _ if !data.is_empty() => say(reply::ERR_INVALID, b"STARTTLS carries no data")?,
                TlsState::Off => say(reply::ERR_POLICY, b"TLS is not offered here")?,
                TlsState::Active => say(reply::ERR_INVALID, b"TLS is on already")?,
                TlsState::Needed => {
                    say(reply::ACK, &[])?;
                    return Ok(Some(Outcome::StartTls));
                }
            },
            // It knows no error reply: the connection ends.
            option::EXPORT_NAME if self.tls == TlsState::Needed => {
                return Err(NbdError::Protocol("EXPORT_NAME before TLS"));
            }
            _ if self.tls == TlsState::Needed => say(reply::ERR_TLS_REQD, b"TLS first")?,
            option::EXPORT_NAME => return self.export_name(stream, agreed, data).map(Some),
            option::LIST if !data.is_empty() => say(reply::ERR_INVALID, b"LIST carries no data")?,
            option::LIST => {
                for name in self.exports.list() {
                    let mut entry = Vec::new();
                    wire::encode_text(&name, &mut entry);
                    say(reply::SERVER, &entry)?;
                }
                say(reply::ACK, &[])?;
            }
            option::STRUCTURED_REPLY if !data.is_empty() => say(reply::ERR_INVALID, b"no data goes with it")?,
            option::STRUCTURED_REPLY => {
                agreed.structured = true;
                say(reply::ACK, &[])?;
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta(&mut say, agreed, option, data)?,
            option::INFO | option::GO => return self.info(&mut say, agreed, option, data),
            _ => say(reply::ERR_UNSUP, b"not known here")?,
        }
        Ok(None)
    }

    fn info(
        &self,
        say: &mut dyn FnMut(u32, &[u8]) -> NbdResult<()>,
        agreed: &mut Agreed,
        option: u32,
        data: &[u8],
    ) -> NbdResult<Option<Outcome>> {
        let Ok((name, wished)) = wire::decode_go(data) else {
            say(reply::ERR_INVALID, b"malformed")?;
            return Ok(None);
        };
        let Some(export) = self.exports.open(name, &self.peer) else {
            say(reply::ERR_UNKNOWN, b"no such export")?;
            return Ok(None);
        };
        let mut facts = info::EXPORT.to_be_bytes().to_vec();
        facts.extend(export.size_bytes().to_be_bytes());
        facts.extend(flags(export.as_ref(), agreed.structured).to_be_bytes());
        say(reply::INFO, &facts)?;
        if wished.contains(&info::NAME) {
            let mut facts = info::NAME.to_be_bytes().to_vec();
            facts.extend(name.as_bytes());
            say(reply::INFO, &facts)?;
        }
        let mut facts = info::BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [1, BLOCK_BYTES as u32, wire::MAX_PAYLOAD_BYTES] {
            facts.extend(size.to_be_bytes());
        }
        say(reply::INFO, &facts)?;
        say(reply::ACK, &[])?;
        if option == option::INFO {
            return Ok(None);
        }
        let contexts = if agreed.contexts_of == name { agreed.contexts } else { Contexts::default() };
        Ok(Some(Outcome::Go(Chosen { export, structured: agreed.structured, contexts })))
    }

    fn export_name(&self, stream: &mut impl Write, agreed: &Agreed, data: &[u8]) -> NbdResult<Outcome> {
        let name = std::str::from_utf8(data).map_err(|_| NbdError::Protocol("a name is not UTF-8"))?;
        let export = self.exports.open(name, &self.peer).ok_or(NbdError::Protocol("no such export"))?;
        let mut answer = export.size_bytes().to_be_bytes().to_vec();
        answer.extend(flags(export.as_ref(), agreed.structured).to_be_bytes());
        if !self.no_zeroes {
            answer.extend([0; 124]);
        }
        stream.write_all(&answer)?;
        stream.flush()?;
        let contexts = if agreed.contexts_of == name { agreed.contexts } else { Contexts::default() };
        Ok(Outcome::Go(Chosen { export, structured: agreed.structured, contexts }))
    }

    fn meta(
        &self,
        say: &mut dyn FnMut(u32, &[u8]) -> NbdResult<()>,
        agreed: &mut Agreed,
        option: u32,
        data: &[u8],
    ) -> NbdResult<()> {
        let set = option == option::SET_META_CONTEXT;
        if set {
            // Even a failed SET forgets what an earlier one chose.
            agreed.contexts = Contexts::default();
        }
        if !agreed.structured {
            return say(reply::ERR_INVALID, b"structured replies first");
        }
        let Ok((name, queries)) = wire::decode_meta(data) else {
            return say(reply::ERR_INVALID, b"malformed");
        };
        let Some(export) = self.exports.open(name, &self.peer) else {
            return say(reply::ERR_UNKNOWN, b"no such export");
        };
        let has = |context: &str, namespace: &str| {
            let named = queries.contains(&context);
            if set { named } else { named || queries.is_empty() || queries.contains(&namespace) }
        };
        let chosen = Contexts {
            allocation: has(wire::CONTEXT_ALLOCATION, "base:"),
            hashes: has(wire::CONTEXT_BLAKE3, "godwit:") && export.has_manifest(),
        };
        let listed = [
            (chosen.allocation, ALLOCATION_ID, wire::CONTEXT_ALLOCATION),
            (chosen.hashes, HASHES_ID, wire::CONTEXT_BLAKE3),
        ];
        for (_, id, context) in listed.into_iter().filter(|(chosen, ..)| *chosen) {
            let mut entry = (if set { id } else { 0 }).to_be_bytes().to_vec();
            entry.extend(context.as_bytes());
            say(reply::META_CONTEXT, &entry)?;
        }
        if set {
            agreed.contexts = chosen;
            agreed.contexts_of = name.to_owned();
        }
        say(reply::ACK, &[])
    }
}

/// CAN_MULTI_CONN holds because all connections share one export, and a flush on it covers all of them.
fn flags(export: &dyn Export, structured: bool) -> u16 {
    let mut flags =
        export_flag::HAS_FLAGS | export_flag::SEND_FLUSH | export_flag::SEND_FUA | export_flag::CAN_MULTI_CONN;
    if structured {
        flags |= export_flag::SEND_DF;
    }
    flags
        | if export.is_read_only() {
            export_flag::READ_ONLY
        } else {
            export_flag::SEND_TRIM | export_flag::SEND_WRITE_ZEROES
        }
}
