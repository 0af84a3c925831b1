//! The table: what is sent, the section that speaks of it, and the reaction that is expected.

use super::requests;
use super::wire::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PADDED, PING, PREFACE, PRIORITY, PUSH_PROMISE,
    RST_STREAM, SETTINGS, WITH_PRIORITY, block, frame, setting, window,
};

// Error codes (RFC 9113 section 7).
pub const NO_ERROR: u32 = 0;
pub const PROTOCOL: u32 = 1;
const FLOW_CONTROL: u32 = 3;
pub const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE: u32 = 6;
const REFUSED: u32 = 7;
pub const CALM: u32 = 11;

const CODE: &str = "h2 says PROTOCOL_ERROR of whatever it cannot read; the connection ends, as it must";
const STRICT: &str = "h2 ends the connection where the stream alone is wrong, as section 5.4.1 lets it";
const LATE: &str = "h2 does not insist on SETTINGS as the first frame; nothing depends on it here";
pub const TOLD: &str =
    "our own rule answers where the RFC asks for a reset: the client learns why, and no Machine sees it";

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// GOAWAY with one of these codes.
    Connection(&'static [u32]),
    /// The connection ends, with or without a word, and nothing is answered.
    Gone,
    /// The stream is reset with one of these codes; the connection serves on.
    Stream(&'static [u32]),
    /// One of the two.
    Either(&'static [u32]),
    /// The stream is answered whole; the connection serves on.
    Answered(u16),
    /// The same, but the client is then told that the rest of its body is not wanted.
    AnsweredThenReset(u16),
    /// The stream is answered whole, then the connection ends in order.
    AnsweredThenClosed(u16),
    /// Nothing at all; the connection serves on.
    Alive,
    Pong([u8; 8]),
    /// An answer's head without its body, for which the window has no room.
    HeadOnly,
}
use Expect::*;

pub struct Case {
    pub name: &'static str,
    pub section: &'static str,
    pub pieces: Vec<Vec<u8>>,
    /// The stream that is looked at.
    pub stream: u32,
    pub expect: Expect,
    /// The pieces hold the preface too.
    pub has_preface: bool,
    /// Why the edge does not do what the section says.
    pub deviates: Option<&'static str>,
    /// Whole requests that a Machine may have had before the client broke its word.
    pub may_reach: usize,
}

impl Case {
    pub fn ends_in_its_preface(&self) -> bool {
        self.has_preface && matches!(self.expect, Gone | Connection(_))
    }
    pub fn with_preface(mut self) -> Self {
        self.has_preface = true;
        self
    }
    pub fn on(mut self, stream: u32) -> Self {
        self.stream = stream;
        self
    }
    pub fn deviates(mut self, why: &'static str) -> Self {
        self.deviates = Some(why);
        self
    }
    pub fn ends_connection(mut self) -> Self {
        self.expect = Connection(&[PROTOCOL]);
        self.deviates(STRICT)
    }
    pub fn may_reach(mut self, requests: usize) -> Self {
        self.may_reach = requests;
        self
    }
}

pub fn case(section: &'static str, name: &'static str, bytes: Vec<u8>, expect: Expect) -> Case {
    Case { name, section, pieces: vec![bytes], stream: 1, expect, has_preface: false, deviates: None, may_reach: 0 }
}

pub fn all(frames: &[Vec<u8>]) -> Vec<u8> {
    frames.concat()
}

pub type Fields = Vec<(&'static str, &'static str)>;

pub fn request(method: &'static str, more: &[(&'static str, &'static str)]) -> Fields {
    let mut fields = vec![(":method", method), (":scheme", "https"), (":authority", "a"), (":path", "/")];
    fields.extend(more);
    fields
}

/// A whole request without a body.
pub fn ask(stream: u32, fields: &Fields) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(fields))
}

pub fn get(stream: u32) -> Vec<u8> {
    ask(stream, &request("GET", &[]))
}

/// A request whose body is to come.
pub fn open(stream: u32, fields: &Fields) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &block(fields))
}

pub fn post(stream: u32) -> Vec<u8> {
    open(stream, &request("POST", &[]))
}

pub fn data(stream: u32, flags: u8, bytes: &[u8]) -> Vec<u8> {
    frame(DATA, flags, stream, bytes)
}

pub fn malformed(section: &'static str, name: &'static str, fields: Fields) -> Case {
    case(section, name, ask(1, &fields), Stream(&[PROTOCOL]))
}

