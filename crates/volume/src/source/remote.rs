//! An NBD export as a source: each session is a connection of its own. It must not know the protocol's messages.

use super::{BlockHash, Extent, Interrupter, Session, Source, SourceError, SourceResult};
use crate::map::{BLOCK_BYTES, Geometry};
use crate::nbd::client::{NbdClient, Target};
use crate::nbd::stream::Stream;

/// BLOCK_STATUS is asked for at most this much at once: its length has 32 bits.
const MAX_STATUS_BYTES: u64 = 1 << 30;

pub struct NbdSource {
    target: Target,
}

impl NbdSource {
    pub fn new(target: Target) -> Self {
        Self { target }
    }
}

impl Source for NbdSource {
    fn connect(&self) -> SourceResult<Box<dyn Session>> {
        let client = NbdClient::connect(&self.target).map_err(SourceError::because("cannot be reached"))?;
        let geometry = Geometry::new(client.facts().size_bytes)
            .map_err(SourceError::because("has a size that is not supported"))?;
        Ok(Box::new(NbdSession { client, geometry }))
    }
}

struct NbdSession {
    client: NbdClient<Stream>,
    geometry: Geometry,
}

impl Session for NbdSession {
    fn size_bytes(&self) -> u64 {
        self.geometry.size_bytes()
    }
    fn fetch(&mut self, offset: u64, buf: &mut [u8], hashes: &mut Vec<BlockHash>) -> SourceResult<()> {
        self.client.read_with_hashes(offset, buf, hashes).map_err(SourceError::because("cannot be read"))
    }
    fn extents(&mut self, offset: u64, len: u64) -> SourceResult<Vec<Extent>> {
        let len = len.min(MAX_STATUS_BYTES) as u32;
        self.client.extents(offset, len).map_err(SourceError::because("does not tell its holes"))
    }
    fn hashes(&mut self, first: u64, count: u64) -> SourceResult<Option<Vec<BlockHash>>> {
        let (start, end) = self.geometry.span(first, count);
        self.client.hashes(start, end - start).map_err(SourceError::because("does not tell its hashes"))
    }
    fn wire_bytes(&self) -> u64 {
        self.client.received_bytes()
    }
    fn interrupter(&self) -> Interrupter {
        match self.client.socket().try_clone() {
            Ok(socket) => Interrupter::new(move || socket.shut()),
            // Its calls still end at their timeout.
            Err(_) => Interrupter::default(),
        }
    }
}

// A fetch of a whole group must fit into one request.
const _: () = assert!(crate::map::GROUP_BLOCKS * BLOCK_BYTES <= crate::nbd::wire::MAX_PAYLOAD_BYTES as u64);
