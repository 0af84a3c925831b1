//! The table's second part: heads, bodies and trailers as messages, CONNECT, and floods.

use super::table::Expect::*;
use super::table::{
    CALM, Case, Fields, NO_ERROR, PROTOCOL, STREAM_CLOSED, TOLD, all, ask, case, data, get, malformed, open, post,
    request, reset,
};
use super::wire::{
    CONTINUATION, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY, SETTINGS, block, frame, window,
};

fn raw_field(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = block(&request("GET", &[]));
    bytes.extend(block(&[(name, value)]));
    frame(HEADERS, END_HEADERS | END_STREAM, 1, &bytes)
}

pub fn messages() -> Vec<Case> {
    let post_with = |length: &'static str, body: &[u8]| {
        all(&[open(1, &request("POST", &[("content-length", length)])), data(1, END_STREAM, body)])
    };
    let trailers = |flags: u8, fields: &Fields| {
        all(&[post(1), data(1, 0, b"abc"), frame(HEADERS, END_HEADERS | flags, 1, &block(fields))])
    };
    let without = |name: &str| {
        let mut fields = request("GET", &[]);
        fields.retain(|(field, _)| *field != name);
        fields
    };
    let path =
        |path: &'static str| vec![(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", path)];
    vec![
        case("8.1", "a request with a body", all(&[post(1), data(1, END_STREAM, b"abc")]), Answered(200)),
        case("8.1", "trailers", trailers(END_STREAM, &vec![("x-sum", "7")]), Answered(200)),
        case("8.1", "trailers that do not end the stream", trailers(0, &vec![("x-sum", "7")]), Stream(&[PROTOCOL])),
        case("8.1", "trailers with a pseudo-field", trailers(END_STREAM, &vec![(":path", "/x")]), Answered(200))
            .deviates("h2 drops the pseudo-fields of trailers: the Machine never sees them"),
        case(
            "8.1",
            "a second head in the place of trailers",
            trailers(END_STREAM, &request("GET", &[])),
            Answered(200),
        )
        .deviates("h2 drops the pseudo-fields of trailers: the Machine never sees them"),
        case(
            "8.1",
            "HEADERS behind trailers",
            all(&[
                trailers(END_STREAM, &vec![("x-sum", "7")]),
                frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[("x", "y")])),
            ]),
            Connection(&[STREAM_CLOSED, PROTOCOL]),
        )
        .may_reach(1),
        malformed("8.2.1", "a capital in a name", request("GET", &[("X-a", "b")])).ends_connection(),
        case("8.2.1", "a space in a name", raw_field(b"x a", b"b"), Stream(&[PROTOCOL])).ends_connection(),
        case("8.2.1", "a colon in a name", raw_field(b"x:a", b"b"), Stream(&[PROTOCOL])).ends_connection(),
        case("8.2.1", "an empty name", raw_field(b"", b"b"), Stream(&[PROTOCOL])).ends_connection(),
        case("8.2.1", "a control character in a name", raw_field(b"x\x01", b"b"), Stream(&[PROTOCOL]))
            .ends_connection(),
        case("8.2.1", "a byte beyond ASCII in a name", raw_field(b"x\xff", b"b"), Stream(&[PROTOCOL]))
            .ends_connection(),
        case("8.2.1", "NUL in a value", raw_field(b"x", b"a\0b"), Stream(&[PROTOCOL])).ends_connection(),
        case("8.2.1", "CR in a value", raw_field(b"x", b"a\rb"), Stream(&[PROTOCOL])).ends_connection(),
        case("8.2.1", "LF in a value", raw_field(b"x", b"a\nb"), Stream(&[PROTOCOL])).ends_connection(),
        case("8.2.1", "a value that begins with a space", raw_field(b"x", b" a"), Answered(400)).deviates(TOLD),
        case("8.2.1", "a value that ends with a tab", raw_field(b"x", b"a\t"), Answered(400)).deviates(TOLD),
        case("8.2.1", "bytes beyond ASCII in a value", raw_field(b"x", b"a\xffb"), Answered(200)),
        malformed("8.2.2", "Connection", request("GET", &[("connection", "close")])),
        malformed("8.2.2", "Keep-Alive", request("GET", &[("keep-alive", "5")])),
        malformed("8.2.2", "Proxy-Connection", request("GET", &[("proxy-connection", "close")])),
        malformed("8.2.2", "Transfer-Encoding", request("GET", &[("transfer-encoding", "chunked")])),
        malformed("8.2.2", "Upgrade", request("GET", &[("upgrade", "h2c")])),
        malformed("8.2.2", "TE other than trailers", request("GET", &[("te", "gzip")])),
        case("8.2.2", "TE: trailers", ask(1, &request("GET", &[("te", "trailers")])), Answered(200)),
        case(
            "8.2.3",
            "cookies in pieces",
            ask(1, &request("GET", &[("cookie", "a=1"), ("cookie", "b=2")])),
            Answered(200),
        ),
        malformed(
            "8.3",
            "a pseudo-field behind a field",
            vec![(":method", "GET"), (":scheme", "https"), ("x", "y"), (":authority", "a"), (":path", "/")],
        ),
        malformed("8.3", "an unknown pseudo-field", request("GET", &[(":x", "y")])).ends_connection(),
        malformed("8.3", "a pseudo-field of answers", request("GET", &[(":status", "200")])),
        malformed("8.3", ":method twice", request("GET", &[(":method", "GET")])),
        malformed("8.3", ":path twice", request("GET", &[(":path", "/")])),
        malformed("8.3", ":scheme twice", request("GET", &[(":scheme", "https")])),
        malformed("8.3", ":authority twice", request("GET", &[(":authority", "a")])),
        malformed("8.3.1", "no :method", without(":method")),
        malformed("8.3.1", "no :scheme", without(":scheme")),
        malformed("8.3.1", "no :path", without(":path")),
        malformed("8.3.1", "an empty :path", path("")),
        malformed("8.3.1", "a :path without a slash", path("x")),
        case("8.3.1", "a star of a GET", ask(1, &path("*")), Answered(400)),
        case(
            "8.3.1",
            "a star of OPTIONS",
            ask(1, &vec![(":method", "OPTIONS"), (":scheme", "https"), (":authority", "a"), (":path", "*")]),
            Answered(200),
        ),
        case("8.3.1", "neither :authority nor Host", ask(1, &without(":authority")), Answered(400)),
        case(
            "8.3.1",
            "Host in the place of :authority",
            ask(1, &vec![(":method", "GET"), (":scheme", "https"), (":path", "/"), ("host", "a")]),
            Answered(200),
        ),
        case("8.3.1", "Host that is not :authority", ask(1, &request("GET", &[("host", "b")])), Answered(400)),
        case(
            "8.3.1",
            "a user's name in :authority",
            ask(1, &vec![(":method", "GET"), (":scheme", "https"), (":authority", "u@a"), (":path", "/")]),
            Answered(400),
        ),
        case("8.1.1", "a length that is kept", post_with("3", b"abc"), Answered(200)),
        case("8.1.1", "less than the length", post_with("9", b"abc"), Stream(&[PROTOCOL])),
        case("8.1.1", "more than the length", post_with("2", b"abc"), Stream(&[PROTOCOL])),
        case(
            "8.1.1",
            "a length and no body",
            ask(1, &request("POST", &[("content-length", "3")])),
            Stream(&[PROTOCOL]),
        ),
        case("8.1.1", "a length that is not a number", post_with("3x", b"abc"), Stream(&[PROTOCOL])),
        case(
            "8.1.1",
            "two lengths that differ",
            all(&[
                open(1, &request("POST", &[("content-length", "3"), ("content-length", "4")])),
                data(1, END_STREAM, b"abc"),
            ]),
            Stream(&[PROTOCOL]),
        ),
        case(
            "8.1.1",
            "trailers in the place of the rest of a length",
            all(&[
                open(1, &request("POST", &[("content-length", "9")])),
                data(1, 0, b"abc"),
                frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[("x", "y")])),
            ]),
            Stream(&[PROTOCOL]),
        ),
    ]
}

