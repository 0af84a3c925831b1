//! Heads of HTTP/2 that would be two things at once as HTTP/1.1, as raw frames through the real edge and door.

use std::collections::BTreeMap;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::client::{PATIENCE, metric, until};
use crate::smuggling::{STAMPS, in_order, stage};
use crate::tls::{certify, connected, trust};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// One connection whose frames are written by hand, since no client would write these.
struct Frames {
    stream: TlsStream<TcpStream>,
    next: u32,
}

/// What became of a stream.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Answered {
        ok: bool,
    },
    Reset,
    /// The whole connection was given up.
    Gone,
}

impl Frames {
    async fn over(stream: TlsStream<TcpStream>) -> Self {
        let mut frames = Self { stream, next: 1 };
        frames.stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        frames.write(SETTINGS, 0, 0, &[]).await;
        frames
    }

    async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        // A connection that is gone is told by reading.
        let _ = self.stream.write_all(&frame).await;
        let _ = self.stream.flush().await;
    }

    async fn ask(&mut self, fields: &[(&str, &str)], body: Option<&str>) -> Outcome {
        let stream = self.next;
        self.next += 2;
        let mut block = Vec::new();
        for (name, value) in fields {
            // A literal without indexing, its name and value as they are (RFC 7541 section 6.2.2).
            block.push(0);
            for text in [name, value] {
                assert!(text.len() < 127);
                block.push(text.len() as u8);
                block.extend(text.as_bytes());
            }
        }
        let end = if body.is_none() { END_STREAM } else { 0 };
        self.write(HEADERS, END_HEADERS | end, stream, &block).await;
        if let Some(body) = body {
            self.write(DATA, END_STREAM, stream, body.as_bytes()).await;
        }
        tokio::time::timeout(PATIENCE, self.outcome(stream)).await.expect("an outcome")
    }

    async fn outcome(&mut self, stream: u32) -> Outcome {
        let mut answered = None;
        loop {
            let mut head = [0; 9];
            if self.stream.read_exact(&mut head).await.is_err() {
                return Outcome::Gone;
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; length];
            self.stream.read_exact(&mut payload).await.unwrap();
            let (kind, flags) = (head[3], head[4]);
            let of = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            match kind {
                GOAWAY => return Outcome::Gone,
                RST_STREAM if of == stream => return Outcome::Reset,
                // `:status: 200` is one byte of the static table.
                HEADERS if of == stream && answered.is_none() => answered = Some(payload[0] == 0x88),
                _ => {}
            }
            if let Some(ok) = answered.filter(|_| of == stream && flags & END_STREAM != 0) {
                return Outcome::Answered { ok };
            }
        }
    }
}

