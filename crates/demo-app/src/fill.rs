//! A large file whose content is known: random to whoever stores or moves it, and computed again by whoever checks
//! it. The content is BLAKE3's extended output over the seed, so that any part of it can be had without the rest.
//! Nothing is held in memory beyond one piece.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use serde_json::{Value, json};

/// What is read or written at a time.
const PIECE_BYTES: usize = 1 << 20;

pub struct Filling {
    path: PathBuf,
}

impl Filling {
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Writes `mib` MiB in place of what was there, syncs, and tells the checksum of what was meant to be written.
    pub fn write(&self, mib: u64, seed: u64) -> io::Result<Value> {
        let mut file = File::create(&self.path)?;
        let mut content = content(seed);
        let mut hash = blake3::Hasher::new();
        let mut piece = vec![0; PIECE_BYTES];
        for _ in 0..mib {
            content.fill(&mut piece);
            hash.update(&piece);
            file.write_all(&piece)?;
        }
        file.sync_all()?;
        if let Some(folder) = self.path.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(json!({ "bytes": mib * PIECE_BYTES as u64, "blake3": hash.finalize().to_hex().as_str() }))
    }

    /// Length and checksum of what is there.
    pub fn checksum(&self) -> io::Result<Value> {
        let mut file = File::open(&self.path)?;
        let mut hash = blake3::Hasher::new();
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match file.read(&mut piece)? {
                0 => break,
                bytes => hash.update(&piece[..bytes]),
            };
        }
        let bytes = file.stream_position()?;
        Ok(json!({ "bytes": bytes, "blake3": hash.finalize().to_hex().as_str() }))
    }

    /// A part of it, as it is there. Past its end is an error.
    pub fn part(&self, at: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut part = vec![0; bytes];
        File::open(&self.path)?.read_exact_at(&mut part, at)?;
        Ok(part)
    }
}

fn content(seed: u64) -> blake3::OutputReader {
    blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_computed_and_a_change_shows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fill");
        let filling = Filling::at(path.clone());
        let written = filling.write(3, 7).unwrap();
        assert_eq!(written["bytes"], 3 << 20);
        assert_eq!(filling.checksum().unwrap(), written);
        assert_ne!(filling.write(3, 8).unwrap(), written, "another seed, another content");
        filling.write(3, 7).unwrap();

        let mut expected = vec![0; 5000];
        let mut reader = content(7);
        reader.set_position(1_500_000);
        reader.fill(&mut expected);
        assert_eq!(filling.part(1_500_000, 5000).unwrap(), expected);
        assert!(filling.part(3 << 20, 1).is_err());

        let mut bytes = std::fs::read(&path).unwrap();
        bytes[2_000_000] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_ne!(filling.checksum().unwrap(), written);
    }
}
