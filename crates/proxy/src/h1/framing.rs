//! How a message says where its body ends (RFC 9112 section 6.3).

/// How the end of a body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(u64),
    Chunked,
    /// Answers only.
    UntilClose,
}
