//! A command whose input and output stream, run under a worker process of its own: frames on one side, pipes or a
//! terminal on the other, and a bounded buffer in between. A reader that is slow slows the command down.
//!
//! The client's hang-up ends the command, as ssh does it: SIGHUP to its process group, and SIGKILL when that did not
//! help for a while. Nothing but an exit frame tells success, so a worker that dies tells none.

use godwit_api::error::Status;
use godwit_api::session::{Exit, Failed, Frame, MAX_DATA_BYTES, STDIN_WINDOW_BYTES, encode_data};
use godwit_driver::SessionRequest;
use godwit_driver::container::layout::Order;
use godwit_driver::protocol::{self, Reply};
use nix::sys::wait::WaitStatus;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::entry::wait_for;
use crate::error::BuildError;
use crate::tenant::{Command, enter, kill_group, not_executed};
use crate::{copy, sys, terminal};

/// Output that waits for the client; with more, the command's output is not read.
const OUT_BYTES: usize = 256 << 10;
/// After the command has ended and its output is silent, how long what it left running may hold it open.
const OUTPUT_GRACE: Duration = Duration::from_millis(200);
/// From the hang-up's SIGHUP to SIGKILL.
const HANGUP_GRACE: Duration = Duration::from_secs(5);
/// How long the answer to the request may take to be read.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long, after its last frame, a client may take to hang up.
const LINGER: Duration = Duration::from_secs(10);
/// What a terminal takes for the end of input (termios VEOF, by default).
const END_OF_INPUT: u8 = 4;

/// The whole life of a worker.
pub fn serve(order: &Order, init_pid: i32, request: &SessionRequest, mut client: UnixStream) {
    let outcome = match request {
        SessionRequest::Exec { argv, env, user, terminal } => {
            let terminal_wanted = terminal.is_some();
            let command = Command { argv, env, user: user.as_deref(), terminal: terminal_wanted };
            exec(order, init_pid, &command, *terminal, &mut client)
        }
        SessionRequest::CopyOut { path, name } => begin(&mut client).map(|()| {
            copy::out(|| copy::enter(init_pid), path, name.as_deref(), &client);
            linger(&client);
        }),
        SessionRequest::CopyIn { path, into_folder, content_only, keep_owners } => begin(&mut client).map(|()| {
            let (into_folder, content_only, keep_owners) = (*into_folder, *content_only, *keep_owners);
            let target = copy::Target { path, into_folder, content_only, keep_owners };
            copy::into(|| copy::enter(init_pid), &target, &client, || Ok(()));
            linger(&client);
        }),
    };
    if let Err(error) = outcome {
        eprintln!("session: {error}");
    }
}

/// Says that the request is taken: frames follow.
pub fn begin(client: &mut UnixStream) -> io::Result<()> {
    let mut bytes = protocol::encode(&Reply::Done)?;
    Frame::Ready.encode(&mut bytes);
    answer(client, &bytes)
}

/// Small and first: a client that does not read it is gone.
fn answer(client: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_write_timeout(Some(REPLY_TIMEOUT))?;
    client.write_all(bytes)?;
    client.set_write_timeout(None)
}

fn exec(
    order: &Order,
    init_pid: i32,
    command: &Command,
    size: Option<(u16, u16)>,
    client: &mut UnixStream,
) -> io::Result<()> {
    let (told, telling) = sys::pipe_of_words()?;
    let started = ends(init_pid, size)
        .map_err(|e| BuildError::Host { what: "cannot make a terminal or a pipe", reason: e.to_string() })
        .and_then(|(ours, theirs)| Ok((ours, enter(order, init_pid, command, theirs, telling)?)));
    let (ends, pid) = match started {
        Ok(started) => started,
        Err(error) => {
            let user_fault = matches!(error, BuildError::User(_));
            let refusal = Reply::Refused { reason: error.to_string(), user_fault, busy: false };
            return answer(client, &protocol::encode(&refusal)?);
        }
    };
    begin(client)?;
    if let Some((code, reason)) = not_executed(&told, pid, &command.argv[0])? {
        let mut bytes = Vec::new();
        encode_data(Frame::Stderr, format!("{reason}\n").as_bytes(), &mut bytes);
        Frame::Exit(Exit { code: Some(code), signal: None, not_executed: true }).encode(&mut bytes);
        answer(client, &bytes)?;
        linger(client);
        return Ok(());
    }
    drop(told);
    client.set_nonblocking(true)?;
    Attended::new(pid, ends, client)?.attend()
}

