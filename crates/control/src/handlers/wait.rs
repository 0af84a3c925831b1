//! Waiting until a Machine is in a state: by the picture's changes, never by asking the host.

use std::time::Duration;

use godwit_api::endpoints::MachinesWait;
use godwit_api::error::Status;
use godwit_api::machine::{Acknowledged, MachineState};
use godwit_api::row::MachineRow;
use godwit_api::{ApiError, AppName, MachineId};
use tokio::time::Instant;

use super::machines::states;
use crate::control::Control;
use crate::http::Call;
use crate::view;

/// The longest wait, and that of a request that names none.
const WAIT_MAX_S: u64 = 60;

pub async fn wait(call: Call<MachinesWait>) -> Result<Acknowledged, ApiError> {
    let (app, id) = (call.app()?, call.machine()?);
    let control = &call.control;
    let wanted = states(call.query.state.as_deref().unwrap_or("started"))?;
    let version = call.query.instance_id.as_deref().or(call.query.version.as_deref());
    let timeout_s = call.query.timeout.unwrap_or(WAIT_MAX_S);
    if timeout_s > WAIT_MAX_S {
        return Err(ApiError::bad_request(format!("timeout: at most {WAIT_MAX_S} seconds")));
    }
    control.machine_row(&app, &id)?;
    let Ok(_place) = control.waits.try_acquire() else {
        return Err(ApiError::unavailable("too many requests wait already", 1));
    };
    let deadline = Instant::now() + Duration::from_secs(timeout_s);
    let mut changes = control.changes();
    loop {
        // Seen before the look, so that a change in between wakes us.
        changes.borrow_and_update();
        let state = match look(control, &app, &id, version)? {
            Some(state) if wanted.contains(&state) => return Ok(Acknowledged { ok: true }),
            other => other,
        };
        match tokio::time::timeout_at(deadline, changes.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(ApiError::unavailable("control is stopping", 1)),
            Err(_) => {
                let now = state.map_or("another version", MachineState::as_str);
                let text = format!("Machine {id} is not {} after {timeout_s} s: it is {now}", words(&wanted));
                return Err(ApiError::new(408, Status::Timeout, text));
            }
        }
    }
}

/// The present state; `None` while another version than the wanted one runs.
fn look(
    control: &Control,
    app: &AppName,
    id: &MachineId,
    version: Option<&str>,
) -> Result<Option<MachineState>, ApiError> {
    let row = control.machine_row(app, id)?;
    let world = control.world();
    let fact = world.fact_of(&row).map(|fact| &**fact);
    let state = view::state(&row, world.placement(&row.host, id).map(|placement| &**placement), fact);
    Ok((state == MachineState::Destroyed || runs(&row, fact, version)).then_some(state))
}

fn runs(row: &MachineRow, fact: Option<&godwit_api::fact::MachineFact>, version: Option<&str>) -> bool {
    let present = fact.map_or(&row.instance_id, |fact| &fact.instance_id);
    version.is_none_or(|version| version == present.as_str())
}

fn words(states: &[MachineState]) -> String {
    states.iter().map(|state| state.as_str()).collect::<Vec<_>>().join(" or ")
}
