//! A client's bytes through the state machine and out again, as a proxy would send them to a Machine.

use godwit_proxy::h1::body::{Encoder, trailers};
use godwit_proxy::h1::conn::{Event, Finish, Server};
use godwit_proxy::h1::{Limits, Refusal, RequestHead, write};

/// What a Machine would receive and how the connection ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The bytes of each request that was forwarded, the body as far as it went.
    pub forwarded: Vec<Vec<u8>>,
    /// How many of them were whole.
    pub whole: usize,
    pub refused: Option<Refusal>,
    /// Whether the connection was closed by us after an answer.
    pub closed: bool,
}

pub fn forwarded_head(head: &RequestHead, buf: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write::request_line(&mut out, head.method.in_buf(buf), head.path(buf));
    write::field(&mut out, b"host", head.host.in_buf(buf));
    write::request_fields(&mut out, head, buf);
    if let Some(protocol) = head.upgrade {
        write::field(&mut out, b"connection", b"upgrade");
        write::field(&mut out, b"upgrade", protocol.in_buf(buf));
    }
    write::framing(&mut out, head.framing);
    write::end(&mut out);
    out
}

/// Feeds `reads` one after the other, then the end. Every request is answered with 200 once it is read.
pub fn run<'r>(reads: impl IntoIterator<Item = &'r [u8]>) -> Outcome {
    let mut server = Server::new(Limits::default());
    let mut outcome = Outcome::default();
    let mut buf = Vec::new();
    let mut encoder = None;
    let mut body = Vec::new();
    let mut reads = reads.into_iter();
    let mut ended = false;
    loop {
        let step = server.step(&buf, ended);
        let bytes = &buf[..step.consumed];
        let last = outcome.forwarded.len().wrapping_sub(1);
        match step.event {
            Event::Head => {
                let head = server.head();
                outcome.forwarded.push(forwarded_head(head, bytes));
                encoder = Some(Encoder::new(head.framing));
                body.clear();
            }
            // Chunks are joined, so that they do not depend on how the bytes arrived.
            Event::Data(range) => body.extend_from_slice(&bytes[range]),
            Event::Trailers(range) => {
                finish(&mut encoder, &body, &bytes[range], &mut outcome.forwarded[last]);
            }
            Event::End => {
                finish(&mut encoder, &body, b"", &mut outcome.forwarded[last]);
                outcome.whole += 1;
                server.answer(200, Some(0), false);
                match server.finish() {
                    Finish::Next => {}
                    Finish::Close { .. } | Finish::Switched => {
                        outcome.closed = true;
                        return outcome;
                    }
                }
            }
            Event::Refused(refusal) => {
                outcome.refused = Some(refusal);
                return outcome;
            }
            Event::Closed => return outcome,
            Event::More if step.consumed > 0 => {}
            Event::More => match reads.next() {
                Some(read) => buf.extend_from_slice(read),
                None if ended => panic!("the end of the input is not an event"),
                None => ended = true,
            },
            Event::Wait | Event::Switched | Event::Interim => panic!("{:?} before an answer", step.event),
        }
        buf.drain(..step.consumed);
    }
}

fn finish(encoder: &mut Option<Encoder>, body: &[u8], section: &[u8], out: &mut Vec<u8>) {
    if let Some(mut encoder) = encoder.take() {
        encoder.before(body.len(), out).unwrap();
        out.extend_from_slice(body);
        out.extend_from_slice(encoder.after(body.len()));
        encoder.finish(trailers(section), out).unwrap();
    }
}
