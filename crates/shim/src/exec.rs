//! One more command inside. Each runs under a worker process of its own, forked from the shim, that owns the asking
//! connection: a command that hangs, or a container that cannot be entered, never holds the shim up.

use godwit_driver::container::layout::Order;
use godwit_driver::protocol::{self, Reply};
use godwit_driver::{ExecReply, ExecRequest};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec as OciSpec;
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::wait::WaitStatus;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::builder::{BuildError, StateDir, chain, identify};
use crate::entry::{Entry, MAX_WORD_BYTES, Word, explain, wait_for};
use crate::filter::Filter;
use crate::root::Root;
use crate::sys;
use crate::user::Identity;

/// After the command has ended, how long its output may be held open by what it left running.
const OUTPUT_GRACE_MS: u64 = 200;
/// How long a reply may take to be read.
const REPLY_TIMEOUT_MS: u64 = 10_000;

/// The whole life of a worker.
pub fn serve(order: &Order, init_pid: i32, request: &ExecRequest, client: UnixStream) {
    let reply = match run(order, init_pid, request, &client) {
        Ok(reply) => Reply::Exec { reply },
        Err(BuildError::User(reason)) => Reply::Refused { reason, user_fault: true },
        Err(error) => Reply::Refused { reason: error.to_string(), user_fault: false },
    };
    let sending = || -> io::Result<()> {
        client.set_nonblocking(false)?;
        client.set_write_timeout(Some(Duration::from_millis(REPLY_TIMEOUT_MS)))?;
        (&client).write_all(&protocol::encode(&reply)?)
    };
    if let Err(e) = sending() {
        eprintln!("exec: the answer could not be given: {e}");
    }
}

/// The command's ends of its pipes, and ours.
struct Pipes {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

fn run(order: &Order, init_pid: i32, request: &ExecRequest, client: &UnixStream) -> Result<ExecReply, BuildError> {
    let failed = |e: io::Error| BuildError::Host { what: "cannot run the command", reason: e.to_string() };
    let (stdin, to_stdin) = sys::pipe().map_err(failed)?;
    let (from_stdout, stdout) = sys::pipe().map_err(failed)?;
    let (from_stderr, stderr) = sys::pipe().map_err(failed)?;
    let (told, telling) = sys::pipe_of_words().map_err(failed)?;
    let pid = enter(order, init_pid, request, Pipes { stdin, stdout, stderr }, telling)?;
    // The socket closes when the command has been executed.
    let mut word = [0; MAX_WORD_BYTES];
    loop {
        match nix::unistd::read(&told, &mut word) {
            Ok(0) => break,
            Ok(length) => {
                if let Some(Word::Failed(errno, path)) = Word::decode(&word[..length]) {
                    let _ = wait_for(pid);
                    let (exit_code, reason) = explain(errno, &request.argv[0], &path);
                    // As a shell: the command failed, exec itself did not.
                    let stderr = format!("{reason}\n").into_bytes();
                    let (stdout, signal) = (Vec::new(), None);
                    let exit_code = Some(exit_code);
                    return Ok(ExecReply { exit_code, signal, stdout, stderr, truncated: false, timed_out: false });
                }
            }
            Err(nix::Error::EINTR) => {}
            Err(e) => return Err(failed(e.into())),
        }
    }
    let attended = Attended { pid, to_stdin: Some(to_stdin), from_stdout, from_stderr };
    attended.attend(request, client).map_err(failed)
}

/// Makes the command's process in the container.
fn enter(
    order: &Order,
    init_pid: i32,
    request: &ExecRequest,
    pipes: Pipes,
    telling: OwnedFd,
) -> Result<i32, BuildError> {
    let refused = |what: &'static str| move |reason: String| BuildError::Host { what, reason };
    let state = StateDir::new(order);
    let spec = OciSpec::load(state.configuration()).map_err(|e| refused("cannot read the configuration")(chain(&e)))?;
    let process = spec.process().as_ref();
    let user = request.user.as_deref().unwrap_or(&order.spec.process.user);
    let root = Root::open(Path::new(&format!("/proc/{init_pid}/root")))
        .map_err(|e| refused("cannot look into the root")(e.to_string()))?;
    let identity = identify(&root, user)?;
    for pipe in [&pipes.stdout, &pipes.stderr] {
        let _ = nix::unistd::fchown(pipe, Some(identity.uid.into()), Some(identity.gid.into()));
    }
    let env = environment(process.and_then(|p| p.env().as_deref()).unwrap_or(&[]), request, &identity);
    let filter =
        Filter::kept_in(&state.shared()).map_err(|e| refused("cannot make the system call filter")(e.to_string()))?;
    let entry = Entry::new(None, &request.argv, &env, telling.as_raw_fd(), filter)
        .map_err(|e| refused("cannot prepare the command")(e.to_string()))?;
    let builder = ContainerBuilder::new(order.spec.machine.clone(), SyscallType::default())
        .with_executor(entry)
        .with_stdin(pipes.stdin)
        .with_stdout(pipes.stdout)
        .with_stderr(pipes.stderr)
        .with_root_path(&state.dir)
        .map_err(|e| refused("cannot use the state folder")(chain(&e)))?
        .as_tenant()
        .with_container_args(request.argv.clone())
        .with_cwd(process.map(|p| p.cwd().clone()))
        .with_user(Some(identity.uid))
        .with_group(Some(identity.gid))
        .with_additional_gids(identity.additional_gids)
        .with_no_new_privs(true)
        .with_detach(false)
        .as_sibling(false);
    let pid = builder.build().map_err(|e| refused("cannot enter the container")(chain(&e)))?;
    Ok(pid.as_raw())
}

/// The container's environment, with the request's on top.
fn environment(base: &[String], request: &ExecRequest, identity: &Identity) -> Vec<String> {
    let given = |entry: &String| request.env.iter().any(|(name, _)| entry.split('=').next() == Some(name));
    let mut env: Vec<String> = base.iter().filter(|entry| !given(entry)).cloned().collect();
    if request.user.is_some() && !request.env.iter().any(|(name, _)| name == "HOME") {
        env.retain(|entry| !entry.starts_with("HOME="));
        env.push(format!("HOME={}", identity.home));
    }
    env.extend(request.env.iter().map(|(name, value)| format!("{name}={value}")));
    env
}

/// A command that runs, and our ends of its pipes.
struct Attended {
    pid: i32,
    to_stdin: Option<OwnedFd>,
    from_stdout: OwnedFd,
    from_stderr: OwnedFd,
}

impl Attended {
    /// Feeds and reads the command until it has ended, its time is over, or the asker has gone.
    fn attend(mut self, request: &ExecRequest, client: &UnixStream) -> io::Result<ExecReply> {
        let pidfd = sys::pidfd_open(self.pid)?;
        let limit = request.output_limit_bytes as usize;
        let mut deadline = Instant::now() + Duration::from_millis(request.timeout_ms);
        let (mut fed, mut timed_out, mut status) = (0, false, None);
        let mut stdout = Output::new(limit);
        let mut stderr = Output::new(limit);
        for fd in [self.to_stdin.as_ref(), Some(&self.from_stdout), Some(&self.from_stderr)].into_iter().flatten() {
            sys::set_nonblocking(fd)?;
        }
        loop {
            self.to_stdin = self.to_stdin.take().filter(|_| fed < request.stdin.len());
            let left_ms = deadline.saturating_duration_since(Instant::now()).as_millis() as u64;
            let done = status.is_some() && (left_ms == 0 || (stdout.ended && stderr.ended));
            if let (true, Some(status)) = (done, status) {
                return Ok(answer(status, stdout, stderr, timed_out));
            }
            if left_ms == 0 && !timed_out {
                timed_out = true;
                self.kill();
            }
            let ignored = libc::pollfd { fd: -1, events: 0, revents: 0 };
            let open = |out: &Output, fd| if out.ended { ignored } else { sys::watch(fd, sys::READABLE) };
            let mut fds = [
                open(&stdout, &self.from_stdout),
                open(&stderr, &self.from_stderr),
                if status.is_none() { sys::watch(&pidfd, sys::READABLE) } else { ignored },
                self.to_stdin.as_ref().map_or(ignored, |fd| sys::watch(fd, sys::WRITABLE)),
                if timed_out || status.is_some() { ignored } else { sys::watch(client, libc::POLLRDHUP) },
            ];
            // Killed: what remains is the kernel's to do, so the wait has no bound of its own.
            sys::poll(&mut fds, if timed_out && status.is_none() { None } else { Some(left_ms) })?;
            stdout.read(&self.from_stdout, fds[0].revents);
            stderr.read(&self.from_stderr, fds[1].revents);
            if fds[2].revents != 0 {
                status = Some(wait_for(self.pid).map_err(io::Error::from)?);
                deadline = Instant::now() + Duration::from_millis(OUTPUT_GRACE_MS);
            }
            if fds[3].revents != 0 {
                fed = self.feed(&request.stdin, fed);
            }
            if fds[4].revents & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0 {
                timed_out = true;
                self.kill();
            }
        }
    }

