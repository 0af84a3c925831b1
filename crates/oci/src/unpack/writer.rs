//! One layer's members become a folder in overlayfs terms. All writing stays in that
//! folder: every path is resolved below its root without following a link of its own.
//!
//! **Parents.** A layer is a change set against the layers below it, so a parent that this
//! layer does not bring is looked up there: a folder is copied up with its owner and mode
//! (overlayfs shows the top-most one's). A symbolic link, of a lower layer or of this one,
//! is followed inside of the image and the member lands in its target, as Docker and umoci
//! do it (decision 0007): making a plain folder in the link's place would cut `/var/run`
//! off from `/run`. The link is read and resolved here, name by name from the root of the
//! image; the kernel is only ever given the outcome, and refuses links in that.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags};

use super::attributes::{Attributes, CopiedAttributes};
use super::member::{self, Role};
use super::merged::{Folder, Found, Merged, Trail};
use super::sys;
use crate::error::LayerFault;
use crate::limits::{LayerCount, Limits};
use crate::tarball::{Kind, Member, TarReader, label};

const COPY_BUFFER_BYTES: usize = 256 << 10;

type Result<T> = std::result::Result<T, LayerFault>;

/// The folder that members are going into, kept open from one to the next.
struct Parent {
    /// As the member spells it.
    asked: PathBuf,
    /// Where that is, free of links.
    path: PathBuf,
    fd: OwnedFd,
    /// Put back when we leave it: adding a member must not show in the folder's time.
    time: TimeSpec,
}

/// Writes one layer.
pub(crate) struct LayerWriter<'a> {
    /// The layer being written is number 0; the others are below it.
    view: Merged,
    parent: Option<Parent>,
    limits: &'a Limits,
    count: LayerCount,
    buffer: Vec<u8>,
}

impl<'a> LayerWriter<'a> {
    /// `target` is an empty folder, `lowers` the layers below it, top-most first.
    pub(crate) fn new(target: &Path, lowers: &[PathBuf], limits: &'a Limits) -> Result<Self> {
        let roots: Vec<PathBuf> = std::iter::once(target.to_owned()).chain(lowers.iter().cloned()).collect();
        let view = Merged::open(&roots)?;
        match view.roots.get(1) {
            Some(below) => CopiedAttributes::read(below)?.put_on(&view.roots[0])?,
            None => Attributes::implied().put_on(&view.roots[0])?,
        }
        Ok(Self { view, parent: None, limits, count: LayerCount::default(), buffer: vec![0; COPY_BUFFER_BYTES] })
    }

    /// Leaves the layer whole; returns (files, bytes).
    pub(crate) fn finish(mut self) -> Result<(u64, u64)> {
        self.leave_parent()?;
        Ok((self.count.files, self.count.bytes))
    }

    /// Applies one member, whose data are read from `tar`.
    pub(crate) fn apply<R: Read>(&mut self, member: &Member, tar: &mut TarReader<R>) -> Result<()> {
        self.count.member(member.size, self.limits)?;
        match member::role(&member.name)? {
            Role::Skip => Ok(()),
            Role::Root if member.kind == Kind::Folder => {
                self.leave_parent()?;
                Attributes::of(member).put_on(&self.view.roots[0])
            }
            Role::Root => Err(LayerFault::BadName("the root can only be a folder")),
            Role::Opaque(folder) => self.make_opaque(&folder),
            Role::Whiteout(hidden) => self.hide(&hidden),
            Role::Entry(path) => match member.kind {
                Kind::Folder => self.folder(&path, member),
                Kind::File => self.file(&path, member, tar),
                Kind::Symlink => self.symlink(&path, member),
                Kind::HardLink => self.hard_link(&path, member),
                Kind::Fifo => self.fifo(&path, member),
                // A Machine gets a minimal /dev of its own. The name still replaces what
                // lower layers have there.
                Kind::Device => {
                    self.vacate(&path)?;
                    self.hide(&path)
                }
            },
        }
    }

    // ---- members -----------------------------------------------------------------------

