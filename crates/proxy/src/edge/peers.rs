//! Who a connection is from: its peer, or, if that is a proxy which is trusted with it, whom the PROXY protocol names.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::proxy_protocol::{Ends, MAX_BYTES, parse};

/// A trusted proxy that has not said it by then is closed.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// A header comes in one piece nearly always; between two looks at one that does not.
const LOOK_WAIT: Duration = Duration::from_millis(2);

/// A range of addresses, `10.0.0.0/8`; without a length, one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    first: IpAddr,
    length: u32,
}

impl std::str::FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a range of addresses");
        let (addr, length) = text.split_once('/').map_or((text, None), |(addr, length)| (addr, Some(length)));
        let first: IpAddr = addr.parse().map_err(|_| wrong())?;
        let most = if first.is_ipv4() { 32 } else { 128 };
        let length = length.map_or(Ok(most), |length| length.parse().map_err(|_| wrong()))?;
        if length > most { Err(wrong()) } else { Ok(Self { first, length }) }
    }
}

impl Range {
    pub fn contains(&self, addr: IpAddr) -> bool {
        let differ = match (self.first, addr.to_canonical()) {
            (IpAddr::V4(first), IpAddr::V4(addr)) => u128::from(first.to_bits() ^ addr.to_bits()) << 96,
            (IpAddr::V6(first), IpAddr::V6(addr)) => first.to_bits() ^ addr.to_bits(),
            _ => return false,
        };
        differ.leading_zeros() >= self.length
    }
}

/// The ends of a client's connection. Takes the header of a trusted proxy off the stream; one that sends none is
/// refused, for its own address says nothing about its client.
pub async fn ends(socket: &mut TcpStream, from: SocketAddr, trusted: &[Range]) -> io::Result<Ends> {
    let own = Ends { source: from, destination: socket.local_addr()? };
    if !trusted.iter().any(|range| range.contains(from.ip())) {
        return Ok(own);
    }
    let deadline = Instant::now() + HEADER_TIMEOUT;
    let mut buffer = vec![0; MAX_BYTES];
    loop {
        let looked = tokio::time::timeout_at(deadline, socket.peek(&mut buffer)).await;
        let seen = looked.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        if seen == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some((length, header)) = parse(&buffer[..seen]).map_err(io::Error::other)? {
            // They are there: this does not wait.
            socket.read_exact(&mut buffer[..length]).await?;
            return Ok(header.ends.unwrap_or(own));
        }
        tokio::time::sleep(LOOK_WAIT).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_its_addresses_and_no_neighbour() {
        let holds = |range: &str, addr: &str| range.parse::<Range>().unwrap().contains(addr.parse().unwrap());
        assert!(holds("10.0.0.0/8", "10.255.0.1") && !holds("10.0.0.0/8", "11.0.0.0"));
        assert!(holds("10.0.0.1", "10.0.0.1") && !holds("10.0.0.1", "10.0.0.2"));
        assert!(holds("10.0.0.1", "::ffff:10.0.0.1") && !holds("10.0.0.1", "::1"));
        assert!(holds("2001:db8::/33", "2001:db8:7fff::1") && !holds("2001:db8::/33", "2001:db8:8000::1"));
        assert!(holds("0.0.0.0/0", "255.1.2.3") && !holds("0.0.0.0/0", "2001::1"));
        for wrong in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "a/8", "10.0.0.0/", "10.0.0.0/-1"] {
            assert!(wrong.parse::<Range>().is_err(), "{wrong:?}");
        }
    }
}
