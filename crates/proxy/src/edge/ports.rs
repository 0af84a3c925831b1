//! Tells control which public ports this edge has open, which it could not open, and which are its own: whoever asked for a port hears of it
//! there. Nothing is written anywhere; control forgets an edge that is silent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use godwit_api::endpoint::Empty;
use godwit_api::endpoints::EdgesTellPorts;
use godwit_api::fleet::{ClosedPort, EdgePorts};
use godwit_base::http::client::Client;
use tokio::sync::watch;

/// Said again after so long: a third of `fleet::EDGE_PORTS_KEPT_MS`.
const AGAIN: Duration = Duration::from_secs(20);
/// After a failure.
const RETRY: Duration = Duration::from_secs(5);
/// Ports come together: an app may have many.
const GATHER: Duration = Duration::from_millis(50);

/// Ports that could not be opened, and why.
pub type Closed = BTreeMap<u16, String>;

/// What became of the raw ports that apps ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Raw {
    pub open: BTreeSet<u16>,
    pub closed: Closed,
}

/// For ever.
pub async fn tell(client: Client, own: Vec<u16>, mut raw: watch::Receiver<Raw>) {
    loop {
        let told = {
            let raw = raw.borrow_and_update();
            let closed = raw.closed.iter().map(|(port, why)| ClosedPort { port: *port, why: why.clone() });
            EdgePorts { own: own.clone(), closed: closed.collect(), open: raw.open.iter().copied().collect() }
        };
        let again = match client.call::<EdgesTellPorts>(&[], &Empty {}, &told).await {
            Ok(_) => AGAIN,
            Err(error) => {
                tracing::debug!(error = godwit_base::telemetry::chain(&error), "control was not told of ports");
                RETRY
            }
        };
        tokio::select! {
            changed = raw.changed() => match changed {
                Ok(()) => tokio::time::sleep(GATHER).await,
                Err(_) => return,
            },
            () = tokio::time::sleep(again) => {}
        }
    }
}
