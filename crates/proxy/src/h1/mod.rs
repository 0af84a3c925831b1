//! HTTP/1 framing of our own, both sides: what a client sent is judged before anything else of us sees it.
//!
//! hyper hides what must be refused: it drops Content-Length beside Transfer-Encoding and merges duplicates before a
//! service sees a request. Here one strict reading decides where a message ends, and what is sent on is written
//! anew from that reading, so two parties can never disagree about it.
//!
//! ```text
//!  head       one head from bytes: strict grammar, then what it means for framing
//!  body       where a body ends: length, chunks, or the connection's end; ranges, never copies
//!  limits     how large a head may be
//!  framing    how the end of a body is told
//!  write      heads out, from borrowed parts
//!  conn       a connection as a state machine without IO: bytes in, events out (`server`, `client`)
//!  downgrade  an HTTP/2 head, held to the same rules before it is written as one of HTTP/1.1
//!  map        a head as the `http` crate's types, its values shared with the read buffer
//!  io         the thin driver on tokio: sockets, timers, back-pressure
//! ```
//!
//! All but `io` are pure: no clock, no socket. It must not know apps, Machines or routes.
//!
//! RFC 9110 (semantics), RFC 9112 (HTTP/1.1).

pub mod body;
pub mod conn;
pub mod downgrade;
pub mod framing;
mod grammar;
pub mod head;
pub mod host;
pub mod io;
pub mod limits;
pub mod map;
pub mod names;
pub mod refusal;
pub mod response;
pub mod write;

pub use grammar::{Side, read as read_grammar};
pub use head::{RequestHead, Version};
pub use limits::Limits;
pub use refusal::Refusal;
pub use response::ResponseHead;
