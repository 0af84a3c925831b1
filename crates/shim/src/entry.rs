//! The last steps before a program of the image runs: in the main process (behind a pid 1 of ours) and in execs.
//!
//! libcontainer calls `exec` when the process is in its namespaces and without privileges; the system call filter is
//! put on here. For the main process, the caller then becomes pid 1: it forks the program, reaps orphans, forwards
//! what `kill 1` sends, and dies with the shim. Programs so get signals' default actions, which the kernel withholds
//! from a real pid 1. What happens is told on a socket, whose messages are [`Word`]s. Nothing in here may wait for the
//! shim.

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid};
use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::filter::Filter;
use crate::sys;

/// Where programs are looked for when the image names no PATH.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Longest message on the socket: a word and a path.
pub const MAX_WORD_BYTES: usize = 4096 + 16;

/// What the inside tells the shim; one message each.
#[derive(Debug, PartialEq, Eq)]
pub enum Word {
    /// About to execute, at this CLOCK_MONOTONIC time. The sender's pid is the program's.
    Executing(u64),
    /// The program runs (or failed first: then that was told before).
    Executed,
    /// This error number, for this path.
    Failed(i32, String),
    /// The main process ended, with this wait status.
    Ended(i32),
}

impl Word {
    /// Its bytes, in a buffer of the caller's: pid 1 has no heap. Answers how many.
    fn encode(&self, buffer: &mut [u8; MAX_WORD_BYTES]) -> usize {
        let (tag, number, text) = match self {
            Word::Executing(at) => (b'X', *at, ""),
            Word::Executed => (b'R', 0, ""),
            Word::Failed(errno, path) => (b'F', *errno as u64, path.as_str()),
            Word::Ended(status) => (b'D', *status as u64, ""),
        };
        let text = &text.as_bytes()[..text.len().min(MAX_WORD_BYTES - 9)];
        buffer[0] = tag;
        buffer[1..9].copy_from_slice(&number.to_le_bytes());
        buffer[9..9 + text.len()].copy_from_slice(text);
        9 + text.len()
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (tag, rest) = bytes.split_first()?;
        let (number, text) = rest.split_first_chunk::<8>()?;
        let number = u64::from_le_bytes(*number);
        Some(match tag {
            b'X' => Word::Executing(number),
            b'R' => Word::Executed,
            b'F' => Word::Failed(number as i32, String::from_utf8_lossy(text).into_owned()),
            b'D' => Word::Ended(number as i32),
            _ => return None,
        })
    }

    fn send(&self, socket: RawFd) {
        let mut buffer = [0; MAX_WORD_BYTES];
        let length = self.encode(&mut buffer);
        // A shim that is gone, or an overfull socket, must not hold the Machine up.
        // SAFETY: the first `length` bytes of the buffer are ours and initialised.
        unsafe { libc::send(socket, buffer.as_ptr().cast(), length, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
    }
}

/// As a shell answers: not found is 127, found but not executable 126. With the reason in words.
pub fn explain(errno: i32, program: &str, path: &str) -> (i32, String) {
    let error = io::Error::from_raw_os_error(errno);
    match errno {
        libc::ENOENT if path.is_empty() => (127, format!("program {program:?} was not found in PATH")),
        libc::ENOENT => {
            (127, format!("program {path:?} does not exist, or the interpreter or loader that it names does not"))
        }
        libc::ENOTDIR => (127, format!("program {path:?} does not exist")),
        libc::EACCES => (126, format!("program {path:?} is not executable for this user")),
        libc::ENOEXEC => (126, format!("program {path:?} is in a format that this processor does not run")),
        _ => (126, format!("program {path:?} cannot be executed: {error}")),
    }
}

#[derive(Clone)]
pub struct Entry {
    /// Become pid 1, with no heap above this mark, and fork the program; otherwise be the program.
    pub init: Option<sys::HeapMark>,
    pub argv: Vec<CString>,
    pub env: Vec<CString>,
    pub socket: RawFd,
    /// Stdin is a terminal, which becomes the program's controlling one.
    pub terminal: bool,
    filter: Filter,
}

impl Entry {
    pub fn new(
        init: Option<sys::HeapMark>,
        argv: &[String],
        env: &[String],
        socket: RawFd,
        filter: Filter,
    ) -> io::Result<Self> {
        let strings = |list: &[String]| list.iter().map(|s| CString::new(s.as_str())).collect::<Result<Vec<_>, _>>();
        Ok(Self { init, argv: strings(argv)?, env: strings(env)?, socket, terminal: false, filter })
    }

    /// Where to try the program, in order.
    fn candidates(&self) -> Vec<CString> {
        let Some(program) = self.argv.first() else { return Vec::new() };
        if program.as_bytes().contains(&b'/') {
            return vec![program.clone()];
        }
        let path = self.env.iter().find_map(|v| v.as_bytes().strip_prefix(b"PATH="));
        let folders = path.unwrap_or(DEFAULT_PATH.as_bytes()).split(|b| *b == b':');
        let joined = folders.map(|folder| if folder.is_empty() { &b"."[..] } else { folder });
        let joined = joined.filter_map(|f| CString::new([f, b"/", program.as_bytes()].concat()).ok());
        joined.collect()
    }

    /// Executes the program, or tells why not and ends the process.
    fn run(&self) -> ! {
        let candidates = self.candidates();
        let (mut errno, mut at) = (libc::ENOENT, String::new());
        let is_looked_up = self.argv.first().is_some_and(|program| !program.as_bytes().contains(&b'/'));
        Word::Executing(godwit_driver::container::monotonic_ns()).send(self.socket);
        for path in &candidates {
            let error = sys::execve(path, &self.argv, &self.env).raw_os_error().unwrap_or(libc::EIO);
            let missing = matches!(error, libc::ENOENT | libc::ENOTDIR);
            // One that is there after all misses its interpreter or loader.
            if !missing || !is_looked_up || is_there(path) {
                (errno, at) = (error, path.to_string_lossy().into_owned());
            }
            // Like a shell: go on past what is not there or not allowed, stop at anything else.
            if !missing && error != libc::EACCES {
                break;
            }
        }
        Word::Failed(errno, at).send(self.socket);
        sys::exit_now(if matches!(errno, libc::ENOENT | libc::ENOTDIR) { 127 } else { 126 })
    }

    fn become_init(&self, heap: sys::HeapMark) -> io::Result<()> {
        sys::die_with_parent()?;
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
        let null = std::fs::File::open("/dev/null")?;
        let (told, telling) = sys::pipe()?;
        match sys::fork()? {
            ForkResult::Child => {
                drop(told);
                let _ = nix::unistd::setsid();
                plain_signals();
                self.run()
            }
            ForkResult::Parent { child } => {
                drop(telling);
                for fd in 0..3 {
                    // SAFETY: both are open descriptors of ours; 0..3 are replaced on purpose, so that pid 1 does
                    // not hold the ends of the program's pipes.
                    unsafe { libc::dup2(null.as_raw_fd(), fd) };
                }
                reap_until(child, told, self.socket, heap)
            }
        }
    }
}

fn is_there(path: &CString) -> bool {
    Path::new(OsStr::from_bytes(path.as_bytes())).symlink_metadata().is_ok()
}

/// The whole life of pid 1. Returns never: the process ends with the program. Nothing below may allocate.
fn reap_until(program: Pid, told: OwnedFd, socket: RawFd, heap: sys::HeapMark) -> ! {
    // SAFETY: from here on, this process uses its stack and static memory only. What it inherited from the builder (a
    // megabyte, in each Machine) is of no use to it.
    unsafe { heap.forget_what_came_later() };
    // The pipe closes when the program has been executed, or has died before.
    while let Err(nix::Error::EINTR) = nix::unistd::read(&told, &mut [0]) {}
    Word::Executed.send(socket);
    // Everything else that was inherited goes too: descriptors of the host have no place in here.
    // SAFETY: both are numbers of descriptors; `socket` is open.
    let kept = unsafe { libc::dup2(socket, 3) };
    std::mem::forget(told);
    sys::close_from(4);
    loop {
        match SigSet::all().wait() {
            Ok(Signal::SIGCHLD) => {}
            // Sent from inside, to pid 1: meant for the program, as every init takes it.
            Ok(signal) => {
                let _ = nix::sys::signal::kill(program, signal);
                continue;
            }
            Err(_) => continue,
        }
        while let Some((pid, status)) = reap_one() {
            if pid == program.as_raw() {
                Word::Ended(status).send(kept);
                // The kernel now kills whatever else lives in the namespace.
                sys::exit_now(0)
            }
        }
    }
}

/// One dead child and its wait status.
pub fn reap_one() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: the pointer is to an integer of ours.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::__WALL) };
    (pid > 0).then_some((pid, status))
}

