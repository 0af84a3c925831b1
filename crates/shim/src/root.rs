//! The Machine's root: the overlay of its layers, and the files that the platform puts into it.
//!
//! Paths inside are resolved by the kernel with the root as their world (openat2, RESOLVE_IN_ROOT): a link that an
//! image or an earlier instance left cannot lead out. It must run in a mount namespace of its own.

use godwit_driver::container::layout::Layout;
use godwit_driver::{RootPolicy, Spec};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, chdir, unlinkat};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// All options of a mount must fit in one page.
const MAX_MOUNT_OPTION_BYTES: usize = 4095;
/// Dangling links followed on one path, as many as the kernel follows links.
const MAX_LINKS: usize = 40;
/// Larger passwd and group files are cut.
const MAX_LOOKUP_BYTES: u64 = 4 << 20;

/// Mounts the root where only this process and what it forks can see it, and answers its path.
/// With `nodev`, device nodes of the image cannot be opened.
pub fn mount_overlay(spec: &Spec, layout: &Layout, nodev: bool) -> io::Result<PathBuf> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    if spec.root == RootPolicy::Fresh {
        clear(&layout.upper())?;
        clear(&layout.work())?;
    }
    let root = layout.root();
    for folder in [&layout.upper(), &layout.work(), &root] {
        fs::create_dir_all(folder)?;
    }
    // Layers are named relative to their folder: with absolute names, few would fit in the page.
    chdir(&spec.lowers_base)?;
    let options = overlay_options(spec, layout)?;
    let flags = if nodev { MsFlags::MS_NODEV } else { MsFlags::empty() };
    let mounted = mount(Some("overlay"), &root, Some("overlay"), flags, Some(options.as_str()));
    chdir("/")?;
    mounted.map_err(|e| io::Error::other(format!("cannot mount the overlay ({options}): {e}")))?;
    Ok(root)
}

fn overlay_options(spec: &Spec, layout: &Layout) -> io::Result<String> {
    let lowers: Vec<_> = spec.lowers.iter().map(|lower| lower.to_string_lossy()).collect();
    let (upper, work) = (layout.upper(), layout.work());
    let options = format!("lowerdir={},upperdir={},workdir={}", lowers.join(":"), upper.display(), work.display());
    if options.len() > MAX_MOUNT_OPTION_BYTES {
        return Err(io::Error::other(format!("{} layers do not fit in one mount", lowers.len())));
    }
    if layout.dir.to_string_lossy().contains([',', ':', '\\']) {
        return Err(io::Error::other(format!("{} holds a character that a mount cannot name", layout.dir.display())));
    }
    Ok(options)
}

fn clear(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// A root, open: all paths given to it are taken to be inside.
pub struct Root {
    fd: OwnedFd,
}

impl Root {
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { fd: File::open(path)?.into() })
    }

    /// Is this what was found at the root itself?
    pub fn is(&self, found: &FileStat) -> io::Result<bool> {
        let root = fstat(&self.fd)?;
        Ok((root.st_dev, root.st_ino) == (found.st_dev, found.st_ino))
    }

    fn inside(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        openat2(&self.fd, path, how)
    }

    /// The text of a file; empty when there is none.
    pub fn read_text(&self, path: &str) -> String {
        // Without O_NONBLOCK a FIFO that an image calls /etc/passwd would hold the start for ever.
        let Ok(fd) = self.inside(Path::new(path), OFlag::O_RDONLY | OFlag::O_NONBLOCK) else { return String::new() };
        let mut bytes = Vec::new();
        let _ = File::from(fd).take(MAX_LOOKUP_BYTES).read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The folder at a path, if it is one.
    pub fn folder(&self, path: &Path) -> nix::Result<OwnedFd> {
        self.inside(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
    }

    /// Where the kernel's own file systems go, the image has folders or nothing: as runc, nothing is mounted through a link.
    /// Answers what stands in the way, if something does.
    pub fn in_the_kernels_way(&self) -> Option<String> {
        let folders = ["/proc", "/sys", "/dev"].into_iter();
        let mut wrong = folders.filter(|folder| {
            let found = self.inside(Path::new(folder), OFlag::O_PATH | OFlag::O_NOFOLLOW).and_then(fstat);
            let kind = |found: FileStat| SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT;
            found.is_ok_and(|found| kind(found) != SFlag::S_IFDIR)
        });
        wrong.next().map(|folder| format!("{folder} of the image is not a folder: the kernel's own goes there"))
    }

    /// Opens a folder, making it and its parents when they are absent. A link to what is absent is followed: what it
    /// leads to is made, inside the root as ever.
    pub fn make_folder(&self, path: &Path) -> io::Result<OwnedFd> {
        self.make_folder_through(path, MAX_LINKS)
    }

    fn make_folder_through(&self, path: &Path, links: usize) -> io::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let mut so_far = PathBuf::from("/");
        let mut here = self.inside(&so_far, flags)?;
        for part in path.components() {
            let name = match part {
                // In a link's target only; above the root is the root.
                Component::ParentDir => "..".as_ref(),
                Component::Normal(name) => name,
                Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
            };
            let parent = so_far.clone();
            so_far.push(name);
            here = match self.inside(&so_far, flags) {
                Err(nix::Error::ENOENT) => match mkdirat(&here, name, Mode::from_bits_truncate(0o755)) {
                    // A link that leads nowhere yet.
                    Err(nix::Error::EEXIST) if links > 0 => {
                        let target = nix::fcntl::readlinkat(&here, name)?;
                        self.make_folder_through(&parent.join(target), links - 1)?
                    }
                    made => {
                        made?;
                        self.inside(&so_far, flags)?
                    }
                },
                other => other?,
            };
        }
        Ok(here)
    }

    /// Puts a file there, in place of whatever file or link stood there.
    pub fn write_file(&self, path: &str, content: &[u8], mode: u32) -> io::Result<()> {
        let path = Path::new(path);
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::other(format!("{} names no file", path.display())));
        };
        let folder = self.make_folder(folder)?;
        match unlinkat(&folder, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(nix::Error::ENOENT) => {}
            Err(e) => return Err(e.into()),
        }
        // `name` is one component, so O_EXCL and O_NOFOLLOW leave nothing to resolve.
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::openat(&folder, name, flags, Mode::from_bits_truncate(0o600))?;
        fchmod(fd.as_fd(), Mode::from_bits_truncate(mode & 0o7777))?;
        File::from(fd).write_all(content)
    }
}

