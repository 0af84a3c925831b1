//! A request's head: from bytes to what it means, or to the reason why it means nothing.
//!
//! A head is kept as positions in the caller's buffer, in a list that is used again for the next one: no allocation a
//! field, nothing copied. The caller keeps the buffer until it has read what it needs.
//!
//! Strict by choice where RFC 9112 lets a server choose: a line ends in CR LF; Content-Length stands once, alone, and
//! in digits; Transfer-Encoding is `chunked` and nothing else. A target's authority and Host may differ in a default port
//! alone. A sender that does otherwise is broken or is trying
//! to be read in two ways.

use std::mem::MaybeUninit;

use super::framing::Framing;
use super::grammar::{self, Side};
use super::host::{is_authority, same_authority};
use super::limits::{Limits, MAX_FIELDS, MAX_HEAD_BYTES, MAX_METHOD_BYTES};
use super::names::{Class, classify, same};
use super::refusal::Refusal;

/// Options of all Connection fields of a message.
const MAX_OPTIONS: usize = 32;
/// A field list that is kept between heads has at most this capacity: an idle connection holds little.
const KEPT_FIELDS: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V10,
    V11,
}

/// A part of the buffer that a head was parsed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    start: u16,
    len: u16,
}

impl Span {
    /// `part` lies in `buf`, which has at most `MAX_HEAD_BYTES`.
    #[inline]
    pub(super) fn of(buf: &[u8], part: &[u8]) -> Self {
        let start = (part.as_ptr() as usize).wrapping_sub(buf.as_ptr() as usize);
        debug_assert!(start + part.len() <= buf.len() && buf.len() <= MAX_HEAD_BYTES);
        Self { start: start as u16, len: part.len() as u16 }
    }

    #[inline]
    pub fn range(self) -> std::ops::Range<usize> {
        let start = usize::from(self.start);
        start..start + usize::from(self.len)
    }

    #[inline]
    pub fn in_buf(self, buf: &[u8]) -> &[u8] {
        buf.get(self.range()).unwrap_or_default()
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Field {
    pub name: Span,
    pub value: Span,
    pub class: Class,
}

/// What one head says, request or answer, beside its first line.
#[derive(Debug, Default)]
pub(super) struct Meaning {
    pub length: Option<u64>,
    pub chunked: bool,
    pub close: bool,
    pub keep_alive: bool,
    pub upgrade_option: bool,
    pub upgrade: Option<Span>,
    pub host: Option<Span>,
    pub expect: Option<Span>,
}

/// A request's head; used again for each request of a connection.
#[derive(Debug)]
pub struct RequestHead {
    fields: Vec<Field>,
    pub method: Span,
    /// As it came; see `path`.
    pub target: Span,
    /// Origin form, ready to be sent on: empty only for an absolute target without a path.
    path: Span,
    pub version: Version,
    /// The authority; it is the Host field's, and the absolute target's if it has one.
    pub host: Span,
    pub framing: Framing,
    /// Whether the client means to use the connection again.
    pub keep_alive: bool,
    /// The client waits for a word before it sends the body (RFC 9110 section 10.1.1).
    pub expects_continue: bool,
    /// The protocol that the client would rather speak.
    pub upgrade: Option<Span>,
    pub is_head: bool,
}

impl Default for RequestHead {
    fn default() -> Self {
        Self {
            fields: Vec::new(),
            method: Span::default(),
            target: Span::default(),
            path: Span::default(),
            version: Version::V11,
            host: Span::default(),
            framing: Framing::None,
            keep_alive: false,
            expects_continue: false,
            upgrade: None,
            is_head: false,
        }
    }
}

impl RequestHead {
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// What goes into the request line of the next hop: the target's path and query.
    pub fn path<'b>(&self, buf: &'b [u8]) -> &'b [u8] {
        match self.path.in_buf(buf) {
            [] if self.method.in_buf(buf) == b"OPTIONS" => b"*",
            [] => b"/",
            path => path,
        }
    }

    /// Where the path stands, unless it stands nowhere.
    pub(super) fn path_span(&self) -> Option<Span> {
        (self.path.len > 0).then_some(self.path)
    }

    /// Gives back what a large head took.
    pub fn forget(&mut self) {
        self.fields.clear();
        self.fields.shrink_to(KEPT_FIELDS);
    }

