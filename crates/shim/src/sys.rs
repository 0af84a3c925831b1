//! The few kernel calls that no library of ours wraps: poll, pidfds, death signals. No policy in here.

use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// What to watch a descriptor for.
pub const READABLE: i16 = libc::POLLIN;
pub const WRITABLE: i16 = libc::POLLOUT;

pub fn watch(fd: &impl AsRawFd, events: i16) -> libc::pollfd {
    libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 }
}

/// Waits until one of them is ready, or the time is over (`None`: no bound). An interruption counts as ready.
pub fn poll(fds: &mut [libc::pollfd], timeout_ms: Option<u64>) -> io::Result<()> {
    let timeout = timeout_ms.map_or(-1, |ms| ms.min(i32::MAX as u64) as i32);
    // SAFETY: the pointer and length are those of a slice that we hold mutably during the call.
    let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
    match ready {
        -1 if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: a plain call with two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

pub fn pidfd_signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open; a null siginfo asks for the same as kill(2).
    let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The kernel shall kill this process when the thread that made it dies.
pub fn die_with_parent() -> io::Result<()> {
    // SAFETY: prctl with numbers only.
    let done = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Orphans below this process become its children, so that it can reap them.
pub fn adopt_orphans() -> io::Result<()> {
    // SAFETY: prctl with numbers only.
    let done = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Closes every descriptor from `first` on.
pub fn close_from(first: RawFd) {
    // SAFETY: the caller gives up every descriptor from `first` on; close_range touches no memory.
    unsafe { libc::syscall(libc::SYS_close_range, first as u32, u32::MAX, 0) };
}

/// Ends this process at once: no destructor of the process that it was forked from runs.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Forks. The program is single-threaded, so the child may go on as if nothing had happened.
pub fn fork() -> nix::Result<nix::unistd::ForkResult> {
    // SAFETY: there is one thread in this program (no library in it starts another), so no lock can be held by a
    // thread that the child lacks.
    unsafe { nix::unistd::fork() }
}

/// Forks into a v2 cgroup. To be moved into one costs a grace period of the kernel's (3 to 20 ms), to be born in one
/// costs nothing.
pub fn fork_into(cgroup: &std::fs::File) -> nix::Result<nix::unistd::ForkResult> {
    // libc's constant of this name is an int, in which the bit has no place.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    // SAFETY: an all-zero clone_args is a valid one.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = CLONE_INTO_CGROUP;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = cgroup.as_raw_fd() as u64;
    // SAFETY: without a stack of its own the child goes on in a copy of ours, as after fork(2); there is one thread,
    // so no lock can be held by one that the child lacks.
    match unsafe { libc::syscall(libc::SYS_clone3, &args, size_of::<libc::clone_args>()) } {
        0 => Ok(nix::unistd::ForkResult::Child),
        pid if pid > 0 => Ok(nix::unistd::ForkResult::Parent { child: nix::unistd::Pid::from_raw(pid as i32) }),
        _ => Err(nix::Error::last()),
    }
}

/// Replaces the process; returns only to tell why it could not.
pub fn execve(path: &CString, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const c_char> {
        list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both lists end in null, and their strings outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// A pipe whose ends are closed on exec.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}

pub fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Makes the terminal at `fd` the controlling one of the session that this process leads.
pub fn take_terminal(fd: RawFd) -> io::Result<()> {
    // SAFETY: a plain call with numbers; whatever the descriptor is, no memory of ours is touched.
    let done = unsafe { libc::ioctl(fd, libc::TIOCSCTTY, 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The other end of a terminal whose controlling end (a `/dev/pts/ptmx` that was opened) this is. No path is looked up,
/// so nothing inside a Machine can put anything else in its place.
pub fn terminal_end(controlling: &OwnedFd) -> io::Result<OwnedFd> {
    let unlocked: libc::c_int = 0;
    // SAFETY: the pointer is to an integer of ours that outlives the call.
    if unsafe { libc::ioctl(controlling.as_raw_fd(), libc::TIOCSPTLCK, &unlocked) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: a plain call with numbers.
    let fd = unsafe { libc::ioctl(controlling.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Tells a terminal its size; its foreground processes hear of it (SIGWINCH).
pub fn resize_terminal(terminal: &OwnedFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the pointer is to a winsize of ours that outlives the call.
    let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// CAP_SYS_ADMIN, capability.h.
const ADMIN: u32 = 21;

/// Gives up CAP_SYS_ADMIN in every set, the bounding one included: neither this process nor anything that it executes
/// can have it again. Errors leave the caller with it: it must not go on.
pub fn give_up_admin() -> io::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3`: two words of 32 bits each.
    const VERSION: u32 = 0x2008_0522;
    #[repr(C)]
    struct Head {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Word {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let answer = |done: libc::c_long| if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    let head = Head { version: VERSION, pid: 0 };
    let mut words = [Word::default(); 2];
    // SAFETY: plain numbers.
    answer(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(ADMIN), 0, 0, 0) }.into())?;
    // SAFETY: `head` and both words outlive the call and have the layout of capget(2), version 3.
    answer(unsafe { libc::syscall(libc::SYS_capget, &head, words.as_mut_ptr()) })?;
    for set in [&mut words[0].effective, &mut words[0].permitted, &mut words[0].inheritable] {
        *set &= !(1 << ADMIN);
    }
    // SAFETY: as above; the kernel only reads.
    answer(unsafe { libc::syscall(libc::SYS_capset, &head, words.as_ptr()) })
}

/// Puts one more system call filter on this thread. Needs CAP_SYS_ADMIN.
pub fn filter_calls(program: &[libc::sock_filter]) -> io::Result<()> {
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the program outlives the call, which copies it and does not write to it.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &filter) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A pair of sockets for short messages, each arriving whole; the first end is told who sends.
pub fn pipe_of_words() -> io::Result<(OwnedFd, OwnedFd)> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    setsockopt(&ours, sockopt::PassCred, &true)?;
    Ok((ours, theirs))
}

/// One message and its sender's pid, as this process sees it. An empty message means that all other ends are closed.
pub fn receive_word(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, Option<i32>)> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg};
    let mut space = nix::cmsg_space!(UnixCredentials);
    let mut parts = [io::IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_DONTWAIT)?;
    let sender = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmCredentials(credentials) => Some(credentials.pid()),
        _ => None,
    });
    Ok((message.bytes, sender.filter(|pid| *pid > 0)))
}

/// Closes every descriptor from 3 on but these, and answers them as owned anew. For a process that was just forked:
/// whoever owned descriptors in it must never drop them.
pub fn keep_only<const N: usize>(kept: [&OwnedFd; N]) -> [OwnedFd; N] {
    let mut numbers: Vec<RawFd> = kept.iter().map(|fd| fd.as_raw_fd()).collect();
    numbers.sort_unstable();
    let mut from = 3;
    for number in numbers {
        if from < number {
            // SAFETY: the caller gives up the descriptors between those that are kept.
            unsafe { libc::syscall(libc::SYS_close_range, from as u32, number as u32 - 1, 0) };
        }
        from = number + 1;
    }
    close_from(from);
    kept.map(|fd| {
        // SAFETY: the descriptor is open, and the caller forgets its former owner.
        unsafe { OwnedFd::from_raw_fd(fd.as_raw_fd()) }
    })
}

/// The end of the heap at some moment; see [`HeapMark::forget_what_came_later`].
#[derive(Debug, Clone, Copy)]
pub struct HeapMark(usize);

impl HeapMark {
    pub fn here() -> Self {
        // SAFETY: sbrk(0) only tells.
        Self(unsafe { libc::sbrk(0) } as usize)
    }

    /// Gives the kernel back all of the heap that was added since the mark.
    ///
    /// # Safety
    /// Nothing on the heap may be used afterwards, and nothing may be allocated or freed: the allocator's own records
    /// are gone too. For a process that goes on with its stack alone.
    pub unsafe fn forget_what_came_later(self) {
        const PAGE: usize = 4096;
        let start = self.0.next_multiple_of(PAGE);
        let end = Self::here().0;
        if start < end {
            // SAFETY: the range is part of this process's heap, which the caller gives up.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
        }
    }
}
