//! Where a body ends, read and written. Data are ranges of the caller's buffer: nothing is copied here.
//!
//! The chunk grammar (RFC 9112 section 7.1) is held to the letter on both sides: a line that ends in LF alone, a size
//! with anything but hexadecimal digits, data longer than its size are how requests are smuggled, and no sender that
//! works makes them. Extensions (section 7.1.1) mean nothing to us and are dropped, within bounds, once their grammar is checked.

use std::ops::Range;

use super::framing::Framing;
use super::grammar::{self, Side};
use super::limits::{Limits, MAX_FIELDS};
use super::names::may_trail;
use super::refusal::Refusal;

/// A size has at most so many digits, zeros included; more than 2^60 bytes is no body.
const MAX_SIZE_DIGITS: u8 = 15;
/// Extensions of one chunk.
const MAX_EXTENSION_BYTES: u16 = 256;
/// Extensions of one body, all chunks together: they are work that carries nothing.
const MAX_OVERHEAD_BYTES: u32 = 16 << 10;
/// A trailer section; the caller's buffer must be able to hold it.
pub const MAX_TRAILER_BYTES: usize = 8 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Length(u64),
    UntilClose,
    /// The chunk size so far, and its digits.
    Size(u64, u8),
    /// Blanks after the size, which only an extension may follow.
    Blank(u64, u16),
    Extension(u64, u16, Part),
    SizeLf(u64),
    Data(u64),
    DataCr,
    DataLf,
    Trailers,
    Done,
}

/// Where an extension is being read: `*( BWS ";" BWS name [ BWS "=" BWS ( token / quoted-string ) ] )`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    BeforeName,
    Name,
    /// Blanks behind a name.
    AfterName,
    BeforeValue,
    Token,
    Quoted,
    /// Behind a backslash.
    Escaped,
    /// Behind a quoted value.
    AfterQuoted,
    /// Blanks behind a value.
    AfterValue,
}

impl Part {
    /// Where the next byte leads; nowhere if it may not stand here.
    fn next(self, b: u8) -> Option<Self> {
        let blank = matches!(b, b' ' | b'\t');
        Some(match (self, b) {
            (Self::Quoted, b'"') => Self::AfterQuoted,
            (Self::Quoted, b'\\') => Self::Escaped,
            (Self::Quoted | Self::Escaped, b'\t' | 0x20..=0x7e | 0x80..) => Self::Quoted,
            (Self::BeforeName | Self::BeforeValue, _) if blank => self,
            (Self::BeforeName | Self::Name, _) if grammar::is_tchar(b) => Self::Name,
            (Self::Name | Self::AfterName, _) if blank => Self::AfterName,
            (Self::Name | Self::AfterName, b'=') => Self::BeforeValue,
            (Self::BeforeValue, b'"') => Self::Quoted,
            (Self::BeforeValue | Self::Token, _) if grammar::is_tchar(b) => Self::Token,
            (Self::Token | Self::AfterQuoted | Self::AfterValue, _) if blank => Self::AfterValue,
            (Self::Name | Self::AfterName | Self::Token | Self::AfterQuoted | Self::AfterValue, b';') => {
                Self::BeforeName
            }
            _ => return None,
        })
    }

    fn may_end(self) -> bool {
        matches!(self, Self::Name | Self::Token | Self::AfterQuoted)
    }
}

/// Reads a body. Small and `Copy`: what is buffered can be looked at ahead by a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoder {
    state: State,
    side: Side,
    overhead: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// More bytes are needed.
    More,
    /// A range of the given buffer.
    Data(Range<usize>),
    /// The trailer section, without its last empty line; see `trailers`.
    Trailers(Range<usize>),
    End,
}

