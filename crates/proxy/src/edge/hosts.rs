//! Doors by host, as all rows together tell, and the connections to them.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use godwit_api::ids::HostId;
use godwit_api::route::RouteRow;
use http::HeaderValue;

use crate::link::client::Link;

pub struct Hosts {
    bearer: HeaderValue,
    /// Bounded by the hosts of the fleet.
    doors: RwLock<HashMap<HostId, Arc<str>>>,
    links: RwLock<HashMap<Arc<str>, Arc<Link>>>,
}

impl Hosts {
    /// `key` is this edge's own.
    pub fn new(key: &str) -> Result<Self, crate::Error> {
        let bearer = HeaderValue::from_str(&format!("Bearer {key}"))
            .map_err(|_| crate::Error::config("identity_file", "its key cannot stand in a header"))?;
        Ok(Self { bearer, doors: RwLock::default(), links: RwLock::default() })
    }

    pub fn learn(&self, row: &RouteRow) {
        let news: Vec<_> = {
            let doors = self.doors.read().unwrap_or_else(PoisonError::into_inner);
            let is_new = |host: &HostId, addr: &str| doors.get(host).is_none_or(|known| **known != *addr);
            row.machines.iter().filter(|one| is_new(&one.host, &one.door_addr)).collect()
        };
        if news.is_empty() {
            return;
        }
        let mut doors = self.doors.write().unwrap_or_else(PoisonError::into_inner);
        for machine in news {
            doors.insert(machine.host.clone(), machine.door_addr.as_str().into());
        }
    }

    pub fn door(&self, host: &HostId) -> Option<Arc<str>> {
        self.doors.read().unwrap_or_else(PoisonError::into_inner).get(host).cloned()
    }

    pub fn link(&self, addr: &Arc<str>) -> Arc<Link> {
        if let Some(link) = self.links.read().unwrap_or_else(PoisonError::into_inner).get(addr) {
            return link.clone();
        }
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        links.entry(addr.clone()).or_insert_with(|| Link::new(addr, self.bearer.clone())).clone()
    }

    /// To each of these doors and back, as far as that was measured.
    pub fn round_trips<'a>(&self, doors: impl Iterator<Item = &'a Arc<str>>) -> Vec<Option<Duration>> {
        let links = self.links.read().unwrap_or_else(PoisonError::into_inner);
        doors.map(|addr| links.get(addr).and_then(|link| link.rtt())).collect()
    }

    pub fn links(&self) -> Vec<Arc<Link>> {
        self.links.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
