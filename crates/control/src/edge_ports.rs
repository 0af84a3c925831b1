//! What edges have told of public ports, in memory: the last word of each, for a while. It must not judge what an app may ask
//! for.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use godwit_api::EdgeId;
use godwit_api::fleet::{ClosedPort, EDGE_PORTS_KEPT_MS, EdgePorts};

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

    /// One sentence for each of these ports that some edge could not open, in the order of edges.
    pub fn warnings(&self, ports: &[u16], now: Instant) -> Vec<String> {
        let edges = self.living(now);
        let mut closed: Vec<(&EdgeId, &ClosedPort)> = Vec::new();
        for (edge, (_, told)) in edges.iter() {
            closed
                .extend(told.closed.iter().filter(|closed| ports.contains(&closed.port)).map(|closed| (edge, closed)));
        }
        closed.sort_by_key(|(edge, closed)| (closed.port, (*edge).clone()));
        let told = closed.into_iter();
        told.map(|(edge, closed)| format!("port {} is not open at edge {edge}: {}", closed.port, closed.why)).collect()
    }

    /// Those that were heard of not too long ago; the others are forgotten.
    fn living(&self, now: Instant) -> MutexGuard<'_, HashMap<EdgeId, (Instant, EdgePorts)>> {
        let mut edges = self.edges.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = Duration::from_millis(EDGE_PORTS_KEPT_MS);
        edges.retain(|_, (heard, _)| now.saturating_duration_since(*heard) < kept);
        edges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edges_last_word_stands_until_it_is_silent_too_long() {
        let (told, now) = (Told::default(), Instant::now());
        let edge: EdgeId = "edge-1-0001".parse().unwrap();
        let closed = |port| ClosedPort { port, why: "in use".repeat(100) };
        told.hear(edge.clone(), EdgePorts { own: vec![8080], closed: vec![closed(5432), closed(6379)] }, now);
        assert_eq!(told.owner(8080, now), Some(edge.clone()));
        assert_eq!(told.owner(5432, now), None);
        let warnings = told.warnings(&[5432, 1], now);
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].starts_with("port 5432 is not open at edge edge-1-0001: in use") && warnings[0].len() < 260
        );
        told.hear(edge, EdgePorts { own: vec![8080], closed: vec![] }, now);
        assert!(told.warnings(&[5432], now).is_empty(), "it is open by now");
        let later = now + Duration::from_millis(EDGE_PORTS_KEPT_MS);
        assert_eq!(told.owner(8080, later), None);
    }
}
