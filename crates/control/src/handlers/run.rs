//! Run state is the host's own: these calls go to the host that holds the Machine, and change no row.

use std::time::Duration;

use godwit_api::duration::Span;
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::*;
use godwit_api::host::{RunRestart, RunStart, RunStop};
use godwit_api::machine::{Acknowledged, ExecAnswer, ProcessStat, SignalMachine, StartAnswer};
use godwit_api::row::MachineRow;
use godwit_api::{ApiError, Endpoint, Method};

use super::lease;
use crate::call::Call;
use crate::hosts::{CALL_MARGIN, COMMAND_TIMEOUT};
use crate::validate;
use crate::world::Known;

/// A command in a Machine may take so long; without a `timeout`, `EXEC_DEFAULT`.
const EXEC_MAX: Duration = Duration::from_secs(300);
const EXEC_DEFAULT: Duration = Duration::from_secs(30);
/// A stop waits for the Machine's own bound at most, and a restart waits for the stop.
const STOP_MAX: Duration = Duration::from_secs(validate::STOP_TIMEOUT_MAX_S);

/// The row of a Machine that the caller may command.
fn commanded<E: Endpoint>(call: &Call<E>) -> Result<Known<MachineRow>, ApiError> {
    let row = call.control.living_row(&call.app()?, &call.machine()?)?;
    lease::check(&call.control, &row.id, &call.headers)?;
    Ok(row)
}

pub async fn start(call: Call<MachinesStart>) -> Result<StartAnswer, ApiError> {
    let row = commanded(&call)?;
    let request = RunStart { epoch: row.epoch };
    call.control.ask_host(&row, Method::Post, "/start", Some(&request), COMMAND_TIMEOUT).await
}

pub async fn stop(call: Call<MachinesStop>) -> Result<Acknowledged, ApiError> {
    let row = commanded(&call)?;
    let signal = call.body.signal.as_deref().map(|signal| validate::signal(signal, "signal")).transpose()?;
    let timeout = call.body.timeout.and_then(Span::or_unset);
    let request = RunStop { epoch: row.epoch, signal, timeout };
    call.control.ask_host(&row, Method::Post, "/stop", Some(&request), patience(timeout)?).await
}

pub async fn restart(call: Call<MachinesRestart>) -> Result<Acknowledged, ApiError> {
    let row = commanded(&call)?;
    let signal = call.query.signal.as_deref().map(|signal| validate::signal(signal, "signal")).transpose()?;
    let timeout = call.query.timeout.as_deref().map(span).transpose()?.and_then(Span::or_unset);
    let force = call.query.force_stop.unwrap_or(false);
    let request = RunRestart { epoch: row.epoch, signal, timeout, force };
    call.control.ask_host(&row, Method::Post, "/restart", Some(&request), patience(timeout)?).await
}

/// How long a host may take for a stop with this timeout.
fn patience(timeout: Option<Span>) -> Result<Duration, ApiError> {
    if timeout.is_some_and(|timeout| timeout.0 > STOP_MAX) {
        return Err(ApiError::unprocessable(format!("timeout: at most {} s", STOP_MAX.as_secs())));
    }
    Ok(timeout.map_or(STOP_MAX, |timeout| timeout.0) + CALL_MARGIN)
}

fn span(text: &str) -> Result<Span, ApiError> {
    Span::parse(text).ok_or_else(|| {
        ApiError::bad_request(format!("timeout: {text:?} is not a duration: write \"10s\", or a number of seconds"))
    })
}

pub async fn signal(call: Call<MachinesSignal>) -> Result<Acknowledged, ApiError> {
    let row = commanded(&call)?;
    let request = SignalMachine { signal: validate::signal(&call.body.signal, "signal")? };
    call.control.ask_host(&row, Method::Post, "/signal", Some(&request), COMMAND_TIMEOUT).await
}

pub async fn exec(call: Call<MachinesExec>) -> Result<ExecAnswer, ApiError> {
    let row = commanded(&call)?;
    if call.body.command.is_empty() && call.body.cmd.as_deref().is_none_or(str::is_empty) {
        return Err(ApiError::unprocessable("command is missing"));
    }
    let wait = call.body.timeout.filter(|timeout| *timeout > 0).map_or(EXEC_DEFAULT, Duration::from_secs);
    if wait > EXEC_MAX {
        return Err(ApiError::unprocessable(format!("timeout: at most {} seconds", EXEC_MAX.as_secs())));
    }
    let mut request = call.body.clone();
    request.timeout = Some(wait.as_secs());
    call.control.ask_host(&row, Method::Post, "/exec", Some(&request), wait + CALL_MARGIN).await
}

pub async fn ps(call: Call<MachinesPs>) -> Result<Vec<ProcessStat>, ApiError> {
    let row = call.control.living_row(&call.app()?, &call.machine()?)?;
    let processes = call.control.ask_host::<Empty, Vec<ProcessStat>>(&row, Method::Get, "/ps", None, COMMAND_TIMEOUT);
    let mut processes = processes.await?;
    match call.query.sort_by.as_deref().unwrap_or("pid") {
        "pid" => processes.sort_by_key(|process| process.pid),
        "cpu" => processes.sort_by_key(|process| process.cpu),
        "rss" => processes.sort_by_key(|process| process.rss),
        "stime" => processes.sort_by_key(|process| process.stime),
        "rtime" => processes.sort_by_key(|process| process.rtime),
        "command" => processes.sort_by(|a, b| a.command.cmp(&b.command)),
        other => {
            return Err(ApiError::bad_request(format!(
                "sort_by: {other:?} is none of pid, cpu, rss, stime, rtime, command"
            )));
        }
    }
    match call.query.order.as_deref().unwrap_or("asc") {
        "asc" => {}
        "desc" => processes.reverse(),
        other => return Err(ApiError::bad_request(format!("order: {other:?} is neither asc nor desc"))),
    }
    Ok(processes)
}