pub fn connects() -> Vec<Case> {
    let connect = |more: &[(&'static str, &'static str)]| {
        let mut fields = vec![(":method", "CONNECT"), (":authority", "a")];
        fields.extend(more);
        ask(1, &fields)
    };
    vec![
        case("8.5", "CONNECT is not served", connect(&[]), Answered(405)),
        case("8.5", "CONNECT with a :path", connect(&[(":path", "/")]), Stream(&[PROTOCOL])),
        case("8.5", "CONNECT with a :scheme", connect(&[(":scheme", "https")]), Stream(&[PROTOCOL])),
        case("8.5", "CONNECT without an :authority", ask(1, &vec![(":method", "CONNECT")]), Answered(405))
            .deviates(TOLD),
        case(
            "RFC 8441 4",
            "extended CONNECT of an unknown protocol",
            connect(&[(":protocol", "smoke"), (":scheme", "https"), (":path", "/")]),
            Answered(405),
        ),
        case(
            "RFC 8441 4",
            "extended CONNECT without a :path",
            connect(&[(":protocol", "websocket"), (":scheme", "https")]),
            Stream(&[PROTOCOL]),
        ),
        malformed("RFC 8441 4", ":protocol of a GET", request("GET", &[(":protocol", "websocket")])),
        case("9.1", "TRACE is not served", ask(1, &request("TRACE", &[])), Answered(405)),
    ]
}

