//! What a head costs: nanoseconds for one typical request of a browser, and one typical answer, beside `httparse`
//! alone in the same minute. `cargo run --release -p godwit-proxy --example h1_head [rounds]`.

use std::hint::black_box;
use std::time::Instant;

use bytes::Bytes;
use godwit_proxy::h1::body::Decoder;
use godwit_proxy::h1::framing::Framing;
use godwit_proxy::h1::{Limits, RequestHead, ResponseHead, Side, map, write};

const REQUEST: &str = "GET /assets/app-3f2b91c0.js?v=17 HTTP/1.1\r\n\
    Host: shop.example.com\r\n\
    Connection: keep-alive\r\n\
    sec-ch-ua: \"Chromium\";v=\"142\", \"Not_A Brand\";v=\"99\"\r\n\
    sec-ch-ua-mobile: ?0\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36\r\n\
    sec-ch-ua-platform: \"Linux\"\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
    Sec-Fetch-Site: same-origin\r\n\
    Sec-Fetch-Mode: no-cors\r\n\
    Sec-Fetch-Dest: script\r\n\
    Referer: https://shop.example.com/\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Accept-Language: de-AT,de;q=0.9,en;q=0.8\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef; theme=dark; consent=1\r\n\r\n";

const ANSWER: &str = "HTTP/1.1 200 OK\r\n\
    Server: nginx\r\n\
    Date: Tue, 24 Nov 2026 10:00:00 GMT\r\n\
    Content-Type: application/javascript\r\n\
    Content-Length: 1024\r\n\
    Last-Modified: Tue, 24 Nov 2026 09:00:00 GMT\r\n\
    Connection: keep-alive\r\n\
    ETag: \"6742f3a0-400\"\r\n\
    Cache-Control: max-age=3600\r\n\
    Accept-Ranges: bytes\r\n\r\n";

/// The best of some rounds: what else runs on the machine only ever makes it slower.
fn measure(name: &str, rounds: u32, mut work: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..10 {
        let start = Instant::now();
        for _ in 0..rounds {
            work();
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(rounds));
    }
    println!("{name:<52} {best:>8.0} ns");
    best
}

fn main() {
    let rounds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(20_000);
    let limits = Limits::default();
    println!("request: {} bytes; answer: {} bytes", REQUEST.len(), ANSWER.len());
    let base = measure("httparse alone, request", rounds, || {
        let mut headers = [std::mem::MaybeUninit::uninit(); 128];
        let mut request = httparse::Request::new(&mut []);
        black_box(request.parse_with_uninit_headers(black_box(REQUEST.as_bytes()), &mut headers).is_ok());
    });
    let mut head = RequestHead::default();
    let parse = measure("request: parse", rounds, || {
        black_box(head.parse(black_box(REQUEST.as_bytes()), &mut 0, &limits).is_ok());
    });
    let mut out = Vec::with_capacity(2048);
    let copied = measure("request: parse, write (H1 to H1)", rounds, || {
        let buf = black_box(REQUEST.as_bytes());
        out.clear();
        if let Ok(Some(length)) = head.parse(buf, &mut 0, &limits) {
            let buf = &buf[..length];
            write::request_line(&mut out, head.method.in_buf(buf), head.path(buf));
            write::field(&mut out, b"host", head.host.in_buf(buf));
            write::request_fields(&mut out, &head, buf);
            write::field(&mut out, b"x-forwarded-for", b"203.0.113.9");
            write::framing(&mut out, head.framing);
            write::end(&mut out);
        }
        black_box(&out);
    });
    let shared = Bytes::from_static(REQUEST.as_bytes());
    let owned = Bytes::from(REQUEST.as_bytes().to_vec());
    let mapped = measure("request: parse, map to http::Request", rounds, || {
        if let Ok(Some(_)) = head.parse(black_box(&owned), &mut 0, &limits) {
            black_box(map::request(&head, &owned).is_ok());
        }
    });
    let _ = head.parse(&shared, &mut 0, &limits);
    let request = map::request(&head, &shared).unwrap_or_default();
    let from_map = measure("request: write from a HeaderMap", rounds, || {
        out.clear();
        write::request_line(&mut out, b"GET", b"/assets/app-3f2b91c0.js?v=17");
        write::map_fields(&mut out, black_box(request.headers()));
        write::end(&mut out);
        black_box(&out);
    });
    let mut answer = ResponseHead::default();
    let answered = measure("answer: parse", rounds, || {
        black_box(answer.parse(black_box(ANSWER.as_bytes()), &mut 0, &limits).is_ok());
    });
    let owned = Bytes::from(ANSWER.as_bytes().to_vec());
    measure("answer: parse, map to http::Response, write", rounds, || {
        if let Ok(Some(_)) = answer.parse(black_box(&owned), &mut 0, &limits) {
            out.clear();
            if let Ok(response) = map::response(&answer, &owned) {
                write::status_line(&mut out, response.status().as_u16());
                write::map_fields(&mut out, response.headers());
                write::content_length(&mut out, answer.length.unwrap_or(0));
                write::end(&mut out);
            }
            black_box(&out);
        }
    });
    let chunks = "400\r\n".to_owned() + &"x".repeat(1024) + "\r\n";
    let chunks = chunks.repeat(64) + "0\r\n\r\n";
    measure("64 chunks of 1 KiB: decode", rounds / 10 + 1, || {
        let _ = black_box(Decoder::new(Framing::Chunked, Side::Request).foresee(black_box(chunks.as_bytes())));
    });
    println!(
        "ratios to httparse: parse {:.2}, parse+write {:.2}, parse+map {:.2}, map+write {:.2}, answer {:.2}",
        parse / base,
        copied / base,
        mapped / base,
        from_map / base,
        answered / base
    );
}
