//! A local file as a source: restores from a copy on the same host, and tests. Must not write to it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::{BlockHash, Extent, Session, Source, SourceError, SourceResult, hash};
use crate::backing::extents_of;
use crate::map::Geometry;

#[derive(Debug, Clone)]
pub struct FileSource {
    path: PathBuf,
}

impl FileSource {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

impl Source for FileSource {
    fn connect(&self) -> SourceResult<Box<dyn Session>> {
        let file = File::open(&self.path).map_err(SourceError::because("cannot be opened"))?;
        let size = file.metadata().map_err(SourceError::because("cannot be measured"))?.len();
        let geometry = Geometry::new(size).map_err(SourceError::because("has a size that is not supported"))?;
        Ok(Box::new(FileSession { file, geometry }))
    }
}

struct FileSession {
    file: File,
    geometry: Geometry,
}

impl Session for FileSession {
    fn size_bytes(&self) -> u64 {
        self.geometry.size_bytes()
    }
    fn fetch(&mut self, offset: u64, buf: &mut [u8], hashes: &mut Vec<BlockHash>) -> SourceResult<()> {
        self.file.read_exact_at(buf, offset).map_err(SourceError::because("cannot be read"))?;
        let blocks = self.geometry.touched(offset, buf.len() as u64);
        hashes.clear();
        hashes.extend(self.hashes(blocks.start, blocks.end - blocks.start)?.unwrap_or_default());
        Ok(())
    }
    fn extents(&mut self, offset: u64, len: u64) -> SourceResult<Vec<Extent>> {
        extents_of(&self.file, offset, len).map_err(SourceError::because("cannot tell its holes"))
    }
    fn hashes(&mut self, first: u64, count: u64) -> SourceResult<Option<Vec<BlockHash>>> {
        let mut buf = vec![0; crate::map::BLOCK_BYTES as usize];
        let mut hashes = Vec::with_capacity(count as usize);
        for block in first..first + count {
            let (start, end) = self.geometry.span(block, 1);
            let buf = &mut buf[..(end - start) as usize];
            self.file.read_exact_at(buf, start).map_err(SourceError::because("cannot be read"))?;
            hashes.push(hash(buf));
        }
        Ok(Some(hashes))
    }
}
