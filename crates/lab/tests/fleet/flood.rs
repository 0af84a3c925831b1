//! An edge under pressure: one enormous upload into a slow Machine, while ten thousand clients hold a connection each and a
//! thousand others send their request a byte at a time. `GODWIT_SOAK=1` makes the upload ten times as large.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use godwit_lab::plain;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{PATIENCE, demo_machine, fleet, run};

const IDLE: usize = 10_000;
const SLOW: usize = 1_000;
const CHUNK_BYTES: usize = 256 << 10;
/// What the Machine reads a second. Slower than what comes, and fast enough to end before idle connections do.
const PACE_MIB: u64 = 100;
/// Of edge and of door, each.
const GROWTH_MAX_KIB: u64 = 64 << 10;
/// Between two bytes of a slow client.
const DRIP: Duration = Duration::from_secs(2);
/// A head must be whole after 30 s; the rest is for a busy machine.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
const ASK_INTERVAL: Duration = Duration::from_millis(20);

#[test]
fn an_enormous_upload_and_clients_that_dawdle_cost_little_memory_and_nobody_an_answer() {
    run(async {
        let soak = std::env::var_os("GODWIT_SOAK").is_some();
        let (bytes, pace): (u64, u64) = if soak { (20 << 30, 4 * PACE_MIB) } else { (2 << 30, PACE_MIB) };
        let fleet = fleet(1, &[]);
        fleet.create_app("flood").await.expect("the app");
        demo_machine(&fleet, "flood", json!({ "guest": { "memory_mb": 256, "cpus": 2 } }), true).await;
        assert_eq!(fleet.get("flood", "/", PATIENCE).await.expect("an answer").status, 200);
        let dev = fleet.dev().expect("dev.json");
        let (addr, edge, door) = (dev.http_addr.clone(), dev.edge_pid, dev.hosts[0].door_pid);
        // What a large body needs is there: buffers of both ends, and what the allocator keeps.
        upload(&addr, 64 << 20, pace).await;

        let idle_count = room().min(IDLE);
        let idle: Vec<TcpStream> =
            stream::iter(0..idle_count).map(|_| idle(&addr)).buffer_unordered(32).collect().await;
        let slow: Vec<_> = (0..SLOW).map(|_| tokio::spawn(drip(addr.clone()))).collect();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = [resident_kib(edge), resident_kib(door)];

        let done = Arc::new(AtomicBool::new(false));
        let watching = tokio::spawn(highest([edge, door], done.clone()));
        let asking = tokio::spawn(ask(addr.clone(), done.clone()));
        let begun = Instant::now();
        upload(&addr, bytes, pace).await;
        let took = begun.elapsed();
        let still_idle =
            stream::iter(idle).map(answers_again).buffer_unordered(32).filter(|well| std::future::ready(*well));
        let still_idle = still_idle.count().await;
        done.store(true, Ordering::SeqCst);

        let highest = watching.await.expect("no panic");
        let grown = [highest[0].saturating_sub(before[0]), highest[1].saturating_sub(before[1])];
        let mut times = asking.await.expect("no panic");
        times.sort();
        let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e3;
        println!(
            "{} MiB in {:.1} s: the edge grew by {} KiB from {}, the door by {} KiB from {}; {} other requests: p50 {:.1} ms, \
             p99 {:.1} ms; {still_idle} of {idle_count} idle connections were served again",
            bytes >> 20,
            took.as_secs_f64(),
            grown[0],
            before[0],
            grown[1],
            before[1],
            times.len(),
            at(50),
            at(99)
        );
        assert!(grown.iter().all(|kib| *kib < GROWTH_MAX_KIB), "grown by {grown:?} KiB");
        assert!(took >= Duration::from_secs((bytes >> 20) / pace), "the Machine was not slow: {took:?}");
        // They are allowed a minute; an upload that takes longer finds them closed, which is their limit.
        assert!(soak || took > Duration::from_secs(55) || still_idle == idle_count, "{still_idle} in {took:?}");
        let mut closed = Vec::new();
        for one in slow {
            closed.push(one.await.expect("no panic"));
        }
        let latest = closed.iter().max().expect("a slow client");
        println!(
            "{SLOW} slow clients were closed after {:?} to {latest:?}",
            closed.iter().min().expect("a slow client")
        );
        assert!(closed.iter().all(|after| *after >= HEAD_TIMEOUT - DRIP), "closed too early: {closed:?}");
    });
}