    /// Reads the head at the start of `buf`: its length once it is whole. `scan` remembers between calls, with the
    /// same buffer grown at its end, how far it was looked at; it starts at 0.
    pub fn parse(&mut self, buf: &[u8], scan: &mut usize, limits: &Limits) -> Result<Option<usize>, Refusal> {
        let Some(window) = window(buf, scan, Side::Request, limits)? else { return Ok(None) };
        let mut headers = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut []);
        match request.parse_with_uninit_headers(window, &mut headers) {
            Ok(httparse::Status::Complete(length)) => {
                // Complete heads have all parts of the first line.
                let (Some(method), Some(target)) = (request.method, request.path) else {
                    return Err(Refusal::BadTarget);
                };
                let head = &window[..length];
                self.method = Span::of(window, method.as_bytes());
                self.target = Span::of(window, target.as_bytes());
                self.version = if request.version == Some(0) { Version::V10 } else { Version::V11 };
                if !self.lines_end_in_crlf(head, request.headers) || request.headers.len() > limits.fields {
                    return Err(reason(window, Side::Request, limits));
                }
                if !target_is_plain(target.as_bytes(), limits) || method.len() > MAX_METHOD_BYTES {
                    return Err(reason(window, Side::Request, limits));
                }
                let meaning = read_fields(&mut self.fields, head, request.headers)?;
                self.understand(head, &meaning)?;
                Ok(Some(length))
            }
            Ok(httparse::Status::Partial) => unfinished(window, scan, Side::Request, limits),
            Err(_) => match grammar::read(window, Side::Request, limits)? {
                None => unfinished(window, scan, Side::Request, limits),
                // `httparse` knows 1.0 and 1.1 only. The copy has the same positions.
                Some(_) if let Some(known) = as_known_version(window) => self.parse(&known, scan, limits),
                // The two parsers agree (a property test holds them to it); if ever not, the stricter one is right.
                Some(_) => Err(Refusal::BadName),
            },
        }
    }

    /// `httparse` lets a line end in LF.
    fn lines_end_in_crlf(&self, head: &[u8], headers: &[httparse::Header<'_>]) -> bool {
        let crlf_before = |at: usize| at >= 2 && head[at - 2] == b'\r';
        headers.iter().all(|header| crlf_before(usize::from(Span::of(head, header.name.as_bytes()).start)))
            && head.ends_with(b"\r\n\r\n")
    }

    fn understand(&mut self, buf: &[u8], meaning: &Meaning) -> Result<(), Refusal> {
        let method = self.method.in_buf(buf);
        if matches!(method, b"CONNECT" | b"TRACE") {
            return Err(Refusal::MethodNotAllowed);
        }
        self.is_head = method == b"HEAD";
        self.route(buf, meaning)?;
        let old = self.version == Version::V10;
        self.framing = match (meaning.chunked, meaning.length) {
            (true, _) if old => return Err(Refusal::EncodingInOld),
            (true, Some(_)) => return Err(Refusal::LengthAndEncoding),
            (true, None) => Framing::Chunked,
            (false, Some(length)) if length > 0 => Framing::Length(length),
            (false, _) => Framing::None,
        };
        self.keep_alive = !meaning.close && (!old || meaning.keep_alive);
        self.expects_continue = match meaning.expect {
            None => false,
            Some(_) if old => false,
            Some(expect) if same(expect.in_buf(buf), b"100-continue") => self.framing != Framing::None,
            Some(_) => return Err(Refusal::BadExpect),
        };
        // A body before the switch would leave open who reads what follows it: such a request is an ordinary one.
        self.upgrade = match meaning.upgrade {
            Some(protocol) if meaning.upgrade_option && !old && self.framing == Framing::None => {
                switchable(protocol.in_buf(buf)).then_some(protocol)
            }
            _ => None,
        };
        Ok(())
    }

    /// The target's form, and that it and Host name one authority (RFC 9112 section 3.2).
    fn route(&mut self, buf: &[u8], meaning: &Meaning) -> Result<(), Refusal> {
        let target = self.target.in_buf(buf);
        let old = self.version == Version::V10;
        match meaning.host {
            Some(host) if !is_authority(host.in_buf(buf)) => return Err(Refusal::BadHost),
            Some(host) => self.host = host,
            // HTTP/1.0 knows no Host; an absolute target names one all the same.
            None if old && !matches!(target[0], b'/' | b'*') => {}
            None => return Err(Refusal::NoHost),
        }
        if target[0] == b'/' {
            self.path = self.target;
            return Ok(());
        }
        if target == b"*" {
            self.path = self.target;
            return if self.method.in_buf(buf) == b"OPTIONS" { Ok(()) } else { Err(Refusal::BadTarget) };
        }
        let after_scheme = match target.iter().position(|&b| b == b':') {
            Some(4) if same(&target[..4], b"http") => 5,
            Some(5) if same(&target[..5], b"https") => 6,
            _ => return Err(Refusal::BadTarget),
        };
        let rest = target[after_scheme..].strip_prefix(b"//").ok_or(Refusal::BadTarget)?;
        let end = rest.iter().position(|&b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
        if !is_authority(&rest[..end]) {
            return Err(Refusal::BadTarget);
        }
        let (authority, port): (_, &[u8]) = (&rest[..end], if after_scheme == 5 { b"80" } else { b"443" });
        match meaning.host.map(|host| host.in_buf(buf)) {
            Some(host) if host.eq_ignore_ascii_case(authority) => {}
            Some(host) if !same_authority(host, authority, port) => return Err(Refusal::HostMismatch),
            // What the target says goes on as Host (RFC 9112 section 3.2.2).
            _ => self.host = Span::of(buf, authority),
        }
        // `http://a?q` has no path to send on; nobody needs it enough to have one made up.
        if rest.get(end) == Some(&b'?') {
            return Err(Refusal::BadTarget);
        }
        self.path = Span::of(buf, &rest[end..]);
        Ok(())
    }
}

/// What of `buf` is to be parsed now, or nothing if a head cannot have become whole since the last look.
pub(super) fn window<'b>(
    buf: &'b [u8],
    scan: &mut usize,
    side: Side,
    limits: &Limits,
) -> Result<Option<&'b [u8]>, Refusal> {
    let window = &buf[..buf.len().min(limits.head_bytes)];
    match window.first() {
        None => return Ok(None),
        // TLS on a plain port, empty lines, binary noise: no need to wait for a line's end.
        Some(&0) => return Err(Refusal::Nul),
        Some(&b'\r') if side == Side::Request => return Err(Refusal::BadMethod),
        Some(&b) if !grammar::is_tchar(b) => {
            return Err(if side == Side::Request { Refusal::BadMethod } else { Refusal::BadVersion });
        }
        Some(_) => {}
    }
    // The first look is a parse at once: most heads arrive whole. After that a dripping sender costs one more parse.
    if *scan == 0 || window.len() == limits.head_bytes || has_blank_line(window, *scan) {
        return Ok(Some(window));
    }
    *scan = window.len();
    Ok(None)
}

