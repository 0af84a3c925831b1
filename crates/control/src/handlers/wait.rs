//! Waiting until a Machine is in a state: by the picture's changes, never by asking the host. A wait ends as soon as
//! what it waits for can no longer come.

use std::time::Duration;

use godwit_api::endpoints::MachinesWait;
use godwit_api::error::Status;
use godwit_api::machine::{Acknowledged, MachineState};
use godwit_api::{ApiError, AppName, MachineId};
use tokio::time::Instant;

use super::machines::states;
use crate::call::Call;
use crate::control::Control;
use crate::view;

/// The longest wait, and that of a request that names none.
const WAIT_MAX_S: u64 = 60;
/// A Machine that has failed stays so, unless a start of it was told a moment ago: its host's word may be on its way.
const FAILED_GRACE: Duration = Duration::from_secs(1);

/// How a Machine stands towards what is waited for.
enum Sight {
    /// It is so, or was.
    Reached,
    /// Not yet; in words.
    NotYet(&'static str),
    /// It failed, and nothing tries again by itself.
    Failed(String),
    /// It never will be.
    Never(String),
}

pub async fn wait(call: Call<MachinesWait>) -> Result<Acknowledged, ApiError> {
    let (app, id) = (call.app()?, call.machine()?);
    let control = &call.control;
    let asked = call.query.state.as_deref().unwrap_or("started");
    let wanted = states(asked)?;
    let version = call.query.instance_id.as_deref().or(call.query.version.as_deref());
    let since = call.query.from_event_id.as_deref().filter(|id| !id.is_empty());
    let wish = Wish { version, since, wanted: &wanted };
    let timeout_s = call.query.timeout.unwrap_or(WAIT_MAX_S);
    if timeout_s > WAIT_MAX_S {
        return Err(ApiError::bad_request(format!("timeout: at most {WAIT_MAX_S} seconds")));
    }
    control.machine_row(&app, &id)?;
    let Ok(_place) = control.waits.try_acquire() else {
        return Err(ApiError::unavailable("too many requests wait already", 1));
    };
    let deadline = Instant::now() + Duration::from_secs(timeout_s);
    let mut failed_since: Option<Instant> = None;
    let mut changes = control.changes();
    loop {
        // Seen before the look, so that a change in between wakes us.
        changes.borrow_and_update();
        let now = match look(control, &app, &id, &wish)? {
            Sight::Reached => return Ok(Acknowledged { ok: true }),
            Sight::Never(why) => return Err(cannot_come(&id, asked, &why)),
            Sight::NotYet(state) => {
                failed_since = None;
                state
            }
            Sight::Failed(why) => {
                let since = *failed_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= FAILED_GRACE {
                    return Err(cannot_come(&id, asked, &why));
                }
                "failed"
            }
        };
        let until = failed_since.map_or(deadline, |since| deadline.min(since + FAILED_GRACE));
        match tokio::time::timeout_at(until, changes.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(ApiError::unavailable("control is stopping", 1)),
            Err(_) if until < deadline => {}
            Err(_) => {
                let text = format!("Machine {id} is not {} after {timeout_s} s: it is {now}", words(asked));
                return Err(ApiError::new(408, Status::Timeout, text));
            }
        }
    }
}

fn cannot_come(id: &MachineId, asked: &str, why: &str) -> ApiError {
    ApiError::conflict(format!("Machine {id} will not be {}: {why}", words(asked)))
}

/// What is waited for.
struct Wish<'a> {
    version: Option<&'a str>,
    /// An event of the Machine: what came after it counts.
    since: Option<&'a str>,
    wanted: &'a [MachineState],
}

fn look(control: &Control, app: &AppName, id: &MachineId, wish: &Wish<'_>) -> Result<Sight, ApiError> {
    let Wish { version, since, wanted } = *wish;
    let row = control.machine_row(app, id)?;
    let world = control.world();
    let fact = world.fact_of(&row).map(|fact| &**fact);
    let state = view::state(&row, world.placement(&row.host, id).map(|placement| &**placement), fact);
    let events = view::events(&row, fact);
    // Ids of events grow with time: one that is told no more has newer ones all the same.
    let passed = events.iter().filter(|event| since.is_some_and(|since| event.id.as_str() > since));
    if passed.filter_map(|event| MachineState::parse(&event.status)).any(|state| wanted.contains(&state)) {
        return Ok(Sight::Reached);
    }
    if let MachineState::Destroyed | MachineState::Destroying = state {
        // Where it went from there, it has stopped: a state that has passed counts, where its end is written down.
        let has_ended = events.iter().filter_map(|event| event.request.as_ref()?.exit_event.as_ref());
        let has_stopped = wanted.contains(&MachineState::Stopped) && has_ended.into_iter().any(|exit| !exit.restarting);
        return Ok(match state {
            state if wanted.contains(&state) || has_stopped => Sight::Reached,
            MachineState::Destroyed => Sight::Never("it is destroyed".to_owned()),
            // Its process may still be ending.
            _ if wanted.contains(&MachineState::Destroyed) || wanted.contains(&MachineState::Stopped) => {
                Sight::NotYet(state.as_str())
            }
            _ => Sight::Never("it is being destroyed".to_owned()),
        });
    }
    if let Some(version) = version {
        let present = fact.map_or(&row.instance_id, |fact| &fact.instance_id);
        if version != present.as_str() {
            let refused = fact.and_then(|fact| fact.refused_update.as_ref());
            return Ok(match refused.filter(|refused| refused.instance_id.as_str() == version) {
                Some(refused) => Sight::Never(format!("version {version} was refused: {}", refused.reason)),
                None => Sight::NotYet("another version"),
            });
        }
    }
    Ok(match state {
        state if wanted.contains(&state) => Sight::Reached,
        MachineState::Failed => {
            let why = events.iter().find_map(|event| event.request.as_ref()?.reason.clone());
            Sight::Failed(format!("it failed{}", why.map(|why| format!(": {why}")).unwrap_or_default()))
        }
        state => Sight::NotYet(state.as_str()),
    })
}

fn words(asked: &str) -> String {
    asked.split(',').map(str::trim).collect::<Vec<_>>().join(" or ")
}
