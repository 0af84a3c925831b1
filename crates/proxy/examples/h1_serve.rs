//! What a request costs a server, framing and sockets together: CPU µs on the server's thread, this framing beside
//! hyper's, interleaved. `cargo run --release -p godwit-proxy --example h1_serve [requests]`.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;

use bytes::Bytes;
use godwit_proxy::h1::io::{Options, serve};
use godwit_proxy::interim::Interims;
use http::Response;
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

const CONNECTIONS: usize = 32;
const ROUNDS: usize = 5;
const REQUEST: &[u8] = b"GET /assets/app.js?v=17 HTTP/1.1\r\nHost: shop.example.com\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n\
    Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\nAccept-Encoding: gzip, deflate, br\r\nAccept-Language: de-AT\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef\r\n\r\n";

fn answer() -> Response<Full<Bytes>> {
    static BODY: [u8; 1024] = [b'x'; 1024];
    Response::new(Full::new(Bytes::from_static(&BODY)))
}

/// A server on a thread of its own: its address, and where its CPU time stands.
fn start(ours: bool) -> (SocketAddr, std::path::PathBuf) {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
            let thread = std::fs::read_link("/proc/thread-self").expect("procfs");
            let clock = std::path::Path::new("/proc").join(thread).join("schedstat");
            sender.send((listener.local_addr().expect("an address"), clock)).expect("a waiting main");
            while let Ok((socket, _)) = listener.accept().await {
                let _ = socket.set_nodelay(true);
                if ours {
                    tokio::spawn(async move {
                        serve(
                            socket,
                            &Options::default(),
                            &Interims::default(),
                            |_, _| async { answer() },
                            std::future::pending(),
                        )
                        .await
                    });
                } else {
                    let service = hyper::service::service_fn(|_| async { Ok::<_, Infallible>(answer()) });
                    let mut builder = hyper::server::conn::http1::Builder::new();
                    builder
                        .timer(hyper_util::rt::TokioTimer::new())
                        .header_read_timeout(std::time::Duration::from_secs(30));
                    tokio::spawn(builder.serve_connection(TokioIo::new(socket), service));
                }
            }
        });
    });
    receiver.recv().expect("a server")
}

fn cpu_ns(clock: &std::path::Path) -> u64 {
    let text = std::fs::read_to_string(clock).expect("schedstat");
    text.split(' ').next().and_then(|ns| ns.parse().ok()).expect("a number")
}

/// Sends `count` requests, one at a time on each connection, all connections in step.
fn load(addr: SocketAddr, count: usize) {
    let mut sockets: Vec<_> = (0..CONNECTIONS).map(|_| TcpStream::connect(addr).expect("a connection")).collect();
    let mut buf = [0; 4096];
    for _ in 0..count / CONNECTIONS {
        for socket in &mut sockets {
            socket.write_all(REQUEST).expect("a request sent");
        }
        for socket in &mut sockets {
            let mut read = 0;
            // Head and body: more than the body alone, and its last byte.
            while read < 1024 + 30 || buf[read - 1] != b'x' {
                let got = socket.read(&mut buf[read..]).expect("an answer");
                assert!(got > 0, "the server closed");
                read += got;
            }
        }
    }
}

fn main() {
    let count = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(40_000);
    let servers = [("hyper", start(false)), ("h1", start(true))];
    let mut best = [f64::MAX; 2];
    for _ in 0..ROUNDS {
        for (index, (_, (addr, clock))) in servers.iter().enumerate() {
            let before = cpu_ns(clock);
            load(*addr, count);
            let us = (cpu_ns(clock) - before) as f64 / count as f64 / 1000.0;
            best[index] = best[index].min(us);
        }
    }
    for ((name, _), us) in servers.iter().zip(best) {
        println!("{name:<6} {us:>6.2} CPU us a request, best of {ROUNDS}");
    }
    println!("ratio to hyper {:.2}", best[1] / best[0]);
}
