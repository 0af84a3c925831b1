//! From the sockets that a Machine listens on to what is wrong with them, and for how long that has been so. Pure: sockets
//! and moments come in, words go out. It must not know how sockets are read.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use godwit_base::dial::Addresses;

/// So long a fault must stand before anybody is told: some programs bind twice while they come up.
pub const SETTLED_MS: u64 = 2_000;
/// A program that listens on nothing may still be starting.
pub const SILENT_MS: u64 = 10_000;
/// After so long nothing is to be expected of waiting. Entrypoints of databases serve on loopback for a few seconds while
/// they set up.
pub const LASTING_MS: u64 = 5_000;
/// Sockets that a text names.
const NAMED: usize = 3;

/// How one port stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Something listens there that can be reached from outside.
    Open,
    /// What listens there can be reached from inside alone.
    Inside(Vec<SocketAddr>),
    /// Something listens, and on other ports only.
    Elsewhere(Vec<SocketAddr>),
    Silent,
}

/// Judges a port. `sockets` are all that listen; `wanted` all ports that are asked of the Machine.
pub fn judge(sockets: &[SocketAddr], port: u16, wanted: &BTreeSet<u16>, own: Addresses) -> Verdict {
    let here: Vec<SocketAddr> = sockets.iter().filter(|at| at.port() == port).copied().collect();
    if here.iter().any(|at| is_outside(at, own)) {
        return Verdict::Open;
    }
    if !here.is_empty() {
        return Verdict::Inside(named(here, own));
    }
    let others: Vec<SocketAddr> = sockets.iter().filter(|at| !wanted.contains(&at.port())).copied().collect();
    if others.is_empty() { Verdict::Silent } else { Verdict::Elsewhere(named(others, own)) }
}

/// Whether a connection from the Machine's host arrives there.
fn is_outside(at: &SocketAddr, own: Addresses) -> bool {
    let ip = at.ip();
    ip.is_unspecified() || ip == own.v6 || own.v4.is_some_and(|v4| ip == v4)
}

/// A few of them, those that can be reached first.
fn named(mut sockets: Vec<SocketAddr>, own: Addresses) -> Vec<SocketAddr> {
    sockets.sort_by_key(|at| (!is_outside(at, own), at.is_ipv6(), *at));
    sockets.dedup();
    sockets.truncate(NAMED);
    sockets
}

impl Verdict {
    /// What is wrong and what to do, seen from whoever wants the port (`the service's internal port`).
    pub fn words(&self, port: u16, wanted_by: &str) -> Option<String> {
        let list = |sockets: &[SocketAddr]| sockets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Self::Open => None,
            Self::Inside(sockets) => Some(format!("listens on {}; make it listen on 0.0.0.0 or [::]", list(sockets))),
            Self::Elsewhere(sockets) => {
                let other = sockets.first().map_or(port, SocketAddr::port);
                let listens = list(sockets);
                Some(format!(
                    "listens on {listens}, but {wanted_by} is {port}; make it listen on 0.0.0.0:{port}, or change the port to {other}"
                ))
            }
            Self::Silent => Some(format!("nothing listens on port {port} yet")),
        }
    }

    /// After so long it is told in the Machine's status.
    fn settles_ms(&self) -> u64 {
        if *self == Self::Silent { SILENT_MS } else { SETTLED_MS }
    }
}

/// A port's verdict, and since when it has been the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stand {
    pub verdict: Verdict,
    since_ms: u64,
}

impl Stand {
    /// The next look at a port. A verdict that is another one begins to stand now.
    pub fn next(before: Option<Self>, verdict: Verdict, now_ms: u64) -> Self {
        match before {
            Some(before) if before.verdict == verdict => before,
            _ => Self { verdict, since_ms: now_ms },
        }
    }

