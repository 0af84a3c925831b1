//! Files into and out of a Machine, as tar archives: the image needs no tar. It runs in a process that goes inside first, so
//! that no link leads out: a worker that enters the Machine's mount namespace and root, where volumes are seen as the
//! Machine sees them, or one that has only its volumes (`stopped`).
//!
//! The process is not confined as the Machine is: so it reads the content of regular files only (a device node that
//! somebody inside made is never opened), makes files, folders and links only, and executes and loads nothing.

use godwit_api::error::Status;
use godwit_api::session::{Exit, Failed, Frame, MAX_DATA_BYTES, encode_data};
use nix::fcntl::{OFlag, open, openat};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::statfs::{FsType, fstatfs};
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chroot, lchown};
use std::os::unix::net::UnixStream;
use std::path::{Component, Path, PathBuf};
use tar::{Archive, Builder, EntryType, Header, HeaderMode};

use crate::error::chain;

/// The kernel's own file systems are not copied: proc, sysfs, cgroup, cgroup2, devpts, mqueue.
const KERNELS_OWN: [i64; 6] = [0x9fa0, 0x6265_6572, 0x0027_e0eb, 0x6367_7270, 0x1cd1, 0x1980_0202];

/// Where an archive goes.
pub struct Target<'a> {
    pub path: &'a str,
    pub into_folder: bool,
    pub content_only: bool,
    pub keep_owners: bool,
}

/// Sends `path` as a tar archive, and tells how it went. `inside` goes inside for good, and answers our own folder of
/// descriptors (`/proc/self/fd`), which a Machine's /proc does not show.
pub fn out(inside: impl FnOnce() -> io::Result<File>, path: &str, name: Option<&str>, client: &UnixStream) {
    let copying = || -> io::Result<()> {
        let descriptors = inside()?;
        let path = Path::new(path);
        let found = fs::symlink_metadata(path).map_err(named(path))?;
        let last = path.file_name().filter(|_| !ends_in_dot(path)).map(PathBuf::from).unwrap_or_default();
        let name = name.map_or(last, PathBuf::from);
        let mut archive = Builder::new(Output(client));
        pack(&mut archive, &descriptors, path, &name, &found)?;
        archive.into_inner()?.flush()
    };
    finish(client, copying());
}

/// Unpacks what comes, and tells how it went. `settled` comes before success is told.
pub fn into(
    inside: impl FnOnce() -> io::Result<File>,
    target: &Target,
    client: &UnixStream,
    settled: impl FnOnce() -> io::Result<()>,
) {
    let copying = || -> io::Result<()> {
        inside()?;
        let mut input = Input { client, piece: Vec::new(), at: 0, pending: Vec::new(), ended: false };
        unpack(target, &mut input)?;
        // The padding behind the archive's end.
        io::copy(&mut input, &mut io::sink())?;
        settled()
    };
    finish(client, copying());
}

fn finish(client: &UnixStream, outcome: io::Result<()>) {
    let last = match outcome {
        Ok(()) => Frame::Exit(Exit { code: Some(0), ..Exit::default() }),
        Err(error) => {
            let status = if error.kind() == io::ErrorKind::NotFound { Status::NotFound } else { Status::Unknown };
            Frame::Failed(Failed { error: error.to_string(), status })
        }
    };
    let mut bytes = Vec::new();
    last.encode(&mut bytes);
    let mut client = client;
    // A client that has gone needs no answer.
    let _ = client.write_all(&bytes);
}

fn named(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    let path = path.display().to_string();
    move |e| match e.kind() {
        io::ErrorKind::NotFound => io::Error::new(e.kind(), format!("{path} does not exist in the Machine")),
        // The archive's reader says what it was about, and only its cause says why.
        kind => io::Error::new(kind, format!("{path}: {}", chain(&e))),
    }
}

/// Goes inside of a running Machine for good.
pub fn enter(init_pid: i32) -> io::Result<File> {
    let descriptors = File::open("/proc/self/fd")?;
    let root = File::open(format!("/proc/{init_pid}/root"))?;
    let namespace = File::open(format!("/proc/{init_pid}/ns/mnt"))?;
    setns(namespace, CloneFlags::CLONE_NEWNS)?;
    nix::unistd::fchdir(&root)?;
    chroot(".")?;
    std::env::set_current_dir("/")?;
    nix::sys::stat::umask(Mode::empty());
    Ok(descriptors)
}