impl Decoder {
    pub fn new(framing: Framing, side: Side) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size(0, 0),
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, side, overhead: 0 }
    }

    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// What must still come, as far as it is known.
    pub fn left(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            State::Done => Some(0),
            _ => None,
        }
    }

    /// The peer sends no more.
    pub fn end_of_input(&mut self) -> Result<(), Refusal> {
        match self.state {
            State::UntilClose | State::Done => {
                self.state = State::Done;
                Ok(())
            }
            _ => Err(Refusal::CutBody),
        }
    }

    /// Whether what is buffered already breaks the grammar: then a request is refused before anyone hears of it.
    pub fn foresee(mut self, mut buf: &[u8]) -> Result<(), Refusal> {
        loop {
            let (consumed, piece) = self.next(buf)?;
            if matches!(piece, Piece::More | Piece::End) {
                return Ok(());
            }
            buf = &buf[consumed..];
        }
    }

    /// The next piece of the body, and how many bytes of `buf` are done with after it.
    pub fn next(&mut self, buf: &[u8]) -> Result<(usize, Piece), Refusal> {
        let mut at = 0;
        loop {
            let left = match self.state {
                State::Done => return Ok((at, Piece::End)),
                State::Trailers => return self.trailer_section(buf, at),
                _ if at == buf.len() => return Ok((at, Piece::More)),
                State::UntilClose => return Ok((buf.len(), Piece::Data(at..buf.len()))),
                State::Length(left) | State::Data(left) => left,
                _ => {
                    self.framing_byte(buf[at])?;
                    at += 1;
                    continue;
                }
            };
            // A buffer is shorter than 2^64.
            let end = at + left.min((buf.len() - at) as u64) as usize;
            let left = left - (end - at) as u64;
            self.state = match (self.state, left) {
                (State::Length(_), 0) => State::Done,
                (State::Length(_), _) => State::Length(left),
                (_, 0) => State::DataCr,
                (_, _) => State::Data(left),
            };
            return Ok((end, Piece::Data(at..end)));
        }
    }

    /// One byte of what stands between the data of chunks.
    fn framing_byte(&mut self, b: u8) -> Result<(), Refusal> {
        self.state = match (self.state, b) {
            (State::Size(size, digits), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if digits == MAX_SIZE_DIGITS {
                    return Err(Refusal::ChunkTooLarge);
                }
                let digit = if b <= b'9' { b - b'0' } else { (b | 0x20) - b'a' + 10 };
                State::Size(size << 4 | u64::from(digit), digits + 1)
            }
            (State::Size(_, 0), _) => return Err(Refusal::BadChunkSize),
            (State::Size(size, _), b'\r') => State::SizeLf(size),
            (State::Size(size, _), b';') => State::Extension(size, 0, Part::BeforeName),
            (State::Size(size, _), b' ' | b'\t') => State::Blank(size, 1),
            (State::Size(..), _) => return Err(Refusal::BadChunkSize),
            (State::Blank(size, length), b';') => State::Extension(size, length, Part::BeforeName),
            (State::Blank(_, MAX_EXTENSION_BYTES), _) => return Err(Refusal::ChunkOverhead),
            (State::Blank(size, length), b' ' | b'\t') => State::Blank(size, length + 1),
            (State::Blank(..), _) => return Err(Refusal::BadChunkSize),
            (State::Extension(size, length, part), b'\r') if part.may_end() => {
                self.overhead += u32::from(length);
                if self.overhead > MAX_OVERHEAD_BYTES {
                    return Err(Refusal::ChunkOverhead);
                }
                State::SizeLf(size)
            }
            (State::Extension(_, MAX_EXTENSION_BYTES, _), _) => return Err(Refusal::ChunkOverhead),
            (State::Extension(size, length, part), _) => {
                State::Extension(size, length + 1, part.next(b).ok_or(Refusal::BadChunkExtension)?)
            }
            (State::SizeLf(0), b'\n') => State::Trailers,
            (State::SizeLf(size), b'\n') => State::Data(size),
            (State::SizeLf(_), _) => return Err(Refusal::BadChunkSize),
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size(0, 0),
            (State::DataCr | State::DataLf, _) => return Err(Refusal::BadChunkEnd),
            // `next` hands over bytes in the states above only.
            (state @ (State::Length(_) | State::UntilClose | State::Data(_) | State::Trailers | State::Done), _) => {
                state
            }
        };
        Ok(())
    }

    /// The trailer section is taken as a whole, once it is there.
    fn trailer_section(&mut self, buf: &[u8], at: usize) -> Result<(usize, Piece), Refusal> {
        let limits = Limits { head_bytes: MAX_TRAILER_BYTES, fields: MAX_FIELDS, ..Limits::default() };
        let section = &buf[at..buf.len().min(at + MAX_TRAILER_BYTES)];
        let mut end = 0;
        // Lenient sides stay strict here: this is chunk framing, not a head.
        let complete = grammar::fields(section, &mut end, Side::Request, &limits).map_err(|refusal| match refusal {
            Refusal::TooManyFields => Refusal::TrailersTooLarge,
            _ => Refusal::BadTrailer,
        })?;
        match complete {
            Some(end) => {
                self.state = State::Done;
                if end == 2 {
                    return Ok((at + end, Piece::End));
                }
                Ok((at + end, Piece::Trailers(at..at + end - 2)))
            }
            None if section.len() == MAX_TRAILER_BYTES => Err(Refusal::TrailersTooLarge),
            None => Ok((at, Piece::More)),
        }
    }
}

