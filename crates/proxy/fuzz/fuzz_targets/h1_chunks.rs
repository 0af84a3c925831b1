//! Chunked bodies of any bytes: two decoders agree, however the bytes are cut. The first byte chooses the cut.
#![no_main]

#[path = "../../tests/h1/laws.rs"]
#[allow(dead_code)]
mod laws;
#[path = "../../tests/h1/pipe.rs"]
#[allow(dead_code)]
mod pipe;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&size, bytes)) = bytes.split_first() else { return };
    laws::two_decoders_agree(bytes, &[usize::from(size).max(1)]);
});
