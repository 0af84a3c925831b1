//! One more command inside. Each runs under a worker process of its own, forked from the shim, that owns the asking
//! connection: a command that hangs, or a container that cannot be entered, never holds the shim up.

use godwit_driver::container::layout::Order;
use godwit_driver::protocol::{self, Reply};
use godwit_driver::{ExecReply, ExecRequest};
use nix::sys::wait::WaitStatus;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::entry::wait_for;
use crate::error::BuildError;
use crate::sys;
use crate::tenant::{Command, enter, kill_group, not_executed};

/// After the command has ended, how long its output may be held open by what it left running.
const OUTPUT_GRACE_MS: u64 = 200;
/// How long a reply may take to be read.
const REPLY_TIMEOUT_MS: u64 = 10_000;

/// The whole life of a worker.
pub fn serve(order: &Order, init_pid: i32, request: &ExecRequest, client: UnixStream) {
    let reply = match run(order, init_pid, request, &client) {
        Ok(reply) => Reply::Exec { reply },
        Err(BuildError::User(reason)) => Reply::Refused { reason, user_fault: true, busy: false },
        Err(error) => Reply::Refused { reason: error.to_string(), user_fault: false, busy: false },
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

fn run(order: &Order, init_pid: i32, request: &ExecRequest, client: &UnixStream) -> Result<ExecReply, BuildError> {
    let failed = |e: io::Error| BuildError::Host { what: "cannot run the command", reason: e.to_string() };
    let (stdin, to_stdin) = sys::pipe().map_err(failed)?;
    let (from_stdout, stdout) = sys::pipe().map_err(failed)?;
    let (from_stderr, stderr) = sys::pipe().map_err(failed)?;
    let (told, telling) = sys::pipe_of_words().map_err(failed)?;
    let command = Command { argv: &request.argv, env: &request.env, user: request.user.as_deref(), terminal: false };
    let pid = enter(order, init_pid, &command, [stdin, stdout, stderr], telling)?;
    if let Some((exit_code, reason)) = not_executed(&told, pid, &request.argv[0]).map_err(failed)? {
        // As a shell: the command failed, exec itself did not.
        let stderr = format!("{reason}\n").into_bytes();
        let (stdout, signal) = (Vec::new(), None);
        let exit_code = Some(exit_code);
        return Ok(ExecReply { exit_code, signal, stdout, stderr, truncated: false, timed_out: false });
    }
    let attended = Attended { pid, to_stdin: Some(to_stdin), from_stdout, from_stderr };
    attended.attend(request, client).map_err(failed)
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
                kill_group(self.pid, libc::SIGKILL);
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
                kill_group(self.pid, libc::SIGKILL);
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
