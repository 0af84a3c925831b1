//! Who calls, and what they may do. Pure: the caller was named before (by its key now, by its certificate later).

use std::fmt;

use godwit_api::{EdgeId, HostId, MachineId, keys};

/// A caller with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A person or a program with an API token.
    Operator(String),
    Host(HostId),
    Edge(EdgeId),
    /// Control, as hosts see it.
    Control,
    /// Holds a join token: may join and nothing else.
    Joiner,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator(name) => write!(f, "operator {name}"),
            Self::Host(id) => write!(f, "host {id}"),
            Self::Edge(id) => write!(f, "edge {id}"),
            Self::Control => f.write_str("control"),
            Self::Joiner => f.write_str("a joiner"),
        }
    }
}

impl Peer {
    /// What kind of caller it is, in one word.
    pub fn role(&self) -> &'static str {
        match self {
            Self::Operator(_) => "operator",
            Self::Host(_) => "host",
            Self::Edge(_) => "edge",
            Self::Control => "control",
            Self::Joiner => "joiner",
        }
    }
}

/// What is asked. `key` names the thing: a store key or prefix for the first three, an image (`Verb::Pull`), a machine's
/// id at a door, a path at an agent, the target of a move at its source, empty for the API as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    Read,
    Watch,
    Write,
    /// Use the public API.
    Operate,
    /// Join the fleet.
    Join,
    /// Pull images.
    Pull,
    /// At a host: change what it runs.
    Command,
    /// At the source of a move, in the name of its ticket: prepare, hand off, take back, release.
    Move,
    /// At the source of a move: cancel it.
    CallOff,
    /// At a door: send traffic, start, stop if idle.
    Traffic,
    Start,
    StopIfIdle,
    /// Of itself, to control's memory: no row.
    Tell,
}

/// The answer to a caller who may not. Names caller, verb and thing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{peer} may not {verb} {key:?}")]
pub struct Forbidden {
    pub peer: String,
    pub verb: &'static str,
    pub key: String,
}

impl Verb {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Watch => "watch",
            Self::Write => "write",
            Self::Operate => "operate",
            Self::Join => "join",
            Self::Pull => "pull",
            Self::Command => "command",
            Self::Move => "take over a move to",
            Self::CallOff => "call off a move to",
            Self::Traffic => "send traffic to",
            Self::Start => "start",
            Self::StopIfIdle => "stop",
            Self::Tell => "tell of its ports",
        }
    }
}

/// The one decision. A host writes its own facts and reads its own placements and the edges, pulls the images that these
/// name, and takes over what moves to it; an edge reads routes and may only start and stop-if-idle; an operator uses the
/// API and never the store or a host directly.
pub fn may(peer: &Peer, verb: Verb, key: &str) -> Result<(), Forbidden> {
    let allowed = match (peer, verb) {
        (Peer::Operator(_), Verb::Operate | Verb::Pull) => true,
        (Peer::Joiner, Verb::Join) => true,
        (Peer::Control, Verb::Command | Verb::CallOff) => true,
        (Peer::Host(id), Verb::Pull) => under(key, &keys::images_of(id)),
        (Peer::Host(id), Verb::Move) => key == id.as_str(),
        (Peer::Host(id), Verb::Write) => under(key, &keys::facts_of(id)),
        (Peer::Host(id), Verb::Read | Verb::Watch) => {
            under(key, &keys::placements_of(id))
                || under(key, &keys::tickets_of(id))
                || under(key, &keys::facts_of(id))
                || under(key, keys::EDGES)
        }
        (Peer::Edge(_), Verb::Read | Verb::Watch) => {
            under(key, keys::ROUTES)
                || under(key, keys::APP_REGIONS)
                || under(key, keys::PORTS)
                || under(key, keys::HOSTNAMES)
                // With their private keys: an edge is what shakes hands with them.
                || under(key, keys::CERTIFICATES)
                || under(key, keys::CHALLENGES)
        }
        // Of one Machine, by its exact id: never of a host, a folder or all.
        (Peer::Edge(_), Verb::Traffic | Verb::Start | Verb::StopIfIdle) => MachineId::parse(key).is_ok(),
        (Peer::Edge(_), Verb::Tell) => true,
        _ => false,
    };
    if allowed {
        return Ok(());
    }
    Err(Forbidden { peer: peer.to_string(), verb: verb.as_str(), key: key.to_owned() })
}