    pub fn is_settled(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.since_ms) >= self.verdict.settles_ms()
    }

    /// Nobody need wait for the port any longer. `opened`: it was open before in this version of the Machine, so another
    /// port that is open sooner (of a debugger, or for metrics) is no sign that this one will not be.
    pub fn is_lasting(&self, opened: bool, own: Addresses, now_ms: u64) -> bool {
        let long = now_ms.saturating_sub(self.since_ms) >= LASTING_MS;
        long && match &self.verdict {
            Verdict::Open | Verdict::Silent => false,
            Verdict::Inside(_) => true,
            // What listens on loopback beside may be a program's helper.
            Verdict::Elsewhere(sockets) => !opened && sockets.iter().any(|at| is_outside(at, own)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Addresses {
        Addresses { v6: "fdaa::7".parse().unwrap(), v4: Some("172.20.0.2".parse().unwrap()) }
    }

    fn at(sockets: &[&str]) -> Vec<SocketAddr> {
        sockets.iter().map(|at| at.parse().unwrap()).collect()
    }

    fn judged(sockets: &[&str], port: u16, wanted: &[u16]) -> Option<String> {
        let verdict = judge(&at(sockets), port, &wanted.iter().copied().collect(), own());
        verdict.words(port, "the service's internal port")
    }

    #[test]
    fn what_a_connection_from_the_host_reaches_is_open() {
        for open in ["0.0.0.0:80", "[::]:80", "[fdaa::7]:80", "172.20.0.2:80"] {
            assert_eq!(judged(&["127.0.0.1:80", open], 80, &[80]), None, "{open}");
        }
        for inside in ["127.0.0.1:80", "127.0.1.1:80", "[::1]:80", "172.18.0.1:80", "[fe80::1]:80"] {
            let words = format!("listens on {inside}; make it listen on 0.0.0.0 or [::]");
            assert_eq!(judged(&[inside, "0.0.0.0:81"], 80, &[80]).as_deref(), Some(&*words));
        }
    }

    #[test]
    fn the_words_name_what_listens_and_what_to_do() {
        let both = judged(&["[::1]:8000", "127.0.0.1:8000"], 8000, &[8000]).unwrap();
        assert_eq!(both, "listens on 127.0.0.1:8000, [::1]:8000; make it listen on 0.0.0.0 or [::]");
        let other = judged(&["127.0.0.1:9229", "0.0.0.0:3000"], 8080, &[8080]).unwrap();
        assert!(
            other.starts_with("listens on 0.0.0.0:3000, 127.0.0.1:9229, but the service's internal port is 8080; ")
        );
        assert!(other.ends_with("or change the port to 3000"), "{other}");
        // A port that another service wants is where it belongs.
        let silent = "nothing listens on port 8080 yet";
        assert_eq!(judged(&["0.0.0.0:9090"], 8080, &[8080, 9090]).as_deref(), Some(silent));
        assert_eq!(judged(&[], 8080, &[8080]).as_deref(), Some(silent));
        let many: Vec<String> = (1..100).map(|port| format!("0.0.0.0:{port}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(judged(&many, 8080, &[8080]).unwrap().len() < 200, "a header carries it");
    }

    #[test]
    fn a_fault_lasts_only_if_it_has_stood_and_waiting_cannot_help() {
        let wanted = BTreeSet::from([80]);
        let stand = |sockets: &[&str]| Stand::next(None, judge(&at(sockets), 80, &wanted, own()), 1_000);
        let lasting = |sockets: &[&str], opened, now_ms| stand(sockets).is_lasting(opened, own(), now_ms);
        let late = 1_000 + LASTING_MS;
        assert!(!lasting(&["127.0.0.1:80"], false, late - 1) && lasting(&["127.0.0.1:80"], false, late));
        assert!(lasting(&["0.0.0.0:81"], false, late));
        assert!(!lasting(&["0.0.0.0:81"], true, u64::MAX), "it was open before: a slow start");
        assert!(!lasting(&["127.0.0.1:81"], false, u64::MAX), "a helper's port");
        assert!(!lasting(&[], false, u64::MAX) && !lasting(&["[::]:80"], false, u64::MAX));
        // What changes begins anew.
        let later = Stand::next(Some(stand(&["127.0.0.1:80"])), Verdict::Silent, 5_000);
        assert!(!later.is_settled(5_000 + SILENT_MS - 1) && later.is_settled(5_000 + SILENT_MS));
        let same = Stand::next(Some(stand(&[])), Verdict::Silent, 5_000);
        assert!(same.is_settled(1_000 + SILENT_MS));
    }
}
