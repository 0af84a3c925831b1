//! What a key, a value, a range and a transaction may be, on every backend: the limits are those of the strictest
//! one (etcd: 128 operations and 1.5 MiB a transaction). Pure.

use crate::error::Error;
use crate::types::{KeyRange, Op, Range, Txn};

pub const MAX_KEY_BYTES: usize = 512;
pub const MAX_VALUE_BYTES: usize = 1024 * 1024;
/// Each of compares, then and otherwise, as etcd counts them.
pub const MAX_TXN_OPS: usize = 128;
/// Keys and values of all three lists together, plus [`TXN_OP_OVERHEAD_BYTES`] for each entry.
pub const MAX_TXN_BYTES: usize = 3 * 1024 * 1024 / 2;
/// Stands for the framing that a backend adds to an operation, so that what passes here also fits there.
pub const TXN_OP_OVERHEAD_BYTES: usize = 64;
pub const MAX_RANGE_ROWS: u32 = 1_000;
/// A page of a range ends after the row that crosses this.
pub const MAX_RANGE_BYTES: usize = 4 * 1024 * 1024;

/// A key: printable ASCII without blanks, segments separated by `/`, none of them empty.
pub fn check_key(key: &str) -> Result<(), Error> {
    if key.is_empty() {
        return Err(invalid_key(key, "it is empty"));
    }
    check_characters(key)?;
    if key.split('/').any(str::is_empty) {
        return Err(invalid_key(key, "it has an empty segment"));
    }
    Ok(())
}

/// A prefix: empty, or a key followed by `/`.
pub fn check_prefix(prefix: &str) -> Result<(), Error> {
    if prefix.is_empty() {
        return Ok(());
    }
    match prefix.strip_suffix('/') {
        Some(key) => check_key(key),
        None => Err(invalid_key(prefix, "a prefix is empty or ends in '/', so that it matches whole segments")),
    }
}

pub fn check_range(range: &Range) -> Result<(), Error> {
    match (&range.key, &range.after) {
        (KeyRange::Exact(key), None) => check_key(key),
        (KeyRange::Exact(_), Some(_)) => Err(Error::invalid("`after` needs a prefix, not a key")),
        (KeyRange::Prefix(prefix), None) => check_prefix(prefix),
        (KeyRange::Prefix(prefix), Some(after)) => {
            check_prefix(prefix)?;
            check_key(after)?;
            if !after.starts_with(prefix.as_str()) {
                return Err(Error::invalid(format!("`after` {after:?} is not under {prefix:?}")));
            }
            Ok(())
        }
    }
}

/// The transaction's size in bytes, if it is within the limits.
pub fn check_txn(txn: &Txn) -> Result<usize, Error> {
    let mut bytes = 0;
    check_count("the number of compares", txn.compares.len())?;
    for compare in &txn.compares {
        check_key(compare.key())?;
        bytes += compare.key().len() + TXN_OP_OVERHEAD_BYTES;
        if let crate::types::Compare::Value { key, equals } = compare {
            check_value(key, equals.len())?;
            bytes += equals.len();
        }
    }
    for branch in [&txn.then, &txn.otherwise] {
        bytes += check_branch(branch)?;
    }
    if bytes > MAX_TXN_BYTES {
        return Err(too_large("the transaction in bytes", bytes, MAX_TXN_BYTES));
    }
    Ok(bytes)
}

fn check_branch(ops: &[Op]) -> Result<usize, Error> {
    check_count("the number of operations", ops.len())?;
    let mut bytes = 0;
    for op in ops {
        check_key(op.key())?;
        bytes += op.key().len() + TXN_OP_OVERHEAD_BYTES;
        if let Op::Put { key, value } = op {
            check_value(key, value.len())?;
            bytes += value.len();
        }
    }
    let mut keys: Vec<&str> = ops.iter().map(Op::key).collect();
    keys.sort_unstable();
    match keys.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Error::RepeatedKey { key: pair[0].to_owned() }),
        None => Ok(bytes),
    }
}

fn check_characters(key: &str) -> Result<(), Error> {
    if key.len() > MAX_KEY_BYTES {
        return Err(too_large("the key in bytes", key.len(), MAX_KEY_BYTES));
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(invalid_key(key, "only printable ASCII without blanks"));
    }
    Ok(())
}

fn check_value(key: &str, size: usize) -> Result<(), Error> {
    if size > MAX_VALUE_BYTES {
        return Err(too_large(&format!("the value of {key:?} in bytes"), size, MAX_VALUE_BYTES));
    }
    Ok(())
}

fn check_count(what: &str, count: usize) -> Result<(), Error> {
    if count > MAX_TXN_OPS {
        return Err(too_large(what, count, MAX_TXN_OPS));
    }
    Ok(())
}

fn invalid_key(key: &str, reason: &str) -> Error {
    // An oversized key must not travel back in its own error.
    let key = key.chars().take(MAX_KEY_BYTES).collect();
    Error::InvalidKey { key, reason: reason.to_owned() }
}

fn too_large(what: &str, size: usize, limit: usize) -> Error {
    Error::TooLarge { what: what.to_owned(), size: size as u64, limit: limit as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Compare;

    #[test]
    fn keys_are_printable_segments() {
        for key in ["a", "hosts/h1/machines/d8e", "a.b_c-d:e@f", "x/~"] {
            assert!(check_key(key).is_ok(), "{key}");
        }
        for key in ["", "/", "/a", "a/", "a//b", "a b", "a\n", "ä", "\u{7f}"] {
            assert!(matches!(check_key(key), Err(Error::InvalidKey { .. })), "{key:?}");
        }
        assert!(check_key(&"k".repeat(MAX_KEY_BYTES)).is_ok());
        assert!(matches!(check_key(&"k".repeat(MAX_KEY_BYTES + 1)), Err(Error::TooLarge { .. })));
    }

    #[test]
    fn a_prefix_never_ends_inside_a_segment() {
        assert!(check_prefix("").is_ok());
        assert!(check_prefix("hosts/w1/").is_ok());
        for prefix in ["hosts/w1", "/", "hosts//"] {
            assert!(check_prefix(prefix).is_err(), "{prefix:?}");
        }
    }

    #[test]
    fn a_branch_names_a_key_once_but_both_branches_may() {
        let put = |key: &str| Op::put(key, "v");
        let twice = Txn::of([put("a"), Op::delete("a")]);
        assert!(matches!(check_txn(&twice), Err(Error::RepeatedKey { .. })));
        let both = Txn::of([put("a")]).when(Compare::absent("a")).or_else(Op::get("a"));
        assert!(check_txn(&both).is_ok());
    }
}
