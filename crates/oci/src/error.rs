//! The one error of this crate. It answers two questions: whose fault, and may one retry?
//!
//! `Display` never repeats its source; whoever reports an error prints the chain.

use std::io;
use std::path::PathBuf;

use crate::digest::{Digest, DigestError};
use crate::name::ReferenceError;

/// Why an image could not be loaded, pulled, unpacked, named or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system said no.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has opened the same content store.
    #[error("the content store {} is in use by another process", .0.display())]
    StoreInUse(PathBuf),
    /// A text is no image reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A text is no digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// What was given is no image: neither an OCI layout, nor an archive of one, nor a
    /// `docker save` archive.
    #[error("{what} is not an image: {reason}")]
    NotAnImage {
        /// What was given.
        what: String,
        /// What is missing or wrong in it.
        reason: String,
    },
    /// A document of the image does not parse.
    #[error("{what} is malformed")]
    Document {
        /// Which document.
        what: String,
        /// Where it is wrong.
        source: serde_json::Error,
    },
    /// No image for this machine in what was given.
    #[error("no image for {wanted}: it has {found}")]
    Platform {
        /// This machine's platform.
        wanted: String,
        /// The platforms that there are.
        found: String,
    },
    /// An image names a blob that is not there.
    #[error("{role} {digest} is missing")]
    MissingBlob {
        /// What the blob is in its image.
        role: String,
        /// The blob.
        digest: Digest,
    },
    /// A blob has other bytes than its digest says.
    #[error("{role}: expected {expected}, but the bytes have {found}")]
    WrongDigest {
        /// What the blob is in its image.
        role: String,
        /// The digest that was promised.
        expected: Digest,
        /// The digest of the bytes.
        found: Digest,
    },
    /// A blob is longer or shorter than its descriptor says.
    #[error("{role} {digest}: {expected} bytes promised, {found} found")]
    WrongSize {
        /// What the blob is in its image.
        role: String,
        /// The blob.
        digest: Digest,
        /// Bytes promised.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// A bound of [`crate::Limits`] was passed.
    #[error("{what} is past the limit {limit} = {bound}")]
    Limit {
        /// What is too large.
        what: String,
        /// Name of the bound.
        limit: &'static str,
        /// Its value.
        bound: u64,
    },
    /// A layer cannot be unpacked.
    #[error("layer {number} of {of} ({digest}){}", at(.path))]
    Layer {
        /// 1-based, bottom first.
        number: usize,
        /// Layers of the image.
        of: usize,
        /// The layer's blob.
        digest: Digest,
        /// Name of the member as the layer spells it, if one is to blame.
        path: Option<String>,
        /// What is wrong.
        source: Box<LayerFault>,
    },
    /// A member of an archive (not of a layer) cannot be taken.
    #[error("archive{}", at(.path))]
    Archive {
        /// Name of the member, if one is to blame.
        path: Option<String>,
        /// What is wrong.
        source: Box<LayerFault>,
    },
    /// The archive holds no name, and none was given.
    #[error("the image has no name of its own: give it one with `--name NAME` (in the API, `?name=NAME`)")]
    NoName,
    /// What the archive calls its image cannot be its name here.
    #[error("the image's own name cannot be used: give it another with `--name NAME` (in the API, `?name=NAME`)")]
    OwnName(#[source] ReferenceError),
    /// The store has no such image.
    #[error("no image {0}")]
    NoImage(String),
    /// A user or group of the image's configuration does not exist in it.
    #[error("{what} `{name}` is not in the image")]
    NoUser {
        /// `user` or `group`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// `User` of the image's configuration cannot be understood.
    #[error("user `{user}` is malformed: {reason}")]
    User {
        /// The text.
        user: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The registry could not be talked to.
    #[error("{action} at {url}")]
    Transport {
        /// What was tried.
        action: &'static str,
        /// Where.
        url: String,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The registry answered, but not with what was asked for.
    #[error("{url} answered {status}{}", if .message.is_empty() { String::new() } else { format!(": {}", .message) })]
    Registry {
        /// What was asked.
        url: String,
        /// HTTP status.
        status: u16,
        /// The registry's own words, cut short.
        message: String,
    },
    /// Two different layers came to the same short folder name.
    #[error("the layer folder {0} belongs to another layer")]
    ShortIdTaken(String),
    /// A task of ours ended before its work (shutdown or a panic).
    #[error("the task that did the work has ended")]
    TaskEnded,
}

/// What is wrong with a layer, or with one member of it.
#[derive(Debug, thiserror::Error)]
pub enum LayerFault {
    /// The stream ends early.
    #[error("truncated")]
    Truncated,
    /// The compressed stream is broken.
    #[error("the compressed stream is damaged")]
    Compression(#[source] io::Error),
    /// Compressed in a way that is not read here.
    #[error("it is compressed with {0}, which is not supported: use gzip, zstd or no compression")]
    Packing(&'static str),
    /// The tar stream is broken.
    #[error("malformed tar: {0}")]
    Tar(&'static str),
    /// The bytes differ from the DiffID in the configuration.
    #[error("its DiffID should be {expected} but is {found}")]
    WrongDiffId {
        /// Of the configuration.
        expected: Digest,
        /// Of the bytes.
        found: Digest,
    },
    /// The member's name leaves the root.
    #[error("the name leaves the root")]
    LeavesRoot,
    /// The member's name cannot be a file name.
    #[error("the name is unusable: {0}")]
    BadName(&'static str),
    /// A parent of the member is a file.
    #[error("its parent `{0}` is not a folder")]
    ParentNotFolder(String),
    /// Symbolic links go in circles.
    #[error("too many symbolic links on the way to it")]
    TooManySymlinks,
    /// A hard link to outside of the root.
    #[error("the hard link's target `{0}` leaves the root")]
    LinkLeavesRoot(String),
    /// A hard link to nothing, or to a folder.
    #[error("the hard link's target `{0}` is not a file of this image")]
    LinkTarget(String),
    /// A kind of member that no image holds.
    #[error("members of type `{0}` are not supported")]
    Unsupported(char),
    /// A number in the header is out of range.
    #[error("{0} is out of range")]
    OutOfRange(&'static str),
    /// A bound of [`crate::Limits`] was passed.
    #[error("past the limit {limit} = {bound}")]
    Limit {
        /// Name of the bound.
        limit: &'static str,
        /// Its value.
        bound: u64,
    },
    /// The file system said no.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn at(path: &Option<String>) -> String {
    path.as_ref().map(|p| format!(", member `{p}`")).unwrap_or_default()
}

/// Who has to act on an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// Whoever named or made the image.
    Image,
    /// This host: its disk, its configuration.
    Host,
    /// The other side of the network.
    Registry,
}

impl Error {
    /// Whose fault it is.
    pub fn blame(&self) -> Blame {
        match self {
            Error::Io { .. } | Error::StoreInUse(_) | Error::ShortIdTaken(_) | Error::TaskEnded => Blame::Host,
            Error::Layer { source, .. } | Error::Archive { source, .. } => source.blame(),
            Error::Transport { .. } | Error::Registry { .. } => Blame::Registry,
            _ => Blame::Image,
        }
    }

    /// Whether the same call may succeed later without anybody changing the image.
    pub fn may_retry(&self) -> bool {
        match self {
            // Too many requests, and whatever the server calls its own fault.
            Error::Registry { status, .. } => matches!(status, 408 | 429 | 500..),
            _ => matches!(self.blame(), Blame::Host | Blame::Registry),
        }
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }

    pub(crate) fn document(what: impl Into<String>) -> impl FnOnce(serde_json::Error) -> Error {
        let what = what.into();
        move |source| Error::Document { what, source }
    }
}

impl LayerFault {
    fn blame(&self) -> Blame {
        match self {
            // The only refusal of a file system that the layer's own names bring about: no other host would take them.
            LayerFault::Io { source, .. } if source.raw_os_error() == Some(libc::ENAMETOOLONG) => Blame::Image,
            LayerFault::Io { .. } => Blame::Host,
            _ => Blame::Image,
        }
    }

    pub(crate) fn io(action: &'static str) -> impl FnOnce(io::Error) -> LayerFault {
        move |source| LayerFault::Io { action, source }
    }

    pub(crate) fn sys(action: &'static str) -> impl FnOnce(nix::Error) -> LayerFault {
        move |errno| LayerFault::Io { action, source: errno.into() }
    }

    /// A fault that has travelled through `std::io::Read` inside an [`io::Error`].
    pub(crate) fn from_read(error: io::Error) -> LayerFault {
        match error.downcast::<LayerFault>() {
            Ok(fault) => fault,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => LayerFault::Truncated,
            Err(error) => LayerFault::Io { action: "read the layer", source: error },
        }
    }
}
