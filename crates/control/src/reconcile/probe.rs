//! Asks hosts that have fallen silent whether they are there, and tells placement and routes when that changes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use godwit_api::HostId;
use godwit_api::row::HostRow;

use crate::control::{Control, get_request};
use crate::counters::HostLabels;
use crate::view::Reach;

const PROBE_INTERVAL: Duration = Duration::from_millis(500);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Hosts asked at once.
const PROBES_AT_ONCE: usize = 64;

pub async fn probe(control: Arc<Control>) {
    let mut last: HashMap<HostId, (Reach, bool)> = HashMap::new();
    loop {
        let silent: Vec<HostRow> = {
            let world = control.world();
            control.liveness.displace(world.displaced());
            let hosts = world.hosts.values().filter(|row| control.liveness.wants_probe(&row.id));
            hosts.map(|row| (*row.value).clone()).collect()
        };
        let asked = silent.into_iter().map(|row| ask(&control, row));
        futures_util::stream::iter(asked).buffer_unordered(PROBES_AT_ONCE).collect::<Vec<()>>().await;
        judge(&control, &mut last);
        tokio::time::sleep(PROBE_INTERVAL).await;
    }
}

async fn ask(control: &Control, row: HostRow) {
    let client = control.hosts.of(&row);
    if client.send("/healthz", get_request(), PROBE_TIMEOUT).await.is_ok() {
        control.liveness.agent(&row.id);
    }
    // Edges go through the door: a host whose agent is down still serves.
    let door = tokio::net::TcpStream::connect(&row.door_addr);
    if let Ok(Ok(_)) = tokio::time::timeout(PROBE_TIMEOUT, door).await {
        control.liveness.door(&row.id);
    }
}

fn judge(control: &Control, last: &mut HashMap<HostId, (Reach, bool)>) {
    let mut world = control.world_mut();
    control.mark_lost(&mut world);
    let hosts: Vec<(HostId, bool)> = world.hosts.values().map(|row| (row.id.clone(), row.cordoned)).collect();
    let mut counts = HashMap::from([("active", 0), ("cordoned", 0), ("unreachable", 0)]);
    for (host, cordoned) in hosts {
        let now = (control.liveness.reach(&host), control.liveness.is_lost(&host));
        let before = last.insert(host.clone(), now);
        if before != Some(now) {
            if before.is_some() {
                tracing::info!(%host, reach = now.0.as_str(), "a host's being there has changed");
            }
            world.host_changed(&host);
        }
        let state = match (now.0, cordoned) {
            (Reach::Unreachable, _) => "unreachable",
            (_, true) => "cordoned",
            _ => "active",
        };
        *counts.entry(state).or_insert(0) += 1;
    }
    for (state, count) in counts {
        control.counters.hosts.get_or_create(&HostLabels { state }).set(count);
    }
    let machines = world.machines.values().flat_map(|rows| rows.values());
    let living = machines.filter(|row| row.destroyed_at_ms.is_none()).count();
    control.counters.machines.set(i64::try_from(living).unwrap_or(i64::MAX));
}
