//! Folders that a role makes for itself: whole paths at once, and closed to everybody else where they hold data.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// Only its owner may look inside.
pub const PRIVATE: u32 = 0o700;

/// Makes `path` with mode 0700, and what is missing above it with 0755. A folder that stands keeps its mode, for it may be
/// somebody else's: `check::folder` warns of one that is open.
pub fn private(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(PRIVATE).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made,
    }
}

/// The same for the folder that a file is to lie in.
pub fn private_parent(file: &Path) -> io::Result<()> {
    match file.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => private(parent),
        None => Ok(()),
    }
}

/// `private` for a folder that is certainly a role's own: one that an older version left open is closed.
pub fn own(path: &Path) -> io::Result<()> {
    private(path)?;
    let mode = std::fs::metadata(path)?.permissions().mode() & 0o7777;
    if mode != PRIVATE {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(PRIVATE))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn what_holds_data_is_closed_and_what_stands_keeps_its_mode() {
        let top = tempfile::tempdir().unwrap();
        let data = top.path().join("lib/godwit/control");
        private(&data).unwrap();
        private(&data).unwrap();
        assert_eq!(mode(&data), 0o700);
        assert_ne!(mode(data.parent().unwrap()) & 0o011, 0, "others' data may lie beside it");
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o755)).unwrap();
        private(&data).unwrap();
        assert_eq!(mode(&data), 0o755);
        own(&data).unwrap();
        assert_eq!(mode(&data), 0o700);
        std::fs::write(top.path().join("file"), "").unwrap();
        assert!(private(&top.path().join("file")).is_err());
        private_parent(&top.path().join("a/b")).unwrap();
        assert_eq!(mode(&top.path().join("a")), 0o700);
    }
}
