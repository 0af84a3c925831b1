//! The system calls that a Machine may make: Docker's default profile, with its conditions resolved for the
//! capabilities that Machines have. Pure data; `filter` makes a program of it.
//!
//! Source: moby `profiles/seccomp/default.json` (as of v27: io_uring is out, AF_ALG and AF_VSOCK are refused).
//! Calls that need CAP_SYS_ADMIN, CAP_SYS_PTRACE and so on are absent, because no Machine holds those; `chroot` is
//! there, because all hold CAP_SYS_CHROOT.

/// Allowed whatever their arguments.
const ALLOWED: &str = "
    accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod chown chown32 chroot
    clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
    clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1
    epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
    exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2
    fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat
    fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait
    futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid
    getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid
    getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname
    getsockopt gettid gettimeofday getuid getuid32 getxattr inotify_add_watch inotify_init inotify_init1
    inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl
    ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32
    lgetxattr link linkat listen listxattr llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise
    map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall
    mmap mmap2 modify_ldt mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
    mq_timedsend_time64 mq_unlink mremap msgctl msgget msgrcv msgsnd msync munlock munlockall munmap
    name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open pidfd_send_signal pipe
    pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64
    process_mrelease process_vm_readv process_vm_writev pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2
    read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages
    removexattr rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask
    rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam
    sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile
    sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid
    setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid
    setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr shmat
    shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall socketpair splice
    stat stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64
    timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64
    ugetrlimit umask uname unlink unlinkat utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid
    write writev";

/// `CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET`: no new namespaces.
const CLONE_NAMESPACES: u64 = 0x7E02_0000;
/// Kernel-side crypto and the way to the hypervisor: both reach code that no container needs.
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;
/// The personalities that only ask, or are plain Linux: PER_LINUX, PER_LINUX32 and UNAME26 of both, and "tell me".
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x20000, 0x20008, 0xffff_ffff];
/// The newest call that this profile knows (set_mempolicy_home_node, Linux 5.17, as libseccomp 2.5). Newer ones are
/// answered ENOSYS, not EPERM: C libraries then fall back to an older call, as they do on an older kernel.
pub const NEWEST_KNOWN: u32 = 450;
/// Calls that are answered ENOSYS too: clone3's flags lie in memory, where a filter cannot look, and C libraries fall
/// back to clone.
pub const ABSENT: [&str; 1] = ["clone3"];

/// When a call is allowed, by its first argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum When {
    Always,
    Less(u64),
    Equal(u64),
    Greater(u64),
    /// None of these bits is set.
    Without(u64),
}

/// Everything that is allowed; whatever else exists is answered EPERM.
pub fn allowed() -> Vec<(&'static str, When)> {
    let mut rules: Vec<_> = ALLOWED.split_ascii_whitespace().map(|name| (name, When::Always)).collect();
    // Below, between and above the two refused families.
    rules.extend([When::Less(AF_ALG), When::Equal(AF_ALG + 1), When::Greater(AF_VSOCK)].map(|when| ("socket", when)));
    rules.extend(PERSONALITIES.map(|personality| ("personality", When::Equal(personality))));
    rules.push(("clone", When::Without(CLONE_NAMESPACES)));
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_needs_a_missing_capability_is_allowed() {
        let always: Vec<&str> = allowed().iter().filter(|(_, w)| *w == When::Always).map(|(name, _)| *name).collect();
        for name in ["mount", "unshare", "setns", "bpf", "keyctl", "add_key", "reboot", "init_module", "clone"] {
            assert!(!always.contains(&name), "{name}");
        }
        let mut sorted = always.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), always.len(), "a name stands twice");
    }
}
