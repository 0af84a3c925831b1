//! The PROXY protocol, by which one proxy tells the next who its client is. Pure.
//!
//! "The PROXY protocol, versions 1 & 2" (haproxy, `doc/proxy-protocol.txt`), sections 2.1 and 2.2.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A line of version 1, its end included.
const MAX_V1_BYTES: usize = 107;
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const V2_HEAD_BYTES: usize = 16;
/// Addresses and additions of version 2; more is nobody's honest need.
const MAX_V2_BYTES: usize = 2 << 10;
/// No header is longer.
pub const MAX_BYTES: usize = V2_HEAD_BYTES + MAX_V2_BYTES;

const V2: u8 = 0x20;
const LOCAL: u8 = 0;
const PROXY: u8 = 1;
const TCP_V4: u8 = 0x11;
const TCP_V6: u8 = 0x21;

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Nothing for a connection of the other proxy's own, or one that it cannot describe.
    pub ends: Option<Ends>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// What was sent is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no PROXY protocol header")]
pub struct NoHeader;

/// Reads the header at the start of `buf`, with its length; nothing yet while more bytes are needed.
pub fn parse(buf: &[u8]) -> Result<Option<(usize, Header)>, NoHeader> {
    let is_v2 = buf.iter().zip(&SIGNATURE).all(|(is, must)| is == must);
    if is_v2 && !buf.is_empty() { parse_v2(buf) } else { parse_v1(buf) }
}

fn parse_v1(buf: &[u8]) -> Result<Option<(usize, Header)>, NoHeader> {
    const BEGIN: &[u8] = b"PROXY ";
    if !buf.iter().zip(BEGIN).all(|(is, must)| is == must) {
        return Err(NoHeader);
    }
    let window = &buf[..buf.len().min(MAX_V1_BYTES)];
    let Some(end) = window.windows(2).position(|two| two == b"\r\n") else {
        return if window.len() < MAX_V1_BYTES { Ok(None) } else { Err(NoHeader) };
    };
    let line = std::str::from_utf8(window.get(BEGIN.len()..end).ok_or(NoHeader)?).map_err(|_| NoHeader)?;
    let ends = match line.split(' ').collect::<Vec<_>>()[..] {
        ["UNKNOWN", ..] => None,
        ["TCP4", source, destination, from, to] => {
            let addr = |text: &str| text.parse::<Ipv4Addr>().map(IpAddr::V4).map_err(|_| NoHeader);
            Some(ends(addr(source)?, addr(destination)?, port(from)?, port(to)?))
        }
        ["TCP6", source, destination, from, to] => {
            let addr = |text: &str| text.parse::<Ipv6Addr>().map(IpAddr::V6).map_err(|_| NoHeader);
            Some(ends(addr(source)?, addr(destination)?, port(from)?, port(to)?))
        }
        _ => return Err(NoHeader),
    };
    Ok(Some((end + 2, Header { ends })))
}

fn ends(source: IpAddr, destination: IpAddr, from: u16, to: u16) -> Ends {
    Ends { source: SocketAddr::new(source, from), destination: SocketAddr::new(destination, to) }
}

/// Digits without a sign or a zero before them.
fn port(text: &str) -> Result<u16, NoHeader> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    if plain { text.parse().map_err(|_| NoHeader) } else { Err(NoHeader) }
}

