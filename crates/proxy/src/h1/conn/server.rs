//! A client's connection.
//!
//! ```text
//!  Head ──► Body ──► Wait ──► Head          requests in order: the next is not read before the last is answered
//!             │        └────► Switched      after a 101
//!             └─ discard, bounded           nobody wants the rest of the body
//! ```

use super::{Event, Step};
use crate::h1::body::{Decoder, Piece};
use crate::h1::framing::Framing;
use crate::h1::grammar::Side;
use crate::h1::head::{RequestHead, Version, cut};
use crate::h1::limits::Limits;
use crate::h1::refusal::Refusal;

/// Of a body that nobody wants any more, so much is read to keep the connection; a longer one closes it.
const MAX_DISCARD_BYTES: u64 = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Head,
    Body,
    Wait,
    Switched,
    Closed,
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Of the bytes that follow the head.
    pub framing: Framing,
    /// Content-Length to be written; an answer to HEAD has one without a body.
    pub length: Option<u64>,
    /// The Connection field, if one is due.
    pub connection: Option<&'static str>,
}

/// What comes after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The next request; there may be bytes of it already.
    Next,
    /// Close. `linger`: the client may still be sending; without reading on for a moment, a reset could take the
    /// answer from it (RFC 9112 section 9.6).
    Close { linger: bool },
    /// The socket is the new protocol's.
    Switched,
}

#[derive(Debug)]
pub struct Server {
    limits: Limits,
    head: RequestHead,
    scan: usize,
    phase: Phase,
    body: Decoder,
    /// The empty line that some clients send after a body was skipped (RFC 9112 section 2.2).
    skipped_line: bool,
    /// Body bytes have come; then nobody waits for a 100.
    body_begun: bool,
    continue_sent: bool,
    /// What is left of the discard budget, once nobody wants the body.
    discard: Option<u64>,
    keep: bool,
    answered: bool,
}