/// Puts in place what the platform adds to an image.
pub fn write_files(root: &Root, spec: &Spec) -> Result<(), Unwritten> {
    let named = |path: &str| {
        let path = path.to_owned();
        move |e: io::Error| Unwritten::new(&path, &e)
    };
    let write = |path: &str, text: &str| match text.is_empty() {
        true => Ok(()),
        false => root.write_file(path, text.as_bytes(), 0o644).map_err(named(path)),
    };
    write("/etc/hostname", &format!("{}\n", spec.hostname))?;
    write("/etc/resolv.conf", &spec.resolv_conf)?;
    write("/etc/hosts", &spec.hosts)?;
    for file in &spec.files {
        root.write_file(&file.guest_path, &file.content, file.mode).map_err(named(&file.guest_path))?;
    }
    Ok(())
}

/// A file that could not be written, and whose fault it is: what stands in its way may be the image's, or its owner's.
pub struct Unwritten {
    pub owners_fault: bool,
    pub reason: String,
}

impl Unwritten {
    fn new(path: &str, error: &io::Error) -> Self {
        let (owners_fault, why) = match error.raw_os_error() {
            Some(libc::EISDIR) => (true, "the image has a folder there".to_owned()),
            Some(libc::ENOTDIR) => (true, "the image has a file where its folder would be".to_owned()),
            // A volume that is mounted so: its owner asked for a file in it, and for no writing to it.
            Some(libc::EROFS) => (true, "it lies in a volume that is read-only".to_owned()),
            Some(libc::ELOOP | libc::ENAMETOOLONG | libc::EEXIST) => (true, error.to_string()),
            _ => (false, error.to_string()),
        };
        Self { owners_fault, reason: format!("cannot write {path} into the Machine: {why}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_in_a_root_do_not_lead_out_of_it() {
        let outside = tempfile::tempdir().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let link = |target: &Path, name: &str| std::os::unix::fs::symlink(target, folder.path().join(name)).unwrap();
        fs::create_dir(folder.path().join("real")).unwrap();
        link(outside.path(), "absolute");
        link(Path::new("../../../../../../.."), "up");
        link(Path::new("/real"), "inner");
        fs::write(outside.path().join("victim"), "old").unwrap();
        std::os::unix::fs::symlink(outside.path().join("victim"), folder.path().join("real/victim")).unwrap();

        let root = Root::open(folder.path()).unwrap();
        // The folder is not there inside, so it is made: inside.
        root.write_file("/absolute/x", b"new", 0o644).unwrap();
        assert!(!outside.path().join("x").exists());
        assert!(folder.path().join(outside.path().strip_prefix("/").unwrap()).join("x").exists());
        link(Path::new("circle"), "circle");
        assert!(root.write_file("/circle/x", b"new", 0o644).is_err());
        link(Path::new("../none/../made"), "dangling");
        root.write_file("/dangling/x", b"new", 0o644).unwrap();
        assert!(folder.path().join("made/x").exists());
        root.write_file("/up/tmp-of-root/x", b"new", 0o644).unwrap();
        assert!(folder.path().join("tmp-of-root/x").exists());
        root.write_file("/inner/deep/y", b"new", 0o640).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("real/deep/y")).unwrap(), "new");
        root.write_file("/real/victim", b"new", 0o644).unwrap();
        assert_eq!(fs::read_to_string(outside.path().join("victim")).unwrap(), "old");
        assert_eq!(root.read_text("/inner/deep/y"), "new");
        assert_eq!(root.read_text("/absolute/victim"), "");
    }
}