pub fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())
}

/// `held`: a Machine that never comes up.
pub fn cases(held: &str) -> Vec<Case> {
    let mut cases = connection();
    cases.extend(frames());
    cases.extend(compression());
    cases.extend(states());
    cases.extend(padding());
    cases.extend(settings());
    cases.extend(windows(held));
    cases.extend(requests::messages());
    cases.extend(requests::connects());
    cases.extend(requests::floods());
    cases
}

fn connection() -> Vec<Case> {
    let hello = || [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    vec![
        case("3.4", "HTTP/1.1 where the preface belongs", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n........".to_vec(), Gone)
            .with_preface(),
        case("3.4", "one letter of the preface is wrong", b"PRI * HTTP/2.0\r\n\r\nSX\r\n\r\n".to_vec(), Gone)
            .with_preface(),
        Case { pieces: vec![PREFACE[..10].to_vec(), Vec::new()], ..case("3.4", "half a preface", Vec::new(), Gone) }
            .with_preface(),
        case("3.4", "preface, SETTINGS and a request in one write", all(&[hello(), get(1)]), Answered(200))
            .with_preface(),
        case("3.4", "HEADERS before SETTINGS", [PREFACE, &get(1)].concat(), Answered(200))
            .deviates(LATE)
            .with_preface(),
        case("3.4", "PING before SETTINGS", [PREFACE, &frame(PING, 0, 0, &[0; 8])].concat(), Pong([0; 8]))
            .deviates(LATE)
            .with_preface(),
        Case {
            pieces: PREFACE.iter().map(|&byte| vec![byte]).chain([frame(SETTINGS, 0, 0, &[]), get(1)]).collect(),
            ..case("3.4", "a preface byte by byte", Vec::new(), Answered(200))
        }
        .with_preface(),
        case("3.4", "the preface twice", PREFACE.to_vec(), Connection(&[PROTOCOL, FRAME_SIZE])),
        case(
            "6.8",
            "GOAWAY behind a request: it is answered all the same",
            all(&[get(1), frame(GOAWAY, 0, 0, &[0; 8])]),
            AnsweredThenClosed(200),
        ),
        case("6.8", "GOAWAY on a stream", frame(GOAWAY, 0, 1, &[0; 8]), Connection(&[PROTOCOL])),
        case("6.8", "GOAWAY of seven bytes", frame(GOAWAY, 0, 0, &[0; 7]), Connection(&[PROTOCOL])).deviates(CODE),
    ]
}

fn frames() -> Vec<Case> {
    let big = vec![b'x'; 16_385];
    vec![
        case("4.1", "a frame of unknown type", frame(0xfa, 0xff, 0, b"what"), Alive),
        case(
            "4.1",
            "a frame of unknown type on an open stream",
            all(&[post(1), frame(0xfa, 0, 1, b"what"), data(1, END_STREAM, b"x")]),
            Answered(200),
        ),
        case(
            "5.5",
            "a frame of unknown type inside a header block",
            all(&[
                frame(HEADERS, END_STREAM, 1, &block(&request("GET", &[]))),
                frame(0xfa, 0, 1, b""),
                frame(CONTINUATION, END_HEADERS, 1, b""),
            ]),
            Connection(&[PROTOCOL]),
        ),
        case("4.1", "flags that mean nothing", frame(PING, 0xfe, 0, b"unusedfl"), Pong(*b"unusedfl")),
        case(
            "4.1",
            "the reserved bit before a stream's number",
            {
                let mut bytes = get(1);
                bytes[5] |= 0x80;
                bytes
            },
            Answered(200),
        ),
        case(
            "4.2",
            "DATA larger than was allowed",
            all(&[post(1), data(1, END_STREAM, &big)]),
            Connection(&[FRAME_SIZE]),
        ),
        case(
            "4.2",
            "HEADERS larger than was allowed",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &big),
            Connection(&[FRAME_SIZE]),
        ),
        case(
            "4.2",
            "SETTINGS larger than was allowed",
            frame(SETTINGS, 0, 0, &vec![0; 16_386]),
            Connection(&[FRAME_SIZE]),
        ),
        case(
            "4.2",
            "a frame of unknown type larger than was allowed",
            frame(0xfa, 0, 0, &big),
            Connection(&[FRAME_SIZE]),
        ),
        case(
            "4.2",
            "DATA exactly as large as is allowed",
            all(&[post(1), data(1, END_STREAM, &big[..16_384])]),
            Answered(200),
        ),
        case("6.1", "DATA without a byte", all(&[post(1), data(1, 0, b""), data(1, END_STREAM, b"")]), Answered(200)),
        case("6.1", "DATA on stream 0", data(0, 0, b"x"), Connection(&[PROTOCOL])),
        case("6.2", "HEADERS on stream 0", get(0), Connection(&[PROTOCOL])),
        case("6.3", "PRIORITY on stream 0", frame(PRIORITY, 0, 0, &[0, 0, 0, 3, 16]), Connection(&[PROTOCOL])),
        case("6.3", "PRIORITY of four bytes", all(&[post(1), frame(PRIORITY, 0, 1, &[0; 4])]), Connection(&[PROTOCOL]))
            .deviates(CODE),
        case("5.3.2", "PRIORITY of a stream that is idle", frame(PRIORITY, 0, 9, &[0, 0, 0, 0, 16]), Alive),
        case(
            "5.3.2",
            "PRIORITY of a stream that is over",
            all(&[get(1), frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16])]),
            Answered(200),
        ),
        case(
            "5.3.2",
            "PRIORITY of a stream on itself means nothing any more",
            all(&[get(1), frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 16])]),
            Stream(&[PROTOCOL]),
        )
        .deviates("h2 keeps the rule of RFC 7540, by which a stream that depends on itself is reset")
        .may_reach(1),
        case(
            "5.3.2",
            "HEADERS with a priority",
            frame(
                HEADERS,
                END_HEADERS | END_STREAM | WITH_PRIORITY,
                1,
                &[&[0x80, 0, 0, 0, 255], &block(&request("GET", &[]))[..]].concat(),
            ),
            Answered(200),
        ),
        case(
            "5.3.2",
            "HEADERS that depend on themselves",
            frame(
                HEADERS,
                END_HEADERS | END_STREAM | WITH_PRIORITY,
                1,
                &[&[0, 0, 0, 1, 255], &block(&request("GET", &[]))[..]].concat(),
            ),
            Stream(&[PROTOCOL]),
        )
        .deviates("h2 keeps the rule of RFC 7540, by which a stream that depends on itself is reset")
        .may_reach(1),
        case("6.4", "RST_STREAM on stream 0", reset(0), Connection(&[PROTOCOL])),
        case(
            "6.4",
            "RST_STREAM of three bytes",
            all(&[post(1), frame(RST_STREAM, 0, 1, &[0; 3])]),
            Connection(&[PROTOCOL]),
        )
        .deviates(CODE),
        case("6.4", "RST_STREAM of an idle stream", reset(9), Connection(&[PROTOCOL])),
        case(
            "6.6",
            "PUSH_PROMISE of a client",
            all(&[
                post(1),
                frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2], &block(&request("GET", &[]))[..]].concat()),
            ]),
            Connection(&[PROTOCOL]),
        ),
        case("6.7", "PING", frame(PING, 0, 0, b"12345678"), Pong(*b"12345678")),
        case("6.7", "PING of seven bytes", frame(PING, 0, 0, &[0; 7]), Connection(&[PROTOCOL])).deviates(CODE),
        case("6.7", "PING of nine bytes", frame(PING, 0, 0, &[0; 9]), Connection(&[PROTOCOL])).deviates(CODE),
        case("6.7", "PING on a stream", frame(PING, 0, 1, &[0; 8]), Connection(&[PROTOCOL])),
        case("6.7", "the answer to a PING that nobody sent", frame(PING, ACK, 0, b"nobodys!"), Alive),
        case(
            "6.10",
            "CONTINUATION without HEADERS",
            frame(CONTINUATION, END_HEADERS, 1, &block(&request("GET", &[]))),
            Connection(&[PROTOCOL]),
        ),
        case(
            "6.10",
            "CONTINUATION behind the end of the headers",
            all(&[post(1), frame(CONTINUATION, END_HEADERS, 1, b"")]),
            Connection(&[PROTOCOL]),
        ),
        case(
            "6.10",
            "CONTINUATION of another stream",
            all(&[
                frame(HEADERS, END_STREAM, 1, &block(&request("GET", &[]))),
                frame(CONTINUATION, END_HEADERS, 3, b""),
            ]),
            Connection(&[PROTOCOL]),
        ),
        case("6.10", "CONTINUATION on stream 0", frame(CONTINUATION, END_HEADERS, 0, b""), Connection(&[PROTOCOL])),
        case(
            "4.3",
            "PING inside a header block",
            all(&[frame(HEADERS, END_STREAM, 1, &block(&request("GET", &[]))), frame(PING, 0, 0, &[0; 8])]),
            Connection(&[PROTOCOL]),
        ),
        case(
            "4.3",
            "DATA inside a header block",
            all(&[frame(HEADERS, 0, 1, &block(&request("POST", &[]))), data(1, END_STREAM, b"x")]),
            Connection(&[PROTOCOL]),
        ),
        case(
            "4.3",
            "HEADERS of another stream inside a header block",
            all(&[frame(HEADERS, END_STREAM, 1, &block(&request("GET", &[]))), get(3)]),
            Connection(&[PROTOCOL]),
        ),
        case(
            "4.3",
            "a header block in three frames",
            {
                let whole = block(&request("GET", &[]));
                all(&[
                    frame(HEADERS, END_STREAM, 1, &whole[..5]),
                    frame(CONTINUATION, 0, 1, &whole[5..9]),
                    frame(CONTINUATION, END_HEADERS, 1, &whole[9..]),
                ])
            },
            Answered(200),
        ),
        case(
            "4.3",
            "an empty CONTINUATION at the end",
            all(&[
                frame(HEADERS, END_STREAM, 1, &block(&request("GET", &[]))),
                frame(CONTINUATION, END_HEADERS, 1, b""),
            ]),
            Answered(200),
        ),
    ]
}