impl Server {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            head: RequestHead::default(),
            scan: 0,
            phase: Phase::Head,
            body: Decoder::new(Framing::None, Side::Request),
            skipped_line: false,
            body_begun: false,
            continue_sent: false,
            discard: None,
            keep: true,
            answered: false,
        }
    }

    pub fn head(&self) -> &RequestHead {
        &self.head
    }

    /// Between requests: then silence is idleness, and an end is no loss.
    pub fn is_idle(&self) -> bool {
        self.phase == Phase::Head && self.scan == 0
    }

    pub fn is_request_read(&self) -> bool {
        !matches!(self.phase, Phase::Head | Phase::Body)
    }

    /// The rest of the body is read away for nobody.
    pub fn is_discarding(&self) -> bool {
        self.discard.is_some()
    }

    /// The next event of the bytes in `buf`, of which `ended` says that no more will come.
    pub fn step(&mut self, buf: &[u8], ended: bool) -> Step {
        match self.phase {
            Phase::Head => self.step_head(buf, ended),
            Phase::Body => self.step_body(buf, ended),
            Phase::Wait => Step::of(0, Event::Wait),
            Phase::Switched => Step::of(0, Event::Switched),
            Phase::Closed => Step::of(0, Event::Closed),
        }
    }

    fn refuse(&mut self, refusal: Refusal) -> Step {
        self.phase = Phase::Closed;
        self.keep = false;
        Step::of(0, Event::Refused(refusal))
    }

    fn step_head(&mut self, buf: &[u8], ended: bool) -> Step {
        if !self.skipped_line && buf.first() == Some(&b'\r') {
            match buf.get(1) {
                Some(b'\n') => {
                    self.skipped_line = true;
                    return Step::of(2, Event::More);
                }
                None if !ended => return Step::of(0, Event::More),
                _ => {}
            }
        }
        match self.head.parse(buf, &mut self.scan, &self.limits) {
            Ok(Some(length)) => {
                self.body = Decoder::new(self.head.framing, Side::Request);
                // What is here already is judged before anyone hears of the request.
                if let Err(refusal) = self.body.foresee(&buf[length..]) {
                    return self.refuse(refusal);
                }
                self.scan = 0;
                self.phase = Phase::Body;
                self.skipped_line = false;
                self.keep = self.head.keep_alive;
                Step::of(length, Event::Head)
            }
            Ok(None) if !ended => Step::of(0, Event::More),
            Ok(None) if buf.is_empty() => {
                self.phase = Phase::Closed;
                Step::of(0, Event::Closed)
            }
            Ok(None) => self.refuse(cut(buf, Side::Request, &self.limits)),
            Err(refusal) => self.refuse(refusal),
        }
    }

    fn step_body(&mut self, buf: &[u8], ended: bool) -> Step {
        let mut at = 0;
        loop {
            let rest = &buf[at..];
            let (consumed, piece) = match self.body.next(rest) {
                Ok(next) => next,
                Err(refusal) => return self.refuse(refusal),
            };
            self.body_begun |= consumed > 0;
            match (piece, self.discard) {
                (Piece::End, _) => {
                    self.phase = Phase::Wait;
                    if self.answered {
                        self.reset();
                        return match at + consumed {
                            0 => self.step_head(buf, ended),
                            consumed => Step::of(consumed, Event::More),
                        };
                    }
                    return Step::of(at + consumed, Event::End);
                }
                (Piece::More, _) if ended => return self.refuse(Refusal::CutBody),
                (Piece::More, _) => return Step::of(at + consumed, Event::More),
                (Piece::Data(range), None) => return Step::of(consumed, Event::Data(range)),
                (Piece::Trailers(range), None) => return Step::of(consumed, Event::Trailers(range)),
                (_, Some(budget)) => {
                    at += consumed;
                    match budget.checked_sub(consumed as u64) {
                        Some(left) => self.discard = Some(left),
                        None => return Step::of(at, self.give_up()),
                    }
                }
            }
        }
    }

    /// The rest of the body is longer than the connection is worth.
    fn give_up(&mut self) -> Event {
        self.keep = false;
        if self.answered {
            self.phase = Phase::Closed;
            return Event::Closed;
        }
        self.phase = Phase::Wait;
        Event::Wait
    }

    /// Whether the client must be told to send its body, asked when the body is wanted and none of it is here. True
    /// at most once a request.
    pub fn continue_due(&mut self) -> bool {
        let due = self.awaits_continue() && !self.answered && self.discard.is_none();
        self.continue_sent |= due;
        due
    }

    /// A client that was never told to go on may send its body or its next request: nobody can tell.
    fn awaits_continue(&self) -> bool {
        self.phase == Phase::Body && self.head.expects_continue && !self.continue_sent && !self.body_begun
    }

    /// Nobody wants the rest of the body. It is read away by further steps, within a bound.
    pub fn discard_body(&mut self) {
        if self.phase != Phase::Body || self.discard.is_some() {
            return;
        }
        if self.awaits_continue() || self.body.left().is_some_and(|left| left > MAX_DISCARD_BYTES) {
            self.give_up();
        } else {
            self.discard = Some(MAX_DISCARD_BYTES);
        }
    }

    /// The answer's head is about to be written. `length` of its body, if known; `close` if the connection shall not
    /// be used again. (An interim answer has no plan.)
    pub fn answer(&mut self, status: u16, length: Option<u64>, close: bool) -> Plan {
        let old = self.head.version == Version::V10;
        self.keep &= !close && !self.awaits_continue();
        if status == 101 {
            self.phase = Phase::Switched;
            return Plan { framing: Framing::None, length: None, connection: Some("upgrade") };
        }
        let bodiless = self.head.is_head || status == 204 || status == 304;
        let framing = match length {
            _ if bodiless => Framing::None,
            Some(0) => Framing::None,
            Some(length) => Framing::Length(length),
            None if old => Framing::UntilClose,
            None => Framing::Chunked,
        };
        self.keep &= framing != Framing::UntilClose;
        let connection = match (self.keep, old) {
            (false, _) => Some("close"),
            (true, true) => Some("keep-alive"),
            (true, false) => None,
        };
        let length = if status == 204 { None } else { length };
        Plan { framing, length, connection }
    }

    /// The answer is written. `Next` may still read away the rest of the request's body.
    pub fn finish(&mut self) -> Finish {
        if self.phase == Phase::Body && self.body.is_done() {
            self.phase = Phase::Wait;
        }
        self.discard_body();
        self.answered = true;
        match self.phase {
            Phase::Switched => Finish::Switched,
            Phase::Wait if self.keep => {
                self.reset();
                Finish::Next
            }
            Phase::Body if self.keep => Finish::Next,
            Phase::Head => Finish::Next,
            phase => {
                let linger = phase == Phase::Body || !self.body.is_done();
                self.phase = Phase::Closed;
                Finish::Close { linger }
            }
        }
    }

    fn reset(&mut self) {
        self.phase = Phase::Head;
        self.head.forget();
        self.scan = 0;
        self.body_begun = false;
        self.continue_sent = false;
        self.discard = None;
        self.answered = false;
    }
}