fn ends_in_dot(path: &Path) -> bool {
    let text = path.as_os_str().as_encoded_bytes();
    text.ends_with(b"/.") || matches!(path.components().next_back(), Some(Component::ParentDir))
}

/// Packs a tree, parents before what is in them.
fn pack<W: Write>(
    archive: &mut Builder<W>,
    descriptors: &File,
    path: &Path,
    name: &Path,
    found: &Metadata,
) -> io::Result<()> {
    let mut waiting = vec![(path.to_owned(), name.to_owned(), found.clone())];
    while let Some((path, name, found)) = waiting.pop() {
        pack_one(archive, descriptors, &path, &name, &found).map_err(named(&path))?;
        if !found.is_dir() || is_kernels_own(&path) {
            continue;
        }
        for entry in fs::read_dir(&path).map_err(named(&path))? {
            let entry = entry.map_err(named(&path))?;
            // What goes while the folder is read is gone.
            if let Ok(found) = fs::symlink_metadata(entry.path()) {
                waiting.push((entry.path(), name.join(entry.file_name()), found));
            }
        }
    }
    Ok(())
}

fn is_kernels_own(folder: &Path) -> bool {
    let kind = File::open(folder).ok().and_then(|folder| fstatfs(folder).ok()).map(|found| found.filesystem_type());
    kind.is_some_and(|kind| KERNELS_OWN.into_iter().any(|own| kind == FsType(own)))
}

fn pack_one<W: Write>(
    archive: &mut Builder<W>,
    descriptors: &File,
    path: &Path,
    name: &Path,
    found: &Metadata,
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_metadata_in_mode(found, HeaderMode::Complete);
    if found.is_symlink() {
        header.set_size(0);
        return archive.append_link(&mut header, name, fs::read_link(path)?);
    }
    if found.is_dir() {
        // The folder itself has no name when its content alone was asked for.
        return match name.as_os_str().is_empty() {
            true => Ok(()),
            false => archive.append_data(&mut header, name, io::empty()),
        };
    }
    if !found.is_file() {
        // Sockets, pipes and devices are not content.
        return Ok(());
    }
    let file = open_regular(descriptors, path)?;
    let size = file.metadata()?.len();
    header.set_size(size);
    let name = if name.as_os_str().is_empty() { path.file_name().map(Path::new).unwrap_or(name) } else { name };
    archive.append_data(&mut header, name, Exactly { file, left: size })
}

/// Opens a file only after the kernel has said of this very file that it is a regular one.
fn open_regular(descriptors: &File, path: &Path) -> io::Result<File> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let place = open(path, flags, Mode::empty())?;
    if SFlag::from_bits_truncate(fstat(&place)?.st_mode & SFlag::S_IFMT.bits()) != SFlag::S_IFREG {
        return Err(io::Error::other("it is not a regular file any more"));
    }
    let number = place.as_raw_fd().to_string();
    Ok(openat(descriptors, number.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?.into())
}

