//! At which of a Machine's two addresses a port is tried first. Pure; it must not know sockets or time.
//!
//! A program that listens on `0.0.0.0` (what most guides say) is reached at the IPv4 address alone, one on `[::]` with
//! `IPV6_V6ONLY` at the IPv6 address alone, and nobody says which it is. So both are tried, and what answered last comes
//! first for as long as the process is the same.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// Where a Machine is dialed on its own host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The same on every host.
    pub v6: Ipv6Addr,
    /// Of this host's pool; another one after a move. None where the Machine has none, or none is known.
    pub v4: Option<Ipv4Addr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V6,
    V4,
}

impl Addresses {
    pub fn at(&self, family: Family, port: u16) -> Option<SocketAddr> {
        match family {
            Family::V6 => Some(SocketAddr::from((self.v6, port))),
            Family::V4 => self.v4.map(|v4| SocketAddr::from((v4, port))),
        }
    }

    /// What is tried first, and what if that is refused. `last` answered last; without it IPv6 goes first.
    pub fn order(&self, last: Option<Family>) -> (Family, Option<Family>) {
        match (self.v4, last) {
            (None, _) => (Family::V6, None),
            (Some(_), Some(Family::V4)) => (Family::V4, Some(Family::V6)),
            (Some(_), Some(Family::V6) | None) => (Family::V6, Some(Family::V4)),
        }
    }
}

/// What answered last, by port, in the life of one process. Never more ports than the Machine has services.
#[derive(Debug, Default)]
pub struct Answered {
    ports: Vec<(u16, Family)>,
}

impl Answered {
    pub fn last(&self, port: u16) -> Option<Family> {
        self.ports.iter().find(|(known, _)| *known == port).map(|(_, family)| *family)
    }

    pub fn note(&mut self, port: u16, family: Family) {
        match self.ports.iter_mut().find(|(known, _)| *known == port) {
            Some((_, last)) => *last = family,
            None => self.ports.push((port, family)),
        }
    }

    /// The process is another one now.
    pub fn forget(&mut self) {
        self.ports.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Addresses = Addresses { v6: Ipv6Addr::LOCALHOST, v4: Some(Ipv4Addr::LOCALHOST) };

    #[test]
    fn what_answered_last_is_tried_first_and_the_other_is_never_left_out() {
        assert_eq!(BOTH.order(None), (Family::V6, Some(Family::V4)));
        assert_eq!(BOTH.order(Some(Family::V6)), (Family::V6, Some(Family::V4)));
        assert_eq!(BOTH.order(Some(Family::V4)), (Family::V4, Some(Family::V6)));
        let one = Addresses { v4: None, ..BOTH };
        // A host whose agent tells no IPv4 address yet: what was remembered of it does not count.
        assert_eq!(one.order(Some(Family::V4)), (Family::V6, None));
        assert_eq!((one.at(Family::V4, 80), one.at(Family::V6, 80)), (None, Some("[::1]:80".parse().unwrap())));
    }

    #[test]
    fn each_port_has_its_own_memory_and_a_new_process_has_none() {
        let mut answered = Answered::default();
        answered.note(80, Family::V4);
        answered.note(81, Family::V6);
        answered.note(80, Family::V6);
        answered.note(80, Family::V4);
        assert_eq!(
            (answered.last(80), answered.last(81), answered.last(82)),
            (Some(Family::V4), Some(Family::V6), None)
        );
        answered.forget();
        assert_eq!(answered.last(80), None);
    }
}
