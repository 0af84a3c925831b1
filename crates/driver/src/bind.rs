//! Files and folders of the host that a Machine sees, and what a path of either side may look like. Pure.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bind {
    /// An absolute path on the host; a folder or a file.
    pub source: PathBuf,
    pub guest_path: String,
    pub read_only: bool,
}

pub(crate) fn check_absolute(field: &'static str, path: &Path) -> Result<()> {
    let text = path.to_str().unwrap_or("");
    if !path.is_absolute() || text.contains(['\0', '\n']) || has_dots(path) {
        return Err(Error::invalid(field, format!("{} is not a plain absolute path", path.display())));
    }
    Ok(())
}

pub(crate) fn check_guest_path(field: &'static str, path: &str) -> Result<()> {
    if !path.starts_with('/') || path.contains('\0') || has_dots(Path::new(path)) || path.len() > 4000 {
        return Err(Error::invalid(field, format!("{path:?} is not a plain absolute path")));
    }
    Ok(())
}

pub(crate) fn has_dots(path: &Path) -> bool {
    path.components().any(|c| c == std::path::Component::ParentDir)
}
