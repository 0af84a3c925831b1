//! Admitting hosts and edges: each gets an id and a key of its own. The same data folder (its incarnation) that joins
//! again keeps its id and gets a new key; a wiped one is a new host.

use std::net::SocketAddr;

use godwit_api::endpoints::FleetJoin;
use godwit_api::fleet::{Join, JoinRole, Joined};
use godwit_api::row::{EdgeRow, HostRow};
use godwit_api::{ApiError, EdgeId, HostId, keys};
use godwit_base::{clock, secret};
use godwit_store::{Compare, Op, Txn};

use crate::call::Call;
use crate::control::{COMMIT_ATTEMPTS, Control, contended};
use crate::rows::json;
use crate::validate;

/// The wanted name, so that the id with its dash and four digits is a label.
const NAME_MAX: usize = 58;
const INCARNATION_MAX: usize = 128;

pub async fn join(call: Call<FleetJoin>) -> Result<Joined, ApiError> {
    let wanted = call.body;
    check(&wanted)?;
    for attempt in 0..COMMIT_ATTEMPTS {
        let id = id_for(&call.control, &wanted, attempt);
        let (txn, joined) = match wanted.role {
            JoinRole::Host => host(&call.control, &wanted, &id)?,
            JoinRole::Edge => edge(&call.control, &wanted, &id)?,
        };
        if call.control.commit(txn).await?.succeeded {
            // At once, not at the next probe: nothing should be placed on a host that this one has replaced.
            call.control.liveness.displace(call.control.world().displaced());
            tracing::info!(id = joined.id, role = ?wanted.role, region = wanted.region, "joined the fleet");
            return Ok(joined);
        }
    }
    Err(contended())
}

fn check(wanted: &Join) -> Result<(), ApiError> {
    if wanted.name.len() > NAME_MAX || HostId::parse(&wanted.name).is_err() {
        return Err(ApiError::unprocessable(format!(
            "name: {:?} is not 1 to {NAME_MAX} of a-z, 0-9 and '-', neither first nor last a '-'",
            wanted.name
        )));
    }
    validate::region(&wanted.region)?;
    if wanted.incarnation.is_empty() || wanted.incarnation.len() > INCARNATION_MAX {
        return Err(ApiError::unprocessable(format!("incarnation: 1 to {INCARNATION_MAX} characters")));
    }
    if wanted.role == JoinRole::Host {
        if !wanted.agent_url.starts_with("http://") {
            return Err(ApiError::unprocessable("agent_url: begins with http://"));
        }
        if wanted.door_addr.parse::<SocketAddr>().is_err() {
            return Err(ApiError::unprocessable("door_addr: an address and a port"));
        }
    }
    Ok(())
}

/// The id that the incarnation has, or a new one: four digits of its hash, of chance if those are taken.
fn id_for(control: &Control, wanted: &Join, attempt: usize) -> String {
    let world = control.world();
    let known = match wanted.role {
        JoinRole::Host => {
            world.hosts.values().find(|row| row.incarnation == wanted.incarnation).map(|row| row.id.to_string())
        }
        JoinRole::Edge => world.edges.keys().find(|id| id.as_str() == edge_id(wanted)).map(|id| id.to_string()),
    };
    let digits = match attempt {
        0 => secret::sha256_hex(&wanted.incarnation)[..4].to_owned(),
        _ => hex::encode(secret::random_bytes::<2>()),
    };
    let taken = |id: &str| HostId::parse(id).is_ok_and(|id| world.hosts.contains_key(&id));
    known.unwrap_or_else(|| match format!("{}-{digits}", wanted.name) {
        id if wanted.role == JoinRole::Host && taken(&id) => {
            format!("{}-{}", wanted.name, hex::encode(secret::random_bytes::<2>()))
        }
        id => id,
    })
}

/// An edge has no data worth an incarnation row of its own: its id is its incarnation's hash.
fn edge_id(wanted: &Join) -> String {
    format!("{}-{}", wanted.name, &secret::sha256_hex(&wanted.incarnation)[..4])
}

fn host(control: &Control, wanted: &Join, id: &str) -> Result<(Txn, Joined), ApiError> {
    let id = HostId::parse(id).map_err(|error| ApiError::internal(error.to_string()))?;
    let (key, control_key) = (secret::new_key("gwh"), secret::new_key("gwc"));
    let world = control.world();
    let stands = world.hosts.get(&id);
    let row = HostRow {
        id: id.clone(),
        region: wanted.region.clone(),
        agent_url: wanted.agent_url.trim_end_matches('/').to_owned(),
        door_addr: wanted.door_addr.clone(),
        key_sha256: secret::sha256_hex(&key),
        control_key: control_key.clone(),
        incarnation: wanted.incarnation.clone(),
        cordoned: stands.is_some_and(|row| row.cordoned),
        joined_at_ms: clock::unix_ms(),
    };
    let at = keys::host(&id);
    let txn = put(at, &row, stands.map_or(0, |row| row.revision))?;
    Ok((txn, Joined { id: id.to_string(), key, control_key }))
}

fn edge(control: &Control, wanted: &Join, id: &str) -> Result<(Txn, Joined), ApiError> {
    let id = EdgeId::parse(id).map_err(|error| ApiError::internal(error.to_string()))?;
    let key = secret::new_key("gwe");
    let row = EdgeRow {
        id: id.clone(),
        region: wanted.region.clone(),
        key_sha256: secret::sha256_hex(&key),
        joined_at_ms: clock::unix_ms(),
    };
    let revision = control.world().edges.get(&id).map_or(0, |row| row.revision);
    Ok((put(keys::edge(&id), &row, revision)?, Joined { id: id.to_string(), key, control_key: String::new() }))
}

fn put<T: serde::Serialize>(key: String, row: &T, revision: u64) -> Result<Txn, ApiError> {
    let op: Op = json(key.clone(), row)?;
    Ok(Txn::of([op]).when(Compare::unchanged(key, revision)))
}
