//! One more process in the container, beside the Machine's own: how it is made, and whether its program could be
//! executed. Who attends it afterwards is not its business.

use godwit_driver::container::layout::Order;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec as OciSpec;
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use crate::builder::identify;
use crate::entry::{Entry, MAX_WORD_BYTES, Word, explain, wait_for};
use crate::error::{BuildError, chain};
use crate::filter::Filter;
use crate::root::Root;
use crate::state_dir::StateDir;
use crate::user::Identity;

/// What to run.
pub struct Command<'a> {
    pub argv: &'a [String],
    /// On top of the Machine's environment.
    pub env: &'a [(String, String)],
    /// The main process's user when absent.
    pub user: Option<&'a str>,
    /// Its stdin, stdout and stderr are one terminal, which becomes its controlling one.
    pub terminal: bool,
}

/// Makes the command's process, with these as its stdin, stdout and stderr. It leads a session of its own. What becomes
/// of its program is told on `telling`.
pub fn enter(
    order: &Order,
    init_pid: i32,
    command: &Command,
    [stdin, stdout, stderr]: [OwnedFd; 3],
    telling: OwnedFd,
) -> Result<i32, BuildError> {
    let refused = |what: &'static str| move |reason: String| BuildError::Host { what, reason };
    let state = StateDir::new(order);
    let spec = OciSpec::load(state.configuration()).map_err(|e| refused("cannot read the configuration")(chain(&e)))?;
    let process = spec.process().as_ref();
    let user = command.user.unwrap_or(&order.spec.process.user);
    let root = Root::open(Path::new(&format!("/proc/{init_pid}/root")))
        .map_err(|e| refused("cannot look into the root")(e.to_string()))?;
    let identity = identify(&root, user)?;
    for end in [&stdout, &stderr] {
        // A terminal's group stays that of terminals.
        let gid = (!command.terminal).then(|| identity.gid.into());
        let _ = nix::unistd::fchown(end, Some(identity.uid.into()), gid);
    }
    let env = environment(process.and_then(|p| p.env().as_deref()).unwrap_or(&[]), command, &identity);
    let filter =
        Filter::kept_in(&state.shared()).map_err(|e| refused("cannot make the system call filter")(e.to_string()))?;
    let mut entry = Entry::new(None, command.argv, &env, telling.as_raw_fd(), filter)
        .map_err(|e| refused("cannot prepare the command")(e.to_string()))?;
    entry.terminal = command.terminal;
    let builder = ContainerBuilder::new(order.spec.machine.clone(), SyscallType::default())
        .with_executor(entry)
        .with_stdin(stdin)
        .with_stdout(stdout)
        .with_stderr(stderr)
        .with_root_path(&state.dir)
        .map_err(|e| refused("cannot use the state folder")(chain(&e)))?
        .as_tenant()
        .with_container_args(command.argv.to_vec())
        .with_cwd(process.map(|p| p.cwd().clone()))
        .with_user(Some(identity.uid))
        .with_group(Some(identity.gid))
        .with_additional_gids(identity.additional_gids)
        .with_no_new_privs(false)
        .with_detach(false)
        .as_sibling(false);
    let pid = builder.build().map_err(|e| refused("cannot enter the container")(chain(&e)))?;
    Ok(pid.as_raw())
}

/// The container's environment, with the command's on top.
fn environment(base: &[String], command: &Command, identity: &Identity) -> Vec<String> {
    let given = |entry: &String| command.env.iter().any(|(name, _)| entry.split('=').next() == Some(name));
    let mut env: Vec<String> = base.iter().filter(|entry| !given(entry)).cloned().collect();
    if command.user.is_some() && !command.env.iter().any(|(name, _)| name == "HOME") {
        env.retain(|entry| !entry.starts_with("HOME="));
        env.push(format!("HOME={}", identity.home));
    }
    env.extend(command.env.iter().map(|(name, value)| format!("{name}={value}")));
    env
}

/// Waits until the program runs. One that could not be executed is reaped: its exit code and the reason, as a shell
/// would tell them.
pub fn not_executed(told: &OwnedFd, pid: i32, program: &str) -> io::Result<Option<(i32, String)>> {
    let mut word = [0; MAX_WORD_BYTES];
    loop {
        match nix::unistd::read(told, &mut word) {
            // The socket closes when the command has been executed.
            Ok(0) => return Ok(None),
            Ok(length) => {
                if let Some(Word::Failed(errno, path)) = Word::decode(&word[..length]) {
                    let _ = wait_for(pid);
                    return Ok(Some(explain(errno, program, &path)));
                }
            }
            Err(nix::Error::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// To the command and what it started in its group.
pub fn kill_group(pid: i32, signal: i32) {
    let Ok(signal) = Signal::try_from(signal) else { return };
    for target in [-pid, pid] {
        let _ = nix::sys::signal::kill(Pid::from_raw(target), signal);
    }
}
