//! Leases: who holds one may change a Machine; everybody else is told who does.

use axum::http::HeaderMap;
use godwit_api::endpoints::{LeaseCreate, LeaseRelease, LeaseShow};
use godwit_api::error::Status;
use godwit_api::lease::{Lease, LeaseAnswer, LeaseReleased, NONCE_HEADER};
use godwit_api::machine::Acknowledged;
use godwit_api::row::{LeaseRow, MachineRow};
use godwit_api::{ApiError, MachineId, keys};
use godwit_base::{Peer, clock, secret};
use godwit_store::{Compare, Op, Txn};

use crate::call::Call;
use crate::control::{Control, contended};
use crate::rows::json;
use crate::world::Known;

/// Without a `ttl`.
const TTL_DEFAULT_S: u64 = 60;
const TTL_MAX_S: u64 = 24 * 3_600;
const DESCRIPTION_MAX: usize = 500;

pub async fn show(call: Call<LeaseShow>) -> Result<LeaseAnswer, ApiError> {
    let row = call.control.machine_row(&call.app()?, &call.machine()?)?;
    match active(&call.control, &row.id) {
        Some(lease) => Ok(answer(&lease)),
        None => Err(ApiError::not_found(format!("there is no lease on Machine {}", row.id))),
    }
}

/// Takes the lease, or renews it when the caller shows its nonce.
pub async fn create(call: Call<LeaseCreate>) -> Result<LeaseAnswer, ApiError> {
    let control = &call.control;
    let row = control.living_row(&call.app()?, &call.machine()?)?;
    let ttl_s = ttl(call.query.ttl.or(call.body.ttl))?;
    let description = call.body.description.unwrap_or_default();
    if description.len() > DESCRIPTION_MAX {
        return Err(ApiError::unprocessable(format!("description: at most {DESCRIPTION_MAX} bytes")));
    }
    let guard = check(control, &row.id, &call.headers)?;
    let held = active(control, &row.id);
    let mut lease = new(&call.peer, &row, ttl_s, description);
    if let Some(held) = held {
        lease.nonce = held.nonce.clone();
    }
    let key = keys::lease(&row.id);
    if !control.commit(Txn::of([json(key, &lease)?]).when(guard)).await?.succeeded {
        return Err(contended());
    }
    Ok(answer(&lease))
}

pub async fn release(call: Call<LeaseRelease>) -> Result<LeaseReleased, ApiError> {
    let control = &call.control;
    let row = control.machine_row(&call.app()?, &call.machine()?)?;
    if nonce(&call.headers).is_none() {
        return Err(ApiError::bad_request(format!("a lease is released with its nonce in the header {NONCE_HEADER}")));
    }
    let guard = check(control, &row.id, &call.headers)?;
    if !control.commit(Txn::of([Op::delete(keys::lease(&row.id))]).when(guard)).await?.succeeded {
        return Err(contended());
    }
    Ok(LeaseReleased { status: "success".into(), data: Acknowledged { ok: true } })
}

/// May the caller change the Machine? Answers the compare by which its transaction loses when the lease changes.
pub(crate) fn check(control: &Control, machine: &MachineId, headers: &HeaderMap) -> Result<Compare, ApiError> {
    let shown = nonce(headers);
    let stands = control.world().leases.get(machine).cloned();
    let revision = stands.as_ref().map_or(0, |lease| lease.revision);
    let held = stands.filter(|lease| lease.expires_at_ms > clock::unix_ms());
    match (held, shown) {
        (Some(lease), Some(nonce)) if secret::equal(&lease.nonce, nonce) => {}
        (Some(lease), shown) => {
            let left_s = lease.expires_at_ms.saturating_sub(clock::unix_ms()).div_ceil(1000);
            let whose = if shown.is_some() { "the nonce is not that of the present lease: " } else { "" };
            return Err(ApiError::new(
                409,
                Status::LeaseHeld,
                format!("{whose}{} holds a lease on Machine {machine} for another {left_s} s", lease.owner),
            ));
        }
        (None, Some(_)) => {
            return Err(ApiError::conflict(format!(
                "the nonce is of no present lease on Machine {machine}: it has expired, was released, or is another Machine's"
            )));
        }
        (None, None) => {}
    }
    Ok(Compare::unchanged(keys::lease(machine), revision))
}

/// A fresh lease for the caller.
pub(crate) fn new(peer: &Peer, row: &MachineRow, ttl_s: u64, description: String) -> LeaseRow {
    of_version(peer, row.instance_id.clone(), ttl_s, description)
}

pub(crate) fn of_version(peer: &Peer, version: godwit_api::InstanceId, ttl_s: u64, description: String) -> LeaseRow {
    LeaseRow {
        nonce: hex::encode(secret::random_bytes::<12>()),
        owner: match peer {
            Peer::Operator(name) => name.clone(),
            other => other.to_string(),
        },
        description,
        expires_at_ms: clock::unix_ms() + ttl_s * 1000,
        version,
    }
}

pub(crate) fn ttl(wanted: Option<u64>) -> Result<u64, ApiError> {
    match wanted {
        None => Ok(TTL_DEFAULT_S),
        Some(ttl @ 1..=TTL_MAX_S) => Ok(ttl),
        Some(other) => Err(ApiError::unprocessable(format!("ttl: {other} is not between 1 and {TTL_MAX_S} seconds"))),
    }
}

fn nonce(headers: &HeaderMap) -> Option<&str> {
    headers.get(NONCE_HEADER)?.to_str().ok().filter(|nonce| !nonce.is_empty())
}

fn active(control: &Control, machine: &MachineId) -> Option<Known<LeaseRow>> {
    let lease = control.world().leases.get(machine).cloned();
    lease.filter(|lease| lease.expires_at_ms > clock::unix_ms())
}

fn answer(lease: &LeaseRow) -> LeaseAnswer {
    LeaseAnswer {
        status: "success".into(),
        data: Lease {
            nonce: lease.nonce.clone(),
            expires_at: lease.expires_at_ms / 1000,
            owner: lease.owner.clone(),
            description: lease.description.clone(),
            version: lease.version.to_string(),
        },
    }
}
