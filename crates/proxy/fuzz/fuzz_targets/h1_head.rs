//! Requests of any bytes: two parsers agree on the head, and any cut into reads means the same. The first byte
//! chooses the cut.
#![no_main]

#[path = "../../tests/h1/laws.rs"]
#[allow(dead_code)]
mod laws;
#[path = "../../tests/h1/pipe.rs"]
#[allow(dead_code)]
mod pipe;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&size, bytes)) = bytes.split_first() else { return };
    laws::two_parsers_agree(bytes);
    laws::any_cut_means_the_same(bytes, &[usize::from(size).max(1)]);
});