/// Whether `key` lies in the folder `prefix` (which ends in `/`) or is that folder.
fn under(key: &str, prefix: &str) -> bool {
    debug_assert!(prefix.ends_with('/'));
    key.starts_with(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_reaches_its_own_rows_and_no_namesakes() {
        let w1 = Peer::Host(HostId::parse("w1").unwrap());
        assert!(may(&w1, Verb::Write, "facts/w1/host").is_ok());
        assert!(may(&w1, Verb::Watch, "placements/w1/").is_ok());
        assert!(may(&w1, Verb::Watch, "edges/").is_ok());
        assert!(may(&w1, Verb::Read, "tickets/w1/").is_ok());
        for (verb, key) in [
            (Verb::Write, "facts/w10/host"),
            (Verb::Write, "placements/w1/x"),
            (Verb::Read, "placements/w10/"),
            (Verb::Read, "placements/"),
            (Verb::Read, "placements/w1"),
            (Verb::Read, "tickets/w10/"),
            (Verb::Read, "volumes/"),
            (Verb::Read, "tokens/"),
            (Verb::Operate, ""),
            (Verb::Command, "x"),
        ] {
            let refused = may(&w1, verb, key).unwrap_err();
            assert!(refused.to_string().contains("host w1"), "{refused}");
        }
    }

    #[test]
    fn an_edge_only_starts_and_stops_if_idle() {
        let edge = Peer::Edge(EdgeId::parse("e").unwrap());
        for verb in [Verb::Traffic, Verb::Start, Verb::StopIfIdle] {
            assert!(may(&edge, verb, "00000000000abc").is_ok(), "{verb:?}");
            for key in ["", "m", "00000000000abc/", "00000000000ab", "00000000000abc0", "placements/w1/00000000000abc"]
            {
                assert!(may(&edge, verb, key).is_err(), "{verb:?} {key}");
            }
        }
        assert!(may(&edge, Verb::Watch, "routes/fra/app").is_ok());
        for verb in [Verb::Write, Verb::Operate, Verb::Command, Verb::Pull] {
            assert!(may(&edge, verb, "routes/fra/app").is_err(), "{verb:?}");
        }
    }

    #[test]
    fn a_host_takes_over_what_moves_to_it_and_pulls_what_it_needs() {
        let w1 = Peer::Host(HostId::parse("w1").unwrap());
        assert!(may(&w1, Verb::Move, "w1").is_ok() && may(&w1, Verb::Pull, "images/w1/sha256:ab").is_ok());
        for (verb, key) in [
            (Verb::Move, "w10"),
            (Verb::Move, ""),
            (Verb::CallOff, "w1"),
            (Verb::Pull, "images/w10/sha256:ab"),
            (Verb::Pull, "images/"),
            (Verb::Pull, "sha256:ab"),
        ] {
            assert!(may(&w1, verb, key).is_err(), "{verb:?} {key}");
        }
        let edge = Peer::Edge(EdgeId::parse("w1").unwrap());
        for other in [edge, Peer::Operator("w1".into()), Peer::Joiner, Peer::Control] {
            assert!(may(&other, Verb::Move, "w1").is_err(), "{other}");
        }
        assert!(may(&Peer::Control, Verb::CallOff, "w1").is_ok());
    }

    #[test]
    fn private_keys_are_read_by_edges_and_by_nobody_else() {
        let edge = Peer::Edge(EdgeId::parse("e").unwrap());
        let host = Peer::Host(HostId::parse("w1").unwrap());
        for key in ["certificates/", "certificates/a.example/custom", "challenges/"] {
            assert!(may(&edge, Verb::Watch, key).is_ok() && may(&edge, Verb::Write, key).is_err(), "{key}");
            for other in [&host, &Peer::Operator("ann".into()), &Peer::Joiner, &Peer::Control] {
                assert!(may(other, Verb::Read, key).is_err() && may(other, Verb::Watch, key).is_err(), "{other} {key}");
            }
        }
        assert!(may(&edge, Verb::Read, keys::ACME_ACCOUNT).is_err());
    }

    #[test]
    fn an_operator_never_acts_as_a_host_nor_a_host_as_an_operator() {
        let operator = Peer::Operator("ann".into());
        assert!(may(&operator, Verb::Operate, "").is_ok());
        assert!(may(&operator, Verb::Command, "").is_err() && may(&operator, Verb::Write, "facts/w1/host").is_err());
        assert!(may(&Peer::Joiner, Verb::Operate, "").is_err() && may(&Peer::Joiner, Verb::Join, "").is_ok());
    }
}
