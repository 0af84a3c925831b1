//! Small files that are either the old or the new content after a crash, never a mixture.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes `bytes` to `path`: temporary file beside it, fsync, rename, fsync of the folder. `mode` as in chmod.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a file needs a folder"))?;
    let name = path.file_name().ok_or_else(|| io::Error::other("a file needs a name"))?.to_string_lossy();
    let temporary = folder.join(format!(".{name}.{:016x}.tmp", crate::secret::random_u64()));
    let result = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    })();
    if result.is_err() {
        // The rename may have happened already; then there is nothing to remove.
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// Reads a file, `None` if there is none.
pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