/// Our ends of what the command reads and writes.
struct Ends {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    /// On a terminal there is none.
    stderr: Option<OwnedFd>,
    /// Of which `stdin` and `stdout` are copies.
    terminal: Option<OwnedFd>,
}

fn ends(init_pid: i32, size: Option<(u16, u16)>) -> io::Result<(Ends, [OwnedFd; 3])> {
    if let Some((rows, columns)) = size {
        let (ours, theirs) = terminal::open(init_pid, rows, columns)?;
        sys::set_nonblocking(&ours)?;
        let (stdin, stdout) = (Some(ours.try_clone()?), Some(ours.try_clone()?));
        let ends = Ends { stdin, stdout, stderr: None, terminal: Some(ours) };
        return Ok((ends, [theirs.try_clone()?, theirs.try_clone()?, theirs]));
    }
    let (stdin, to_stdin) = sys::pipe()?;
    let (from_stdout, stdout) = sys::pipe()?;
    let (from_stderr, stderr) = sys::pipe()?;
    for ours in [&to_stdin, &from_stdout, &from_stderr] {
        sys::set_nonblocking(ours)?;
    }
    let ends = Ends { stdin: Some(to_stdin), stdout: Some(from_stdout), stderr: Some(from_stderr), terminal: None };
    Ok((ends, [stdin, stdout, stderr]))
}

/// A command that runs, and its client.
struct Attended<'a> {
    pid: i32,
    pidfd: OwnedFd,
    ends: Ends,
    client: &'a mut UnixStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// How much of `outgoing` has left.
    sent: usize,
    stdin: VecDeque<u8>,
    stdin_ended: bool,
    status: Option<WaitStatus>,
    /// After the end: when silence ends the session. After the hang-up: when SIGKILL comes.
    deadline: Option<Instant>,
    hung_up: bool,
    buffer: Vec<u8>,
}

impl<'a> Attended<'a> {
    fn new(pid: i32, ends: Ends, client: &'a mut UnixStream) -> io::Result<Self> {
        let pidfd = sys::pidfd_open(pid)?;
        Ok(Self {
            pid,
            pidfd,
            ends,
            client,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            sent: 0,
            stdin: VecDeque::new(),
            stdin_ended: false,
            status: None,
            deadline: None,
            hung_up: false,
            buffer: vec![0; MAX_DATA_BYTES],
        })
    }