enum Expect {
    /// Turned away by our rules, for this reason; the connection stays.
    Refused(&'static str),
    /// `h2` itself breaks the stream or the connection.
    Broken,
    /// The same, but the Machine may have had this, and nothing else, before the client broke its word.
    BrokenAfter(&'static str),
    /// The Machine receives this.
    Forwarded(&'static str),
}
use Expect::*;

type Case = (&'static str, Vec<(&'static str, &'static str)>, Option<&'static str>, Expect);

fn with(method: &'static str, more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    let mut fields = vec![(":method", method), (":scheme", "https"), (":authority", "a"), (":path", "/")];
    fields.extend(more);
    fields
}

fn to(path: &'static str) -> Vec<(&'static str, &'static str)> {
    vec![(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", path)]
}

fn at(authority: &'static str) -> Vec<(&'static str, &'static str)> {
    vec![(":method", "GET"), (":scheme", "https"), (":authority", authority), (":path", "/")]
}

const PLAIN: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const POST3: &str = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc";
const POST0: &str = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";
const CHUNKED3: &str = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";

fn cases() -> Vec<Case> {
    let body = Some("abc");
    let smuggled = Some("0\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    vec![
        ("plain", with("GET", &[]), None, Forwarded(PLAIN)),
        ("a body of unknown length", with("POST", &[]), body, Forwarded(CHUNKED3)),
        ("a body with its length", with("POST", &[("content-length", "3")]), body, Forwarded(POST3)),
        ("Host that agrees", with("GET", &[("host", "A")]), None, Forwarded(PLAIN)),
        ("TE: trailers", with("GET", &[("te", "trailers")]), None, Forwarded(PLAIN)),
        ("a disguise", with("POST", &[("content_length", "9"), ("content-length", "3")]), body, Forwarded(POST3)),
        (
            "the platform's names",
            with("GET", &[("fly-client-ip", "6.6.6.6"), ("godwit-machine", "m")]),
            None,
            Forwarded(PLAIN),
        ),
        (
            "cookies in pieces",
            with("GET", &[("cookie", "a=1"), ("cookie", "b=2")]),
            None,
            Forwarded("GET / HTTP/1.1\r\nhost: a\r\ncookie: a=1; b=2\r\n\r\n"),
        ),
        ("query", to("/?a=%0d%0a"), None, Forwarded("GET /?a=%0d%0a HTTP/1.1\r\nhost: a\r\n\r\n")),
        ("H2.TE", with("POST", &[("transfer-encoding", "chunked")]), smuggled, Broken),
        ("H2.TE, other value", with("POST", &[("transfer-encoding", "identity")]), body, Broken),
        ("Connection", with("GET", &[("connection", "close")]), None, Broken),
        ("Connection that nominates", with("GET", &[("connection", "host")]), None, Broken),
        ("Keep-Alive", with("GET", &[("keep-alive", "5")]), None, Broken),
        ("Proxy-Connection", with("GET", &[("proxy-connection", "close")]), None, Broken),
        ("Upgrade", with("GET", &[("upgrade", "websocket")]), None, Broken),
        ("TE: chunked", with("GET", &[("te", "chunked")]), None, Broken),
        ("H2.CL, too short", with("POST", &[("content-length", "0")]), smuggled, BrokenAfter(POST0)),
        ("H2.CL, too long", with("POST", &[("content-length", "9")]), body, Broken),
        (
            "two lengths",
            with("POST", &[("content-length", "3"), ("content-length", "3")]),
            body,
            Refused("duplicate_length"),
        ),
        ("listed lengths", with("POST", &[("content-length", "3, 3")]), body, Broken),
        ("length with a sign", with("POST", &[("content-length", "+3")]), body, Broken),
        ("empty length", with("POST", &[("content-length", "")]), None, Broken),
        ("CR LF in a value", with("GET", &[("a", "b\r\ntransfer-encoding: chunked")]), None, Broken),
        ("LF in a value", with("GET", &[("a", "b\nc: d")]), None, Broken),
        ("NUL in a value", with("GET", &[("a", "b\0c")]), None, Broken),
        ("CR LF in a name", with("GET", &[("a: b\r\nc", "d")]), None, Broken),
        ("colon in a name", with("GET", &[("a:b", "d")]), None, Broken),
        ("upper case in a name", with("GET", &[("Transfer-Encoding", "chunked")]), None, Broken),
        ("empty name", with("GET", &[("", "d")]), None, Broken),
        ("CR LF in the method", with("GET / HTTP/1.1\r\nHost: b\r\n\r\nGET", &[]), None, Broken),
        ("space in the method", with("GET /x", &[]), None, Broken),
        ("CR LF in the path", to("/ HTTP/1.1\r\nHost: b\r\n\r\nGET /x"), None, Broken),
        ("space in the path", to("/ HTTP/1.1"), None, Broken),
        ("a fragment is dropped", to("/#a"), None, Forwarded(PLAIN)),
        ("path without a slash", to("x"), None, Broken),
        ("empty path", to(""), None, Broken),
        ("star of a GET", to("*"), None, Refused("bad_target")),
        ("CR LF in the authority", at("a\r\nTransfer-Encoding: chunked"), None, Broken),
        ("slash in the authority", at("a/b"), None, Broken),
        ("user name in the authority", at("u@a"), None, Refused("bad_host")),
        ("empty authority", at(""), None, Broken),
        ("percent in the authority", at("a%2e"), None, Broken),
        ("Host that differs", with("GET", &[("host", "b")]), None, Refused("host_mismatch")),
        ("two Hosts", with("GET", &[("host", "a"), ("host", "a")]), None, Refused("duplicate_host")),
        ("odd Host", with("GET", &[("host", "a/b")]), None, Refused("bad_host")),
        (
            "no authority, no Host",
            vec![(":method", "GET"), (":scheme", "https"), (":path", "/")],
            None,
            Refused("no_host"),
        ),
        ("TRACE", with("TRACE", &[]), None, Refused("method_not_allowed")),
        ("CONNECT", vec![(":method", "CONNECT"), (":authority", "a:443")], None, Refused("method_not_allowed")),
        ("two methods", with("GET", &[(":method", "POST")]), None, Broken),
        ("a pseudo-field behind a field", with("GET", &[("a", "b"), (":path", "/x")]), None, Broken),
        ("an unknown pseudo-field", with("GET", &[(":x", "b")]), None, Broken),
        (":status in a request", with("GET", &[(":status", "200")]), None, Broken),
        ("no method", vec![(":scheme", "https"), (":authority", "a"), (":path", "/")], None, Broken),
        ("no path", vec![(":method", "GET"), (":scheme", "https"), (":authority", "a")], None, Broken),
        ("no scheme", vec![(":method", "GET"), (":authority", "a"), (":path", "/")], None, Broken),
    ]
}

/// As the Machine receives it, stamps of this way in included.
fn stamped(forwarded: &str) -> String {
    let (head, body) = forwarded.split_once("\r\n\r\n").unwrap();
    let stamps = STAMPS.join("\r\n");
    let stamps =
        stamps.replace("via: 1.1", "via: 2").replace("port: 80", "port: 443").replace("proto: http", "proto: https");
    in_order(&format!("{head}\r\n{stamps}\r\n\r\n{body}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_http2_lets_through_becomes_two_requests_or_another_one() {
    let (fleet, _host, machine) = stage().await;
    let root = certify(&fleet.edge.certificates, "a.pem", &["a"]);
    let config = trust(&[&root], &[b"h2"]);
    let mut refused: BTreeMap<&str, u32> = BTreeMap::new();
    let mut wrong = Vec::new();
    // What a Machine may have had before its client broke its word may also come to it later, on a connection of its own.
    let mut late: Vec<String> = Vec::new();
    for (name, fields, body, expect) in cases() {
        let mut frames = Frames::over(connected(fleet.edge.https, &config, "a").await).await;
        let outcome = frames.ask(&fields, body).await;
        let is_own = |request: &String| matches!(&expect, Forwarded(bytes) if stamped(bytes) == in_order(request));
        let is_of_now = |request: &String| is_own(request) || !late.contains(&in_order(request));
        let received: Vec<_> = machine.take().into_iter().filter(is_of_now).collect();
        let fits = match &expect {
            Forwarded(bytes) => {
                let received: Vec<_> = received.iter().map(|request| in_order(request)).collect();
                outcome == Outcome::Answered { ok: true } && received == [stamped(bytes)]
            }
            Refused(word) => {
                *refused.entry(word).or_default() += 1;
                outcome == Outcome::Answered { ok: false } && received.is_empty()
            }
            // By its own word the request was whole: its answer may be out before the client breaks that.
            BrokenAfter(_) => true,
            // A length that its body breaks can be found out late; then the request never becomes whole.
            Broken => {
                outcome != Outcome::Answered { ok: true }
                    && !received.iter().any(|request| crate::raw::is_whole(request.as_bytes()))
            }
        };
        if let BrokenAfter(bytes) = &expect {
            let second = frames.ask(&to("/second"), None).await;
            assert!(matches!(second, Outcome::Answered { ok: true } | Outcome::Gone), "{name}: {second:?}");
            let may = [stamped(bytes), stamped("GET /second HTTP/1.1\r\nhost: a\r\n\r\n")];
            let all = received.into_iter().chain(machine.take());
            let more: Vec<_> = all.map(|request| in_order(&request)).filter(|request| !may.contains(request)).collect();
            assert!(fits && more.is_empty(), "{name}: {outcome:?}, received {more:?}");
            late.push(stamped(bytes));
            continue;
        }
        if !fits {
            wrong.push(format!("{name}: {outcome:?}, received {received:?}"));
            continue;
        }
        if outcome != Outcome::Gone {
            let second = frames.ask(&to("/second"), None).await;
            // What the case left undone may end only now.
            let whole = machine.take().into_iter().filter(|request| crate::raw::is_whole(request.as_bytes()));
            let received = whole.map(|request| in_order(&request)).filter(|request| !late.contains(request));
            let received: Vec<_> = received.collect();
            let expected = [stamped("GET /second HTTP/1.1\r\nhost: a\r\n\r\n")];
            if second != (Outcome::Answered { ok: true }) || received != expected {
                wrong.push(format!("{name}: then {second:?}, received {received:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (word, count) in refused {
        let line = format!("godwit_edge_client_refusals_total{{reason=\"{word}\"}} ");
        until("the refusals are counted", async || {
            (metric(fleet.edge.admin, &line).await == f64::from(count)).then_some(())
        })
        .await;
    }
}