/// Whether a blank line ends after `from`.
fn has_blank_line(buf: &[u8], from: usize) -> bool {
    (from..buf.len()).any(|at| buf[at] == b'\n' && matches!(buf[..at], [.., b'\n'] | [.., b'\n', b'\r']))
}

pub(super) fn unfinished(
    window: &[u8],
    scan: &mut usize,
    side: Side,
    limits: &Limits,
) -> Result<Option<usize>, Refusal> {
    if window.len() < limits.head_bytes {
        *scan = window.len();
        return Ok(None);
    }
    grammar::read(window, side, limits)?;
    Err(Refusal::HeadTooLarge)
}

/// The peer ended in the middle of a head: why it is refused.
#[cold]
pub(super) fn cut(buf: &[u8], side: Side, limits: &Limits) -> Refusal {
    let window = &buf[..buf.len().min(limits.head_bytes)];
    grammar::read(window, side, limits).err().unwrap_or(Refusal::CutHead)
}

#[cold]
pub(super) fn reason(window: &[u8], side: Side, limits: &Limits) -> Refusal {
    // What was found to be wrong is wrong by the grammar too; if ever not, it is refused all the same.
    grammar::read(window, side, limits).err().unwrap_or(Refusal::BadName)
}

/// A head of HTTP/1.2 to 1.9, as one of HTTP/1.1, which is how it is meant to be read (RFC 9110 section 2.5).
#[cold]
fn as_known_version(window: &[u8]) -> Option<Vec<u8>> {
    let end = window.iter().position(|&b| b == b'\r')?;
    let minor = end.checked_sub(1)?;
    let newer = window.get(..minor)?.ends_with(b" HTTP/1.") && matches!(window[minor], b'2'..=b'9');
    newer.then(|| {
        let mut known = window.to_vec();
        known[minor] = b'1';
        known
    })
}

/// A coding that is not ours to understand, or what is no list of codings with `chunked` at its end.
#[cold]
fn encoding(value: &[u8]) -> Refusal {
    let mut codings = value.split(|&b| b == b',').map(<[u8]>::trim_ascii).rev().enumerate();
    let fine = |(from_end, coding): (usize, &[u8])| {
        let token = !coding.is_empty() && coding.iter().all(|&b| grammar::is_tchar(b));
        token && (from_end == 0 || !same(coding, b"chunked"))
    };
    if codings.all(fine) { Refusal::UnknownEncoding } else { Refusal::BadEncoding }
}