    fn attend(mut self) -> io::Result<()> {
        while !self.is_over() {
            self.turn()?;
        }
        if let (false, Some(status)) = (self.hung_up, self.status) {
            Frame::Exit(exit_of(status)).encode(&mut self.outgoing);
            // Whoever reads slowly gets it all; whoever is gone ends this.
            self.client.set_nonblocking(false)?;
            self.client.write_all(&self.outgoing[self.sent..])?;
            linger(self.client);
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        let silent = self.deadline.is_some_and(|at| Instant::now() >= at);
        let drained = self.ends.stdout.is_none() && self.ends.stderr.is_none();
        self.status.is_some() && (self.hung_up || drained || silent)
    }

    /// Waits for something to happen, and takes it in.
    fn turn(&mut self) -> io::Result<()> {
        let ignored = libc::pollfd { fd: -1, events: 0, revents: 0 };
        let room = self.waiting() < OUT_BYTES;
        let readable = |fd: &Option<OwnedFd>| match fd {
            Some(fd) if room => sys::watch(fd, sys::READABLE),
            _ => ignored,
        };
        let writes = if self.waiting() > 0 { sys::WRITABLE } else { 0 };
        let feed = !self.stdin.is_empty() || self.stdin_ended;
        let mut fds = [
            if self.hung_up { ignored } else { sys::watch(self.client, sys::READABLE | libc::POLLRDHUP | writes) },
            readable(&self.ends.stdout),
            readable(&self.ends.stderr),
            if self.status.is_none() { sys::watch(&self.pidfd, sys::READABLE) } else { ignored },
            self.ends.stdin.as_ref().filter(|_| feed).map_or(ignored, |fd| sys::watch(fd, sys::WRITABLE)),
        ];
        sys::poll(&mut fds, self.time_left_ms(room))?;
        let [client, stdout, stderr, ended, stdin] = fds.map(|fd| fd.revents);
        let read = self.read_output(stdout, stderr);
        if ended != 0 {
            self.status = Some(wait_for(self.pid).map_err(io::Error::from)?);
        }
        if stdin != 0 {
            self.feed();
        }
        if client & sys::WRITABLE != 0 {
            self.send();
        }
        if client & !sys::WRITABLE != 0 {
            self.listen(client);
        }
        self.look_at_the_clock(read || ended != 0 || !room);
        Ok(())
    }

    fn waiting(&self) -> usize {
        self.outgoing.len() - self.sent
    }

    /// Silence counts only while there is room for a sound.
    fn time_left_ms(&self, room: bool) -> Option<u64> {
        let deadline = self.deadline.filter(|_| room || self.hung_up)?;
        Some(deadline.saturating_duration_since(Instant::now()).as_millis() as u64 + 1)
    }

    fn look_at_the_clock(&mut self, sound: bool) {
        let now = Instant::now();
        if self.hung_up {
            if self.status.is_none() && self.deadline.is_some_and(|at| now >= at) {
                kill_group(self.pid, libc::SIGKILL);
                // What remains is the kernel's to do.
                self.deadline = None;
            }
        } else if self.status.is_some() && (sound || self.deadline.is_none()) {
            self.deadline = Some(now + OUTPUT_GRACE);
        }
    }

    /// Answers whether anything came.
    fn read_output(&mut self, stdout: i16, stderr: i16) -> bool {
        let mut read = false;
        if stdout != 0 {
            read |= take(&mut self.ends.stdout, Frame::Stdout, &mut self.buffer, &mut self.outgoing);
        }
        if stderr != 0 {
            read |= take(&mut self.ends.stderr, Frame::Stderr, &mut self.buffer, &mut self.outgoing);
        }
        if read {
            self.send();
        }
        read
    }

    fn send(&mut self) {
        while self.waiting() > 0 && !self.hung_up {
            match self.client.write(&self.outgoing[self.sent..]) {
                Ok(written) if written > 0 => self.sent += written,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                _ => self.hang_up(),
            }
        }
        if self.waiting() == 0 {
            self.outgoing.clear();
            self.sent = 0;
        } else if self.sent >= OUT_BYTES {
            self.outgoing.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Takes in what the client says.
    fn listen(&mut self, ready: i16) {
        match self.client.read(&mut self.buffer) {
            Ok(0) => return self.hang_up(),
            Ok(read) => self.incoming.extend_from_slice(&self.buffer[..read]),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                if ready & (libc::POLLHUP | libc::POLLERR) != 0 {
                    self.hang_up();
                }
                return;
            }
            Err(_) => return self.hang_up(),
        }
        let mut at = 0;
        loop {
            match Frame::decode(&self.incoming[at..]) {
                Ok(Some((frame, taken))) => {
                    at += taken;
                    if !self.obey(frame) {
                        return self.refuse("the client broke the protocol of sessions");
                    }
                }
                Ok(None) => break,
                Err(error) => return self.refuse(&error.to_string()),
            }
        }
        self.incoming.drain(..at);
    }

    /// False when the frame has no place here.
    fn obey(&mut self, frame: Frame) -> bool {
        match frame {
            Frame::Stdin(bytes) => {
                if self.stdin_ended || self.stdin.len() + bytes.len() > STDIN_WINDOW_BYTES {
                    return false;
                }
                self.stdin.extend(bytes);
                self.feed();
            }
            Frame::StdinEnd => {
                self.stdin_ended = true;
                self.feed();
            }
            Frame::Resize(size) => {
                if let Some(terminal) = &self.ends.terminal {
                    let _ = sys::resize_terminal(terminal, size.rows, size.columns);
                }
            }
            Frame::Signal(signal) if self.status.is_none() => kill_group(self.pid, signal),
            Frame::Signal(_) => {}
            _ => return false,
        }
        true
    }

    fn refuse(&mut self, why: &str) {
        Frame::Failed(Failed { error: why.to_owned(), status: Status::InvalidArgument }).encode(&mut self.outgoing);
        self.send();
        self.hang_up();
    }

    /// Gives the command what waits for it, as far as it takes it.
    fn feed(&mut self) {
        let mut taken = 0;
        while let (Some(fd), false) = (&self.ends.stdin, self.stdin.is_empty()) {
            match nix::unistd::write(fd, self.stdin.as_slices().0) {
                Ok(written) => {
                    self.stdin.drain(..written);
                    taken += written;
                }
                Err(nix::Error::EAGAIN) => break,
                Err(nix::Error::EINTR) => {}
                // It reads no more.
                Err(_) => self.ends.stdin = None,
            }
        }
        if self.ends.stdin.is_none() {
            taken += self.stdin.len();
            self.stdin.clear();
        }
        if taken > 0 {
            Frame::Taken(taken as u32).encode(&mut self.outgoing);
            self.send();
        }
        if self.stdin_ended && self.stdin.is_empty() {
            self.end_input();
        }
    }

    fn end_input(&mut self) {
        let Some(fd) = self.ends.stdin.take() else { return };
        if self.ends.terminal.is_some() && nix::unistd::write(&fd, &[END_OF_INPUT]) == Err(nix::Error::EAGAIN) {
            // Its buffer is full: once more when there is room.
            self.ends.stdin = Some(fd);
        }
    }

    /// The client is gone, and the command follows.
    fn hang_up(&mut self) {
        if self.hung_up {
            return;
        }
        self.hung_up = true;
        // With them a terminal hangs up, and pipes break.
        self.ends = Ends { stdin: None, stdout: None, stderr: None, terminal: None };
        if self.status.is_none() {
            kill_group(self.pid, libc::SIGHUP);
            self.deadline = Some(Instant::now() + HANGUP_GRACE);
        }
    }
}

/// Reads, and drops, what the client has still to say, until it hangs up. A socket that is closed with bytes unread breaks
/// off, and what is on the way to the client may be lost with it: its exit, for one.
pub fn linger(mut client: &UnixStream) {
    let until = Instant::now() + LINGER;
    let mut dropped = [0; 16 << 10];
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        if client.set_read_timeout(Some(left)).is_err() || !matches!(client.read(&mut dropped), Ok(1..)) {
            return;
        }
    }
}

/// Reads one piece of output into frames; what has ended is closed. Answers whether anything came.
fn take(end: &mut Option<OwnedFd>, make: fn(Vec<u8>) -> Frame, buffer: &mut [u8], out: &mut Vec<u8>) -> bool {
    let Some(fd) = end else { return false };
    match nix::unistd::read(fd, buffer) {
        Ok(0) => *end = None,
        Ok(read) => {
            encode_data(make, &buffer[..read], out);
            return true;
        }
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
        // A terminal whose other end everybody has closed answers EIO.
        Err(_) => *end = None,
    }
    false
}

fn exit_of(status: WaitStatus) -> Exit {
    match status {
        WaitStatus::Exited(_, code) => Exit { code: Some(code), ..Exit::default() },
        WaitStatus::Signaled(_, signal, _) => Exit { signal: Some(signal as i32), ..Exit::default() },
        _ => Exit::default(),
    }
}