fn parse_v2(buf: &[u8]) -> Result<Option<(usize, Header)>, NoHeader> {
    let Some((head, rest)) = buf.split_at_checked(V2_HEAD_BYTES) else { return Ok(None) };
    let (command, family) = (head[12], head[13]);
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if command & 0xf0 != V2 || length > MAX_V2_BYTES {
        return Err(NoHeader);
    }
    let Some(body) = rest.get(..length) else { return Ok(None) };
    let ends = match (command & 0x0f, family) {
        (LOCAL, _) => None,
        (PROXY, TCP_V4) => {
            let part: &[u8; 12] = body.first_chunk().ok_or(NoHeader)?;
            let [a, b, c, d, e, f, g, h, from @ .., to_1, to_2] = *part;
            let (source, destination) = (Ipv4Addr::new(a, b, c, d), Ipv4Addr::new(e, f, g, h));
            Some(ends(source.into(), destination.into(), u16::from_be_bytes(from), u16::from_be_bytes([to_1, to_2])))
        }
        (PROXY, TCP_V6) => {
            let source: &[u8; 16] = body.first_chunk().ok_or(NoHeader)?;
            let destination: &[u8; 16] = body[16..].first_chunk().ok_or(NoHeader)?;
            let [from_1, from_2, to_1, to_2] = *body[32..].first_chunk().ok_or(NoHeader)?;
            let (from, to) = (u16::from_be_bytes([from_1, from_2]), u16::from_be_bytes([to_1, to_2]));
            Some(ends(Ipv6Addr::from(*source).into(), Ipv6Addr::from(*destination).into(), from, to))
        }
        // Datagrams, unix sockets, and what is unspecified: accepted, and said nothing of.
        (PROXY, _) => None,
        _ => return Err(NoHeader),
    };
    Ok(Some((V2_HEAD_BYTES + length, Header { ends })))
}

/// Both ends in one family: of two that differ, the older one is written as the newer.
fn in_one_family(ends: Ends) -> (IpAddr, IpAddr) {
    match (ends.source.ip().to_canonical(), ends.destination.ip().to_canonical()) {
        (IpAddr::V4(source), IpAddr::V6(destination)) => (source.to_ipv6_mapped().into(), destination.into()),
        (IpAddr::V6(source), IpAddr::V4(destination)) => (source.into(), destination.to_ipv6_mapped().into()),
        same => same,
    }
}

/// The line of version 1.
pub fn v1(ends: Ends) -> Vec<u8> {
    let (source, destination) = in_one_family(ends);
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (ends.source.port(), ends.destination.port());
    format!("PROXY {family} {source} {destination} {from} {to}\r\n").into_bytes()
}

/// The header of version 2, without additions.
pub fn v2(ends: Ends) -> Vec<u8> {
    let mut out = SIGNATURE.to_vec();
    let mut put = |family: u8, source: &[u8], destination: &[u8]| {
        let length = (source.len() + destination.len() + 4) as u8;
        out.extend([V2 | PROXY, family, 0, length]);
        out.extend(source);
        out.extend(destination);
    };
    match in_one_family(ends) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => put(TCP_V4, &source.octets(), &destination.octets()),
        (source, destination) => put(TCP_V6, &v6(source).octets(), &v6(destination).octets()),
    }
    out.extend(ends.source.port().to_be_bytes());
    out.extend(ends.destination.port().to_be_bytes());
    out
}

