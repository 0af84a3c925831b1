//! Weighing on the Machine's limits on purpose: processor time, memory, processes, and the process's own end.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde_json::{Value, json};

const PAGE_BYTES: usize = 4096;
/// Between the answer of `/exit` and the exit: the answer should still leave.
const EXIT_DELAY: Duration = Duration::from_millis(50);

/// What `/alloc` holds until the process ends.
static HELD: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Spins for `time` of the wall clock and tells how much processor time it got.
pub fn burn(time: Duration) -> Value {
    let (begin, cpu_begin) = (Instant::now(), thread_time());
    let mut spins = 0u64;
    while begin.elapsed() < time {
        for _ in 0..1000 {
            spins = std::hint::black_box(spins.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
    let cpu = thread_time().saturating_sub(cpu_begin);
    json!({ "wall_ms": begin.elapsed().as_millis() as u64, "cpu_ms": cpu.as_millis() as u64 })
}

fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec to the valid pointer that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Allocates and touches every page, so that the memory is really used.
pub fn allocate(mb: u64) -> Value {
    let mut held = HELD.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for _ in 0..mb {
        let mut block = vec![0u8; 1 << 20];
        for page in block.chunks_mut(PAGE_BYTES) {
            page[0] = 1;
        }
        held.push(std::hint::black_box(block));
    }
    json!({ "held_mb": held.len() })
}

/// Stack of a child that only waits.
const CHILD_STACK_BYTES: usize = 4096;

/// Starts up to `n` children that do nothing, tells how many the kernel let it have, and ends them again. They share
/// our memory, so that the bound on processes is met before the bound on memory.
pub fn fork(n: u64) -> Value {
    let mut children: Vec<(Pid, Box<Stack>)> = Vec::new();
    let mut refused = None;
    for _ in 0..n {
        let mut stack = Box::new(Stack([0; CHILD_STACK_BYTES]));
        let flags = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::SIGCHLD;
        // SAFETY: the stack is the child's alone, aligned, large enough for pause(2), and freed only after the child
        // has been waited for; `wait_for_ever` touches nothing but its own stack and never returns.
        let pid = unsafe {
            let top = stack.0.as_mut_ptr().add(CHILD_STACK_BYTES);
            libc::clone(wait_for_ever, top.cast(), flags, std::ptr::null_mut())
        };
        if pid < 0 {
            refused = Some(std::io::Error::last_os_error().to_string());
            break;
        }
        children.push((Pid::from_raw(pid), stack));
    }
    let forked = children.len();
    for (child, stack) in children {
        // They are ours and have not been waited for, so both calls succeed.
        let _ = kill(child, Signal::SIGKILL);
        let _ = waitpid(child, None);
        drop(stack);
    }
    json!({ "asked": n, "forked": forked, "refused": refused })
}

#[repr(align(16))]
struct Stack([u8; CHILD_STACK_BYTES]);

extern "C" fn wait_for_ever(_: *mut libc::c_void) -> libc::c_int {
    loop {
        // SAFETY: a plain system call without arguments.
        unsafe { libc::pause() };
    }
}

/// Ends the process once the answer has had time to leave.
pub fn exit_soon(code: i32) {
    tokio::spawn(async move {
        tokio::time::sleep(EXIT_DELAY).await;
        println!("demo-app: exit {code}, as asked");
        std::process::exit(code);
    });
}
