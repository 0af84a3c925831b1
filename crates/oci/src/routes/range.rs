//! `Range` of RFC 9110, 14.1.2, as far as blobs need it: one range of bytes. Pure.

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// All of it: no range, or one that may be ignored (another unit, several ranges).
    Whole,
    Part {
        start: u64,
        length: u64,
    },
    /// No byte of the blob is in it.
    Unsatisfiable,
}

/// Reads `bytes=first-last`, `bytes=first-` or `bytes=-suffix` for a blob of `size` bytes.
pub(super) fn asked(range: &str, size: u64) -> Asked {
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-')) else {
        return Asked::Whole;
    };
    let (start, end) = match (number(first), number(last)) {
        // The last bytes; more than there are means all.
        _ if first.is_empty() => match number(last) {
            Some(suffix) => (size.saturating_sub(suffix), size),
            None => return Asked::Whole,
        },
        (Some(first), _) if last.is_empty() => (first, size),
        (Some(first), Some(last)) if first <= last => (first, size.min(last.saturating_add(1))),
        _ => return Asked::Whole,
    };
    match start < end {
        true => Asked::Part { start, length: end - start },
        false => Asked::Unsatisfiable,
    }
}

fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_ten_bytes() {
        let part = |start, length| Asked::Part { start, length };
        for (range, wanted) in [
            ("bytes=0-", part(0, 10)),
            ("bytes=3-", part(3, 7)),
            ("bytes=3-4", part(3, 2)),
            ("bytes=9-9", part(9, 1)),
            ("bytes=3-99", part(3, 7)),
            ("bytes=-4", part(6, 4)),
            ("bytes=-99", part(0, 10)),
            ("bytes=10-", Asked::Unsatisfiable),
            ("bytes=10-12", Asked::Unsatisfiable),
            ("bytes=-0", Asked::Unsatisfiable),
            ("bytes=4-3", Asked::Whole),
            ("bytes=0-1,3-4", Asked::Whole),
            ("bytes=x-", Asked::Whole),
            ("bytes=-", Asked::Whole),
            ("items=0-1", Asked::Whole),
            ("", Asked::Whole),
        ] {
            assert_eq!(asked(range, 10), wanted, "{range}");
        }
        assert_eq!(asked("bytes=0-", 0), Asked::Unsatisfiable);
    }
}