    fn feed(&mut self, stdin: &[u8], fed: usize) -> usize {
        let Some(fd) = &self.to_stdin else { return fed };
        match nix::unistd::write(fd, &stdin[fed..]) {
            Ok(written) => fed + written,
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => fed,
            // The command reads no more: the rest is not wanted.
            Err(_) => stdin.len(),
        }
    }

    /// The command leads a session of its own: what it started in its group goes with it.
    fn kill(&self) {
        for target in [-self.pid, self.pid] {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(target), nix::sys::signal::SIGKILL);
        }
    }
}

/// One bounded stream.
struct Output {
    bytes: Vec<u8>,
    limit: usize,
    truncated: bool,
    ended: bool,
}

impl Output {
    fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, truncated: false, ended: false }
    }

    fn read(&mut self, fd: &OwnedFd, ready: i16) {
        if ready == 0 || self.ended {
            return;
        }
        let mut chunk = [0; 16 << 10];
        match nix::unistd::read(fd, &mut chunk) {
            Ok(0) => self.ended = true,
            Ok(read) => {
                let kept = read.min(self.limit - self.bytes.len());
                self.bytes.extend_from_slice(&chunk[..kept]);
                self.truncated |= kept < read;
            }
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
            Err(_) => self.ended = true,
        }
    }
}

fn answer(status: WaitStatus, stdout: Output, stderr: Output, timed_out: bool) -> ExecReply {
    let (exit_code, signal) = match status {
        WaitStatus::Exited(_, code) => (Some(code), None),
        WaitStatus::Signaled(_, signal, _) => (None, Some(signal as i32)),
        _ => (None, None),
    };
    let truncated = stdout.truncated || stderr.truncated;
    ExecReply { exit_code, signal, stdout: stdout.bytes, stderr: stderr.bytes, truncated, timed_out }
}
