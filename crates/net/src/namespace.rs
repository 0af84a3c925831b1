//! Owns network namespaces as files: making one, entering one, removing one.
//! Must not know what is inside: links and addresses are `netlink.rs`.
//!
//! `setns` and `unshare` change the calling *thread*. Nothing here ever does that
//! on a thread of the async runtime: [`on_thread`] starts a thread for one closure
//! and lets it end, so no later work can find itself in a foreign namespace.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::statfs;
use tokio::sync::oneshot;

use crate::Error;

/// `NSFS_MAGIC` of linux/magic.h: what a mounted namespace file reports.
const NSFS_MAGIC: i64 = 0x6e73_6673;
/// The calling thread's own network namespace.
const OWN: &str = "/proc/thread-self/ns/net";
/// A crash between two mounts leaves one on top of the other; never many.
const STACKED_MOUNTS_MAX: usize = 16;

/// Settings of a Machine's fresh namespace, as users of containers expect them:
/// low ports and ICMP echo sockets need no privilege inside.
const MACHINE_SETTINGS: [(&str, &str); 2] =
    [("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"), ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")];

/// Where [`on_thread`] runs its closure.
#[derive(Clone, Copy)]
pub(crate) enum Entry<'a> {
    /// A namespace made for this thread.
    Fresh,
    /// An existing one.
    Into(&'a File),
}

/// Runs `work` on a thread of its own inside a network namespace.
pub(crate) async fn on_thread<T: Send + 'static>(
    entry: Entry<'_>,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (answer, wait) = oneshot::channel();
    start_thread(entry, move |entered| {
        // A caller that has gone away needs no answer.
        let _ = answer.send(entered.map(|()| work()));
    })?;
    wait.await.unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace ended early")))
}

/// Starts a thread that enters a namespace, tells `work` whether it could, and ends with it.
pub(crate) fn start_thread(entry: Entry<'_>, work: impl FnOnce(io::Result<()>) + Send + 'static) -> io::Result<()> {
    let into = match entry {
        Entry::Fresh => None,
        Entry::Into(file) => Some(file.try_clone()?),
    };
    std::thread::Builder::new().name("netns".to_owned()).spawn(move || {
        let entered = match into {
            None => unshare(CloneFlags::CLONE_NEWNET),
            Some(file) => setns(file, CloneFlags::CLONE_NEWNET),
        };
        work(entered.map_err(io::Error::from));
    })?;
    Ok(())
}

/// The namespace of the calling thread, to come back to later.
pub(crate) fn own() -> Result<File, Error> {
    File::open(OWN).map_err(|source| io_error("open", Path::new(OWN), source))
}

/// Opens the namespace at `path`; makes it when there is none, or when a crash
/// left only the file that it is mounted on.
pub(crate) async fn ensure(path: &Path) -> Result<File, Error> {
    if !is_mounted(path)? {
        OpenOptions::new().create(true).append(true).open(path).map_err(|source| io_error("create", path, source))?;
        let target = path.to_owned();
        on_thread(Entry::Fresh, move || {
            for (file, value) in MACHINE_SETTINGS {
                // Older kernels lack one or the other; neither is worth a failed start.
                if let Err(error) = fs::write(file, value) {
                    tracing::debug!(file, %error, "network setting not applied");
                }
            }
            mount(Some(OWN), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        })
        .await
        .and_then(|mounted| mounted.map_err(io::Error::from))
        .map_err(|source| io_error("mount a network namespace on", path, source))?;
    }
    File::open(path).map_err(|source| io_error("open", path, source))
}

/// Unmounts and deletes exactly this file; nothing there is no error.
///
/// Deleting the file also detaches the copies of the mount that other mount
/// namespaces made when they were born (kernel: `detach_mounts` in unlink), so
/// none of them keeps the namespace alive.
///
/// The kernel waits for readers of its mount table, some 20 ms; a worker of the
/// async runtime must not.
pub(crate) async fn remove(path: PathBuf) -> Result<(), Error> {
    let done = tokio::task::spawn_blocking(move || remove_now(&path)).await;
    done.unwrap_or_else(|ended| Err(io_error("remove", Path::new("a namespace"), io::Error::other(ended))))
}

fn remove_now(path: &Path) -> Result<(), Error> {
    for _ in 0..STACKED_MOUNTS_MAX {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(errno) => return Err(io_error("unmount", path, errno.into())),
        }
    }
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(io_error("delete", path, source)),
        _ => Ok(()),
    }
}

/// True when a namespace is mounted on `path`.
pub(crate) fn is_mounted(path: &Path) -> Result<bool, Error> {
    match statfs(path) {
        Ok(stat) => Ok(stat.filesystem_type().0 == NSFS_MAGIC),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(io_error("examine", path, errno.into())),
    }
}

/// Makes `dir` a private mount of itself. A namespace mounted inside is then never
/// copied into other mount namespaces at the moment of mounting, so it dies with
/// the mount namespace of the host that made it.
pub(crate) fn ensure_private_dir(dir: &Path) -> Result<PathBuf, Error> {
    fs::create_dir_all(dir).map_err(|source| io_error("create", dir, source))?;
    let dir = fs::canonicalize(dir).map_err(|source| io_error("resolve", dir, source))?;
    let bind = |source: Option<&Path>, flags| {
        mount(source, &dir, None::<&str>, flags, None::<&str>)
            .map_err(|errno| io_error("make a private mount of", &dir, errno.into()))
    };
    match propagation(&dir)? {
        Some(Propagation::Private) => {}
        Some(Propagation::Joined) => bind(None, MsFlags::MS_PRIVATE)?,
        None => {
            bind(Some(&dir), MsFlags::MS_BIND)?;
            bind(None, MsFlags::MS_PRIVATE)?;
        }
    }
    Ok(dir)
}

/// Undoes [`ensure_private_dir`], and deletes the folder when it is empty.
pub(crate) fn remove_private_dir(dir: &Path) -> Result<(), Error> {
    let dir = match fs::canonicalize(dir) {
        Ok(dir) => dir,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(io_error("resolve", dir, source)),
    };
    for _ in 0..STACKED_MOUNTS_MAX {
        if propagation(&dir)?.is_none() {
            break;
        }
        umount2(&dir, MntFlags::MNT_DETACH).map_err(|errno| io_error("unmount", &dir, errno.into()))?;
    }
    match fs::remove_dir(&dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(io_error("delete", &dir, source)),
        _ => Ok(()),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Propagation {
    Private,
    Joined,
}

/// How the topmost mount on exactly `dir` propagates; `None` when `dir` is no mount point.
fn propagation(dir: &Path) -> Result<Option<Propagation>, Error> {
    const TABLE: &str = "/proc/thread-self/mountinfo";
    let table = fs::read_to_string(TABLE).map_err(|source| io_error("read", Path::new(TABLE), source))?;
    Ok(table
        .lines()
        .filter_map(|line| {
            // proc(5): id parent major:minor root mountpoint options optional… - fs …
            let mut fields = line.split(' ');
            let point = unescape(fields.nth(4)?);
            let joined =
                fields.skip(1).take_while(|f| *f != "-").any(|f| f.starts_with("shared:") || f.starts_with("master:"));
            (point.as_bytes() == dir.as_os_str().as_encoded_bytes()).then_some(if joined {
                Propagation::Joined
            } else {
                Propagation::Private
            })
        })
        .next_back())
}

/// proc(5) writes blank, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (from, to)| text.replace(from, to))
}

pub(crate) fn io_error(doing: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io { doing, path: path.to_owned(), source }
}
