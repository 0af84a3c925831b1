//! Small JSON records on disk: whole or absent, never torn. It knows nothing of what they mean.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// No record of ours is larger (the environment, the files to write and a few paths).
pub const MAX_RECORD_BYTES: u64 = 16 << 20;

/// Replaces the record in one step; readers see the old one or the new one.
pub fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    replace(path, value, false)
}

/// The same, and it survives a power cut once this returns.
pub fn write_synced<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    replace(path, value, true)
}

fn replace<T: Serialize>(path: &Path, value: &T, synced: bool) -> io::Result<()> {
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    if synced {
        file.sync_all()?;
    }
    fs::rename(&temporary, path)?;
    if synced && let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// The record, or `None` when there is none or a power cut tore it.
pub fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::metadata(path) {
        Ok(meta) if meta.len() > MAX_RECORD_BYTES => Err(io::Error::other("the record is too large")),
        Ok(_) => Ok(serde_json::from_slice(&fs::read(path)?).ok()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