    fn folder(&mut self, path: &Path, member: &Member) -> Result<()> {
        let name = self.enter_parent_of(path)?;
        let parent = &self.here()?.fd;
        let existing = sys::lstat_at(parent, &name).map_err(LayerFault::sys("look a name up"))?;
        let is_folder = existing.as_ref().is_some_and(|stat| sys::kind(stat) == SFlag::S_IFDIR);
        // What stood here, a file or a whiteout, had hidden the lower layers' folder of
        // this name; the new folder must go on hiding it.
        let hides = existing.is_some() && !is_folder;
        if hides {
            unlink(parent, &name)?;
        }
        if !is_folder {
            make_folder(parent, &name)?;
        }
        let fd = sys::open_folder(parent, Path::new(&name)).map_err(LayerFault::sys("open the folder"))?;
        if hides {
            set_opaque(&fd)?;
        }
        Attributes::of(member).put_on(&fd)
    }

    fn file<R: Read>(&mut self, path: &Path, member: &Member, tar: &mut TarReader<R>) -> Result<()> {
        let name = self.vacate(path)?;
        let mut file = create(&self.here()?.fd, &name)?;
        match &member.sparse {
            None => copy_exact(tar, &mut file, member.size, &mut self.buffer)?,
            Some(segments) => {
                for &(offset, length) in segments {
                    file.seek(SeekFrom::Start(offset)).map_err(LayerFault::io("write the file"))?;
                    copy_exact(tar, &mut file, length, &mut self.buffer)?;
                }
                file.set_len(member.size).map_err(LayerFault::io("write the file"))?;
            }
        }
        Attributes::of(member).put_on(&file.into())
    }

    fn symlink(&mut self, path: &Path, member: &Member) -> Result<()> {
        if member.link.is_empty() {
            return Err(LayerFault::BadName("a symbolic link to nothing"));
        }
        let name = self.vacate(path)?;
        // Verbatim: what it means is decided inside of the Machine.
        self.put_symlink(&name, OsStr::from_bytes(&member.link), &Attributes::of(member))
    }

    fn hard_link(&mut self, path: &Path, member: &Member) -> Result<()> {
        let shown = || label(&member.link);
        let target = match member::clean(&member.link) {
            Err(LayerFault::LeavesRoot) => return Err(LayerFault::LinkLeavesRoot(shown())),
            other => other?,
        };
        let target = self.file_here(&target)?.ok_or_else(|| LayerFault::LinkTarget(shown()))?;
        let name = self.enter_parent_of(path)?;
        // Itself, or in the folder that the link is to replace: gone before it could be linked.
        if target.starts_with(self.here()?.path.join(&name)) {
            return Err(LayerFault::LinkTarget(shown()));
        }
        let name = self.vacate(path)?;
        let (Some(target_name), Some(folder)) = (target.file_name(), target.parent()) else {
            return Err(LayerFault::LinkTarget(shown()));
        };
        let from = sys::open_folder(&self.view.roots[0], folder).map_err(LayerFault::sys("open the link's target"))?;
        // Without AT_SYMLINK_FOLLOW: a link to a symbolic link is one more name of it.
        nix::unistd::linkat(&from, target_name, &self.here()?.fd, name.as_os_str(), AtFlags::empty())
            .map_err(LayerFault::sys("make the hard link"))
    }

    fn fifo(&mut self, path: &Path, member: &Member) -> Result<()> {
        let name = self.vacate(path)?;
        self.put_fifo(&name, &Attributes::of(member))
    }

    // ---- hiding ------------------------------------------------------------------------

    /// A whiteout: hides `path` of the lower layers. What this layer has there stays
    /// (layer.md: whiteouts apply to lower layers only). Nothing to hide, nothing done: a
    /// whiteout in a folder that does not merge would show up in its listing.
    fn hide(&mut self, path: &Path) -> Result<()> {
        let (parent, name) = split(path)?;
        let Some(folder) = self.look_up_folder(parent)? else { return Ok(()) };
        let below = Folder { layers: folder.layers.iter().copied().filter(|&l| l > 0).collect(), ..folder };
        if matches!(self.view.child(&below, name)?, Found::Absent | Found::Hidden { .. }) {
            return Ok(());
        }
        self.enter(parent)?;
        let here = self.here()?;
        match sys::lstat_at(&here.fd, name).map_err(LayerFault::sys("look a name up"))? {
            None => sys::make_whiteout(&here.fd, name).map_err(LayerFault::sys("make a whiteout")),
            Some(stat) if sys::kind(&stat) == SFlag::S_IFDIR => {
                let path = here.path.join(name);
                self.set_opaque_at(&path)
            }
            Some(_) => Ok(()),
        }
    }

