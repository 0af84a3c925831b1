//! Keys: drawn from the kernel, stored as SHA-256, compared in constant time.

use sha2::{Digest, Sha256};

/// Bits from the kernel. Fails only where `getrandom(2)` does, which on Linux means no entropy at boot: there is
/// nothing sensible to do without it.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0u8; N];
    getrandom::fill(&mut bytes).unwrap_or_else(|error| panic!("the kernel gives no randomness: {error}"));
    bytes
}

pub fn random_u64() -> u64 {
    u64::from_le_bytes(random_bytes())
}

pub fn random_u128() -> u128 {
    u128::from_le_bytes(random_bytes())
}

/// A fresh bearer of 256 bits behind a prefix that tells its kind (`gwh` host, `gwe` edge, `gwc` control, `gwo`
/// operator, `gwj` join).
pub fn new_key(prefix: &str) -> String {
    format!("{prefix}_{}", hex::encode(random_bytes::<32>()))
}

pub fn sha256_hex(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

/// Compares without telling by its time how much is equal.
pub fn equal(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    a.len() == b.len() && a.iter().zip(b).fold(0u8, |different, (x, y)| different | (x ^ y)) == 0
}