fn v6(addr: IpAddr) -> Ipv6Addr {
    match addr {
        IpAddr::V4(addr) => addr.to_ipv6_mapped(),
        IpAddr::V6(addr) => addr,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn said(bytes: &[u8]) -> Result<Option<(usize, Option<String>)>, NoHeader> {
        let read = parse(bytes)?;
        Ok(read
            .map(|(length, header)| (length, header.ends.map(|ends| format!("{}>{}", ends.source, ends.destination)))))
    }

    #[test]
    fn lines_of_version_1_are_read_to_the_letter() {
        let told = |text: &str, length| Ok(Some((length, Some(text.to_owned()))));
        let line = b"PROXY TCP4 10.0.0.1 10.0.0.2 1234 80\r\nGET /";
        assert_eq!(said(line), told("10.0.0.1:1234>10.0.0.2:80", 38));
        let line = b"PROXY TCP6 2001:db8::1 ::1 65535 443\r\n";
        assert_eq!(said(line), told("[2001:db8::1]:65535>[::1]:443", line.len()));
        assert_eq!(said(b"PROXY UNKNOWN\r\n"), Ok(Some((15, None))));
        assert_eq!(said(b"PROXY UNKNOWN ffff::1 x y\r\nx"), Ok(Some((27, None))));
        for unfinished in ["", "P", "PROXY", "PROXY TCP4 10.0.0.1", "PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r"] {
            assert_eq!(said(unfinished.as_bytes()), Ok(None), "{unfinished:?}");
        }
        for wrong in [
            "GET / HTTP/1.1\r\n",
            "proxy TCP4 10.0.0.1 10.0.0.2 1 2\r\n",
            "PROXY TCP4 10.0.0.1 10.0.0.2 1\r\n",
            "PROXY TCP4 10.0.0.1 10.0.0.2 1 2 3\r\n",
            "PROXY TCP4  10.0.0.1 10.0.0.2 1 2\r\n",
            "PROXY TCP4 10.0.0.256 10.0.0.2 1 2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 10.0.0.1 10.0.0.2 1 2\r\n",
            "PROXY TCP4 10.0.0.1 10.0.0.2 65536 2\r\n",
            "PROXY TCP4 10.0.0.1 10.0.0.2 +1 2\r\n",
            "PROXY TCP4 10.0.0.1 10.0.0.2 01 2\r\n",
            "PROXY UDP4 10.0.0.1 10.0.0.2 1 2\r\n",
            "PROXY TCP4 10.0.0.1 10.0.0.2 1 2\n",
        ] {
            let padded = format!("{wrong}{}", " ".repeat(MAX_V1_BYTES));
            assert_eq!(said(padded.as_bytes()), Err(NoHeader), "{wrong:?}");
        }
    }

    #[test]
    fn additions_of_version_2_are_passed_over_and_its_bounds_hold() {
        let ends = Ends { source: "10.0.0.1:5".parse().unwrap(), destination: "10.0.0.2:80".parse().unwrap() };
        let mut bytes = v2(ends);
        bytes[15] += 5;
        bytes.extend([0x03, 0, 2, 9, 9]);
        assert_eq!(parse(&bytes), Ok(Some((bytes.len(), Header { ends: Some(ends) }))));
        let mut local = v2(ends);
        local[12] = V2 | LOCAL;
        assert_eq!(parse(&local), Ok(Some((local.len(), Header { ends: None }))));
        for (at, value) in [(12, 0x11), (12, 0x22), (14, 0xff), (15, 3)] {
            let mut wrong = v2(ends);
            wrong[at] = value;
            assert_eq!(parse(&wrong), Err(NoHeader), "byte {at} as {value}");
        }
    }

    fn addr() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::from(Ipv4Addr::from(bits))),
            any::<u128>().prop_map(|bits| {
                // A mapped one is another way to write its IPv4 address.
                IpAddr::from(Ipv6Addr::from(bits | 1 << 127))
            })
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_no_part_of_it_is(
            source in addr(), destination in addr(), from: u16, to: u16, rest in proptest::collection::vec(any::<u8>(), 0..20)
        ) {
            let told = ends(source, destination, from, to);
            for bytes in [v1(told), v2(told)] {
                for cut in 0..bytes.len() {
                    prop_assert_eq!(parse(&bytes[..cut]), Ok(None));
                }
                let whole = [bytes.as_slice(), &rest].concat();
                let (length, header) = parse(&whole).unwrap().unwrap();
                prop_assert_eq!(length, bytes.len());
                let read = header.ends.unwrap();
                prop_assert_eq!(read.source.ip().to_canonical(), source);
                prop_assert_eq!(read.destination.ip().to_canonical(), destination);
                prop_assert_eq!((read.source.port(), read.destination.port()), (from, to));
            }
        }

        #[test]
        fn nothing_makes_it_panic_or_read_beyond_its_bound(bytes in proptest::collection::vec(any::<u8>(), 0..64), v2: bool) {
            let bytes = if v2 { [&SIGNATURE[..], &bytes].concat() } else { [&b"PROXY "[..], &bytes].concat() };
            if let Ok(Some((length, _))) = parse(&bytes) {
                prop_assert!(length <= bytes.len() && length <= MAX_BYTES);
            }
        }
    }
}