/// The fields of a trailer section that may be sent on.
pub fn trailers(section: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    section.split(|&b| b == b'\n').filter_map(|line| {
        let colon = line.iter().position(|&b| b == b':')?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        may_trail(name).then_some((name, value))
    })
}

/// The body does not match what its head promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("the body is longer than its head says")]
    Longer,
    #[error("the body is shorter than its head says")]
    Shorter,
}

/// Writes a body's framing; the data themselves go past it.
#[derive(Debug, Clone, Copy)]
pub struct Encoder {
    framing: Framing,
}

impl Encoder {
    pub fn new(framing: Framing) -> Self {
        Self { framing }
    }

    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// What goes before `length` bytes of data. Of no data nothing is written: an empty chunk would be the last.
    pub fn before(&mut self, length: usize, out: &mut Vec<u8>) -> Result<(), Mismatch> {
        match &mut self.framing {
            _ if length == 0 => {}
            Framing::None => return Err(Mismatch::Longer),
            Framing::Length(left) => *left = left.checked_sub(length as u64).ok_or(Mismatch::Longer)?,
            Framing::Chunked => {
                push_hex(out, length as u64);
                out.extend_from_slice(b"\r\n");
            }
            Framing::UntilClose => {}
        }
        Ok(())
    }

    /// What goes after them.
    pub fn after(&self, length: usize) -> &'static [u8] {
        if length > 0 && self.framing == Framing::Chunked { b"\r\n" } else { b"" }
    }

    /// The body is over. Trailers go with chunks only; elsewhere there is no place for them.
    pub fn finish<'t>(
        &mut self,
        trailers: impl Iterator<Item = (&'t [u8], &'t [u8])>,
        out: &mut Vec<u8>,
    ) -> Result<(), Mismatch> {
        match self.framing {
            Framing::None | Framing::Length(0) | Framing::UntilClose => Ok(()),
            Framing::Length(_) => Err(Mismatch::Shorter),
            Framing::Chunked => {
                out.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.filter(|(name, _)| may_trail(name)) {
                    super::write::field(out, name, value);
                }
                out.extend_from_slice(b"\r\n");
                Ok(())
            }
        }
    }
}