    /// An opaque marker: hides all that lower layers have in the folder.
    fn make_opaque(&mut self, folder: &Path) -> Result<()> {
        self.enter(folder)?;
        let path = self.here()?.path.clone();
        self.set_opaque_at(&path)
    }

    fn set_opaque_at(&self, path: &Path) -> Result<()> {
        let fd = sys::open_folder(&self.view.roots[0], path).map_err(LayerFault::sys("open the folder"))?;
        set_opaque(&fd)?;
        self.drop_whiteouts(path)
    }

    /// Below an opaque folder nothing merges, so earlier whiteouts would show up.
    fn drop_whiteouts(&self, path: &Path) -> Result<()> {
        let fd = sys::open_folder(&self.view.roots[0], path).map_err(LayerFault::sys("open a folder"))?;
        let time = fstat(&fd)?;
        for name in sys::names_in(&fd).map_err(LayerFault::sys("list a folder"))? {
            match sys::lstat_at(&fd, &name).map_err(LayerFault::sys("look a name up"))? {
                Some(stat) if sys::is_whiteout(&stat) => unlink(&fd, &name)?,
                Some(stat) if sys::kind(&stat) == SFlag::S_IFDIR => self.drop_whiteouts(&path.join(&name))?,
                _ => {}
            }
        }
        sys::set_times(&fd, sys::mtime(&time)).map_err(LayerFault::sys("set the time"))
    }

    // ---- places ------------------------------------------------------------------------

    fn here(&self) -> Result<&Parent> {
        // `enter` has run before every use; an error rather than a panic if it has not.
        self.parent.as_ref().ok_or(LayerFault::BadName("it has no parent"))
    }

    /// Enters the parent of `path`, removes what this layer has at `path`, returns its name.
    fn vacate(&mut self, path: &Path) -> Result<OsString> {
        let name = self.enter_parent_of(path)?;
        let here = self.here()?;
        match sys::lstat_at(&here.fd, &name).map_err(LayerFault::sys("look a name up"))? {
            None => {}
            Some(stat) if sys::kind(&stat) == SFlag::S_IFDIR => self.remove_folder(&here.path.join(&name))?,
            Some(_) => unlink(&here.fd, &name)?,
        }
        Ok(name)
    }

    /// Removes a folder of this layer with all that is in it.
    fn remove_folder(&self, path: &Path) -> Result<()> {
        let fd = sys::open_folder(&self.view.roots[0], path).map_err(LayerFault::sys("open a folder"))?;
        for name in sys::names_in(&fd).map_err(LayerFault::sys("list a folder"))? {
            match sys::lstat_at(&fd, &name).map_err(LayerFault::sys("look a name up"))? {
                Some(stat) if sys::kind(&stat) == SFlag::S_IFDIR => self.remove_folder(&path.join(&name))?,
                _ => unlink(&fd, &name)?,
            }
        }
        let (parent, name) = split(path)?;
        let parent = sys::open_folder(&self.view.roots[0], parent).map_err(LayerFault::sys("open a folder"))?;
        nix::unistd::unlinkat(&parent, name, UnlinkatFlags::RemoveDir).map_err(LayerFault::sys("remove a folder"))
    }

    fn enter_parent_of(&mut self, path: &Path) -> Result<OsString> {
        let (parent, name) = split(path)?;
        self.enter(parent)?;
        Ok(name.to_owned())
    }

    /// Makes `asked` the current parent, in this layer, creating what is missing.
    fn enter(&mut self, asked: &Path) -> Result<()> {
        if self.parent.as_ref().is_some_and(|parent| parent.asked == asked) {
            return Ok(());
        }
        self.leave_parent()?;
        // Nearly always all of it is in this layer: one system call.
        let (path, fd) = match sys::open_folder(&self.view.roots[0], asked) {
            Ok(fd) => (asked.to_owned(), fd),
            Err(_) => {
                let path = self.bring_up(asked)?;
                let fd = sys::open_folder(&self.view.roots[0], &path).map_err(LayerFault::sys("open the parent"))?;
                (path, fd)
            }
        };
        let time = sys::mtime(&fstat(&fd)?);
        self.parent = Some(Parent { asked: asked.to_owned(), path, fd, time });
        Ok(())
    }

