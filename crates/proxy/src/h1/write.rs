//! Heads out, from borrowed parts into one buffer: the first line, the fields that may pass, and the framing that we
//! chose. What frames a message is never copied from the message that came in.

use http::HeaderMap;

use super::framing::Framing;
use super::head::RequestHead;
use super::names::{Class, classify};
use super::response::ResponseHead;

/// What our own fields and a first line take, about: room made once.
const USUAL_ADDITION_BYTES: usize = 512;

pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

#[inline]
pub fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

pub fn request_line(out: &mut Vec<u8>, method: &[u8], path: &[u8]) {
    out.reserve(method.len() + path.len() + USUAL_ADDITION_BYTES);
    out.extend_from_slice(method);
    out.push(b' ');
    out.extend_from_slice(path);
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

/// The reason phrase means nothing (RFC 9112 section 4); ours is the registered one.
pub fn status_line(out: &mut Vec<u8>, status: u16) {
    if status == 200 {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    out.extend_from_slice(b"HTTP/1.1 ");
    push_decimal(out, u64::from(status));
    out.push(b' ');
    out.extend_from_slice(phrase(status).as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn phrase(status: u16) -> &'static str {
    http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("")
}

/// The field that frames the body, if it takes one.
pub fn framing(out: &mut Vec<u8>, framing: Framing) {
    match framing {
        Framing::None | Framing::UntilClose => {}
        Framing::Length(length) => content_length(out, length),
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
}

pub fn content_length(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"content-length: ");
    push_decimal(out, length);
    out.extend_from_slice(b"\r\n");
}

/// The head is whole.
pub fn end(out: &mut Vec<u8>) {
    out.extend_from_slice(b"\r\n");
}

/// The fields of a client's request that are meant for the Machine. Lines that stand side by side go in one piece:
/// they were read as strictly as they would be written.
pub fn request_fields(out: &mut Vec<u8>, head: &RequestHead, buf: &[u8]) {
    out.reserve(buf.len());
    let mut run: Option<usize> = None;
    for field in head.fields() {
        let start = field.name.range().start;
        match (run, field.class.is_forwarded()) {
            (None, true) => run = Some(start),
            (Some(from), false) => {
                out.extend_from_slice(buf.get(from..start).unwrap_or_default());
                run = None;
            }
            _ => {}
        }
    }
    if let Some(from) = run {
        // The last two bytes of a head are its empty line.
        out.extend_from_slice(buf.get(from..buf.len().saturating_sub(2)).unwrap_or_default());
    }
}

/// The fields of a Machine's answer that are meant for the client, each line anew.
pub fn response_fields(out: &mut Vec<u8>, head: &ResponseHead, buf: &[u8]) {
    out.reserve(buf.len());
    for each in head.fields().iter().filter(|field| field.class.is_forwarded()) {
        field(out, each.name.in_buf(buf), each.value.in_buf(buf));
    }
}

/// The fields of a map, without those that frame a message or concern one connection: whoever filled the map, these
/// are written by whoever knows the connection.
pub fn map_fields(out: &mut Vec<u8>, headers: &HeaderMap) {
    for (name, value) in headers {
        let passes = matches!(
            classify(name.as_str().as_bytes()),
            Class::Plain | Class::EndToEnd | Class::Host | Class::Platform
        );
        if passes {
            field(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
}

/// The whole answer to a client that is refused, at this `date`; its connection closes after it.
pub fn refusal(out: &mut Vec<u8>, status: u16, date: &[u8]) {
    status_line(out, status);
    let text = phrase(status);
    field(out, b"date", date);
    field(out, b"content-type", b"text/plain");
    content_length(out, text.len() as u64 + 1);
    field(out, b"connection", b"close");
    if status == 405 {
        field(out, b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
    }
    end(out);
    out.extend_from_slice(text.as_bytes());
    out.push(b'\n');
}

fn push_decimal(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::h1::limits::Limits;

    #[test]
    fn a_request_goes_on_without_what_concerned_its_connection() {
        let buf =
            b"POST http://a.b/x?y HTTP/1.1\r\nA: 1\r\nB:2 \r\nHost: a.b\r\nConnection: x-hop, close\r\nX-Hop: 1\r\n\
            Content-Length: 007\r\nContent_Length: 9\r\nX-Forwarded-For: me\r\nC: 3\r\n\r\nbody...";
        let mut head = RequestHead::default();
        let length = head.parse(buf, &mut 0, &Limits::default()).unwrap().unwrap();
        let buf = &buf[..length];
        let mut out = Vec::new();
        request_line(&mut out, head.method.in_buf(buf), head.path(buf));
        request_fields(&mut out, &head, buf);
        framing(&mut out, head.framing);
        end(&mut out);
        let expected = "POST /x?y HTTP/1.1\r\nA: 1\r\nB:2 \r\nC: 3\r\ncontent-length: 7\r\n\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn numbers_are_written_whole() {
        for value in [0, 7, 10, 99, 100, u64::MAX] {
            let mut out = Vec::new();
            push_decimal(&mut out, value);
            assert_eq!(String::from_utf8(out).unwrap(), value.to_string());
        }
    }
}
