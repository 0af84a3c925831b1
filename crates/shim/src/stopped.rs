//! Copies into and out of the volumes of a Machine that is stopped, in a process of its own for one copy: it makes itself a
//! world in which there is nothing but the volumes, at their places, and copies there. Nothing leads out of it, because
//! nothing else is mounted in it; the kernel unmounts all with the process.
//!
//! Nothing on a volume is executed, no device node on it is opened, and no file of the host is in sight. As in a start, the
//! kernel reads a file system that its user may have forged (docs/decisions/0011).

use godwit_driver::protocol::{self, Reply, VolumesOrder};
use godwit_driver::{SessionRequest, VolumeFs, VolumeMount};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use crate::error::BuildError;
use crate::root::Root;
use crate::session::{begin, linger};
use crate::{copy, volumes};

/// The order follows on the heels of our start.
const ORDER_TIMEOUT: Duration = Duration::from_secs(10);
/// What the world holds besides its volumes: the folders that they are mounted on.
const WORLD_OPTIONS: &str = "mode=0755,size=1m,nr_inodes=1k";

/// The whole life of such a process. Its socket is its standard input.
pub fn serve() -> io::Result<()> {
    let mut client = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let order = order(&mut client)?;
    match prepare(&order) {
        Ok(world) => copy(&order, world, client),
        Err((reason, user_fault)) => {
            client.write_all(&protocol::encode(&Reply::Refused { reason, user_fault, busy: false })?)
        }
    }
}

fn order(client: &mut UnixStream) -> io::Result<VolumesOrder> {
    client.set_read_timeout(Some(ORDER_TIMEOUT))?;
    let (mut buffer, mut chunk) = (Vec::new(), [0; 4 << 10]);
    loop {
        if let Some(order) = protocol::decode(&mut buffer)? {
            client.set_read_timeout(None)?;
            // Nobody speaks before he is answered.
            return Ok(order);
        }
        match client.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => buffer.extend_from_slice(&chunk[..read]),
        }
    }
}

/// What is left of the world before: our own descriptors, by number.
struct World {
    descriptors: File,
    /// The root folders of the volumes, to write to disk what came.
    roots: Vec<OwnedFd>,
}

/// Goes there for good. An error says whether the caller is to blame.
fn prepare(order: &VolumesOrder) -> Result<World, (String, bool)> {
    let files: Vec<VolumeMount> = order.volumes.iter().filter(|of| of.fstype == VolumeFs::Ext4).cloned().collect();
    let wanted = order.request.copies().ok_or_else(|| ("it is not running".to_owned(), true))?;
    let wanted = plain(wanted);
    if !files.iter().any(|volume| wanted.starts_with(plain(&volume.guest_path))) {
        let places: Vec<&str> = files.iter().map(|volume| volume.guest_path.as_str()).collect();
        return Err((out_of_reach(&wanted, &places), true));
    }
    let host = |error: io::Error| (error.to_string(), false);
    let place = world().map_err(host)?;
    let root = Root::open(&place).map_err(host)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    volumes::attach(&root, &files, (0, 0), flags).map_err(|error| match error {
        BuildError::User(reason) => (reason, true),
        error => (error.to_string(), false),
    })?;
    let roots = files.iter().map(|volume| root.folder(Path::new(&volume.guest_path))).collect::<Result<Vec<_>, _>>();
    let roots = roots.map_err(|error| host(error.into()))?;
    drop(root);
    let descriptors = enter(&place).map_err(host)?;
    Ok(World { descriptors, roots })
}

fn out_of_reach(wanted: &Path, places: &[&str]) -> String {
    let wanted = wanted.display();
    match places {
        [] => format!("{wanted} is out of reach while it is stopped, and it has no volume with files; start it first"),
        places => {
            let places = places.join(", ");
            format!(
                "{wanted} is out of reach: while it is stopped, only its volumes can be copied to and from ({places}); start it for the rest"
            )
        }
    }
}

/// As it is written, without dots. One that climbs is looked at where it leads: below a volume there is nothing above it
/// but empty folders.
fn plain(path: impl AsRef<Path>) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for part in path.as_ref().components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => drop(plain.pop()),
            _ => {}
        }
    }
    plain
}

/// An empty file system over our working folder, in a namespace that nobody else is in.
fn world() -> io::Result<PathBuf> {
    let place = std::env::current_dir()?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("volumes"), &place, Some("tmpfs"), flags, Some(WORLD_OPTIONS))?;
    Ok(place)
}

/// The world becomes the root, and what was the root is gone: there is nothing left to be led out to.
fn enter(place: &Path) -> io::Result<File> {
    let descriptors = File::open("/proc/self/fd")?;
    // What is not on a volume cannot be written.
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(None::<&str>, place, None::<&str>, flags, None::<&str>)?;
    std::env::set_current_dir(place)?;
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")?;
    nix::sys::stat::umask(Mode::empty());
    Ok(descriptors)
}

fn copy(order: &VolumesOrder, world: World, mut client: UnixStream) -> io::Result<()> {
    begin(&mut client)?;
    let World { descriptors, roots } = world;
    let inside = || Ok(descriptors);
    match &order.request {
        SessionRequest::CopyOut { path, name } => copy::out(inside, path, name.as_deref(), &client),
        SessionRequest::CopyIn { path, into_folder, content_only, keep_owners } => {
            let (into_folder, content_only, keep_owners) = (*into_folder, *content_only, *keep_owners);
            let target = copy::Target { path, into_folder, content_only, keep_owners };
            // No process has it in its hands: what is told to be there is on disk.
            let settled = || roots.iter().try_for_each(|root| nix::unistd::syncfs(root).map_err(io::Error::from));
            copy::into(inside, &target, &client, settled);
        }
        SessionRequest::Exec { .. } => {}
    }
    linger(&client);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_below_a_volume_is_within_reach() {
        let volume = |path: &str| VolumeMount {
            device: "/dev/nothing".into(),
            guest_path: path.into(),
            fstype: VolumeFs::Ext4,
            read_only: false,
            uid: None,
            gid: None,
        };
        let refused = |path: &str| {
            let request = SessionRequest::CopyOut { path: path.into(), name: None };
            let volumes = vec![volume("/data"), volume("/var/lib/pg/")];
            let (reason, user_fault) = prepare(&VolumesOrder { volumes, request }).err().expect("a refusal");
            assert!(user_fault, "{path}: {reason}");
            reason
        };
        for path in ["/", "/etc/passwd", "/database", "/data/../etc", "/var/lib/pg/..", "/data/../../data2"] {
            assert!(
                refused(path).contains("only its volumes can be copied to and from (/data, /var/lib/pg/)"),
                "{path}"
            );
        }
        assert_eq!(plain("/data/./a//b/../c"), Path::new("/data/a/c"));
        let raw = VolumeMount { fstype: VolumeFs::Raw, ..volume("/dev/disk") };
        let request = SessionRequest::CopyOut { path: "/dev/disk".into(), name: None };
        let (reason, _) = prepare(&VolumesOrder { volumes: vec![raw], request }).err().expect("a refusal");
        assert!(reason.contains("no volume with files"), "{reason}");
    }
}