    fn leave_parent(&mut self) -> Result<()> {
        match self.parent.take() {
            None => Ok(()),
            Some(parent) => sys::set_times(&parent.fd, parent.time).map_err(LayerFault::sys("set the time")),
        }
    }

    /// Walks to a folder as the merged image has it and makes every folder on the way in
    /// this layer too. Returns where that ended, free of links.
    fn bring_up(&mut self, asked: &Path) -> Result<PathBuf> {
        let mut trail = Trail::new(self.view.root()?, asked);
        while let Some(name) = trail.next()? {
            let path = trail.here().path.join(&name);
            match self.view.child(trail.here(), &name)? {
                Found::Folder(folder) if folder.layers.first() == Some(&0) => trail.enter(folder),
                Found::Folder(mut folder) => {
                    let below = folder.layers.first().map(|&layer| &self.view.roots[layer]);
                    let below = below.map(|root| sys::open_folder(root, &folder.path)).transpose();
                    let below = below.map_err(LayerFault::sys("open a folder"))?;
                    let attributes = below.as_ref().map(CopiedAttributes::read).transpose()?;
                    self.imply_folder(&path, attributes, false)?;
                    folder.layers.insert(0, 0);
                    trail.enter(folder);
                }
                Found::Leaf { layer, path, stat } if sys::kind(&stat) == SFlag::S_IFLNK => {
                    trail.follow(&self.view.read_link(layer, &path)?)?;
                }
                Found::Leaf { path, .. } => {
                    return Err(LayerFault::ParentNotFolder(label(path.as_os_str().as_bytes())));
                }
                found @ (Found::Absent | Found::Hidden { .. }) => {
                    let here = matches!(found, Found::Hidden { layer: 0 });
                    self.imply_folder(&path, None, here)?;
                    trail.enter(Folder { path, layers: vec![0] });
                }
            }
        }
        Ok(trail.here().path.clone())
    }

    /// Makes a folder that no member describes. `hidden`: a whiteout of this layer stands
    /// there and has to give way without letting the lower folder back in.
    fn imply_folder(&mut self, path: &Path, attributes: Option<CopiedAttributes>, hidden: bool) -> Result<()> {
        self.count.member(0, self.limits)?;
        let (parent, name) = split(path)?;
        let parent = sys::open_folder(&self.view.roots[0], parent).map_err(LayerFault::sys("open a folder"))?;
        let time = sys::mtime(&fstat(&parent)?);
        if hidden {
            unlink(&parent, name)?;
        }
        make_folder(&parent, name)?;
        let fd = sys::open_folder(&parent, Path::new(name)).map_err(LayerFault::sys("open a folder"))?;
        if hidden {
            set_opaque(&fd)?;
        }
        match attributes {
            Some(attributes) => attributes.put_on(&fd)?,
            None => Attributes::implied().put_on(&fd)?,
        }
        sys::set_times(&parent, time).map_err(LayerFault::sys("set the time"))
    }

    /// A folder of the merged image, nothing created.
    fn look_up_folder(&self, asked: &Path) -> Result<Option<Folder>> {
        let mut trail = Trail::new(self.view.root()?, asked);
        while let Some(name) = trail.next()? {
            match self.view.child(trail.here(), &name)? {
                Found::Folder(folder) => trail.enter(folder),
                Found::Leaf { layer, path, stat } if sys::kind(&stat) == SFlag::S_IFLNK => {
                    trail.follow(&self.view.read_link(layer, &path)?)?;
                }
                Found::Leaf { .. } | Found::Absent | Found::Hidden { .. } => return Ok(None),
            }
        }
        Ok(Some(trail.here().clone()))
    }

    /// Where in this layer the file `path` of the image is; a lower layer's is copied up.
    fn file_here(&mut self, path: &Path) -> Result<Option<PathBuf>> {
        let (parent, name) = split(path)?;
        let Some(folder) = self.look_up_folder(parent)? else { return Ok(None) };
        match self.view.child(&folder, name)? {
            Found::Leaf { layer: 0, path, .. } => Ok(Some(path)),
            Found::Leaf { layer, path, stat } => {
                self.copy_up(layer, &path, &stat)?;
                Ok(Some(path))
            }
            Found::Folder(_) | Found::Absent | Found::Hidden { .. } => Ok(None),
        }
    }

