//! Desire comes down: the placements of this host, all at one revision, at connect, whenever the watch stirs, and
//! periodically; and the edges that may call its door. The watch is only an occasion: what is acted on is always a
//! whole listing. It must not judge what it reads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use godwit_api::door::DoorEdge;
use godwit_api::ids::{HostId, MachineId};
use godwit_api::keys;
use godwit_api::row::{EdgeRow, Placement};
use godwit_api::ticket::{SignedTicket, Ticket};
use godwit_base::backoff::Backoff;
use godwit_base::telemetry::chain;
use godwit_base::{Distrust, Peer, ticket};
use godwit_store::{Error, Mirror, Row, Store, StoreExt, Update, follow};

use crate::engine::Input;
use crate::metrics::Meters;
use crate::owner::Inputs;

const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Asks for a pull soon; many occasions become one.
#[derive(Clone, Default)]
pub struct PullSoon(Arc<Notify>);

impl PullSoon {
    pub fn hint(&self) {
        self.0.notify_one();
    }
}

/// What is pulled, and from where.
pub struct Puller {
    pub store: Arc<dyn Store>,
    pub host: HostId,
    /// By which control has signed tickets for this host.
    pub control_key: String,
    pub inputs: Inputs,
    pub soon: PullSoon,
    pub interval: Duration,
    pub meters: Meters,
    pub distrust: Distrust,
}

impl Puller {
    /// Runs for ever.
    pub async fn run(self) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        loop {
            let pulled = self.pull().await;
            self.meters.pulled(pulled.is_ok());
            match pulled {
                Ok(input) => {
                    backoff.reset();
                    self.inputs.send(input).await;
                    // Either is an occasion.
                    let _ = tokio::time::timeout(self.interval, self.soon.0.notified()).await;
                }
                Err(error) => {
                    tracing::debug!(error = chain(&error), "cannot pull placements");
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            }
        }
    }

    async fn pull(&self) -> Result<Input, Error> {
        let prefix = keys::placements_of(&self.host);
        // Asked before and after: rows and generation must be of one store.
        let before = self.store.identity().await?.generation;
        let tickets = self.store.list(&keys::tickets_of(&self.host)).await?;
        let listing = self.store.list(&prefix).await?;
        let generation = self.store.identity().await?.generation;
        if before != generation {
            return Err(Error::Closed);
        }
        let rows = listing.rows.iter().filter_map(|row| self.placement(row)).collect();
        let tickets = tickets.rows.iter().filter_map(|row| self.ticket(row)).collect();
        Ok(Input::Pulled { generation, revision: listing.revision, rows, tickets })
    }

    /// One that is not for us, or that control did not sign, begins nothing.
    fn ticket(&self, row: &Row) -> Option<(SignedTicket, Ticket)> {
        let signed = match row.json::<SignedTicket>() {
            Ok(signed) => signed.value,
            Err(error) => {
                tracing::error!(key = row.key, error = chain(&error), "a ticket cannot be read and is ignored");
                return None;
            }
        };
        match ticket::open_as_target(&signed, &self.host, &self.control_key) {
            Ok(ticket) if row.key == keys::ticket(&self.host, &ticket.migration) => Some((signed, ticket)),
            Ok(_) => {
                self.distrust.note(Some(&Peer::Control), "foreign_ticket", &row.key);
                None
            }
            Err(error) => {
                self.distrust.note(Some(&Peer::Control), "forged_ticket", &row.key);
                tracing::error!(key = row.key, error = chain(&error), "a ticket is ignored");
                None
            }
        }
    }

    /// A row that cannot be read is left alone, and so is its Machine: a newer control may have written it. It must not
    /// seem to be missing, so it is named as loudly as one that is.
    fn placement(&self, row: &Row) -> Option<(MachineId, Placement)> {
        match row.json::<Placement>() {
            Ok(placement)
                if placement.value.host == self.host
                    && row.key == keys::placement(&self.host, &placement.value.machine) =>
            {
                Some((placement.value.machine.clone(), placement.value))
            }
            Ok(_) => {
                self.distrust.note(Some(&Peer::Control), "foreign_placement", &row.key);
                tracing::error!(key = row.key, "a placement that is not what its key says is ignored");
                None
            }
            Err(error) => {
                tracing::error!(key = row.key, error = chain(&error), "a placement cannot be read and is ignored");
                None
            }
        }
    }
}

/// Turns every stir of the watches into an occasion. Runs for ever.
pub async fn watch_placements(store: Arc<dyn Store>, host: HostId, soon: PullSoon) {
    let placements = watch(store.clone(), keys::placements_of(&host), soon.clone());
    let tickets = watch(store, keys::tickets_of(&host), soon);
    tokio::join!(placements, tickets);
}

async fn watch(store: Arc<dyn Store>, prefix: String, soon: PullSoon) {
    let mut following = follow(store, prefix);
    loop {
        match following.next().await {
            Ok(Update::Snapshot { .. }) => soon.hint(),
            Ok(Update::Changes(batch)) if !batch.events.is_empty() => soon.hint(),
            Ok(Update::Changes(_)) => {}
            Err(error) => {
                tracing::warn!(error = chain(&error), "placements cannot be watched");
                tokio::time::sleep(FIRST_WAIT).await;
            }
        }
    }
}

/// Tells which edges may call the door, whenever that changes. Runs for ever.
pub async fn watch_edges(store: Arc<dyn Store>, inputs: Inputs) {
    let mut following = follow(store, keys::EDGES);
    let mut mirror = Mirror::new();
    let mut told: Option<Vec<DoorEdge>> = None;
    loop {
        match following.next().await {
            Ok(update) => {
                mirror.apply(update);
                let edges = edges(&mirror);
                if told.as_ref() != Some(&edges) {
                    told = Some(edges.clone());
                    inputs.send(Input::Edges(edges)).await;
                }
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "edges cannot be watched");
                tokio::time::sleep(FIRST_WAIT).await;
            }
        }
    }
}

fn edges(mirror: &Mirror) -> Vec<DoorEdge> {
    let rows: BTreeMap<_, _> = mirror
        .rows()
        .filter_map(|(_, row)| serde_json::from_slice::<EdgeRow>(&row.value).ok())
        .map(|row| (row.id.clone(), DoorEdge { id: row.id, key_sha256: row.key_sha256 }))
        .collect();
    rows.into_values().collect()
}
