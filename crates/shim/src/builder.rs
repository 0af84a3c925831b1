//! Makes the container. Runs in a process of its own, forked from the shim: what libcontainer and the mount namespace
//! cost in memory is gone when it ends, and if it hangs, the shim does not. The container's first process becomes the
//! shim's child, not this one's.

use godwit_driver::cgroup::Cgroups;
use godwit_driver::container::layout::{Layout, Order};
use godwit_driver::container::monotonic_ns;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::mount::MsFlags;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use crate::entry::{DEFAULT_PATH, Entry};
use crate::error::BuildError;
use crate::filter::Filter;
use crate::oci::{Inside, OPEN_FILES, configuration};
use crate::root::{Root, mount_overlay, write_files};
use crate::state_dir::StateDir;
use crate::sys;
use crate::user::{Identity, look_up};
use crate::volumes::attach;

/// Times of the steps, for the shim's log.
pub type Spans = Vec<(&'static str, u64)>;

/// Builds and starts the container; answers the pid of its first process.
pub fn build(
    order: &Order,
    cgroups: &Cgroups,
    stdout: OwnedFd,
    stderr: OwnedFd,
    socket: &OwnedFd,
    heap: sys::HeapMark,
) -> Result<(i32, Spans), BuildError> {
    let mut spans = Spans::new();
    let (spec, layout) = (&order.spec, Layout::new(&order.spec.dir));
    // Without devices where no cgroup says which ones may be opened; see `oci`.
    let root_path =
        mount_overlay(spec, &layout, cgroups.unified()).map_err(BuildError::host("cannot make the root"))?;
    let root = Root::open(&root_path).map_err(BuildError::host("cannot open the root"))?;
    if let Some(fault) = root.in_the_kernels_way() {
        return Err(BuildError::User(fault));
    }
    // As the image has it: a volume may hide who is who.
    let owner = identify(&root, &spec.process.user).map_or((0, 0), |identity| (identity.uid, identity.gid));
    // No MS_NOSUID, as Docker: what is set-uid there makes a process root of its own Machine, and no more.
    let devices = attach(&root, &spec.volumes, owner, MsFlags::empty())?;
    write_files(&root, spec).map_err(|unwritten| match unwritten.owners_fault {
        true => BuildError::User(unwritten.reason),
        false => BuildError::Host { what: "cannot fill the root", reason: unwritten.reason },
    })?;
    let identity = identify(&root, &spec.process.user)?;
    let cwd = if spec.process.cwd.is_empty() { "/" } else { &spec.process.cwd };
    root.make_folder(Path::new(cwd)).map_err(|e| BuildError::User(format!("working folder {cwd}: {e}")))?;
    drop(root);
    for pipe in [&stdout, &stderr] {
        // So that programs of any user may open /dev/stdout and /dev/stderr.
        nix::unistd::fchown(pipe, Some(identity.uid.into()), Some(identity.gid.into()))
            .map_err(BuildError::host("cannot hand over the output"))?;
    }
    spans.push(("root", monotonic_ns()));

    let env = environment(&spec.process.env, &identity);
    let filter = Filter::kept_in(&StateDir::new(order).shared())
        .map_err(BuildError::host("cannot make the system call filter"))?;
    let entry = Entry::new(Some(heap), &spec.process.argv, &env, socket.as_raw_fd(), filter)
        .map_err(BuildError::host("cannot prepare the program"))?;
    let inside = Inside {
        root: &root_path,
        hostname: &spec.hostname,
        argv: &spec.process.argv,
        env: &env,
        cwd,
        identity: &identity,
        netns: spec.netns.as_deref(),
        limits: &spec.limits,
        binds: &spec.binds,
        devices: &devices,
        cgroup_path: &cgroups.container_path(&spec.machine),
        cgroups: &cgroups.shown(&spec.machine),
        unified: cgroups.unified(),
        open_files: open_files(),
        limits_swap: cgroups.limits_swap(),
    };
    let state = StateDir::new(order);
    write_configuration(&state, &inside).map_err(BuildError::host("cannot write the configuration"))?;
    spans.push(("configuration", monotonic_ns()));

    let null = File::open("/dev/null").map_err(BuildError::host("cannot open /dev/null"))?;
    let builder = ContainerBuilder::new(spec.machine.clone(), SyscallType::default())
        .with_executor(entry)
        .with_stdin(null)
        .with_stdout(stdout)
        .with_stderr(stderr)
        .with_root_path(&state.dir)
        .map_err(BuildError::host("cannot use the state folder"))?
        .as_init(state.bundle())
        .with_systemd(false)
        .with_detach(false)
        // Sibling of this process: child of the shim.
        .as_sibling(true);
    let mut container = builder.build().map_err(BuildError::host("cannot make the container"))?;
    spans.push(("create", monotonic_ns()));
    let pid = container.pid().map(|pid| pid.as_raw());
    container.start().map_err(BuildError::host("cannot start the container"))?;
    spans.push(("start", monotonic_ns()));
    let missing = || BuildError::Host { what: "cannot start the container", reason: "it has no process".into() };
    Ok((pid.ok_or_else(missing)?, spans))
}

pub fn identify(root: &Root, user: &str) -> Result<Identity, BuildError> {
    look_up(user, &root.read_text("/etc/passwd"), &root.read_text("/etc/group")).map_err(BuildError::User)
}

/// As many open files as Docker allows, or as this process may allow: without CAP_SYS_RESOURCE no limit can be raised.
fn open_files() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let _ = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES);
    getrlimit(Resource::RLIMIT_NOFILE).map_or(OPEN_FILES, |(_, hard)| hard.min(OPEN_FILES))
}

/// The image's environment, with what every program expects to find in it.
pub fn environment(given: &[(String, String)], identity: &Identity) -> Vec<String> {
    let mut env: Vec<String> = given.iter().map(|(name, value)| format!("{name}={value}")).collect();
    for (name, value) in [("PATH", DEFAULT_PATH), ("HOME", identity.home.as_str())] {
        if !given.iter().any(|(given, _)| given == name) {
            env.push(format!("{name}={value}"));
        }
    }
    env
}

fn write_configuration(state: &StateDir, inside: &Inside) -> io::Result<()> {
    // Left by an instance whose shim was killed: libcontainer refuses a container that exists.
    if state.dir.exists() {
        fs::remove_dir_all(&state.dir)?;
    }
    fs::create_dir_all(state.bundle())?;
    let file = File::create(state.configuration())?;
    serde_json::to_writer(io::BufWriter::new(file), &configuration(inside))?;
    Ok(())
}