fn compression() -> Vec<Case> {
    let broken = |name, tail: &[u8]| {
        let bytes = [&block(&request("GET", &[]))[..], tail].concat();
        case("4.3", name, frame(HEADERS, END_HEADERS | END_STREAM, 1, &bytes), Connection(&[PROTOCOL])).deviates(CODE)
    };
    // `x-a: b`, remembered; then by its number.
    let remembered = [&[0x40, 3][..], b"x-a", &[1], b"b"].concat();
    let first = [&block(&request("GET", &[]))[..], &remembered].concat();
    let then = [&block(&request("GET", &[]))[..], &[0x80 | 62]].concat();
    let of = |stream, bytes: &[u8]| frame(HEADERS, END_HEADERS | END_STREAM, stream, bytes);
    vec![
        broken("field number 0", &[0x80]),
        broken("a field number beyond the tables", &[0xff, 0x20]),
        broken("a literal that is cut", &[0, 5, b'x']),
        broken("a number without an end", &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        broken("Huffman's code with eight bits of padding", &[0, 0x82, 0x1f, 0xff, 1, b'x']),
        broken("the end of string in Huffman's code", &[0, 0x84, 0xff, 0xff, 0xff, 0xff, 1, b'x']),
        case(
            "4.3.1",
            "a table larger than was allowed",
            of(1, &[&[0x3f, 0xe1, 0xff, 0x03][..], &block(&request("GET", &[]))].concat()),
            Connection(&[PROTOCOL]),
        )
        .deviates(CODE),
        case(
            "4.3.1",
            "a table that changes behind a field",
            of(1, &[&block(&request("GET", &[]))[..], &[0x20]].concat()),
            Connection(&[PROTOCOL]),
        )
        .deviates(CODE),
        case(
            "4.3.1",
            "a table that changes before the first field",
            of(1, &[&[0x20][..], &block(&request("GET", &[]))].concat()),
            Answered(200),
        ),
        case("4.3", "a field that is remembered", all(&[of(1, &first), of(3, &then)]), Answered(200)).on(3),
    ]
}

fn states() -> Vec<Case> {
    vec![
        case("5.1", "DATA on an idle stream", data(1, END_STREAM, b"x"), Connection(&[PROTOCOL])),
        case("5.1", "WINDOW_UPDATE on an idle stream", window(1, 1), Connection(&[PROTOCOL])),
        case(
            "5.1",
            "DATA behind the stream's end",
            all(&[get(1), data(1, END_STREAM, b"x")]),
            Connection(&[STREAM_CLOSED, PROTOCOL]),
        )
        .may_reach(1),
        case("5.1", "HEADERS behind the stream's end", all(&[get(1), get(1)]), Connection(&[STREAM_CLOSED, PROTOCOL]))
            .may_reach(1),
        case(
            "5.1",
            "DATA behind the client's own reset",
            all(&[post(1), reset(1), data(1, END_STREAM, b"x")]),
            Stream(&[STREAM_CLOSED]),
        ),
        case(
            "5.1",
            "HEADERS behind the client's own reset",
            all(&[post(1), reset(1), get(1)]),
            Connection(&[STREAM_CLOSED, PROTOCOL]),
        ),
        case("5.1", "WINDOW_UPDATE behind the client's own reset", all(&[post(1), reset(1), window(1, 9)]), Alive),
        case("5.1", "RST_STREAM twice", all(&[post(1), reset(1), reset(1)]), Alive),
        case("5.1", "WINDOW_UPDATE behind the stream's end", all(&[get(1), window(1, 9)]), Answered(200)),
        case("5.1.1", "a stream of an even number", get(2), Connection(&[PROTOCOL])),
        case(
            "5.1.1",
            "a number that is lower than the last",
            all(&[get(5), get(3)]),
            Connection(&[PROTOCOL, STREAM_CLOSED]),
        )
        .may_reach(1),
        case("5.1.1", "numbers with gaps", all(&[get(7), get(41)]), Answered(200)).on(41),
        case(
            "5.1.2",
            "one stream more than is allowed",
            all(&(0..251).map(|n| post(2 * n + 1)).chain([reset(1)]).collect::<Vec<_>>()),
            Stream(&[REFUSED, PROTOCOL]),
        )
        .on(501),
        case(
            "6.4",
            "a request that its client resets is gone, the next one served",
            all(&[post(1), reset(1), get(3)]),
            Answered(200),
        )
        .on(3),
        case(
            "5.1",
            "an answer may come before the request's end",
            all(&[open(1, &request("POST", &[("host", "b")]))]),
            AnsweredThenReset(400),
        ),
    ]
}

fn padding() -> Vec<Case> {
    let plain = block(&request("GET", &[]));
    let padded = |length: u8, bytes: &[u8], padding: usize| [&[length][..], bytes, &vec![0; padding]].concat();
    vec![
        case(
            "6.1",
            "DATA with padding",
            all(&[post(1), data(1, PADDED | END_STREAM, &padded(5, b"abc", 5))]),
            Answered(200),
        ),
        case(
            "6.1",
            "DATA that is nothing but padding",
            all(&[post(1), data(1, PADDED | END_STREAM, &padded(5, b"", 5))]),
            Answered(200),
        ),
        case(
            "6.1",
            "DATA with more padding than payload",
            all(&[post(1), data(1, PADDED | END_STREAM, &padded(9, b"abc", 0))]),
            Connection(&[PROTOCOL]),
        ),
        case(
            "6.1",
            "DATA with the padding's length missing",
            all(&[post(1), data(1, PADDED | END_STREAM, b"")]),
            Connection(&[PROTOCOL, FRAME_SIZE]),
        ),
        case(
            "6.2",
            "HEADERS with padding",
            frame(HEADERS, PADDED | END_HEADERS | END_STREAM, 1, &padded(7, &plain, 7)),
            Answered(200),
        ),
        case(
            "6.2",
            "HEADERS with more padding than payload",
            frame(HEADERS, PADDED | END_HEADERS | END_STREAM, 1, &padded(255, &plain, 0)),
            Connection(&[PROTOCOL]),
        ),
        case(
            "8.1.1",
            "a length that counts no padding",
            all(&[
                open(1, &request("POST", &[("content-length", "3")])),
                data(1, PADDED | END_STREAM, &padded(5, b"abc", 5)),
            ]),
            Answered(200),
        ),
    ]
}

fn settings() -> Vec<Case> {
    vec![
        case("6.5", "SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), Connection(&[PROTOCOL])),
        case("6.5", "SETTINGS of five bytes", frame(SETTINGS, 0, 0, &[0; 5]), Connection(&[PROTOCOL])).deviates(CODE),
        case(
            "6.5",
            "an acknowledgement that says something",
            frame(SETTINGS, ACK, 0, &[0; 6]),
            Connection(&[PROTOCOL]),
        )
        .deviates(CODE),
        case("6.5.3", "SETTINGS again, then a request", all(&[frame(SETTINGS, 0, 0, &[]), get(1)]), Answered(200)),
        case("6.5.2", "push that is neither on nor off", setting(2, 2), Connection(&[PROTOCOL])),
        case("6.5.2", "push on", all(&[setting(2, 1), get(1)]), Answered(200)),
        case("6.5.2", "a window beyond the largest", setting(4, 1 << 31), Connection(&[PROTOCOL])).deviates(CODE),
        case("6.5.2", "the largest window", all(&[setting(4, (1 << 31) - 1), get(1)]), Answered(200)),
        case("6.5.2", "frames smaller than the smallest", setting(5, 16_383), Connection(&[PROTOCOL])),
        case("6.5.2", "frames larger than the largest", setting(5, 1 << 24), Connection(&[PROTOCOL])),
        case("6.5.2", "the largest frames", all(&[setting(5, (1 << 24) - 1), get(1)]), Answered(200)),
        case("6.5.2", "a setting of an unknown name", all(&[setting(0xfafa, 7), get(1)]), Answered(200)),
        case("6.5.2", "no table for fields", all(&[setting(1, 0), get(1)]), Answered(200)),
        case("6.5.2", "no stream of the server's", all(&[setting(3, 0), get(1)]), Answered(200)),
        case(
            "6.5.2",
            "the same setting twice: the last one counts",
            all(&[setting(4, 0), setting(4, 65_535), get(1)]),
            Answered(200),
        ),
        case("RFC 8441 3", "extended CONNECT neither on nor off", setting(8, 2), Connection(&[PROTOCOL])),
        case(
            "6.5.3",
            "an acknowledgement of nothing",
            all(&[frame(SETTINGS, ACK, 0, &[]), frame(SETTINGS, ACK, 0, &[]), get(1)]),
            Connection(&[PROTOCOL]),
        )
        .may_reach(1)
        .deviates("the RFC is silent; h2 takes an acknowledgement that it does not wait for as an error"),
    ]
}

fn windows(held: &str) -> Vec<Case> {
    let for_held = |stream: u32| {
        let mut fields: Vec<(&str, &str)> = request("POST", &[]);
        fields.push(("fly-force-instance-id", held));
        frame(HEADERS, END_HEADERS, stream, &block(&fields))
    };
    let piece = vec![b'x'; 16_384];
    let body = |stream: u32, frames: usize| (0..frames).map(|_| data(stream, 0, &piece)).collect::<Vec<_>>().concat();
    vec![
        case("6.9", "an increment of nothing for the connection", window(0, 0), Connection(&[PROTOCOL])),
        case("6.9", "an increment of nothing for a stream", all(&[post(1), window(1, 0)]), Stream(&[PROTOCOL]))
            .ends_connection(),
        case(
            "6.9",
            "WINDOW_UPDATE of three bytes",
            frame(super::wire::WINDOW_UPDATE, 0, 0, &[0; 3]),
            Connection(&[PROTOCOL]),
        )
        .deviates(CODE),
        case(
            "6.9.1",
            "a window of the connection beyond the largest",
            all(&[window(0, (1 << 31) - 1), window(0, (1 << 31) - 1)]),
            Connection(&[FLOW_CONTROL]),
        ),
        case(
            "6.9.1",
            "a window of a stream beyond the largest",
            all(&[post(1), window(1, (1 << 31) - 1)]),
            Stream(&[FLOW_CONTROL]),
        ),
        case("6.9.2", "no room for an answer's body", all(&[setting(4, 0), get(1)]), HeadOnly),
        case(
            "6.9.2",
            "room for an answer's body comes later",
            all(&[setting(4, 0), get(1), window(1, 10)]),
            Answered(200),
        ),
        case(
            "6.9.2",
            "room for an answer's body comes by a setting",
            all(&[setting(4, 0), get(1), setting(4, 10)]),
            Answered(200),
        ),
        case(
            "6.9.2",
            "a setting that takes a window beyond the largest",
            all(&[post(1), window(1, 1 << 30), setting(4, (1 << 31) - 1)]),
            Connection(&[FLOW_CONTROL]),
        ),
        case("6.9.1", "more than a stream's window", all(&[for_held(1), body(1, 40)]), Either(&[FLOW_CONTROL])),
        case(
            "6.9.1",
            "more than the connection's window",
            all(&[
                for_held(1),
                for_held(3),
                for_held(5),
                for_held(7),
                for_held(9),
                for_held(11),
                for_held(13),
                for_held(15),
                body(1, 15),
                body(3, 15),
                body(5, 15),
                body(7, 15),
                body(9, 15),
                body(11, 15),
                body(13, 15),
                body(15, 15),
            ]),
            Connection(&[FLOW_CONTROL]),
        ),
    ]
}
