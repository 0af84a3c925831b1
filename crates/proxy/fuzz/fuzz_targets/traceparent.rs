//! `traceparent` of any bytes: what is taken is of the one form, a naive reading finds it well-formed too, and it is taken
//! again as it is.
#![no_main]

use godwit_proxy::trace::Trace;

/// Section 3.2 of W3C's "Trace Context", read part by part.
fn naive(text: &str) -> bool {
    let parts: Vec<&str> = text.splitn(5, '-').collect();
    let [version, trace, parent, flags, rest @ ..] = &parts[..] else { return false };
    let hex = |text: &str, length| text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let zero = |text: &str| text.bytes().all(|b| b == b'0');
    hex(version, 2)
        && *version != "ff"
        && hex(trace, 32)
        && !zero(trace)
        && hex(parent, 16)
        && !zero(parent)
        && hex(flags, 2)
        && (rest.is_empty() || *version != "00")
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let ours = Trace::parse(bytes);
    assert_eq!(ours.is_some(), naive(&String::from_utf8_lossy(bytes)));
    if let Some(trace) = ours {
        assert_eq!(Trace::parse(trace.as_str().as_bytes()), Some(trace));
        assert!(bytes[3..].starts_with(trace.trace_id().as_bytes()));
    }
});
