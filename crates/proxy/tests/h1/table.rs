//! Requests that try to be two things at once, and their harmless neighbours, as data.

use godwit_proxy::h1::Refusal::{self, *};

pub struct Case {
    pub class: &'static str,
    pub name: &'static str,
    pub bytes: Vec<u8>,
    pub expect: Expect,
}

pub enum Expect {
    /// Nothing is forwarded; the client gets `Refusal::status` and the connection closes.
    Refused(Refusal),
    /// These requests are forwarded, byte for byte, and the connection stays open.
    Forwarded(Vec<Vec<u8>>),
    /// This request is forwarded, and no other: the client had asked to close.
    ForwardedThenClosed(Vec<u8>),
}

#[derive(Default)]
struct Table {
    class: &'static str,
    cases: Vec<Case>,
}

impl Table {
    fn class(&mut self, class: &'static str) {
        self.class = class;
    }

    fn push(&mut self, name: &'static str, bytes: impl AsRef<[u8]>, expect: Expect) {
        self.cases.push(Case { class: self.class, name, bytes: bytes.as_ref().to_vec(), expect });
    }

    fn no(&mut self, name: &'static str, bytes: impl AsRef<[u8]>, refusal: Refusal) {
        self.push(name, bytes, Expect::Refused(refusal));
    }

    fn yes(&mut self, name: &'static str, bytes: impl AsRef<[u8]>, forwarded: impl AsRef<[u8]>) {
        self.push(name, bytes, Expect::Forwarded(vec![forwarded.as_ref().to_vec()]));
    }

    fn closes(&mut self, name: &'static str, bytes: impl AsRef<[u8]>, forwarded: impl AsRef<[u8]>) {
        self.push(name, bytes, Expect::ForwardedThenClosed(forwarded.as_ref().to_vec()));
    }
}

/// A POST to `/` at host `a` with more fields, and what follows the head.
fn post(fields: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}")
}

fn get(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
}

const PLAIN: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const POST3: &str = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc";
const CHUNKED3: &str = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";

pub fn cases() -> Vec<Case> {
    let mut t = Table::default();
    lengths(&mut t);
    encodings(&mut t);
    chunks(&mut t);
    request_lines(&mut t);
    hosts(&mut t);
    lines(&mut t);
    names(&mut t);
    hops(&mut t);
    protocols(&mut t);
    bounds(&mut t);
    t.cases
}

fn lengths(t: &mut Table) {
    t.class("length and encoding");
    let both = post("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\nG");
    t.no("CL.TE", both, LengthAndEncoding);
    let both = post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", "5c\r\nGPOST / HTTP/1.1\r\n\r\n0\r\n\r\n");
    t.no("TE.CL", both, LengthAndEncoding);
    t.no("CL 0 and TE", post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), LengthAndEncoding);
    t.no("in lower case", post("content-length: 3\r\ntransfer-encoding: chunked\r\n", "abc"), LengthAndEncoding);
    t.no("CL and bad TE", post("Content-Length: 3\r\nTransfer-Encoding: x\r\n", "abc"), UnknownEncoding);

    t.class("several lengths");
    t.no("differing", post("Content-Length: 3\r\nContent-Length: 4\r\n", "abc"), DuplicateLength);
    t.no("equal", post("Content-Length: 3\r\nContent-Length: 3\r\n", "abc"), DuplicateLength);
    t.no("apart", post("Content-Length: 3\r\nA: b\r\ncontent-length: 0\r\n", "abc"), DuplicateLength);
    t.no("listed, differing", post("Content-Length: 3, 5\r\n", "abc"), BadLength);
    t.no("listed, equal", post("Content-Length: 3, 3\r\n", "abc"), BadLength);
    t.no("listed, empty member", post("Content-Length: 3,\r\n", "abc"), BadLength);

    t.class("odd length");
    for (name, value) in [
        ("plus", "+3"),
        ("minus", "-1"),
        ("hexadecimal", "0x3"),
        ("float", "3.0"),
        ("exponent", "3e0"),
        ("empty", ""),
        ("word", "three"),
        ("space inside", "3 3"),
        ("quoted", "\"3\""),
        ("underscore", "1_0"),
        ("overflow", "18446744073709551616"),
        ("overflow to 3", "18446744073709551619"),
        ("fullwidth digit", "\u{ff13}"),
    ] {
        t.no(name, post(&format!("Content-Length: {value}\r\n"), "abc"), BadLength);
    }
    t.yes("leading zeros are written anew", post("Content-Length: 0003\r\n", "abc"), POST3);
    t.yes("blanks around it", post("Content-Length:\t 3 \t\r\n", "abc"), POST3);
    t.yes("zero", post("Content-Length: 0\r\n", ""), "POST / HTTP/1.1\r\nhost: a\r\n\r\n");

    t.class("body of a GET");
    let body = "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 17\r\n\r\nGET /x HTTP/1.1\r\n";
    t.yes("a request inside", body, "GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 17\r\n\r\nGET /x HTTP/1.1\r\n");
    t.yes(
        "chunked",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    );
    t.yes(
        "of a HEAD",
        "HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx",
        "HEAD / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx",
    );
}

