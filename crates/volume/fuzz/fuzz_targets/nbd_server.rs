//! Any bytes as an NBD client: greeting, options and requests, against a server of 64 KiB of memory. The first byte
//! chooses whether TLS is required (then no GO may succeed) and whether the handshake is skipped.

#![no_main]

use std::io::{Cursor, Read, Write};
use std::sync::{Arc, Mutex};

use godwit_volume::Result;
use godwit_volume::nbd::export::{Export, Exports, Named, Peer};
use godwit_volume::nbd::negotiate::{Chosen, Contexts, Negotiation, Outcome, TlsState, greet};
use godwit_volume::nbd::transmit;
use godwit_volume::source::Extent;
use libfuzzer_sys::fuzz_target;

struct Script<'a>(Cursor<&'a [u8]>);

impl Read for Script<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buf)
    }
}
impl Write for Script<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        Ok(buf.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

const SIZE: u64 = 65536;

/// Memory; an access outside of it panics, which is a finding.
struct Memory(Mutex<Vec<u8>>);

impl Memory {
    fn fill(&self, offset: u64, len: u64) {
        self.0.lock().unwrap()[offset as usize..(offset + len) as usize].fill(0);
    }
}

impl Export for Memory {
    fn size_bytes(&self) -> u64 {
        SIZE
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn has_manifest(&self) -> bool {
        true
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        buf.copy_from_slice(&self.0.lock().unwrap()[offset as usize..offset as usize + buf.len()]);
        Ok(())
    }
    fn write(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.0.lock().unwrap()[offset as usize..offset as usize + buf.len()].copy_from_slice(buf);
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, len: u64, _: bool) -> Result<()> {
        self.fill(offset, len);
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.fill(offset, len);
        Ok(())
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        assert!(offset + len <= SIZE);
        Ok(vec![Extent { len, zero: offset % 2 == 1 }])
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((mode, rest)) = bytes.split_first() else { return };
    let export: Arc<dyn Export> = Arc::new(Memory(Mutex::new(vec![7; SIZE as usize])));
    let named = Named([("rw".to_owned(), Arc::clone(&export))].into());
    let mut script = Script(Cursor::new(rest));
    let needed = mode & 1 == 1;
    if mode & 2 == 2 {
        let contexts = Contexts { allocation: mode & 4 == 4, hashes: mode & 8 == 8 };
        let export = named.open("rw", &Peer::default()).unwrap();
        let _ = transmit::serve(&mut script, &Chosen { export, structured: mode & 16 == 16, contexts });
        return;
    }
    let Ok(no_zeroes) = greet(&mut script) else { return };
    let tls = if needed { TlsState::Needed } else { TlsState::Off };
    let negotiation = Negotiation { exports: &named, peer: Peer::default(), tls, no_zeroes };
    if let Ok(Outcome::Go(chosen)) = negotiation.run(&mut script) {
        assert!(!needed, "an export was opened before TLS");
        let _ = transmit::serve(&mut script, &chosen);
    }
});
