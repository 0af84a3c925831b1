//! What proofs are made of: a dev fleet that a test owns, and plain requests to it. It uses the public API and the
//! edge as any client would, and reaches into processes only to harm them.

pub mod fleet;
pub mod plain;
