//! The connection between an edge and a door: one HTTP/2 connection, each request or tunnel a stream of it.
//!
//! It knows frames, windows and liveness; it must not know routes, Machines or limits. Both ends use `h2` directly:
//! an interim answer (100) tells the edge that the door has admitted a request, before a byte of its body is given up.

pub mod batch;
pub mod body;
pub mod client;
pub mod header;
pub mod peek;
pub mod probe;
pub mod send;
pub mod tunnel;

use std::time::Duration;

/// The edge names itself on a fresh connection by `POST` here with its bearer; answered 204.
pub const HELLO_PATH: &str = "/.godwit/hello";

/// Bytes that a sender may be ahead of one stream's reader: enough for 10 Gbit/s at 1 ms.
pub const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// For all streams together: a thousand stalled ones do not slow the others.
pub const CONNECTION_WINDOW_BYTES: u32 = 1 << 30;
/// Streams of one connection at once.
pub const MAX_STREAMS: u32 = 65_536;
pub const MAX_FRAME_BYTES: u32 = 32 << 10;
/// Written but unsent bytes of a stream.
pub const SEND_BUFFER_BYTES: usize = 256 << 10;
/// Heads beyond this are refused by `h2` itself.
pub const MAX_HEAD_BYTES: u32 = 256 << 10;
/// Streams that their client gave up and that still lie about; edges are trusted, so this is no flood bound.
pub const MAX_RESETS: usize = 65_536;

/// How often a connection is probed, and how long a probe may stay unanswered.
pub const PING_INTERVAL: Duration = Duration::from_millis(750);
pub const PING_TIMEOUT: Duration = Duration::from_secs(2);
