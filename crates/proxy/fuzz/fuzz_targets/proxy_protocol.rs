//! PROXY protocol headers of any bytes: what is read does not depend on how much comes behind it or when, a naive reading
//! of version 1 agrees, and what is written from it is read back.
#![no_main]

use std::net::IpAddr;

use godwit_proxy::proxy_protocol::{Ends, MAX_BYTES, parse, v1, v2};

/// Version 1 as the text of its specification has it, without bounds.
fn naive(bytes: &[u8]) -> Option<(usize, Option<Ends>)> {
    let end = bytes.windows(2).position(|two| two == b"\r\n")?;
    let words: Vec<&str> = std::str::from_utf8(&bytes[..end]).ok()?.split(' ').collect();
    let ends = match words[..] {
        ["PROXY", "UNKNOWN", ..] => None,
        ["PROXY", family @ ("TCP4" | "TCP6"), source, destination, from, to] => {
            let ip = |text: &str| text.parse::<IpAddr>().ok().filter(|ip| ip.is_ipv4() == (family == "TCP4"));
            let port = |text: &str| text.parse::<u16>().ok().filter(|port| port.to_string() == text);
            let at = |ip_text: &str, port_text: &str| Some((ip(ip_text)?, port(port_text)?).into());
            Some(Ends { source: at(source, from)?, destination: at(destination, to)? })
        }
        _ => return None,
    };
    Some((end + 2, ends))
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let whole = parse(bytes);
    for cut in 0..bytes.len().min(MAX_BYTES + 2) {
        match (&whole, parse(&bytes[..cut])) {
            (Ok(Some((length, _))), part) if cut < *length => assert_eq!(part, Ok(None)),
            // What is no header is found out at some byte and stays so; what is one does not change.
            (all, part) => assert!(part == Ok(None) || part == *all, "{part:?} {all:?}"),
        }
    }
    if bytes.starts_with(b"PROXY ") {
        match whole {
            Ok(Some((length, header))) => assert_eq!(naive(bytes), Some((length, header.ends))),
            Ok(None) => assert_eq!(naive(bytes), None),
            // A line longer than its bound is ours to refuse.
            Err(_) => assert!(naive(bytes).is_none_or(|(length, _)| length > 107)),
        }
    }
    if let Ok(Some((length, header))) = whole {
        assert!(length <= bytes.len() && length <= MAX_BYTES);
        if let Some(ends) = header.ends {
            for again in [v1(ends), v2(ends)] {
                let (length, read) = parse(&again).unwrap().unwrap();
                assert_eq!(length, again.len());
                let read = read.ends.unwrap();
                assert_eq!(read.source.ip().to_canonical(), ends.source.ip().to_canonical());
                assert_eq!(read.destination.ip().to_canonical(), ends.destination.ip().to_canonical());
                assert_eq!(
                    (read.source.port(), read.destination.port()),
                    (ends.source.port(), ends.destination.port())
                );
            }
        }
    }
});