/// As many bytes of a file as were announced, also when it grows meanwhile. A file that shrinks is an error: what would
/// fill the gap was never in it.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read(&mut buffer[..wanted])?;
        if read == 0 && wanted > 0 {
            return Err(io::Error::other("it became shorter while it was read; try again"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

fn unpack(target: &Target, input: &mut Input) -> io::Result<()> {
    let path = Path::new(target.path);
    let is_folder = fs::metadata(path).is_ok_and(|found| found.is_dir());
    if !is_folder && (target.into_folder || target.path.ends_with('/')) {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("{} is not a folder in the Machine", target.path)));
    }
    // Into the folder; or beside it, under its name.
    let (base, rename) = match (is_folder, path.parent(), path.file_name()) {
        (true, _, _) => (path, None),
        (false, Some(parent), Some(name)) => (parent, Some(name)),
        _ => return Err(io::Error::other(format!("{} names no file", target.path))),
    };
    if !fs::metadata(base).map_err(named(base))?.is_dir() {
        return Err(io::Error::other(format!("{} is not a folder in the Machine", base.display())));
    }
    let place = |name: &Path| -> io::Result<Option<PathBuf>> {
        let mut parts = Vec::new();
        for part in name.components() {
            match part {
                Component::Normal(part) => parts.push(part),
                Component::CurDir | Component::RootDir => {}
                _ => return Err(io::Error::other(format!("{}: `..` has no place in an archive", name.display()))),
            }
        }
        match (parts.first_mut(), rename) {
            (Some(first), Some(rename)) => *first = rename,
            (Some(_), None) if target.content_only => {
                parts.remove(0);
            }
            _ => {}
        }
        Ok((!parts.is_empty()).then(|| parts.iter().fold(base.to_owned(), |path, part| path.join(part))))
    };
    let mut archive = Archive::new(input);
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        let Some(to) = place(&name)? else { continue };
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(named(parent))?;
        }
        if entry.header().entry_type() == EntryType::Link {
            let Some(from) = entry.link_name()? else { continue };
            let Some(from) = place(&from)? else { continue };
            remove_file(&to)?;
            fs::hard_link(from, &to).map_err(named(&to))?;
            continue;
        }
        unpack_one(&mut entry, &to, target.keep_owners).map_err(named(&to))?;
    }
    Ok(())
}

fn unpack_one<R: Read>(entry: &mut tar::Entry<R>, to: &Path, keep_owners: bool) -> io::Result<()> {
    let header = entry.header();
    let (kind, mode) = (header.entry_type(), header.mode()?);
    let (uid, gid) = (header.uid()?, header.gid()?);
    match kind {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse | EntryType::Symlink => {
            if fs::symlink_metadata(to).is_ok_and(|found| found.is_dir()) {
                return Err(io::Error::other("a folder stands there, and a file does not replace it"));
            }
            entry.unpack(to)?;
        }
        EntryType::Directory => {
            if !fs::metadata(to).is_ok_and(|found| found.is_dir()) {
                entry.unpack(to)?;
            }
        }
        // Devices, pipes and what nobody knows.
        _ => return Ok(()),
    }
    if keep_owners {
        let id = |id: u64| u32::try_from(id).map_err(|_| io::Error::other("an owner's number is too large"));
        lchown(to, Some(id(uid)?), Some(id(gid)?))?;
        if kind != EntryType::Symlink {
            // A change of owner takes the set-id bits away.
            fs::set_permissions(to, fs::Permissions::from_mode(mode & 0o7777))?;
        }
    }
    Ok(())
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// What is written becomes frames of stdout.
struct Output<'a>(&'a UnixStream);

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(MAX_DATA_BYTES)];
        let mut frame = Vec::with_capacity(piece.len() + 16);
        encode_data(Frame::Stdout, piece, &mut frame);
        self.0.write_all(&frame)?;
        Ok(piece.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The bytes of stdin's frames, until their end.
struct Input<'a> {
    client: &'a UnixStream,
    piece: Vec<u8>,
    at: usize,
    pending: Vec<u8>,
    ended: bool,
}

impl Input<'_> {
    fn next(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16 << 10];
        loop {
            match Frame::decode(&self.pending).map_err(io::Error::other)? {
                Some((frame, taken)) => {
                    self.pending.drain(..taken);
                    match frame {
                        Frame::Stdin(bytes) => {
                            let mut credit = Vec::new();
                            Frame::Taken(bytes.len() as u32).encode(&mut credit);
                            self.client.write_all(&credit)?;
                            (self.piece, self.at) = (bytes, 0);
                            return Ok(());
                        }
                        Frame::StdinEnd => {
                            self.ended = true;
                            return Ok(());
                        }
                        _ => {}
                    }
                }
                None => match self.client.read(&mut chunk)? {
                    // An archive without its end is not whole.
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    read => self.pending.extend_from_slice(&chunk[..read]),
                },
            }
        }
    }
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() && !self.ended {
            self.next()?;
        }
        let left = &self.piece[self.at..];
        let read = left.len().min(buffer.len());
        buffer[..read].copy_from_slice(&left[..read]);
        self.at += read;
        Ok(read)
    }
}
