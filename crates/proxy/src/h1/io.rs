//! The thin driver: `server` and `client` move bytes between sockets and the state machines of `conn`.
//!
//! A connection is one task and has no task beside it. A buffer exists while there are bytes in it: what waits for a
//! peer holds none. Bodies go piece by piece, each asked for by whoever reads it, so that memory stays flat however
//! slow the other end is.

mod inbox;
mod outbox;
mod upload;

pub mod client;
pub mod server;
pub mod switched;

pub use client::{Answer, Connection, Failed};
pub use server::{Ended, Options, serve};
pub use switched::{OnSwitch, Switched};
pub use upload::{BodyError, RequestBody};
