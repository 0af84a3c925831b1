/* The one program in the test Machines' root: small acts, named by the first argument, and the break-out attempts. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/loop.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static void try_(const char *name, long result) {
    int e = errno;
    printf("%s|%s|%s\n", name, result < 0 ? "refused" : "SUCCEEDED", result < 0 ? strerror(e) : "-");
    fflush(stdout);
    errno = 0;
}
static long open_(const char *path, int flags) { return open(path, flags | O_CLOEXEC); }
static long write_(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    return fd < 0 ? -1 : write(fd, text, strlen(text));
}
static long device(const char *path, mode_t kind, int major_, int minor_) {
    unlink(path);
    if (mknod(path, kind | 0600, makedev(major_, minor_)) < 0) return -1;
    return open(path, O_RDWR);
}
static long raw_clone(unsigned long flags) {
    long pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) _exit(0);
    return pid;
}
static long raw_clone3(void) {
    unsigned long args[11] = {CLONE_NEWUSER, 0, 0, 0, SIGCHLD};
    long pid = syscall(SYS_clone3, args, sizeof args);
    if (pid == 0) _exit(0);
    return pid;
}
static long handle_escape(void) {
    char space[sizeof(struct file_handle) + 128];
    struct file_handle *handle = (struct file_handle *)space;
    int mount_id;
    handle->handle_bytes = 128;
    if (name_to_handle_at(AT_FDCWD, "/etc", handle, &mount_id, 0) < 0) handle->handle_bytes = 8;
    int fd = open("/", O_RDONLY);
    return open_by_handle_at(fd, handle, O_RDONLY);
}
/* The classic way out of a chroot: keep a folder open outside of it, and climb. It may only reach the Machine's root. */
static long chroot_escape(const char *marker) {
    int out = open("/", O_RDONLY | O_DIRECTORY);
    mkdir("/jail", 0700);
    if (chroot("/jail") < 0) return -1;
    if (fchdir(out) < 0) return -1;
    for (int i = 0; i < 64; i++) if (chdir("..") < 0) return -1;
    if (chroot(".") < 0) return -1;
    return access(marker, F_OK);
}
static long read_vm(int pid) {
    char buffer[8];
    struct iovec ours = {buffer, 8}, theirs = {(void *)0x400000, 8};
    return process_vm_readv(pid, &ours, 1, &theirs, 1, 0);
}
static long set_time(void) {
    struct timeval now;
    gettimeofday(&now, 0);
    return syscall(SYS_settimeofday, &now, 0);
}
static long clock_set(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return syscall(SYS_clock_settime, CLOCK_REALTIME, &now);
}
static long raise_limit(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_max += 1;
    return setrlimit(RLIMIT_NOFILE, &limit);
}
static long drop_no_new_privileges(void) { return prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0); }
static long gain_capability(void) { return prctl(PR_CAPBSET_READ, 21, 0, 0, 0) == 1 ? 0 : (errno = EPERM, -1); }

