//! What edges have told of public ports, in memory: the last word of each, for a while. It must not judge what an app may ask
//! for.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use godwit_api::EdgeId;
use godwit_api::fleet::{ClosedAt, EDGE_PORTS_KEPT_MS, EdgePorts, RawPort};

/// Of one edge: what it may say is bounded by what it opens.
const PORTS_MAX: usize = 2_048;
const WHY_MAX_BYTES: usize = 200;

/// Bounded by the edges that have a key.
#[derive(Debug, Default)]
pub struct Told {
    edges: Mutex<HashMap<EdgeId, (Instant, EdgePorts)>>,
}

impl Told {
    pub fn hear(&self, edge: EdgeId, mut ports: EdgePorts, now: Instant) {
        ports.own.truncate(PORTS_MAX);
        ports.closed.truncate(PORTS_MAX);
        ports.open.truncate(PORTS_MAX);
        for closed in &mut ports.closed {
            closed.why = closed.why.chars().take(WHY_MAX_BYTES).collect();
        }
        self.living(now).insert(edge, (now, ports));
    }

    /// The edge that listens on this port itself.
    pub fn owner(&self, port: u16, now: Instant) -> Option<EdgeId> {
        let edges = self.living(now);
        let mut owners: Vec<&EdgeId> =
            edges.iter().filter(|(_, (_, told))| told.own.contains(&port)).map(|(id, _)| id).collect();
        owners.sort();
        owners.first().map(|id| (*id).clone())
    }

    /// What edges said of each of these ports, in the order of edges.
    pub fn of(&self, ports: &[u16], now: Instant) -> Vec<RawPort> {
        let edges = self.living(now);
        let mut edges: Vec<(&EdgeId, &EdgePorts)> = edges.iter().map(|(edge, (_, told))| (edge, told)).collect();
        edges.sort_by_key(|(edge, _)| *edge);
        let of = |port: &u16| {
            let open = edges.iter().filter(|(_, told)| told.open.contains(port));
            let closed = edges.iter().filter_map(|(edge, told)| {
                let closed = told.closed.iter().find(|closed| closed.port == *port)?;
                Some(ClosedAt { edge: (*edge).clone(), why: closed.why.clone() })
            });
            RawPort {
                port: *port,
                open_at: open.map(|(edge, _)| (*edge).clone()).collect(),
                closed_at: closed.collect(),
            }
        };
        ports.iter().map(of).collect()
    }

    /// Those that were heard of not too long ago; the others are forgotten.
    fn living(&self, now: Instant) -> MutexGuard<'_, HashMap<EdgeId, (Instant, EdgePorts)>> {
        let mut edges = self.edges.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = Duration::from_millis(EDGE_PORTS_KEPT_MS);
        edges.retain(|_, (heard, _)| now.saturating_duration_since(*heard) < kept);
        edges
    }
}

/// One sentence for each port and edge that could not open it.
pub fn warnings(ports: &[RawPort]) -> Vec<String> {
    let closed = ports.iter().flat_map(|port| port.closed_at.iter().map(move |closed| (port.port, closed)));
    closed.map(|(port, closed)| format!("port {port} is not open at edge {}: {}", closed.edge, closed.why)).collect()
}

#[cfg(test)]
mod tests {
    use godwit_api::fleet::ClosedPort;

    use super::*;

    #[test]
    fn an_edges_last_word_stands_until_it_is_silent_too_long() {
        let (told, now) = (Told::default(), Instant::now());
        let edge: EdgeId = "edge-1-0001".parse().unwrap();
        let closed = |port| ClosedPort { port, why: "in use".repeat(100) };
        let first = EdgePorts { own: vec![8080], closed: vec![closed(5432), closed(6379)], open: vec![7000] };
        told.hear(edge.clone(), first, now);
        assert_eq!(told.owner(8080, now), Some(edge.clone()));
        assert_eq!(told.owner(5432, now), None);
        let ports = told.of(&[5432, 7000, 1], now);
        assert_eq!((ports[1].open_at.as_slice(), ports[1].closed_at.is_empty()), (&[edge.clone()][..], true));
        assert!(ports[2].open_at.is_empty() && ports[2].closed_at.is_empty(), "nobody has said anything of it");
        let warnings = warnings(&ports);
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].starts_with("port 5432 is not open at edge edge-1-0001: in use") && warnings[0].len() < 260
        );
        told.hear(edge, EdgePorts { own: vec![8080], closed: vec![], open: vec![5432] }, now);
        assert!(super::warnings(&told.of(&[5432], now)).is_empty(), "it is open by now");
        let later = now + Duration::from_millis(EDGE_PORTS_KEPT_MS);
        assert_eq!(told.owner(8080, later), None);
    }
}
