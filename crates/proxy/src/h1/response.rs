//! A Machine's answer: its head, and how its body ends.
//!
//! A little less strict than requests, where leniency cannot lead anyone astray: what the client gets is written anew,
//! and the connection to the Machine carries one app's requests only. Where it ends must be as clear.

use std::mem::MaybeUninit;

use super::framing::Framing;
use super::grammar::{self, Side};
use super::head::{Field, Meaning, Span, Version, length, read_options, reason, unfinished, window};
use super::limits::{Limits, MAX_FIELDS};
use super::names::{Class, classify, same};
use super::refusal::Refusal;

/// A list of equal lengths, as some servers join them; more is no mistake any more.
const MAX_LENGTHS: usize = 4;

/// An answer's head; used again for each answer of a connection.
#[derive(Debug)]
pub struct ResponseHead {
    fields: Vec<Field>,
    pub status: u16,
    pub reason: Span,
    pub version: Version,
    /// What Content-Length says; of HEAD and 304 it is about a body that does not come.
    pub length: Option<u64>,
    pub chunked: bool,
    /// Whether the Machine means to use the connection again.
    pub keep_alive: bool,
    pub upgrade: Option<Span>,
}

impl Default for ResponseHead {
    fn default() -> Self {
        Self {
            fields: Vec::new(),
            status: 0,
            reason: Span::default(),
            version: Version::V11,
            length: None,
            chunked: false,
            keep_alive: false,
            upgrade: None,
        }
    }
}

impl ResponseHead {
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    pub fn forget(&mut self) {
        self.fields = Vec::new();
    }

    /// As `RequestHead::parse`.
    pub fn parse(&mut self, buf: &[u8], scan: &mut usize, limits: &Limits) -> Result<Option<usize>, Refusal> {
        let Some(window) = window(buf, scan, Side::Response, limits)? else { return Ok(None) };
        let mut headers = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut []);
        let mut config = httparse::ParserConfig::default();
        config.allow_spaces_after_header_name_in_responses(true);
        match config.parse_response_with_uninit_headers(&mut response, window, &mut headers) {
            Ok(httparse::Status::Complete(size)) => {
                let head = &window[..size];
                self.status = response.code.unwrap_or(0);
                if !(100..600).contains(&self.status) || response.headers.len() > limits.fields {
                    return Err(reason(window, Side::Response, limits));
                }
                self.reason = match response.reason {
                    // `httparse` hands out a constant where there is none.
                    None | Some("") => Span::default(),
                    Some(phrase) => Span::of(window, phrase.as_bytes()),
                };
                self.version = if response.version == Some(0) { Version::V10 } else { Version::V11 };
                self.understand(head, response.headers)?;
                Ok(Some(size))
            }
            Ok(httparse::Status::Partial) => unfinished(window, scan, Side::Response, limits),
            Err(_) => match grammar::read(window, Side::Response, limits)? {
                None => unfinished(window, scan, Side::Response, limits),
                Some(_) => Err(Refusal::BadStatus),
            },
        }
    }

    fn understand(&mut self, head: &[u8], headers: &[httparse::Header<'_>]) -> Result<(), Refusal> {
        let meaning = read(&mut self.fields, head, headers)?;
        self.length = meaning.length;
        self.chunked = meaning.chunked;
        let old = self.version == Version::V10;
        // Only where a body may come does it matter how it would be framed.
        if self.may_have_body() && meaning.chunked {
            if old {
                return Err(Refusal::EncodingInOld);
            }
            if meaning.length.is_some() {
                return Err(Refusal::LengthAndEncoding);
            }
        }
        self.keep_alive = !meaning.close && (!old || meaning.keep_alive);
        self.upgrade = meaning.upgrade.filter(|_| meaning.upgrade_option);
        Ok(())
    }

    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status)
    }

    fn may_have_body(&self) -> bool {
        !self.is_interim() && self.status != 204 && self.status != 304
    }

    /// How the body ends (RFC 9112 section 6.3).
    pub fn framing(&self, to_head: bool) -> Framing {
        match self.length {
            _ if to_head || !self.may_have_body() => Framing::None,
            _ if self.chunked => Framing::Chunked,
            Some(0) => Framing::None,
            Some(length) => Framing::Length(length),
            None => Framing::UntilClose,
        }
    }
}

/// As `head::read_fields`, for the fields that mean something in an answer.
fn read(fields: &mut Vec<Field>, head: &[u8], headers: &[httparse::Header<'_>]) -> Result<Meaning, Refusal> {
    let mut meaning = Meaning::default();
    let mut options = false;
    fields.clear();
    fields.reserve(headers.len());
    for header in headers {
        let mut class = classify(header.name.as_bytes());
        let value = Span::of(head, header.value);
        match class {
            Class::Plain | Class::EndToEnd => {}
            Class::Connection => options = true,
            // A copy is told apart from a contradiction; no client sees more than one.
            Class::ContentLength => {
                let length = one_length(header.value)?;
                if meaning.length.is_some_and(|stated| stated != length) {
                    return Err(Refusal::DuplicateLength);
                }
                meaning.length = Some(length);
            }
            Class::TransferEncoding if meaning.chunked => return Err(Refusal::DuplicateEncoding),
            Class::TransferEncoding if same(header.value, b"chunked") => meaning.chunked = true,
            Class::TransferEncoding => return Err(Refusal::BadEncoding),
            Class::Upgrade => meaning.upgrade = Some(value),
            // They mean nothing here, and X-Forwarded-* in an answer speaks to nobody.
            Class::Host | Class::Expect => class = Class::Hop,
            Class::Hop | Class::Platform | Class::Masquerade => {}
        }
        fields.push(Field { name: Span::of(head, header.name.as_bytes()), value, class });
    }
    if options {
        read_options(fields, head, &mut meaning)?;
    }
    Ok(meaning)
}

/// `5`, or `5, 5`.
fn one_length(value: &[u8]) -> Result<u64, Refusal> {
    let mut parts = value.split(|&b| b == b',');
    let first = length(parts.next().unwrap_or_default().trim_ascii())?;
    for (index, part) in parts.enumerate() {
        if index + 2 > MAX_LENGTHS || length(part.trim_ascii())? != first {
            return Err(Refusal::DuplicateLength);
        }
    }
    Ok(first)
}