static void breakouts(const char *marker, int outside) {
    char path[64];
    mkdir("/mnt", 0755);
    try_("mount a tmpfs", mount("none", "/mnt", "tmpfs", 0, ""));
    try_("mount the host's cgroups", mount("cgroup", "/mnt", "cgroup", 0, "memory"));
    try_("mount a disk", mount("/dev/vda", "/mnt", "ext4", 0, ""));
    try_("unmount /proc", umount2("/proc", MNT_DETACH));
    try_("unmount a mask", umount2("/proc/kcore", MNT_DETACH));
    try_("remount /proc/sys writable", mount(0, "/proc/sys", 0, MS_REMOUNT | MS_BIND, 0));
    try_("fsopen", syscall(SYS_fsopen, "tmpfs", 0));
    try_("open_tree a clone", syscall(SYS_open_tree, AT_FDCWD, "/", 1));
    try_("pivot_root", syscall(SYS_pivot_root, "/", "/mnt"));
    try_("keyctl", syscall(SYS_keyctl, 0, -3, 1));
    try_("add_key", syscall(SYS_add_key, "user", "x", "y", 1, -3));
    try_("unshare a user namespace", unshare(CLONE_NEWUSER));
    try_("unshare a mount namespace", unshare(CLONE_NEWNS));
    try_("clone into a user namespace", raw_clone(CLONE_NEWUSER));
    try_("clone3 into a user namespace", raw_clone3());
    try_("setns to pid 1's mounts", setns(open("/proc/1/ns/mnt", O_RDONLY), CLONE_NEWNS));
    try_("setns to our own mounts", setns(open("/proc/self/ns/mnt", O_RDONLY), 0));
    try_("make and open a disk", device("/disk", S_IFBLK, 254, 0));
    try_("make and open /dev/mem", device("/memory", S_IFCHR, 1, 1));
    try_("make and open /dev/kmsg", device("/kmsg", S_IFCHR, 1, 11));
    try_("make and open /dev/fuse", device("/fuse", S_IFCHR, 10, 229));
    try_("open /dev/mem", open_("/dev/mem", O_RDWR));
    try_("read /proc/kcore", read(open("/proc/kcore", O_RDONLY), path, 8) > 0 ? 0 : (errno = ENODATA, -1));
    try_("write core_pattern", write_("/proc/sys/kernel/core_pattern", "|/x"));
    try_("write modprobe's path", write_("/proc/sys/kernel/modprobe", "/x"));
    try_("press sysrq", write_("/proc/sysrq-trigger", "h"));
    try_("write an interrupt's affinity", write_("/proc/irq/default_smp_affinity", "1"));
    try_("write uevent_helper", write_("/sys/kernel/uevent_helper", "/x"));
    try_("write a release_agent", write_("/sys/fs/cgroup/memory/release_agent", "/x"));
    try_("write our cgroup's limit", write_("/sys/fs/cgroup/memory/memory.limit_in_bytes", "-1"));
    try_("ptrace pid 1", ptrace(PTRACE_ATTACH, 1, 0, 0));
    try_("read pid 1's memory", read_vm(1));
    try_("open pid 1's memory", open_("/proc/1/mem", O_RDWR));
    try_("read pid 1's environment", read(open("/proc/1/environ", O_RDONLY), path, 8));
    try_("open pid 1's program", open_("/proc/1/exe", O_RDONLY));
    try_("enter pid 1's root", chdir("/proc/1/root"));
    try_("list pid 1's descriptors", open_("/proc/1/fd/3", O_RDONLY));
    try_("signal a process outside", kill(outside, 0));
    try_("ptrace a process outside", ptrace(PTRACE_ATTACH, outside, 0, 0));
    try_("pidfd of a process outside", syscall(SYS_pidfd_open, outside, 0));
    try_("reboot", syscall(SYS_reboot, 0xfee1dead, 672274793, 0, 0));
    try_("kexec_load", syscall(SYS_kexec_load, 0, 0, 0, 0));
    try_("bpf", syscall(SYS_bpf, 0, path, 64));
    try_("perf_event_open", syscall(SYS_perf_event_open, path, 0, -1, -1, 0));
    try_("init_module", syscall(SYS_init_module, path, 8, ""));
    try_("finit_module", syscall(SYS_finit_module, 0, "", 0));
    try_("delete_module", syscall(SYS_delete_module, "ext4", 0));
    try_("iopl", syscall(SYS_iopl, 3));
    try_("ioperm", syscall(SYS_ioperm, 0x80, 1, 1));
    try_("open_by_handle_at", handle_escape());
    try_("swapon", swapon("/disk", 0));
    try_("settimeofday", set_time());
    try_("clock_settime", clock_set());
    try_("acct", acct("/x"));
    try_("syslog", syscall(SYS_syslog, 3, path, 8));
    try_("sethostname", sethostname("x", 1));
    try_("userfaultfd", syscall(SYS_userfaultfd, 0));
    try_("io_uring_setup", syscall(SYS_io_uring_setup, 1, path));
    try_("fanotify_init", syscall(SYS_fanotify_init, 0, 0));
    try_("a vsock socket", socket(AF_VSOCK, SOCK_STREAM, 0));
    try_("an AF_ALG socket", socket(AF_ALG, SOCK_SEQPACKET, 0));
    try_("lower our oom score", write_("/proc/self/oom_score_adj", "-500"));
    try_("raise a hard limit", raise_limit());
    try_("raise our priority", setpriority(PRIO_PROCESS, 0, -20));
    try_("clear no_new_privs", drop_no_new_privileges());
    try_("hold CAP_SYS_ADMIN", gain_capability());
    try_("a call newer than the profile", syscall(600));
    try_("see the host's files", access(marker, F_OK));
    try_("climb out of a chroot", chroot_escape(marker));
}

