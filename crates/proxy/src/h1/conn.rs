//! A connection as a state machine: bytes in, events out, no socket and no clock. `server` faces clients, `client`
//! faces Machines.
//!
//! The caller owns the buffer and shows it whole; a step says how many of its bytes are done with, and what they
//! were. So nothing is copied, and an idle connection holds no buffer.

use std::ops::Range;

pub mod client;
pub mod server;

pub use client::Client;
pub use server::{Finish, Plan, Server};

use super::refusal::Refusal;

/// What the bytes turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Nothing yet: more bytes are needed. If this step consumed some, the rest may already hold an event.
    More,
    /// A head; it lies in the consumed bytes.
    Head,
    /// A Machine's word before its answer (1xx).
    Interim,
    /// Data of the body.
    Data(Range<usize>),
    /// The trailer section; see `body::trailers`.
    Trailers(Range<usize>),
    /// The message is over.
    End,
    /// Bytes are not looked at before the caller has done its part: answered, or sent a request.
    Wait,
    /// What follows is another protocol's.
    Switched,
    /// The peer ended where it may.
    Closed,
    /// The connection is not used again. A client is told `Refusal::status`, if its answer has not begun.
    Refused(Refusal),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Bytes of the buffer that are done with after this event was handled. Ranges count from the buffer's start.
    pub consumed: usize,
    pub event: Event,
}

impl Step {
    const fn of(consumed: usize, event: Event) -> Self {
        Self { consumed, event }
    }
}
