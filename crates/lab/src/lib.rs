//! What proofs are made of: a dev fleet that a test owns, plain requests to it, and traffic that notices everything.
//! It uses the public API and the edge as any client would, and reaches into processes only to harm them.

pub mod fleet;
pub mod plain;
pub mod pool;
pub mod traffic;