static void cat(const char *path) {
    char buffer[4096];
    int fd = open(path, O_RDONLY);
    if (fd < 0) { printf("%s: %s\n", path, strerror(errno)); exit(1); }
    for (ssize_t n; (n = read(fd, buffer, sizeof buffer)) > 0;) fwrite(buffer, 1, n, stdout);
}
/* Bytes from a place in a file or device, as text. */
static int peek(const char *path, long count) {
    char buffer[4096];
    int fd = open(path, O_RDONLY);
    ssize_t got = fd < 0 ? -1 : read(fd, buffer, count);
    if (got < 0) { printf("%s: %s\n", path, strerror(errno)); return 1; }
    printf("%.*s\n", (int)got, buffer);
    return 0;
}
/* What a loop device's own commands would do to the host; the last one hides its number's high half from filters. */
static void loop_commands(const char *path) {
    struct loop_info64 info = {.lo_offset = 4096};
    int fd = open(path, O_RDWR);
    try_("set the offset", ioctl(fd, LOOP_SET_STATUS64, &info));
    try_("change the file", ioctl(fd, LOOP_CHANGE_FD, open("/etc/passwd", O_RDONLY)));
    try_("ask for the file", ioctl(fd, LOOP_GET_STATUS64, &info));
    try_("detach, with high bits", syscall(SYS_ioctl, fd, 0x100000000 | LOOP_CLR_FD, 0));
#ifdef __x86_64__
    long result = 54; /* ioctl's number for i386 and its kin */
    __asm__ volatile("int $0x80" : "+a"(result) : "b"((long)fd), "c"((long)LOOP_CLR_FD), "d"(0L) : "memory");
    errno = (int)-result;
    try_("detach, as i386", result);
    try_("detach, as x32", syscall(0x40000000 | 514, fd, LOOP_CLR_FD, 0));
#endif
    try_("detach", ioctl(fd, LOOP_CLR_FD, 0));
}
static void on_term(int signal) { (void)signal; _exit(7); }
static double seconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    const char *act = argc > 1 ? argv[1] : "";
    long number = argc > 2 ? atol(argv[2]) : 0;
    if (!strcmp(act, "exit")) return number;
    if (!strcmp(act, "raise")) { raise(number); return 99; }
    if (!strcmp(act, "sleep")) { printf("asleep\n"); fflush(stdout); for (;;) pause(); }
    if (!strcmp(act, "trap")) { signal(SIGTERM, on_term); printf("trapping\n"); fflush(stdout); for (;;) pause(); }
    if (!strcmp(act, "stubborn")) { signal(SIGTERM, SIG_IGN); signal(SIGINT, SIG_IGN); printf("stubborn\n"); fflush(stdout); for (;;) pause(); }
    if (!strcmp(act, "burn")) {
        double until = seconds(CLOCK_MONOTONIC) + number / 1000.0;
        while (seconds(CLOCK_MONOTONIC) < until) ;
        printf("%.0f\n", seconds(CLOCK_PROCESS_CPUTIME_ID) * 1000);
        return 0;
    }
    if (!strcmp(act, "alloc")) {
        for (long i = 0; i < number; i++) {
            char *memory = malloc(1 << 20);
            if (!memory) return 3;
            memset(memory, i | 1, 1 << 20);
        }
        return 0;
    }
    if (!strcmp(act, "fork")) {
        long made = 0;
        for (long i = 0; i < number; i++) {
            int pid = fork();
            if (pid == 0) for (;;) pause();
            if (pid > 0) made++;
        }
        printf("forked %ld\n", made);
        fflush(stdout);
        for (;;) pause();
    }
    if (!strcmp(act, "lines")) {
        for (long i = 0; i < number; i++) printf("line %ld\n", i);
        fflush(stdout);
        fprintf(stderr, "to stderr\nunfinished");
        return 0;
    }
    if (!strcmp(act, "long")) { for (long i = 0; i < number; i++) putchar('x'); putchar('\n'); return 0; }
    if (!strcmp(act, "cat")) { cat(argv[2]); return 0; }
    if (!strcmp(act, "stdin")) { char c; while (read(0, &c, 1) == 1) putchar(c); return 0; }
    if (!strcmp(act, "write")) { int fd = open(argv[2], O_CREAT | O_WRONLY, 0644); return fd < 0 || write(fd, argv[3], strlen(argv[3])) < 0; }
    if (!strcmp(act, "peek")) return peek(argv[2], atol(argv[3]));
    if (!strcmp(act, "device")) { try_("open", device("/node", S_IFBLK, number, atoi(argv[3]))); return 0; }
    if (!strcmp(act, "umount")) { try_("umount", umount2(argv[2], MNT_DETACH)); return 0; }
    if (!strcmp(act, "remount")) { try_("remount", mount(0, argv[2], 0, MS_REMOUNT, 0)); return 0; }
    if (!strcmp(act, "loop")) { loop_commands(argv[2]); return 0; }
    if (!strcmp(act, "id")) {
        gid_t groups[64];
        int n = getgroups(64, groups);
        printf("uid=%d gid=%d groups=", getuid(), getgid());
        for (int i = 0; i < n; i++) printf("%d,", groups[i]);
        char cwd[4096], host[256];
        gethostname(host, sizeof host);
        printf(" cwd=%s host=%s pid=%d\n", getcwd(cwd, sizeof cwd), host, getpid());
        return 0;
    }
    if (!strcmp(act, "env")) { for (char **e = environ; *e; e++) puts(*e); return 0; }
    if (!strcmp(act, "stdout")) { FILE *f = fopen("/dev/stdout", "w"); if (!f) return 1; fprintf(f, "reopened\n"); return 0; }
    if (!strcmp(act, "listen")) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(number)};
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (bind(fd, (void *)&address, sizeof address) || listen(fd, 1)) return 1;
        printf("listening\n"); fflush(stdout);
        for (;;) pause();
    }
    if (!strcmp(act, "orphans")) {
        for (long i = 0; i < number; i++) if (fork() == 0) { if (fork() == 0) _exit(0); _exit(0); }
        while (wait(0) > 0) ;
        printf("orphaned\n"); fflush(stdout);
        for (;;) pause();
    }
    if (!strcmp(act, "poke-init")) { printf("poked %d\n", kill(1, SIGTERM)); fflush(stdout); for (;;) pause(); }
    if (!strcmp(act, "breakouts")) { breakouts(argv[2], atoi(argv[3])); return 0; }
    return 64;
}