fn encodings(t: &mut Table) {
    t.class("odd encoding");
    for (name, value) in [
        ("chunked, identity", "chunked, identity"),
        ("chunked twice in a list", "chunked, chunked"),
        ("trailing comma", "chunked,"),
        ("leading comma", ", chunked"),
        ("parameter", "chunked;q=1"),
        ("quoted", "\"chunked\""),
        ("empty", ""),
        ("Kelvin sign", "chun\u{212a}ed"),
        ("no-break space before", "\u{a0}chunked"),
        ("space inside", "chu nked"),
    ] {
        t.no(name, post(&format!("Transfer-Encoding: {value}\r\n"), "3\r\nabc\r\n0\r\n\r\n"), BadEncoding);
    }
    for (name, value) in [
        ("xchunked", "xchunked"),
        ("identity", "identity"),
        ("identity, chunked", "identity, chunked"),
        ("gzip, chunked", "gzip, chunked"),
        ("single quotes", "'chunked'"),
        ("cut short", "chunke"),
    ] {
        t.no(name, post(&format!("Transfer-Encoding: {value}\r\n"), "3\r\nabc\r\n0\r\n\r\n"), UnknownEncoding);
    }
    t.yes("any case", post("Transfer-Encoding: ChUnKeD\r\n", "3\r\nabc\r\n0\r\n\r\n"), CHUNKED3);
    t.yes("blanks around it", post("Transfer-Encoding: \tchunked \r\n", "3\r\nabc\r\n0\r\n\r\n"), CHUNKED3);
    t.no("vertical tab", post("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n"), ControlCharacter);
    t.no("form feed", post("Transfer-Encoding: chunked\x0c\r\n", "0\r\n\r\n"), ControlCharacter);
    t.no("CR before it", post("Transfer-Encoding: \rchunked\r\n", "0\r\n\r\n"), BareCr);

    t.class("several encodings");
    let twice = post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n");
    t.no("chunked twice", twice, DuplicateEncoding);
    let twice = post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n");
    t.no("chunked, then identity", twice, DuplicateEncoding);
    let twice = post("Transfer-Encoding: cow\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n");
    t.no("cow, then chunked", twice, UnknownEncoding);

    t.class("encoding in HTTP/1.0");
    t.no("chunked", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", EncodingInOld);
    let both = "POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc";
    t.no("with a length", both, EncodingInOld);
    let kept = "POST / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    t.no("kept alive", kept, EncodingInOld);
}

fn chunks(t: &mut Table) {
    let chunked = |body: &str| post("Transfer-Encoding: chunked\r\n", body);
    t.class("chunk size");
    for (name, body) in [
        ("0x", "0x3\r\nabc\r\n0\r\n\r\n"),
        ("plus", "+3\r\nabc\r\n0\r\n\r\n"),
        ("minus", "-3\r\nabc\r\n0\r\n\r\n"),
        ("space before", " 3\r\nabc\r\n0\r\n\r\n"),
        ("space after", "3 \r\nabc\r\n0\r\n\r\n"),
        ("none", "\r\nabc\r\n0\r\n\r\n"),
        ("no digit", "g\r\nabc\r\n0\r\n\r\n"),
        ("underscore", "1_0\r\nabc\r\n0\r\n\r\n"),
        ("NUL after", "3\0\r\nabc\r\n0\r\n\r\n"),
        ("extension only", ";a\r\nabc\r\n0\r\n\r\n"),
    ] {
        t.no(name, chunked(body), BadChunkSize);
    }
    t.yes("upper case and zeros", chunked("003\r\nabc\r\n00\r\n\r\n"), CHUNKED3);

    t.class("chunk size overflow");
    t.no("2^64 + 3", chunked("10000000000000003\r\nabc\r\n0\r\n\r\n"), ChunkTooLarge);
    t.no("2^64 - 1", chunked("ffffffffffffffff\r\nabc"), ChunkTooLarge);
    t.no("zeros without end", chunked("00000000000000000000003\r\nabc\r\n0\r\n\r\n"), ChunkTooLarge);

    t.class("chunk line ends");
    t.no("LF after the size", chunked("3\nabc\r\n0\r\n\r\n"), BadChunkSize);
    t.no("CR after the size", chunked("3\rabc\r\n0\r\n\r\n"), BadChunkSize);
    t.no("LF after the data", chunked("3\r\nabc\n0\r\n\r\n"), BadChunkEnd);
    t.no("nothing after the data", chunked("3\r\nabc0\r\n\r\n"), BadChunkEnd);
    t.no("two bytes after the data", chunked("3\r\nabcXX0\r\n\r\n"), BadChunkEnd);
    t.no("data longer than their size", chunked("2\r\nabc\r\n0\r\n\r\n"), BadChunkEnd);
    t.no("LF as the last line", chunked("0\r\n\n"), BadTrailer);
    t.no("LF after the last size", chunked("0\n\r\n"), BadChunkSize);

    t.class("chunk extension");
    t.no("LF inside", chunked("3;a\nabc\r\n0\r\n\r\n"), BadChunkExtension);
    t.no("LF, then a smuggled chunk (TERM.EXT)", chunked("2;\nxx\r\n45\r\n0\r\n\r\n"), BadChunkExtension);
    t.no("NUL inside", chunked("3;\0\r\nabc\r\n0\r\n\r\n"), BadChunkExtension);
    t.no("CR inside", chunked("3;a\rb\r\nabc\r\n0\r\n\r\n"), BadChunkSize);
    t.no("long", chunked(&format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(300))), ChunkOverhead);
    t.yes("dropped", chunked("3;a=\"b;c\"\r\nabc\r\n0;d\r\n\r\n"), CHUNKED3);
    t.yes("after blanks", chunked("3 ;a\r\nabc\r\n0\r\n\r\n"), CHUNKED3);

    t.class("trailers");
    let filtered = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n";
    let sent = "3\r\nabc\r\n0\r\nX-Sum: 1\r\nContent-Length: 9\r\nHost: b\r\nTransfer-Encoding: x\r\nCookie: c\r\n\r\n";
    t.yes("what frames or routes is dropped", chunked(sent), filtered);
    t.yes("disguises are dropped", chunked("3\r\nabc\r\n0\r\nContent_Length: 9\r\nX-Sum:1\r\n\r\n"), filtered);
    t.no("a request as trailers", chunked("0\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n"), BadTrailer);
    t.no("no colon", chunked("0\r\nabc\r\n\r\n"), BadTrailer);
    t.no("fold", chunked("0\r\na: b\r\n c\r\n\r\n"), BadTrailer);
    t.no("space before the colon", chunked("0\r\na : b\r\n\r\n"), BadTrailer);
    t.no("NUL", chunked("0\r\na: \0\r\n\r\n"), BadTrailer);
    t.no("bare LF", chunked("0\r\na: b\n\r\n"), BadTrailer);
    t.no("too large", chunked(&format!("0\r\na: {}\r\n\r\n", "x".repeat(9000))), TrailersTooLarge);
    t.no("too many", chunked(&format!("0\r\n{}\r\n", "a:\r\n".repeat(200))), TrailersTooLarge);
}