fn target_is_plain(target: &[u8], limits: &Limits) -> bool {
    target.len() <= limits.target_bytes && target.iter().all(|&b| b < 0x7f && b != b'#')
}

/// A protocol that may take a connection over. `h2c`, `TLS` and other versions of HTTP may not: behind them a client
/// could speak to the Machine past every check.
fn switchable(protocol: &[u8]) -> bool {
    let name = protocol.split(|&b| b == b'/').next().unwrap_or_default();
    let token = !protocol.is_empty() && protocol.iter().all(|&b| grammar::is_tchar(b) || b == b'/');
    token && ![&b"h2c"[..], b"h2", b"http", b"tls"].iter().any(|no| name.eq_ignore_ascii_case(no))
}

/// Classifies the fields and takes from them what frames and routes the message.
fn read_fields(fields: &mut Vec<Field>, head: &[u8], headers: &[httparse::Header<'_>]) -> Result<Meaning, Refusal> {
    fields.clear();
    fields.reserve(headers.len());
    let mut meaning = Meaning::default();
    let mut options = false;
    for header in headers {
        let class = classify(header.name.as_bytes());
        let value = Span::of(head, header.value);
        fields.push(Field { name: Span::of(head, header.name.as_bytes()), value, class });
        match class {
            Class::Plain | Class::EndToEnd | Class::Hop | Class::Platform | Class::Masquerade => {}
            Class::Connection => options = true,
            Class::Host if meaning.host.is_some() => return Err(Refusal::DuplicateHost),
            Class::Host => meaning.host = Some(value),
            Class::ContentLength if meaning.length.is_some() => return Err(Refusal::DuplicateLength),
            Class::ContentLength => meaning.length = Some(length(header.value)?),
            Class::TransferEncoding if meaning.chunked => return Err(Refusal::DuplicateEncoding),
            Class::TransferEncoding if same(header.value, b"chunked") => meaning.chunked = true,
            Class::TransferEncoding => return Err(encoding(header.value)),
            Class::Upgrade if meaning.upgrade.is_some() => return Err(Refusal::BadUpgrade),
            Class::Upgrade => meaning.upgrade = Some(value),
            Class::Expect if meaning.expect.is_some() => return Err(Refusal::BadExpect),
            Class::Expect => meaning.expect = Some(value),
        }
    }
    if options {
        read_options(fields, head, &mut meaning)?;
    }
    Ok(meaning)
}

/// Digits, and nothing but digits, that a count of bytes can hold.
pub(super) fn length(value: &[u8]) -> Result<u64, Refusal> {
    if value.is_empty() {
        return Err(Refusal::BadLength);
    }
    value.iter().try_fold(0u64, |length, &b| {
        let digit = b.wrapping_sub(b'0');
        let longer = (digit < 10).then(|| length.checked_mul(10)?.checked_add(u64::from(digit))).flatten();
        longer.ok_or(Refusal::BadLength)
    })
}

/// What the Connection fields say, and which fields they take with them (RFC 9110 section 7.6.1).
pub(super) fn read_options(fields: &mut [Field], head: &[u8], meaning: &mut Meaning) -> Result<(), Refusal> {
    let mut seen = 0;
    for index in 0..fields.len() {
        if fields[index].class != Class::Connection {
            continue;
        }
        for option in fields[index].value.in_buf(head).split(|&b| b == b',') {
            let option = option.trim_ascii();
            if option.is_empty() {
                continue;
            }
            seen += 1;
            if seen > MAX_OPTIONS || !option.iter().all(|&b| grammar::is_tchar(b)) {
                return Err(Refusal::BadConnection);
            }
            match option.len() {
                5 if same(option, b"close") => meaning.close = true,
                10 if same(option, b"keep-alive") => meaning.keep_alive = true,
                7 if same(option, b"upgrade") => meaning.upgrade_option = true,
                _ => nominate(fields, head, option)?,
            }
        }
    }
    Ok(())
}

fn nominate(fields: &mut [Field], head: &[u8], option: &[u8]) -> Result<(), Refusal> {
    match classify(option) {
        Class::Plain => {}
        // They go anyway.
        Class::Hop | Class::Connection | Class::Upgrade => return Ok(()),
        _ => return Err(Refusal::NominatesEndToEnd),
    }
    for field in fields {
        if field.class == Class::Plain && field.name.in_buf(head).eq_ignore_ascii_case(option) {
            field.class = Class::Hop;
        }
    }
    Ok(())
}
