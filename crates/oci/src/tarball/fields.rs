//! The fields of tar headers: numbers, times, PAX records, maps of sparse files. Pure.

use crate::error::LayerFault;

/// Data segments of one sparse file.
pub(super) const MAX_SPARSE_SEGMENTS: usize = 64 << 10;
pub(super) const BAD_SPARSE: LayerFault = LayerFault::Tar("a bad map of a sparse file");

type Result<T> = std::result::Result<T, LayerFault>;

pub(super) fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

pub(super) fn number(field: &[u8]) -> Result<u64> {
    u64::try_from(signed_number(field)?).map_err(|_| LayerFault::Tar("a negative number"))
}

/// Octal text, or base 256 when the highest bit is set. An empty field is 0, as in Go.
pub(super) fn signed_number(field: &[u8]) -> Result<i64> {
    let bad = LayerFault::Tar("a bad number in a header");
    let Some(&first) = field.first() else { return Err(bad) };
    if first & 0x80 != 0 {
        // Two's complement with the marker bit taken out; the next bit is the sign.
        let negative = first & 0x40 != 0;
        let start = if negative { -1i128 } else { 0 };
        let head = if negative { first | 0x80 } else { first & 0x7f };
        let mut value = (start << 8) | i128::from(head);
        for &byte in &field[1..] {
            value = (value << 8) | i128::from(byte);
        }
        return i64::try_from(value).map_err(|_| bad);
    }
    let text: Vec<u8> = until_nul(field).iter().copied().filter(|&b| b != b' ').collect();
    text.iter()
        .try_fold(0i64, |sum, &digit| match digit {
            b'0'..=b'7' => sum.checked_mul(8).and_then(|s| s.checked_add(i64::from(digit - b'0'))),
            _ => None,
        })
        .ok_or(bad)
}

pub(super) fn decimal(text: &[u8]) -> Result<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let parsed = std::str::from_utf8(text).ok().filter(|_| digits).and_then(|t| t.parse().ok());
    parsed.ok_or(LayerFault::Tar("a bad number in a PAX header"))
}

/// `seconds[.fraction]`, possibly negative.
pub(super) fn timestamp(text: &[u8]) -> Result<(i64, u32)> {
    let bad = || LayerFault::Tar("a bad time in a PAX header");
    let text = std::str::from_utf8(text).map_err(|_| bad())?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| bad())?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    // Nine digits, cut or filled up.
    let nanos =
        fraction.bytes().chain(std::iter::repeat(b'0')).take(9).fold(0, |sum, b| sum * 10 + u32::from(b - b'0'));
    match whole.starts_with('-') && nanos > 0 {
        // -1.25 s is 0.75 s after -2 s.
        true => Ok((seconds.checked_sub(1).ok_or_else(bad)?, 1_000_000_000 - nanos)),
        false => Ok((seconds, nanos)),
    }
}

/// Records `<length> <key>=<value>\n`, where the length counts itself and the newline.
pub(super) fn pax_records(mut body: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
    let bad = || LayerFault::Tar("a bad PAX record");
    let mut records = Vec::new();
    while !body.is_empty() && body[0] != 0 {
        let space = body.iter().take(20).position(|&b| b == b' ').ok_or_else(bad)?;
        let length = usize::try_from(decimal(&body[..space])?).map_err(|_| bad())?;
        let record = body.get(space + 1..length).and_then(|r| r.strip_suffix(b"\n")).ok_or_else(bad)?;
        let equals = record.iter().position(|&b| b == b'=').ok_or_else(bad)?;
        let key = std::str::from_utf8(&record[..equals]).map_err(|_| bad())?;
        records.push((key.to_owned(), record[equals + 1..].to_vec()));
        body = &body[length..];
    }
    Ok(records)
}

pub(super) fn pairs(mut numbers: impl Iterator<Item = Result<u64>>) -> Result<Vec<(u64, u64)>> {
    let mut map = Vec::new();
    while let Some(offset) = numbers.next() {
        let length = numbers.next().ok_or(BAD_SPARSE)??;
        map.push((offset?, length));
        if map.len() > MAX_SPARSE_SEGMENTS {
            return Err(BAD_SPARSE);
        }
    }
    Ok(map)
}

pub(super) fn gnu_segments(fields: &[u8], map: &mut Vec<(u64, u64)>) -> Result<()> {
    for field in fields.chunks_exact(24).take_while(|f| f[0] != 0) {
        map.push((number(&field[..12])?, number(&field[12..])?));
        if map.len() > MAX_SPARSE_SEGMENTS {
            return Err(BAD_SPARSE);
        }
    }
    Ok(())
}

/// Segments in order, inside of the file, and together exactly the data that follow.
pub(super) fn check_map(map: &[(u64, u64)], size: u64, data_bytes: u64) -> Result<()> {
    let (mut end, mut sum) = (0u64, 0u64);
    for &(offset, length) in map {
        let next = offset.checked_add(length).filter(|&next| offset >= end && next <= size);
        end = next.ok_or(BAD_SPARSE)?;
        sum += length; // No overflow: the segments do not overlap and all lie below `size`.
    }
    if sum == data_bytes { Ok(()) } else { Err(BAD_SPARSE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_tars_write_them() {
        for (field, value) in [
            (&b"0000644\0"[..], 0o644),
            (b"   644 \0", 0o644),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"\x80\0\0\0\0\0\x01\0", 256),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
        ] {
            assert_eq!(signed_number(field).unwrap(), value, "{field:?}");
        }
        assert!(signed_number(b"12x").is_err() && number(b"\xff\xff").is_err());
    }

    #[test]
    fn times_with_fractions() {
        assert_eq!(timestamp(b"1.5").unwrap(), (1, 500_000_000));
        assert_eq!(timestamp(b"-1.25").unwrap(), (-2, 750_000_000));
        assert_eq!(timestamp(b"7").unwrap(), (7, 0));
        assert_eq!(timestamp(b"7.1234567899").unwrap(), (7, 123_456_789));
        assert!(timestamp(b"7.x").is_err() && timestamp(b"").is_err());
    }

    #[test]
    fn pax_records_may_hold_anything_in_their_values() {
        let records = pax_records(b"12 a=b=c\nd\n\n").unwrap();
        assert_eq!(records, [("a".to_owned(), b"b=c\nd\n".to_vec())]);
        for bad in [&b"5 a=b"[..], b"99 a=b\n", b"x a=b\n", b"6 abc\n", b"2 \n", b"0 a=b\n"] {
            assert!(pax_records(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_sparse_map_stays_inside_of_its_file() {
        assert!(check_map(&[(0, 1), (5, 5)], 10, 6).is_ok());
        for (map, size, data) in
            [(&[(0, 1), (5, 6)][..], 10, 7), (&[(5, 1), (0, 1)], 10, 2), (&[(0, 1)], 10, 2), (&[(u64::MAX, 2)], 10, 2)]
        {
            assert!(check_map(map, size, data).is_err(), "{map:?}");
        }
    }
}