    fn copy_up(&mut self, layer: usize, path: &Path, stat: &FileStat) -> Result<()> {
        self.count.member(u64::try_from(stat.st_size).unwrap_or(0), self.limits)?;
        let name = self.enter_parent_of(path)?;
        match sys::kind(stat) {
            SFlag::S_IFREG => {
                let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
                let from = sys::open_beneath(&self.view.roots[layer], path, flags)
                    .map_err(LayerFault::sys("open the file of a lower layer"))?;
                let attributes = CopiedAttributes::read(&from)?;
                let mut to = create(&self.here()?.fd, &name)?;
                io::copy(&mut File::from(from), &mut to).map_err(LayerFault::io("copy the file of a lower layer"))?;
                attributes.put_on(&to.into())
            }
            SFlag::S_IFLNK => {
                let target = self.view.read_link(layer, path)?;
                self.put_symlink(&name, &target, &Attributes::copied(stat, &[]))
            }
            _ => self.put_fifo(&name, &Attributes::copied(stat, &[])),
        }
    }

    fn put_symlink(&self, name: &OsStr, target: &OsStr, attributes: &Attributes<'_>) -> Result<()> {
        let here = &self.here()?.fd;
        nix::unistd::symlinkat(target, here, name).map_err(LayerFault::sys("make the symbolic link"))?;
        self.own_without_opening(name, attributes)
    }

    fn put_fifo(&self, name: &OsStr, attributes: &Attributes<'_>) -> Result<()> {
        let here = &self.here()?.fd;
        nix::unistd::mkfifoat(here, name, Mode::S_IRUSR).map_err(LayerFault::sys("make the fifo"))?;
        self.own_without_opening(name, attributes)?;
        // Follows links, but this name is the fifo of the line above in a folder of ours.
        let mode = Mode::from_bits_truncate(attributes.mode);
        nix::sys::stat::fchmodat(here, name, mode, nix::sys::stat::FchmodatFlags::FollowSymlink)
            .map_err(LayerFault::sys("set the mode"))
    }

    fn own_without_opening(&self, name: &OsStr, attributes: &Attributes<'_>) -> Result<()> {
        let here = &self.here()?.fd;
        let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        nix::unistd::fchownat(here, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(LayerFault::sys("set the owner"))?;
        let time = attributes.time;
        nix::sys::stat::utimensat(here, name, &time, &time, UtimensatFlags::NoFollowSymlink)
            .map_err(LayerFault::sys("set the time"))
    }
}

fn split(path: &Path) -> Result<(&Path, &OsStr)> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent, name)),
        _ => Err(LayerFault::BadName("it means the root")),
    }
}

fn fstat(fd: &OwnedFd) -> Result<FileStat> {
    nix::sys::stat::fstat(fd).map_err(LayerFault::sys("read the attributes"))
}

fn unlink(folder: &OwnedFd, name: &OsStr) -> Result<()> {
    nix::unistd::unlinkat(folder, name, UnlinkatFlags::NoRemoveDir).map_err(LayerFault::sys("remove a file"))
}

fn make_folder(folder: &OwnedFd, name: &OsStr) -> Result<()> {
    nix::sys::stat::mkdirat(folder, name, Mode::S_IRWXU).map_err(LayerFault::sys("make a folder"))
}

fn set_opaque(fd: &OwnedFd) -> Result<()> {
    sys::set_xattr_c(fd, sys::OPAQUE_XATTR, b"y").map_err(LayerFault::io("make the folder opaque"))
}

fn create(folder: &OwnedFd, name: &OsStr) -> Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    nix::fcntl::openat(folder, name, flags, mode).map(File::from).map_err(LayerFault::sys("make the file"))
}

fn copy_exact<R: Read>(tar: &mut TarReader<R>, to: &mut File, bytes: u64, buffer: &mut [u8]) -> Result<()> {
    let mut left = bytes;
    while left > 0 {
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        match tar.read(&mut buffer[..want]).map_err(LayerFault::from_read)? {
            0 => return Err(LayerFault::Truncated),
            n => {
                to.write_all(&buffer[..n]).map_err(LayerFault::io("write the file"))?;
                left -= n as u64;
            }
        }
    }
    Ok(())
}
