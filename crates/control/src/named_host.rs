//! A host that a request names: whether it can be meant, and why it cannot take what was to go there. Pure.

use godwit_api::error::Status;
use godwit_api::row::HostRow;
use godwit_api::{ApiError, HostId};

use crate::place::NoHost;
use crate::world::{Known, World};

/// So many hosts are named to who named one that is not there.
const HOSTS_NAMED: usize = 8;
/// When to try again at a host that is full or away.
const RETRY_AFTER_S: u32 = 5;

/// The host of exactly this id, if new work may go there and it is in one of the regions (if any are given).
pub(crate) fn find<'a>(world: &'a World, name: &str, regions: &[String]) -> Result<&'a Known<HostRow>, ApiError> {
    let row = HostId::parse(name).ok().and_then(|id| world.hosts.get(&id)).ok_or_else(|| unknown(world, name))?;
    if !regions.is_empty() && !regions.contains(&row.region) {
        let text = format!("host: host {} is in region {}, not in {}", row.id, row.region, regions.join(" or "));
        return Err(ApiError::unprocessable(text));
    }
    if row.cordoned {
        let text = format!("host: host {} is cordoned and takes nothing new: name another, or uncordon it", row.id);
        return Err(ApiError::unprocessable(text));
    }
    Ok(row)
}

fn unknown(world: &World, name: &str) -> ApiError {
    let mut ids: Vec<&str> = world.hosts.keys().map(HostId::as_str).collect();
    ids.sort_unstable();
    let more = if ids.len() > HOSTS_NAMED { ", …" } else { "" };
    ids.truncate(HOSTS_NAMED);
    let known = if ids.is_empty() {
        "the fleet has no hosts yet".to_owned()
    } else {
        format!("hosts: {}{more}", ids.join(", "))
    };
    ApiError::unprocessable(format!("host: there is no host {name:?} ({known})"))
}

/// Why the one host that came into question cannot take a `what`: 422 when waiting does not help, 503 when it may.
pub(crate) fn cannot_take(host: &HostId, what: &str, why: &NoHost) -> ApiError {
    if why.too_small > 0 {
        let text = format!("host: host {host} is smaller than the {what}, even when empty");
        return ApiError::new(422, Status::InsufficientCapacity, text);
    }
    let (status, reason) = match () {
        () if why.lost > 0 => (Status::Unavailable, "is unreachable"),
        () if why.silent > 0 => (Status::Unavailable, "has not reported yet"),
        () if why.cordoned > 0 => (Status::Unavailable, "is cordoned"),
        () => (Status::InsufficientCapacity, "has no room for it now"),
    };
    let text = format!("host: the {what} was not placed: host {host} {reason}");
    ApiError { status, ..ApiError::unavailable(text, RETRY_AFTER_S) }
}