fn request_lines(t: &mut Table) {
    let line = |line: &str| format!("{line}\r\nHost: a\r\n\r\n");
    t.class("version");
    for (name, text) in [
        ("2.0", "GET / HTTP/2.0"),
        ("0.9 written out", "GET / HTTP/0.9"),
        ("lower case", "GET / http/1.1"),
        ("other protocol", "GET / RTSP/1.0"),
        ("two digits", "GET / HTTP/1.10"),
        ("zero before", "GET / HTTP/01.1"),
        ("comma", "GET / HTTP/1,1"),
        ("none (0.9)", "GET /"),
        ("tab before", "GET / \tHTTP/1.1"),
    ] {
        t.no(name, line(text), BadVersion);
    }
    t.yes("1.2 is read as 1.1", line("GET / HTTP/1.2"), PLAIN);
    t.yes("1.9 with a body", "POST / HTTP/1.9\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", POST3);
    t.no(
        "1.2 with both lengths",
        format!("POST / HTTP/1.2\r\nHost: a\r\nContent-Length: 3\r\n{}", "Transfer-Encoding: chunked\r\n\r\nabc"),
        LengthAndEncoding,
    );
    t.no("1.2 without Host", "GET / HTTP/1.2\r\nA: b\r\n\r\n", NoHost);
    t.no("HTTP/0.9 without fields", "GET /\r\n", BadVersion);
    t.no("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BadVersion);
    t.closes("1.0 is sent on as 1.1", "GET / HTTP/1.0\r\nHost: a\r\n\r\n", PLAIN);
    t.yes("1.0 kept alive", "GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n", PLAIN);

    t.class("space in the target");
    t.no("one", line("GET /a b HTTP/1.1"), SpaceInTarget);
    t.no("a second version", line("GET / HTTP/1.1 HTTP/1.1"), SpaceInTarget);
    t.no("two before", line("GET  / HTTP/1.1"), SpaceInTarget);
    t.no("two after", line("GET /  HTTP/1.1"), SpaceInTarget);
    t.no("at the end", line("GET / HTTP/1.1 "), SpaceInTarget);
    t.no("tab", line("GET /a\tb HTTP/1.1"), SpaceInTarget);

    t.class("target form");
    t.no("no slash", line("GET a HTTP/1.1"), BadTarget);
    t.no("authority of a GET", line("GET a:80 HTTP/1.1"), BadTarget);
    t.no("star of a GET", line("GET * HTTP/1.1"), BadTarget);
    t.no("fragment", line("GET /#a HTTP/1.1"), BadTarget);
    t.no("not ASCII", line("GET /\u{e9} HTTP/1.1"), BadTarget);
    t.no("NUL", line("GET /\0 HTTP/1.1"), Nul);
    t.no("control character", line("GET /\x01 HTTP/1.1"), ControlCharacter);
    t.no("DEL", line("GET /\x7f HTTP/1.1"), ControlCharacter);
    t.no("bare CR", line("GET /\rx HTTP/1.1"), BareCr);
    t.yes("star of OPTIONS", line("OPTIONS * HTTP/1.1"), "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n");
    t.yes("two slashes", line("GET //b/ HTTP/1.1"), "GET //b/ HTTP/1.1\r\nhost: a\r\n\r\n");
    let as_it_came = "GET /a%2Fb//c/./../d?x=%20&y=%zz? HTTP/1.1";
    t.yes("nothing is tidied up", line(as_it_came), format!("{as_it_came}\r\nhost: a\r\n\r\n"));
    let odd = "GET /{a}|[b]?\"c\"&d=%0d%0a HTTP/1.1";
    t.yes("odd but visible", line(odd), format!("{odd}\r\nhost: a\r\n\r\n"));
    let odder = "GET /a<b>`\"?<c>`\" HTTP/1.1";
    t.yes("what http's types do not take", line(odder), format!("{odder}\r\nhost: a\r\n\r\n"));

    t.class("absolute target");
    t.no("other host", line("GET http://b/ HTTP/1.1"), HostMismatch);
    t.no("other port", line("GET http://a:81/ HTTP/1.1"), HostMismatch);
    t.no("user name", line("GET http://u@a/ HTTP/1.1"), BadTarget);
    t.no("other scheme", line("GET ftp://a/ HTTP/1.1"), BadTarget);
    t.no("no authority", line("GET http:/// HTTP/1.1"), BadTarget);
    t.no("no slashes", line("GET http:a HTTP/1.1"), BadTarget);
    t.no("backslash", line("GET http://a\\b/ HTTP/1.1"), BadTarget);
    t.no("query without a path", line("GET http://a?b HTTP/1.1"), BadTarget);
    t.yes("same host", line("GET HTTP://A/ HTTP/1.1"), PLAIN);
    t.yes("its default port", line("GET http://a:80/ HTTP/1.1"), "GET / HTTP/1.1\r\nhost: a:80\r\n\r\n");
    t.yes("an empty port", line("GET http://a:/ HTTP/1.1"), "GET / HTTP/1.1\r\nhost: a:\r\n\r\n");
    t.no("another scheme's default port", line("GET http://a:443/ HTTP/1.1"), HostMismatch);
    t.closes("HTTP/1.0 without Host", "GET http://a/x HTTP/1.0\r\n\r\n", "GET /x HTTP/1.1\r\nhost: a\r\n\r\n");
    t.no("HTTP/1.0 with another Host", "GET http://a/x HTTP/1.0\r\nHost: b\r\n\r\n", HostMismatch);
    t.yes("no path", line("GET http://a HTTP/1.1"), PLAIN);
    t.yes("no path, OPTIONS", line("OPTIONS http://a HTTP/1.1"), "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n");

    t.class("method");
    t.no("CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", MethodNotAllowed);
    t.no("TRACE", line("TRACE / HTTP/1.1"), MethodNotAllowed);
    t.no("control character", line("GE\x01T / HTTP/1.1"), BadMethod);
    t.no("NUL", line("GE\0T / HTTP/1.1"), Nul);
    t.no("separator", line("GE(T / HTTP/1.1"), BadMethod);
    t.no("none", line(" / HTTP/1.1"), BadMethod);
    t.no("not ASCII", line("G\u{c9}T / HTTP/1.1"), BadMethod);
    t.no("long", line(&format!("{} / HTTP/1.1", "X".repeat(33))), MethodTooLong);
    t.no("TLS on a plain port", "\x16\x03\x01\x02\0\x01", BadMethod);
    t.yes("unknown", line("BREW / HTTP/1.1"), "BREW / HTTP/1.1\r\nhost: a\r\n\r\n");
    t.yes("lower case is another method", line("get / HTTP/1.1"), "get / HTTP/1.1\r\nhost: a\r\n\r\n");
}

fn hosts(t: &mut Table) {
    t.class("missing host");
    t.no("1.1", "GET / HTTP/1.1\r\nA: b\r\n\r\n", NoHost);
    t.no("1.0", "GET / HTTP/1.0\r\nA: b\r\n\r\n", NoHost);
    t.no("absolute target alone", "GET http://a/ HTTP/1.1\r\nA: b\r\n\r\n", NoHost);
    t.no("no field at all", "GET / HTTP/1.1\r\n\r\n", NoHost);
    t.no("in disguise", "GET / HTTP/1.1\r\nX-Host: a\r\n\r\n", NoHost);

    t.class("several hosts");
    t.no("differing", get("Host: b\r\n"), DuplicateHost);
    t.no("equal", get("host: a\r\n"), DuplicateHost);
    t.no("second empty", get("Host:\r\n"), DuplicateHost);

    t.class("odd host");
    for (name, value) in [
        ("empty", ""),
        ("slash", "a/b"),
        ("user name", "u@a"),
        ("space", "a b"),
        ("list", "a, b"),
        ("port of letters", "a:b"),
        ("port too high", "a:65536"),
        ("two ports", "a:1:2"),
        ("percent", "a%2e"),
        ("query", "a?b"),
        ("backslash", "a\\b"),
        ("scheme", "http://a"),
        ("not ASCII", "\u{e4}"),
        ("IPv6 without brackets", "::1"),
        ("open bracket", "[::1"),
        ("quoted", "\"a\""),
        ("two dots", "a..b"),
    ] {
        t.no(name, format!("GET / HTTP/1.1\r\nHost: {value}\r\n\r\n"), BadHost);
    }
    t.yes("empty port", "GET / HTTP/1.1\r\nHost: a:\r\n\r\n", "GET / HTTP/1.1\r\nhost: a:\r\n\r\n");
    t.yes("port", "GET / HTTP/1.1\r\nHost: a:80\r\n\r\n", "GET / HTTP/1.1\r\nhost: a:80\r\n\r\n");
    t.yes("IPv6", "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "GET / HTTP/1.1\r\nhost: [::1]:80\r\n\r\n");
}

fn lines(t: &mut Table) {
    t.class("line ends");
    t.no("LF after the request line", "GET / HTTP/1.1\nHost: a\r\n\r\n", BareLf);
    t.no("LF after a field", "GET / HTTP/1.1\r\nHost: a\nB: c\r\n\r\n", BareLf);
    t.no("LF everywhere", "GET / HTTP/1.1\nHost: a\n\n", BareLf);
    t.no("LF as the empty line", "GET / HTTP/1.1\r\nHost: a\r\n\n", BareLf);
    t.no("LF after an empty value", get("A:\nB: c\r\n"), BareLf);
    t.no("CR LF LF hides a field", "GET / HTTP/1.1\r\nHost: a\r\n\nContent-Length: 3\r\n\r\nabc", BareLf);
    t.no("CR CR LF", get("A: b\r\r\n"), BareCr);
    t.no("two empty lines before", format!("\r\n\r\n{}", get("")), BadMethod);
    t.no("LF before", format!("\n{}", get("")), BadMethod);
    t.yes("an empty line before", format!("\r\n{}", get("")), PLAIN);

    t.class("control characters in a value");
    t.no("bare CR", get("A: b\rc\r\n"), BareCr);
    t.no("bare CR and a field", get("A: b\rContent-Length: 3\r\n"), BareCr);
    t.no("NUL", get("A: b\0c\r\n"), Nul);
    t.no("bell", get("A: \x07\r\n"), ControlCharacter);
    t.no("DEL", get("A: \x7f\r\n"), ControlCharacter);
    t.no("escape", get("A: \x1b[0m\r\n"), ControlCharacter);
    t.yes("tab is none", get("A: b\tc\r\n"), "GET / HTTP/1.1\r\nhost: a\r\nA: b\tc\r\n\r\n");
    t.yes("obs-text is none", get("A: \u{e9}\r\n"), "GET / HTTP/1.1\r\nhost: a\r\nA: \u{e9}\r\n\r\n");

    t.class("folds");
    t.no("space", get("A: b\r\n c\r\n"), ObsFold);
    t.no("tab", get("A: b\r\n\tc\r\n"), ObsFold);
    t.no("a length folded away", post("A: b\r\n Content-Length: 3\r\n", "abc"), ObsFold);
    t.no("encoding on the second line", post("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"), ObsFold);
    t.no("first line of fields", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", ObsFold);
    t.no("blank line with a space", "GET / HTTP/1.1\r\nHost: a\r\n \r\n\r\n", ObsFold);
}

fn names(t: &mut Table) {
    t.class("space before the colon");
    t.no("encoding", post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"), SpaceBeforeColon);
    t.no("length, tab", post("Content-Length\t: 3\r\n", "abc"), SpaceBeforeColon);
    t.no("host", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", SpaceBeforeColon);
    t.no("inside the name", get("A b: c\r\n"), SpaceBeforeColon);

    t.class("odd names");
    t.no("empty", get(": b\r\n"), EmptyName);
    t.no("empty before a length", post(":Content-Length: 3\r\n", "abc"), EmptyName);
    t.no("no colon", get("abc\r\n"), NoColon);
    t.no("separator", get("A(b): c\r\n"), BadName);
    t.no("not ASCII", get("\u{e4}: c\r\n"), BadName);
    t.no("NUL", get("A\0: c\r\n"), Nul);
    t.no("bare CR", get("A\rB: c\r\n"), BareCr);
    t.no("control character", get("Content-Length\x01: 3\r\n"), BadName);
    t.no("quoted", get("\"Content-Length\": 3\r\n"), BadName);

    t.class("disguises");
    t.yes("Content_Length", get("Content_Length: 3\r\n"), PLAIN);
    t.yes("Transfer_Encoding", get("transfer_encoding: chunked\r\n"), PLAIN);
    t.yes("beside the true one", post("Content_Length: 9\r\nContent-Length: 3\r\n", "abc"), POST3);
    t.yes("X_Forwarded_For", get("X_Forwarded_For: 6.6.6.6\r\n"), PLAIN);
    t.yes("Fly_Client-IP", get("Fly_Client-IP: 6.6.6.6\r\n"), PLAIN);
    t.yes("an innocent underscore", get("my_name: b\r\n"), "GET / HTTP/1.1\r\nhost: a\r\nmy_name: b\r\n\r\n");

    t.class("the platform's names");
    t.yes("X-Forwarded-For", get("X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n"), PLAIN);
    t.yes("Fly-*", get("Fly-Client-IP: 6.6.6.6\r\nFly-Region: x\r\nFLY-REQUEST-ID: 1\r\n"), PLAIN);
    t.yes("Godwit-*", get("Godwit-Machine: m\r\ngodwit-anything: m\r\n"), PLAIN);
}

fn hops(t: &mut Table) {
    t.class("hop-by-hop fields");
    let hops = "Keep-Alive: 5\r\nProxy-Connection: close\r\nTE: trailers\r\nTrailer: x\r\nProxy-Authorization: p\r\n";
    t.yes("known ones", get(hops), PLAIN);
    t.yes("nominated", get("Connection: X-Mine\r\nx-mine: 1\r\n"), PLAIN);
    t.yes("nominated before and twice", get("x-mine: 1\r\nConnection: , x-mine ,\r\nX-MINE: 2\r\n"), PLAIN);
    t.closes("close", get("Connection: close\r\n"), PLAIN);
    t.closes("close and keep-alive", get("Connection: keep-alive\r\nConnection: CLOSE\r\n"), PLAIN);

    t.class("nominated end-to-end fields");
    for (name, option) in [
        ("Host", "host"),
        ("Content-Length", "close, content-length"),
        ("Transfer-Encoding", "Transfer-Encoding"),
        ("Authorization", "authorization"),
        ("Cookie", "Cookie"),
        ("Cache-Control", "cache-control"),
        ("X-Forwarded-For", "X-Forwarded-For"),
        ("Fly-Client-IP", "fly-client-ip"),
        ("Godwit-Machine", "godwit-machine"),
        ("in disguise", "content_length"),
    ] {
        t.no(name, post(&format!("Connection: {option}\r\nContent-Length: 3\r\n"), "abc"), NominatesEndToEnd);
    }

    t.class("odd connection options");
    t.no("quoted", get("Connection: \"close\"\r\n"), BadConnection);
    t.no("space inside", get("Connection: close keep-alive\r\n"), BadConnection);
    t.no("parameter", get("Connection: close;q=1\r\n"), BadConnection);
    t.no("too many", get(&format!("Connection: {}\r\n", "x,".repeat(40))), BadConnection);
}

fn protocols(t: &mut Table) {
    t.class("upgrade");
    t.yes(
        "a WebSocket is asked for",
        get("Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    );
    t.yes(
        "h2c is not passed on",
        get("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n"),
        PLAIN,
    );
    t.yes("h2c in a list", get("Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n"), PLAIN);
    t.yes("TLS inside", get("Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n"), PLAIN);
    t.yes("not nominated", get("Upgrade: websocket\r\n"), PLAIN);
    t.no("twice", get("Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n"), BadUpgrade);
    t.yes("with a body it is none", post("Connection: Upgrade\r\nUpgrade: x\r\nContent-Length: 3\r\n", "abc"), POST3);
    t.closes("in HTTP/1.0", "GET / HTTP/1.0\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", PLAIN);
    t.push(
        "a request behind it is a request (CVE-2026-2833)",
        format!("{}{}", get("Connection: Upgrade\r\nUpgrade: foo\r\n"), get("A: b\r\n")),
        Expect::Forwarded(vec![
            b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: foo\r\n\r\n".to_vec(),
            b"GET / HTTP/1.1\r\nhost: a\r\nA: b\r\n\r\n".to_vec(),
        ]),
    );

    t.class("expectations");
    t.yes("100-continue is ours to answer", post("Expect: 100-Continue\r\nContent-Length: 3\r\n", "abc"), POST3);
    t.yes("without a body", get("Expect: 100-continue\r\n"), PLAIN);
    t.no("another", post("Expect: 100-continue, x\r\nContent-Length: 3\r\n", "abc"), BadExpect);
    t.no("twice", post("Expect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 3\r\n", "abc"), BadExpect);

    t.class("pipelines");
    t.push(
        "three in order",
        format!("{}{}{}", get(""), post("Content-Length: 3\r\n", "abc"), get("")),
        Expect::Forwarded(vec![PLAIN.into(), POST3.into(), PLAIN.into()]),
    );
    t.push(
        "an empty line after a body",
        format!("{}\r\n{}", post("Content-Length: 3\r\n", "abc"), get("")),
        Expect::Forwarded(vec![POST3.into(), PLAIN.into()]),
    );
    t.closes("nothing is read after close", format!("{}{}", get("Connection: close\r\n"), get("")), PLAIN);
}

fn bounds(t: &mut Table) {
    t.class("bounds");
    t.no("fields", get(&"a: b\r\n".repeat(128)), TooManyFields);
    t.no("bytes", get(&format!("a: {}\r\n", "x".repeat(70_000))), HeadTooLarge);
    t.no("bytes in the target", format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(17 << 10)), TargetTooLong);
    t.no("a line without end", "x".repeat(70_000), MethodTooLong);
    let many = "a: b\r\n".repeat(127);
    t.yes("just below", get(&many), format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n"));
}
