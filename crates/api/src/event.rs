//! What happened to a Machine, as its agent wrote it down.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One entry of a Machine's history, newest first in lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MachineEvent {
    pub id: String,
    /// `launch`, `start`, `exit`, `stop`, `restart`, `update`, `destroy`, `check`, `unreachable`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// The state that the Machine entered.
    pub status: String,
    /// `user`, `flyd` (the host's own doing) or `proxy`.
    pub source: String,
    /// Unix milliseconds.
    pub timestamp: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<EventDetail>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct EventDetail {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_event: Option<ExitEvent>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_count: Option<u32>,
    /// Why, in words (refusals, failed steps).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How a Machine's process ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ExitEvent {
    pub exit_code: i32,
    pub guest_exit_code: i32,
    /// The signal that ended it; 0 for none, -1 when unknown.
    pub signal: i32,
    pub guest_signal: i32,
    pub oom_killed: bool,
    pub requested_stop: bool,
    pub restarting: bool,
    /// RFC 3339.
    pub exited_at: String,
}

impl MachineEvent {
    /// It, in words, for the Machine's log.
    pub fn remark(&self) -> String {
        let detail = self.request.as_ref();
        let reason = detail.and_then(|detail| detail.reason.as_deref());
        let exit = detail.and_then(|detail| detail.exit_event.as_ref());
        let text = match (self.kind.as_str(), self.status.as_str(), self.source.as_str()) {
            ("exit", _, _) => {
                return reason.map_or_else(|| exit.map_or("ended".into(), ExitEvent::words), str::to_owned);
            }
            ("launch", "created", _) => "created",
            ("launch", "failed", _) => "cannot run",
            ("start", "starting", "proxy") => "starting: a request waits for it",
            ("start", "starting", _) => "starting",
            ("start", "started", _) => "started",
            ("stop", "stopping", "proxy") => "stopping: idle",
            ("stop", "stopping", _) => "stopping, as asked",
            ("stop", "stopped", _) => "stopped",
            ("restart", _, _) => "restarting",
            ("update", "replacing", _) => "an update begins",
            ("update", _, _) if reason.is_some() => "the update was not made",
            ("update", _, _) => "updated",
            ("destroy", "destroying", _) => "being destroyed",
            ("migrate", _, _) => "came from another host; what it wrote there stayed there",
            (kind, status, _) => return format!("{kind}: {}", reason.unwrap_or(status)),
        };
        match reason {
            Some(reason) => format!("{text}: {reason}"),
            None => text.to_owned(),
        }
    }
}

/// The signals that end processes (signal(7), Linux on x86-64 and aarch64).
const SIGNALS: [(i32, &str); 14] = [
    (1, "SIGHUP"),
    (2, "SIGINT"),
    (3, "SIGQUIT"),
    (4, "SIGILL"),
    (5, "SIGTRAP"),
    (6, "SIGABRT"),
    (7, "SIGBUS"),
    (8, "SIGFPE"),
    (9, "SIGKILL"),
    (11, "SIGSEGV"),
    (13, "SIGPIPE"),
    (14, "SIGALRM"),
    (15, "SIGTERM"),
    (31, "SIGSYS"),
];

impl ExitEvent {
    /// How it ended, in plain English: `exited with code 3`, `killed: out of memory`.
    pub fn words(&self) -> String {
        let name = SIGNALS.iter().find(|(number, _)| *number == self.signal).map(|(_, name)| *name);
        match (self.signal, name) {
            _ if self.oom_killed => "killed: out of memory (raise config.guest.memory_mb)".to_owned(),
            (signal, _) if signal < 0 => "ended unseen: its host, or what held it there, died".to_owned(),
            (0, _) if self.exit_code < 0 => "did not start".to_owned(),
            (0, _) => format!("exited with code {}", self.exit_code),
            (_, Some(name)) => format!("ended by {name}"),
            (number, None) => format!("ended by signal {number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_has_words_for_the_log() {
        let event = |kind: &str, status: &str, source: &str, reason: Option<&str>| MachineEvent {
            id: "1".into(),
            kind: kind.into(),
            status: status.into(),
            source: source.into(),
            timestamp: 0,
            request: reason.map(|reason| EventDetail { reason: Some(reason.into()), ..EventDetail::default() }),
        };
        assert_eq!(event("stop", "stopping", "proxy", None).remark(), "stopping: idle");
        assert_eq!(event("launch", "failed", "user", Some("no such image")).remark(), "cannot run: no such image");
        let again = "restart 2 of 10 in 1s: exited with code 3";
        assert_eq!(event("exit", "restarting", "flyd", Some(again)).remark(), again);
        assert_eq!(event("anything", "else", "flyd", None).remark(), "anything: else");
        assert_eq!(event("anything", "else", "flyd", Some("why")).remark(), "anything: why");
    }

    #[test]
    fn an_end_is_told_in_plain_english_and_never_as_signal_0() {
        let exit = |exit_code, signal| ExitEvent { exit_code, signal, ..ExitEvent::default() };
        assert_eq!(exit(3, 0).words(), "exited with code 3");
        assert_eq!(exit(137, 9).words(), "ended by SIGKILL");
        assert_eq!(exit(171, 43).words(), "ended by signal 43");
        assert_eq!(exit(-1, 0).words(), "did not start");
        assert!(exit(-1, -1).words().starts_with("ended unseen"));
        let oom = ExitEvent { oom_killed: true, ..exit(137, 9) };
        assert!(oom.words().starts_with("killed: out of memory"));
    }
}
