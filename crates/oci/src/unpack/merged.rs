//! Layers read as overlayfs will show them: the top-most entry wins, folders merge,
//! whiteouts and opaque folders hide. Reads only; no path ever leaves the layers' roots.
//!
//! Unpacking needs it to place a member whose parent is only in a lower layer, and the
//! user of an image is looked up through it.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag};

use super::member::{MAX_PATH_BYTES, MAX_PATH_PARTS};
use super::sys;
use crate::error::LayerFault;

/// Symbolic links followed on one path, as in the kernel (path_resolution(7)).
pub(crate) const MAX_LINKS: usize = 40;

type Result<T> = std::result::Result<T, LayerFault>;

/// A stack of layers, top-most first.
pub(crate) struct Merged {
    pub roots: Vec<OwnedFd>,
}

/// A folder as seen through the stack.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    /// Relative to the roots, free of links.
    pub path: PathBuf,
    /// The layers that contribute to it, top-most first.
    pub layers: Vec<usize>,
}

/// What a name in a folder is.
pub(crate) enum Found {
    Absent,
    /// A whiteout of that layer hides whatever is below.
    Hidden {
        layer: usize,
    },
    Folder(Folder),
    Leaf {
        layer: usize,
        path: PathBuf,
        stat: FileStat,
    },
}

impl Merged {
    pub(crate) fn open(roots: &[PathBuf]) -> Result<Self> {
        let open = |path: &PathBuf| sys::open_root(path).map_err(LayerFault::io("open a layer"));
        Ok(Self { roots: roots.iter().map(open).collect::<Result<_>>()? })
    }

    /// The root. What lies below an opaque root is not seen (overlayfs itself ignores the
    /// attribute there; [`super::lowers`] leaves those layers out).
    pub(crate) fn root(&self) -> Result<Folder> {
        let mut layers = Vec::with_capacity(self.roots.len());
        for (index, root) in self.roots.iter().enumerate() {
            layers.push(index);
            if sys::is_opaque(root).map_err(LayerFault::io("read an attribute"))? {
                break;
            }
        }
        Ok(Folder { path: PathBuf::new(), layers })
    }

    /// Looks one name up in a folder.
    pub(crate) fn child(&self, folder: &Folder, name: &OsStr) -> Result<Found> {
        let path = folder.path.join(name);
        let mut layers = Vec::new();
        for &layer in &folder.layers {
            let root = &self.roots[layer];
            let fd = match sys::open_beneath(root, &path, OFlag::O_PATH) {
                Ok(fd) => fd,
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(LayerFault::sys("look a name up")(errno)),
            };
            let stat = nix::sys::stat::fstat(&fd).map_err(LayerFault::sys("look a name up"))?;
            if sys::kind(&stat) == SFlag::S_IFDIR {
                layers.push(layer);
                let opened = sys::open_folder(root, &path).map_err(LayerFault::sys("open a folder"))?;
                if sys::is_opaque(opened).map_err(LayerFault::io("read an attribute"))? {
                    break;
                }
            } else if !layers.is_empty() {
                break;
            } else if sys::is_whiteout(&stat) {
                return Ok(Found::Hidden { layer });
            } else {
                return Ok(Found::Leaf { layer, path, stat });
            }
        }
        match layers.is_empty() {
            true => Ok(Found::Absent),
            false => Ok(Found::Folder(Folder { path, layers })),
        }
    }

    /// The target of a link found by [`Merged::child`].
    pub(crate) fn read_link(&self, layer: usize, path: &Path) -> Result<OsString> {
        let fd = sys::open_beneath(&self.roots[layer], path, OFlag::O_PATH)
            .map_err(LayerFault::sys("open a symbolic link"))?;
        nix::fcntl::readlinkat(&fd, "").map_err(LayerFault::sys("read a symbolic link"))
    }

    /// Opens a plain file by path, following links inside of the stack as the image's own
    /// processes would. `None` if there is none.
    pub(crate) fn open_file(&self, path: &Path) -> Result<Option<OwnedFd>> {
        let mut trail = Trail::new(self.root()?, path);
        while let Some(name) = trail.next()? {
            match self.child(trail.here(), &name)? {
                Found::Folder(folder) => trail.enter(folder),
                Found::Leaf { layer, path, stat } => match sys::kind(&stat) {
                    SFlag::S_IFLNK => trail.follow(&self.read_link(layer, &path)?)?,
                    // Only after the type is known: opening a fifo would wait for a writer.
                    SFlag::S_IFREG if trail.is_done() => {
                        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
                        let fd = sys::open_beneath(&self.roots[layer], &path, flags);
                        return fd.map(Some).map_err(LayerFault::sys("open a file"));
                    }
                    _ => return Ok(None),
                },
                Found::Absent | Found::Hidden { .. } => return Ok(None),
            }
        }
        Ok(None)
    }
}

/// A walk along a path: where it is, and what is still to come.
pub(crate) struct Trail {
    stack: Vec<Folder>,
    /// Next part last.
    pending: Vec<OsString>,
    links: usize,
}

impl Trail {
    pub(crate) fn new(root: Folder, path: &Path) -> Self {
        let mut trail = Self { stack: vec![root], pending: Vec::new(), links: 0 };
        trail.prepend(path.as_os_str());
        trail
    }

    fn prepend(&mut self, path: &OsStr) {
        let parts = path.as_bytes().split(|&b| b == b'/').rev();
        let parts = parts.filter(|part| !part.is_empty() && *part != b".");
        self.pending.extend(parts.map(|part| OsStr::from_bytes(part).to_owned()));
    }

    /// The next name to look up in [`Trail::here`].
    pub(crate) fn next(&mut self) -> Result<Option<OsString>> {
        while let Some(name) = self.pending.pop() {
            if name != ".." {
                let path_bytes = self.here().path.as_os_str().len() + 1 + name.len();
                if self.stack.len() > MAX_PATH_PARTS || path_bytes > MAX_PATH_BYTES {
                    return Err(LayerFault::BadName("it leads too deep through symbolic links"));
                }
                return Ok(Some(name));
            }
            // Above the root is the root, as for a process inside of it.
            if self.stack.len() > 1 {
                self.stack.pop();
            }
        }
        Ok(None)
    }

    /// Whether nothing is left to walk.
    pub(crate) fn is_done(&self) -> bool {
        self.pending.is_empty()
    }

    pub(crate) fn here(&self) -> &Folder {
        // Never empty: `new` puts the root in, and `next` and `follow` keep it.
        &self.stack[self.stack.len() - 1]
    }

    pub(crate) fn enter(&mut self, folder: Folder) {
        self.stack.push(folder);
    }

    /// Goes on along a link's target, which is relative to here or to the root.
    pub(crate) fn follow(&mut self, target: &OsStr) -> Result<()> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(LayerFault::TooManySymlinks);
        }
        if target.as_bytes().first() == Some(&b'/') {
            self.stack.truncate(1);
        }
        self.prepend(target);
        Ok(())
    }
}