/// Back to what a fresh process has: nothing blocked, nothing ignored. Rust ignores SIGPIPE, and whoever started the
/// agent may have ignored more. The C library refuses to touch two of them, so the kernel is asked itself.
fn plain_signals() {
    const SIGNALS: i32 = 64;
    // The kernel's struct sigaction, all zero: SIG_DFL, no flags, an empty mask of 8 bytes.
    let default = [0u64; 4];
    for number in 1..=SIGNALS {
        // SAFETY: the pointer is to a struct as large as the kernel reads; no old action is asked for. Numbers that
        // cannot be set (SIGKILL, SIGSTOP) are refused.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), std::ptr::null_mut::<u8>(), 8) };
    }
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

impl Executor for Entry {
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let refused = |e: io::Error| ExecutorError::Other(e.to_string());
        self.filter.put_on().map_err(refused)?;
        if let Some(heap) = self.init {
            return self.become_init(heap).map_err(refused);
        }
        if self.terminal {
            // The process leads a session since libcontainer made it.
            sys::take_terminal(0).map_err(refused)?;
        }
        plain_signals();
        self.run()
    }

    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    /// The environment is handed to execve as it was given: libcontainer's map would lose its order.
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}

/// Waits for one child of ours, whatever it takes.
pub fn wait_for(pid: i32) -> nix::Result<nix::sys::wait::WaitStatus> {
    loop {
        match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::__WALL)) {
            Err(nix::Error::EINTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_socket() {
        for word in [Word::Executing(7), Word::Executed, Word::Failed(2, "/bin/x".into()), Word::Ended(256)] {
            let mut buffer = [0; MAX_WORD_BYTES];
            let length = word.encode(&mut buffer);
            assert_eq!(Word::decode(&buffer[..length]), Some(word));
        }
        assert_eq!(Word::decode(b"?"), None);
    }

    #[test]
    fn programs_are_looked_for_as_a_shell_does() {
        let look = |program: &str, path: &str| {
            let folder = tempfile::tempdir().unwrap();
            let filter = Filter::kept_in(folder.path()).unwrap();
            let entry = Entry::new(None, &[program.into()], &[format!("PATH={path}")], 0, filter).unwrap();
            entry.candidates().iter().map(|c| c.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(look("app", "/a::/b"), ["/a/app", "./app", "/b/app"]);
        assert_eq!(look("./app", "/a"), ["./app"]);
        assert_eq!(explain(libc::ENOENT, "app", "").0, 127);
        assert_eq!(explain(libc::EACCES, "app", "/a/app").0, 126);
    }
}
