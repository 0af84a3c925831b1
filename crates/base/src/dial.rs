//! A connection to a port of a Machine on this host, at whichever of its two addresses answers. Door and checks dial here
//! and nowhere else. `order` decides what comes first; this file opens sockets. It must not know Machines or their states.

pub mod order;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use tokio::net::TcpStream;

pub use order::{Addresses, Answered, Family};

/// An address that says nothing for so long no longer keeps the other from being tried beside it. On a host an answer or a
/// refusal takes microseconds; RFC 8305 (section 5) allows no less than 10 ms.
const HEAD_START: Duration = Duration::from_millis(20);

/// No connection at either address.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error("no answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// What the first and the second address said, in the order in which they were tried.
    #[error("{}", told(.0, .1.as_ref()))]
    Refused(Told, Option<Told>),
}

/// What one address said.
#[derive(Debug)]
pub struct Told {
    at: SocketAddr,
    error: io::Error,
}

fn told(first: &Told, second: Option<&Told>) -> String {
    let word = |told: &Told| match told.error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        _ => told.error.to_string(),
    };
    match second {
        None => format!("{}: {}", first.at, word(first)),
        Some(second) if word(second) == word(first) => format!("{} and {}: {}", first.at, second.at, word(first)),
        Some(second) => format!("{}: {}; {}: {}", first.at, word(first), second.at, word(second)),
    }
}

/// Opens a connection within `bound`, whatever the addresses do. `last` is the address that answered last; what comes back
/// beside the connection is the one that answered now.
pub async fn dial(
    to: Addresses,
    port: u16,
    last: Option<Family>,
    bound: Duration,
) -> Result<(TcpStream, Family), Failed> {
    tokio::time::timeout(bound, race(to, port, last)).await.unwrap_or(Err(Failed::TimedOut(bound)))
}

async fn race(to: Addresses, port: u16, last: Option<Family>) -> Result<(TcpStream, Family), Failed> {
    let (first, second) = to.order(last);
    let connect = |family: Family| async move {
        // `order` names no family that has no address.
        let at = to.at(family, port).unwrap_or_else(|| SocketAddr::from((to.v6, port)));
        let connected = TcpStream::connect(at).await;
        connected.map(|stream| (stream, family)).map_err(|error| Told { at, error })
    };
    let mut one = pin!(connect(first));
    let Some(second) = second else { return one.await.map_err(|told| Failed::Refused(told, None)) };
    tokio::select! {
        biased;
        connected = one.as_mut() => return match connected {
            Ok(connected) => Ok(connected),
            Err(refused) => connect(second).await.map_err(|told| Failed::Refused(refused, Some(told))),
        },
        () = tokio::time::sleep(HEAD_START) => {}
    }
    let mut two = pin!(connect(second));
    tokio::select! {
        connected = one.as_mut() => match connected {
            Ok(connected) => Ok(connected),
            Err(refused) => two.await.map_err(|told| Failed::Refused(refused, Some(told))),
        },
        connected = two.as_mut() => match connected {
            Ok(connected) => Ok(connected),
            Err(told) => one.await.map_err(|refused| Failed::Refused(refused, Some(told))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};
    use tokio::net::{TcpListener, TcpSocket};

    const BOTH: Addresses = Addresses { v6: Ipv6Addr::LOCALHOST, v4: Some(Ipv4Addr::LOCALHOST) };
    /// Far longer than anything here takes.
    const BOUND: Duration = Duration::from_secs(30);

    async fn answered(port: u16, last: Option<Family>) -> Family {
        dial(BOTH, port, last, BOUND).await.expect("a connection").1
    }

    #[tokio::test]
    async fn a_program_on_either_family_or_on_both_is_reached() {
        let v4 = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = v4.local_addr().unwrap().port();
        for last in [None, Some(Family::V6), Some(Family::V4)] {
            assert_eq!(answered(port, last).await, Family::V4, "IPv4 alone, {last:?} first");
        }
        drop(v4);
        let v6 = TcpListener::bind("[::1]:0").await.unwrap();
        let port = v6.local_addr().unwrap().port();
        for last in [None, Some(Family::V6), Some(Family::V4)] {
            assert_eq!(answered(port, last).await, Family::V6, "IPv6 alone, {last:?} first");
        }
        drop(v6);
        let dual = std::net::TcpListener::bind("[::]:0").unwrap();
        let port = dual.local_addr().unwrap().port();
        assert_eq!(answered(port, None).await, Family::V6);
        assert_eq!(answered(port, Some(Family::V4)).await, Family::V4, "what answered last stays first");
    }

    #[tokio::test]
    async fn a_refusal_names_what_was_tried() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        drop(taken);
        let failed = dial(BOTH, port, None, BOUND).await.unwrap_err().to_string();
        assert_eq!(failed, format!("[::1]:{port} and 127.0.0.1:{port}: connection refused"));
        let alone = Addresses { v4: None, ..BOTH };
        let failed = dial(alone, port, Some(Family::V4), BOUND).await.unwrap_err().to_string();
        assert_eq!(failed, format!("[::1]:{port}: connection refused"));
    }

    /// A queue that is full answers no SYN: such an address is silent, neither open nor refused.
    #[tokio::test]
    async fn an_address_that_is_silent_does_not_hide_the_other_and_the_time_is_bounded() {
        let v4 = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = v4.local_addr().unwrap().port();
        let silent = TcpSocket::new_v6().unwrap();
        silent.bind(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).unwrap();
        let _full = silent.listen(1).unwrap();
        let mut queued = Vec::new();
        while let Ok(Ok(stream)) =
            tokio::time::timeout(Duration::from_millis(200), TcpStream::connect((Ipv6Addr::LOCALHOST, port))).await
        {
            queued.push(stream);
            assert!(queued.len() < 64, "the queue never fills");
        }
        assert_eq!(answered(port, None).await, Family::V4);
        drop(v4);
        let alone = Addresses { v4: None, ..BOTH };
        let bound = Duration::from_millis(50);
        assert!(matches!(dial(alone, port, None, bound).await, Err(Failed::TimedOut(told)) if told == bound));
    }
}
