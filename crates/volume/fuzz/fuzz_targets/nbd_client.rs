//! Any bytes as an NBD server. A read that the client calls good was filled to its last byte: the buffer starts with
//! a mark that the server's bytes are then checked to have replaced.

#![no_main]

use std::io::{Cursor, Read, Write};

use godwit_volume::nbd::client::NbdClient;
use godwit_volume::nbd::wire;
use libfuzzer_sys::fuzz_target;

struct Script(Cursor<Vec<u8>>);

impl Read for Script {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buf)
    }
}
impl Write for Script {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        Ok(buf.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Brings a client to the transmission phase with all contexts.
fn agreed() -> Vec<u8> {
    let reply = |option, kind, data: &[u8]| wire::encode_option_reply(option, kind, data);
    let context = |id: u32, name: &str| [&id.to_be_bytes()[..], name.as_bytes()].concat();
    let facts = [&0u16.to_be_bytes()[..], &65536u64.to_be_bytes(), &1u16.to_be_bytes()].concat();
    let set = wire::option::SET_META_CONTEXT;
    [
        reply(wire::option::STRUCTURED_REPLY, wire::reply::ACK, &[]),
        reply(set, wire::reply::META_CONTEXT, &context(0, wire::CONTEXT_ALLOCATION)),
        reply(set, wire::reply::META_CONTEXT, &context(9, wire::CONTEXT_BLAKE3)),
        reply(set, wire::reply::ACK, &[]),
        reply(wire::option::GO, wire::reply::INFO, &facts),
        reply(wire::option::GO, wire::reply::ACK, &[]),
    ]
    .concat()
}

fuzz_target!(|bytes: &[u8]| {
    let Some((mode, rest)) = bytes.split_first() else { return };
    let script = if mode & 1 == 1 { [&agreed()[..], rest].concat() } else { rest.to_vec() };
    let Ok(mut client) = NbdClient::negotiate(Script(Cursor::new(script)), "rw") else { return };
    let mut hashes = Vec::new();
    match mode >> 1 & 3 {
        0 => {
            let mut first = vec![0x11; 96];
            let mut second = first.clone();
            let _ = client.read(0, &mut first);
            let _ = client.read_with_hashes(0, &mut second, &mut hashes);
        }
        1 => {
            if let Ok(extents) = client.extents(4096, 8192) {
                let total: u64 = extents.iter().map(|extent| extent.len).sum();
                assert!(total > 0 && total <= 8192 && extents.iter().all(|extent| extent.len > 0));
            }
        }
        2 => {
            if let Ok(Some(hashes)) = client.hashes(0, 65536 * 3) {
                assert_eq!(hashes.len(), 3);
            }
        }
        _ => {
            let _ = client.write(0, b"bytes", true);
            let _ = client.flush();
            let _ = client.trim(0, 512);
        }
    }
});
