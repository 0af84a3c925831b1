//! The kernel's tables of sockets (`/proc/PID/net/tcp` and its like; proc(5)), read for one network namespace. It must not
//! know whose sockets they are.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A socket in state TCP_LISTEN.
pub const TCP_LISTEN: &str = "0A";
/// An unconnected UDP socket, which is how one listens there.
pub const UDP_OPEN: &str = "07";

/// One line of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Socket {
    pub at: SocketAddr,
    pub inode: u64,
}

/// The sockets of a table that are in this state. A line that is not understood is left out.
pub fn in_state<'a>(table: &'a str, state: &'a str) -> impl Iterator<Item = Socket> + 'a {
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, its_state) = (fields.next()?, fields.nth(1)?);
        let inode = fields.nth(5)?.parse().ok()?;
        (its_state == state).then_some(Socket { at: address(local)?, inode })
    })
}

/// `0100007F:1F90` is 127.0.0.1:8080: words of the address in host order, the port big-endian.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| Some(u32::from_str_radix(ip.get(8 * at..8 * at + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (at, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Where the namespace of the first of these processes that still lives listens for TCP. `None`: none lives.
pub fn listening(pids: &BTreeSet<i32>) -> Option<Vec<SocketAddr>> {
    pids.iter().find_map(|pid| {
        let table = |name: &str| fs::read_to_string(format!("/proc/{pid}/net/{name}")).ok();
        // A kernel without IPv6 has no second table.
        let tables = [table("tcp")?, table("tcp6").unwrap_or_default()];
        let found = tables.iter().flat_map(|table| in_state(table, TCP_LISTEN));
        // What is bound to ::ffff:127.0.0.1 listens on 127.0.0.1.
        Some(found.map(|socket| SocketAddr::new(socket.at.ip().to_canonical(), socket.at.port())).collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 6.1 wrote them on a little-endian machine: a listener on 0.0.0.0:8080, one on 127.0.0.1:5432, a connection.
    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
        \x20  0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 41001 1 0000000000000000 100 0 0 10 0\n\
        \x20  1: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000   999        0 41002 1 0000000000000000 100 0 0 10 0\n\
        \x20  2: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 41003 1 0000000000000000 20 4 0 10 -1\n";
    /// `[::]`, `::1`, and IPv4 through a socket of IPv6.
    const TCP6: &str = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
        \x20  0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 51001 1 0000000000000000 100 0 0 10 0\n\
        \x20  1: 00000000000000000000000001000000:0BB8 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 51002 1 0000000000000000 100 0 0 10 0\n\
        \x20  2: 0000000000000000FFFF00000100007F:0BB9 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 51003 1 0000000000000000 100 0 0 10 0\n";

    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernels_tables_are_read() {
        let found = |table| in_state(table, TCP_LISTEN).map(|s| (s.at.to_string(), s.inode)).collect::<Vec<_>>();
        assert_eq!(found(TCP), [("0.0.0.0:8080".into(), 41001), ("127.0.0.1:5432".into(), 41002)]);
        let mapped = "[::ffff:127.0.0.1]:3001";
        assert_eq!(found(TCP6), [("[::]:80".into(), 51001), ("[::1]:3000".into(), 51002), (mapped.into(), 51003)]);
        for broken in ["", "head\n", "head\n0: nonsense", "head\n 0: 0100007F:1F90 00000000:0000 0A 1 2 3 4 5 x"] {
            assert_eq!(found(broken), []);
        }
    }

    #[test]
    fn a_namespace_is_seen_through_any_process_in_it() {
        let listeners =
            ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"].map(|at| std::net::TcpListener::bind(at).unwrap());
        let me = i32::try_from(std::process::id()).unwrap();
        let seen = listening(&BTreeSet::from([me])).unwrap();
        for listener in &listeners {
            let at = listener.local_addr().unwrap();
            let at = SocketAddr::new(at.ip().to_canonical(), at.port());
            assert!(seen.contains(&at), "{at} in {seen:?}");
        }
        assert_eq!(listening(&BTreeSet::from([i32::MAX])), None);
    }
}