/// For how many idle connections this process, and the edge, may open files besides the slow clients and all else.
fn room() -> usize {
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).expect("a limit");
    usize::try_from(hard).unwrap_or(usize::MAX).checked_sub(4 * SLOW).expect("at least 4,000 open files: ulimit -Hn")
}

/// A connection that has been served once.
async fn idle(addr: &str) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.expect("a connection");
    assert!(ask_on(&mut stream).await, "an answer");
    stream
}

async fn answers_again(mut stream: TcpStream) -> bool {
    ask_on(&mut stream).await
}

/// Whether a request on a kept connection is answered 200. Answers of the demo app are short.
async fn ask_on(stream: &mut TcpStream) -> bool {
    if stream.write_all(b"GET / HTTP/1.1\r\nHost: flood.localhost\r\n\r\n").await.is_err() {
        return false;
    }
    let mut answer = Vec::new();
    while !answer.ends_with(b"}\n") {
        match tokio::time::timeout(PATIENCE, stream.read_buf(&mut answer)).await {
            Ok(Ok(read)) if read > 0 => {}
            _ => return false,
        }
    }
    answer.starts_with(b"HTTP/1.1 200 ")
}

/// Sends a head without an end until the edge has had enough; how long that took.
async fn drip(addr: String) -> Duration {
    let mut stream = TcpStream::connect(addr).await.expect("a connection");
    let begun = Instant::now();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: flood.localhost\r\nX-Slow: ").await.expect("the head's beginning");
    let (mut from, mut to) = stream.split();
    let dripping = async {
        while to.write_all(b"a").await.is_ok() {
            tokio::time::sleep(DRIP).await;
        }
        std::future::pending::<()>().await;
    };
    let ended = async {
        let mut answer = Vec::new();
        // The end may be a reset: what it said before stands all the same.
        let _ = from.read_to_end(&mut answer).await;
        answer
    };
    let answer = tokio::select! {
        answer = tokio::time::timeout(HEAD_TIMEOUT + PATIENCE, ended) => answer.expect("slow clients are closed"),
        () = dripping => unreachable!("it never ends"),
    };
    assert!(answer.starts_with(b"HTTP/1.1 408 "), "{:?}", String::from_utf8_lossy(&answer));
    begun.elapsed()
}

/// Every answer must be a good one; how long each took.
async fn ask(addr: String, done: Arc<AtomicBool>) -> Vec<Duration> {
    let mut times = Vec::new();
    while !done.load(Ordering::SeqCst) {
        let begun = Instant::now();
        let answer = plain::get(&addr, "flood.localhost", "/", PATIENCE).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
        times.push(begun.elapsed());
        tokio::time::sleep(ASK_INTERVAL).await;
    }
    times
}

async fn upload(addr: &str, bytes: u64, pace: u64) {
    let mut stream = TcpStream::connect(addr).await.expect("a connection");
    let head = format!(
        "POST /echo?mib_per_s={pace} HTTP/1.1\r\nHost: flood.localhost\r\nContent-Length: {bytes}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("the head");
    let chunk = vec![0x5a; CHUNK_BYTES];
    let mut hash = Sha256::new();
    for _ in 0..bytes / CHUNK_BYTES as u64 {
        hash.update(&chunk);
        stream.write_all(&chunk).await.expect("the body goes on");
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("the answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains(&hex::encode(hash.finalize())), "{answer}");
}

/// The most that each of these processes had resident while it was looked at.
async fn highest(pids: [i32; 2], done: Arc<AtomicBool>) -> [u64; 2] {
    let mut most = [0; 2];
    while !done.load(Ordering::SeqCst) {
        for (most, pid) in most.iter_mut().zip(pids) {
            *most = resident_kib(pid).max(*most);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    most
}

fn resident_kib(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
}