pub fn floods() -> Vec<Case> {
    let many = |count: u32, of: &dyn Fn(u32) -> Vec<u8>| (0..count).map(of).collect::<Vec<_>>().concat();
    let long = "x".repeat(15_000);
    let long_head = |pieces| {
        let mut bytes = frame(HEADERS, END_STREAM, 1, &block(&request("GET", &[])));
        for n in 1..=pieces {
            let flags = if n == pieces { END_HEADERS } else { 0 };
            bytes.extend(frame(CONTINUATION, flags, 1, &block(&[("x-long", &long)])));
        }
        bytes
    };
    let many_fields = {
        let mut bytes = block(&request("GET", &[]));
        for _ in 0..300 {
            bytes.extend(block(&[("x", "y")]));
        }
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &bytes)
    };
    vec![
        case(
            "10.5",
            "requests that are reset at once",
            many(2_000, &|n| all(&[post(2 * n + 1), reset(2 * n + 1)])),
            Connection(&[CALM]),
        ),
        case(
            "10.5",
            "CONTINUATION without an end",
            all(&[
                frame(HEADERS, END_STREAM, 1, &block(&request("GET", &[]))),
                many(2_000, &|_| frame(CONTINUATION, 0, 1, &block(&[("x", "y")]))),
            ]),
            Connection(&[CALM, PROTOCOL]),
        ),
        case(
            "10.5",
            "empty CONTINUATION without an end",
            all(&[
                frame(HEADERS, END_STREAM, 1, &block(&request("GET", &[]))),
                many(2_000, &|_| frame(CONTINUATION, 0, 1, b"")),
            ]),
            Connection(&[CALM, PROTOCOL]),
        ),
        case("10.5.1", "a head beyond the limit", long_head(5), Answered(431)),
        case("10.5.1", "a head far beyond the limit", long_head(8), Connection(&[CALM])),
        case("10.5.1", "more fields than the limit", many_fields, Answered(431)),
        case("10.5", "twenty thousand SETTINGS", many(20_000, &|_| frame(SETTINGS, 0, 0, &[])), Alive),
        case("10.5", "twenty thousand PINGs", many(20_000, &|_| frame(PING, 0, 0, b"flooding")), Pong(*b"flooding")),
        case(
            "10.5",
            "twenty thousand frames of PRIORITY",
            many(20_000, &|_| frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 1])),
            Alive,
        ),
        case("10.5", "twenty thousand small windows", many(20_000, &|_| window(0, 1)), Alive),
        case(
            "10.5",
            "twenty thousand empty DATA",
            all(&[post(1), many(20_000, &|_| data(1, 0, b"")), data(1, END_STREAM, b"")]),
            Connection(&[CALM]),
        ),
        case(
            "10.5",
            "streams that the server is made to reset",
            many(3_000, &|n| all(&[post(2 * n + 1), window(2 * n + 1, (1 << 31) - 1)])),
            Connection(&[CALM]),
        ),
        case("10.5", "twenty thousand frames of unknown type", many(20_000, &|_| frame(0xfa, 0, 0, b"")), Alive),
        case(
            "5.4.1",
            "an error that the client tells: NO_ERROR",
            all(&[get(1), frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, NO_ERROR as u8])]),
            AnsweredThenClosed(200),
        ),
    ]
}
