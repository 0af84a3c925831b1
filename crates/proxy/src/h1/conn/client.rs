//! A connection to a Machine: one request at a time, its interim answers, its answer.
//!
//! ```text
//!  Idle ──begin──► Head ──► Body ──► Idle      the request may still be going out meanwhile; an answer that is over
//!                   │ ▲                        first ends the connection
//!                   │ └ interim, bounded
//!                   └► Switched                only if that was asked for
//! ```

use super::{Event, Step};
use crate::h1::body::{Decoder, Piece};
use crate::h1::framing::Framing;
use crate::h1::grammar::Side;
use crate::h1::head::cut;
use crate::h1::limits::Limits;
use crate::h1::refusal::Refusal;
use crate::h1::response::ResponseHead;

/// Interim answers that are read before an answer; a Machine that says more never comes to its point.
const MAX_INTERIM: u16 = 1_024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Head,
    Body,
    Switched,
    Closed,
}

#[derive(Debug)]
pub struct Client {
    limits: Limits,
    head: ResponseHead,
    scan: usize,
    phase: Phase,
    body: Decoder,
    framing: Framing,
    to_head: bool,
    asks_switch: bool,
    request_sent: bool,
    interim: u16,
    keep: bool,
}

impl Client {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            head: ResponseHead::default(),
            scan: 0,
            phase: Phase::Idle,
            body: Decoder::new(Framing::None, Side::Response),
            framing: Framing::None,
            to_head: false,
            asks_switch: false,
            request_sent: false,
            interim: 0,
            keep: true,
        }
    }

    pub fn head(&self) -> &ResponseHead {
        &self.head
    }

    /// How the answer's body ends; known after its head.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// A request is about to be written.
    pub fn begin(&mut self, to_head: bool, asks_switch: bool) {
        debug_assert!(self.phase == Phase::Idle && self.keep, "one request at a time");
        self.phase = Phase::Head;
        self.to_head = to_head;
        self.asks_switch = asks_switch;
        self.request_sent = false;
        self.interim = 0;
        self.scan = 0;
        self.framing = Framing::None;
    }

    /// The request is written whole, its body included.
    pub fn sent(&mut self) {
        self.request_sent = true;
    }

    /// Whether the connection may carry another request, `buffered` bytes having been read beyond the answer.
    pub fn is_reusable(&self, buffered: usize) -> bool {
        self.phase == Phase::Idle && self.keep && buffered == 0
    }

    pub fn step(&mut self, buf: &[u8], ended: bool) -> Step {
        match self.phase {
            Phase::Idle if !buf.is_empty() => self.refuse(Refusal::Unasked),
            Phase::Idle if ended => self.close(),
            Phase::Idle => Step::of(0, Event::Wait),
            Phase::Head => self.step_head(buf, ended),
            Phase::Body => self.step_body(buf, ended),
            Phase::Switched => Step::of(0, Event::Switched),
            Phase::Closed => Step::of(0, Event::Closed),
        }
    }

    fn refuse(&mut self, refusal: Refusal) -> Step {
        self.phase = Phase::Closed;
        self.keep = false;
        Step::of(0, Event::Refused(refusal))
    }

    fn close(&mut self) -> Step {
        self.phase = Phase::Closed;
        self.keep = false;
        Step::of(0, Event::Closed)
    }

    fn step_head(&mut self, buf: &[u8], ended: bool) -> Step {
        let length = match self.head.parse(buf, &mut self.scan, &self.limits) {
            Ok(Some(length)) => length,
            Ok(None) if !ended => return Step::of(0, Event::More),
            // Not a byte: the connection was closed while it was idle, most likely.
            Ok(None) if buf.is_empty() => return self.close(),
            Ok(None) => return self.refuse(cut(buf, Side::Response, &self.limits)),
            Err(refusal) => return self.refuse(refusal),
        };
        self.scan = 0;
        match self.head.status {
            101 if !self.asks_switch => return self.refuse(Refusal::UnaskedSwitch),
            101 => {
                self.phase = Phase::Switched;
                self.keep = false;
                return Step::of(length, Event::Head);
            }
            100..=199 if self.interim == MAX_INTERIM => return self.refuse(Refusal::TooManyInterim),
            100..=199 => {
                self.interim += 1;
                return Step::of(length, Event::Interim);
            }
            _ => {}
        }
        self.framing = self.head.framing(self.to_head);
        self.body = Decoder::new(self.framing, Side::Response);
        self.keep = self.head.keep_alive && self.framing != Framing::UntilClose;
        self.phase = Phase::Body;
        Step::of(length, Event::Head)
    }

    fn step_body(&mut self, buf: &[u8], ended: bool) -> Step {
        match self.body.next(buf) {
            Ok((consumed, Piece::Data(range))) => Step::of(consumed, Event::Data(range)),
            Ok((consumed, Piece::Trailers(range))) => Step::of(consumed, Event::Trailers(range)),
            Ok((consumed, Piece::More)) if !ended => Step::of(consumed, Event::More),
            Ok((consumed, Piece::More)) => match self.body.end_of_input() {
                Ok(()) => self.end(consumed),
                Err(refusal) => self.refuse(refusal),
            },
            Ok((consumed, Piece::End)) => self.end(consumed),
            Err(refusal) => self.refuse(refusal),
        }
    }

    fn end(&mut self, consumed: usize) -> Step {
        // What still goes out of the request would be read as the next one.
        self.keep &= self.request_sent;
        self.phase = if self.keep { Phase::Idle } else { Phase::Closed };
        self.head.forget();
        Step::of(consumed, Event::End)
    }
}
