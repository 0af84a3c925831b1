//! What was refused because it was not proven, or not its sender's to say: counted by who sent it and of which kind,
//! and logged once for each of them. It must not know what is refused, nor decide it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use crate::metrics::Metrics;
use crate::peer::Peer;

/// Pairs of peer and kind that are remembered as told; more are counted and not logged.
const TOLD_MAX: usize = 1_024;
/// Of what a stranger sent, so much is shown.
const SHOWN_CHARS: usize = 120;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Labels {
    /// `operator`, `host`, `edge`, `control`, `joiner` or `nobody`.
    pub peer: &'static str,
    pub kind: &'static str,
}

/// See the module. Cheap to clone; clones are one.
#[derive(Clone, Default)]
pub struct Distrust {
    counted: Family<Labels, Counter>,
    told: Arc<Mutex<HashSet<(String, &'static str)>>>,
}

impl Distrust {
    pub fn register(metrics: &Metrics) -> Self {
        let this = Self::default();
        metrics.register(|registry| {
            let help = "What was refused because it was not proven, or not its sender's to say";
            registry.register("distrusted", help, this.counted.clone());
        });
        this
    }

    /// `peer`: who sent it, if that is known. `what`: the thing, for the log.
    pub fn note(&self, peer: Option<&Peer>, kind: &'static str, what: &str) {
        let labels = Labels { peer: peer.map_or("nobody", Peer::role), kind };
        self.counted.get_or_create(&labels).inc();
        let name = peer.map_or_else(|| "nobody".to_owned(), ToString::to_string);
        let is_new = {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.len() < TOLD_MAX && told.insert((name.clone(), kind))
        };
        if is_new {
            let what: String = what.chars().take(SHOWN_CHARS).collect();
            tracing::warn!(
                peer = name,
                kind,
                what,
                "refused; more of the kind from there is counted in `distrusted` and not logged"
            );
        }
    }

    /// How often something was refused of a kind, whoever sent it.
    pub fn count(&self, peer: &'static str, kind: &'static str) -> u64 {
        self.counted.get_or_create(&Labels { peer, kind }).get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_api::HostId;

    #[test]
    fn each_peer_and_kind_is_counted_and_what_is_remembered_is_bounded() {
        let distrust = Distrust::default();
        for n in 0..2 * TOLD_MAX {
            let host = Peer::Host(HostId::parse(&format!("w{n}")).unwrap());
            distrust.note(Some(&host), "foreign", "x");
            distrust.note(Some(&host), "foreign", "x");
        }
        distrust.note(None, "unnamed", "y");
        assert_eq!((distrust.count("host", "foreign"), distrust.count("nobody", "unnamed")), (4 * TOLD_MAX as u64, 1));
        assert_eq!(distrust.told.lock().unwrap().len(), TOLD_MAX);
    }
}
