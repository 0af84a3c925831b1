//! Sizes and rates as people write them: `10`, `10GiB`, `100MiB/s`. Reads texts and knows nothing else.

use godwit_api::volume::{GB_BYTES, VOLUME_MAX_GB};

/// Name and bytes of each unit, smallest first. Disks and networks are told in decimal, so both kinds are read.
const UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];
/// Below this a copy would take days, and a unit was most likely forgotten.
const RATE_MIN_BYTES_PER_S: u64 = 64 << 10;

/// Whole gigabytes of `10`, `10GB`, `10GiB`, `1TiB`. As in the API a gigabyte is 2^30 bytes, however it is written.
pub fn volume_gb(text: &str) -> Result<u64, String> {
    let say = || format!("write 10, 10GiB or 1TiB: whole gigabytes from 1 to {VOLUME_MAX_GB}");
    let (digits, unit) = split(text);
    let number: u64 = digits.parse().map_err(|_| say())?;
    let gb = match unit.as_str() {
        "" | "g" | "gb" | "gib" => Some(number),
        "t" | "tb" | "tib" => number.checked_mul(1024),
        // 2048MiB is as good as 2GiB; half a gigabyte is not to be had.
        "m" | "mb" | "mib" => number.checked_mul(1 << 20).filter(|b| b % GB_BYTES == 0).map(|b| b / GB_BYTES),
        _ => None,
    };
    gb.filter(|gb| (1..=VOLUME_MAX_GB).contains(gb)).ok_or_else(say)
}

/// Bytes a second of `100MiB/s`, `1.5GB/s`, `200M`. One letter stands for the binary unit, as in `dd` and `nbdcopy`.
pub fn rate(text: &str) -> Result<u64, String> {
    let say = || "say 100MiB/s, 500MB/s or 1.5GiB/s".to_owned();
    let (digits, unit) = split(text.strip_suffix("/s").unwrap_or(text));
    let number: f64 = digits.parse().map_err(|_| say())?;
    let unit = if matches!(unit.as_str(), "k" | "m" | "g" | "t") { format!("{unit}ib") } else { unit };
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(say)?;
    let bytes_per_s = number * *factor as f64;
    if !bytes_per_s.is_finite() || bytes_per_s > u64::MAX as f64 {
        return Err(say());
    }
    if bytes_per_s < RATE_MIN_BYTES_PER_S as f64 {
        return Err(format!("{text} is too slow to end: at least {}KiB/s", RATE_MIN_BYTES_PER_S >> 10));
    }
    Ok(bytes_per_s as u64)
}

/// The number and, in lower case, what stands behind it.
fn split(text: &str) -> (&str, String) {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    (&text[..end], text[end..].trim_start().to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_volumes_are_whole_gigabytes() {
        for (text, gb) in [("1", 1), ("10GB", 10), ("10GiB", 10), ("10g", 10), ("2 TiB", 2048), ("2048MiB", 2)] {
            assert_eq!(volume_gb(text), Ok(gb), "{text}");
        }
        for bad in ["", "0", "GB", "-1", "1.5", "512MiB", "10KB", "17TiB", "99999999999999999999", "10x"] {
            assert!(volume_gb(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn rates_are_read_with_binary_and_decimal_units() {
        let cases = [("100MiB/s", 100 << 20), ("100MB/s", 100_000_000), ("1.5GiB/s", 3 << 29), ("1048576", 1 << 20)];
        for (text, bytes_per_s) in cases.into_iter().chain([("200M", 200 << 20), ("64k", 64 << 10)]) {
            assert_eq!(rate(text), Ok(bytes_per_s), "{text}");
        }
        for bad in ["", "fast", "0", "100", "1KiB/s", "-5MB/s", "5MB/min", "1e5MB", "MB/s", "1.2.3MB/s"] {
            assert!(rate(bad).is_err(), "{bad:?}");
        }
    }
}
