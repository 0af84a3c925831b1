//! Calls that reach into a running Machine: a signal, a command, its processes. They change no state of the host.

use axum::Json;
use axum::extract::State;

use godwit_api::ApiError;
use godwit_api::ids::MachineId;
use godwit_api::machine::{Acknowledged, ExecAnswer, ExecMachine, ListenSocket, ProcessStat, SignalMachine};
use godwit_base::http::Failure;
use godwit_base::telemetry::chain;
use godwit_driver::{Error as DriverError, ExecRequest, Fault, Handle};

use super::{HostApi, Id, known_signal};

const DEFAULT_EXEC_S: u64 = 60;
const MAX_EXEC_S: u64 = 3600;
/// The API's clock ticks: hundredths of a second.
const MS_PER_TICK: u64 = 10;

pub async fn running(api: &HostApi, machine: &MachineId) -> Result<Handle, ApiError> {
    api.held(machine)?;
    let handle = api.effects.handle(machine).await.map_err(|error| refused(machine, &error))?;
    handle.ok_or_else(|| not_running(machine))
}

pub fn not_running(machine: &MachineId) -> ApiError {
    ApiError::conflict(format!("Machine {machine} is not running; start it first"))
}

pub fn refused(machine: &MachineId, error: &DriverError) -> ApiError {
    let text = format!("Machine {machine}: {}", chain(error));
    match (error, error.fault()) {
        (DriverError::NotRunning | DriverError::OtherInstance { .. }, _) => ApiError::conflict(text),
        (DriverError::Busy { .. }, _) => ApiError { retry_after_s: Some(1), ..ApiError::conflict(text) },
        (DriverError::Invalid { .. }, _) => ApiError::unprocessable(text),
        (_, Fault::User) => ApiError::unprocessable(text),
        (_, Fault::System) => ApiError::internal(text),
    }
}

pub async fn signal(
    State(api): State<HostApi>,
    Id(machine): Id,
    Json(call): Json<SignalMachine>,
) -> Result<Json<Acknowledged>, Failure> {
    let number = known_signal(Some(&call.signal))?;
    let handle = running(&api, &machine).await?;
    let sent = api.effects.organs().driver.signal(&handle, number).await;
    sent.map_err(|error| refused(&machine, &error))?;
    Ok(Json(Acknowledged { ok: true }))
}

pub async fn exec(
    State(api): State<HostApi>,
    Id(machine): Id,
    Json(call): Json<ExecMachine>,
) -> Result<Json<ExecAnswer>, Failure> {
    let argv = if call.command.is_empty() { words(call.cmd.as_deref().unwrap_or_default())? } else { call.command };
    if argv.is_empty() {
        return Err(ApiError::bad_request("`command` names no program").into());
    }
    let handle = running(&api, &machine).await?;
    let timeout_s = call.timeout.unwrap_or(DEFAULT_EXEC_S).clamp(1, MAX_EXEC_S);
    let request = ExecRequest {
        argv,
        env: Vec::new(),
        user: None,
        stdin: call.stdin.unwrap_or_default().into_bytes(),
        timeout_ms: timeout_s * 1000,
        output_limit_bytes: ExecRequest::MAX_BYTES,
    };
    let reply = api.effects.organs().driver.exec(&handle, &request).await;
    let reply = reply.map_err(|error| refused(&machine, &error))?;
    if reply.timed_out {
        let text = format!("the command did not end within {timeout_s} s and was killed");
        return Err(ApiError::new(408, godwit_api::Status::Timeout, text).into());
    }
    let (stdout, stdout_base64) = text_or_base64(&reply.stdout);
    let (stderr, stderr_base64) = text_or_base64(&reply.stderr);
    Ok(Json(ExecAnswer {
        exit_code: reply.exit_code.unwrap_or_else(|| reply.signal.map_or(-1, |signal| 128 + signal)),
        exit_signal: reply.signal,
        stdout,
        stderr,
        truncated: reply.truncated,
        stdout_base64,
        stderr_base64,
    }))
}

/// JSON's texts are UTF-8: what is not is given in base64 besides. A bound may have cut the last character in two;
/// that alone makes it no other bytes than they are.
fn text_or_base64(bytes: &[u8]) -> (String, Option<String>) {
    use base64::Engine;
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => {
            let whole = base64::engine::general_purpose::STANDARD.encode(bytes);
            (String::from_utf8_lossy(bytes).into_owned(), Some(whole))
        }
    }
}

/// Splits a command line as a shell would, as far as quotes and backslashes go; nothing is expanded.
fn words(line: &str) -> Result<Vec<String>, ApiError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (_, '\\') => match chars.next() {
                Some(escaped) => word.get_or_insert_default().push(escaped),
                None => return Err(ApiError::bad_request("`cmd` ends in a backslash")),
            },
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(ApiError::bad_request("`cmd` has an open quote"));
    }
    words.extend(word);
    Ok(words)
}

pub async fn ps(State(api): State<HostApi>, Id(machine): Id) -> Result<Json<Vec<ProcessStat>>, Failure> {
    let handle = running(&api, &machine).await?;
    let processes = api.effects.organs().driver.processes(&handle).await;
    let processes = processes.map_err(|error| refused(&machine, &error))?;
    Ok(Json(processes.into_iter().map(shown).collect()))
}

fn shown(process: godwit_driver::ProcessStat) -> ProcessStat {
    let sockets = process.listen_sockets.into_iter();
    ProcessStat {
        pid: process.pid,
        stime: process.stime_ms / MS_PER_TICK,
        rtime: process.rtime_ms / MS_PER_TICK,
        command: process.command,
        directory: process.directory,
        cpu: process.cpu_ms.saturating_mul(100) / process.rtime_ms.max(1),
        rss: process.rss_bytes,
        listen_sockets: sockets.map(|s| ListenSocket { proto: s.proto, address: s.address }).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn a_command_line_is_split_as_people_mean_it() {
        let split = |line| words(line).ok();
        let expect = |parts: &[&str]| Some(parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>());
        assert_eq!(split("ls -l  /"), expect(&["ls", "-l", "/"]));
        assert_eq!(split(r#"sh -c 'echo "a b"' "" c\ d"#), expect(&["sh", "-c", r#"echo "a b""#, "", "c d"]));
        assert_eq!(split(""), expect(&[]));
        assert_eq!((split("'open"), split("x\\")), (None, None));
    }
}
