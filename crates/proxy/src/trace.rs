//! W3C trace context: a request's place in a trace, taken from its client if it is well-formed, drawn otherwise. Pure.
//!
//! "Trace Context" (W3C, level 1), sections 3.2 (`traceparent`), 3.3 (`tracestate`) and 4.3 (what may be changed). An edge
//! reports no span of its own, so it hands a parent on as it came.

use http::{HeaderMap, HeaderName, HeaderValue};

pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// `00-TRACE-PARENT-FLAGS`, in characters.
const LENGTH: usize = 55;
const TRACE_ID: std::ops::Range<usize> = 3..35;
const PARENT_ID: std::ops::Range<usize> = 36..52;
const FLAGS: std::ops::Range<usize> = 53..55;
/// The one flag that version 00 knows.
const SAMPLED: u8 = 1;

/// One request's place, in the form of version 00: ASCII.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace([u8; LENGTH]);

impl Trace {
    /// The one that a client sent. Two fields, capitals, zeros, or a version that cannot be are none.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut all = headers.get_all(TRACEPARENT).iter();
        let (Some(one), None) = (all.next(), all.next()) else { return None };
        Self::parse(one.as_bytes())
    }

    pub fn parse(field: &[u8]) -> Option<Self> {
        // Bytes, not text: a client's may end anywhere within a character.
        let bytes = field.get(..LENGTH)?;
        let dashes = [2, 35, 52].iter().all(|&at| bytes[at] == b'-');
        let is_hex = |range: std::ops::Range<usize>| bytes[range].iter().all(|b| b"0123456789abcdef".contains(b));
        let is_zero = |range: std::ops::Range<usize>| bytes[range].iter().all(|&b| b == b'0');
        let version = &bytes[..2];
        // A later version may say more behind a dash, and this one nothing (section 3.2.4).
        let rest = match version {
            b"00" => field.len() == LENGTH,
            _ => field.len() == LENGTH || field[LENGTH] == b'-',
        };
        let right = dashes
            && rest
            && version != b"ff"
            && [0..2, TRACE_ID, PARENT_ID, FLAGS].into_iter().all(is_hex)
            && !is_zero(TRACE_ID)
            && !is_zero(PARENT_ID);
        if !right {
            return None;
        }
        // Of a digit, the last bit is that of its value, and of a to f the opposite.
        let last = bytes[FLAGS.end - 1];
        let flags = if last.is_ascii_digit() { last & SAMPLED } else { !last & SAMPLED };
        let mut kept = [b'0'; LENGTH];
        kept[2..FLAGS.start].copy_from_slice(&bytes[2..FLAGS.start]);
        kept[FLAGS.end - 1] += flags;
        Some(Self(kept))
    }

    /// A new trace, of numbers of chance. Whether it is recorded is left to whoever comes next.
    pub fn drawn(trace: u128, parent: u64) -> Self {
        let mut drawn = *b"00-00000000000000000000000000000000-0000000000000000-00";
        // None is all zeros.
        digits(&mut drawn[TRACE_ID], &(trace | 1).to_be_bytes());
        digits(&mut drawn[PARENT_ID], &(parent | 1).to_be_bytes());
        Self(drawn)
    }

    pub fn trace_id(&self) -> &str {
        &self.as_str()[TRACE_ID]
    }

    pub fn parent_id(&self) -> &str {
        &self.as_str()[PARENT_ID]
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("00-00000000000000000000000000000000-0000000000000000-00")
    }
}

/// In hexadecimal.
fn digits(out: &mut [u8], bytes: &[u8]) {
    for (two, byte) in out.chunks_exact_mut(2).zip(bytes) {
        two[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
        two[1] = b"0123456789abcdef"[usize::from(byte & 15)];
    }
}

/// Puts a request in its trace. The state of a trace that cannot be read goes with it.
pub fn stamp(headers: &mut HeaderMap, draw: impl FnOnce() -> (u128, u64)) -> Trace {
    let trace = Trace::of(headers).unwrap_or_else(|| {
        headers.remove(TRACESTATE);
        let (trace, parent) = draw();
        Trace::drawn(trace, parent)
    });
    // Hexadecimal digits and dashes.
    if let Ok(value) = HeaderValue::from_str(trace.as_str()) {
        headers.insert(TRACEPARENT, crate::headers::never_again(value));
    }
    trace
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_well_formed_is_kept_and_all_else_drawn_anew() {
        assert_eq!(Trace::parse(GOOD.as_bytes()).unwrap().as_str(), GOOD);
        let later = GOOD.replacen("00", "cc", 1) + "-what-comes-later";
        assert_eq!(Trace::parse(later.as_bytes()).unwrap().as_str(), GOOD);
        let flags = GOOD.replace("-01", "-fe");
        assert_eq!(Trace::parse(flags.as_bytes()).unwrap().as_str(), GOOD.replace("-01", "-00"));
        for wrong in [
            "",
            "00",
            &GOOD.to_uppercase(),
            &GOOD[1..],
            &format!("{GOOD}-"),
            &format!("{GOOD} "),
            &GOOD.replacen("00", "ff", 1),
            &GOOD.replacen("00", "0g", 1),
            &GOOD.replacen('-', "_", 1),
            &GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &(GOOD.replacen("00", "01", 1) + "x"),
            "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01",
            // Found by fuzzing: a character over the end of a part, and over the end of the whole.
            &format!("0é{}", "-".repeat(60)),
            &format!("{}é", &GOOD[..54]),
        ] {
            assert_eq!(Trace::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn the_state_goes_with_a_trace_that_is_not_believed() {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_static(GOOD));
        headers.insert(TRACESTATE, HeaderValue::from_static("a=1"));
        assert_eq!(stamp(&mut headers, || unreachable!()).as_str(), GOOD);
        assert_eq!(headers[TRACESTATE], "a=1");
        headers.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        let drawn = stamp(&mut headers, || (0, 0));
        assert_eq!(drawn.as_str(), format!("00-{:032x}-{:016x}-00", 1, 1));
        assert!(!headers.contains_key(TRACESTATE));
        assert_eq!(headers.get_all(TRACEPARENT).iter().count(), 1);
    }

    proptest! {
        #[test]
        fn any_text_may_come(text in "[0-9a-f\\-]{0,60}\\PC{0,60}") {
            if let Some(kept) = Trace::parse(text.as_bytes()) {
                prop_assert_eq!(Trace::parse(kept.as_str().as_bytes()), Some(kept));
            }
        }

        #[test]
        fn what_is_handed_on_is_always_well_formed(field in proptest::collection::vec(any::<u8>(), 0..80), trace: u128, parent: u64) {
            if let Some(kept) = Trace::parse(&field) {
                prop_assert_eq!(Trace::parse(kept.as_str().as_bytes()), Some(kept));
            }
            let drawn = Trace::drawn(trace, parent);
            prop_assert_eq!(Trace::parse(drawn.as_str().as_bytes()), Some(drawn));
        }
    }
}