fn push_hex(out: &mut Vec<u8>, value: u64) {
    let digits = (67 - (value | 1).leading_zeros()) / 4;
    out.extend((0..digits).rev().map(|place| b"0123456789abcdef"[(value >> (place * 4) & 15) as usize]));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body that `bytes` frame, its trailers' number, and what follows it.
    fn decode(framing: Framing, bytes: &[u8]) -> Result<(Vec<u8>, usize, usize), Refusal> {
        let mut decoder = Decoder::new(framing, Side::Request);
        let (mut data, mut count, mut at) = (Vec::new(), 0, 0);
        loop {
            let (consumed, piece) = decoder.next(&bytes[at..])?;
            match piece {
                Piece::Data(range) => data.extend_from_slice(&bytes[at..][range]),
                Piece::Trailers(range) => count += trailers(&bytes[at..][range]).count(),
                Piece::End => return Ok((data, count, at + consumed)),
                Piece::More => return decoder.end_of_input().map(|()| (data, count, at + consumed)),
            }
            at += consumed;
        }
    }

    #[test]
    fn chunks_are_read_to_the_letter() {
        for (bytes, expected) in [
            ("0\r\n\r\n", Ok("")),
            ("3\r\nabc\r\n0\r\n\r\n", Ok("abc")),
            ("00A\r\n0123456789\r\n1\r\nx\r\n000\r\n\r\n", Ok("0123456789x")),
            ("3;a=b;c=\"d\"\r\nabc\r\n0;e\r\n\r\n", Ok("abc")),
            ("3 ; a\r\nabc\r\n0\r\n\r\n", Ok("abc")),
            ("3;a = b ;c= \"d;\\\"e\" ; f\r\nabc\r\n0\r\n\r\n", Ok("abc")),
            ("3;\r\nabc\r\n0\r\n\r\n", Err(Refusal::BadChunkExtension)),
            ("3;a;\r\nabc\r\n0\r\n\r\n", Err(Refusal::BadChunkExtension)),
            ("3;a=\r\nabc\r\n0\r\n\r\n", Err(Refusal::BadChunkExtension)),
            ("3;=b\r\nabc\r\n0\r\n\r\n", Err(Refusal::BadChunkExtension)),
            ("3;a=\"b\r\nabc\r\n0\r\n\r\n", Err(Refusal::BadChunkExtension)),
            ("3;a=\"b\"c\r\nabc\r\n0\r\n\r\n", Err(Refusal::BadChunkExtension)),
            ("3;a b\r\nabc\r\n0\r\n\r\n", Err(Refusal::BadChunkExtension)),
            ("3;a \r\nabc\r\n0\r\n\r\n", Err(Refusal::BadChunkExtension)),
            ("3\nabc\r\n0\r\n\r\n", Err(Refusal::BadChunkSize)),
            ("3\r\nabc\n0\r\n\r\n", Err(Refusal::BadChunkEnd)),
            ("3\r\nabcd\r\n0\r\n\r\n", Err(Refusal::BadChunkEnd)),
            ("3\r\nab\r\n0\r\n\r\n", Err(Refusal::BadChunkEnd)),
            ("3;a\nabc\r\n0\r\n\r\n", Err(Refusal::BadChunkExtension)),
            ("3;\0\r\nabc\r\n0\r\n\r\n", Err(Refusal::BadChunkExtension)),
            ("3 \r\nabc\r\n0\r\n\r\n", Err(Refusal::BadChunkSize)),
            (" 3\r\nabc\r\n0\r\n\r\n", Err(Refusal::BadChunkSize)),
            ("0x3\r\nabc\r\n0\r\n\r\n", Err(Refusal::BadChunkSize)),
            ("+3\r\nabc\r\n0\r\n\r\n", Err(Refusal::BadChunkSize)),
            ("-3\r\nabc\r\n0\r\n\r\n", Err(Refusal::BadChunkSize)),
            ("\r\nabc\r\n0\r\n\r\n", Err(Refusal::BadChunkSize)),
            ("g\r\n", Err(Refusal::BadChunkSize)),
            ("3\rXabc\r\n0\r\n\r\n", Err(Refusal::BadChunkSize)),
            ("ffffffffffffffff\r\n", Err(Refusal::ChunkTooLarge)),
            ("10000000000000003\r\nabc\r\n0\r\n\r\n", Err(Refusal::ChunkTooLarge)),
            ("0000000000000003\r\nabc\r\n0\r\n\r\n", Err(Refusal::ChunkTooLarge)),
            ("3\r\nabc\r\n0\r\nno colon\r\n\r\n", Err(Refusal::BadTrailer)),
            ("3\r\nabc\r\n0\r\na: b\n\r\n", Err(Refusal::BadTrailer)),
            ("3\r\nabc\r\n0\r\nGET / HTTP/1.1\r\n\r\n", Err(Refusal::BadTrailer)),
            ("3\r\nabc\r\n0\r\n", Err(Refusal::CutBody)),
            ("3\r\nabc\r\n", Err(Refusal::CutBody)),
            ("3\r\nab", Err(Refusal::CutBody)),
        ] {
            let decoded = decode(Framing::Chunked, bytes.as_bytes());
            let text = decoded.map(|(data, _, end)| {
                assert_eq!(end, bytes.len(), "{bytes:?}");
                String::from_utf8(data).unwrap()
            });
            assert_eq!(text, expected.map(str::to_owned), "{bytes:?}");
        }
    }

    #[test]
    fn extensions_and_trailers_are_bounded_and_trailers_filtered() {
        let long = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(257));
        assert_eq!(decode(Framing::Chunked, long.as_bytes()), Err(Refusal::ChunkOverhead));
        let many = format!("1;{}\r\na\r\n", "x".repeat(250)).repeat(70) + "0\r\n\r\n";
        assert_eq!(decode(Framing::Chunked, many.as_bytes()), Err(Refusal::ChunkOverhead));
        let large = format!("0\r\na: {}\r\n\r\n", "x".repeat(MAX_TRAILER_BYTES));
        assert_eq!(decode(Framing::Chunked, large.as_bytes()), Err(Refusal::TrailersTooLarge));
        let fields = format!("0\r\n{}\r\n", "a: b\r\n".repeat(MAX_FIELDS + 1));
        assert_eq!(decode(Framing::Chunked, fields.as_bytes()), Err(Refusal::TrailersTooLarge));
        let mixed = "0\r\ngrpc-status: 0\r\nContent-Length: 5\r\nhost: b\r\nX-Sum: 1\r\n\r\n";
        assert_eq!(decode(Framing::Chunked, mixed.as_bytes()), Ok((Vec::new(), 2, mixed.len())));
    }

    #[test]
    fn a_length_ends_where_it_says_and_a_close_ends_the_rest() {
        assert_eq!(decode(Framing::Length(3), b"abcGET /"), Ok((b"abc".to_vec(), 0, 3)));
        assert_eq!(decode(Framing::Length(3), b"ab"), Err(Refusal::CutBody));
        assert_eq!(decode(Framing::None, b"GET /"), Ok((Vec::new(), 0, 0)));
        assert_eq!(decode(Framing::UntilClose, b"abc"), Ok((b"abc".to_vec(), 0, 3)));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut encoder = Encoder::new(Framing::Chunked);
        let mut out = Vec::new();
        let mut all = Vec::new();
        for length in [1, 15, 16, 0, 255, 256, 4096, 65_537] {
            let data = vec![b'x'; length];
            encoder.before(length, &mut out).unwrap();
            out.extend_from_slice(&data);
            out.extend_from_slice(encoder.after(length));
            all.extend_from_slice(&data);
        }
        let fields: [(&[u8], &[u8]); 2] = [(b"x-sum", b"7"), (b"content-length", b"7")];
        encoder.finish(fields.into_iter(), &mut out).unwrap();
        assert_eq!(decode(Framing::Chunked, &out), Ok((all, 1, out.len())));
    }

    #[test]
    fn a_body_that_breaks_its_promise_is_noticed() {
        let mut out = Vec::new();
        assert_eq!(Encoder::new(Framing::Length(3)).before(4, &mut out), Err(Mismatch::Longer));
        assert_eq!(Encoder::new(Framing::None).before(1, &mut out), Err(Mismatch::Longer));
        assert_eq!(Encoder::new(Framing::Length(3)).finish(std::iter::empty(), &mut out), Err(Mismatch::Shorter));
        assert!(out.is_empty());
    }
}
