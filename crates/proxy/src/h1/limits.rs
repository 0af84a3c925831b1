//! How large a head may be: the limits of a configuration, and those that none goes beyond.

/// No configuration goes beyond these: positions are 16 bits wide.
pub const MAX_HEAD_BYTES: usize = 0xffff;
pub const MAX_FIELDS: usize = 128;
/// The longest registered method has 17 letters.
pub const MAX_METHOD_BYTES: usize = 32;

/// Limits of one head.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// At most `MAX_HEAD_BYTES`.
    pub head_bytes: usize,
    /// At most `MAX_FIELDS`.
    pub fields: usize,
    pub target_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { head_bytes: MAX_HEAD_BYTES, fields: MAX_FIELDS, target_bytes: 16 << 10 }
    }
}
