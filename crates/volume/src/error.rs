//! What can go wrong at this crate's boundary, and which errno a guest sees for it.

use std::io;

use godwit_api::ids::Epoch;

use crate::map::MapError;

#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("{what}")]
    Io { what: String, source: io::Error },
    #[error("the block map cannot be used")]
    Map(#[from] MapError),
    #[error("the volume is poisoned at epoch {0}")]
    Poisoned(Epoch),
    #[error("the volume's server is about to end")]
    Finished,
    #[error("bytes {offset} to {end} are outside of a volume of {size} bytes")]
    OutOfRange { offset: u64, end: u64, size: u64 },
    #[error("the volume is read-only")]
    ReadOnly,
    #[error("the source has been unreachable for longer than its policy allows")]
    SourceGone,
    #[error("an earlier sync of the volume's file failed, so nothing more can be promised")]
    SyncFailed,
    #[error("the front end cannot be used: {what}")]
    Front { what: String },
    #[error("the process cannot be prepared: {what}")]
    Process { what: String },
    /// Another keeper of the same thing lives: this one must not.
    #[error("{} is held by another process", path.display())]
    Taken { path: std::path::PathBuf },
    #[error("{what} did not end within {bound_ms} ms")]
    Late { what: String, bound_ms: u64 },
    #[error("the source cannot be used now")]
    Source(#[from] crate::source::SourceError),
    #[error("the NBD peer cannot be used")]
    Nbd(#[from] crate::nbd::NbdError),
}

pub type Result<T> = std::result::Result<T, VolumeError>;

impl VolumeError {
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
    /// What the guest is told.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            Self::OutOfRange { .. } => libc::EINVAL,
            Self::ReadOnly => libc::EROFS,
            _ => libc::EIO,
        }
    }
    /// Whether the same call may succeed later without anybody's help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Nbd(error) => error.is_transient(),
            Self::Source(_) => true,
            Self::Io { source, .. } => source.kind() != io::ErrorKind::StorageFull,
            _ => false,
        }
    }
}

/// An error and what it comes from, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
