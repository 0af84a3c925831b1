//! The proxy: the *edge*, which takes traffic from outside and finds a Machine for it, and the *door*, the host's
//! own proxy, which alone counts what its Machines have in flight and decides who is admitted.
//!
//! Edge and door talk over one multiplexed HTTP/2 connection (`link`). What is decided stands in pure files
//! (`choose`, `eject`, `excess`, `headers`, `trace`, `access`, `door::gate`, `edge::view`); what is done stands beside them.
//!
//! The proxy must not know how a Machine is made or placed: it reads route rows and its agent's stream, and asks for
//! a start or a stop. It writes nothing but caches.

pub mod access;
pub mod check;
pub mod choose;
mod date;
pub mod door;
pub mod edge;
pub mod eject;
mod error;
pub mod excess;
pub mod h1;
pub mod handover;
pub mod headers;
pub mod interim;
pub mod link;
pub mod proxy_protocol;
pub mod replay;
pub mod trace;

pub use error::Error;
